"""The directory of a run: which process may use it, and files that are written in one step."""

import fcntl
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import jax

from jaxddpg import config
from jaxddpg.config import ConfigError
from jaxddpg.report.rows import METRICS
from jaxddpg.runs import checkpoint, distributed


def check_free(directory: Path) -> None:
    """Raises ConfigError where a run cannot be written; creates nothing."""
    if directory.exists() and not directory.is_dir():
        raise ConfigError([f"{directory} is a file; name a directory"])
    try:
        checkpoint.check_path(directory)
    except ValueError as error:
        raise ConfigError([str(error)]) from None
    if (directory / "config.yaml").exists():
        raise ConfigError(
            [f"{directory} already contains a run; choose another directory, or continue it with `jaxddpg resume`"]
        )
    if (directory / config.SWEEP).exists():
        raise ConfigError(
            [f"{directory} already contains a sweep; choose another directory, or continue it with `jaxddpg resume`"]
        )
    if any((directory / name).exists() for name in (METRICS, checkpoint.DIRECTORY)):
        raise ConfigError([f"{directory} contains an incomplete run without config.yaml; choose another directory"])
    parent = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        why = "is not writable" if parent.is_dir() else "is a file"
        raise ConfigError([f"{directory} cannot be created: {parent} {why}; choose another directory"])


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Makes a run directory and locks it against other processes; ConfigError where it cannot be used."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # Lock a file, not the directory: NFS only supports file locks across hosts.
        descriptor = _open(directory / ".lock")
    except OSError as error:
        raise ConfigError([f"{directory} cannot be written: {error.strerror}; choose another directory"]) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                [f"another process is training in {directory}; wait for it, or choose another directory"]
            ) from None
        except OSError as error:  # some network and user-space file systems have none
            warnings.warn(
                f"{directory / '.lock'} cannot be locked ({error.strerror}); make sure that no other process trains "
                f"in {directory}",
                stacklevel=3,
            )
        yield
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    """A descriptor of the lock of a directory. One that cannot be written may hold a finished run, which is only
    read."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT)
    except OSError:
        with suppress(OSError):
            return os.open(path, os.O_RDONLY)
        raise


def write(path: Path, text: str) -> None:
    """Writes a file atomically."""
    unfinished = path.with_name(f"{path.name}.partial")
    unfinished.write_text(text)
    unfinished.replace(path)


def check_shared(directory: Path) -> None:
    """ConfigError where one of several processes does not see a file that the first makes; all call this together."""
    if jax.process_count() == 1:
        return
    with ExitStack() as stack:
        made = partial(tempfile.NamedTemporaryFile, prefix=".shared-", dir=directory)
        name = distributed.of_first(lambda: Path(stack.enter_context(made()).name).name)
        with distributed.agreeing():
            if not (directory / name).exists():
                raise ConfigError([f"{directory} is not on a file system that all processes share"])
