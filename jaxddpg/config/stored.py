"""Experiments in the directories of runs and sweeps, and which of their settings may change there. Needs no JAX."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxddpg.config.load import read
from jaxddpg.config.reader import ConfigError, flat, text
from jaxddpg.config.sweep import Plan, RunPlan
from jaxddpg.settings import Experiment

SWEEP = "sweep.yaml"
"""In the directory of a sweep of several runs, each of which has a directory below it."""
RECORDS = (
    "config.yaml",
    SWEEP,
    "metrics.jsonl",
    "summary.json",
    "resumptions.jsonl",
    "checkpoints",
    "tensorboard",
    "wandb_id.txt",
    ".lock",
)
"""What a run has written in its directory, or a sweep, that no other output may replace."""
MUTABLE_ON_RESUME = (
    "training.num_epochs",
    "population.placement",
    "population.on_divergence",
    "checkpoint.",
    "reporting.",
)
"""Settings that do not affect learning (placement only up to rounding)."""


def read_run(directory: Path, overrides: Mapping[str, Any] | None = None) -> RunPlan:
    """The run of a directory."""
    if (directory / SWEEP).is_file():
        raise ConfigError([f"{directory} is a sweep of several runs; choose one of its subdirectories"])
    if not (directory / "config.yaml").is_file():
        why = "there is no config.yaml in it" if directory.exists() else "there is no such directory"
        raise ConfigError([f"{directory} is not a run directory: {why}"])
    return _read(directory / "config.yaml", overrides).run()


def read_run_or_sweep(directory: Path, overrides: Mapping[str, Any] | None = None) -> Plan:
    """The experiment of the directory of a run, or of a sweep of several, with its runs."""
    if (directory / SWEEP).is_file():
        return _read(directory / SWEEP, overrides)
    run = read_run(directory, overrides)
    return Plan(run.experiment, [run])


def _read(path: Path, overrides: Mapping[str, Any] | None) -> Plan:
    """As `read`, of what a run wrote, which an empty file is not, although it is valid."""
    if not path.stat().st_size:
        raise ConfigError([f"{path} is empty, so it is not what the run wrote; restore it"])
    return read(path, overrides)


def read_changed(directory: Path, overrides: Mapping[str, Any]) -> tuple[Plan, dict[str, list[Any]]]:
    """The experiment of a run or a sweep with changes, and the settings that differ with both values, as in YAML.

    Raises:
        ConfigError: a change is invalid, or would alter what has been learned.
    """
    before, after = read_run_or_sweep(directory).experiment, read_run_or_sweep(directory, overrides)
    check_unaltered(fixed_settings(before), after.experiment)
    old, new = all_settings(before), all_settings(after.experiment)
    return after, {path: [old.get(path), value] for path, value in new.items() if old.get(path) != value}


def mutable_settings(experiment: Experiment) -> dict[str, Any]:
    """The settings that do not alter what is learned, by dotted path, as YAML writes them."""
    return {path: value for path, value in flat(experiment) if path.startswith(_mutable(experiment))}


def fixed_settings(experiment: Experiment) -> dict[str, Any]:
    """The settings that alter what is learned, by dotted path, as YAML writes them."""
    return {path: value for path, value in flat(experiment) if not path.startswith(_mutable(experiment))}


def all_settings(experiment: Experiment) -> dict[str, Any]:
    """All settings, by dotted path, as YAML writes them."""
    return dict(flat(experiment))


def _mutable(experiment: Experiment) -> tuple[str, ...]:
    """With selection, rounding can change which members are selected, so placement is fixed."""
    selects = experiment.population.selects
    return tuple(path for path in MUTABLE_ON_RESUME if not (selects and path == "population.placement"))


def check_unaltered(before: Mapping[str, Any], experiment: Experiment) -> None:
    """ConfigError where the fixed settings of an experiment are not those `before`."""
    after = fixed_settings(experiment)
    errors = [
        f"{path} is {text(after.get(path))}, but this run was trained with {text(old)}, which cannot be changed; start "
        "a new run"
        for path, old in before.items()
        if after.get(path) != old
    ]
    if errors:
        raise ConfigError(errors)


def check_output(path: Path) -> None:
    """Raises ConfigError if a file cannot be written or would replace what a run is resumed from; called before long
    computations. Leaves no file behind."""
    file = path.resolve()  # what a link leads to, which stays
    for place in file.parents:
        is_run = any((place / name).is_file() for name in ("config.yaml", SWEEP))
        if is_run and file.relative_to(place).parts[0] in RECORDS:
            raise ConfigError([f"--output {path} would replace a file of the run in {place}; choose another"])
    existed = file.exists()
    try:
        file.open("a").close()
    except OSError as error:
        raise ConfigError([f"--output {path} cannot be written: {error.strerror}; choose another"]) from error
    if not existed:
        file.unlink()
