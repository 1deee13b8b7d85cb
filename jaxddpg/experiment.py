"""A run from start to end: what it needs, its epochs, what it leaves behind."""

import datetime
import errno
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxddpg import checkpoint, config, memory, reporting, settings
from jaxddpg.analysis import plot
from jaxddpg.cohort import Cohort
from jaxddpg.composition import check_member, populate, state_like
from jaxddpg.config import ConfigError
from jaxddpg.population import Population, use_all_cores
from jaxddpg.settings import Experiment
from jaxddpg.statistics import confidence_interval, interquartile_mean
from jaxddpg.training import Health, clock_at
from jaxddpg.types import State

_IN_USE = "--run-dir {} already holds a run; name another, or none for a new one; `jaxddpg resume` goes on with a run"
_SMALLER = (
    "lower replay.capacity, population.num_seeds, evaluation.num_episodes or the hidden_sizes, and name a new --run-dir"
)


class RunError(RuntimeError):
    """A run that could not go on, in one sentence; what was saved is kept."""


class Result(NamedTuple):
    """What a run leaves behind."""

    rows: list[reporting.Row]
    """One per epoch and member, as in `metrics.jsonl`."""
    summary: dict[str, Any]
    agents: State
    """The final agent states, each leaf [M, ...]."""


def load(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Experiment:
    """The experiment of a YAML file; see `config.read`."""
    return config.read(path, overrides)


def run(
    experiment: Experiment,
    directory: str | Path | None = None,
    *,
    quiet: bool = True,
    stopping: Callable[[], bool] = lambda: False,
) -> Result:
    """Runs an experiment to its end.

    Args:
        directory: where to leave the run; None leaves nothing on disk.
        quiet: shows no progress.
        stopping: asked after each epoch whether to end the run there.

    Raises:
        ConfigError: a setting is faulty or the directory cannot be used, and nothing was written; or the memory does
            not suffice, and the directory is left without results.
        RunError: the disk is full or cannot be written; the newest sound checkpoint stays, to be resumed from.
    """
    experiment, *others = config.programs(config.checked(experiment)).values()
    if others:
        raise ConfigError(
            [f"population.sweep falls into {1 + len(others)} programs, but a run is one; `jaxddpg sweep` runs them all"]
        )
    _check_extras(experiment.reporting)
    if directory is None:
        _check_runs_here(experiment, on_disk=False)
        with _failures_told(None):
            return _run(experiment, None, quiet, stopping)
    directory = Path(directory)
    _check_directory(directory)
    _check_runs_here(experiment)
    with _claimed(directory), _failures_told(directory):
        if (directory / "config.yaml").exists():  # of two runs that start together, one got it
            raise ConfigError([_IN_USE.format(directory)])
        _write(directory / "config.yaml", config.dump(experiment))
        return _run(experiment, directory, quiet, stopping)


def sweep(
    experiment: Experiment,
    directory: str | Path,
    *,
    quiet: bool = True,
    stopping: Callable[[], bool] = lambda: False,
) -> list[Result]:
    """Runs every variant of the swept settings.

    Where all of them are traced numbers, that is one run in `directory`. Otherwise it is one run for each combination
    of the values that give the program its shape, one after the other, in directories of their own below it.

    Raises:
        ConfigError, RunError: as `run`; of several runs those that ended before are kept.
    """
    directory, programs = Path(directory), config.programs(config.checked(experiment))
    if [*programs] == [""]:
        return [run(experiment, directory, quiet=quiet, stopping=stopping)]
    _check_directory(directory)
    for program in programs.values():
        _check_runs_here(program)
    directory.mkdir(parents=True, exist_ok=True)
    _write(directory / config.SWEEP, config.dump(experiment))
    return resume_sweep(directory, quiet=quiet, stopping=stopping)


def resume_sweep(
    directory: str | Path,
    changes: Mapping[str, Any] | None = None,
    *,
    quiet: bool = True,
    stopping: Callable[[], bool] = lambda: False,
) -> list[Result]:
    """Goes on with a sweep: with the run that was interrupted, and with those that have not begun.

    `changes` and errors are as for `resume`.
    """
    directory, results = Path(directory), list[Result]()
    with _claimed(directory):
        experiment, _ = config.extended(directory, changes or {})
        programs = {directory / name: program for name, program in config.programs(experiment).items()}
        begun = [place for place in programs if (place / "config.yaml").exists()]
        for place in begun:
            _check_epochs(programs[place], _recall(place, programs[place]).epoch)
        _write(directory / config.SWEEP, config.dump(experiment))
        for place, program in programs.items():
            if results and stopping():
                break
            if place in begun:  # what was changed in the meantime holds for it too
                results.append(resume(place, config.harmless(program), quiet=quiet, stopping=stopping))
            else:
                results.append(run(program, place, quiet=quiet, stopping=stopping))
        _draw(directory)
        return results


def resume(
    directory: str | Path,
    changes: Mapping[str, Any] | None = None,
    *,
    quiet: bool = True,
    stopping: Callable[[], bool] = lambda: False,
) -> Result:
    """Goes on with a run from its newest sound checkpoint, as if it had never been interrupted.

    On the same layout of devices the result is that of an uninterrupted run to the bit. A run without a checkpoint
    starts anew.

    Args:
        changes: settings by dotted path that do not alter what is learned: more epochs, reporting, checkpoints,
            placement. They are written into the run's `config.yaml` and recorded in its `resumptions.jsonl`.
        quiet: shows no progress.
        stopping: asked after each epoch whether to end the run there.

    Raises:
        ConfigError: the directory holds no run or another process uses it, or a change would alter what is learned.
        RunError: as for `run`.
    """
    directory = Path(directory)
    config.extended(directory, changes or {})  # a fault of the input is said before anything is touched
    with _claimed(directory), _failures_told(directory):
        experiment, changed = config.extended(directory, changes or {})
        _check_extras(experiment.reporting)
        _check_runs_here(experiment)
        history = _recall(directory, experiment)
        reached = history.epoch
        _check_epochs(experiment, reached)
        _write(directory / "config.yaml", config.dump(experiment))
        record = {"date": datetime.datetime.now().isoformat(timespec="seconds"), "epoch": reached, "changes": changed}
        with (directory / "resumptions.jsonl").open("a") as file:
            file.write(json.dumps(record | {"versions": _versions()}) + "\n")
        return _run(experiment, directory, quiet, stopping, history)


def _check_epochs(experiment: Experiment, reached: int) -> None:
    asked = experiment.training.num_epochs
    if asked < reached:
        raise ConfigError([f"training.num_epochs is {asked}, but the run has reached {reached}; use more"])


class History(NamedTuple):
    """What there is of a run: its rows up to the checkpoint that it goes on from."""

    rows: Sequence[reporting.Row] = ()
    notes: Sequence[str] = ()
    """What was found on the way to it."""

    @property
    def epoch(self) -> int:
        """-1 where nothing has been done."""
        return self.rows[-1]["epoch"] if self.rows else -1


@contextmanager
def _failures_told(directory: Path | None) -> Iterator[None]:
    """Turns what memory and disk refuse into a sentence."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ConfigError([f"there is not enough memory for this experiment; {_SMALLER}"]) from error
    except OSError as error:
        reason = ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)
        remedy = ""
        if directory is not None:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            there = directory.is_dir()
            goes_on = f"{'make room, then ' * full}`jaxddpg resume {directory}` goes on"
            remedy = f"; {goes_on if there else f'{directory} is no longer there'}"
        raise RunError(f"{reason}{remedy}") from error


def _check_runs_here(experiment: Experiment, on_disk: bool = True) -> None:
    """ConfigError where the parts do not fit each other, or this machine's memory."""
    use_all_cores()
    looked_at: list[settings.Environment] = []
    for variant in config.variants(experiment):
        if variant.environment not in looked_at:
            check_member(variant.member())
            looked_at.append(variant.environment)
    count, on_cpu = experiment.population.num_members, jax.default_backend() == "cpu"
    devices, row = jax.local_device_count(), experiment.training.num_shards
    if on_cpu:
        devices = row = 1  # which share the machine's memory
    elif row > devices:
        row = 1
    sharing, free = -(-count // (devices // row)), memory.free()
    copies = 1 + (on_cpu and on_disk) + (experiment.population.selection.method != "none")
    memory.check(experiment, state_like(experiment, sharing), copies, free and free * row)


def _run(
    experiment: Experiment,
    directory: Path | None,
    quiet: bool,
    stopping: Callable[[], bool],
    history: History = History(),
) -> Result:
    """Trains from where its history ends, in a directory that is ours."""
    count = experiment.population.num_members
    title = f"{experiment.environment.name}, {count} member{'s'[: count > 1]}{f' -> {directory}' if directory else ''}"
    with ExitStack() as stack:
        display = stack.enter_context(reporting.Display(title, experiment.training.num_epochs, quiet))
        reporters: list[reporting.Reporter] = [display]
        writer: checkpoint.Writer | None = None
        for note in history.notes:
            display.note(note)
        if directory is not None:
            reporters += [stack.enter_context(reporter) for reporter in _writers(experiment, directory, history.rows)]
            origin = config.learning(experiment)
            writer = stack.enter_context(checkpoint.Writer(directory, experiment.checkpoint.keep, origin))
        population, start = populate(experiment), time.perf_counter()
        if not _over(experiment, history.rows):
            population.compile(clock_at(experiment.training, 0), bool(history.rows))
        compile_seconds = time.perf_counter() - start
        # Never given a name: where it is held, the memory of what was read from disk is not given back.
        groups = population.scatter(_saved(directory, experiment, history.epoch)) if history.rows else population.init()
        cohort = Cohort(experiment, population, groups, history.rows[-count:])
        del groups  # they are given away with each epoch
        rows, agents = _train(experiment, population, [*history.rows], cohort, reporters, writer, stopping)
        summary = _summary(experiment, rows, population) | {"compile_seconds": compile_seconds}
        if directory is not None and writer is not None:
            summary["checkpoints"] = writer.cost()
            _write(directory / "summary.json", json.dumps(reporting.plain_json(summary), indent=2) + "\n")
            _draw(directory)
    return Result(rows, summary, agents)


def _recall(directory: Path, experiment: Experiment) -> History:
    """The rows up to the newest sound checkpoint; none where the run was interrupted before its first.

    Raises:
        ConfigError: there were checkpoints, but none can be gone on from, and starting anew would lose what is sound.
    """
    count = experiment.population.num_members
    rows, found, notes = reporting.read_rows(directory / "metrics.jsonl"), checkpoint.epochs(directory), []
    places = ((row["epoch"], row["member"]) for row in rows)
    told = sum(1 for _ in takewhile(lambda pair: pair[1] == divmod(pair[0], count), enumerate(places)))
    for epoch in found:
        try:
            origin = checkpoint.origin(directory, epoch)
        except checkpoint.DamagedError as error:
            notes.append(f"{error}; an older one is looked for")
            continue
        config.check_unaltered(origin, experiment)  # its file may have been edited by hand
        if told < (epoch + 1) * count:
            notes.append(f"the metrics end before the checkpoint of epoch {epoch}; an older one is looked for")
            continue
        return History(rows[: (epoch + 1) * count], [*notes, f"going on after epoch {epoch}"])
    if found:
        remedy = f"put back what was lost, or delete {directory / checkpoint.DIRECTORY} to start anew"
        raise ConfigError([f"{directory} cannot go on: {note.split(';')[0]}; {remedy}" for note in notes])
    return History((), ["there is no checkpoint to go on from; starting anew"])


def _saved(directory: Path | None, experiment: Experiment, epoch: int) -> State:
    """The state of a checkpoint, which fits the config."""
    assert directory is not None
    try:
        return checkpoint.restore(directory, epoch, state_like(experiment))
    except ValueError as error:
        raise ConfigError([f"the checkpoints of {directory} cannot be read: {config.first_line(error)}"]) from error


def _train(
    experiment: Experiment,
    population: Population,
    history: list[reporting.Row],
    cohort: Cohort,
    reporters: list[reporting.Reporter],
    writer: checkpoint.Writer | None,
    stopping: Callable[[], bool],
) -> tuple[list[reporting.Row], State]:
    """The epochs after those of `history`, which led to `cohort`: all rows and the final agents."""
    training = experiment.training
    reached, earlier = (history[-1]["epoch"], history[-1]["wall_seconds"]) if history else (-1, 0.0)
    start = saved = time.perf_counter()

    def begin(epoch: int, before: Sequence[reporting.Row]) -> Callable[[], list[reporting.Row]]:
        """Starts the epoch that follows those rows and returns at once, with what waits for its own."""
        begun, clock = time.perf_counter(), clock_at(training, epoch)
        if writer and cohort.is_due(epoch):
            writer.wait()  # what then begins to rest is gathered anew, perhaps into what is being written
        cohort.advance(epoch, before)
        training_metrics: Callable[[], dict] = dict
        if epoch:
            cohort.groups, training_metrics = population.epoch(clock, cohort.groups, cohort.members)
        agents, health = ([getattr(group, part) for group in cohort.groups] for part in ("agent", "health"))
        evaluation_metrics = population.evaluate(clock, agents, cohort.members)

        def finish() -> list[reporting.Row]:
            metrics = {f"eval/{name}": values for name, values in evaluation_metrics().items()}
            metrics |= {f"train/{name}": values for name, values in _means(training_metrics()).items()}
            now = time.perf_counter()
            seconds, so_far = now - begun, earlier + now - start
            identities = [cohort.identities[member] for member in cohort.running]
            rows = _rows(experiment, identities, epoch, population.gather(health), metrics, seconds, so_far)
            return _with_resting(rows, before)

        return finish

    finish = None if _over(experiment, history) else begin(reached + 1, history[-experiment.population.num_members :])
    while finish:
        rows = finish()
        epoch = rows[0]["epoch"]
        last = stopping() or epoch == training.num_epochs or halted(experiment, rows)
        due = last or time.perf_counter() - saved >= experiment.checkpoint.interval_seconds
        if writer and due:
            writer.wait()  # two copies of all states are what memory was counted for
            snapshot = cohort.gather()
        try:
            # While these rows are told and kept, the next epoch computes.
            finish = None if last else begin(epoch + 1, rows)
        finally:
            history += rows
            for reporter in reporters:
                reporter.epoch(rows)
            if writer and due:
                returns = np.array([row["eval/return_mean"] for row in reporting.running(rows)])
                writer.save(epoch, snapshot, float(interquartile_mean(returns)))
                saved = time.perf_counter()
                del snapshot
    if writer:
        writer.wait()
    return history, cohort.gather(lambda state: state.agent)


def _rows(
    experiment: Experiment,
    members: Sequence[Mapping[str, Any]],
    epoch: int,
    health: Health,
    metrics: dict[str, np.ndarray],
    seconds: float,
    wall_seconds: float,
) -> list[reporting.Row]:
    """The rows of an epoch that took so many seconds, one for each of the members, from its metrics [M]."""
    training = experiment.training
    # Counted on the host in Python's integers, which do not wrap.
    env_steps = training.steps_per_epoch * training.num_envs
    updates = int(training.steps_per_epoch * training.updates_per_step)
    counts: dict[str, Any] = {
        "env_steps": training.warmup_steps * training.num_envs + epoch * env_steps,
        "updates": epoch * updates,
        "wall_seconds": wall_seconds,
    }
    made = {"env_steps": len(members) * env_steps, "updates": len(members) * updates} if epoch else {}
    return [
        {"epoch": epoch, **member}
        | counts
        | {
            "diverged_by": Health.REASONS[health.reason[index]],
            "diverged_at": (int(health.step[index]) + 1) * training.num_envs if health.diverged[index] else None,
        }
        # What a diverged member would have done is not measured.
        | {name: math.nan if health.diverged[index] else float(values[index]) for name, values in metrics.items()}
        | {f"perf/{name}_per_second": number / seconds for name, number in made.items()}
        for index, member in enumerate(members)
    ]


def _with_resting(rows: list[reporting.Row], before: Sequence[reporting.Row]) -> list[reporting.Row]:
    """The rows of an epoch with those of the members that rest, who are as the rows before tell them."""
    running = {row["member"]: row for row in rows}
    common = {name: rows[0][name] for name in ("epoch", "wall_seconds")}

    def resting(row: reporting.Row) -> reporting.Row:
        done = {name: math.nan for name in rows[0] if name.startswith(("train/", "perf/"))}
        return row | done | common | {"parent": None}

    return [running.get(row["member"]) or resting(row) for row in before] if before else rows


def _over(experiment: Experiment, history: Sequence[reporting.Row]) -> bool:
    """Whether there is nothing left to be done after the rows of a run."""
    if not history:
        return False
    ended = history[-1]["epoch"] == experiment.training.num_epochs
    return ended or halted(experiment, history[-experiment.population.num_members :])


def halted(experiment: Experiment, members: Sequence[reporting.Row]) -> bool:
    """Whether the divergence of members, as rows or summaries tell it, ends the run."""
    diverged = [member["diverged_by"] != "" for member in members]
    return any(diverged) if experiment.population.on_divergence == "stop" else all(diverged)


def _means(metrics: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The metrics of an epoch with the mean return in place of its parts; no number where no episode ended."""
    total, ended = metrics.pop("return_sum", np.zeros(0)), metrics.pop("episodes_ended", np.zeros(0))
    if not ended.size:
        return metrics
    return {"return_mean": np.where(ended, total / np.maximum(ended, 1), np.nan)} | metrics


def _writers(experiment: Experiment, directory: Path, rows: Sequence[reporting.Row]) -> list[reporting.Reporter]:
    """The places for results, which hold `rows` already or will."""
    writers: list[reporting.Reporter] = [reporting.MetricsFile(directory, rows)]
    if experiment.reporting.tensorboard:
        writers.append(reporting.TensorBoard(directory, rows))
    if experiment.reporting.wandb:
        project = experiment.reporting.wandb_project
        writers.append(reporting.WeightsAndBiases(directory, project, config.as_mapping(experiment)))
    return writers


def _check_extras(section: settings.Reporting) -> None:
    wanted = {"tensorboard": ("tensorboardX", section.tensorboard), "wandb": ("wandb", section.wandb)}
    faults = [
        f"reporting.{name} is true, but {package} is not installed; install it with pip install {package}"
        for name, (package, switched_on) in wanted.items()
        if switched_on and importlib.util.find_spec(package) is None
    ]
    if faults:
        raise ConfigError(faults)


def _check_directory(directory: Path) -> None:
    """Raises ConfigError where a run cannot be written; creates nothing."""
    if directory.exists() and not directory.is_dir():
        raise ConfigError([f"--run-dir {directory} is a file; name a directory"])
    if set("[]") & set(str(directory.absolute())):
        raise ConfigError(
            [f"--run-dir {directory} has a bracket in its path, which Orbax takes for a pattern; name another"]
        )
    if (directory / "config.yaml").exists():
        raise ConfigError([_IN_USE.format(directory)])
    if (directory / config.SWEEP).exists():
        raise ConfigError([f"--run-dir {directory} already holds a sweep; name another, or none for a new one"])
    if (directory / "metrics.jsonl").exists() or (directory / checkpoint.DIRECTORY).exists():
        raise ConfigError([f"--run-dir {directory} holds what is left of a run without its config.yaml; name another"])
    parent = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigError([f"--run-dir {directory} cannot be written: {parent} allows no new files; name another"])


@contextmanager
def _claimed(directory: Path) -> Iterator[None]:
    """Makes a run directory, and holds it against other processes; ConfigError where it cannot be used."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError as error:
        raise ConfigError([f"--run-dir {directory} cannot be written: {error.strerror}; name another"]) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError([f"another process is training in {directory}; wait for it, or name another"]) from None
        yield
    finally:
        os.close(descriptor)


def _draw(directory: Path) -> None:
    try:
        plot([directory], directory / "learning_curve.png")
    except ConfigError as error:
        warnings.warn(f"{error}; `jaxddpg plot {directory}` draws it", stacklevel=2)


def _write(path: Path, text: str) -> None:
    """Writes a file in one step: whatever happens, it is the old one or the new one."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


def _summary(experiment: Experiment, rows: list[reporting.Row], population: Population) -> dict[str, Any]:
    count, members = experiment.population.num_members, []
    for last in rows[-count:]:
        best = max(rows[last["member"] :: count], key=lambda row: np.nan_to_num(row["eval/return_mean"], nan=-np.inf))
        members.append(
            {
                **reporting.identity(last),
                "final_return": last["eval/return_mean"],
                "best_return": best["eval/return_mean"],
                "best_epoch": best["epoch"],
                "diverged_by": last["diverged_by"],
                "diverged_at": last["diverged_at"],
            }
        )
    final = np.array([member["final_return"] for member in members])
    low, high = confidence_interval(final)
    ends, device = rows[-count:], jax.local_devices()[0]
    selecting = experiment.population.selection.method != "none"
    steady = {
        name: float(np.nanmedian([row[name] for row in rows if name in row] or [np.nan]))
        for name in ("perf/env_steps_per_second", "perf/updates_per_second")
    }
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use") if device.platform != "cpu" else None
    compiled = population.programs["epoch"].compiled
    analysis = compiled.memory_analysis() if compiled else None
    return {
        "environment": experiment.environment.name,
        "members": members,
        "variants": _variants(experiment, final) if experiment.population.sweep and not selecting else [],
        "chosen": int(np.argmax(np.nan_to_num(final, nan=-np.inf))) if selecting else None,
        "final_return_iqm": float(interquartile_mean(final)),
        "final_return_interval_95": [float(low), float(high)],
        "epochs": ends[0]["epoch"],
        "env_steps_per_member": max(row["env_steps"] for row in ends),
        "env_steps_total": sum(row["env_steps"] for row in ends),
        "updates_total": sum(row["updates"] for row in ends),
        "wall_seconds": ends[0]["wall_seconds"],
        "env_steps_per_second": steady["perf/env_steps_per_second"],
        "updates_per_second": steady["perf/updates_per_second"],
        "peak_memory_bytes": peak or _peak_rss(),
        "state_bytes": memory.parts(state_like(experiment)),
        "epoch_temporary_bytes": analysis.temp_size_in_bytes if analysis else None,
        "device": f"{device.device_kind} x {jax.local_device_count()}",
        "versions": _versions(),
        "date": datetime.date.today().isoformat(),
        "config_hash": hashlib.sha256(config.dump(experiment).encode()).hexdigest()[:16],
    }


def _variants(experiment: Experiment, final: np.ndarray) -> list[dict[str, Any]]:
    """What is swept and what came of it, variant by variant, from the final returns [M]."""
    values = config.swept(experiment)
    found = []
    for variant, returns in zip(values, final.reshape(len(values), -1), strict=True):
        low, high = confidence_interval(returns)
        found.append(
            variant
            | {
                "final_return_iqm": float(interquartile_mean(returns)),
                "final_return_interval_95": [float(low), float(high)],
            }
        )
    return found


def _versions() -> dict[str, str]:
    packages = ("jaxddpg", "jax", "flax", "optax", "gymnax")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def _peak_rss() -> int:
    """Bytes; Linux counts in kilobytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
