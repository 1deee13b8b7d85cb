"""States on disk, by Orbax. Every leaf is one array [M, ...], whatever the placement of the members."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxddpg.types import State

DIRECTORY = "checkpoints"


def save(run: Path, epoch: int, state: State) -> None:
    """Writes the state after an epoch."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((run / DIRECTORY / str(epoch)).absolute(), state, force=True)


def restore(run: Path, like: Any) -> State:
    """The newest state, with the structure and shapes of `like` (arrays or `jax.ShapeDtypeStruct`s).

    Raises:
        FileNotFoundError: the run has no checkpoint.
        ValueError: the checkpoint has another structure or other shapes.
    """
    epochs = [int(path.name) for path in (run / DIRECTORY).glob("*") if path.name.isdigit()]
    if not epochs:
        raise FileNotFoundError(f"{run} holds no checkpoint; was the run stopped before its first epoch ended?")
    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore((run / DIRECTORY / str(max(epochs))).absolute(), like)
    # Orbax itself restores other shapes than those asked for.
    for (path, wanted), found in zip(jax.tree.leaves_with_path(like), jax.tree.leaves(state), strict=True):
        if wanted.shape != found.shape:
            name = jax.tree_util.keystr(path)
            raise ValueError(f"{name} has the shape {found.shape} on disk, but the config asks for {wanted.shape}")
    return state
