"""States on disk, by Orbax. Every leaf is one array [P, ...], whatever the placement of the members: place p holds
member p, and the last places may be left over. Of several processes each writes and reads what is on its own devices.

A checkpoint is a directory, named by its epoch, and beside it a manifest with the checksum of every file. The manifest
is written last, atomically; a checkpoint without a matching manifest does not count. (Orbax itself silently restores
corrupted or truncated files.)
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxddpg.config import ConfigError
from jaxddpg.runs import arrays, distributed
from jaxddpg.types import State

DIRECTORY = "checkpoints"
_OTHER_ARRAYS = "a checkpoint holds other arrays than this agent has; use the version that wrote it, or train a new run"


class DamagedError(ValueError):
    """A checkpoint that is not what was written."""


class Written(NamedTuple):
    """What one checkpoint took."""

    bytes: int
    """0 in other processes than the first"""
    seconds: float


class Origin(NamedTuple):
    """What a checkpoint comes from, each by name; empty where nothing is known."""

    settings: dict[str, Any]
    """Those of the experiment that change what is learned, by dotted path."""
    jax: dict[str, Any]
    """Those of JAX that change numbers by more than rounding."""
    environment: dict[str, str]
    """A digest of its computation, and the release of JAX and the platform with which it was traced."""


UNKNOWN = Origin({}, {}, {})


def check_path(run: Path) -> None:
    """Raises ValueError where Orbax or TensorStore would read the path of a run as another one."""
    whole = run.absolute()
    odd = [character for character in "[]\\" if character in str(whole)]
    odd += [part for part in whole.parts if part.endswith(":")]  # such as gs:, which begins a URL
    if odd:
        raise ValueError(f"{whole} has {odd[0]}, which the checkpoint library does not support; use another path")
    if any("\ud800" <= character <= "\udfff" for character in str(whole)):
        raise ValueError(f"{whole} is not valid {sys.getfilesystemencoding()}; use another path")


def save(run: Path, epoch: int, state: State, origin: Origin = UNKNOWN) -> Written:
    """Writes the state after an epoch; `origin` is what led to it.

    Raises:
        OSError: the disk is full or cannot be written; older checkpoints are as they were.
    """
    return begin(run, epoch, state, origin)()


def begin(run: Path, epoch: int, state: State, origin: Origin = UNKNOWN) -> Callable[[], Written]:
    """Begins to write the state after an epoch, in all processes together, and returns what writes the rest, in any
    thread. Until then its NumPy arrays must not change; its other arrays may be donated now, except on a CPU.

    Raises:
        OSError: as `save`, as does what is returned.
    """
    start, path = time.perf_counter(), _path(run, epoch)
    together = jax.distributed.is_initialized()
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=arrays.HANDLERS)
    checkpointer = (ocp.AsyncCheckpointer if together else ocp.Checkpointer)(handler)
    write = partial(checkpointer.save, path, args=ocp.args.PyTreeSave(state), force=True)
    with _writing(path):
        if distributed.is_first():
            _manifest(path).unlink(missing_ok=True)
        check_path(run)
        _check_room(run, state)
        if together:
            with _quiet():
                write()

    def finish() -> Written:
        with _writing(path), _quiet(), checkpointer:
            if isinstance(checkpointer, ocp.AsyncCheckpointer):
                checkpointer.wait_until_finished()
            else:
                write()
            size = _write_manifest(path, epoch, state, origin) if distributed.is_first() else 0
        return Written(size, time.perf_counter() - start)

    return finish


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Converts errors to OSError and removes partial checkpoints. Only process 0 deletes, since only it knows whether
    the manifest was written."""
    try:
        yield
    except (OSError, ValueError) as error:  # TensorStore's errors are ValueErrors, many lines long
        if distributed.is_first():
            shutil.rmtree(path, ignore_errors=True)
        full = "No space left" in str(error)
        reason = "the disk is full" if full else str(error).strip().split("\n")[0][:200]
        kind = errno.ENOSPC if full else getattr(error, "errno", None) or errno.EIO
        raise OSError(kind, f"the checkpoint of epoch {path.name} cannot be written: {reason}") from error


def _write_manifest(path: Path, epoch: int, state: State, origin: Origin) -> int:
    """Returns the bytes of the files that it names."""
    files = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
    content = {
        "epoch": epoch,
        "names": [*dict.fromkeys(str(path[0]) for path, _ in jax.tree.leaves_with_path(state))],
        "origin": origin._asdict(),
        "files": {name: _checksum(path / name) for name in files},
    }
    partial = path.with_suffix(".json.partial")
    partial.write_text(json.dumps(content) + "\n")
    partial.rename(_manifest(path))
    return sum((path / name).stat().st_size for name in files)


def epochs(run: Path) -> list[int]:
    """The epochs of which there is a checkpoint, the newest first; what an interrupted save left does not count."""
    try:
        found = (Path(name).stem for name in os.listdir(run / DIRECTORY) if name.endswith(".json"))
    except FileNotFoundError:
        return []
    except OSError as error:  # what is there must not count as absent, or a run would start over and replace it
        raise ConfigError([f"{run / DIRECTORY} cannot be read: {error.strerror}; make it readable"]) from error
    return sorted((int(name) for name in found if name.isdecimal()), reverse=True)


def holds(run: Path, epoch: int, name: str) -> bool | None:
    """Whether a checkpoint has an entry of this name at the top of its state; earlier versions recorded none. None
    where its manifest is not what was written."""
    content = _read(_manifest(_path(run, epoch)))
    return None if content is None else str(jax.tree_util.DictKey(name)) in content["names"]


def origin(run: Path, epoch: int) -> Origin:
    """What a checkpoint comes from, after every file of it was compared with its checksum.

    Raises:
        DamagedError: one is not, or is missing.
    """
    path = _path(run, epoch)
    content = _read(_manifest(path))
    try:
        files = content["files"] if content else {}
        intact = all(_checksum(path / name) == checksum for name, checksum in files.items())
    except OSError:
        intact = False
    if content is None or not intact:
        raise DamagedError(f"the checkpoint of epoch {epoch} is damaged")
    found = content["origin"]
    # Earlier versions wrote the experiment's settings alone.
    return UNKNOWN._replace(**found) if {*found} <= {*Origin._fields} else UNKNOWN._replace(settings=found)


def restore(run: Path, epoch: int, like: Any, partial: bool = False) -> State:
    """The state after an epoch, with the structure, shapes and types of `like`. Its files are not compared with their
    checksums; `origin` does that, once for all processes.

    Args:
        like: arrays or `jax.ShapeDtypeStruct`s. A leaf with a sharding is restored to its devices, in all processes
            together; any other is NumPy's.
        partial: `like` is a dict of some of the state's fields.

    Raises:
        DamagedError: it was removed while it was read.
        ValueError: the checkpoint has another structure, other shapes or types, or as `check_path`.
    """
    check_path(run)

    def arguments(leaf: Any) -> ocp.RestoreArgs:
        if sharding := getattr(leaf, "sharding", None):
            return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=leaf.shape, strict=False)
        return ocp.RestoreArgs(restore_type=np.ndarray)

    how = ocp.args.PyTreeRestore(item=like, restore_args=jax.tree.map(arguments, like), partial_restore=partial)
    try:
        with _quiet(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            state = checkpointer.restore(_path(run, epoch), args=how)
    except (OSError, ValueError) as error:
        if epoch not in epochs(run):
            raise DamagedError(f"the checkpoint of epoch {epoch} was removed while it was read") from error
        if "tree structures do not match" in str(error):
            raise ValueError(_OTHER_ARRAYS) from error
        raise

    def fitting(place: Any, wanted: Any, found: Any) -> Any:
        # Orbax itself restores other shapes than those asked for. Places that are left over are cut off.
        found = found[: wanted.shape[0]] if isinstance(found, np.ndarray) and wanted.shape else found
        if isinstance(found, np.ndarray) and found.ndim == 3 and jax.tree_util.keystr(place) == "['replay'].rows":
            found = found.reshape(len(found), -1)  # earlier versions wrote [members, capacity, W]
        if isinstance(found, jax.ShapeDtypeStruct):  # what a partial restore returns for a leaf that is not on disk
            raise ValueError(_OTHER_ARRAYS)
        if (wanted.shape, wanted.dtype) != (found.shape, found.dtype):
            raise ValueError(
                f"{jax.tree_util.keystr(place)} is {found.dtype}{list(found.shape)} on disk, but the config asks for "
                f"{wanted.dtype}{list(wanted.shape)}"
            )
        return found

    return jax.tree_util.tree_map_with_path(fitting, like, state)


def remove_partial(run: Path) -> None:
    """Deletes what interrupted saves left."""
    paths = [_path(run, epoch) for epoch in epochs(run)]
    for path in {*(run / DIRECTORY).absolute().glob("*")} - {*paths, *map(_manifest, paths)}:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def remove(run: Path, epoch: int) -> None:
    """Deletes a checkpoint."""
    _manifest(_path(run, epoch)).unlink(missing_ok=True)
    shutil.rmtree(_path(run, epoch), ignore_errors=True)


def _check_room(run: Path, state: State) -> None:
    """Raises OSError if the disk cannot hold the state of all processes; running out of space mid-write makes Orbax
    print long tracebacks."""
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    free = shutil.disk_usage(run).free
    full = free < needed + 2**20
    if any(distributed.any_has(full)):
        sizes = f"{needed:,} bytes are needed, {free:,} are free" if full else "of another process"
        raise OSError(errno.ENOSPC, f"No space left: {sizes}")


def _path(run: Path, epoch: int) -> Path:
    return (run / DIRECTORY / str(epoch)).absolute()


def _manifest(path: Path) -> Path:
    return path.with_suffix(".json")


def _read(manifest: Path) -> dict[str, Any] | None:
    """What a manifest says; None where it is missing or is not what was written."""
    try:
        content = json.loads(manifest.read_text())
        files, epoch = content["files"], content["epoch"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    valid = isinstance(files, dict) and isinstance(content.setdefault("origin", {}), dict)
    valid = valid and isinstance(content.setdefault("names", []), list)
    return content if valid and str(epoch) == manifest.stem else None


def _checksum(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "blake2b").hexdigest()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Orbax's warnings, which speak of how it is used, from the terminal."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
