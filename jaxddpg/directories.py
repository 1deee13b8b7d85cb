"""The directory of a run: who may use it, and that what is written there is whole."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxddpg import checkpoint, config, reporting
from jaxddpg.config import ConfigError
from jaxddpg.settings import Experiment

IN_USE = "--run-dir {} already holds a run; name another, or none for a new one; `jaxddpg resume` goes on with a run"
_PATIENCE = 60.0
"""Seconds that a process waits for the first to begin."""


def check_free(directory: Path) -> None:
    """Raises ConfigError where a run cannot be written; creates nothing."""
    if directory.exists() and not directory.is_dir():
        raise ConfigError([f"--run-dir {directory} is a file; name a directory"])
    if set("[]") & set(str(directory.absolute())):
        raise ConfigError(
            [f"--run-dir {directory} has a bracket in its path, which Orbax takes for a pattern; name another"]
        )
    if (directory / "config.yaml").exists():
        raise ConfigError([IN_USE.format(directory)])
    if (directory / config.SWEEP).exists():
        raise ConfigError([f"--run-dir {directory} already holds a sweep; name another, or none for a new one"])
    if any((directory / name).exists() for name in (reporting.METRICS, checkpoint.DIRECTORY, config.HOSTS)):
        raise ConfigError([f"--run-dir {directory} holds what is left of a run without its config.yaml; name another"])
    parent = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigError([f"--run-dir {directory} cannot be written: {parent} allows no new files; name another"])


@contextmanager
def claimed(directory: Path) -> Iterator[None]:
    """Makes a run directory, and holds it against other processes; ConfigError where it cannot be used."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError as error:
        raise ConfigError([f"--run-dir {directory} cannot be written: {error.strerror}; name another"]) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError([f"another process is training in {directory}; wait for it, or name another"]) from None
        yield
    finally:
        os.close(descriptor)


def write(path: Path, text: str) -> None:
    """Writes a file in one step: whatever happens, it is the old one or the new one."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


def check_agreement(directory: Path, experiment: Experiment) -> None:
    """ConfigError unless the first of several processes trains the same experiment in the same directory."""
    place, end = directory / "config.yaml", time.monotonic() + _PATIENCE
    while not place.exists():
        if time.monotonic() > end:
            raise ConfigError(
                [
                    f"the first process has not begun in {directory} within {_PATIENCE:.0f} s; did each name the same "
                    "--run-dir, on a file system that all of them share?"
                ]
            )
        time.sleep(0.1)
    if place.read_text() != config.dump(experiment):
        raise ConfigError([f"this process was given other settings than the first, whose are in {place}"])
