"""Export of policies for use without this package: as StableHLO for JAX, as an ONNX model, and as arrays for NumPy."""

import importlib.util
import io
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxddpg import config, settings
from jaxddpg.config import ConfigError
from jaxddpg.parts import normalization
from jaxddpg.runs import export_readme, numpy_policy
from jaxddpg.runs.export_readme import Exported
from jaxddpg.runs.load import NEWEST, load_policies, member_policy
from jaxddpg.settings import Member
from jaxddpg.types import State

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
STABLEHLO, ONNX, ARRAYS = "policy.stablehlo", "policy.onnx", "policy.npz"
READER, README = "numpy_policy.py", "README.md"
FILES = {STABLEHLO, ONNX, ARRAYS, READER, README}
MAX_ONNX = 2**31 - 2**20
"""The most bytes of arrays in an ONNX model, which must be smaller than 2 GiB."""
ALL = "all"


def export(directory: str | Path, output: str | Path, member: int | str = 0, epoch: int | str = NEWEST) -> None:
    """Writes the deterministic policy of one member of a run, or those of all, into the directory `output`, in three
    formats that do not need this package, with a README that says how to load them. It maps observations to actions in
    the units of the environment, normalization of observations included.

    `policy.stablehlo` is for JAX on any platform, see `jax.export`; `policy.onnx` is for ONNX runtimes; `policy.npz`
    and its reader `numpy_policy.py` are for NumPy. Linear and custom agents are exported only as StableHLO. `epoch` is
    as for `evaluate`; for a diverged member this is the policy before it diverged.

    Args:
        member: a member index, for a function [batch, O] -> [batch, A]; or "all", for one function of all M members,
            [M, batch, O] -> [M, batch, A].

    Raises:
        ConfigError: there is no such run, checkpoint or member; the agent's `act` cannot be exported; `output` cannot
            be written or has other files; or flatbuffers or onnx, which write the first two, is not installed.
    """
    directory, output = Path(directory), Path(output)
    _check_output(output)
    if isinstance(member, str) and member != ALL:
        raise ConfigError([f"member is {member}, but must be a member index or {ALL}"])
    found = load_policies(directory, epoch)
    if not isinstance(member, str):
        found = found.only(member)
    agent = found.plan.members[0].settings.agent
    is_network = isinstance(agent, settings.ActorCritic)
    _check_installed(["flatbuffers", "onnx"] if is_network else ["flatbuffers"])
    low, high = jax.device_get(jax.vmap(_action_bounds)(found.stacked_settings(), found.agents))
    alone = found.member(0)
    exported = Exported(found, member == ALL, alone.environment.observation_size, low, high)
    rows = jax.ShapeDtypeStruct(
        (*exported.leading, *jax.export.symbolic_shape("batch"), exported.observation_size), jnp.float32
    )
    try:
        function = jax.jit(found.all_members if exported.is_stacked else alone.policy)
        compiled = jax.export.export(function, platforms=PLATFORMS)(rows).serialize()
    except Exception as error:  # of a user's own agent
        raise ConfigError(
            [f"agent.algorithm {agent.algorithm} cannot be exported: {config.first_line(error)}"]
        ) from error
    files = {STABLEHLO: bytes(compiled), README: export_readme.text(directory, exported).encode()}
    if is_network:
        files |= _network(exported)
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=output) as staging:  # a failure leaves an earlier export whole
            for name, content in files.items():
                (Path(staging) / name).write_bytes(content)
            for name in files:
                (Path(staging) / name).replace(output / name)
        for name in FILES - {*files}:  # of an earlier export
            (output / name).unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError([f"--output {output} cannot be written: {error.strerror or error}"]) from error


def _check_output(output: Path) -> None:
    """ConfigError if nothing can be exported to this directory."""
    if output.exists() and not output.is_dir():
        raise ConfigError([f"--output {output} is a file; name a directory"])
    paths = [path for path in output.glob("*") if path.name != "__pycache__" and not path.name.startswith(".")]
    if others := sorted(path.name for path in paths if path.is_dir() or path.name not in FILES):
        reason = f"contains {others[0]}, which is not part of an exported policy"
        raise ConfigError([f"--output {output} {reason}; choose another directory"])
    readme = output / README
    if readme.is_file() and not readme.read_text(errors="replace").startswith(export_readme.TITLE):
        raise ConfigError([f"--output {output} has a {README} of something else; choose another directory"])


def _check_installed(packages: list[str]) -> None:
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        remedy = f"pip install {' '.join(missing)} (or jaxddpg[export])"
        raise ConfigError([f"exporting requires {' and '.join(missing)}: {remedy}"])


def _action_bounds(section: Member, state: State) -> tuple[jax.Array, jax.Array]:
    """The bounds [A] of a member's actions."""
    policy = member_policy(section, state)
    ones = jnp.ones(policy.environment.action_size)
    return policy.in_units(-ones), policy.in_units(ones)


def _network(exported: Exported) -> dict[str, bytes]:
    """The files of an actor network for NumPy and for ONNX."""
    from jaxddpg.runs.onnx_model import serialize  # which imports onnx

    arrays = _arrays(exported)
    if (size := sum(array.nbytes for array in arrays.values())) > MAX_ONNX:
        what = f"the networks have {size / 1e9:.1f} GB, but an ONNX model can have at most {MAX_ONNX / 1e9:.1f} GB"
        raise ConfigError([f"{what}; export single members"])
    with io.BytesIO() as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
        written = file.getvalue()
    return {ARRAYS: written, ONNX: serialize(arrays), READER: Path(numpy_policy.__file__).read_bytes()}


def _arrays(exported: Exported) -> dict[str, np.ndarray]:
    """What `numpy_policy` reads."""
    state, agent = exported.policies.agents, exported.policies.plan.members[0].settings.agent
    assert isinstance(agent, settings.ActorCritic)
    stacked: dict[str, Any] = {"action_low": exported.low, "action_high": exported.high}
    shared: dict[str, Any] = {
        "residual": agent.actor.architecture == "residual",
        "bfloat16": agent.precision == "bfloat16",
    }
    if isinstance(state, normalization.NormalizedState):
        stacked |= {
            "observation_origin": state.origin,
            "observation_mean": state.mean,
            "observation_deviation": normalization.deviation(state),
        }
        shared["observation_bound"] = np.float32(normalization.BOUND)
        state = state.agent
    for collection in state.actor.values():
        for path, leaf in jax.tree_util.tree_leaves_with_path(collection):
            stacked["/".join(key.key for key in path)] = leaf

    def select(leaf: Any) -> Any:
        """[...] of one member; of all, vectors [M, n] become [M, 1, n], which broadcast over a batch."""
        if not exported.is_stacked:
            return leaf[0]
        return leaf[:, None] if leaf.ndim == 2 else leaf

    selected = {name: select(leaf) for name, leaf in stacked.items()}
    return {name: np.asarray(value) for name, value in (selected | shared).items()}
