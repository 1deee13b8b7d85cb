"""What one update costs, by part, and how many kernels it takes.

    python bench/profile_update.py

One member, pinned to one core, in CPU time; each part is timed alone in a compiled loop, so that the parts need not add
up to the whole. Kernels are those of the optimized program of one update. Writes bench/results/profile_update.json.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import ceiling
import common

from jaxddpg.config import build
from jaxddpg.config import environment as environment_module


def kernels(text: str) -> Counter[str]:
    """How often each operation that costs a launch stands in the entry of an optimized program."""
    entry = text[text.index("\nENTRY ") :]
    free = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}
    return Counter(name for name in re.findall(r"= [^=]*? ([a-z][\w-]*)\(", entry) if name not in free)


def parts(hidden: int, batch_size: int, repeats: int) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp

    from jaxddpg import config
    from jaxddpg.parts import equations
    from jaxddpg.training.loop import clock_at

    experiment = config.parse(common.shape(hidden=hidden, batch_size=batch_size, steps_per_epoch=100)).experiment
    environment = environment_module.make_environment(experiment.environment)
    agent = build.make_agent(environment, experiment.agent)
    trainer = build.build(experiment.member())
    key, clock = jax.random.key(0), clock_at(experiment.training, 1)
    state = jax.jit(trainer.init)(key)
    replay = build.make_replay(experiment.replay)
    rows = replay.sample(key, clock, state.replay, batch_size)
    batch = equations.transition(rows, experiment.agent.gamma)

    def microseconds(body: Callable, start: Any, count: int) -> float:
        """Of one call of `body(index, carry) -> carry`."""
        loop = jax.jit(lambda start: jax.lax.fori_loop(0, count, body, start))
        return ceiling.fastest(lambda: jax.block_until_ready(loop(start)), repeats) / count * 1e6

    def update(_: Any, learner: Any) -> Any:
        return agent.update(key, clock, learner, batch)[0]

    def follow(_: Any, targets: Any) -> Any:
        return equations.soft_update(targets, (state.agent.actor, state.agent.critic), 0.005)

    def sample(index: Any, total: Any) -> Any:
        drawn = replay.sample(jax.random.fold_in(key, index), clock, state.replay, batch_size)
        return total + (drawn.observation + drawn.next_observation)[:, 0]

    count = max(10, 200 * 256 // batch_size)
    epoch = jax.jit(trainer.epoch)
    whole = ceiling.fastest(lambda: jax.block_until_ready(epoch(key, clock, state)), repeats)
    once = jax.jit(agent.update).lower(key, clock, state.agent, batch).compile()
    found = kernels(once.as_text())
    return {
        "microseconds": {
            "products of the hidden layers": ceiling.floor_seconds(hidden, batch_size, repeats) * 1e6,
            "update": microseconds(update, state.agent, count),
            "soft update of both targets": microseconds(
                follow, (state.agent.target_actor, state.agent.target_critic), count
            ),
            "sampling a batch": microseconds(sample, jnp.zeros((batch_size, 3)), count),
            "one vector step with its update, in the epoch": whole / experiment.training.steps_per_epoch * 1e6,
        },
        "kernels_per_update": sum(found.values()),
        "kernels_by_kind": dict(found.most_common()),
    }


def dispatch(smoke: bool) -> dict[str, float]:
    """Of an epoch of configs/pendulum.yaml, a member on each core: milliseconds, and those until the call returns."""
    from jaxddpg.training.placement import use_all_cores

    use_all_cores()
    import jax

    from jaxddpg import config
    from jaxddpg.training.loop import clock_at

    path = common.ROOT / "configs" / "pendulum.yaml"
    short = {"training.steps_per_epoch": "5"} if smoke else {}
    # One dispatch: a second would wait for the first, which costs nothing, for the cores are busy.
    experiment = config.read(path, short | {"population.num_seeds": jax.local_device_count()}).experiment
    population = build.populate(config.resolve(experiment).run())
    state, called, took = population.init(), [], []
    for epoch in range(1, 3 if smoke else 21):
        start = time.perf_counter()
        state, metrics = population.epoch(clock_at(experiment.training, epoch), state)
        called.append((time.perf_counter() - start) * 1e3)
        metrics()
        took.append((time.perf_counter() - start) * 1e3)
    # The first call compiles.
    return {"epoch": statistics.median(took[1:]), "dispatch": statistics.median(called[1:])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="small and short, writes nothing")
    parser.add_argument("--dispatch", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    smoke = options.smoke
    if options.dispatch:
        print(json.dumps(dispatch(smoke)))
        return
    # In a process of its own: it needs all cores, and the rest is pinned to one.
    command = [sys.executable, __file__, "--dispatch", *["--smoke"][:smoke]]
    milliseconds = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    epoch, calling = milliseconds["epoch"], milliseconds["dispatch"]
    print(f"configs/pendulum.yaml: of {epoch:,.0f} ms of an epoch {calling:.1f} ms are dispatch")
    ceiling.alone(0)
    shapes, repeats = ([(64, 64)], 1) if smoke else ([(64, 256), (256, 256), (256, 8192)], 7)
    result: dict[str, Any] = {"milliseconds_of_an_epoch": milliseconds}
    for hidden, batch_size in shapes:
        name = f"2x{hidden}, batch {batch_size}"
        result[name] = parts(hidden, batch_size, repeats)
        for part, microseconds in result[name]["microseconds"].items():
            print(f"{name}: {part} {microseconds:,.0f} us")
        print(f"{name}: {result[name]['kernels_per_update']} kernels per update: {result[name]['kernels_by_kind']}")
    if not smoke:
        common.write("profile_update", result | common.facts())


if __name__ == "__main__":
    main()
