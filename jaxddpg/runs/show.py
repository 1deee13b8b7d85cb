"""Figures of runs and reports on them, from what stands in their directories."""

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from jaxddpg import config, settings
from jaxddpg.config import ConfigError, MemberPlan, Plan, RunPlan
from jaxddpg.envs.registry import references
from jaxddpg.report import figures, page
from jaxddpg.report.curves import Curves, by_epoch, lineage, unmeasured
from jaxddpg.report.rows import METRICS, Row, read_rows
from jaxddpg.runs import summary


def plot(directories: str | Path | Sequence[str | Path], path: str | Path) -> None:
    """Draws the learning curves of one or several runs into one figure.

    Raises:
        ConfigError: a directory holds no run with a complete epoch, or the figure cannot be written.
    """
    path, places = Path(path), _places(directories)
    if path.is_dir() or not path.suffix:
        raise ConfigError([f"--output {path} does not name an image file; use a name such as curves.png"])
    config.check_output(path)
    runs = _all_curves(_plans(places), named=len(places) > 1)
    try:
        figures.plot(runs, path)
    except (OSError, ValueError) as error:
        raise ConfigError([f"--output {path} cannot be written: {error}"]) from error


def write_report(
    directories: str | Path | Sequence[str | Path], path: str | Path, command: str = ""
) -> dict[str, list[Row]]:
    """Writes a report on runs and sweeps into a directory: `report.md`, figures and `returns.csv` with every seed.

    Args:
        command: what made the report, to be stated in it.

    Returns:
        The rows of its tables of final returns, by environment.

    Raises:
        ConfigError: a directory holds no run with a complete epoch, or the report cannot be written.
    """
    path, places = Path(path), _places(directories)
    if path.exists() and not path.is_dir():
        raise ConfigError([f"--output {path} is a file; name a directory"])
    if other := page.others(path):
        raise ConfigError([f"--output {path} has a {other} that is no report of jaxddpg; choose another directory"])
    plans = _plans(places)
    runs, sources, unfinished = _all_curves(plans, named=True), [], []
    for place, plan in plans.items():
        how = "sweep" if plan.experiment.population.sweep else "train"
        file = place / (config.SWEEP if (place / config.SWEEP).exists() else "config.yaml")
        for run in plan.runs:
            rows = complete_rows(place / run.name, run)
            epoch, last = rows[-1]["epoch"] if rows else None, run.experiment.training.num_epochs
            if epoch != last:
                where = "not begun" if epoch is None else f"epoch {epoch} of {last}"
                unfinished.append(f"{place / run.name} ({where})")
            found = summary.read(place / run.name / "summary.json") or {}
            sources.append(page.Source(f"{place / run.name}", config.command(how, file), found))
    if unfinished:
        warnings.warn(f"unfinished runs, whose results are not final: {', '.join(unfinished)}", stacklevel=2)
    for environment in dict.fromkeys(run.environment for run in runs):
        if len({run.env_steps[-1] for run in runs if run.environment == environment}) > 1:
            warnings.warn(
                f"runs of {environment} have different lengths and are compared at that of the shortest; "
                f"{path / page.PAGE} says where",
                stacklevel=2,
            )
    try:
        return page.write(runs, sources, command, path, unfinished)
    except (OSError, ValueError) as error:
        raise ConfigError([f"--output {path} cannot be written: {error}"]) from error


def _places(directories: str | Path | Sequence[str | Path]) -> list[Path]:
    """Directories of runs, each once."""
    several = [directories] if isinstance(directories, str | Path) else directories
    places = [Path(directory) for directory in several]
    counted = Counter(map(os.path.realpath, places))
    if twice := [place for place in places if counted[os.path.realpath(place)] > 1]:
        raise ConfigError([f"{twice[-1]} is given twice; name each run once"])
    return places


def _plans(directories: Sequence[Path]) -> dict[Path, Plan]:
    """What stands in the directories of runs and sweeps."""
    return {directory: config.read_run_or_sweep(directory) for directory in directories}


def _all_curves(plans: Mapping[Path, Plan], named: bool) -> list[Curves]:
    """The curves of runs and sweeps, by their directories, each with what it has of all that is swept in any of them;
    `named` says whether they bear the names of their directories."""
    paths = dict.fromkeys(path for plan in plans.values() for path in plan.experiment.population.sweep)
    runs = [curves for directory, plan in plans.items() for curves in _curves(directory, plan, [*paths])]
    sources = dict[str, set[str]]()
    for run in runs:
        sources.setdefault(run.environment, set()).add(run.source)
    found = []
    for run in runs:
        source = _ending(run.source, sources[run.environment]) if named else ""
        label = ": ".join(filter(None, (source, run.label))) or run.environment
        found.append(run._replace(source=source, label=label))
    return found


def _ending(path: str, paths: Iterable[str]) -> str:
    """The shortest end of a path that none of the others has."""
    parts = Path(path).parts
    for count in range(1, len(parts)):
        if sum(Path(other).parts[-count:] == parts[-count:] for other in paths) == 1:
            return str(Path(*parts[-count:]))
    return path


def _curves(directory: Path, plan: Plan, paths: Sequence[str]) -> list[Curves]:
    """The curves of a run or a sweep, of each variant by itself, with its values of settings; the label says what is
    swept, the source is the path of the directory."""
    found = list[Curves]()
    names = config.short_names(plan.experiment.population.sweep)
    for run in plan.runs:
        rows = complete_rows(directory / run.name, run)
        try:
            env_steps, metrics = by_epoch(rows)
        except (ValueError, KeyError, TypeError) as error:
            if len(plan.runs) > 1:
                continue  # its first epoch has not ended
            lost = "" if (directory / run.name / METRICS).exists() else f"{METRICS} is missing, or "
            raise ConfigError([f"the metrics of {directory / run.name} cannot be drawn: {lost}{error}"]) from error
        # Of members that may replace one another, none is a variant by itself.
        variants = [MemberPlan(run.experiment, 0, {})] if run.selects else run.variants
        seeds, not_finite = len(run.members) // len(variants), unmeasured(rows)
        for number, variant in enumerate(variants):
            own = slice(number * seeds, (number + 1) * seeds)
            environment = variant.settings.environment
            found.append(
                Curves(
                    label=", ".join(f"{names[path]} {config.text(value)}" for path, value in variant.swept.items()),
                    env_steps=env_steps,
                    metrics={name: curves[:, own] for name, curves in metrics.items()},
                    references={} if environment.parameters else references(environment.name),
                    values={} if run.selects else config.values_at(variant.settings, paths),
                    environment=_named(environment, names),
                    source=os.path.abspath(directory),
                    seeds=[member.seed for member in run.members[own]],
                    lineage=lineage(rows, [*names]) if run.selects else None,
                    unmeasured=not_finite[:, own],
                )
            )
    if not found:
        raise ConfigError([f"the metrics of {directory} cannot be drawn: there is no complete epoch yet"])
    return found


def complete_rows(directory: Path, run: RunPlan) -> list[Row]:
    """The rows of the epochs of a run that have ended."""
    found = read_rows(directory / METRICS)
    return found[: len(found) // len(run.members) * len(run.members)]


def _named(environment: settings.Environment, swept: Iterable[str]) -> str:
    """The name of an environment with the parameters that are given to it."""
    parameters = {name: config.text(value) for name, value in environment.parameters.items()}
    parameters |= {name: "swept" for name in parameters if f"environment.parameters.{name}" in swept}
    listed = ", ".join(f"{name} {parameters[name]}" for name in sorted(parameters))
    return f"{environment.name} ({listed})" if listed else environment.name


def draw_curves(directory: Path) -> None:
    """Draws the learning curves of a run or a sweep into its directory; warns where that is impossible."""
    try:
        plot([directory], directory / "learning_curve.png")
    except ConfigError as error:
        warnings.warn(f"{error}; `{config.command('plot', directory)}` draws it", stacklevel=2)
