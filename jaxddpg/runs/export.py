"""Export of policies for use without this package: as StableHLO for JAX, as an ONNX model, and as arrays for NumPy."""

import importlib.util
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxddpg import config, settings
from jaxddpg.config import ConfigError
from jaxddpg.config.environment import make_environment
from jaxddpg.parts import normalization
from jaxddpg.report.rows import swept
from jaxddpg.runs import numpy_policy
from jaxddpg.runs.load import NEWEST, Policies, load_policies
from jaxddpg.settings import Member

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
PACKAGES = ("flatbuffers", "onnx")
COMPILED, ONNX, ARRAYS = "policy.stablehlo", "policy.onnx", "policy.npz"
READER, README = "numpy_policy.py", "README.md"
FILES = {COMPILED, ONNX, ARRAYS, READER, README}
TITLE = "# A policy for "
ALL = "all"


def export(directory: str | Path, output: str | Path, member: int | str = 0, epoch: int | str = NEWEST) -> None:
    """Writes the deterministic policy of one member of a run, or those of all, into the directory `output`, in three
    forms that do not need this package, with a README that says how to load them. It maps observations to actions in
    the units of the environment, normalization of observations included.

    `policy.stablehlo` is for JAX on any platform, see `jax.export`; `policy.onnx` is for ONNX runtimes; `policy.npz`
    and its reader `numpy_policy.py` are for NumPy. A linear or custom agent has only the first. `epoch` is as for
    `evaluate`; for a diverged member this is the policy before it diverged.

    Args:
        member: an index, for a function [batch, O] -> [batch, A]; or "all", for one of all M members,
            [M, batch, O] -> [M, batch, A].

    Raises:
        ConfigError: there is no such run, checkpoint or member; `output` cannot be written or has other files; or
            flatbuffers or onnx, which write the first two, is not installed.
    """
    directory, output = Path(directory), Path(output)
    _check(output)
    if isinstance(member, str) and member != ALL:
        raise ConfigError([f"member is {config.text(member)}, but must be an index or {ALL}"])
    found = load_policies(directory, epoch)
    count = len(found.plan.members)
    policy = found.all_members if isinstance(member, str) else found.member(member).policy
    size = make_environment(found.plan.members[0].settings.environment).observation_size
    shape = (*((count,) if member == ALL else ()), *jax.export.symbolic_shape("batch"), size)
    compiled = jax.export.export(jax.jit(policy), platforms=PLATFORMS)(jax.ShapeDtypeStruct(shape, jnp.float32))
    box = jax.device_get(jax.vmap(_box, axis_size=count)(found.stacked_settings()))
    arrays = _arrays(found, box, member)
    files = {COMPILED: bytes(compiled.serialize())}
    files[README] = _readme(directory, found, member, size, box, bool(arrays)).encode()
    if arrays:
        from jaxddpg.runs.onnx_model import serialize  # which needs onnx

        with io.BytesIO() as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
            files[ARRAYS] = file.getvalue()
        files |= {ONNX: serialize(arrays), READER: Path(numpy_policy.__file__).read_bytes()}
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name in FILES:  # of an earlier export, which may have had more of them
            (output / name).unlink(missing_ok=True)
        for name, content in files.items():
            (output / name).write_bytes(content)
    except OSError as error:
        raise ConfigError([f"--output {output} cannot be written: {error.strerror or error}"]) from error


def _check(output: Path) -> None:
    """ConfigError if nothing can be exported to this directory."""
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        names, plural = " and ".join(missing), "s" * (len(missing) - 1)
        remedy = f"pip install {' '.join(missing)} (or jaxddpg[export])"
        raise ConfigError([f"exporting needs the package{plural} {names}: {remedy}"])
    if output.exists() and not output.is_dir():
        raise ConfigError([f"--output {output} is a file; name a directory"])
    if others := sorted({path.name for path in output.glob("*")} - FILES - {"__pycache__"}):
        reason = f"contains {others[0]}, which is not part of an exported policy"
        raise ConfigError([f"--output {output} {reason}; choose another directory"])
    if (output / README).exists() and not (output / README).read_text(errors="replace").startswith(TITLE):
        raise ConfigError([f"--output {output} has a {README} of something else; choose another directory"])


def _box(section: Member) -> tuple[jax.Array, jax.Array]:
    """The ends [A] of a member's actions, whose parameters may be traced."""
    environment = make_environment(section.environment)
    low, high = (jnp.asarray(end, jnp.float32) for end in (environment.action_low, environment.action_high))
    return jnp.broadcast_to(low, environment.action_size), jnp.broadcast_to(high, environment.action_size)


def _arrays(found: Policies, box: tuple[np.ndarray, np.ndarray], member: int | str) -> dict[str, np.ndarray]:
    """What `numpy_policy` reads, of one member or of all; nothing for an agent that is not an actor network of ours.
    `box` has the ends [M, A] of the actions of all members."""
    agent, state = found.plan.members[0].settings.agent, found.agents
    if not isinstance(agent, settings.ActorCritic):
        return {}
    stacked: dict[str, Any] = {"action_low": box[0], "action_high": box[1]}
    common: dict[str, Any] = {
        "residual": agent.actor.architecture == "residual",
        "bfloat16": agent.precision == "bfloat16",
    }
    if isinstance(state, normalization.NormalizedState):
        stacked |= {
            "observation_origin": state.origin,
            "observation_mean": state.mean,
            "observation_deviation": normalization.deviation(state),
        }
        common["observation_bound"] = np.float32(normalization.BOUND)
        state = state.agent
    for collection in state.actor.values():
        for path, leaf in jax.tree_util.tree_leaves_with_path(collection):
            stacked["/".join(key.key for key in path)] = leaf

    def chosen(leaf: Any) -> Any:
        """[...] of one member; of all such that vectors [M, n] broadcast over a batch, [M, 1, n]."""
        if member != ALL:
            return leaf[member]
        return leaf[:, None] if leaf.ndim == 2 else leaf

    selected = {name: chosen(leaf) for name, leaf in stacked.items()}
    return {name: np.asarray(value) for name, value in (selected | common).items()}


def _origin(directory: Path, found: Policies, member: int | str) -> str:
    """The title of a README, and which policy it is."""
    section = found.plan.members[member if isinstance(member, int) else 0].settings
    name, parameters = section.environment.name, dict(section.environment.parameters)
    who, members = f"Member {member}", ""
    if member == ALL:
        who = f"All {len(found.identities)} members"
        members = _table([*found.identities[0]], [[*identity.values()] for identity in found.identities])
        for path in swept(found.identities[0]):
            parameters.pop(path.removeprefix("environment.parameters."), None)
    suffix = f" with the parameters {json.dumps(parameters)}" if parameters else ""
    return f"""{TITLE}{name}

{who} of `{directory}`, trained by {section.agent.algorithm} on {name}{suffix}.

{members}"""


def _bounds(box: tuple[np.ndarray, np.ndarray], member: int | str) -> str:
    """The table of the ends of actions, those of each member where they differ."""
    ends = np.stack(box, axis=-1)
    if member != ALL or np.all(ends == ends[0]):
        one = ends[member if isinstance(member, int) else 0]
        return _table(["action", "lowest", "highest"], [[i, f"{a:g}", f"{b:g}"] for i, (a, b) in enumerate(one)])
    rows = [[m, i, f"{a:g}", f"{b:g}"] for m, own in enumerate(ends) for i, (a, b) in enumerate(own)]
    return _table(["member", "action", "lowest", "highest"], rows)


def _readme(
    directory: Path, found: Policies, member: int | str, size: int, box: tuple[np.ndarray, np.ndarray], has_arrays: bool
) -> str:
    """`size` is that of an observation; `box` as for `_arrays`."""
    before = f"{len(found.identities)}, " if member == ALL else ""
    actions = box[0].shape[-1]
    text = _origin(directory, found, member)
    text += f"""It maps observations, float32 [{before}batch, {size}] as the environment returns them (not normalized),
to actions, float32 [{before}batch, {actions}] in the units of the environment:

{_bounds(box, member)}## In JAX

`{COMPILED}` needs the packages jax and flatbuffers and runs on {", ".join(PLATFORMS)}. It was exported by JAX
{jax.__version__}; releases of JAX in the six months after that one are guaranteed to load it.

```python
from pathlib import Path

import jax
import numpy as np

policy = jax.export.deserialize(bytearray(Path("{COMPILED}").read_bytes()))
actions = jax.jit(policy.call)(np.zeros(({before}1, {size}), np.float32))
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
actions = act(np.zeros(({before}1, {size})))
```

## In an ONNX runtime

`{ONNX}` computes the same, in any runtime of ONNX.

```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{ONNX}")
(actions,) = session.run(None, {{"observation": np.zeros(({before}1, {size}), np.float32)}})
```
"""


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table, and an empty line."""
    cells = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(map(str, row))} |\n" for row in cells) + "\n"
