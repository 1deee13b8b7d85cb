"""jaxddpg in `bench/peers.py`."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import serve

from jaxddpg.config import build

sys.path.append(str(Path(__file__).parent.parent))


def prepare(spec: dict[str, Any]) -> Callable[[], int]:
    import common
    import jax
    import numpy as np
    import optax

    from jaxddpg import config
    from jaxddpg.training.loop import clock_at
    from jaxddpg.training.placement import use_all_cores

    use_all_cores()
    names = ("hidden", "batch_size", "capacity", "members", "algorithm", "precision")
    sections = common.shape(**{name: spec[name] for name in names}, steps_per_epoch=spec["updates"])
    experiment = config.parse(sections).experiment
    population = build.populate(config.resolve(experiment).run())
    state, epoch = population.init(), 0
    jax.block_until_ready(state)

    def play() -> int:
        nonlocal state, epoch
        epoch += 1
        state, metrics = population.epoch(clock_at(experiment.training, epoch), state)
        metrics()
        counts = np.asarray(optax.tree.get(state.agent.critic_optimizer, "count")).ravel()
        return int(counts[: spec["members"]].sum())

    return play


def learn(spec: dict[str, Any]) -> Iterator[tuple[int, float]]:
    from jaxddpg import config
    from jaxddpg.training.loop import clock_at
    from jaxddpg.training.placement import use_all_cores

    use_all_cores()
    experiment = config.parse(spec["experiment"]).experiment
    population, training = build.populate(config.resolve(experiment).run()), experiment.training
    population.compile(clock_at(training, 0), False)
    state = population.init()
    for epoch in range(1, training.num_epochs + 1):
        clock = clock_at(training, epoch)
        state, _ = population.epoch(clock, state)
        metrics = population.evaluate(clock, state.agent)()
        env_steps = (training.warmup_steps + epoch * training.steps_per_epoch) * training.num_envs
        yield env_steps, float(metrics["return_mean"].min())


if __name__ == "__main__":
    serve.main(prepare, learn)
