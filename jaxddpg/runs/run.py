"""One run: its epochs and its outputs."""

import errno
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxddpg import config
from jaxddpg.config import ConfigError, RunPlan
from jaxddpg.config.user_code import callback_error
from jaxddpg.parts import sharding
from jaxddpg.report.console import Display
from jaxddpg.report.rows import Row, mean_return, plain_json
from jaxddpg.runs import cache, distributed, loggers, memory, origin, summary
from jaxddpg.runs.directory import write
from jaxddpg.runs.history import History, read_states
from jaxddpg.runs.loggers import Callback
from jaxddpg.runs.members import Best, Members
from jaxddpg.runs.metrics import is_over, rows_of_epoch
from jaxddpg.runs.writer import Writer
from jaxddpg.training.divergence import Divergence
from jaxddpg.training.loop import clock_at
from jaxddpg.training.population import HostMetrics, Population
from jaxddpg.types import State


class RunError(RuntimeError):
    """Raised when a run cannot continue; saved checkpoints are kept."""


class Options(NamedTuple):
    """Progress, stopping and profiling options of a run."""

    quiet: bool = True
    """Whether to suppress progress output."""
    should_stop: Callable[[], bool] = lambda: False
    """Polled after each epoch; the run stops if it returns True."""
    on_epoch: Callable[[Sequence[Row], State], bool | None] | None = None
    """`on_epoch(rows, agents)`, called after each epoch with its rows and the agent states (leaves [M, ...]); the run
    stops if it returns True. The next epoch starts only once it has returned."""
    profile: bool = False
    """Whether to write a trace of one second into `profile/` of the run directory; see `loggers.Profiler`."""


class Result(NamedTuple):
    """The result of a run."""

    rows: list[Row]
    """One per epoch and member, as in `metrics.jsonl`."""
    summary: dict[str, Any]
    """The content of `summary.json`."""
    agents: State
    """The final agent states, each leaf [M, ...]."""

    def __repr__(self) -> str:
        """Abbreviated, since rows and agents can be large."""
        members, epochs = self.summary["members"], self.summary["epochs"]
        returns = mean_return(np.array([member["final_return"] for member in members]))
        return (
            f"Result({self.summary['environment']}, members: {len(members)}, epochs: {epochs}, "
            f"IQM of the final returns: {returns})"
        )


class Run:
    """Trains the members of a plan, starting from the end of `history`. `directory` must be locked by the caller; None
    writes nothing."""

    def __init__(
        self,
        plan: RunPlan,
        population: Population,
        directory: Path | None = None,
        options: Options = Options(),
        history: History = History(),
    ) -> None:
        self._plan, self._population, self._directory = plan, population, directory
        self._options, self._history = options, history
        self._rows: list[Row] = [*history.rows]
        self._count = len(plan.members)
        self._start = time.perf_counter()
        self._earlier_seconds = history.rows[-1]["wall_seconds"] if history.rows else 0.0
        self._writer: Writer | None = None
        self._callbacks: list[Callback] = []

    def train(self) -> Result:
        """Trains the members to the end, and writes the summary and the figure."""
        first = distributed.is_first()
        with ExitStack() as stack:
            epochs = self._plan.experiment.training.num_epochs
            display = stack.enter_context(Display(self._title(), epochs, self._options.quiet or not first))
            for note in self._history.notes:
                display.note(note)
            self._callbacks.append(display)
            if self._directory and first:
                made = loggers.of_section(self._plan.experiment, self._directory, self._history.rows)
                made += [loggers.Profiler(self._directory)] * self._options.profile
                self._callbacks += [stack.enter_context(logger) for logger in made]
            if self._directory:
                kept = self._plan.experiment.checkpoint.keep
                comes_from = origin.of(self._plan, self._population.version)
                self._writer = stack.enter_context(Writer(self._directory, kept, comes_from))
            compile_seconds = self._compile(display)
            self._start = time.perf_counter()
            agents = self._train(Members(self._plan, self._population, *self._states(), self._last_rows()))
            found = summary.summarize(self._plan, self._rows, self._population) | {"compile_seconds": compile_seconds}
            if self._writer:
                found["checkpoints"] = self._writer.cost()
            if self._directory and first:
                write(self._directory / "summary.json", json.dumps(plain_json(found), indent=2) + "\n")
                from jaxddpg.runs.show import draw_curves  # only now, since importing Matplotlib would delay the start

                draw_curves(self._directory)
        return Result(self._rows, found, agents)

    def _compile(self, display: Display) -> float:
        """Compiles the programs of the run; returns the seconds taken."""
        start, experiment = time.perf_counter(), self._plan.experiment
        if not is_over(experiment, self._last_rows()):
            name, entries = f"{experiment.environment.name} {experiment.agent.algorithm}", cache.entries()
            progress = partial(display.compiling, seconds=cache.compile_seconds(name))
            with distributed.agreeing():  # processes may compile for unequal times, but Gloo connects within 30 s
                self._population.compile(clock_at(experiment.training, 0), bool(self._rows), progress)
                # From JAX's cache the same programs take a fraction of that, and a resumed run has fewer.
                if cache.entries() >= entries + 3 and distributed.is_first():
                    cache.keep_compile_seconds(name, time.perf_counter() - start)
                memory.check_compiled(self._plan, self._population, self._directory is not None)
            self._population.gather(self._population.inputs.active)
        return time.perf_counter() - start

    def _last_rows(self) -> list[Row]:
        """The rows of the last completed epoch; empty before the first."""
        return self._rows[-self._count :]

    def _states(self) -> tuple[State, Best | None]:
        """The states and best policies at the end of the history, or the initial ones if there is none."""
        if not self._directory or not self._history.rows:
            return self._population.init(), None
        return read_states(self._directory, self._population, self._history)

    def _train(self, members: Members) -> State:
        """Trains the remaining epochs and returns the final agents. The next epoch runs while the previous one is
        logged and checkpointed."""
        experiment, saved, rows = self._plan.experiment, time.perf_counter(), self._last_rows()
        finish = None if is_over(experiment, rows) else self._begin(members, self._history.epoch + 1, rows)
        while finish:
            rows = finish()
            if self._writer:
                members.keep_best(rows)
            late = time.perf_counter() - saved >= experiment.checkpoint.interval_seconds
            stop, due = distributed.any_has(self._should_stop(members, rows), late)
            last = stop or is_over(experiment, rows)
            if self._writer and (due or last):
                self._writer.wait()  # memory suffices for two copies of all states
                self._writer.begin(rows[0]["epoch"], members.snapshot())
                saved = time.perf_counter()
            try:
                finish = None if last else self._begin(members, rows[0]["epoch"] + 1, rows)
            finally:
                self._log(rows)
        if self._writer:
            self._writer.wait()
        return self._population.gather(members.state.agent)

    def _begin(self, members: Members, epoch: int, before: Sequence[Row]) -> Callable[[], list[Row]]:
        """Dispatches an epoch and returns immediately, with a function that waits for its rows."""
        begun, clock = time.perf_counter(), clock_at(self._plan.experiment.training, epoch)
        members.advance(epoch, before)
        trained: Callable[[], HostMetrics] = dict
        if epoch:
            members.state, trained = self._population.epoch(clock, members.state, members.inputs)
        evaluated = self._population.evaluate(clock, members.state.agent, members.inputs)
        identities, health = members.identities, members.state.health
        return partial(self._finish, epoch, begun, identities, before, health, trained, evaluated)

    def _finish(
        self,
        epoch: int,
        begun: float,
        identities: Sequence[Row],
        before: Sequence[Row],
        health: Divergence,
        trained: Callable[[], HostMetrics],
        evaluated: Callable[[], HostMetrics],
    ) -> list[Row]:
        """Waits for a dispatched epoch and returns its rows."""
        measured, learned = evaluated(), trained()
        now, training = time.perf_counter(), self._plan.experiment.training
        found = self._population.gather(health)
        seconds, so_far = now - begun, self._earlier_seconds + now - self._start
        return rows_of_epoch(training, epoch, identities, before, found, learned, measured, seconds, so_far)

    def _should_stop(self, members: Members, rows: Sequence[Row]) -> bool:
        stop = self._options.should_stop()
        if self._options.on_epoch:
            stop |= bool(self._options.on_epoch(rows, self._population.gather(members.state.agent)))
        return stop

    def _log(self, rows: list[Row]) -> None:
        """Passes the rows of an epoch to all callbacks, then commits the pending checkpoint."""
        self._rows += rows
        for callback in self._callbacks:
            callback.epoch(rows)
        if self._writer:
            self._writer.commit()

    def _title(self) -> str:
        """The first line of output: experiment, device placement and run directory."""
        placement, count, processes = self._population.placement, self._count, jax.process_count()
        row, platform = placement.mesh.shape.get(sharding.AXIS, 1), placement.mesh.devices.flat[0].platform
        each = placement.each
        devices = -(-count // each) * row
        parts = [
            f"{count} member{'s'[: count > 1]} on {devices} {platform} device{'s'[: devices > 1]}"
            + f" of {processes} processes" * (processes > 1)
        ]
        parts += [f"each in {row} shards"] if row > 1 else []
        parts += [f"{each} per device, {placement.block} at a time"] if each > placement.block else []
        parts += [f"{idle} idle"] if (idle := jax.device_count() - devices) else []
        where = f" -> {self._directory}" if self._directory else ""
        number = f"run {self._plan.position + 1} of {self._plan.num_runs}: " if self._plan.num_runs > 1 else ""
        return f"{number}{self._plan.experiment.environment.name}, {', '.join(parts)}{where}"


@contextmanager
def readable_errors(directory: Path | None) -> Iterator[None]:
    """Converts out-of-memory, disk and lost-process errors into readable ones."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise ConfigError(
                [
                    "out of memory; reduce replay.capacity, population.num_seeds, evaluation.num_episodes or "
                    "hidden_sizes, and use a new run directory"
                ]
            ) from error
        if called_back := callback_error(error):
            raise RunError(f"the environment failed in a callback: {called_back}") from error
        if not (jax.distributed.is_initialized() and distributed.is_loss(str(error))):
            raise
        remedy = f"`{config.command('resume', directory)}` continues from the newest checkpoint"
        raise RunError(f"{distributed.LOST} ({config.first_line(error)}); {remedy}") from error
    except jax.errors.KeyReuseError as error:
        remedy = "JAX may report this wrongly of several members at once; check with --population.placement 1"
        raise RunError(f"a PRNG key was reused: {config.first_line(error)}; {remedy}") from error
    except OSError as error:
        reason = ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)
        remedy = ""
        if directory is not None:
            full, denied = error.errno in (errno.ENOSPC, errno.EDQUOT), error.errno == errno.EACCES
            first = "free some space, then " * full + "correct its permissions, then " * denied
            resume = f"{first}run `{config.command('resume', directory)}` to continue"
            remedy = f"; {resume if directory.is_dir() else f'{directory} is no longer there'}"
        raise RunError(f"{reason}{remedy}") from error
