"""States on disk, by Orbax. Every leaf is one array [M, ...], whatever the placement of the members.

A checkpoint is a directory, named by its epoch, and beside it a manifest with the checksum of every file. The manifest
is written last and in one step: without it, or where it does not agree, there is no checkpoint. Orbax itself restores a
flipped byte or a cut file silently.
"""

import errno
import hashlib
import json
import logging
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxddpg.types import State

DIRECTORY = "checkpoints"


class DamagedError(ValueError):
    """A checkpoint that is not what was written."""


class Written(NamedTuple):
    """What one checkpoint took."""

    bytes: int
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
        raise ValueError(f"has {odd[0]} in its path, which the checkpoint library reads as something else")
    if any("\ud800" <= character <= "\udfff" for character in str(whole)):
        raise ValueError(f"has a path that is not valid {sys.getfilesystemencoding()}")


def save(run: Path, epoch: int, state: State, origin: Origin = UNKNOWN) -> Written:
    """Writes the state after an epoch; `origin` is what led to it.

    Raises:
        OSError: the disk is full or cannot be written; older checkpoints are as they were.
    """
    start, path = time.perf_counter(), _path(run, epoch)
    _manifest(path).unlink(missing_ok=True)
    try:
        check_path(run)
        _check_room(run, state)
        with _quiet(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            checkpointer.save(path, args=ocp.args.PyTreeSave(state), force=True)
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
    except (OSError, ValueError) as error:  # TensorStore's errors are ValueErrors, many lines long
        shutil.rmtree(path, ignore_errors=True)
        full = "No space left" in str(error)
        reason = "the disk is full" if full else str(error).strip().split("\n")[0][:200]
        kind = errno.ENOSPC if full else getattr(error, "errno", None) or errno.EIO
        raise OSError(kind, f"the checkpoint of epoch {epoch} cannot be written: {reason}") from error
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return Written(size, time.perf_counter() - start)


def epochs(run: Path) -> list[int]:
    """The epochs of which there is a checkpoint, the newest first; what an interrupted save left does not count."""
    found = (path.stem for path in (run / DIRECTORY).glob("*.json"))
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
        sound = all(_checksum(path / name) == checksum for name, checksum in files.items())
    except OSError:
        sound = False
    if content is None or not sound:
        raise DamagedError(f"the checkpoint of epoch {epoch} is damaged")
    found = content["origin"]
    # Earlier versions wrote the experiment's settings alone.
    return UNKNOWN._replace(**found) if {*found} <= {*Origin._fields} else UNKNOWN._replace(settings=found)


def restore(run: Path, epoch: int, like: Any, partial: bool = False) -> State:
    """The state after an epoch on the host, with the structure, shapes and types of `like`.

    Args:
        like: arrays or `jax.ShapeDtypeStruct`s.
        partial: `like` is a dict of some of the state's fields.

    Raises:
        DamagedError: as `origin`.
        ValueError: the checkpoint has another structure, other shapes or types, or as `check_path`.
    """
    check_path(run)
    origin(run, epoch)
    arguments = jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray), like)
    how = ocp.args.PyTreeRestore(item=like, restore_args=arguments, partial_restore=partial)
    try:
        with _quiet(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            state = checkpointer.restore(_path(run, epoch), args=how)
    except (OSError, ValueError) as error:
        if epoch in epochs(run):
            raise
        raise DamagedError(f"the checkpoint of epoch {epoch} was removed while it was read") from error
    # Orbax itself restores other shapes than those asked for.
    for (place, wanted), found in zip(jax.tree.leaves_with_path(like), jax.tree.leaves(state), strict=True):
        if (wanted.shape, wanted.dtype) != (found.shape, found.dtype):
            raise ValueError(
                f"{jax.tree_util.keystr(place)} is {found.dtype}{list(found.shape)} on disk, but the config asks for "
                f"{wanted.dtype}{list(wanted.shape)}"
            )
    return state


class Writer:
    """Saves checkpoints beside the training, one at a time, and keeps the newest ones.

    Used as a context manager: leaving it waits for the last one.
    """

    def __init__(self, run: Path, keep: int, origin: Origin = UNKNOWN) -> None:
        self._run, self._keep, self._origin = run, keep, origin
        self._thread = ThreadPoolExecutor(1)
        self._running: Future[Written] | None = None
        self.waited_seconds = 0.0
        """for which training stood still"""
        self.written: list[Written] = []

    def __enter__(self) -> Self:
        paths = [_path(self._run, epoch) for epoch in epochs(self._run)]
        # What an interrupted save left.
        for path in {*(self._run / DIRECTORY).absolute().glob("*")} - {*paths, *map(_manifest, paths)}:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._thread.shutdown()

    def save(self, epoch: int, state: State) -> None:
        """Begins to write the state, whose arrays must not change; waits where the one before is not finished.

        Raises:
            OSError: the one before could not be written.
        """
        self.wait()
        self._running = self._thread.submit(self._save, epoch, state)

    def wait(self) -> None:
        """Waits until the checkpoint begun last is on disk; OSError where it could not be written."""
        if self._running:
            running, self._running, start = self._running, None, time.perf_counter()
            self.written.append(running.result())
            self.waited_seconds += time.perf_counter() - start

    def cost(self) -> dict[str, float]:
        """How many checkpoints were written, how large and in how many seconds, and how long training stood still."""
        if not self.written:
            return {}
        return {
            "written": len(self.written),
            "bytes_each": self.written[-1].bytes,
            "seconds_each": sum(written.seconds for written in self.written) / len(self.written),
            "seconds_waited": self.waited_seconds,
        }

    def _save(self, epoch: int, state: State) -> Written:
        written = save(self._run, epoch, state, self._origin)
        # What lies ahead was passed over when the run went on from an older one, and comes again.
        for passed in (other for other in epochs(self._run) if other > epoch):
            remove(self._run, passed)
        for old in epochs(self._run)[self._keep :]:
            remove(self._run, old)
        return written


def remove(run: Path, epoch: int) -> None:
    """Deletes a checkpoint."""
    _manifest(_path(run, epoch)).unlink(missing_ok=True)
    shutil.rmtree(_path(run, epoch), ignore_errors=True)


def _check_room(run: Path, state: State) -> None:
    """OSError where the disk cannot hold the state; in the middle of writing Orbax fails with pages of traces."""
    needed, free = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(state)), shutil.disk_usage(run).free
    if free < needed + 2**20:
        raise OSError(errno.ENOSPC, f"No space left: {needed:,} bytes are needed, {free:,} are free")


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
    sound = isinstance(files, dict) and isinstance(content.setdefault("origin", {}), dict)
    sound = sound and isinstance(content.setdefault("names", []), list)
    return content if sound and str(epoch) == manifest.stem else None


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
