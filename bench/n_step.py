"""How much faster n-step returns learn: updates until DDPG holds -200 on Pendulum, by n and by the rate of the targets.

    python bench/n_step.py             # ten minutes on two cores
    python bench/n_step.py --table     # the table, from bench/results/n_step.json

A seed holds -200 at the first of two evaluations in a row, each of 32 episodes and 100 updates apart, whose mean return
is at least -200. All have the same ten seeds and, but for n and tau, the same settings. Every seed is kept.
"""

import argparse
import json
import math
import statistics

import common
import numpy as np

SETTINGS = {
    "agent": {
        "actor_learning_rate": 1e-3,
        "critic_learning_rate": 1e-3,
        "batch_size": 128,
        "actor": {"hidden_sizes": [64, 64]},
        "critic": {"hidden_sizes": [64, 64]},
    },
    "replay": {"capacity": 100_000},
    "training": {"num_envs": 4, "warmup_steps": 250, "steps_per_epoch": 100, "num_epochs": 200},
    "evaluation": {"num_episodes": 32},
    "population": {"num_seeds": 10, "sweep": {"agent.tau": [0.001, 0.005, 0.02]}},
}
STEPS = (1, 5)


def returns(steps: int) -> np.ndarray:
    """[taus, seeds, epochs] of evaluations."""
    from jaxddpg import config
    from jaxddpg.config import build
    from jaxddpg.training.loop import clock_at
    from jaxddpg.training.placement import use_all_cores

    use_all_cores()
    experiment = config.parse(SETTINGS, {"replay.steps": steps}).experiment
    population, training = build.populate(config.resolve(experiment).run()), experiment.training
    state, rows = population.init(), []
    for epoch in range(1, training.num_epochs + 1):
        clock = clock_at(training, epoch)
        state, _ = population.epoch(clock, state)
        rows.append(np.asarray(population.evaluate(clock, state.agent)()["return_mean"]))
    seeds = SETTINGS["population"]["num_seeds"]
    return np.stack(rows, axis=-1).reshape(-1, seeds, training.num_epochs).astype(float)


def updates_until_held(curve: list[float]) -> float:
    """Updates of a seed until it holds -200; inf if it never does."""
    good = np.asarray(curve) >= -200
    held = np.flatnonzero(good[:-1] & good[1:])
    return int(held[0] + 1) * SETTINGS["training"]["steps_per_epoch"] if len(held) else math.inf


def text(updates: float) -> str:
    """A number of updates, or that it was not enough."""
    most = SETTINGS["training"]["steps_per_epoch"] * SETTINGS["training"]["num_epochs"]
    return f"{updates:,.0f}" if updates < math.inf else f"> {most:,}"


def table(result: dict) -> str:
    rows = []
    for number, tau in enumerate(SETTINGS["population"]["sweep"]["agent.tau"]):
        one, many = ([updates_until_held(curve) for curve in result["returns"][f"{steps}"][number]] for steps in STEPS)
        pairs = [*zip(one, many, strict=True)]
        rows.append(
            {
                "tau": tau,
                **{
                    f"n = {steps}": f"{text(statistics.median(held))} ({text(min(held))} to {text(max(held))})"
                    for steps, held in zip(STEPS, (one, many), strict=True)
                },
                "seeds faster with n = 5": f"{sum(b < a for a, b in pairs)} of {len(pairs)} seeds",
                "at least twice as fast": f"{sum(b <= a / 2 for a, b in pairs)} of {len(pairs)} seeds",
            }
        )
    return common.table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="train nothing, print the table")
    options = parser.parse_args()
    path = common.RESULTS / "n_step.json"
    if options.table:
        result = json.loads(path.read_text())
    else:
        curves = {str(n): np.round(returns(n), 1).tolist() for n in STEPS}
        result = common.facts() | {"settings": SETTINGS, "returns": curves}
        common.write("n_step", result)
    print(table(result))


if __name__ == "__main__":
    main()
