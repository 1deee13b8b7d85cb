"""Learning curves, and how results depend on what is swept, from the metrics of runs."""

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from jaxddpg.report.curves import Curves, best_member, of_common_length, varied
from jaxddpg.statistics import (
    confidence_interval,
    interquartile_mean,
    performance_profile,
    pooled_mean,
    stratified_interval,
    worst_if_not_finite,
)

MOST_COLORS = 10
"""Of more runs than this, colors show the order, and only the best and the worst are named."""


def plot(runs: Sequence[Curves], path: Path) -> None:
    """Writes a figure of runs, with panels for each environment.

    The first panel shows the returns. If settings are swept, others show how the final return of each sweep depends on
    each setting and, of two, on both; if members were selected, how each setting changed and which member continued
    from which; otherwise a second one shows the critic's prediction of the return at the start beside the actual one.
    """
    panels: list[Callable[[Any], None]] = []
    environments = dict.fromkeys(run.environment for run in runs)
    for environment in environments:
        own = _panels([run for run in runs if run.environment == environment], len(environments) > 1)
        panels += own + [lambda axes: axes.remove()] * (len(own) % 2)
    figure = Figure(figsize=(13, 2.3 * len(panels)), layout="constrained")
    for axes, draw in zip(figure.subplots(len(panels) // 2, 2).flat, panels, strict=True):
        draw(axes)
    figure.supxlabel(_caption(runs), fontsize=8)
    figure.savefig(path, dpi=120)


def _caption(runs: Sequence[Curves]) -> str:
    """What lines, points and bands mean."""
    parts = []
    if any(not run.lineage for run in runs):
        parts.append("Lines: IQM of the seeds; thin lines and points: single seeds; bands: 95% bootstrap interval.")
    if any(run.lineage for run in runs):
        parts.append("With selection, thin lines: members until they are stopped; thick lines: IQM of the active ones.")
    return " ".join(parts)


def _panels(runs: Sequence[Curves], titled: bool) -> list[Callable[[Any], None]]:
    """The functions that draw the panels of runs in one environment, whose name is in the title if `titled`."""
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
    return panels if len(panels) > 1 else [*panels, functools.partial(_value_calibration, runs=runs)]


def plot_profiles(scores: Mapping[str, Sequence[np.ndarray]], what: str, path: Path) -> None:
    """Writes the performance profiles of methods: the share of seeds above each score.

    Args:
        scores: of each method, strata [M]; of at most `MOST_COLORS` methods, profiles have 95% bands.
        what: the name of the score.
    """
    few = len(scores) <= MOST_COLORS
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots()
    everything = np.concatenate([values for strata in scores.values() for values in strata])
    everything = everything[np.isfinite(everything)]
    low, high = (everything.min(), everything.max()) if everything.size else (0.0, 1.0)
    margin = 0.05 * (high - low) or 1.0
    thresholds = np.linspace(low - margin, high + margin, 200)
    for number, (method, strata) in enumerate(scores.items()):
        profile = functools.partial(performance_profile, thresholds=thresholds)
        color = f"C{number}" if few else colormaps["viridis"](number / len(scores))
        axes.plot(thresholds, profile(strata), color=color, label=method)
        if few:
            bounds = stratified_interval(profile, strata, resamples=500)
            axes.fill_between(thresholds, *bounds, color=color, alpha=0.15, linewidth=0)
    axes.set(xlabel=what, ylabel="share of seeds above", ylim=(-0.03, 1.03))
    if few:
        axes.set_title("Bands: 95% bootstrap interval", fontsize=8)
    axes.grid(alpha=0.25)
    _legend(axes, fontsize=8 if few else 6, ncols=1 + len(scores) // 41)
    figure.savefig(path, dpi=120)


def _legend(axes: Any, fontsize: float = 7, ncols: int = 1) -> None:
    """To the right of the axes, where it hides no curve."""
    place = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0), "borderaxespad": 0.0}
    axes.legend(**place, fontsize=fontsize, ncols=ncols, frameon=False)


def _returns(axes: Any, runs: Sequence[Curves], title: str) -> None:
    if len(runs) > MOST_COLORS:
        _many_runs(axes, runs)
    else:
        for number, run in enumerate(runs):
            _band(axes, run, "eval/return_mean", f"C{number}", f"{run.label}\n({_size(run)})")
            if not run.lineage:
                _mark_lost(axes, run, f"C{number}")
    if all(run.references == runs[0].references for run in runs):
        for (name, level), style in zip(runs[0].references.items(), (":", "--"), strict=False):
            axes.axhline(level, color="0.4", linestyle=style, linewidth=1, label=f"{name}, {level:g}")
    _finish(axes, "return of the deterministic policy", title)


def _size(run: Curves) -> str:
    count = run.returns.shape[1]
    if run.lineage:
        return "active members" if run.lineage.stopped.any() else f"{count} members"
    return f"{count} seed{'s' * (count > 1)}"


def _mark_lost(axes: Any, run: Curves, color: str) -> None:
    """Marks where seeds without a final return were last evaluated."""
    for (what, lost), marker in zip(run.lost.items(), "x+", strict=True):
        for count, curve in enumerate(curves := run.returns.T[lost]):
            last = np.flatnonzero(np.isfinite(curve))[-1:]
            label = None if count else f"{len(curves)} {what}"
            axes.plot(run.env_steps[last], curve[last], marker, color=color, label=label)


def _many_runs(axes: Any, runs: Sequence[Curves]) -> None:
    """The IQM of each of many runs, colored by the rank of its final value."""
    middles = [interquartile_mean(run.returns) for run in runs]
    ranks = np.argsort(np.argsort([middle[-1] for middle in middles]))
    for run, middle, rank in zip(runs, middles, ranks, strict=True):
        extreme = {0: "lowest final return:\n", len(runs) - 1: "highest final return:\n"}.get(int(rank))
        color = colormaps["viridis"](rank / (len(runs) - 1))
        shown = np.where(np.isfinite(middle), middle, np.nan)
        axes.plot(run.env_steps, shown, color=color, linewidth=1, label=extreme and f"{extreme}{run.label}")


def _value_calibration(axes: Any, runs: Sequence[Curves]) -> None:
    for number, run in enumerate(runs):
        color = f"C{number % 10}"
        # The two curves of a single run have two colors; of several, each run has one.
        prefix, actual_color = ("", "C1") if len(runs) == 1 else (f"{run.label},\n", color)
        _band(axes, run, "eval/q_start_mean", color, f"{prefix}predicted, Q(s0, mu(s0))")
        _band(axes, run, "eval/discounted_return_mean", actual_color, f"{prefix}actual", dashed=True)
    _finish(axes, "discounted return from the start", "Predicted and actual return")


def _finish(axes: Any, ylabel: str, title: str) -> None:
    axes.set(xlabel="env steps per member", ylabel=ylabel, title=title)
    axes.grid(alpha=0.25)
    _legend(axes)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _selected(axes: Any, run: Curves, name: str, color: str, label: str, dashed: bool = False) -> None:
    """Members until they are stopped, and the IQM of the active ones, which are no independent samples."""
    assert run.lineage
    curves, style = run.metrics[name], "--" if dashed else "-"
    shown = np.where(run.lineage.stopped | ~np.isfinite(curves), np.nan, curves)
    axes.plot(run.env_steps, shown, color=color, alpha=0.35, linewidth=0.6, linestyle=style)
    middle = np.array(
        [float(interquartile_mean(row[~stopped])) for row, stopped in zip(curves, run.lineage.stopped, strict=True)]
    )
    shown = np.where(np.isfinite(middle), middle, np.nan)
    axes.plot(run.env_steps, shown, color=color, linewidth=1.8, linestyle=style, label=label)


def _lineage(axes: Any, run: Curves, name: str) -> None:
    """A setting of each member over time, until it is stopped: dotted where it continued from another member, thick for
    the ancestors of the best at the end, colored by the rank of the final return."""
    assert run.lineage
    parents, numbers = run.lineage.parents, run.lineage.numbers[name]
    ranks = np.argsort(np.argsort(worst_if_not_finite(run.returns[-1])))
    colors = colormaps["viridis"](ranks / max(len(ranks) - 1, 1))
    ancestor, lines = best_member(run), []
    for epoch in range(len(parents) - 1, 0, -1):
        for member in np.flatnonzero(~run.lineage.stopped[epoch]):
            parent = int(parents[epoch, member])
            ends = (
                (run.env_steps[epoch - 1], numbers[epoch - 1, parent]),
                (run.env_steps[epoch], numbers[epoch, member]),
            )
            lines.append((ends, colors[member], "-" if parent == member else ":", 2.6 if member == ancestor else 0.9))
        ancestor = int(parents[epoch, ancestor])
    segments, shades, styles, widths = zip(*lines, strict=True) if lines else ((), (), (), ())
    axes.add_collection(LineCollection(segments, colors=shades, linestyles=styles, linewidths=widths))
    axes.autoscale_view()
    found = numbers[np.isfinite(numbers)]
    if found.size and found.min() > 0 and found.max() >= 8 * found.min():
        axes.set_yscale("log")
    axes.set(xlabel="env steps per member", ylabel=name, title="Lineage (thick: ancestors of the best, dotted: copied)")
    axes.grid(alpha=0.25)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _sensitivity(axes: Any, runs: Sequence[Curves], name: str, what: str = "final return") -> None:
    """The final return against one setting, whatever the others are, a line for each sweep: the IQM and its 95%
    interval."""
    values = _ticks(runs, name)
    places = dict(zip(map(str, values), _scale(axes, values), strict=True))
    for number, source in enumerate(dict.fromkeys(run.source for run in runs)):
        own = [run for run in runs if run.source == source]
        _line(axes, own, name, {str(value): places[str(value)] for value in _ticks(own, name)}, number)
    axes.set(xlabel=name, ylabel=what, title=f"Sensitivity to {name}")
    axes.grid(alpha=0.25)
    _legend(axes)


def _line(axes: Any, runs: Sequence[Curves], name: str, places: Mapping[str, float], number: int) -> None:
    """The final return of one sweep at these places of a setting's values."""
    # Resampled within each variant, since the other settings do not differ by chance.
    strata = [[run.returns[-1] for run in runs if str(run.values.get(name)) == value] for value in places]
    bounds = np.array([stratified_interval(pooled_mean, variants) for variants in strata]).T
    pooled = [np.concatenate(variants) for variants in strata]
    middle = np.array([interquartile_mean(returns) for returns in pooled])
    color, prefix = f"C{number % 10}", f"{runs[0].source}: " if runs[0].source else ""
    for (value, place), returns in zip(places.items(), pooled, strict=True):
        axes.plot([place] * len(returns), np.where(np.isfinite(returns), returns, np.nan), ".", color=color, alpha=0.3)
        losses = Counter[str]()
        for run in runs:
            if str(run.values.get(name)) == value:
                losses.update({what: int(lost.sum()) for what, lost in run.lost.items()})
        if text := ", ".join(f"{count} {what}" for what, count in losses.items() if count):
            where = (place, 0.02 + 0.05 * number)
            axes.annotate(text, where, xycoords=("data", "axes fraction"), fontsize=7, ha="center")
    low, high, middle = (np.where(np.isfinite(curve), curve, np.nan) for curve in (*bounds, middle))
    axes.fill_between([*places.values()], low, high, color=color, alpha=0.18, linewidth=0)
    counts = " or ".join(map(str, sorted({*map(len, pooled)})))
    axes.plot([*places.values()], middle, "o-", color=color, label=f"{prefix}{counts} seeds per value")


def _map(axes: Any, runs: Sequence[Curves], across: str, up: str, what: str) -> None:
    """The IQM of the final return of one sweep over two settings."""
    columns, rows = _ticks(runs, across), _ticks(runs, up)
    grid = np.full((len(rows), len(columns)), np.nan)
    for (j, row), (i, column) in itertools.product(enumerate(rows), enumerate(columns)):
        found = [run.returns[-1] for run in runs if (run.values[across], run.values[up]) == (column, row)]
        if found:
            grid[j, i] = interquartile_mean(np.concatenate(found))
    shown = np.where(np.isfinite(grid), grid, np.nan)
    image = axes.imshow(shown, origin="lower", aspect="auto", cmap="viridis")
    if grid.size <= 64:
        middle = np.nanmean([np.nanmin(shown), np.nanmax(shown)]) if np.isfinite(shown).any() else 0.0
        for (j, i), value in np.ndenumerate(grid):
            text = "" if np.isnan(value) else f"{value:.4g}" if np.isfinite(value) else "not finite"
            axes.text(i, j, text, ha="center", va="center", fontsize=8, color="k" if shown[j, i] > middle else "w")
    else:
        axes.figure.colorbar(image, ax=axes)
    axes.set_xticks(range(len(columns)), map(_shown, columns))
    axes.set_yticks(range(len(rows)), map(_shown, rows))
    suffix = f" ({runs[0].source})" if runs[0].source else ""
    axes.set(xlabel=across, ylabel=up, title=f"{what.capitalize()}, IQM{suffix}")


def _ticks(runs: Sequence[Curves], name: str) -> list[Any]:
    """The values that a setting has among runs, numbers in their order."""
    values = list({str(run.values.get(name)): run.values.get(name) for run in runs}.values())
    return sorted(values) if all(isinstance(value, int | float) for value in values) else values


def _scale(axes: Any, values: Sequence[Any]) -> Sequence[float]:
    """The positions of values along the x axis: numbers by their size, or its logarithm, others side by side."""
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and np.isfinite(v) for v in values):
        axes.set_xticks(range(len(values)), map(_shown, values))
        return range(len(values))
    low, high = min(values), max(values)
    if low > 0 and high >= 8 * low:
        margin = (high / low) ** 0.05
        axes.set(xscale="log", xlim=(low / margin, high * margin))
    else:
        margin = 0.05 * (high - low)
        # Set explicitly, because a value of which all members diverged has no point.
        axes.set_xlim(low - margin, high + margin)
    return values


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _band(axes: Any, run: Curves, name: str, color: str, label: str, dashed: bool = False) -> None:
    """Members as thin lines, their IQM as a thick one with its 95% interval."""
    if run.lineage:
        _selected(axes, run, name, color, label, dashed)
        return
    curves = run.metrics[name]
    style = "--" if dashed else "-"
    middle = interquartile_mean(curves)
    finite = np.isfinite(middle)
    axes.plot(run.env_steps, curves, color=color, alpha=0.25, linewidth=0.6, linestyle=style)
    axes.plot(run.env_steps[finite], middle[finite], color=color, linewidth=1.8, linestyle=style, label=label)
    if curves.shape[1] > 1:
        low, high = confidence_interval(curves)
        axes.fill_between(run.env_steps, low, high, where=np.isfinite(low), color=color, alpha=0.18, linewidth=0)
