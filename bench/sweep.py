"""What a sweep costs: 100 members with 20 different settings in one compiled program.

    python bench/sweep.py

First the whole command, `jaxddpg sweep configs/pendulum_sweep.yaml`, without the compilation cache. Then its members
against 100 seeds of one setting, epoch by epoch in turns in one process: the ratio of their rates. Writes
bench/results/sweep.json.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import common

from jaxddpg.config import build

CONFIG = common.ROOT / "configs" / "pendulum_sweep.yaml"


def command(overrides: dict[str, str]) -> dict:
    """What the summary of the whole command says, and its wall seconds from start to end."""
    with tempfile.TemporaryDirectory() as directory:
        flags = [part for path, value in overrides.items() for part in (f"--{path}", value)]
        arguments = ["sweep", CONFIG, "--run-dir", f"{directory}/run", "--quiet", *flags]
        start = time.perf_counter()
        common.jaxddpg(*arguments, env=os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"})
        seconds = time.perf_counter() - start
        summary = json.loads(Path(directory, "run", "summary.json").read_text())
    kept = ("compile_seconds", "updates_total", "updates_per_second", "peak_memory_bytes", "variants")
    return {"seconds": seconds, "members": len(summary["members"])} | {name: summary[name] for name in kept}


def pair(overrides: dict[str, str], rounds: int) -> dict[str, list[float]]:
    """Updates per second of the sweep's members and of as many seeds, in each of several rounds."""
    from jaxddpg import config
    from jaxddpg.training.loop import clock_at
    from jaxddpg.training.placement import use_all_cores

    use_all_cores()
    swept = config.read(CONFIG, overrides).experiment
    count = config.resolve(swept).num_members
    plain = config.parse(config.as_mapping(swept) | {"population": {"num_seeds": count}}).experiment
    training = swept.training
    populations = {
        "sweep": build.populate(config.resolve(swept).run()),
        "seeds": build.populate(config.resolve(plain).run()),
    }
    states = {name: population.init() for name, population in populations.items()}
    rates: dict[str, list[float]] = {name: [] for name in populations}
    for epoch in range(1, rounds + 2):
        for name in sorted(populations, reverse=epoch % 2 == 0):
            start = time.perf_counter()
            states[name], metrics = populations[name].epoch(clock_at(training, epoch), states[name])
            metrics()
            rates[name].append(count * training.steps_per_epoch / (time.perf_counter() - start))
    return {name: values[1:] for name, values in rates.items()}  # the first compiles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="small and short, writes nothing")
    smoke = parser.parse_args().smoke
    overrides = (
        {"training.num_epochs": "1", "training.steps_per_epoch": "10", "population.num_seeds": "1"} if smoke else {}
    )
    result = {"command": command(overrides), "updates_per_second": pair(overrides, 1 if smoke else 7)}
    rates = result["updates_per_second"]
    ratio = statistics.median(a / b for a, b in zip(rates["sweep"], rates["seeds"], strict=True))
    whole = result["command"]
    print(
        f"{whole['members']} members in {whole['seconds']:.0f} s, of which compiling {whole['compile_seconds']:.1f} s; "
        f"per second {ratio:.2f} times the updates of as many seeds of one setting"
    )
    if not smoke:
        common.write("sweep", result | {"ratio": ratio} | common.facts())


if __name__ == "__main__":
    main()
