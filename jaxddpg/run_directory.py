"""The directory of a run: who may use it, and that what is written there is whole."""

import fcntl
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from jaxddpg import checkpoint, config, reporting
from jaxddpg.config import ConfigError
from jaxddpg.settings import Experiment

IN_USE = "--run-dir {} already holds a run; name another, or leave --run-dir out; `jaxddpg resume` continues with a run"
HOSTS = "hosts"
"""In the directory of a run that several processes train: a directory for the part of each."""
_PATIENCE = 300.0
"""Seconds that a process waits for the first to begin."""


class Part(NamedTuple):
    """The members of a run that one process trains, and where it leaves what it measures and its checkpoints."""

    directory: Path
    members: range


def parts(directory: Path, experiment: Experiment, count: int | None = None) -> list[Part]:
    """The parts into which a run falls: so many, or by default as many as there are on disk."""
    if count is None:
        first = next((directory / HOSTS).glob("*_of_*"), None)
        count = int(first.name.rpartition("_")[2]) if first else 1
    places = [directory / HOSTS / f"{index}_of_{count}" for index in range(count)] if count > 1 else [directory]
    members = experiment.population.num_members
    ends = [members * index // count for index in range(count + 1)]
    return [Part(place, range(*ends[index : index + 2])) for index, place in enumerate(places)]


def rows(directory: Path, experiment: Experiment) -> list[reporting.Row]:
    """The rows of a run, whoever trained its members, of those epochs that all have ended."""
    each = []
    for place, members in parts(directory, experiment):
        found, count = reporting.read_rows(place / reporting.METRICS), len(members)
        each.append([found[start : start + count] for start in range(0, len(found) - count + 1, count)])
    return [row for epoch in zip(*each, strict=False) for rows in epoch for row in rows]


def check_free(directory: Path) -> None:
    """Raises ConfigError where a run cannot be written; creates nothing."""
    if directory.exists() and not directory.is_dir():
        raise ConfigError([f"--run-dir {directory} is a file; name a directory"])
    try:
        checkpoint.check_path(directory)
    except ValueError as error:
        raise ConfigError([f"--run-dir {directory} {error}; name another"]) from None
    if (directory / "config.yaml").exists():
        raise ConfigError([IN_USE.format(directory)])
    if (directory / config.SWEEP).exists():
        raise ConfigError([f"--run-dir {directory} already holds a sweep; name another, or leave --run-dir out"])
    if any((directory / name).exists() for name in (reporting.METRICS, checkpoint.DIRECTORY, HOSTS)):
        raise ConfigError([f"--run-dir {directory} holds what is left of a run without its config.yaml; name another"])
    parent = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigError([f"--run-dir {directory} cannot be written: {parent} allows no new files; name another"])


@contextmanager
def claimed(directory: Path) -> Iterator[None]:
    """Makes a run directory, and holds it against other processes; ConfigError where it cannot be used."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # A file, not the directory: between hosts NFS knows locks of files alone.
        descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise ConfigError([f"--run-dir {directory} cannot be written: {error.strerror}; name another"]) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError([f"another process is training in {directory}; wait for it, or name another"]) from None
        except OSError as error:  # some network and user-space file systems have none
            warnings.warn(
                f"{directory / '.lock'} cannot be locked ({error.strerror}); make sure that no other process trains "
                f"in {directory}",
                stacklevel=3,
            )
        yield
    finally:
        os.close(descriptor)


def write(path: Path, text: str) -> None:
    """Writes a file in one step: whatever happens, it is the old one or the new one."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


def await_first(directory: Path, stopping: Callable[[], bool]) -> None:
    """Waits until the first of several processes has begun in a directory; ConfigError where that is in vain."""
    end = time.monotonic() + _PATIENCE
    while not (directory / "config.yaml").exists():
        if stopping():
            raise ConfigError([f"the first process ended before it began in {directory}; its own output says why"])
        if time.monotonic() > end:
            raise ConfigError(
                [
                    f"the first process has not begun in {directory} within {_PATIENCE:.0f} s; did each name the same "
                    "--run-dir, on a file system that all of them share?"
                ]
            )
        time.sleep(0.1)
