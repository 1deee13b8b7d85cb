"""Several processes, perhaps on several hosts, that train the members of one run: who they are, and whether all live.

Members never speak to each other, so neither do the processes that train them: each is a JAX program of its own. What
they need is to find each other, and to learn that one was lost. `jax.distributed` does both, in a watch: a process
beside each trainer. Where a peer is lost JAX ends the process that it runs in, with a trace in C++: that is the watch,
whose end is the news, and not the trainer.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, Self

from jaxddpg.config import ConfigError

HEARTBEAT_SECONDS = 10
"""A process that was silent for so long is lost."""
_FOREVER = 10**8


class Host(NamedTuple):
    """Which of the processes this is."""

    process_id: int = 0
    num_processes: int = 1


class Rendezvous(NamedTuple):
    """Where processes meet. What is not given is found where the cluster tells it, as SLURM does."""

    coordinator: str | None = None
    """HOST:PORT, to be served by process 0"""
    num_processes: int | None = None
    process_id: int | None = None
    seconds: int = 300
    """to wait for all of them"""


class Alone:
    """What stands for the watch where there is but one process."""

    host = Host()
    lost = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def finish(self, stopping: Callable[[], bool]) -> None:
        """There is nobody to wait for."""


class Watch(Alone):
    """Beside the training: knows which process this is, and whether a peer was lost.

    Used as a context manager: entering it waits until all processes are there; leaving it leaves them.

    Raises:
        ConfigError: they do not come, the port is taken, or there is no cluster that tells where to meet.
    """

    def __init__(self, rendezvous: Rendezvous) -> None:
        self._rendezvous = rendezvous
        self._leaving = False
        self._ending: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, json.dumps(self._rendezvous)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # No device is of use to it; a signal to the trainer is not meant for it.
            env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
            start_new_session=True,
        )
        assert self._process.stdout
        assert self._process.stderr
        self._errors: list[str] = []
        self._reader = threading.Thread(target=self._errors.extend, args=(self._process.stderr,), daemon=True)
        self._reader.start()
        told = self._process.stdout.readline()
        if not told:
            self._end()
            raise ConfigError([self._why()])
        found = json.loads(told)
        self.host = Host(found["process_id"], found["num_processes"])
        if found["visible_devices"] != "all":
            import jax

            jax.config.update("jax_cuda_visible_devices", found["visible_devices"])
        self._ending = threading.Thread(target=self._wait, daemon=True)
        self._ending.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving = True
        self._end()

    def finish(self, stopping: Callable[[], bool]) -> None:
        """Waits until all processes have come here, or one was lost, or `stopping` says that it is enough."""
        assert self._process.stdin
        assert self._ending
        with suppress(OSError):  # one was lost
            self._process.stdin.write("done\n")
            self._process.stdin.flush()
        while self._ending.is_alive() and not stopping():
            self._ending.join(0.1)

    def _wait(self) -> None:
        """Its last word is that all are done."""
        assert self._process.stdout
        self.lost = "done" not in self._process.stdout.read() and not self._leaving

    def _end(self) -> None:
        self._process.kill()
        self._reader.join()
        if self._ending:
            self._ending.join()
        with suppress(BrokenPipeError):  # what it was told last it may not have heard
            self._process.__exit__(None, None, None)

    def _why(self) -> str:
        """What kept the processes from meeting, as a sentence."""
        errors, coordinator, seconds = "".join(self._errors), self._rendezvous.coordinator, self._rendezvous.seconds
        if "Failed to add port" in errors:
            return f"--coordinator {coordinator}: the port is taken on this host; name another"
        if "DEADLINE_EXCEEDED" in errors or "Barrier timed out" in errors:
            return (
                f"not all processes have come within {seconds} s; look whether each was started, with the same "
                "--coordinator and --num-processes and a --process-id of its own, and whether it reaches process 0"
            )
        if "should be defined" in errors or "must be defined" in errors:
            return (
                "--distributed finds no cluster that tells where to meet, such as SLURM; name --coordinator HOST:PORT, "
                "--num-processes N and --process-id K"
            )
        last = errors.strip().splitlines()[-1:]
        return f"the processes did not meet: {''.join(last)[:200] or 'the watch ended'}"


def _watch(coordinator: str | None, num_processes: int | None, process_id: int | None, seconds: int) -> None:
    """The watch: tells who this process is, waits for word that it is done, then for all others."""
    import jax

    done = threading.Event()

    def listen() -> None:
        for _ in sys.stdin:
            done.set()
        os._exit(1)  # the trainer is no more

    threading.Thread(target=listen, daemon=True).start()
    jax.distributed.initialize(
        coordinator,
        num_processes,
        process_id,
        initialization_timeout=seconds,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=_FOREVER,
    )
    visible = jax.config.values["jax_cuda_visible_devices"]  # of those on this host, where it runs several processes
    found = {"process_id": jax.process_index(), "num_processes": jax.process_count(), "visible_devices": visible}
    print(json.dumps(found), flush=True)
    done.wait()
    jax.distributed.shutdown()
    print("done", flush=True)
    os._exit(0)


if __name__ == "__main__":
    _watch(*json.loads(sys.argv[1]))
