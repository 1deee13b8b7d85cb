"""Signals as a request to stop a run after its epoch."""

import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from typing import Any

from jaxddpg.runs.distributed import stopping_signals


class Signals:
    """Records the first signal of `stopping_signals` as a request to stop; a second one, or one before the training,
    ends the program at once.

    A thread waits for them: Python's own handlers wait for as long as the main thread waits for JAX. A child reads them
    from its parent, and ends with it.
    """

    def __init__(self, from_parent: bool = False) -> None:
        self.received = 0
        self.training = not from_parent
        self._from_parent = from_parent
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._previous_writer = -1 if self._from_parent else signal.set_wakeup_fd(self._writer.fileno())
        for number in stopping_signals():
            self._previous[number] = signal.signal(number, lambda *_: None)
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if not self._from_parent:
            signal.set_wakeup_fd(self._previous_writer)
        self._writer.close()

    def _watch(self) -> None:
        while byte := os.read(0 if self._from_parent else self._reader.fileno(), 1):
            (number,) = byte
            if number not in self._previous:
                continue
            if self.received or not self.training:
                self._say(b"\nstopped; `jaxddpg resume` continues from the newest checkpoint, if there is one\n")
                os._exit(128 + number)
            self.received = number
            self._say(b"\nstopping after this epoch; send the signal again to stop immediately\n")
        if self._from_parent:
            os._exit(1)  # the parent has ended
        self._reader.close()

    def _say(self, words: bytes) -> None:
        """Not by print, in the middle of which the signal may have come."""
        with suppress(OSError):  # the terminal is gone
            os.write(sys.stderr.fileno() if self._from_parent else 2, words)
