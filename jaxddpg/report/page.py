"""A report on runs, as for the appendix of a paper: Markdown with tables and figures, and every seed in a CSV.

A method is the name of a run's directory and, in a sweep, the values of a variant; the same name in several
environments is the same method. An environment is its name and its parameters.
"""

import csv
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxddpg import statistics
from jaxddpg.report import figures
from jaxddpg.report.curves import Curves, chosen, of_common_length
from jaxddpg.report.rows import Row

FEW_SEEDS = 5
"""The bootstrap over fewer seeds is unreliable."""
MOST_PAIRED = 6
"""The number of methods up to which every pair is compared; the table of more would be too long to read."""
PAGE, TABLE = "report.md", "returns.csv"


class Source(NamedTuple):
    """A run that results come from."""

    directory: str
    command: str
    summary: Mapping[str, Any]
    """The content of `summary.json`; empty for a run that has not ended."""


def write(
    runs: Sequence[Curves], sources: Sequence[Source], command: str, directory: Path, unfinished: Sequence[str] = ()
) -> dict[str, list[Row]]:
    """Writes `report.md`, its figures and `returns.csv` into a directory.

    Args:
        command: the command that made the report.
        unfinished: the runs that have not reached their last epoch, each with how far they are.

    Returns:
        The rows of the tables of final returns, by environment.
    """
    directory.mkdir(parents=True, exist_ok=True)
    _write_returns(runs, directory / TABLE)
    selected = any(run.lineage for run in runs)
    environments = dict.fromkeys(run.environment for run in runs)
    parts = [
        "# Report",
        "The return of the deterministic policy at the end of training, a mean over episodes for each seed. IQM is the "
        "mean of the seeds without their lowest and highest quarter; brackets hold the 95 % bootstrap interval over "
        "seeds (Agarwal et al. 2021), stratified by environment where there are several. A seed that diverged, or "
        "whose last evaluation is not finite, counts as the worst. No seed is left out: "
        f"[{TABLE}]({TABLE}) has them all.",
    ]
    if selected:
        parts.append(
            "Where members were selected, they are no independent seeds. Only the one is shown whose last evaluation "
            "was the best, which overestimates it; `jaxddpg evaluate` measures it on new episodes."
        )
    if unfinished:
        parts.append(f"**Not finished**, so that their results are not final: {', '.join(unfinished)}.")
    compared, tables = list[Curves](), dict[str, list[Row]]()
    for number, environment in enumerate(environments):
        own = [run for run in runs if run.environment == environment]
        compared += (ends := [chosen(run) for run in of_common_length(own)])
        tables[environment] = [_final_returns(run) for run in ends]
        parts += _of_environment(
            own, ends, tables[environment], directory, "" if len(environments) == 1 else f"_{number}"
        )
    methods = dict.fromkeys(run.label for run in compared)
    shared = [method for method in methods if {r.environment for r in compared if r.label == method} == {*environments}]
    comparable = all({"random", "best known"} <= run.references.keys() for run in runs)
    if len(environments) > 1 and shared and comparable:
        scores = {method: [_normalised(run) for run in compared if run.label == method] for method in shared}
        parts += [
            "## Over all environments",
            "Returns are scaled so that the random policy has 0 and the best known return is 1.",
            *_compared(scores, "score", directory, "profile_all.png"),
        ]
    parts += ["## Sources", _table(map(_provenance, sources)), f"This page: `{command}`."]
    (directory / PAGE).write_text("\n\n".join(parts) + "\n")
    return tables


def _final_returns(run: Curves) -> Row:
    """The row of a run in the table of its environment."""
    final = np.where(np.isfinite(run.returns[-1]), run.returns[-1], -np.inf)
    return {
        "method": run.label,
        "seeds": len(final),
        "IQM [95 %]": _interval(statistics.pooled_mean, [final]),
        "median": _number(np.median(final)),
        "worst and best seed": f"{_number(final.min())} to {_number(final.max())}",
        **{what: int(lost.sum()) for what, lost in run.lost.items()},
        "env steps per seed": f"{run.env_steps[-1]:,.0f}",
    }


def _of_environment(
    whole: Sequence[Curves], runs: Sequence[Curves], rows: Sequence[Row], directory: Path, suffix: str
) -> list[str]:
    """The section on one environment, from its runs in full and as they are compared, with their final returns."""
    curves, profile = f"curves{suffix}.png", f"profile{suffix}.png"
    figures.plot([chosen(run) for run in whole], directory / curves)
    known = ", ".join(f"{name} {level:g}" for name, level in runs[0].references.items())
    return [
        f"## {runs[0].environment}",
        *([f"For comparison: {known}."] if known else []),
        *_cautions(whole, runs),
        _table(rows),
        f"![Curves]({curves})",
        *_compared({run.label: [run.returns[-1]] for run in runs}, "final return", directory, profile),
    ]


def _cautions(whole: Sequence[Curves], runs: Sequence[Curves]) -> Iterator[str]:
    """Warnings about comparisons of these runs."""
    if any(len(run.env_steps) > len(cut.env_steps) for run, cut in zip(whole, runs, strict=True)):
        yield (
            f"**Runs of different length** are compared at {max(run.env_steps[-1] for run in runs):,.0f} env steps, "
            "each by its last evaluation up to there; the curves show each run in full."
        )
    few = [run.label for run in runs if 1 < run.returns.shape[1] < FEW_SEEDS]
    if few:
        yield (
            f"**Few seeds**: {len(few)} of {len(runs)} methods have fewer than {FEW_SEEDS} seeds; their intervals are "
            "then little more than the range of the seeds."
        )


def _compared(scores: Mapping[str, Sequence[np.ndarray]], what: str, directory: Path, profile: str) -> list[str]:
    """Performance profiles and pairwise comparisons of methods, from the scores of each: a list of strata [M]."""
    parts = []
    if len(next(iter(scores.values()))) > 1:
        rows = [
            {"method": method, "IQM [95 %]": _interval(statistics.pooled_mean, own)} for method, own in scores.items()
        ]
        parts.append(_table(rows))
    figures.plot_profiles(scores, what, directory / profile)
    parts += [f"The share of seeds above each {what}:", f"![Performance profile]({profile})"]
    if 2 <= len(scores) <= MOST_PAIRED:
        rows = [
            {
                "method": one,
                "is above": other,
                "with probability [95 %]": _interval(statistics.probability_of_improvement, scores[one], scores[other]),
            }
            for one, other in itertools.combinations(scores, 2)
        ]
        parts += ["The probability that a seed of one method is above a seed of another:", _table(rows)]
    elif len(scores) > MOST_PAIRED:
        parts.append(f"Pairs are compared where there are at most {MOST_PAIRED} methods; here are {len(scores)}.")
    return parts


def _write_returns(runs: Sequence[Curves], path: Path) -> None:
    swept = list(dict.fromkeys(name for run in runs for name in (*run.values, *_last_numbers(run))))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["method", "environment", *swept, "seed", "env_steps", "final_return", "best_return", "best_env_steps"]
        )
        for run in runs:
            for member, (seed, curve) in enumerate(zip(run.seeds, run.returns.T, strict=True)):
                best = int(np.argmax(np.where(np.isfinite(curve), curve, -np.inf)))
                settings = {**run.values} | {name: last[member] for name, last in _last_numbers(run).items()}
                values = [settings.get(name, "") for name in swept]
                ends = [run.env_steps[_last_epoch(run, member)], curve[-1], curve[best], run.env_steps[best]]
                writer.writerow([run.label, run.environment, *values, seed, *ends])


def _last_epoch(run: Curves, member: int) -> int:
    """The index of the last epoch in which a member was active."""
    return -1 if run.lineage is None else int(np.flatnonzero(~run.lineage.stopped[:, member])[-1])


def _last_numbers(run: Curves) -> dict[str, np.ndarray]:
    """The swept settings [M] at the end of a run that selected its members."""
    return {name: numbers[-1] for name, numbers in run.lineage.numbers.items()} if run.lineage else {}


def _provenance(source: Source) -> dict[str, Any]:
    summary, versions = source.summary, source.summary.get("versions", {})
    names = ("jaxddpg", "jax", "flax", "optax", "gymnax")
    return {
        "run": source.directory,
        "command": f"`{source.command}`",
        "device": summary.get("device", "not finished"),
        "versions": ", ".join(f"{name} {versions[name]}" for name in names if name in versions),
        "date": summary.get("date", ""),
        "seconds": f"{summary['wall_seconds']:,.0f}" if "wall_seconds" in summary else "",
    }


def _normalised(run: Curves) -> np.ndarray:
    low, high = run.references["random"], run.references["best known"]
    return (run.returns[-1] - low) / (high - low)


def _interval(statistic: Any, *samples: Sequence[np.ndarray]) -> str:
    if all(len(values) == 1 for strata in samples for values in strata):
        return _number(statistic(*samples))  # one seed has no interval
    low, high = statistics.stratified_interval(statistic, *samples)
    return f"{_number(statistic(*samples))} [{_number(low)}, {_number(high)}]"


def _number(value: Any) -> str:
    return f"{float(value):.4g}" if np.isfinite(value) else "not finite"


def _table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Markdown of rows with the same keys."""
    rows = list(rows)
    lines = ["| " + " | ".join(rows[0]) + " |", "| " + " | ".join("---" for _ in rows[0]) + " |"]
    return "\n".join(lines + ["| " + " | ".join(f"{value}" for value in row.values()) + " |" for row in rows])
