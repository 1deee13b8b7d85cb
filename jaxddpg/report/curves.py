"""The metrics of runs as arrays, from the rows of their files: what figures and reports are made of."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from jaxddpg.statistics import best


class Lineage(NamedTuple):
    """The parents and settings of members, epoch by epoch, in a run that selects them, as arrays [epochs, M]."""

    parents: np.ndarray
    """The member of which this one continued a copy, itself for most; NaN where it is stopped."""
    numbers: dict[str, np.ndarray]
    """The swept settings by dotted path."""

    @property
    def stopped(self) -> np.ndarray:
        """[epochs, M] bool"""
        return np.isnan(self.parents)


class Curves(NamedTuple):
    """The metrics of one run, or of one variant of a sweep, as arrays [epochs, M]."""

    label: str
    env_steps: np.ndarray
    """[epochs]"""
    metrics: dict[str, np.ndarray]
    references: dict[str, float]
    """Returns to compare with, by name."""
    values: Mapping[str, Any] = MappingProxyType({})
    """The values of the swept settings, by dotted path."""
    environment: str = ""
    """Its name and its parameters: returns of different ones are not compared."""
    source: str = ""
    """The name of the run or sweep; returns of different ones are not pooled."""
    seeds: Sequence[int] = ()
    lineage: Lineage | None = None
    unmeasured: np.ndarray | None = None
    """[epochs, M] bool: whether a member's evaluation was not finite, although it did not diverge; None: none was"""

    @property
    def returns(self) -> np.ndarray:
        """[epochs, M]"""
        return self.metrics["eval/return_mean"]

    @property
    def lost(self) -> dict[str, np.ndarray]:
        """Whether each member [M] has no return at the end, by the reason."""
        lost = ~np.isfinite(self.returns[-1])
        unmeasured = np.zeros_like(lost) if self.unmeasured is None else self.unmeasured[-1]
        return {"diverged": lost & ~unmeasured, "not finite": lost & unmeasured}


def best_member(run: Curves) -> int:
    """The member that is best at the end, of those that are not stopped."""
    assert run.lineage
    return best(np.where(run.lineage.stopped[-1], np.nan, run.returns[-1]))


def by_epoch(rows: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The env steps [epochs] and the metrics [epochs, M] of a run's rows; an epoch that is not complete is left out.

    Raises:
        ValueError: there is no complete epoch.
    """
    if len(rows) <= max((row["member"] for row in rows), default=0):
        raise ValueError("there is no complete epoch yet")
    names = [name for name in rows[-1] if "/" in name]
    return _column(rows, "env_steps").max(1), {name: _column(rows, name) for name in names}


def lineage(rows: Sequence[Mapping[str, Any]], paths: Sequence[str]) -> Lineage:
    """The lineage of a run's members, from its rows, with the settings of these paths."""
    return Lineage(_column(rows, "parent"), {path: _column(rows, path) for path in paths})


def unmeasured(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Whether evaluations were not finite, of members that did not diverge, [epochs, M], from a run's rows."""
    return _column([{"member": row["member"], "": bool(row.get("unmeasured_by"))} for row in rows], "") > 0


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """A number of each row, [epochs, M]."""
    members = 1 + max(row["member"] for row in rows)
    epochs = len(rows) // members
    return np.array([row.get(name) for row in rows[: epochs * members]], float).reshape(epochs, members)


def of_common_length(runs: Sequence[Curves]) -> list[Curves]:
    """Runs up to the number of env steps that all have reached, each to its last evaluation up to there."""
    last = max(min(run.env_steps[-1] for run in runs), max(run.env_steps[0] for run in runs))
    return [_first(run, int(np.sum(run.env_steps <= last))) for run in runs]


def _first(run: Curves, epochs: int) -> Curves:
    """The first epochs of a run."""
    lineage = run.lineage and Lineage(
        run.lineage.parents[:epochs], {name: numbers[:epochs] for name, numbers in run.lineage.numbers.items()}
    )
    metrics = {name: curves[:epochs] for name, curves in run.metrics.items()}
    unmeasured = None if run.unmeasured is None else run.unmeasured[:epochs]
    return run._replace(env_steps=run.env_steps[:epochs], metrics=metrics, lineage=lineage, unmeasured=unmeasured)


def chosen(run: Curves) -> Curves:
    """Of a run that selected its members, which are no independent samples, the one that is best at the end; any other
    run as it is."""
    if run.lineage is None:
        return run
    one = [best_member(run)]
    return run._replace(
        label=f"{run.label}, best of {run.returns.shape[1]}",
        metrics={name: curves[:, one] for name, curves in run.metrics.items()},
        seeds=[run.seeds[one[0]]],
        lineage=None,
        unmeasured=None if run.unmeasured is None else run.unmeasured[:, one],
    )


def varied(runs: Sequence[Curves]) -> list[str]:
    """The swept settings that have more than one value among runs."""
    names = dict.fromkeys(name for run in runs for name in run.values)
    return [name for name in names if len({str(run.values.get(name)) for run in runs}) > 1]
