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

from jaxddpg import (
    backend,
    checkpoint,
    config,
    hosts,
    memory,
    origin,
    outcome,
    reporting,
    run_directory,
    settings,
)
from jaxddpg.analysis import plot
from jaxddpg.cohort import Best, Cohort
from jaxddpg.composition import callback_error, check_member, make_environment, populate
from jaxddpg.config import ConfigError
from jaxddpg.evaluation import causes
from jaxddpg.hosts import Host
from jaxddpg.population import Groups, Population
from jaxddpg.settings import Experiment
from jaxddpg.statistics import worst_if_not_finite
from jaxddpg.training import Health, TrainingState, clock_at
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
    host: Host = Host(),
) -> Result:
    """Runs an experiment to its end.

    Args:
        directory: where to leave the run; None leaves nothing on disk.
        quiet: shows no progress.
        stopping: asked after each epoch whether to end the run there.
        host: which of several processes this is, each of which trains its part of the members and returns its result;
            when all are done, `conclude` makes one run of their parts.

    Raises:
        ConfigError: a setting is faulty or the directory cannot be used, and nothing was written; or the memory does
            not suffice, and the directory is left without results.
        RunError: the disk is full or cannot be written; the newest sound checkpoint stays, to be resumed from.
    """
    experiment = config.checked(experiment)
    hosts.check(experiment, host.num_processes)
    experiment, *others = config.programs(experiment).values()
    if others:
        raise ConfigError(
            [
                f"the settings in population.sweep need {1 + len(others)} compiled programs, but a run has one; use "
                "`jaxddpg sweep`, which runs one for each"
            ]
        )
    _check_extras(experiment.reporting)
    _caution(experiment, host)
    if directory is None:
        members = run_directory.parts(Path(), experiment, host.num_processes)[host.process_id].members
        population = _populated(experiment, members, on_disk=False)
        with _failures_told(None):
            return _run(experiment, population, None, members, quiet, stopping)
    directory = Path(directory)
    if host.num_processes == 1:  # else this was looked at before the processes met
        run_directory.check_free(directory)
    part = run_directory.parts(directory, experiment, host.num_processes)[host.process_id]
    population = _populated(experiment, part.members)
    with run_directory.claimed(part.directory), _failures_told(directory):
        if host.process_id == 0:
            if (directory / "config.yaml").exists():  # of two runs that start together, one got it
                raise ConfigError([run_directory.IN_USE.format(directory)])
            run_directory.write(directory / "config.yaml", config.dump(experiment))
        else:
            run_directory.await_first(directory, stopping)
        return _run(experiment, population, *part, quiet, stopping)


def sweep(
    experiment: Experiment,
    directory: str | Path,
    *,
    quiet: bool = True,
    stopping: Callable[[], bool] = lambda: False,
    host: Host = Host(),
) -> list[Result]:
    """Runs every variant of the swept settings.

    Where all of them are traced numbers, that is one run in `directory`. Otherwise it is one run for each combination
    of the values that give the program its shape, one after the other, in directories of their own below it.

    Raises:
        ConfigError, RunError: as `run`; of several runs those that ended before are kept.
    """
    hosts.check(experiment, host.num_processes)
    directory, experiment = Path(directory), config.checked(experiment)
    programs = config.programs(experiment)
    if [*programs] == [""]:
        return [run(experiment, directory, quiet=quiet, stopping=stopping, host=host)]
    _check_extras(experiment.reporting)
    run_directory.check_free(directory)
    for program in programs.values():
        _populated(program, range(program.population.num_members))
    with run_directory.claimed(directory):
        run_directory.check_free(directory)  # of two sweeps that start together, one got it
        return _run_programs(directory, experiment, programs, (), quiet, stopping)


def resume_sweep(
    directory: str | Path,
    changes: Mapping[str, Any] | None = None,
    *,
    quiet: bool = True,
    stopping: Callable[[], bool] = lambda: False,
    host: Host = Host(),
) -> list[Result]:
    """Goes on with a sweep: with the run that was interrupted, and with those that have not begun.

    `changes` and errors are as for `resume`.
    """
    directory = Path(directory)
    config.whole(directory)  # else the lock would make a directory of any name
    with run_directory.claimed(directory):
        experiment, _ = config.extended(directory, changes or {})
        hosts.check(experiment, host.num_processes)
        programs = config.programs(experiment)
        begun = [name for name in programs if (directory / name / "config.yaml").exists()]
        for name in begun:
            (part,) = run_directory.parts(directory / name, programs[name])
            _check_epochs(programs[name], _recall(part, programs[name]).epoch)
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
    run_directory.write(directory / config.SWEEP, config.dump(experiment))
    results = list[Result]()
    for name, program in programs.items():
        if results and stopping():
            break
        if name in begun:  # what was changed in the meantime holds for it too
            results.append(resume(directory / name, config.harmless(program), quiet=quiet, stopping=stopping))
        else:
            results.append(run(program, directory / name, quiet=quiet, stopping=stopping))
    _draw(directory)
    return results


def resume(
    directory: str | Path,
    changes: Mapping[str, Any] | None = None,
    *,
    quiet: bool = True,
    stopping: Callable[[], bool] = lambda: False,
    host: Host = Host(),
) -> Result:
    """Goes on with a run from its newest sound checkpoint, as if it had never been interrupted.

    On the same layout of devices the result is that of an uninterrupted run to the bit. A run without a checkpoint
    starts anew. A run that several processes began keeps its parts, which any number of processes share.

    Args:
        changes: settings by dotted path that do not alter what is learned: more epochs, reporting, checkpoints,
            placement. They are written into the run's `config.yaml` and recorded in its `resumptions.jsonl`.
        quiet: shows no progress.
        stopping: asked after each epoch whether to end the run there.
        host: as for `run`.

    Raises:
        ConfigError: the directory holds no run or another process uses it, or a change would alter what is learned.
        RunError: as for `run`.
    """
    directory = Path(directory)
    experiment, changed = config.extended(directory, changes or {})
    parts = run_directory.parts(directory, experiment)[host.process_id :: host.num_processes]
    if not parts:
        raise ConfigError([f"{directory} has fewer parts than there are processes; use fewer"])
    _check_extras(experiment.reporting)
    _caution(experiment, host)
    with ExitStack() as stack:
        stack.enter_context(_failures_told(directory))
        for part in parts:
            stack.enter_context(run_directory.claimed(part.directory))
        populations = [_populated(experiment, part.members) for part in parts]
        histories = [
            _recall(part, experiment, population.version) for part, population in zip(parts, populations, strict=True)
        ]
        for history in histories:
            _check_epochs(experiment, history.epoch)
        known = [*zip(parts, populations, histories, strict=True)]
        finished = [_finished(experiment, *each) for each in known]
        if len(parts) == 1 and finished[0]:
            return finished[0]
        if host.process_id == 0:
            run_directory.write(directory / "config.yaml", config.dump(experiment))
        for part, population, history in known:
            now = datetime.datetime.now().isoformat(timespec="seconds")
            record = {"date": now, "epoch": history.epoch, "changes": changed, "versions": outcome.versions()}
            record["environment"] = origin.of(experiment, population.version).environment
            with (part.directory / "resumptions.jsonl").open("a") as file:
                file.write(json.dumps(record) + "\n")
        results = list[Result]()
        for (part, population, history), done in zip(known, finished, strict=True):
            if not results or not stopping():
                results.append(done or _run(experiment, population, *part, quiet, stopping, history))
    if host.num_processes == 1 and len(parts) > 1:
        conclude(directory)
    return _joined(experiment, results)


def conclude(directory: str | Path) -> dict[str, Any] | None:
    """Makes one run of the parts that several processes left: its summary, which is returned, and its picture; None
    where not all of them have come to their end."""
    directory = Path(directory)
    experiment = config.of_run(directory)
    paths = [part.directory / "summary.json" for part in run_directory.parts(directory, experiment)]
    found = [outcome.read(path) for path in paths if path.exists()]
    ended = [each["epochs"] == experiment.training.num_epochs or halted(experiment, each["members"]) for each in found]
    if len(found) < len(paths) or not all(ended):
        return None
    summary = outcome.merged(experiment, found)
    run_directory.write(directory / "summary.json", json.dumps(reporting.plain_json(summary), indent=2) + "\n")
    _draw(directory)
    return summary


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
        if "RESOURCE_EXHAUSTED" in str(error):
            raise ConfigError([f"there is not enough memory for this experiment; {_SMALLER}"]) from error
        if (called_back := callback_error(error)) is None:
            raise
        raise RunError(f"the environment failed in a callback: {called_back}") from error
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


def _populated(experiment: Experiment, members: range, on_disk: bool = True) -> Population:
    """The population of these members, of which nothing is on a device yet but their keys and numbers.

    Raises:
        ConfigError: the parts do not fit each other, or so many members not this machine's memory.
    """
    backend.start()
    looked_at: list[settings.Environment] = []
    for variant in config.variants(experiment):
        if variant.environment not in looked_at:
            check_member(variant.member())
            looked_at.append(variant.environment)
    sharing, free = memory.sharing(experiment, len(members)), memory.free()
    selecting = experiment.population.selection.method != "none"
    copies = 1 + (on_disk and jax.default_backend() == "cpu") + selecting
    population = populate(experiment, members)
    like = population.like(sharing.members)
    room = memory.check(experiment, like, copies, free and free * sharing.devices, best=on_disk)
    longest = max(make_environment(section).episode_length for section in looked_at)
    memory.check_evaluation(experiment, like, longest, sharing.at_once, room)
    return population


def _run(
    experiment: Experiment,
    population: Population,
    directory: Path | None,
    members: range,
    quiet: bool,
    stopping: Callable[[], bool],
    history: History = History(),
) -> Result:
    """Trains these members from where their history ends, in a directory that is ours."""
    count = len(members)
    total = experiment.population.num_members
    number = f"{count} member{'s'[: count > 1]}{f' of {total}' if count < total else ''}"
    title = f"{experiment.environment.name}, {number}{f' -> {directory}' if directory else ''}"
    with ExitStack() as stack:
        display = stack.enter_context(reporting.Display(title, experiment.training.num_epochs, quiet))
        reporters: list[reporting.Reporter] = [display]
        writer: checkpoint.Writer | None = None
        for note in history.notes:
            display.note(note)
        if directory is not None:
            reporters += [stack.enter_context(reporter) for reporter in _writers(experiment, directory, history.rows)]
            writer = stack.enter_context(
                checkpoint.Writer(directory, experiment.checkpoint.keep, origin.of(experiment, population.version))
            )
        start = time.perf_counter()
        if not _over(experiment, history.rows[-count:]):
            population.compile(clock_at(experiment.training, 0), bool(history.rows))
        compile_seconds = time.perf_counter() - start
        groups, best = _begin(directory, population, history)
        identities = config.identities(experiment)[members.start : members.stop]
        cohort = Cohort(experiment, population, groups, identities, history.rows[-count:], best)
        del groups  # they are donated to the next epoch
        rows, agents = _train(experiment, population, [*history.rows], cohort, reporters, writer, stopping)
        summary = outcome.summary(experiment, rows, count, population) | {"compile_seconds": compile_seconds}
        if directory is not None and writer is not None:
            summary["checkpoints"] = writer.cost()
            run_directory.write(directory / "summary.json", json.dumps(reporting.plain_json(summary), indent=2) + "\n")
            if count == total:  # else it is a part of a run
                _draw(directory)
    return Result(rows, summary, agents)


def _finished(
    experiment: Experiment, part: run_directory.Part, population: Population, history: History
) -> Result | None:
    """The result of a part that has ended, as it left it; None where there is something left to be done."""
    directory, members = part
    path = directory / "summary.json"
    if not _over(experiment, history.rows[-len(members) :]) or not path.exists():
        return None
    summary = outcome.read(path)
    if summary["epochs"] != history.epoch:
        return None  # it is that of an earlier interruption
    if len((directory / reporting.METRICS).read_bytes().splitlines()) > len(history.rows):
        with reporting.MetricsFile(directory, history.rows):
            pass  # which leaves out what stands after them
    like = {"agent": population.like(len(members)).agent}
    return Result([*history.rows], summary, _restored(directory, history.epoch, like, partial=True)["agent"])


def _recall(part: run_directory.Part, experiment: Experiment, environment: str | None = None) -> History:
    """The rows up to the newest sound checkpoint; none where the run was interrupted before its first. `environment` is
    the digest of the environment, where it is known.

    Raises:
        ConfigError: there were checkpoints, but none can be used, and to start over would lose what is sound.
    """
    directory, members = part
    count, rows, found = len(members), reporting.read_rows(directory / reporting.METRICS), checkpoint.epochs(directory)
    expected = ((epoch, member) for epoch in itertools.count() for member in members)
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
        return History(rows[: (epoch + 1) * count], [*notes, f"continuing after epoch {epoch}"])
    if found:
        remedy = f"put back what was lost, or delete {directory / checkpoint.DIRECTORY} to start over"
        raise ConfigError([f"{directory} cannot continue: {note.split(';')[0]}; {remedy}" for note in notes])
    return History((), ["there is no checkpoint to continue from; starting from the beginning"])


def _begin(directory: Path | None, population: Population, history: History) -> tuple[Groups, Best | None]:
    """The states of members and their best policies at the end of a history, from its checkpoint; or at the start."""
    if directory is None or not history.rows:
        return population.init(), None
    count = len(history.rows) // (history.epoch + 1)
    state = _saved(directory, population, history.epoch, count)
    best = state.pop("best")
    returns = [
        history.rows[epoch * count + member]["eval/return_mean"] for member, epoch in enumerate(best["epoch"].tolist())
    ]
    return population.scatter(TrainingState(**state)), Best(
        population.scatter_agents(best["agent"]), best["epoch"], worst_if_not_finite(returns)
    )


def _saved(directory: Path, population: Population, epoch: int, count: int) -> dict[str, Any]:
    """What a checkpoint holds of so many members, which fits the config; see `Cohort.snapshot`."""
    like = dict(vars(population.like(count)))
    if checkpoint.holds(directory, epoch, "best"):
        like |= {"best": {"agent": like["agent"], "epoch": jax.ShapeDtypeStruct((count,), np.int32)}}
    state = _restored(directory, epoch, like)
    # Earlier versions kept none.
    return {"best": {"agent": state["agent"], "epoch": np.full(count, epoch, np.int32)}} | state


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
        if writer and cohort.is_due(epoch):
            writer.wait()  # what then begins to rest is gathered anew, perhaps into what is being written
        cohort.advance(epoch, before)
        training_metrics: Callable[[], dict] = dict
        if epoch:
            cohort.groups, training_metrics = population.epoch(clock, cohort.groups, cohort.members)
        agents, health = ([getattr(group, part) for group in cohort.groups] for part in ("agent", "health"))
        evaluation_metrics = population.evaluate(clock, agents, cohort.members)

        def finish() -> list[reporting.Row]:
            evaluated = evaluation_metrics()
            unmeasured_by = causes(evaluated)
            metrics = {f"eval/{name}": values for name, values in evaluated.items()}
            metrics |= {f"train/{name}": values for name, values in _means(training_metrics()).items()}
            now = time.perf_counter()
            seconds, so_far = now - begun, earlier + now - start
            identities = [cohort.identities[member] for member in cohort.running]
            found = population.gather(health)
            rows = _rows(experiment, identities, epoch, found, metrics, unmeasured_by, seconds, so_far)
            return _with_resting(rows, before)

        return finish

    finish = None if _over(experiment, history[-count:]) else begin(reached + 1, history[-count:])
    while finish:
        rows = finish()
        epoch = rows[0]["epoch"]
        if writer:
            cohort.keep_best(rows)
        last = stopping() or epoch == training.num_epochs or halted(experiment, rows)
        due = last or time.perf_counter() - saved >= experiment.checkpoint.interval_seconds
        if writer and due:
            writer.wait()  # two copies of all states are what memory was counted for
            snapshot = cohort.snapshot()
        try:
            # While these rows are told and kept, the next epoch computes.
            finish = None if last else begin(epoch + 1, rows)
        finally:
            history += rows
            for reporter in reporters:
                reporter.epoch(rows)
            if writer and due:
                writer.save(epoch, snapshot)
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
    made = {"env_steps": len(members) * env_steps, "updates": len(members) * updates} if epoch else {}
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
    """The rows of an epoch with those of the members that rest, who are as the rows before tell them."""
    running = {row["member"]: row for row in rows}
    common = {name: rows[0][name] for name in ("epoch", "wall_seconds")}

    def resting(row: reporting.Row) -> reporting.Row:
        done = {name: math.nan for name in rows[0] if name.startswith(("train/", "perf/"))}
        return row | done | common | {"parent": None}

    return [running.get(row["member"]) or resting(row) for row in before] if before else rows


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


def _caution(experiment: Experiment, host: Host) -> None:
    """Warns of what is hardly meant, once for all processes."""
    for sentence in config.cautions(experiment) if host.process_id == 0 else ():
        warnings.warn(sentence, stacklevel=3)


def _draw(directory: Path) -> None:
    try:
        plot([directory], directory / "learning_curve.png")
    except ConfigError as error:
        warnings.warn(f"{error}; `jaxddpg plot {directory}` draws it", stacklevel=2)


def _joined(experiment: Experiment, results: Sequence[Result]) -> Result:
    """The results of parts as one."""
    if len(results) == 1:
        return results[0]
    rows = sorted((row for result in results for row in result.rows), key=lambda row: (row["epoch"], row["member"]))
    agents = jax.tree.map(lambda *leaves: np.concatenate(leaves), *(result.agents for result in results))
    return Result(rows, outcome.merged(experiment, [result.summary for result in results]), agents)
