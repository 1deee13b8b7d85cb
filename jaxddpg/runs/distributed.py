"""Multi-process and multi-host training.

Each process trains the members, or shards of members, on its own devices; all see the same metrics, and the first one
writes them. JAX aborts a process that has lost a peer. A command with `--distributed` is therefore a parent, whose
child trains: the parent reports in a sentence how the child ended.
"""

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import IO, Any, NamedTuple, NoReturn

from jaxddpg.config import ConfigError, first_line

_HEARTBEAT_SECONDS = 10
"""A process is considered lost after this long without a heartbeat."""
_JOINED, _LEAVING = "the processes have met", "this process ends with code"
"""What a child says to its parent."""
LOST = "another process of this run was lost or stopped"
_PORT_TAKEN = (
    "the coordinator port is in use or not permitted on this host; choose another with --coordinator or "
    "JAX_COORDINATOR_PORT"
)
_TAIL_LINES = 40
"""Lines of native library output to show on failure."""
_REASON_SECONDS = 5
_LEAVING_SECONDS = 120
"""Within which all processes end after the first one has."""


class Rendezvous(NamedTuple):
    """How to reach the coordinator. Fields that are None are detected from the cluster environment, e.g. SLURM."""

    coordinator: str | None = None
    """HOST:PORT, which process 0 serves"""
    num_processes: int | None = None
    process_id: int | None = None
    seconds: int = 300
    """to wait for all of them"""


def stopping_signals() -> list[signal.Signals]:
    """The signals that ask a run to stop, except those that are ignored, as SIGHUP by `nohup`."""
    all_of_them = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return [number for number in all_of_them if signal.getsignal(number) is not signal.SIG_IGN]


def supervise(arguments: Sequence[str], seconds: int, remedy: str) -> int:
    """Runs a command of this program in a child that trains, and returns its exit code.

    The child writes to the streams of this process. Of what JAX's C++ libraries write the end is shown where the child
    failed without a sentence. Signals to stop are passed on. The child ends with this process, whatever ends it.

    Args:
        seconds: for which the child waits for the others.
        remedy: what to do where the child was ended in the middle of a run.
    """
    with tempfile.TemporaryFile() as libraries:
        code = _run_child(arguments, libraries)
        libraries.seek(0)
        said = libraries.read().decode(errors="replace")
    if reported := re.search(rf"^{_LEAVING} (\d+)$", said, re.MULTILINE):
        return int(reported[1])  # it has said why, but may have been aborted while it waited for the others to end
    if code in (0, 2) or code > 128:
        return code
    if _JOINED not in said and (reason := _not_met(said, seconds)):
        print(f"error: {reason}", file=sys.stderr)
        return 2
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    lost = code == -signal.SIGABRT and is_loss(said)
    tail = [] if lost else said.replace(f"{_JOINED}\n", "").splitlines()[-_TAIL_LINES:]
    print(*tail, f"error: {LOST if lost else f'the trainer {how}'}; {remedy}", sep="\n", file=sys.stderr)
    return 1


def _run_child(arguments: Sequence[str], libraries: IO[bytes]) -> int:
    """Runs a command in a child and returns its exit code, negative where a signal ended it. What JAX's libraries write
    goes to that file."""
    streams = [os.dup(descriptor) for descriptor in (1, 2)]
    with subprocess.Popen(
        [sys.executable, "-m", "jaxddpg", *arguments, "--child", ",".join(map(str, streams))],
        stdin=subprocess.PIPE,
        stdout=libraries,
        stderr=subprocess.STDOUT,
        pass_fds=streams,
        start_new_session=True,  # a terminal sends its signals to this process alone
    ) as child:
        assert child.stdin
        signals = child.stdin.fileno()
        for descriptor in streams:
            os.close(descriptor)

        def pass_on(number: int, _: Any) -> None:
            with suppress(OSError):  # it has ended
                os.write(signals, bytes([number]))

        previous = {number: signal.signal(number, pass_on) for number in stopping_signals()}
        try:
            return child.wait()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def is_loss(said: str) -> bool:
    """Whether JAX's libraries speak of a peer that is no longer there, and of no other failure."""
    texts = "connection (closed|reset)|broken pipe|heartbeat|coordination|distributed service|remote process exited"
    return bool(re.search(texts, said, re.IGNORECASE))


def _not_met(said: str, seconds: int) -> str:
    """Why processes did not meet, as part of a sentence; empty where that was not the matter."""
    if any(text in said for text in ("Failed to add port", "Address already in use", "Failed to start RPC server")):
        return _PORT_TAKEN
    if "should be defined" in said or "must be defined" in said:
        return (
            "--distributed could not detect a cluster environment such as SLURM; pass --coordinator HOST:PORT, "
            "--num-processes N and --process-id K"
        )
    if "DEADLINE_EXCEEDED" in said or "Barrier timed out" in said or "UNAVAILABLE" in said:
        return (
            f"timed out after {seconds} s waiting for all processes; check that each was started with the same "
            "--coordinator and --num-processes and a unique --process-id, and that it can reach process 0"
        )
    return ""


def join(rendezvous: Rendezvous, facts: Mapping[str, Any]) -> None:
    """Connects this process to a multi-process JAX program.

    Args:
        facts: what must be the same for all processes, by name, as are the versions of libraries and JAX's settings.

    Raises:
        ConfigError: the processes did not meet, or differ.
    """
    import jax

    check_port(rendezvous)
    try:
        jax.distributed.initialize(
            rendezvous.coordinator,
            rendezvous.num_processes,
            rendezvous.process_id,
            initialization_timeout=rendezvous.seconds,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_LEAVING_SECONDS,
        )
    except Exception as error:  # of JAX's libraries, whatever its type
        reason = _not_met(str(error), rendezvous.seconds)
        raise ConfigError([reason or f"the processes failed to connect: {first_line(error)}"]) from error
    os.write(1, f"{_JOINED}\n".encode())
    # JAX writes it in process 0 alone; on GPUs one that finds a program there leaves others waiting for its tuning.
    jax.config.update("jax_enable_compilation_cache", False)
    if takes_all_devices(os.environ):
        for platform in ("cuda", "rocm"):
            jax.config.update(f"jax_{platform}_visible_devices", "all")
    from jaxddpg.runs import backend, summary
    from jaxddpg.training.population import numerics

    backend.start()
    owners = Counter(device.process_index for device in jax.devices())
    check_alike([{"the number of devices": owners[process_id]} for process_id in range(jax.process_count())])
    processes_here()
    check_alike(_gathered({**facts, **numerics(), **summary.versions()}))


def check_port(rendezvous: Rendezvous) -> None:
    """ConfigError where the port that process 0 is to serve is taken: JAX's coordinators would share it, and a second
    one end the run of the first. Under SLURM JAX takes the port from the job; here each step of a job has its own."""
    variables = os.environ
    if "SLURM_STEP_ID" in variables and "OMPI_COMM_WORLD_SIZE" not in variables:
        number = 61 * int(variables["SLURM_JOB_ID"]) + int(variables["SLURM_STEP_ID"])
        variables.setdefault("JAX_COORDINATOR_PORT", str(61440 + number % 4096))
    given = rendezvous.coordinator or variables.get("JAX_COORDINATOR_ADDRESS")
    place = variables.get("JAX_COORDINATOR_BIND_ADDRESS") or given or f":{variables.get('JAX_COORDINATOR_PORT', 0)}"
    rank = variables.get("SLURM_PROCID", variables.get("OMPI_COMM_WORLD_RANK", 0))
    if int(rank if rendezvous.process_id is None else rendezvous.process_id) == 0:
        try:
            socket.create_server(("", int(place.rpartition(":")[2]))).close()
        except (OSError, ValueError, OverflowError) as error:
            raise ConfigError([_PORT_TAKEN]) from error


def check_alike(each: Sequence[Mapping[str, Any]]) -> None:
    """ConfigError that names all in which processes differ, from what each has by name."""
    errors = []
    for name in dict.fromkeys(itertools.chain(*each)):
        first, *others = (facts.get(name) for facts in each)
        if odd := [(number, value) for number, value in enumerate(others, 1) if value != first]:
            errors.append(
                f"{name} is {first} in process 0, but {odd[0][1]} in process {odd[0][0]}; it must be the same in all "
                "processes"
            )
    if errors:
        raise ConfigError(errors)


def takes_all_devices(variables: Mapping[str, str]) -> bool:
    """Whether a process uses all GPUs that it sees, where JAX would give it that of its number on its host: they were
    given to it alone, or it is the only one there, or sees fewer than there are processes, which are then its own."""
    if "JAX_LOCAL_DEVICE_IDS" in variables:
        return False
    if "SLURM_GPUS_PER_TASK" in variables or "gpu" in variables.get("SLURM_TRES_PER_TASK", ""):
        return True
    here = int(variables.get("OMPI_COMM_WORLD_LOCAL_SIZE", 0))
    if tasks := variables.get("SLURM_STEP_TASKS_PER_NODE", variables.get("SLURM_TASKS_PER_NODE")):
        # Such as 2(x3),1: two on each of three nodes and one on the fourth.
        counts = [(int(count), int(times or 1)) for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks)]
        each = [count for count, times in counts for _ in range(times)]
        here = each[min(int(variables.get("SLURM_NODEID", 0)), len(each) - 1)]
    visible = [value for name, value in variables.items() if re.fullmatch("(CUDA|ROCR|HIP)_VISIBLE_DEVICES", name)]
    return here == 1 or any(here > len(value.split(",")) for value in visible)


def is_first() -> bool:
    """Whether this process is the one that writes files and reports."""
    import jax

    return not jax.distributed.is_initialized() or jax.process_index() == 0


@cache
def processes_here() -> int:
    """How many processes of this run are on this machine, by its name; all call this together when they join."""
    return _gathered(socket.gethostname()).count(socket.gethostname())


def any_has(*flags: bool) -> list[bool]:
    """For each flag, whether any process has set it. All processes must call this."""
    return [any(each) for each in zip(*_gathered(flags), strict=True)]


def largest(number: int) -> int:
    """The largest number that any process has; all call this together."""
    return max(_gathered(number))


@contextmanager
def agreeing() -> Iterator[None]:
    """A block run by all processes: if any raises ConfigError, all of them do.

    Raises:
        ConfigError: its own, or that of another process.
    """
    try:
        yield
    except ConfigError as error:
        _gathered(error.errors)
        raise
    others = _gathered([])
    if found := [f"process {process_id}: {error}" for process_id, errors in enumerate(others) for error in errors]:
        raise ConfigError(found)


def of_first(decide: Callable[[], Any]) -> Any:
    """Runs `decide` in process 0 and broadcasts its (JSON) result. All processes must call this; other processes may
    see stale files.

    Raises:
        ConfigError: that of the first process.
    """
    decision = None
    with agreeing():
        if is_first():
            decision = decide()
    return _gathered(decision)[0]


def _gathered(value: Any) -> list[Any]:
    """All-gathers a JSON value from all processes."""
    import jax

    if not jax.distributed.is_initialized():
        return [value]
    import numpy as np
    from jax.experimental import multihost_utils

    text = json.dumps(value).encode()
    longest = int(multihost_utils.process_allgather(np.int32(len(text))).max())
    found = multihost_utils.process_allgather(np.frombuffer(text.ljust(longest), np.uint8))
    return [json.loads(bytes(row)) for row in found]


def leave(code: int | None) -> NoReturn:
    """Exits this process with `code`, or 1 if it is None (an unexplained failure). After a failure, waits only briefly
    for the other processes."""
    import jax

    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if code is not None:
        os.write(1, f"{_LEAVING} {code}\n".encode())
    leaving = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    leaving.start()
    leaving.join(_REASON_SECONDS if code in (None, 1, 2) else None)
    os._exit(1 if code is None else code)
