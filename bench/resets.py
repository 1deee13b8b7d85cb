"""What it saves to reset only the environments whose episode has ended, instead of all of them in every step.

    python bench/resets.py              # built-in environments and, if it is installed, one of MuJoCo Playground
    python bench/resets.py --table      # the table, from bench/results/resets.json

Rollouts of random actions on one core, in CPU time, interleaved: the median ratio of seven rounds.
"""

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import common
import jax
import jax.numpy as jnp

from jaxddpg import settings
from jaxddpg.config.environment import make_environment
from jaxddpg.envs import episodic
from jaxddpg.types import Environment, Key

NAMES = ("DoubleIntegrator", "PuddleWorld-silver", "Rocket-goddard", "playground:CartpoleSwingup")
SIZES = {"1": (1, 1), "16": (1, 16), "256": (1, 256), "16 members of 16": (16, 16)}
"""Members and environments."""


def in_every_step(mask: jax.Array, make: Callable[[Key], Any], key: Key, old: Any) -> Any:
    return jax.tree.map(lambda new, old: jnp.where(mask, new, old), make(key), old)


def rollout(environment: Environment, members: int, num_envs: int, num_steps: int) -> Callable[[], None]:
    """Plays steps in compiled code; each call continues from the state of the previous one."""

    def one_step(state: Any, key: Key) -> tuple[Any, jax.Array]:
        action_key, key = jax.random.split(key)
        action = jax.random.uniform(action_key, (num_envs, environment.action_size), minval=-1.0)
        state, seen = jax.vmap(environment.step)(jax.random.split(key, num_envs), state, action)
        return state, jnp.sum(seen.reward)

    def steps(key: Key, state: Any) -> tuple[Any, jax.Array]:
        return jax.lax.scan(one_step, state, jax.random.split(key, num_steps))

    keys = jax.random.split(jax.random.key(0), (members, num_envs))
    state = jax.jit(jax.vmap(jax.vmap(environment.reset)))(keys)[0]
    play, calls = jax.jit(jax.vmap(steps)), 0

    def run() -> None:
        nonlocal state, calls
        calls += 1
        state, rewards = play(jax.random.split(jax.random.key(calls), members), state)
        jax.block_until_ready(rewards)

    run()  # compiles
    return run


def compare(name: str, members: int, num_envs: int) -> dict[str, float]:
    total = 5_000 if ":" in name else 100_000
    num_steps = max(20, total // (members * num_envs))
    lazy, runs = episodic._replace_where, {}
    for way, replace in (("every step", in_every_step), ("ended only", lazy)):
        episodic._replace_where = replace
        runs[way] = rollout(make_environment(settings.Environment(name)), members, num_envs, num_steps)
    episodic._replace_where = lazy
    seconds: dict[str, list[float]] = {way: [] for way in runs}
    for _ in range(7):
        for way, run in runs.items():
            start = time.process_time()
            run()
            seconds[way].append((time.process_time() - start) / (members * num_envs * num_steps))
    ratios = [a / b for a, b in zip(seconds["every step"], seconds["ended only"], strict=True)]
    return {way: statistics.median(own) for way, own in seconds.items()} | {"ratio": statistics.median(ratios)}


def table(found: dict[str, Any]) -> str:
    rows = [
        {
            "environment": name,
            "environments": size,
            "us per env step, a reset in every step": f"{1e6 * own['every step']:.2f}",
            "where an episode ended": f"{1e6 * own['ended only']:.2f}",
            "times as fast": f"{own['ratio']:.2f}",
        }
        for name, sizes in found["environments"].items()
        for size, own in sizes.items()
    ]
    return common.table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="measure nothing, print the table")
    options = parser.parse_args()
    path = common.RESULTS / "resets.json"
    if options.table:
        print(table(json.loads(path.read_text())))
        return
    found: dict[str, Any] = {"machine": common.facts(), "environments": {}}
    for name in NAMES:
        if ":" not in name or importlib.util.find_spec("mujoco_playground"):
            found["environments"][name] = {size: compare(name, *shape) for size, shape in SIZES.items()}
            common.write("resets", found)
    print(table(found))


if __name__ == "__main__":
    main()
