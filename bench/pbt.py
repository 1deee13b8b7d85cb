"""Population-based training against the same draws left fixed, on Pendulum: `python bench/pbt.py`, 15 minutes.

Each population draws the learning rates of its members, badly: nearly all of them far below what works. It trains once
with population-based training, whose settings are the defaults, and once without, for equally many env steps. Of each
the member that its own last evaluation found best is evaluated afresh, on 100 episodes that no training saw. The result
is the difference of these two, population by population, with the bootstrap interval of its interquartile mean. Every
population is kept in bench/results/pbt.csv; `--table` prints the table from it.
"""

import argparse
import csv
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import RESULTS, facts, jaxddpg, table

from jaxddpg.runs import summary as summary_module
from jaxddpg.statistics import best, confidence_interval, interquartile_mean

POPULATIONS, MEMBERS = 10, 16
TABLE = RESULTS / "pbt.csv"
SETTINGS = {
    "agent.batch_size": 64,
    "agent.actor.hidden_sizes": "[64, 64]",
    "agent.critic.hidden_sizes": "[64, 64]",
    "training.num_envs": 1,
    "training.warmup_steps": 500,
    "training.steps_per_epoch": 500,
    "training.num_epochs": 80,
    "replay.capacity": 40_500,
    "population.num_seeds": 1,
    "population.combine": "random",
    "population.num_draws": MEMBERS,
    "population.sweep.agent.actor_learning_rate": "{loguniform: [1.0e-6, 1.0e-4]}",
    "population.sweep.agent.critic_learning_rate": "{loguniform: [1.0e-6, 1.0e-4]}",
}
METHODS = {
    "pbt": {"population.selection.method": "pbt"},
    "fixed": {"population.selection.method": "none"},
}


def chosen(directory: Path, population: int, changes: dict[str, object]) -> dict[str, float]:
    """Trains a population and measures the member that was best at the end."""
    flags = SETTINGS | changes | {"population.draw_seed": population, "population.seed": 1000 * population}
    arguments = [token for path, value in flags.items() for token in (f"--{path}", value)]
    jaxddpg("sweep", "configs/pendulum.yaml", *arguments, "--run-dir", directory, "--quiet")
    jaxddpg("evaluate", directory, "--num-episodes", 100, "--seed", population, stdout=subprocess.DEVNULL)
    summary = summary_module.read(directory / "summary.json")
    finals = [member["final_return"] for member in summary["members"]]
    winner = best(finals)
    with (directory / "evaluation.csv").open() as file:
        row = next(row for row in csv.DictReader(file) if int(row["member"]) == winner)
    return {
        "return": float(row["return_mean"]),
        "claimed": finals[winner],
        "actor_learning_rate": float(row["agent.actor_learning_rate"]),
        "critic_learning_rate": float(row["agent.critic_learning_rate"]),
        "env_steps": summary["env_steps_total"],
    }


def measure() -> None:
    """Leaves the row of every population and method."""
    rows = []
    for population in range(POPULATIONS):
        for method, changes in METHODS.items():
            with tempfile.TemporaryDirectory() as place:
                found = chosen(Path(place) / "run", population, changes)
            rows.append({"population": population, "method": method} | found)
            print(rows[-1], file=sys.stderr, flush=True)
    assert len({row["env_steps"] for row in rows}) == 1
    with TABLE.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(facts(), file=sys.stderr)


def summary() -> str:
    """The table of the committed results."""
    with TABLE.open() as file:
        rows = [*csv.DictReader(file)]
    of = {method: np.array([float(row["return"]) for row in rows if row["method"] == method]) for method in METHODS}
    return table(
        [
            {
                f"of {POPULATIONS} populations": name,
                "IQM (95% interval)": f"{float(interquartile_mean(values)):.1f} "
                f"({' to '.join(f'{float(end):.1f}' for end in confidence_interval(values))})",
                "worst to best": f"{values.min():.1f} to {values.max():.1f}",
            }
            for name, values in (of | {"pbt - fixed": of["pbt"] - of["fixed"]}).items()
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="train nothing, print the table of the committed results")
    if not parser.parse_args().table:
        measure()
    print(summary())


if __name__ == "__main__":
    main()
