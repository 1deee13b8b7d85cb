"""The experiments of Silver et al. 2014 with linear COPDAC-Q, drawn and tabled beside what the paper shows.

    python bench/silver2014.py           # all of them, a few minutes on two cores
    python bench/silver2014.py --table   # the table and the figure, from bench/results/silver2014.csv

Each is the one command shown in its table row. The CSV holds every seed after every epoch.
"""

import argparse
import csv
import json
import math
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import common
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from jaxddpg.statistics import confidence_interval, interquartile_mean

RESULTS = common.RESULTS / "silver2014.csv"
PICTURE = common.ROOT / "docs" / "silver2014.png"


class Task(NamedTuple):
    title: str
    paper: Mapping[float, float] = MappingProxyType({})
    """The paper's COPDAC-Q, read off its figure 2: env steps -> return."""


TASKS = {
    "bandit_10": Task("continuous bandit, 10 actions"),
    "bandit_25": Task("continuous bandit, 25 actions"),
    "bandit_50": Task("continuous bandit, 50 actions"),
    "mountain_car": Task(
        "mountain car, -1 per step", {0: -4990, 5e3: -840, 1e4: -410, 1.6e4: -350, 2.1e4: -330, 1e5: -290}
    ),
    "mountain_car_continuous": Task("MountainCarContinuous-v0"),
    "pendulum": Task("pendulum, cosine", {0: -4930, 2.6e4: 3510, 7.9e4: 4410, 3.2e5: 4950, 3.7e5: 4950, 5e5: 4430}),
    "puddle_world": Task("puddle world", {0: -16800, 1.1e5: -2330, 1.8e5: -2330, 5e5: -2820}),
}


def measure(name: str) -> list[dict[str, object]]:
    """Runs one experiment in a directory that is thrown away: a row per seed and epoch."""
    with tempfile.TemporaryDirectory() as directory:
        common.jaxddpg("train", f"configs/silver2014/{name}.yaml", "--run-dir", f"{directory}/run")
        rows = [json.loads(line) for line in Path(directory, "run", "metrics.jsonl").read_text().splitlines()]
    return [
        {"experiment": name, "env_steps": row["env_steps"], "seed": row["seed"], "return": row["eval/return_mean"]}
        for row in rows
    ]


def curves(rows: list[dict[str, str]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """The env steps [epochs] and returns [epochs, seeds] of an experiment; a diverged seed has none."""
    own = [row for row in rows if row["experiment"] == name]
    env_steps = sorted({int(row["env_steps"]) for row in own})
    returns = [[float(row["return"] or math.nan) for row in own if int(row["env_steps"]) == at] for at in env_steps]
    return np.array(env_steps), np.array(returns)


def table(rows: list[dict[str, str]]) -> str:
    """The Markdown table of the final policies."""
    lines = [
        "| experiment | env steps per seed | IQM of 30 seeds (95% interval) | worst seed | paper |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, task in TASKS.items():
        env_steps, returns = curves(rows, name)
        low, high = confidence_interval(returns[-1])
        worst = np.nan_to_num(returns[-1], nan=-np.inf).min()
        paper = f"{max(task.paper.values()):,.0f} at best" if task.paper else "no numbers given"
        if name == "mountain_car_continuous":
            paper = "not in the paper"
        lines.append(
            f"| `configs/silver2014/{name}.yaml` | {env_steps[-1]:,} "
            f"| {interquartile_mean(returns[-1]):.4g} ({low:.4g} to {high:.4g}) | {worst:.4g} | {paper} |"
        )
    return "\n".join(lines)


def draw(rows: list[dict[str, str]]) -> None:
    """Five panels: the cost of the bandits, log-log, and the returns of the other tasks."""
    figure = Figure(figsize=(13, 6.8), layout="constrained")
    (bandit, *others), second = figure.subplots(2, 3)
    panels = dict(zip((name for name in TASKS if "bandit" not in name), (*others, *second), strict=False))
    second[-1].set_axis_off()
    for number, name in enumerate(name for name in TASKS if "bandit" in name):
        env_steps, returns = curves(rows, name)
        bandit.loglog(env_steps, -returns, color=f"C{number}", alpha=0.2, linewidth=0.6)
        label = f"{name.removeprefix('bandit_')} actions"
        bandit.loglog(env_steps, -interquartile_mean(returns), color=f"C{number}", linewidth=1.8, label=label)
    bandit.set(title="continuous bandit", xlabel="env steps", ylabel="cost of the noiseless action")
    for name, axes in panels.items():
        env_steps, returns = curves(rows, name)
        axes.plot(env_steps, returns, color="C0", alpha=0.2, linewidth=0.6)
        axes.plot(env_steps, interquartile_mean(returns), color="C0", linewidth=1.8, label="here, IQM of 30")
        if paper := TASKS[name].paper:
            axes.plot(paper.keys(), paper.values(), "C3s--", markersize=4, linewidth=1, label="paper, figure 2")
        axes.set(title=TASKS[name].title, xlabel="env steps", ylabel="return of the noiseless policy")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    panels["puddle_world"].set_yscale("symlog", linthresh=10)
    for axes in (bandit, *panels.values()):
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="run nothing, print the table and draw the figure")
    if not parser.parse_args().table:
        start = time.perf_counter()
        measured = [row for name in TASKS for row in measure(name)]
        print(f"all experiments took {time.perf_counter() - start:.0f} s", file=sys.stderr)
        with RESULTS.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(measured[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(measured)
    rows = [*csv.DictReader(RESULTS.read_text().splitlines())]
    print(table(rows))
    draw(rows)


if __name__ == "__main__":
    main()
