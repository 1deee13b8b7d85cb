"""A run from start to end: what it needs, its epochs, what it leaves behind."""

import datetime
import errno
import importlib.metadata
import importlib.util
import itertools
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxddpg.runs import (
    backend,
    checkpoint,
    distributed as hosts,
    memory,
    origin,
    summary as outcome,
    directory as run_directory,
)
from jaxddpg import config, settings
from jaxddpg.report import console as reporting
from jaxddpg.parts import sharding as shards
from jaxddpg.runs.load import plot
from jaxddpg.runs.cohort import Best, Cohort
from jaxddpg.config.build import callback_error, check_member, make_environment, populate
from jaxddpg.config import ConfigError
from jaxddpg.training.evaluation import causes
from jaxddpg.training.population import Population
from jaxddpg.settings import Experiment
from jaxddpg.statistics import worst_if_not_finite
from jaxddpg.training.loop import Health, TrainingState, clock_at
from jaxddpg.types import State

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

    def __repr__(self) -> str:
        """Short: rows and agents may be millions of numbers."""
        members, epochs = self.summary["members"], self.summary["epochs"]
        returns = reporting.mean_return(np.array([member["final_return"] for member in members]))
        return (
            f"Result({self.summary['environment']}, members: {len(members)}, epochs: {epochs}, "
            f"IQM of the final returns: {returns})"
        )


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
    experiment = config.checked(experiment)
    experiment, *others = config.programs(experiment).values()
    if others:
        raise ConfigError(
            [
                f"the settings in population.sweep need {1 + len(others)} compiled programs, but a run has one; use "
                "`jaxddpg sweep`, which runs one for each"
            ]
        )
    directory = None if directory is None else Path(directory)
    with ExitStack() as stack:
        with hosts.agreeing():
            _check_extras(experiment.reporting)
            if directory and hosts.is_first():
                run_directory.check_free(directory)
            population = _populated(experiment, directory is not None)
        _caution(experiment)
        stack.enter_context(_failures_told(directory))
        with hosts.agreeing():
            if directory and hosts.is_first():
                stack.enter_context(run_directory.claimed(directory))
                if (directory / "config.yaml").exists():  # of two runs that start together, one got it
                    raise ConfigError([run_directory.IN_USE.format(directory)])
                run_directory.write(directory / "config.yaml", config.dump(experiment))
        if directory:
            run_directory.check_shared(directory)
        return _run(experiment, population, directory, quiet, stopping)


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
    directory, experiment = Path(directory), config.checked(experiment)
    programs = config.programs(experiment)
    if [*programs] == [""]:
        return [run(experiment, directory, quiet=quiet, stopping=stopping)]
    with ExitStack() as stack:
        with hosts.agreeing():
            _check_extras(experiment.reporting)
            if hosts.is_first():
                run_directory.check_free(directory)
            for program in programs.values():
                _populated(program)
        with hosts.agreeing():
            if hosts.is_first():
                stack.enter_context(run_directory.claimed(directory))
                run_directory.check_free(directory)  # of two sweeps that start together, one got it
        return _run_programs(directory, experiment, programs, (), quiet, stopping)


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
    directory = Path(directory)
    config.whole(directory)  # else the lock would make a directory of any name
    with ExitStack() as stack:
        with hosts.agreeing():
            if hosts.is_first():
                stack.enter_context(run_directory.claimed(directory))
            experiment, _ = config.extended(directory, changes or {})
            programs = config.programs(experiment)

        def look() -> list[str]:
            begun = [name for name in programs if (directory / name / "config.yaml").exists()]
            for name in begun:
                _newest(directory / name, programs[name])
            return begun

        begun = hosts.of_first(look)
        return _run_programs(directory, experiment, programs, begun, quiet, stopping)


def _run_programs(
    directory: Path,
    experiment: Experiment,
    programs: Mapping[str, Experiment],
    begun: Sequence[str],
    quiet: bool,
    stopping: Callable[[], bool],
) -> list[Result]:
    """Runs or resumes the programs of a sweep one after the other, in a directory that is locked."""
    if hosts.is_first():
        run_directory.write(directory / config.SWEEP, config.dump(experiment))
    results = list[Result]()
    for name, program in programs.items():
        if results and any(hosts.any_has(stopping())):
            break
        if name in begun:  # what was changed in the meantime holds for it too
            results.append(resume(directory / name, config.harmless(program), quiet=quiet, stopping=stopping))
        else:
            results.append(run(program, directory / name, quiet=quiet, stopping=stopping))
    if hosts.is_first():
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
    starts from the beginning.

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
    experiment, changed = config.extended(directory, changes or {})
    with ExitStack() as stack:
        stack.enter_context(_failures_told(directory))
        with hosts.agreeing():
            _check_extras(experiment.reporting)
            if hosts.is_first():
                stack.enter_context(run_directory.claimed(directory))
            population = _populated(experiment)
        run_directory.check_shared(directory)
        history = _recall(directory, experiment, population.version)
        _caution(experiment)
        if finished := _finished(experiment, directory, population, history):
            return finished
        if hosts.is_first():
            run_directory.write(directory / "config.yaml", config.dump(experiment))
            record = {
                "date": datetime.datetime.now().isoformat(timespec="seconds"),
                "epoch": history.epoch,
                "changes": changed,
                "versions": outcome.versions(),
                "environment": origin.of(experiment, population.version).environment,
            }
            with (directory / "resumptions.jsonl").open("a") as file:
                file.write(json.dumps(record) + "\n")
        return _run(experiment, population, directory, quiet, stopping, history)


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
        if "RESOURCE_EXHAUSTED" in str(error):
            raise ConfigError([f"there is not enough memory for this experiment; {_SMALLER}"]) from error
        if called_back := callback_error(error):
            raise RunError(f"the environment failed in a callback: {called_back}") from error
        if not (jax.distributed.is_initialized() and hosts.is_loss(str(error))):
            raise
        remedy = f"`jaxddpg resume {directory}` continues from the newest checkpoint"
        raise RunError(f"{hosts.LOST} ({config.first_line(error)}); {remedy}") from error
    except jax.errors.KeyReuseError as error:
        raise RunError(f"a random key is used twice: {config.first_line(error)}") from error
    except OSError as error:
        reason = ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)
        remedy = ""
        if directory is not None:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            there = directory.is_dir()
            goes_on = f"{'make room, then ' * full}`jaxddpg resume {directory}` continues"
            remedy = f"; {goes_on if there else f'{directory} is no longer there'}"
        raise RunError(f"{reason}{remedy}") from error


def _populated(experiment: Experiment, on_disk: bool = True) -> Population:
    """The population of an experiment, of which nothing is on a device yet but its keys and numbers.

    Raises:
        ConfigError: the parts do not fit each other, or the members not this machine's memory.
    """
    backend.start()
    looked_at: list[settings.Environment] = []
    for variant in config.variants(experiment):
        if variant.environment not in looked_at:
            check_member(variant.member())
            looked_at.append(variant.environment)
    population = populate(experiment)
    longest = max(make_environment(section).episode_length for section in looked_at)
    memory.check(experiment, population, longest, on_disk)
    return population


def _run(
    experiment: Experiment,
    population: Population,
    directory: Path | None,
    quiet: bool,
    stopping: Callable[[], bool],
    history: History = History(),
) -> Result:
    """Trains the members from where their history ends, in a directory that is ours."""
    count = experiment.population.num_members
    title = f"{experiment.environment.name}, {_layout(population, count)}{f' -> {directory}' if directory else ''}"
    with ExitStack() as stack:
        display = stack.enter_context(
            reporting.Display(title, experiment.training.num_epochs, quiet or not hosts.is_first())
        )
        reporters: list[reporting.Reporter] = [display]
        writer: checkpoint.Writer | None = None
        for note in history.notes:
            display.note(note)
        if directory is not None:
            if hosts.is_first():
                writers = _writers(experiment, directory, history.rows)
                reporters += [stack.enter_context(reporter) for reporter in writers]
            writer = stack.enter_context(
                checkpoint.Writer(directory, experiment.checkpoint.keep, origin.of(experiment, population.version))
            )
        start = time.perf_counter()
        if not _over(experiment, history.rows[-count:]):
            with hosts.agreeing():  # processes may compile for unequal times, but Gloo connects within 30 s
                population.compile(clock_at(experiment.training, 0), bool(history.rows))
            population.gather(population.members.running)
        compile_seconds = time.perf_counter() - start
        state, best = _begin(directory, population, history)
        cohort = Cohort(experiment, population, state, config.identities(experiment), history.rows[-count:], best)
        del state  # it is donated to the next epoch
        rows, agents = _train(experiment, population, [*history.rows], cohort, reporters, writer, stopping)
        summary = outcome.summary(experiment, rows, count, population) | {"compile_seconds": compile_seconds}
        if directory is not None and writer is not None:
            summary["checkpoints"] = writer.cost()
            if hosts.is_first():
                text = json.dumps(reporting.plain_json(summary), indent=2)
                run_directory.write(directory / "summary.json", text + "\n")
                _draw(directory)
    return Result(rows, summary, agents)


def _layout(population: Population, count: int) -> str:
    """How so many members lie on the devices, as part of a sentence."""
    row, platform = population.mesh.shape.get(shards.AXIS, 1), population.mesh.devices.flat[0].platform
    each, processes = population.like.observation.shape[0] // population.mesh.shape["member"], jax.process_count()
    devices = -(-count // each) * row
    parts = [
        f"{count} member{'s'[: count > 1]} on {devices} {platform} device{'s'[: devices > 1]}"
        + f" of {processes} processes" * (processes > 1)
    ]
    parts += [f"each in {row} shards"] if row > 1 else []
    parts += [f"{each} on each, {population.block} at once"] if each > population.block else []
    parts += [f"{idle} idle"] if (idle := jax.device_count() - devices) else []
    return ", ".join(parts)


def _finished(experiment: Experiment, directory: Path, population: Population, history: History) -> Result | None:
    """The result of a run that has ended, as it left it; None where there is something left to be done."""
    if not _over(experiment, history.rows[-experiment.population.num_members :]):
        return None
    path = directory / "summary.json"
    summary = hosts.of_first(lambda: outcome.read(path) if path.exists() else None)
    if summary is None or summary["epochs"] != history.epoch:
        return None  # it is that of an earlier interruption
    if hosts.is_first() and len((directory / reporting.METRICS).read_bytes().splitlines()) > len(history.rows):
        with reporting.MetricsFile(directory, history.rows):
            pass  # which leaves out what stands after them
    like = {"agent": _on_disk(population, experiment.population.num_members)["agent"]}
    agents = _restored(directory, history.epoch, like, partial=True)["agent"]
    return Result([*history.rows], summary, population.gather(population.scatter_agents(agents)))


def _recall(directory: Path, experiment: Experiment, environment: str | None) -> History:
    """The rows up to the checkpoint that the first process finds; ConfigError as `_newest`."""
    epoch, notes = hosts.of_first(lambda: _newest(directory, experiment, environment))
    count = (epoch + 1) * experiment.population.num_members
    with hosts.agreeing():
        rows = reporting.read_rows(directory / reporting.METRICS)[:count]
        if len(rows) < count:
            raise ConfigError([f"{directory / reporting.METRICS} is not the one that the first process reads"])
    return History(rows, notes)


def _newest(directory: Path, experiment: Experiment, environment: str | None = None) -> tuple[int, list[str]]:
    """The epoch of the newest sound checkpoint, -1 where the run was interrupted before its first, and what was found
    on the way to it. `environment` is the digest of the environment, where it is known.

    Raises:
        ConfigError: fewer epochs are asked for; or there were checkpoints, but none can be used, and to start over
            would lose what is sound.
    """
    count = experiment.population.num_members
    rows, found = reporting.read_rows(directory / reporting.METRICS), checkpoint.epochs(directory)
    expected = ((epoch, member) for epoch in itertools.count() for member in range(count))
    pairs = zip(((row["epoch"], row["member"]) for row in rows), expected, strict=False)
    told, notes = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)), []
    for epoch in found:
        try:
            before = checkpoint.origin(directory, epoch)
        except checkpoint.DamagedError as error:
            notes.append(f"{error}; an older one is looked for")
            continue
        origin.check_jax(before)
        origin.check(before, experiment, environment)  # its file may have been edited by hand
        if told < (epoch + 1) * count:
            notes.append(f"the metrics end before the checkpoint of epoch {epoch}; an older one is looked for")
            continue
        if (asked := experiment.training.num_epochs) < epoch:
            raise ConfigError([f"training.num_epochs is {asked}, but the run has reached {epoch}; use more"])
        return epoch, [*notes, f"continuing after epoch {epoch}"]
    if found:
        remedy = f"put back what was lost, or delete {directory / checkpoint.DIRECTORY} to start over"
        raise ConfigError([f"{directory} cannot continue: {note.split(';')[0]}; {remedy}" for note in notes])
    return -1, ["there is no checkpoint to continue from; starting from the beginning"]


def _begin(directory: Path | None, population: Population, history: History) -> tuple[State, Best | None]:
    """The states of members and their best policies at the end of a history, from its checkpoint; or at the start."""
    if directory is None or not history.rows:
        return population.init(), None
    count = len(history.rows) // (history.epoch + 1)
    like = _on_disk(population, count)
    if hosts.of_first(lambda: checkpoint.holds(directory, history.epoch, "best")):
        like |= {"best": {"agent": like["agent"], "epoch": jax.ShapeDtypeStruct((count,), np.int32)}}
    state = _restored(directory, history.epoch, like)
    # Earlier versions kept none.
    best = state.pop("best", {"agent": state["agent"], "epoch": np.full(count, history.epoch, np.int32)})
    returns = [
        history.rows[epoch * count + member]["eval/return_mean"] for member, epoch in enumerate(best["epoch"].tolist())
    ]
    best = Best(population.scatter_agents(best["agent"]), best["epoch"], worst_if_not_finite(returns))
    return population.scatter(TrainingState(**state)), best


def _on_disk(population: Population, count: int) -> dict[str, Any]:
    """The shapes and types of what a checkpoint holds of the states of so many members, by name; of several processes
    each restores its own part."""
    like = population.like
    if jax.distributed.is_initialized():
        return {**vars(like)}
    return vars(jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape[1:]), leaf.dtype), like))


def _restored(directory: Path, epoch: int, like: dict[str, Any], partial: bool = False) -> dict[str, Any]:
    """What a checkpoint holds by name, or some of it; ConfigError where it does not fit."""
    try:
        return checkpoint.restore(directory, epoch, like, partial)
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
    training, count = experiment.training, len(cohort.identities)
    reached, earlier = (history[-1]["epoch"], history[-1]["wall_seconds"]) if history else (-1, 0.0)
    start = saved = time.perf_counter()

    def begin(epoch: int, before: Sequence[reporting.Row]) -> Callable[[], list[reporting.Row]]:
        """Starts the epoch that follows those rows and returns at once, with what waits for its own."""
        begun, clock = time.perf_counter(), clock_at(training, epoch)
        cohort.advance(epoch, before)
        training_metrics: Callable[[], dict] = dict
        if epoch:
            cohort.state, training_metrics = population.epoch(clock, cohort.state, cohort.members)
        evaluation_metrics, health = population.evaluate(clock, cohort.state.agent, cohort.members), cohort.state.health

        def finish() -> list[reporting.Row]:
            evaluated = evaluation_metrics()
            unmeasured_by = causes(evaluated)
            metrics = {f"eval/{name}": values for name, values in evaluated.items()}
            metrics |= {f"train/{name}": values for name, values in _means(training_metrics()).items()}
            now = time.perf_counter()
            seconds, so_far = now - begun, earlier + now - start
            found = population.gather(health)
            rows = _rows(experiment, cohort.identities, epoch, found, metrics, unmeasured_by, seconds, so_far)
            return _with_resting(rows, before)

        return finish

    finish = None if _over(experiment, history[-count:]) else begin(reached + 1, history[-count:])
    while finish:
        rows = finish()
        epoch = rows[0]["epoch"]
        if writer:
            cohort.keep_best(rows)
        late = time.perf_counter() - saved >= experiment.checkpoint.interval_seconds
        stop, due = hosts.any_has(stopping(), late)
        last = stop or epoch == training.num_epochs or halted(experiment, rows)
        if writer and (due or last):
            writer.wait()  # two copies of all states are what memory was counted for
            writer.begin(epoch, cohort.snapshot())
            saved = time.perf_counter()
        try:
            # While these rows are told and kept, the next epoch computes.
            finish = None if last else begin(epoch + 1, rows)
        finally:
            history += rows
            for reporter in reporters:
                reporter.epoch(rows)
            if writer:
                writer.commit()
    if writer:
        writer.wait()
    return history, population.gather(cohort.state.agent)


def _rows(
    experiment: Experiment,
    members: Sequence[Mapping[str, Any]],
    epoch: int,
    health: Health,
    metrics: dict[str, np.ndarray],
    unmeasured_by: Sequence[str],
    seconds: float,
    wall_seconds: float,
) -> list[reporting.Row]:
    """The rows of an epoch that took so many seconds, one for each of the members, from its metrics [M] and what was
    not finite in their evaluations."""
    training = experiment.training
    # Counted on the host in Python's integers, which do not wrap.
    env_steps = training.steps_per_epoch * training.num_envs
    updates = int(training.steps_per_epoch * training.updates_per_step)
    counts: dict[str, Any] = {
        "env_steps": training.warmup_steps * training.num_envs + epoch * env_steps,
        "updates": epoch * updates,
        "wall_seconds": wall_seconds,
    }
    running = len(reporting.running(members))
    made = {"env_steps": running * env_steps, "updates": running * updates} if epoch else {}
    reasons = [Health.REASONS[reason] for reason in health.reason]
    return [
        {"epoch": epoch, **member}
        | counts
        | {
            "diverged_by": "observation" if reasons[index] == "start" else reasons[index],
            "diverged_in": Health.FUNCTIONS.get(reasons[index], ""),
            "diverged_at": (int(health.step[index]) + 1) * training.num_envs if health.diverged[index] else None,
            "unmeasured_by": "" if health.diverged[index] else unmeasured_by[index],
        }
        # What a diverged member would have done is not measured.
        | {name: math.nan if health.diverged[index] else float(values[index]) for name, values in metrics.items()}
        | {f"perf/{name}_per_second": number / seconds for name, number in made.items()}
        for index, member in enumerate(members)
    ]


def _with_resting(rows: list[reporting.Row], before: Sequence[reporting.Row]) -> list[reporting.Row]:
    """The rows of an epoch, those of members that no longer train as the rows before have them."""
    if not before:
        return rows
    undone = {name: math.nan for name in rows[0] if name.startswith(("train/", "perf/"))}
    kept = ("epoch", "wall_seconds", "parent")
    return [
        row if reporting.running([row]) else earlier | undone | {name: row[name] for name in kept}
        for row, earlier in zip(rows, before, strict=True)
    ]


def _over(experiment: Experiment, rows: Sequence[reporting.Row]) -> bool:
    """Whether there is nothing left to be done after the rows of an epoch."""
    return bool(rows) and (rows[0]["epoch"] == experiment.training.num_epochs or halted(experiment, rows))


def halted(experiment: Experiment, members: Sequence[reporting.Row]) -> bool:
    """Whether the divergence of members, as rows or summaries tell it, ends the run."""
    diverged = [member["diverged_by"] != "" for member in reporting.running(members)]
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
    if not faults and section.wandb:
        try:
            reporting.check_wandb()
        except ValueError as error:
            faults = [f"reporting.wandb is true, but {error}"]
    if faults:
        raise ConfigError(faults)


def _caution(experiment: Experiment) -> None:
    """Warns of what is hardly meant, in the first process."""
    for sentence in config.cautions(experiment) if hosts.is_first() else ():
        warnings.warn(sentence, stacklevel=3)


def _draw(directory: Path) -> None:
    try:
        plot([directory], directory / "learning_curve.png")
    except ConfigError as error:
        warnings.warn(f"{error}; `jaxddpg plot {directory}` draws it", stacklevel=2)
