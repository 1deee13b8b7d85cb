"""What is learned: trains the published experiments, evaluates every seed afresh, and prints README's table.

    python bench/scores.py                      # all of them: hours on two cores
    python bench/scores.py "pendulum, TD3"      # some of them
    python bench/scores.py --table              # the tables, from bench/results/scores.csv

Each experiment is the two commands shown in its table row; its rows in the CSV are replaced, those of the others stay.
"""

import argparse
import csv
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from jaxddpg.statistics import confidence_interval, interquartile_mean

RESULTS = Path(__file__).parent / "results" / "scores.csv"
COLUMNS = ("member", "seed", "return_mean", "return_std")
EPISODES = 100
EXPERIMENTS = {
    "pendulum": "configs/pendulum.yaml",
    "mountain_car_continuous": "configs/mountain_car_continuous.yaml",
    "mountain_car_continuous, white noise": "configs/mountain_car_continuous.yaml --noise.smoothing 0",
    "reacher": "configs/reacher.yaml",
    "swimmer": "configs/swimmer.yaml",
    "lillicrap2015": "configs/lillicrap2015.yaml",
    "lillicrap2015, no batch normalization": "configs/lillicrap2015.yaml --agent.actor.normalization none "
    "--agent.critic.normalization none",
}


def measure(name: str) -> list[dict[str, str]]:
    """Trains and evaluates one experiment with ten seeds, in a directory that is thrown away."""
    with tempfile.TemporaryDirectory() as directory:
        run = f"{directory}/run"
        program = [sys.executable, "-m", "jaxddpg"]
        train = shlex.split(EXPERIMENTS[name])
        subprocess.run([*program, "train", *train, "--num-seeds", "10", "--run-dir", run], check=True)
        subprocess.run([*program, "evaluate", run, "--num-episodes", str(EPISODES)], check=True)
        with open(f"{run}/metrics.jsonl") as file:
            env_steps = json.loads(file.readlines()[-1])["env_steps"]
        with open(f"{run}/evaluation.csv", newline="") as file:
            return [
                {"experiment": name, "env_steps": env_steps} | {column: row[column] for column in COLUMNS}
                for row in csv.DictReader(file)
            ]


def table(rows: list[dict[str, str]]) -> str:
    """The Markdown table of all experiments in the CSV."""
    lines = [
        "| experiment | env steps per seed | IQM over 10 seeds (95% CI) | worst seed | `jaxddpg train` |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, arguments in EXPERIMENTS.items():
        own = [row for row in rows if row["experiment"] == name]
        if not own:
            continue
        returns = np.array([float(row["return_mean"]) for row in own])
        low, high = confidence_interval(returns)
        lines.append(
            f"| {name} | {int(own[0]['env_steps']):,} | {interquartile_mean(returns):.1f} ({low:.1f} to {high:.1f}) "
            f"| {returns.min():.1f} | `{arguments}` |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(EXPERIMENTS)}; none: all")
    parser.add_argument("--table", action="store_true", help="train nothing, print the table")
    options = parser.parse_args()
    if unknown := set(options.names) - set(EXPERIMENTS):
        parser.error(f"there is no experiment {', '.join(unknown)}")
    rows = [*csv.DictReader(RESULTS.read_text().splitlines())] if RESULTS.exists() else []
    if not options.table:
        for name in options.names or EXPERIMENTS:
            rows = [row for row in rows if row["experiment"] != name] + measure(name)
            RESULTS.parent.mkdir(exist_ok=True)
            with RESULTS.open("w", newline="") as file:
                writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
    print(table(rows))


if __name__ == "__main__":
    main()
