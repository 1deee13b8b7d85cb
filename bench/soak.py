"""Kills a run at random moments, over and over, and goes on with it each time: does it end as if nothing had happened?

    python bench/soak.py

Each round trains a small population in a new directory. The process is ended by SIGKILL or SIGTERM at a random moment,
start-up included, once or more often; `jaxddpg resume` continues. When the run is complete, its metrics and all that
its last checkpoint holds are compared, to the bit, with those of a run that was never interrupted. Writes
bench/results/soak.json; ends with exit code 1 where a round differs.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import jax
import numpy as np

from jaxddpg import config
from jaxddpg.config import build
from jaxddpg.report.rows import plain_json, read_rows
from jaxddpg.runs import checkpoint

EPOCHS = 30
CONFIG = f"""
agent:
  batch_size: 32
  actor: {{hidden_sizes: [32], normalization: batch}}
  critic: {{hidden_sizes: [32, 32], normalization: batch, action_layer: 1}}
replay: {{capacity: 2_000}}
training: {{num_envs: 2, warmup_steps: 100, steps_per_epoch: 500, num_epochs: {EPOCHS}}}
evaluation: {{num_episodes: 2}}
population: {{num_seeds: 3}}
checkpoint: {{interval_seconds: 0, keep: 2}}
"""


def start(arguments: list[Any], cache: Path) -> subprocess.Popen:
    # Compiling the same program hundreds of times would test nothing.
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen([sys.executable, "-m", "jaxddpg", *map(str, arguments), "--quiet"], env=environment)


def outcome(run: Path) -> tuple[list[dict], list[np.ndarray]]:
    """The metrics without their times, and every array of the last checkpoint."""
    found = read_rows(run / "metrics.jsonl")
    timed = ("wall_seconds", "perf/")
    metrics = [{name: value for name, value in row.items() if not name.startswith(timed)} for row in found]
    like = dict(vars(build.state_like(config.resolve(config.read_run(run)).run())))
    return metrics, jax.tree.leaves(checkpoint.restore(run, checkpoint.epochs(run)[0], like, partial=True))


def equal(one: tuple[list[dict], list[np.ndarray]], other: tuple[list[dict], list[np.ndarray]]) -> bool:
    metrics = plain_json(one[0]) == plain_json(other[0])
    return metrics and all(a.tobytes() == b.tobytes() for a, b in zip(one[1], other[1], strict=True))


def soak(settings: Path, run: Path, cache: Path, seconds: float, chance: random.Random) -> list[dict[str, Any]]:
    """One round; `seconds` is how long an uninterrupted run takes. What interrupted it."""
    interruptions: list[dict[str, Any]] = []
    for _ in range(chance.choice((1, 1, 2, 3))):
        begun = (run / "config.yaml").exists()
        process = start(["resume", run] if begun else ["train", settings, "--run-dir", run], cache)
        how = chance.choice((signal.SIGKILL, signal.SIGTERM))
        try:
            process.wait(moment := chance.uniform(0.0, seconds))
        except subprocess.TimeoutExpired:
            process.send_signal(how)
            reached = next(iter(checkpoint.epochs(run)), None)
            interruptions.append({"signal": how.name, "after_seconds": moment, "checkpoint_of_epoch": reached})
        code = process.wait()
        if code not in (0, -signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM):
            raise RuntimeError(f"{process.args} ended with exit code {code}")
    begun = (run / "config.yaml").exists()
    process = start(["resume", run] if begun else ["train", settings, "--run-dir", run], cache)
    if process.wait():
        raise RuntimeError(f"{process.args} ended with exit code {process.returncode}")
    return interruptions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    chance, rounds, begin = random.Random(options.seed), [], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        settings, cache = directory / "soak.yaml", directory / "cache"
        settings.write_text(CONFIG)
        seconds = 0.0
        for name in ("compiled", "whole"):
            started = time.perf_counter()
            start(["train", settings, "--run-dir", directory / name], cache).wait()
            seconds = time.perf_counter() - started
        whole = outcome(directory / "whole")
        for number in range(options.rounds):
            run = directory / f"round_{number}"
            interruptions = soak(settings, run, cache, seconds, chance)
            rounds.append({"interruptions": interruptions, "equal": equal(outcome(run), whole)})
            signals = [f"{entry['signal']} at {entry['after_seconds']:.1f} s" for entry in interruptions]
            print(f"round {number + 1}: {', '.join(signals) or 'no signal'}: equal {rounds[-1]['equal']}", flush=True)
    every = [entry for one in rounds for entry in one["interruptions"]]
    facts = {
        "equal": sum(one["equal"] for one in rounds),
        "rounds": rounds,
        "seconds_uninterrupted": seconds,
        "seconds": time.perf_counter() - begin,
    }
    common.write("soak", facts | common.facts())
    kills = sum(entry["signal"] == "SIGKILL" for entry in every)
    early = sum(entry["checkpoint_of_epoch"] is None for entry in every)
    print(
        f"{facts['equal']} of {len(rounds)} runs equal to the uninterrupted one, to the bit, after {kills} SIGKILL and "
        f"{len(every) - kills} SIGTERM, {early} of them before the first checkpoint"
    )
    sys.exit(facts["equal"] < len(rounds))


if __name__ == "__main__":
    main()
