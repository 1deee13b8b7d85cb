"""A run from start to end, and what can be made of it afterwards; the only room that knows all others."""

import dataclasses
import datetime
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxddpg import checkpoint, config, memory, plotting, rendering, reporting, settings
from jaxddpg.composition import build, check_member, make_agent, make_environment
from jaxddpg.config import ConfigError
from jaxddpg.envs.known import CONTINUOUS
from jaxddpg.population import Population, make_population
from jaxddpg.settings import Experiment
from jaxddpg.statistics import confidence_interval, interquartile_mean
from jaxddpg.training import Health, clock_at
from jaxddpg.types import Agent, Clock, Environment, Key, State, TimeStep, rescale

_IN_USE = "--run-dir {} already holds a run; name another, or none for a new one; `jaxddpg resume` goes on with a run"
_SMALLER = "lower replay.capacity, population.num_seeds or the hidden_sizes, and name a new --run-dir"


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


def use_all_cores() -> None:
    """One virtual CPU device per core, where nobody has decided otherwise and JAX has not started yet."""
    configured = jax.config.jax_num_cpu_devices >= 0  # type: ignore[attr-defined]
    if not configured and "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        with suppress(RuntimeError):  # the backend runs already
            jax.config.update("jax_num_cpu_devices", cores)


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
        OSError: the disk is full or cannot be written; the newest sound checkpoint stays, to be resumed from.
    """
    experiment = config.checked(experiment)
    _check_extras(experiment.reporting)
    if directory is None:
        _check_runs_here(experiment, on_disk=False)
        return _run(experiment, None, quiet, stopping)
    directory = Path(directory)
    _check_directory(directory)
    _check_runs_here(experiment)
    with _claimed(directory):
        if (directory / "config.yaml").exists():  # of two runs that start together, one got it
            raise ConfigError([_IN_USE.format(directory)])
        _write(directory / "config.yaml", config.dump(experiment))
        return _run(experiment, directory, quiet, stopping)


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
            placement. They are written into the run's `config.yaml` and listed in `summary.json`.
        quiet: shows no progress.
        stopping: asked after each epoch whether to end the run there.

    Raises:
        ConfigError: the directory holds no run or another process uses it, or a change would alter what is learned.
        OSError: as for `run`.
    """
    directory = Path(directory)
    experiment, changed = config.extended(directory, changes or {})
    _check_extras(experiment.reporting)
    _check_runs_here(experiment)
    with _claimed(directory):
        reached = next(iter(checkpoint.epochs(directory)), 0)
        if experiment.training.num_epochs < reached:
            asked = experiment.training.num_epochs
            raise ConfigError([f"training.num_epochs is {asked}, but the run has reached {reached}; use more"])
        _write(directory / "config.yaml", config.dump(experiment))
        record = {"date": datetime.datetime.now().isoformat(timespec="seconds"), "epoch": reached, "changes": changed}
        with (directory / "resumptions.jsonl").open("a") as file:
            file.write(json.dumps(record | {"versions": _versions()}) + "\n")
        return _run(experiment, directory, quiet, stopping)


def _run(experiment: Experiment, directory: Path | None, quiet: bool, stopping: Callable[[], bool]) -> Result:
    """Trains from the newest sound checkpoint of a directory that is ours, or from the start where there is none."""
    try:
        return _train_and_tell(experiment, directory, quiet, stopping)
    except jax.errors.JaxRuntimeError as error:
        if "memory" not in str(error):
            raise
        raise ConfigError([f"there is not enough memory for this experiment; {_SMALLER}"]) from error
    except OSError as error:
        raise RunError(f"{error.strerror or error}; make room, then `jaxddpg resume {directory}`") from error


def _check_runs_here(experiment: Experiment, on_disk: bool = True) -> None:
    """ConfigError where the parts do not fit each other, or this machine's memory."""
    use_all_cores()
    check_member(experiment.member())
    count, on_cpu = experiment.population.num_seeds, jax.default_backend() == "cpu"
    sharing = count if on_cpu else -(-count // jax.local_device_count())
    like = _like(build(experiment.member()).init, sharing)
    memory.check(experiment, like, 2 if on_cpu and on_disk else 1, memory.free())


def _train_and_tell(
    experiment: Experiment, directory: Path | None, quiet: bool, stopping: Callable[[], bool]
) -> Result:
    count = experiment.population.num_seeds
    title = f"{experiment.environment.name}, {count} member{'s'[: count > 1]}{f' -> {directory}' if directory else ''}"
    with ExitStack() as stack:
        display = stack.enter_context(reporting.Display(title, experiment.training.num_epochs, quiet))
        reporters: list[reporting.Reporter] = [display]
        rows: list[reporting.Row] = []
        state: State = None
        writer: checkpoint.Writer | None = None
        if directory is not None:
            rows, state = _recall(directory, experiment, display.note)
            reporters += [stack.enter_context(reporter) for reporter in _writers(experiment, directory, rows)]
            writer = stack.enter_context(checkpoint.Writer(directory, experiment.checkpoint.keep))
        population, start = _population(experiment), time.perf_counter()
        population.compile(clock_at(experiment.training, 0))
        compile_seconds = time.perf_counter() - start
        rows, agents = _train(experiment, population, rows, state, reporters, writer, stopping)
        summary = _summary(experiment, rows, population) | {"compile_seconds": compile_seconds}
        if directory is not None and writer is not None:
            summary["checkpoints"] = writer.cost()
            _write(directory / "summary.json", json.dumps(reporting.plain_json(summary), indent=2) + "\n")
            plot([directory], directory / "learning_curve.png")
    return Result(rows, summary, agents)


def _recall(directory: Path, experiment: Experiment, note: Callable[[str], None]) -> tuple[list[reporting.Row], State]:
    """The rows up to the newest sound checkpoint, and its state; none where the run has to start anew."""
    rows = reporting.read_rows(directory / "metrics.jsonl")
    like = _like(build(experiment.member()).init, experiment.population.num_seeds)
    for epoch in checkpoint.epochs(directory):
        kept = [row for row in rows if row["epoch"] <= epoch]
        if len(kept) != (epoch + 1) * experiment.population.num_seeds:
            note(f"the metrics end before the checkpoint of epoch {epoch}; an older one is looked for")
            continue
        try:
            state = checkpoint.restore(directory, epoch, like)
        except checkpoint.DamagedError as error:
            note(f"{error}; an older one is looked for")
            continue
        except ValueError as error:
            raise ConfigError([f"the checkpoints of {directory} cannot be read: {_first_line(error)}"]) from error
        note(f"going on after epoch {epoch}")
        return kept, state
    if rows:
        note("there is no checkpoint to go on from; starting anew")
    return [], None


def _like(init: Callable[[Key], State], members: int) -> Any:
    """The shapes and types of what `init` makes for so many members, each leaf [M, ...]."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((members, *leaf.shape), leaf.dtype),
        jax.eval_shape(init, jax.random.key(0)),
    )


def evaluate(directory: str | Path, num_episodes: int = 100, seed: int = 0) -> list[reporting.Row]:
    """Evaluates the final policies of a run without noise, on episodes that training never saw; a row per member.

    Raises:
        ConfigError: the directory holds no finished run, or no episode is asked for.
    """
    if num_episodes < 1:
        raise ConfigError([f"--num-episodes is {num_episodes}, but must be at least 1"])
    _check_seed(seed)
    use_all_cores()
    experiment, agents = _restore(Path(directory))
    experiment = dataclasses.replace(experiment, evaluation=settings.Evaluation(num_episodes))
    population = _population(experiment)
    # Training's epochs count up from 0; these count down from the last there is.
    clock = Clock(np.uint32(2**32 - 1 - seed), np.uint32(0), experiment.training.num_envs)
    metrics = population.evaluate(clock, population.scatter(agents))()
    return [
        {"member": member, "seed": experiment.population.seed + member}
        | {name: float(values[member]) for name, values in metrics.items()}
        for member in range(experiment.population.num_seeds)
    ]


def load_policy(directory: str | Path, member: int = 0) -> Callable[[Any], np.ndarray]:
    """The final noiseless policy of one member of a run: observation [..., O] -> action [..., A], in the units of the
    environment."""
    _, environment, agent, state = _restore_member(Path(directory), member)
    low, high = jnp.asarray(environment.action_low), jnp.asarray(environment.action_high)

    @jax.jit
    def act(observation: jax.Array) -> jax.Array:
        return rescale(agent.act(state, observation), low, high)

    return lambda observation: np.asarray(act(jnp.asarray(observation, jnp.float32)))


def plot(directories: Sequence[str | Path], path: str | Path) -> None:
    """Draws the learning curves of one or several runs into one picture.

    Raises:
        ConfigError: a directory holds no run with a complete epoch.
    """
    path = Path(path)
    if path.is_dir() or not path.suffix:
        raise ConfigError([f"--output {path} is no name of a picture; name one such as curves.png"])
    runs = []
    for directory in map(Path, directories):
        experiment = config.of_run(directory)
        try:
            env_steps, metrics = plotting.read_metrics(directory / "metrics.jsonl")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError([f"the metrics of {directory} cannot be read: {error!r}"]) from error
        known = CONTINUOUS.get(experiment.environment.name)
        changed = bool(experiment.environment.parameters)
        references = known.references() if known and not changed else {}
        label = experiment.environment.name if len(directories) == 1 else directory.name
        runs.append(plotting.Curves(label, env_steps, metrics, references))
    try:
        plotting.plot(runs, path)
    except (OSError, ValueError) as error:
        raise ConfigError([f"--output {path} cannot be written: {error}"]) from error


def render(directory: str | Path, path: str | Path, member: int = 0, seed: int = 0) -> None:
    """Draws one noiseless episode of the final policy of one member as an animated GIF.

    Raises:
        ConfigError: the directory holds no finished run or no such member, or the picture cannot be written.
    """
    path = Path(path)
    if path.is_dir() or path.suffix.lower() != ".gif":
        raise ConfigError([f"--output {path} is no name of a GIF; name one such as rollout.gif"])
    _check_seed(seed)
    experiment, environment, agent, state = _restore_member(Path(directory), member)
    observations, actions, rewards = _play(jax.random.key(seed), environment, agent, state)
    name, parameters = experiment.environment.name, experiment.environment.parameters
    try:
        rendering.draw(rendering.Rollout(name, observations, actions, rewards, parameters), path)
    except OSError as error:
        raise ConfigError([f"--output {path} cannot be written: {error.strerror or error}"]) from error


def _play(key: Key, environment: Environment, agent: Agent, state: State) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One noiseless episode of T steps: observations [T + 1, O], actions [T, A] in the environment's own units and
    rewards [T]."""
    low, high = jnp.asarray(environment.action_low), jnp.asarray(environment.action_high)

    def step(carry: tuple[State, jax.Array], key: Key) -> tuple[tuple[State, jax.Array], tuple[jax.Array, TimeStep]]:
        world, observation = carry
        action = jnp.clip(agent.act(state, observation), -1.0, 1.0)
        world, time_step = environment.step(key, world, action)
        return (world, time_step.observation), (rescale(action, low, high), time_step)

    @jax.jit
    def play(key: Key) -> tuple[jax.Array, tuple[jax.Array, TimeStep]]:
        reset_key, step_key = jax.random.split(key)
        world, start = environment.reset(reset_key)
        keys = jax.random.split(step_key, environment.episode_length)
        return start, jax.lax.scan(step, (world, start), keys)[1]

    start, (actions, time_steps) = jax.device_get(play(key))
    over = time_steps.terminated | time_steps.truncated
    length = int(over.argmax()) + 1 if over.any() else len(over)
    observations = np.concatenate([start[None], time_steps.final_observation[:length]])
    return observations, actions[:length], time_steps.reward[:length]


def _population(experiment: Experiment) -> Population:
    count, first = experiment.population.num_seeds, experiment.population.seed
    return make_population(
        build, [experiment.member()] * count, range(first, first + count), experiment.population.placement
    )


def _train(
    experiment: Experiment,
    population: Population,
    history: list[reporting.Row],
    state: State | None,
    reporters: list[reporting.Reporter],
    writer: checkpoint.Writer | None,
    stopping: Callable[[], bool],
) -> tuple[list[reporting.Row], State]:
    """The epochs after those of `history`, which led to `state`, one after the other: all rows and the final agents."""
    training, count = experiment.training, experiment.population.num_seeds
    reached, earlier = (history[-1]["epoch"], history[-1]["wall_seconds"]) if history else (-1, 0.0)
    start = saved = time.perf_counter()
    groups = population.init() if state is None else population.scatter(state)

    def begin(epoch: int) -> Callable[[], list[reporting.Row]]:
        """Starts an epoch and returns at once, with what waits for its rows."""
        nonlocal groups
        begun, clock = time.perf_counter(), clock_at(training, epoch)
        training_metrics: Callable[[], dict] = dict
        if epoch:
            groups, training_metrics = population.epoch(clock, groups)
        evaluation_metrics = population.evaluate(clock, [group.agent for group in groups])
        health = [group.health for group in groups]

        def finish() -> list[reporting.Row]:
            metrics = {f"eval/{name}": values for name, values in evaluation_metrics().items()}
            metrics |= {f"train/{name}": values for name, values in _means(training_metrics()).items()}
            now = time.perf_counter()
            return _rows(experiment, epoch, population.gather(health), metrics, now - begun, earlier + now - start)

        return finish

    over = reached == training.num_epochs or (bool(history) and halted(experiment, history[-count:]))
    finish = None if over else begin(reached + 1)
    while finish:
        rows = finish()
        epoch = rows[0]["epoch"]
        last = stopping() or epoch == training.num_epochs or halted(experiment, rows)
        due = last or time.perf_counter() - saved >= experiment.checkpoint.interval_seconds
        kept = population.gather(groups) if writer and due else None
        # While these rows are told and kept, the next epoch computes.
        finish = None if last else begin(epoch + 1)
        history = history + rows
        for reporter in reporters:
            reporter.epoch(rows)
        if writer and due:
            writer.save(epoch, kept, float(interquartile_mean(np.array([row["eval/return_mean"] for row in rows]))))
            saved = time.perf_counter()
    if writer:
        writer.wait()
    return history, population.gather([group.agent for group in groups])


def _rows(
    experiment: Experiment,
    epoch: int,
    health: Health,
    metrics: dict[str, np.ndarray],
    seconds: float,
    wall_seconds: float,
) -> list[reporting.Row]:
    """The rows of an epoch that took so many seconds, one per member, from its metrics [M]."""
    training, count = experiment.training, experiment.population.num_seeds
    # Counted on the host in Python's integers, which do not wrap.
    env_steps = training.steps_per_epoch * training.num_envs
    updates = int(training.steps_per_epoch * training.updates_per_step)
    counts: dict[str, Any] = {
        "env_steps": training.warmup_steps * training.num_envs + epoch * env_steps,
        "updates": epoch * updates,
        "wall_seconds": wall_seconds,
    }
    rates = {"env_steps": count * env_steps / seconds, "updates": count * updates / seconds} if epoch else {}
    return [
        {"epoch": epoch, "member": member, "seed": experiment.population.seed + member}
        | counts
        | {
            "diverged_by": Health.REASONS[health.reason[member]],
            "diverged_at": (int(health.step[member]) + 1) * training.num_envs if health.diverged[member] else None,
        }
        # What a diverged member would have done is not measured.
        | {name: math.nan if health.diverged[member] else float(values[member]) for name, values in metrics.items()}
        | {f"perf/{name}_per_second": rate for name, rate in rates.items()}
        for member in range(count)
    ]


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


def _writers(experiment: Experiment, directory: Path, rows: list[reporting.Row]) -> list[reporting.Reporter]:
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
    if (directory / "config.yaml").exists() or (directory / "metrics.jsonl").exists():
        raise ConfigError([_IN_USE.format(directory)])
    parent = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigError([f"--run-dir {directory} cannot be written: {parent} allows no new files; name another"])


@contextmanager
def _claimed(directory: Path) -> Iterator[None]:
    """Makes a run directory, and holds it against other processes; ConfigError where it cannot be used."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        finally:
            os.close(descriptor)
    except BlockingIOError:
        raise ConfigError([f"another process is training in {directory}; wait for it, or name another"]) from None
    except OSError as error:
        raise ConfigError([f"--run-dir {directory} cannot be written: {error.strerror}; name another"]) from error


def _write(path: Path, text: str) -> None:
    """Writes a file in one step: whatever happens, it is the old one or the new one."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


def _restore(directory: Path) -> tuple[Experiment, State]:
    """The experiment of a run and its final agent states, each leaf [M, ...]."""
    experiment = config.of_run(directory)
    agent = make_agent(make_environment(experiment.environment), experiment.agent)
    like = {"agent": _like(agent.init, experiment.population.num_seeds)}
    reason = f"{directory} holds no checkpoint; was the run stopped before its first epoch ended?"
    for epoch in checkpoint.epochs(directory):
        try:
            return experiment, checkpoint.restore(directory, epoch, like)["agent"]
        except ValueError as error:
            reason = _first_line(error)
            if not isinstance(error, checkpoint.DamagedError):
                break
    raise ConfigError([f"the policies of {directory} cannot be read: {reason}"])


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0][:200]


def _restore_member(directory: Path, member: int) -> tuple[Experiment, Environment, Agent, State]:
    """The experiment of a run, its environment and agent, and the final agent state of one member."""
    experiment, agents = _restore(directory)
    if not 0 <= member < experiment.population.num_seeds:
        raise ConfigError([f"member is {member}, but must be at least 0 and below {experiment.population.num_seeds}"])
    environment = make_environment(experiment.environment)
    agent = make_agent(environment, experiment.agent)
    return experiment, environment, agent, jax.tree.map(lambda leaf: jnp.asarray(leaf[member]), agents)


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**31:
        raise ConfigError([f"--seed is {seed}, but must be at least 0 and below 2^31"])


def _summary(experiment: Experiment, rows: list[reporting.Row], population: Population) -> dict[str, Any]:
    count = experiment.population.num_seeds
    members = []
    for member in range(count):
        own = [row for row in rows if row["member"] == member]
        best = max(own, key=lambda row: np.nan_to_num(row["eval/return_mean"], nan=-np.inf))
        members.append(
            {
                "member": member,
                "seed": own[-1]["seed"],
                "final_return": own[-1]["eval/return_mean"],
                "best_return": best["eval/return_mean"],
                "best_epoch": best["epoch"],
                "diverged_by": own[-1]["diverged_by"],
                "diverged_at": own[-1]["diverged_at"],
            }
        )
    final = np.array([member["final_return"] for member in members])
    low, high = confidence_interval(final)
    last, device = rows[-1], jax.local_devices()[0]
    steady = {
        name: float(np.median([row[name] for row in rows if name in row] or [np.nan]))
        for name in ("perf/env_steps_per_second", "perf/updates_per_second")
    }
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use") if device.platform != "cpu" else None
    compiled = population.programs["epoch"].compiled
    analysis = compiled.memory_analysis() if compiled else None
    return {
        "environment": experiment.environment.name,
        "members": members,
        "final_return_iqm": float(interquartile_mean(final)),
        "final_return_interval_95": [float(low), float(high)],
        "epochs": last["epoch"],
        "env_steps_per_member": last["env_steps"],
        "env_steps_total": last["env_steps"] * count,
        "updates_total": last["updates"] * count,
        "wall_seconds": last["wall_seconds"],
        "env_steps_per_second": steady["perf/env_steps_per_second"],
        "updates_per_second": steady["perf/updates_per_second"],
        "peak_memory_bytes": peak or _peak_rss(),
        "state_bytes": memory.parts(_like(build(experiment.member()).init, count)),
        "epoch_temporary_bytes": analysis.temp_size_in_bytes if analysis else None,
        "device": f"{device.device_kind} x {jax.local_device_count()}",
        "versions": _versions(),
        "date": datetime.date.today().isoformat(),
        "config_hash": hashlib.sha256(config.dump(experiment).encode()).hexdigest()[:16],
    }


def _versions() -> dict[str, str]:
    packages = ("jaxddpg", "jax", "flax", "optax", "gymnax")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def _peak_rss() -> int:
    """Bytes; Linux counts in kilobytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
