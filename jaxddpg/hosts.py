"""Several processes, perhaps on several hosts, that train the members of one run: who they are, and whether all live.

Members never speak to each other, so neither do the processes that train them: each is a JAX program of its own. What
they need is to find each other, and to learn that one was lost. `jax.distributed` does both, in a watch: a process
beside each trainer. Where a peer is lost JAX ends the process that it runs in, with a trace in C++: that is the watch,
whose end is the news, and not the trainer.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, Self

from jaxddpg import config
from jaxddpg.config import ConfigError
from jaxddpg.settings import Experiment

HEARTBEAT_SECONDS = 10
"""A process that was silent for so long is lost."""
_FOREVER = 10**8
_DISAGREE = "the purposes differ"


class Host(NamedTuple):
    """Which of the processes this is."""

    process_id: int = 0
    num_processes: int = 1


def check(experiment: Experiment, num_processes: int) -> None:
    """ConfigError where so many processes cannot share an experiment."""
    if num_processes == 1:
        return
    population = experiment.population
    faults, method = [], population.selection.method
    if len(config.programs(experiment)) > 1:
        faults.append("population.sweep falls into several programs, but processes share one; sweep each value apart")
    if method != "none":
        faults.append(f"population.selection.method is {method}, but members that are selected must be in one process")
    if population.on_divergence == "stop":
        faults.append("population.on_divergence is stop, but processes do not tell each other of it; use freeze")
    if num_processes > (count := population.num_members):
        faults.append(f"{num_processes} processes cannot share {count} member{'s'[: count > 1]}; use fewer of them")
    if faults:
        raise ConfigError(faults)


class Rendezvous(NamedTuple):
    """Where processes meet. What is not given is found where the cluster tells it, as SLURM does."""

    coordinator: str | None = None
    """HOST:PORT, to be served by process 0"""
    num_processes: int | None = None
    process_id: int | None = None
    seconds: int = 300
    """to wait for all of them"""
    purpose: str = ""
    """What each is to do, which must be the same"""


class Processes:
    """The processes of a run: one, unless there is a watch over several."""

    host = Host()
    lost = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def finish(self, stopping: Callable[[], bool]) -> None:
        """There is nobody to wait for."""


class Watch(Processes):
    """Beside the training: knows which process this is, and whether a peer was lost.

    Used as a context manager: entering it waits until all processes are there; leaving it leaves them.

    Raises:
        ConfigError: they do not come or have other purposes, the port is taken, or there is no cluster that tells where
            to meet.
    """

    def __init__(self, rendezvous: Rendezvous) -> None:
        digest = hashlib.sha256(rendezvous.purpose.encode()).hexdigest()
        self._rendezvous = rendezvous._replace(purpose=digest)  # short enough for a command line
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
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
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
        if _DISAGREE in errors:
            return "the processes were given different settings; give each the same file and flags"
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


def _watch(rendezvous: Rendezvous) -> None:
    """The watch: tells who this process is, waits for word that it is done, then for all others."""
    import jax
    from jax._src import distributed

    done = threading.Event()

    def listen() -> None:
        for _ in sys.stdin:
            done.set()
        os._exit(1)  # the trainer is no more

    threading.Thread(target=listen, daemon=True).start()
    jax.distributed.initialize(
        rendezvous.coordinator,
        rendezvous.num_processes,
        rendezvous.process_id,
        initialization_timeout=rendezvous.seconds,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=_FOREVER,
    )
    index, count = jax.process_index(), jax.process_count()
    # The store that jax.distributed keeps for itself: a collective would need connections between all of them.
    store: Any = distributed.global_state.client
    store.key_value_set(f"{__package__}/{index}", rendezvous.purpose)
    milliseconds = 1000 * rendezvous.seconds
    purposes = {store.blocking_key_value_get(f"{__package__}/{other}", milliseconds) for other in range(count)}
    store.wait_at_barrier(f"{__package__}/all have read", milliseconds)  # what process 0 takes with it when it leaves
    if len(purposes) > 1:
        sys.exit(_DISAGREE)
    visible = jax.config.values["jax_cuda_visible_devices"]  # of those on this host, where it runs several processes
    found = {"process_id": index, "num_processes": count, "visible_devices": visible}
    print(json.dumps(found), flush=True)
    done.wait()
    jax.distributed.shutdown()
    print("done", flush=True)
    os._exit(0)


if __name__ == "__main__":
    _watch(Rendezvous(*json.loads(sys.argv[1])))
