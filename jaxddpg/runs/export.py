"""Export of policies for use without this package: as StableHLO for JAX, and as arrays for NumPy."""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxddpg import settings
from jaxddpg.config import ConfigError
from jaxddpg.parts import normalization
from jaxddpg.runs import numpy_policy
from jaxddpg.runs.load import NEWEST, load_member
from jaxddpg.types import Environment, State

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
COMPILED, ARRAYS, READER, README = "policy.stablehlo", "policy.npz", "numpy_policy.py", "README.md"
TITLE = "# A policy for "


def export(directory: str | Path, output: str | Path, member: int = 0, epoch: int | str = NEWEST) -> None:
    """Writes the deterministic policy of one member of a run into the directory `output`, in two forms that do not need
    this package, with a README that says how to load them. It maps an observation to an action in the units of the
    environment, normalization of observations included.

    `policy.stablehlo` is for JAX on any platform, [batch, O] -> [batch, A], see `jax.export`. `policy.npz` and its
    reader `numpy_policy.py` are for NumPy, [..., O] -> [..., A]; a linear or custom agent has none. `epoch` is as for
    `evaluate`; for a diverged member this is the policy before it diverged.

    Raises:
        ConfigError: there is no such run, checkpoint or member; `output` cannot be written or has other files; or
            flatbuffers, which `jax.export` needs, is not installed.
    """
    directory, output = Path(directory), Path(output)
    if importlib.util.find_spec("flatbuffers") is None:
        raise ConfigError(["exporting needs the package flatbuffers: pip install flatbuffers (or jaxddpg[export])"])
    if output.exists() and not output.is_dir():
        raise ConfigError([f"--output {output} is a file; name a directory"])
    files = {COMPILED, ARRAYS, READER, README}
    if others := sorted({path.name for path in output.glob("*")} - files - {"__pycache__"}):
        reason = f"contains {others[0]}, which is not part of an exported policy"
        raise ConfigError([f"--output {output} {reason}; choose another directory"])
    if (output / README).exists() and not (output / README).read_text(errors="replace").startswith(TITLE):
        raise ConfigError([f"--output {output} has a {README} of something else; choose another directory"])
    own, environment, state, _ = found = load_member(directory, member, epoch)
    bounds = environment.action_low, environment.action_high
    low, high = (np.broadcast_to(np.asarray(bound, np.float32), environment.action_size) for bound in bounds)
    rows = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("batch"), environment.observation_size), jnp.float32)
    compiled = jax.export.export(jax.jit(found.policy), platforms=PLATFORMS)(rows).serialize()
    arrays = _arrays(own.agent, state)
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name in files:  # of an earlier export, which may have had more of them
            (output / name).unlink(missing_ok=True)
        (output / COMPILED).write_bytes(compiled)
        if arrays:
            arrays |= {"action_low": low, "action_high": high}
            np.savez(output / ARRAYS, **arrays)
            shutil.copy(numpy_policy.__file__, output / READER)
        (output / README).write_text(_readme(directory, member, own, environment, low, high, bool(arrays)))
    except OSError as error:
        raise ConfigError([f"--output {output} cannot be written: {error.strerror or error}"]) from error


def _arrays(agent: Any, state: State) -> dict[str, Any]:
    """What `numpy_policy` reads, but for the Box; nothing for an agent that is not an actor network of ours."""
    if not isinstance(agent, settings.ActorCritic):
        return {}
    found: dict[str, Any] = {}
    if isinstance(state, normalization.NormalizedState):
        found |= {
            "observation_origin": state.origin,
            "observation_mean": state.mean,
            "observation_deviation": normalization.deviation(state),
            "observation_bound": np.float32(normalization.BOUND),
        }
        state = state.agent
    for collection in state.actor.values():
        for path, leaf in jax.tree_util.tree_leaves_with_path(collection):
            found["/".join(key.key for key in path)] = leaf
    found |= {"residual": agent.actor.architecture == "residual", "bfloat16": agent.precision == "bfloat16"}
    return {name: np.asarray(value) for name, value in found.items()}


def _readme(
    directory: Path, member: int, own: settings.Member, environment: Environment, low: Any, high: Any, has_arrays: bool
) -> str:
    observations, actions = environment.observation_size, environment.action_size
    trained = f"trained by {own.agent.algorithm} on {own.environment.name}"
    if own.environment.parameters:
        trained += f" with the parameters {json.dumps(dict(own.environment.parameters))}"
    box = "\n".join(f"| {index} | {a:g} | {b:g} |" for index, (a, b) in enumerate(zip(low, high, strict=True)))
    text = f"""{TITLE}{own.environment.name}

Member {member} of `{directory}`, {trained}.

It maps an observation, float32 [{observations}] as the environment returns it (not normalized), to an action, float32
[{actions}] in the units of the environment:

| action | lowest | highest |
| --- | --- | --- |
{box}

## In JAX

`{COMPILED}` takes a batch of observations and needs the packages jax and flatbuffers. It runs on
{", ".join(PLATFORMS)}. It was exported by JAX {jax.__version__}; releases of JAX in the six months after that one are
guaranteed to load it.

```python
from pathlib import Path

import jax
import numpy as np

policy = jax.export.deserialize(bytearray(Path("{COMPILED}").read_bytes()))
actions = jax.jit(policy.call)(np.zeros((1, {observations}), np.float32))
```
"""
    if not has_arrays:
        return text
    return f"""{text}
## In NumPy

`{READER}` computes the same from the arrays in `{ARRAYS}`, with NumPy alone.

```python
import numpy as np
from numpy_policy import load

act = load("{ARRAYS}")
action = act(np.zeros({observations}))
```
"""
