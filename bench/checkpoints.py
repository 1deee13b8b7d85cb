"""What checkpoints cost: the time that one takes, and what it takes from training at the default cadence.

    python bench/checkpoints.py

Ten members of configs/pendulum.yaml. Epochs are timed in turn while nothing is written and while a
checkpoint is written beside them; what the latter lose is what a checkpoint costs. Writes
bench/results/checkpoints.json.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import common

from jaxddpg import config
from jaxddpg.config import build
from jaxddpg.runs.writer import Writer
from jaxddpg.settings import Checkpoint
from jaxddpg.training.loop import clock_at
from jaxddpg.training.placement import use_all_cores
from jaxddpg.training.population import Population


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--capacity", type=int, default=100_000)
    options = parser.parse_args()
    use_all_cores()
    # An epoch that outlasts a checkpoint, so that all of its cost falls into one.
    overrides = {"training.steps_per_epoch": 2_000, "training.num_epochs": 2 * options.pairs + 1}
    settings = config.read("configs/pendulum.yaml", overrides | {"replay.capacity": options.capacity}).experiment
    population = Population(build.build, [settings.member()] * 10, range(10))
    state = population.init()
    seconds: dict[bool, list[float]] = {True: [], False: []}
    with tempfile.TemporaryDirectory() as folder, Writer(Path(folder), 2) as writer:
        for epoch in range(1, 2 * options.pairs + 2):
            writing, start = epoch % 2 == 0, time.perf_counter()
            if writing:
                writer.begin(epoch, population.gather(state))
                writer.commit()
            state, metrics = population.epoch(clock_at(settings.training, epoch), state)
            metrics()
            writer.wait()
            if epoch > 1:  # which compiles
                seconds[writing].append(time.perf_counter() - start)
        cost = writer.cost()
    lost = statistics.median(a - b for a, b in zip(seconds[True], seconds[False], strict=True))
    share = lost / Checkpoint().interval_seconds
    result = {
        "members": 10,
        "capacity": options.capacity,
        "bytes": cost["bytes_each"],
        "seconds_to_write": cost["seconds_each"],
        "seconds_lost_by_training": lost,
        "share_at_default_cadence": share,
        "epoch_seconds": {"writing": seconds[True], "not writing": seconds[False]},
    }
    common.write("checkpoints", result | common.facts())
    print(
        f"{cost['bytes_each'] / 1e6:.0f} MB, written in {cost['seconds_each']:.2f} s beside the training, which loses "
        f"{lost:.2f} s by it: {share:.1%} with one every {Checkpoint().interval_seconds:.0f} s"
    )


if __name__ == "__main__":
    main()
