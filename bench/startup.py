"""How long it takes from the command to the first update, cold and warm.

    python bench/startup.py

`jaxddpg train configs/pendulum.yaml` with an epoch of one step: the seconds until it starts to compile (imports, and
checks of the environment), and until it reports the first epoch. Cold runs have no compilation cache, warm runs one
that an earlier run has filled. Medians of several runs, in turn. Writes bench/results/startup.json.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

import common

COMMAND = [
    "-m",
    "jaxddpg",
    "train",
    "configs/pendulum.yaml",
    "--training.num_epochs",
    "1",
    "--training.steps_per_epoch",
    "1",
    "--run-dir",
]


def start(environment: dict[str, str]) -> dict[str, float]:
    """Seconds from the command to the end of the imports, of compiling and the first update."""
    with tempfile.TemporaryDirectory() as directory:
        begun, seconds = time.perf_counter(), {}
        process = subprocess.Popen(
            [sys.executable, *COMMAND, f"{directory}/run"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )
        with process:
            for line in process.stderr:
                for name, beginning in (("imports", "compiling"), ("first_update", "epoch 1/")):
                    if line.startswith(beginning):
                        seconds[name] = time.perf_counter() - begun
        assert process.returncode == 0
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="once each, writes nothing")
    smoke = parser.parse_args().smoke
    with tempfile.TemporaryDirectory() as cache:
        kinds = {
            "cold": {"JAX_ENABLE_COMPILATION_CACHE": "false"},
            "warm": {"JAX_COMPILATION_CACHE_DIR": cache},
        }
        start(kinds["warm"])  # fills the cache, and the disk's
        runs = {kind: [start(environment)] for kind, environment in kinds.items()}
        for _ in range(0 if smoke else 4):
            for kind, environment in kinds.items():
                runs[kind].append(start(environment))
    medians = {
        kind: {name: statistics.median(run[name] for run in own) for name in own[0]} for kind, own in runs.items()
    }
    for kind, seconds in medians.items():
        print(f"{kind}: first update after {seconds['first_update']:.1f} s, imports {seconds['imports']:.1f} s")
    if not smoke:
        common.write("startup", {"median_seconds": medians, "seconds": runs} | common.facts())


if __name__ == "__main__":
    main()
