"""Checkpoints written beside the training."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from jaxddpg.runs import checkpoint, distributed
from jaxddpg.runs.checkpoint import Origin, Written
from jaxddpg.types import State


class Writer:
    """Writes checkpoints in the background, one at a time, and keeps the newest.

    Used as a context manager: leaving it waits for the last one.
    """

    def __init__(self, run: Path, keep: int, origin: Origin = checkpoint.UNKNOWN) -> None:
        self._run, self._keep, self._origin = run, keep, origin
        self._thread = ThreadPoolExecutor(1)
        self._begun: Callable[[], Written] | None = None
        self._running: Future[Written] | None = None
        self.waited_seconds = 0.0
        """seconds that training waited"""
        self.written: list[Written] = []

    def __enter__(self) -> Self:
        if distributed.is_first():
            checkpoint.remove_partial(self._run)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._thread.shutdown()

    def begin(self, epoch: int, state: State) -> None:
        """Begins to write the state, as `checkpoint.begin` does; waits where the one before is not finished.

        Raises:
            OSError: this one or the one before cannot be written.
        """
        self.wait()
        self._begun = partial(self._finish, epoch, checkpoint.begin(self._run, epoch, state, self._origin))

    def commit(self) -> None:
        """Has what was begun finished beside the training, if anything was."""
        if self._begun:
            self._running, self._begun = self._thread.submit(self._begun), None

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

    def _finish(self, epoch: int, finish: Callable[[], Written]) -> Written:
        written = finish()
        if distributed.is_first():
            # Newer checkpoints were skipped when the run resumed from an older one, and will be rewritten.
            for passed in (other for other in checkpoint.epochs(self._run) if other > epoch):
                checkpoint.remove(self._run, passed)
            for old in checkpoint.epochs(self._run)[self._keep :]:
                checkpoint.remove(self._run, old)
        return written
