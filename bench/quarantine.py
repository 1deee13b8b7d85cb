"""What the watch over every number costs: CPU time of epochs with it and without it, in turn, in one process.

    python bench/quarantine.py

Without it, `Divergence.update` checks nothing and an epoch is one chunk. Writes bench/results/quarantine.json.
"""

import argparse
import statistics
import time

import common

from jaxddpg import config
from jaxddpg.config import build
from jaxddpg.training import loop
from jaxddpg.training.divergence import Divergence
from jaxddpg.training.loop import clock_at
from jaxddpg.training.placement import use_all_cores
from jaxddpg.training.population import Population

EXPERIMENTS: dict[str, tuple[str, dict[str, object]]] = {
    "DDPG, Pendulum": ("configs/pendulum.yaml", {"training.steps_per_epoch": 500}),
    "COPDAC-Q, mountain car": ("configs/silver2014/mountain_car.yaml", {}),
}


def warmed_up(settings: config.Experiment) -> tuple[Population, list]:
    """Two members after the first epoch, which compiles."""
    population = Population(build.build, [settings.member()] * 2, range(2))
    state, metrics = population.epoch(clock_at(settings.training, 1), population.init())
    metrics()
    return population, state


def compare(name: str, pairs: int) -> dict[str, object]:
    path, overrides = EXPERIMENTS[name]
    settings = config.read(path, {**overrides, "training.num_epochs": pairs + 1}).experiment
    populations = {"with": warmed_up(settings)}
    update, chunk = Divergence.update, loop.UPDATES_PER_CHUNK
    Divergence.update = lambda divergence, *_, **__: divergence  # type: ignore[method-assign]
    loop.UPDATES_PER_CHUNK = 10**9
    populations["without"] = warmed_up(settings)
    Divergence.update, loop.UPDATES_PER_CHUNK = update, chunk  # type: ignore[method-assign]
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    for pair in range(pairs):
        for which in ("with", "without") if pair % 2 else ("without", "with"):
            population, state = populations[which]
            start = time.process_time()
            state, metrics = population.epoch(clock_at(settings.training, pair + 2), state)
            metrics()
            seconds[which].append(time.process_time() - start)
            populations[which] = population, state
    ratios = [a / b for a, b in zip(seconds["with"], seconds["without"], strict=True)]
    return {"ratio_median": statistics.median(ratios), "ratios": ratios, "cpu_seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=30)
    pairs = parser.parse_args().pairs
    use_all_cores()
    result = {name: compare(name, pairs) for name in EXPERIMENTS}
    for name, entry in result.items():
        print(f"{name}: the watch costs {entry['ratio_median'] - 1:+.1%} of CPU time, median of {pairs} pairs")
    common.write("quarantine", {"experiments": result, "pairs": pairs} | common.facts())


if __name__ == "__main__":
    main()
