"""Learning curves from the metrics of runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from jaxddpg.statistics import confidence_interval, interquartile_mean


class Curves(NamedTuple):
    """The metrics of one run as arrays [epochs, M]."""

    label: str
    env_steps: np.ndarray
    """[epochs]"""
    metrics: dict[str, np.ndarray]
    references: dict[str, float]
    """Returns to compare with, by name."""


def by_epoch(rows: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The env steps [epochs] and the metrics [epochs, M] of a run's rows; an epoch that is not complete is left out.

    Raises:
        ValueError: there is no complete epoch.
    """
    members = 1 + max((row["member"] for row in rows), default=0)
    epochs = len(rows) // members
    if not epochs:
        raise ValueError("there is no complete epoch yet")
    rows = rows[: epochs * members]

    def column(name: str) -> np.ndarray:
        return np.array([row.get(name) for row in rows], float).reshape(epochs, members)

    names = [name for name in rows[-1] if "/" in name]
    return column("env_steps")[:, 0], {name: column(name) for name in names}


def plot(runs: list[Curves], path: Path) -> None:
    """Writes two panels: the return, and what the critic promises at the start against what follows."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    returns, values = figure.subplots(1, 2)
    for number, run in enumerate(runs):
        colour = f"C{number % 10}"
        curves = run.metrics["eval/return_mean"]
        _band(returns, run, "eval/return_mean", colour, f"{run.label}, IQM of {curves.shape[1]}")
        for count, curve in enumerate(lost := curves.T[~np.isfinite(curves[-1])]):
            last = np.flatnonzero(np.isfinite(curve))[-1:]
            label = None if count else f"{len(lost)} diverged"
            returns.plot(run.env_steps[last], curve[last], "x", color=colour, label=label)
        # One run can show its two curves in two colours; several need theirs to tell the runs apart.
        prefix, outcome_colour = ("", "C1") if len(runs) == 1 else (f"{run.label}: ", colour)
        _band(values, run, "eval/q_start_mean", colour, f"{prefix}promised, Q(s0, mu(s0))")
        _band(values, run, "eval/discounted_return_mean", outcome_colour, f"{prefix}discounted return", dashed=True)
    if all(run.references == runs[0].references for run in runs):
        for (name, level), style in zip(runs[0].references.items(), (":", "--"), strict=False):
            returns.axhline(level, color="0.4", linestyle=style, linewidth=1, label=f"{name}, {level:g}")
    returns.set(xlabel="env steps per member", ylabel="return of the noiseless policy", title="Return")
    values.set(xlabel="env steps per member", ylabel="discounted return from the start", title="Promise and outcome")
    for axes in (returns, values):
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    figure.savefig(path, dpi=120)


def _band(axes: Any, run: Curves, name: str, colour: str, label: str, dashed: bool = False) -> None:
    """Members as thin lines, their IQM as a thick one with its 95 % interval."""
    curves = run.metrics[name]
    style = "--" if dashed else "-"
    middle = interquartile_mean(curves)
    finite = np.isfinite(middle)
    axes.plot(run.env_steps, curves, color=colour, alpha=0.25, linewidth=0.6, linestyle=style)
    axes.plot(run.env_steps[finite], middle[finite], color=colour, linewidth=1.8, linestyle=style, label=label)
    if curves.shape[1] > 1:
        low, high = confidence_interval(curves)
        axes.fill_between(run.env_steps, low, high, where=np.isfinite(low), color=colour, alpha=0.18, linewidth=0)
