"""How much sooner n-step returns learn: updates until ten seeds of DDPG hold -200 on Pendulum, by n.

    python bench/n_step.py             # two minutes on two cores
    python bench/n_step.py --table     # the table, from bench/results/n_step.json

A seed holds -200 at the first of two evaluations in a row, each of 32 episodes and 100 updates apart, whose mean return
is at least -200. All n have the same settings and seeds. Every seed is kept.
"""

import argparse
import json
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
    "training": {"num_envs": 4, "warmup_steps": 250, "steps_per_epoch": 100, "num_epochs": 100},
    "evaluation": {"num_episodes": 32},
    "population": {"num_seeds": 10},
}
STEPS = (1, 3, 5)


def returns(steps: int) -> np.ndarray:
    """[epochs, seeds] of evaluations."""
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
    return np.stack(rows)


def updates_until_held(curve: list[float]) -> int | None:
    """Updates of a seed until it holds -200; None if it never does."""
    good = np.asarray(curve) >= -200
    held = np.flatnonzero(good[:-1] & good[1:])
    return int(held[0] + 1) * SETTINGS["training"]["steps_per_epoch"] if len(held) else None


def table(result: dict) -> str:
    held = {n: [updates_until_held(curve) for curve in curves] for n, curves in result["returns"].items()}
    rows = []
    for n, updates in held.items():
        pairs = [(one, own) for one, own in zip(held["1"], updates, strict=True) if one is not None and own is not None]
        rows.append(
            {
                "n": n,
                "seeds that hold -200": f"{sum(own is not None for own in updates)} of {len(updates)}",
                "updates (median)": f"{statistics.median(own for own in updates if own is not None):,.0f}",
                "fewest to most": f"{min(filter(None, updates)):,} to {max(filter(None, updates)):,}",
                "of those of n = 1 (median)": f"{statistics.median(own / one for one, own in pairs):.2f}",
                "at most half of n = 1": f"{sum(own <= one / 2 for one, own in pairs)} of {len(updates)} seeds",
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
        curves = {str(n): np.round(returns(n).T.astype(float), 1).tolist() for n in STEPS}
        result = common.facts() | {"settings": SETTINGS, "returns": curves}
        common.write("n_step", result)
    print(table(result))


if __name__ == "__main__":
    main()
