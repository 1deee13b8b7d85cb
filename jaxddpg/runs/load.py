"""What can be made of a run afterwards: measures, policies, pictures."""

import dataclasses
import json
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxddpg.runs import backend, checkpoint, memory, origin, directory as run_directory
from jaxddpg import config, settings
from jaxddpg.report import figures as plotting, animation as rendering, page as report, console as reporting
from jaxddpg.config.build import make_agent, make_environment, populate, state_like
from jaxddpg.config import ConfigError
from jaxddpg.envs.registry import CONTINUOUS
from jaxddpg.training.evaluation import causes
from jaxddpg.settings import Experiment
from jaxddpg.types import Agent, Clock, Environment, Key, State, TimeStep, rescale, seed_key

NEWEST, BEST = "newest", "best"


def evaluate(
    directory: str | Path, num_episodes: int = 100, seed: int = 0, epoch: int | str = NEWEST
) -> list[reporting.Row]:
    """Evaluates the policies of a run without noise, on episodes that training never saw; a row per member.

    A diverged member has no return; `unmeasured_by` says what was not finite for another.

    Args:
        epoch: of which policies: "newest", "best", those at the best evaluation of each member, or the number of an
            epoch whose checkpoint is kept.

    Raises:
        ConfigError: the directory holds no such checkpoint, or no episode is asked for or more than memory can hold.
    """
    if num_episodes < 1:
        raise ConfigError([f"--num-episodes is {num_episodes}, but must be at least 1"])
    _check_seed(seed)
    backend.start()
    experiment, identities, epochs, agents, diverged = _policies(Path(directory), epoch)
    experiment = dataclasses.replace(experiment, evaluation=settings.Evaluation(num_episodes))
    length, population = make_environment(experiment.environment).episode_length, populate(experiment)
    like, at_once, _ = memory.held(population)
    memory.check_evaluation(experiment, like, length, at_once, memory.free(), "--num-episodes")
    # Training's epochs count up from 0; these count down from the last there is.
    training = experiment.training
    clock = Clock(np.uint32(2**32 - 1 - seed), np.uint32(0), training.num_envs, training.num_shards)
    members = population.enrol([config.variant(experiment, reporting.swept(one)).member() for one in identities])
    metrics = population.evaluate(clock, population.scatter_agents(agents), members)()
    unmeasured_by = causes(metrics)
    return [
        {
            "epoch": epochs[index],
            **member,
            "num_episodes": num_episodes,
            "episode_seed": seed,
            "diverged": bool(diverged[index]),
            "unmeasured_by": "" if diverged[index] else unmeasured_by[index],
        }
        | {name: np.nan if diverged[index] else float(values[index]) for name, values in metrics.items()}
        for index, member in enumerate(identities)
    ]


def load_policy(directory: str | Path, member: int = 0, epoch: int | str = NEWEST) -> Callable[[Any], np.ndarray]:
    """The noiseless policy of one member of a run: observation [..., O] -> action [..., A], in the units of the
    environment; NumPy arrays, for use outside of compiled functions. `epoch` as for `evaluate`; of a diverged member
    the policy before it diverged."""
    _, environment, agent, state = _policy(Path(directory), member, epoch)
    low, high = jnp.asarray(environment.action_low), jnp.asarray(environment.action_high)

    @jax.jit
    def act(observation: jax.Array) -> jax.Array:
        return rescale(agent.act(state, observation), low, high)

    def policy(observation: Any) -> np.ndarray:
        given = np.asarray(observation, np.float32)
        if given.shape[-1:] != (environment.observation_size,):
            raise ValueError(f"observation has shape {given.shape}, but must be [..., {environment.observation_size}]")
        return np.asarray(act(given))

    return policy


def plot(directories: str | Path | Sequence[str | Path], path: str | Path) -> None:
    """Draws the learning curves of one or several runs into one picture.

    Raises:
        ConfigError: a directory holds no run with a complete epoch, or the picture cannot be written.
    """
    path, places = Path(path), _places(directories)
    if path.is_dir() or not path.suffix:
        raise ConfigError([f"--output {path} does not name an image file; use a name such as curves.png"])
    config.check_output(path)
    runs = _all_curves(places, named=len(places) > 1)
    try:
        plotting.plot(runs, path)
    except (OSError, ValueError) as error:
        raise ConfigError([f"--output {path} cannot be written: {error}"]) from error


def write_report(directories: str | Path | Sequence[str | Path], path: str | Path, command: str = "") -> None:
    """Writes a report on runs and sweeps into a directory: `report.md`, pictures and `returns.csv` with every seed.

    Args:
        command: what made the report, to be told in it.

    Raises:
        ConfigError: a directory holds no run with a complete epoch, or the report cannot be written.
    """
    path, places = Path(path), _places(directories)
    if path.exists() and not path.is_dir():
        raise ConfigError([f"--output {path} is a file; name a directory"])
    runs, sources, unfinished = _all_curves(places, named=True), [], []
    for place in places:
        experiment = config.whole(place)
        several = (place / config.SWEEP).exists()
        how = "sweep" if experiment.population.sweep else "train"
        file = place / (config.SWEEP if several else "config.yaml")
        for name, program in config.programs(experiment).items():
            rows = run_directory.rows(place / name, program)
            epoch, last = rows[-1]["epoch"] if rows else None, program.training.num_epochs
            if epoch != last:
                where = "not begun" if epoch is None else f"epoch {epoch} of {last}"
                unfinished.append(f"{place / name} ({where})")
            summary = place / name / "summary.json"
            told = json.loads(summary.read_text()) if summary.exists() else {}
            sources.append(report.Source(f"{place / name}", f"jaxddpg {how} {file}", told))
    try:
        report.write(runs, sources, command, path, unfinished)
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


def _all_curves(directories: Sequence[Path], named: bool) -> list[plotting.Curves]:
    """The curves of runs and sweeps, each with what it has of all that is swept in any of them; `named` says whether
    they bear the names of their directories."""
    paths = dict.fromkeys(path for directory in directories for path in config.whole(directory).population.sweep)
    runs = [curves for directory in directories for curves in _curves(directory, [*paths])]
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


def _curves(directory: Path, paths: Sequence[str]) -> list[plotting.Curves]:
    """The curves of a run or a sweep, of each variant by itself, with its values of settings; the label says what is
    swept, the source is the path of the directory."""
    found = []
    experiment = config.whole(directory)
    programs, names = config.programs(experiment), config.brief(experiment.population.sweep)
    for name, program in programs.items():
        rows = run_directory.rows(directory / name, program)
        try:
            env_steps, metrics = plotting.by_epoch(rows)
        except (ValueError, KeyError, TypeError) as error:
            if len(programs) > 1:
                continue  # its first epoch has not ended
            raise ConfigError([f"the metrics of {directory / name} cannot be drawn: {error}"]) from error
        population = program.population
        selecting = population.selection.method != "none"
        # Of members that go on as each other, none is a variant by itself.
        variants = [dataclasses.replace(program, population=settings.Population())] if selecting else []
        variants = variants or config.variants(program)
        seeds = population.num_members // len(variants)
        for number, variant in enumerate(variants):
            own = slice(number * seeds, (number + 1) * seeds)
            values = {} if selecting else config.told(variant, names)
            known = CONTINUOUS.get(variant.environment.name)
            references = known.references() if known and not variant.environment.parameters else {}
            found.append(
                plotting.Curves(
                    ", ".join(f"{names[path]} {config.text(value)}" for path, value in values.items()),
                    env_steps,
                    {name: curves[:, own] for name, curves in metrics.items()},
                    references,
                    {} if selecting else config.told(variant, paths),
                    _named(variant.environment, names),
                    os.path.abspath(directory),
                    population.seeds()[own],
                    plotting.lineage(rows, [*names]) if selecting else None,
                    plotting.unmeasured(rows)[:, own],
                )
            )
    if not found:
        raise ConfigError([f"the metrics of {directory} cannot be drawn: there is no complete epoch yet"])
    return found


def _named(environment: settings.Environment, swept: Iterable[str]) -> str:
    """The name of an environment with the parameters that are given to it."""
    parameters = {name: config.text(value) for name, value in environment.parameters.items()}
    parameters |= {name: "swept" for name in parameters if f"environment.parameters.{name}" in swept}
    listed = ", ".join(f"{name} {parameters[name]}" for name in sorted(parameters))
    return f"{environment.name} ({listed})" if listed else environment.name


def render(directory: str | Path, path: str | Path, member: int = 0, seed: int = 0, epoch: int | str = NEWEST) -> None:
    """Draws one noiseless episode of the policy of one member as an animated GIF. `epoch` as for `evaluate`.

    Raises:
        ConfigError: the directory holds no such checkpoint or member, or the picture cannot be written.
    """
    path = Path(path)
    if path.is_dir() or path.suffix.lower() != ".gif":
        raise ConfigError([f"--output {path} does not name a GIF; use a name such as rollout.gif"])
    config.check_output(path)
    _check_seed(seed)
    experiment, environment, agent, state = _policy(Path(directory), member, epoch)
    observations, actions, rewards = _play(seed_key(seed), environment, agent, state)
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


class Policies(NamedTuple):
    """What checkpoints say of the policies of a run."""

    experiment: Experiment
    identities: list[reporting.Row]
    """what tells each member from others, at the epoch of its checkpoint"""
    epochs: list[int]
    """[M]"""
    agents: State
    """each leaf [M, ...]"""
    diverged: np.ndarray
    """bool [M]"""


def _policies(directory: Path, epoch: int | str) -> Policies:
    """The policies of a checkpoint of a run."""
    experiment = config.of_run(directory)
    backend.check_devices()
    states = _restored(experiment, directory, epoch)
    epochs, diverged = states["epoch"].tolist(), states["health"].diverged
    if epoch == BEST:  # which was finite, unless there was no such evaluation
        diverged &= states["health"].step < experiment.training.warmup_steps
    identities = config.identities(experiment)
    if experiment.population.selection.method != "none":  # which changes numbers
        rows = run_directory.rows(directory, experiment)
        count = len(identities)
        last = rows[states["at"][0] * count :][:count]
        measured = [rows[epoch * count + member] for member, epoch in enumerate(epochs)]
        chosen = reporting.leader(measured, "eval/return_mean")
        identities = [
            reporting.identity(own) | {"standing": "best" if member == chosen else reporting.standing(row)}
            for member, (own, row) in enumerate(zip(measured, last, strict=True))
        ]
    return Policies(experiment, identities, epochs, states["agent"], diverged)


def _restored(experiment: Experiment, directory: Path, epoch: int | str) -> dict[str, Any]:
    """The agents and the health of members, the epochs of these agents, and the epoch `at` which they were written,
    each leaf [M, ...]; where the newest checkpoint is damaged, of an older one, with a warning."""
    count = experiment.population.num_members
    shapes, reasons = state_like(experiment, count), dict[int, str]()
    wanted = {"agent": shapes.agent, "health": shapes.health}
    if epoch == BEST:
        numbers = jax.ShapeDtypeStruct((count,), np.int32)
        wanted = {"best": {"agent": shapes.agent, "epoch": numbers}, "health": shapes.health}
    found = checkpoint.epochs(directory)
    while left := [candidate for candidate in _candidates(directory, epoch, found) if candidate not in reasons]:
        try:
            origin.check(checkpoint.origin(directory, left[0]), experiment)
            state = checkpoint.restore(directory, left[0], wanted, partial=True)
        except checkpoint.DamagedError as error:
            # A run that is training may have removed it since, for a newer one.
            found = checkpoint.epochs(directory)
            if left[0] in found:
                reasons[left[0]] = str(error)
            continue
        except ConfigError:
            raise
        except ValueError as error:
            reasons[left[0]] = config.first_line(error)
            break
        if reasons:
            warnings.warn(f"{next(iter(reasons.values()))}; the policies are those of epoch {left[0]}", stacklevel=4)
        at = np.full(count, left[0])
        policies = state.pop("best", {}) or {"agent": state.pop("agent"), "epoch": at}
        return policies | {"health": state["health"], "at": at}
    raise ConfigError([f"the policies of {directory} cannot be read: {next(iter(reasons.values()))}"])


def _candidates(directory: Path, epoch: int | str, found: Sequence[int]) -> Sequence[int]:
    """Which of the checkpoints that were found to try, one after the other."""
    if not found:
        raise ConfigError([f"{directory} holds no checkpoint; was the run stopped before its first epoch ended?"])
    if epoch == BEST and checkpoint.holds(directory, found[0], "best") is False:
        raise ConfigError([f"{directory} was written by an earlier version, which kept no best policies; use {NEWEST}"])
    if epoch in (NEWEST, BEST):
        return found
    if epoch not in found:
        raise ConfigError([f"epoch is {epoch}, but must be one of {NEWEST}, {BEST}, {', '.join(map(str, found))}"])
    return [int(epoch)]


def _policy(directory: Path, member: int, epoch: int | str) -> tuple[Experiment, Environment, Agent, State]:
    """The experiment of one member of a run, its environment and agent, and its agent state."""
    experiment, identities, _, agents, _ = _policies(directory, epoch)
    if not 0 <= member < len(identities):
        raise ConfigError([f"member is {member}, but must be at least 0 and below {len(identities)}"])
    variant = config.variant(experiment, reporting.swept(identities[member]))
    environment = make_environment(variant.environment)
    agent = make_agent(environment, variant.agent)
    return variant, environment, agent, jax.tree.map(lambda leaf: jnp.asarray(leaf[member]), agents)


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**31:
        raise ConfigError([f"--seed is {seed}, but must be at least 0 and below 2^31"])
