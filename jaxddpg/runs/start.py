"""Starts and resumes runs and sweeps."""

import datetime
import json
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from jaxddpg import config, settings
from jaxddpg.config import ConfigError, Plan, RunPlan
from jaxddpg.config.build import check_member, populate
from jaxddpg.config.environment import make_environment
from jaxddpg.report.rows import METRICS
from jaxddpg.runs import backend, distributed, loggers, memory, origin, summary
from jaxddpg.runs.directory import check_free, check_shared, locked, write
from jaxddpg.runs.history import History, newest, read_agents, read_history
from jaxddpg.runs.metrics import is_over
from jaxddpg.runs.run import Options, Result, Run, readable_errors
from jaxddpg.settings import Experiment
from jaxddpg.training.population import Population


def load(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Experiment:
    """The experiment of a YAML file, with `overrides` applied, e.g. {"agent.tau": 0.01}.

    Raises:
        ConfigError: with all errors at once.
    """
    return config.read(path, overrides).experiment


def run(experiment: Experiment | Plan, directory: str | Path | None = None, **options: Any) -> Result:
    """Runs an experiment to its end.

    Args:
        directory: the run directory; None writes nothing to disk.
        options: those of `Options`: `quiet`, by default True, shows no progress; `should_stop()`, asked after each
            epoch, ends the run there, as does `on_epoch(rows, agents)` where it returns True; `profile` writes a trace
            of one second into the directory.

    Raises:
        ConfigError: a setting is invalid or the directory cannot be used (nothing is written), or there is not enough
            memory (the directory is left without results).
        RunError: the disk is full or cannot be written; the newest valid checkpoint is kept to resume from.
    """
    if directory is None and options.get("profile"):
        raise ConfigError(["profile=True requires a directory for the trace"])
    return _train(_plan(experiment).run(), None if directory is None else Path(directory), Options(**options))


def sweep(experiment: Experiment | Plan, directory: str | Path, **options: Any) -> list[Result]:
    """Runs every variant of the swept settings.

    If all swept settings are traced, this is a single run in `directory`. Otherwise there is one run per combination of
    static values; they run sequentially, each in its own subdirectory.

    Raises:
        ConfigError: as for `run`.
        RunError: as for `run`; runs that have already finished are kept.
    """
    plan, directory = _plan(experiment), Path(directory)
    if len(plan.runs) == 1:
        return [_train(plan.runs[0], directory, Options(**options))]
    with ExitStack() as stack:
        with distributed.agreeing():
            loggers.check(plan.experiment.reporting)
            if distributed.is_first():
                check_free(directory)
            for each in plan.runs:
                _populated(each)
        with distributed.agreeing():
            if distributed.is_first():
                stack.enter_context(locked(directory))
                check_free(directory)  # checked again under the lock, in case two sweeps start together
        return _train_all(plan, directory, Options(**options))


def resume(directory: str | Path, changes: Mapping[str, Any] | None = None, **options: Any) -> Result:
    """Continues a run from its newest valid checkpoint, as if it had never been interrupted.

    On the same layout of devices the result is that of an uninterrupted run to the bit. A run without a checkpoint
    starts from the beginning.

    Args:
        changes: settings by dotted path that do not alter what is learned: more epochs, reporting, checkpoints,
            placement. They are written into the run's `config.yaml` and recorded in its `resumptions.jsonl`.
        options: as for `run`.

    Raises:
        ConfigError: the directory holds no run or another process uses it, or a change would alter what is learned.
        RunError: as for `run`.
    """
    plan, changed = config.read_changed(Path(directory), changes or {})
    if (Path(directory) / config.SWEEP).is_file():
        config.read_run(Path(directory))  # which says that it is a sweep
    return _train(plan.run(), Path(directory), Options(**options), changed=changed)


def resume_sweep(directory: str | Path, changes: Mapping[str, Any] | None = None, **options: Any) -> list[Result]:
    """Continues a sweep: the run that was interrupted, and those that have not begun.

    `changes`, options and errors are as for `resume`.
    """
    directory = Path(directory)
    config.read_run_or_sweep(directory)  # otherwise taking the lock would create the directory
    backend.start()
    with ExitStack() as stack:
        with distributed.agreeing():
            if distributed.is_first():
                stack.enter_context(locked(directory))
            plan, _ = config.read_changed(directory, changes or {})

        def find_begun() -> list[str]:
            begun = [each for each in plan.runs if (directory / each.name / "config.yaml").exists()]
            for each in begun:
                newest(directory / each.name, each)  # which may refuse the changes
            return [each.name for each in begun]

        return _train_all(plan, directory, Options(**options), distributed.of_first(find_begun))


def _train_all(plan: Plan, directory: Path, options: Options, begun: Sequence[str] = ()) -> list[Result]:
    """Trains or resumes the runs of a sweep one after the other, in a directory that is locked."""
    if distributed.is_first():
        write(directory / config.SWEEP, config.dump(plan.experiment))
    results = list[Result]()
    for each in plan.runs:
        if results and any(distributed.any_has(options.should_stop())):
            break
        place, changed = directory / each.name, None
        if each.name in begun:  # what was changed since holds for it, too
            stored, changed = config.read_changed(place, config.mutable_settings(each.experiment))
            each = stored.run()._replace(position=each.position, num_runs=each.num_runs)
        results.append(_train(each, place, options, directory, changed))
    if distributed.is_first():
        from jaxddpg.runs.show import draw_curves  # as in `Run`, not at the start

        draw_curves(directory)
    return results


def _train(
    plan: RunPlan,
    directory: Path | None,
    options: Options,
    sweep: Path | None = None,
    changed: Mapping[str, Any] | None = None,
) -> Result:
    """Trains a new run or, if `changed` is given (the settings changed on resume), continues from its newest
    checkpoint. `sweep` is the directory of the sweep it belongs to, named in error messages."""
    first, resumed = distributed.is_first(), changed is not None
    with ExitStack() as stack:
        stack.enter_context(readable_errors(sweep or directory))
        with distributed.agreeing():
            loggers.check(plan.experiment.reporting)
            if directory and first:
                if resumed:
                    stack.enter_context(locked(directory))
                else:
                    check_free(directory)
            population, history = _populated(plan, directory is not None), History()
        if directory and resumed:
            check_shared(directory)
            history = read_history(directory, plan, population.version)
        for sentence in config.warnings_of(plan) if first else ():
            warnings.warn(sentence, stacklevel=3)
        if directory:
            if resumed and (finished := _finished(plan, directory, population, history)):
                return finished
            with distributed.agreeing():
                if first and not resumed:
                    stack.enter_context(locked(directory))
                    check_free(directory)  # of two runs that start together, one got it
                if first:
                    write(directory / "config.yaml", config.dump(plan.experiment))
            if not resumed:
                check_shared(directory)
            if first and resumed:
                _record_resumption(plan, directory, population, history, changed or {})
        return Run(plan, population, directory, options, history).train()


def _plan(experiment: Experiment | Plan) -> Plan:
    return experiment if isinstance(experiment, Plan) else config.validate(experiment)


def _populated(plan: RunPlan, on_disk: bool = True) -> Population:
    """Creates the population of a run; only its keys and settings are on the devices yet.

    Raises:
        ConfigError: the components do not fit together, or the members do not fit into memory.
    """
    backend.start()
    checked: list[settings.Environment] = []
    for variant in plan.variants:
        if variant.settings.environment not in checked:
            check_member(variant.settings.member())
            checked.append(variant.settings.environment)
    population = populate(plan)
    longest = max(make_environment(section).episode_length for section in checked)
    memory.check(plan, population, longest, on_disk)
    return population


def _record_resumption(
    plan: RunPlan, directory: Path, population: Population, history: History, changed: Mapping[str, Any]
) -> None:
    record = {
        "date": datetime.datetime.now().isoformat(timespec="seconds"),
        "epoch": history.epoch,
        "changes": changed,
        "versions": summary.versions(),
        "environment": origin.of(plan, population.version).environment,
    }
    with (directory / "resumptions.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")


def _finished(plan: RunPlan, directory: Path, population: Population, history: History) -> Result | None:
    """The stored result of a finished run; None if there is work left."""
    if not is_over(plan.experiment, history.rows[-len(plan.members) :]):
        return None
    path = directory / "summary.json"
    found = distributed.of_first(lambda: summary.read(path))
    if found is None or found["epochs"] != history.epoch:
        return None  # it is that of an earlier interruption
    if distributed.is_first() and len((directory / METRICS).read_bytes().splitlines()) > len(history.rows):
        with loggers.MetricsFile(directory, history.rows):
            pass  # which removes what stands after them
    return Result([*history.rows], found, read_agents(directory, population, history))
