"""A trainer's side of `bench/peers.py`: it prepares itself, then runs a round for each line on its standard input."""

import time

STARTED = time.perf_counter()

import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from typing import Any  # noqa: E402


def main(prepare: Callable[[dict[str, Any]], Callable[[], int]], learn: Callable[[dict[str, Any]], Iterator]) -> None:
    """Measures a trainer as the first argument, a JSON object, asks.

    Args:
        prepare: spec -> round, compiled and past its warm-up; a round makes `spec["updates"]` updates of each of
            `spec["members"]` learners and returns the sum of what their optimizers have counted so far.
        learn: spec -> (env steps, the worst return of all learners) after each evaluation, for ever.
    """
    spec = json.loads(sys.argv[1])
    if spec.get("pinned"):
        # Before JAX or PyTorch start their threads.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
        os.environ["OMP_NUM_THREADS"] = "1"
    if spec["mode"] == "learn":
        below, held = 0, False
        for env_steps, worst in learn(spec):
            seconds = time.perf_counter() - STARTED
            held, below = held or (below > 0 and worst >= -200), below + 1 if worst >= -200 else 0
            send({"env_steps": env_steps, "seconds": seconds, "return": worst, "held": held})
            if held:
                return
        return
    play = prepare(spec)
    before = play()
    send({"ready": time.perf_counter() - STARTED})
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        after = play()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        assert after - before == spec["updates"] * spec["members"], f"{after - before} updates were counted"
        before = after
        send({"updates": spec["updates"] * spec["members"], "wall": wall, "cpu": cpu})


def send(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)
