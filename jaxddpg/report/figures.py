"""Learning curves, and how results depend on what is swept, from the metrics of runs."""

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from jaxddpg.statistics import (
    best,
    confidence_interval,
    interquartile_mean,
    performance_profile,
    pooled_mean,
    stratified_interval,
    worst_if_not_finite,
)


class Lineage(NamedTuple):
    """Who went on as whom in a run that selects its members, as arrays [epochs, M]."""

    parents: np.ndarray
    """The member from whose state this one went on; NaN where it rests."""
    numbers: dict[str, np.ndarray]
    """The swept settings by dotted path."""

    @property
    def resting(self) -> np.ndarray:
        """bool"""
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
    """Of the swept settings, by dotted path."""
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
        """Whether each member [M] has no return at the end, by what to say of it."""
        lost = ~np.isfinite(self.returns[-1])
        unmeasured = np.zeros_like(lost) if self.unmeasured is None else self.unmeasured[-1]
        return {"diverged": lost & ~unmeasured, "not finite": lost & unmeasured}


def _best(run: Curves) -> int:
    """The member that is best at the end, of those that run."""
    assert run.lineage
    return best(np.where(run.lineage.resting[-1], np.nan, run.returns[-1]))


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
    """Who went on as whom, from a run's rows, with the settings of these paths."""
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
    """So many epochs of a run."""
    lineage = run.lineage and Lineage(
        run.lineage.parents[:epochs], {name: numbers[:epochs] for name, numbers in run.lineage.numbers.items()}
    )
    metrics = {name: curves[:epochs] for name, curves in run.metrics.items()}
    unmeasured = None if run.unmeasured is None else run.unmeasured[:epochs]
    return run._replace(env_steps=run.env_steps[:epochs], metrics=metrics, lineage=lineage, unmeasured=unmeasured)


def chosen(run: Curves) -> Curves:
    """Of members that were selected from, which are no samples of anything, the one that is best at the end."""
    if run.lineage is None:
        return run
    one = [_best(run)]
    return run._replace(
        label=f"{run.label}, best of {run.returns.shape[1]}",
        metrics={name: curves[:, one] for name, curves in run.metrics.items()},
        seeds=[run.seeds[one[0]]],
        lineage=None,
        unmeasured=None if run.unmeasured is None else run.unmeasured[:, one],
    )


def plot(runs: Sequence[Curves], path: Path) -> None:
    """Writes a picture, for each environment: the return, and beside it the critic's estimate of it at the start; where
    settings are swept, instead of that how the final return of each sweep depends on each, and of two on both; where
    members were selected, the settings over time and who went on as whom."""
    panels: list[Callable[[Any], None]] = []
    environments = dict.fromkeys(run.environment for run in runs)
    for environment in environments:
        own = _panels([run for run in runs if run.environment == environment], len(environments) > 1)
        panels += own + [lambda axes: axes.remove()] * (len(own) % 2)
    figure = Figure(figsize=(11, 2.1 * len(panels)), layout="constrained")
    for axes, draw in zip(figure.subplots(len(panels) // 2, 2).flat, panels, strict=True):
        draw(axes)
    figure.savefig(path, dpi=120)


def _panels(runs: Sequence[Curves], titled: bool) -> list[Callable[[Any], None]]:
    """What draws each panel on runs in one environment; `titled` says whether its name is needed."""
    title = f"Return in {runs[0].environment}" if titled else "Return"
    panels: list[Callable[[Any], None]] = [functools.partial(_returns, runs=runs, title=title)]
    if len(runs) == 1 and runs[0].lineage:
        panels += [functools.partial(_lineage, run=runs[0], name=name) for name in runs[0].lineage.numbers]
    compared = of_common_length(runs)
    cut = any(len(short.env_steps) < len(run.env_steps) for short, run in zip(compared, runs, strict=True))
    what = f"return at {max(run.env_steps[-1] for run in compared):,.0f} env steps" if cut else "final return"
    sweeps = [[run for run in compared if run.source == source] for source in dict.fromkeys(r.source for r in runs)]
    names = dict.fromkeys(name for sweep in sweeps for name in varied(sweep))
    for name in names:
        having = [run for sweep in sweeps if name in varied(sweep) for run in sweep]
        panels.append(functools.partial(_sensitivity, runs=having, name=name, what=what))
    for sweep in sweeps:
        if len(both := varied(sweep)) == 2:
            panels.append(functools.partial(_map, runs=sweep, across=both[0], up=both[1], what=what))
    return panels if len(panels) > 1 else [*panels, functools.partial(_promises, runs=runs)]


def plot_profiles(scores: Mapping[str, Sequence[np.ndarray]], what: str, path: Path) -> None:
    """Writes the share of members above each score, by method: from strata [M], with 95 % bands."""
    figure = Figure(figsize=(6.5 if len(scores) <= 10 else 11, 4.2), layout="constrained")
    axes = figure.subplots()
    everything = np.concatenate([values for strata in scores.values() for values in strata])
    everything = everything[np.isfinite(everything)]
    low, high = (everything.min(), everything.max()) if everything.size else (0.0, 1.0)
    margin = 0.05 * (high - low) or 1.0
    thresholds = np.linspace(low - margin, high + margin, 200)
    for number, (method, strata) in enumerate(scores.items()):
        profile = functools.partial(performance_profile, thresholds=thresholds)
        colour = colormaps["viridis"](number / len(scores)) if len(scores) > 10 else f"C{number}"
        axes.plot(thresholds, profile(strata), color=colour, label=method)
        if len(scores) <= 10:
            bounds = stratified_interval(profile, strata, resamples=500)
            axes.fill_between(thresholds, *bounds, color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel=what, ylabel="share of seeds above", ylim=(-0.03, 1.03))
    axes.grid(alpha=0.25)
    if len(scores) <= 10:
        axes.legend(fontsize=8)
    else:
        axes.legend(fontsize=6, ncols=1 + len(scores) // 41, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(path, dpi=120)


def varied(runs: Sequence[Curves]) -> list[str]:
    """The swept settings that have more than one value among runs."""
    names = dict.fromkeys(name for run in runs for name in run.values)
    return [name for name in names if len({str(run.values.get(name)) for run in runs}) > 1]


def _returns(axes: Any, runs: Sequence[Curves], title: str) -> None:
    if len(runs) > 10:
        _crowd(axes, runs)
    else:
        for number, run in enumerate(runs):
            whom = "those that run" if run.lineage and run.lineage.resting.any() else run.returns.shape[1]
            _band(axes, run, "eval/return_mean", f"C{number}", f"{run.label}, IQM of {whom}")
            if run.lineage:
                continue
            for (what, lost), marker in zip(run.lost.items(), "x+", strict=True):
                for count, curve in enumerate(curves := run.returns.T[lost]):
                    last = np.flatnonzero(np.isfinite(curve))[-1:]
                    label = None if count else f"{len(curves)} {what}"
                    axes.plot(run.env_steps[last], curve[last], marker, color=f"C{number}", label=label)
    if all(run.references == runs[0].references for run in runs):
        for (name, level), style in zip(runs[0].references.items(), (":", "--"), strict=False):
            axes.axhline(level, color="0.4", linestyle=style, linewidth=1, label=f"{name}, {level:g}")
    _finish(axes, "return of the noiseless policy", title)


def _crowd(axes: Any, runs: Sequence[Curves]) -> None:
    """More runs than can be told apart: the IQM of each, coloured by how it ends."""
    middles = [interquartile_mean(run.returns) for run in runs]
    ranks = np.argsort(np.argsort([middle[-1] for middle in middles]))
    for run, middle, rank in zip(runs, middles, ranks, strict=True):
        label = {0: "the worst at the end", len(runs) - 1: "the best at the end"}.get(int(rank))
        colour = colormaps["viridis"](rank / (len(runs) - 1))
        shown = np.where(np.isfinite(middle), middle, np.nan)
        axes.plot(run.env_steps, shown, color=colour, linewidth=1, label=label)


def _promises(axes: Any, runs: Sequence[Curves]) -> None:
    for number, run in enumerate(runs):
        colour = f"C{number % 10}"
        # One run can show its two curves in two colours; several need theirs to tell the runs apart.
        prefix, outcome_colour = ("", "C1") if len(runs) == 1 else (f"{run.label}: ", colour)
        _band(axes, run, "eval/q_start_mean", colour, f"{prefix}promised, Q(s0, mu(s0))")
        _band(axes, run, "eval/discounted_return_mean", outcome_colour, f"{prefix}discounted return", dashed=True)
    _finish(axes, "discounted return from the start", "Promise and outcome")


def _finish(axes: Any, ylabel: str, title: str) -> None:
    axes.set(xlabel="env steps per member", ylabel=ylabel, title=title)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _selected(axes: Any, run: Curves, name: str, colour: str, label: str, dashed: bool = False) -> None:
    """Members as long as they run, and the IQM of those that do; they are no independent samples."""
    assert run.lineage
    curves, style = run.metrics[name], "--" if dashed else "-"
    shown = np.where(run.lineage.resting | ~np.isfinite(curves), np.nan, curves)
    axes.plot(run.env_steps, shown, color=colour, alpha=0.35, linewidth=0.6, linestyle=style)
    middle = np.array(
        [float(interquartile_mean(row[~rests])) for row, rests in zip(curves, run.lineage.resting, strict=True)]
    )
    shown = np.where(np.isfinite(middle), middle, np.nan)
    axes.plot(run.env_steps, shown, color=colour, linewidth=1.8, linestyle=style, label=label)


def _lineage(axes: Any, run: Curves, name: str) -> None:
    """A setting of each member over time: dotted where it went on as another, ending where it rests; the ancestors of
    the best at the end are thick."""
    assert run.lineage
    parents, numbers = run.lineage.parents, run.lineage.numbers[name]
    ranks = np.argsort(np.argsort(worst_if_not_finite(run.returns[-1])))
    colours = colormaps["viridis"](ranks / max(len(ranks) - 1, 1))
    ancestor, lines = _best(run), []
    for epoch in range(len(parents) - 1, 0, -1):
        for member in np.flatnonzero(~run.lineage.resting[epoch]):
            parent = int(parents[epoch, member])
            ends = (
                (run.env_steps[epoch - 1], numbers[epoch - 1, parent]),
                (run.env_steps[epoch], numbers[epoch, member]),
            )
            lines.append((ends, colours[member], "-" if parent == member else ":", 2.6 if member == ancestor else 0.9))
        ancestor = int(parents[epoch, ancestor])
    segments, shades, styles, widths = zip(*lines, strict=True) if lines else ((), (), (), ())
    axes.add_collection(LineCollection(segments, colors=shades, linestyles=styles, linewidths=widths))
    axes.autoscale_view()
    found = numbers[np.isfinite(numbers)]
    if found.size and found.min() > 0 and found.max() >= 8 * found.min():
        axes.set_yscale("log")
    axes.set(xlabel="env steps per member", ylabel=name, title="Lineage: thick leads to the best, dotted is taken over")
    axes.grid(alpha=0.25)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _sensitivity(axes: Any, runs: Sequence[Curves], name: str, what: str = "final return") -> None:
    """The final return against one setting, whatever the others are, a line for each sweep: the IQM and its 95 %
    interval."""
    values = _ticks(runs, name)
    places = dict(zip(map(str, values), _scale(axes, values), strict=True))
    for number, source in enumerate(dict.fromkeys(run.source for run in runs)):
        own = [run for run in runs if run.source == source]
        _line(axes, own, name, {str(value): places[str(value)] for value in _ticks(own, name)}, number)
    axes.set(xlabel=name, ylabel=what, title=f"Sensitivity to {name}")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)


def _line(axes: Any, runs: Sequence[Curves], name: str, places: Mapping[str, float], number: int) -> None:
    """The final return of one sweep at these places of a setting's values."""
    # Drawn anew within each variant: the other settings differ, but not by chance.
    strata = [[run.returns[-1] for run in runs if str(run.values.get(name)) == value] for value in places]
    bounds = np.array([stratified_interval(pooled_mean, variants) for variants in strata]).T
    pooled = [np.concatenate(variants) for variants in strata]
    middle = np.array([interquartile_mean(returns) for returns in pooled])
    colour, prefix = f"C{number % 10}", f"{runs[0].source}: " if runs[0].source else ""
    for (value, place), returns in zip(places.items(), pooled, strict=True):
        axes.plot([place] * len(returns), np.where(np.isfinite(returns), returns, np.nan), ".", color=colour, alpha=0.3)
        losses = Counter[str]()
        for run in runs:
            if str(run.values.get(name)) == value:
                losses.update({what: int(lost.sum()) for what, lost in run.lost.items()})
        if text := ", ".join(f"{count} {what}" for what, count in losses.items() if count):
            where = (place, 0.02 + 0.05 * number)
            axes.annotate(text, where, xycoords=("data", "axes fraction"), fontsize=7, ha="center")
    low, high, middle = (np.where(np.isfinite(curve), curve, np.nan) for curve in (*bounds, middle))
    axes.fill_between([*places.values()], low, high, color=colour, alpha=0.18, linewidth=0)
    counts = " or ".join(map(str, sorted({*map(len, pooled)})))
    axes.plot([*places.values()], middle, "o-", color=colour, label=f"{prefix}IQM of {counts} members")


def _map(axes: Any, runs: Sequence[Curves], across: str, up: str, what: str) -> None:
    """The IQM of the final return of one sweep over two settings."""
    columns, rows = _ticks(runs, across), _ticks(runs, up)
    grid = np.full((len(rows), len(columns)), np.nan)
    for (j, row), (i, column) in itertools.product(enumerate(rows), enumerate(columns)):
        found = [run.returns[-1] for run in runs if (run.values[across], run.values[up]) == (column, row)]
        if found:
            grid[j, i] = interquartile_mean(np.concatenate(found))
    shown = np.where(np.isfinite(grid), grid, np.nan)
    picture = axes.imshow(shown, origin="lower", aspect="auto", cmap="viridis")
    if grid.size <= 64:
        middle = np.nanmean([np.nanmin(shown), np.nanmax(shown)]) if np.isfinite(shown).any() else 0.0
        for (j, i), value in np.ndenumerate(grid):
            text = "" if np.isnan(value) else f"{value:.4g}" if np.isfinite(value) else "not finite"
            axes.text(i, j, text, ha="center", va="center", fontsize=8, color="k" if shown[j, i] > middle else "w")
    axes.set_xticks(range(len(columns)), map(_shown, columns))
    axes.set_yticks(range(len(rows)), map(_shown, rows))
    suffix = f" ({runs[0].source})" if runs[0].source else ""
    axes.set(xlabel=across, ylabel=up, title=f"{what.capitalize()}, IQM{suffix}")
    axes.figure.colorbar(picture, ax=axes)


def _ticks(runs: Sequence[Curves], name: str) -> list[Any]:
    """The values that a setting has among runs, numbers in their order."""
    values = list({str(run.values.get(name)): run.values.get(name) for run in runs}.values())
    return sorted(values) if all(isinstance(value, int | float) for value in values) else values


def _scale(axes: Any, values: Sequence[Any]) -> Sequence[float]:
    """Where values stand from left to right: numbers by their size, or its logarithm, others side by side."""
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and np.isfinite(v) for v in values):
        axes.set_xticks(range(len(values)), map(_shown, values))
        return range(len(values))
    low, high = min(values), max(values)
    if low > 0 and high >= 8 * low:
        margin = (high / low) ** 0.05
        axes.set(xscale="log", xlim=(low / margin, high * margin))
    else:
        margin = 0.05 * (high - low)
        # Said, since where all members of a value diverged there is no point that would say it.
        axes.set_xlim(low - margin, high + margin)
    return values


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _band(axes: Any, run: Curves, name: str, colour: str, label: str, dashed: bool = False) -> None:
    """Members as thin lines, their IQM as a thick one with its 95 % interval."""
    if run.lineage:
        _selected(axes, run, name, colour, label, dashed)
        return
    curves = run.metrics[name]
    style = "--" if dashed else "-"
    middle = interquartile_mean(curves)
    finite = np.isfinite(middle)
    axes.plot(run.env_steps, curves, color=colour, alpha=0.25, linewidth=0.6, linestyle=style)
    axes.plot(run.env_steps[finite], middle[finite], color=colour, linewidth=1.8, linestyle=style, label=label)
    if curves.shape[1] > 1:
        low, high = confidence_interval(curves)
        axes.fill_between(run.env_steps, low, high, where=np.isfinite(low), color=colour, alpha=0.18, linewidth=0)
