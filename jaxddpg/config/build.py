"""From settings to records of functions: the environment, the agent, the trainer of one member, the population."""

import importlib
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, assert_never

import jax
import jax.numpy as jnp
import numpy as np

from jaxddpg import settings
from jaxddpg.agents.copdac import copdac
from jaxddpg.agents.ddpg import ddpg
from jaxddpg.config import ConfigError, tracing, trial, variants
from jaxddpg.envs.gymnax import check_box, from_gymnax
from jaxddpg.envs.registry import CONTINUOUS
from jaxddpg.parts import features, noise, replay
from jaxddpg.parts import sharding as shards
from jaxddpg.settings import Experiment, Member
from jaxddpg.training.loop import make_trainer
from jaxddpg.training.population import Population, make_population
from jaxddpg.types import Agent, Environment, Features, Key, Replay, State, TimeStep, Trainer, seed_key

_NOT_THE_USERS = {"jaxddpg", "jax", "jaxlib", "flax", "numpy"} | sys.stdlib_module_names
"""Modules in which an error of the user's code may be raised, but not made."""
REPLAYS: dict[str, Callable[[int], Replay]] = {"uniform": replay.uniform, "latest": replay.latest}


def make_environment(section: settings.Environment) -> Environment:
    """The environment that a name stands for: gymnax's, ours, or what `package.module:factory` makes.

    The factory is called with the parameters and returns an `Environment` or a gymnax environment.

    Raises:
        ConfigError: there is no such environment, or it cannot be used.
    """
    try:
        name = CONTINUOUS[section.name].factory or section.name if section.name in CONTINUOUS else section.name
        if ":" not in name:
            return from_gymnax(name, section.parameters)
        module, _, factory = name.partition(":")
        make = getattr(importlib.import_module(module), factory)
        if not callable(make) or isinstance(make, Environment):
            raise ValueError(f"{factory} has the type {type(make).__name__}, but must be a function that returns one")
        made = make(**section.parameters)
        if isinstance(made, Environment):
            for size in ("observation_size", "action_size", "episode_length"):
                if not isinstance(getattr(made, size), int) or getattr(made, size) < 1:
                    raise ValueError(f"its {size} is {getattr(made, size)}, but must be a whole number, at least 1")
            check_box("it", made.action_low, made.action_high, (made.action_size,))
            return made
        if isinstance(made, type):
            raise ValueError(f"its factory returned the class {made.__name__}; return an instance, {made.__name__}()")
        if isinstance(made, tuple) and made and hasattr(made[0], "default_params"):
            raise ValueError(
                "its factory returned a tuple, as gymnax.make does; return the environment alone, whose parameters are "
                "its default_params"
            )
        if not hasattr(made, "default_params"):
            raise ValueError(
                f"its factory returned {type(made).__name__}, but must return an Environment or a gymnax environment"
            )
        return from_gymnax(made)
    # A factory is somebody else's code: whatever it raises, the user should read it as a sentence.
    except (Exception, SystemExit) as error:
        raise ConfigError([f"environment {section.name} cannot be used: {_sentence(error)}"]) from error


def check_member(member: Member) -> None:
    """Looks at an environment, and at an agent for it, before anything depends on them.

    Raises:
        ConfigError: as `check_environment`, or the agent does not suit the environment.
    """
    check_environment(member.environment)
    try:
        make_agent(make_environment(member.environment), member.agent)
    except ValueError as error:
        raise ConfigError([f"{member.agent.algorithm} cannot learn {member.environment.name}: {error}"]) from error


def check_environment(section: settings.Environment) -> None:
    """Looks at an environment before anything depends on it.

    Raises:
        ConfigError: with its concrete numbers its Box or an episode is impossible, or with traced ones its functions
            do not keep the contract of `Environment`, as far as tracing shows it, or a few episodes of one's own.
    """
    environment = make_environment(section)
    try:
        before, after, start, time_step = jax.eval_shape(_glimpse(), section, seed_key(0))
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError([f"environment {section.name} cannot be traced by JAX: {_sentence(error)}"]) from error
    observation, number, flag = ((environment.observation_size,), "float32"), ((), "float32"), ((), "bool")
    contract = {
        "reset's observation": (start, observation),
        "observation": (time_step.observation, observation),
        "final_observation": (time_step.final_observation, observation),
        "reward": (time_step.reward, number),
        "terminated": (time_step.terminated, flag),
        "truncated": (time_step.truncated, flag),
    }
    faults = [
        f"environment {section.name} gives {name} as {_kind(leaf)}, but must give {kind}{list(shape)}"
        for name, (leaf, (shape, kind)) in contract.items()
        if _kind(leaf) != f"{kind}{list(shape)}"
    ]
    if jax.tree.map(lambda x: (x.shape, x.dtype), before) != jax.tree.map(lambda x: (x.shape, x.dtype), after):
        faults.append(f"environment {section.name} returns from step a state of other shapes or types than from reset")
    if any(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in jax.tree.leaves(before)):
        faults.append(f"environment {section.name} keeps a random key in its state; use the one that step is given")
    if environment.episode_length < 1:
        faults.append(
            f"environment {section.name} has episodes of {environment.episode_length} steps, but they need at least 1"
        )
    if faults:
        raise ConfigError(faults)
    if section.name not in CONTINUOUS:
        try:
            ends = trial.ended(_player(digest(section))(section, seed_key(0)))
        except Exception as error:
            raise ConfigError([f"environment {section.name} cannot be used: {_sentence(error)}"]) from error
        if wrong := trial.faults(ends, environment.episode_length):
            raise ConfigError([f"environment {section.name} {fault}" for fault in wrong])
        for doubt in trial.doubts(ends, environment.episode_length):
            warnings.warn(f"environment {section.name} {doubt}", stacklevel=2)


@lru_cache(maxsize=16)
def _player(version: str) -> Callable[[settings.Environment, Key], trial.Flags]:
    """`trial.play`, compiled once for environments of one computation, whose traced parameters may differ."""
    return jax.jit(lambda section, key: trial.play(make_environment(section), key))


def _glimpse() -> Callable[[settings.Environment, Key], tuple[State, State, jax.Array, TimeStep]]:
    """A function that gives the first state of an environment and the next, the first observation and the first time
    step; a new one each time, as JAX traces a function once, and an environment's code may change."""

    def glimpse(section: settings.Environment, key: Key) -> tuple[State, State, jax.Array, TimeStep]:
        made = make_environment(section)
        reset_key, step_key = jax.random.split(key)
        state, observation = _pair(made.reset(reset_key), "reset must return a state and an observation")
        stepped = made.step(step_key, state, jnp.zeros(made.action_size))
        after, time_step = _pair(stepped, "step must return a state and a TimeStep")
        if not isinstance(time_step, TimeStep):
            raise ValueError(f"step must return a state and a TimeStep, not a {type(time_step).__name__}")
        return state, after, observation, time_step

    return glimpse


def digest(section: settings.Environment) -> str:
    """A digest of what an environment computes and of its sizes, whatever the values of its traced parameters."""
    made = make_environment(section)  # what its import computes is no part of it
    sizes = np.array([made.observation_size, made.action_size, made.episode_length])

    def everything(section: settings.Environment, key: Key) -> Any:
        traced = make_environment(section)
        ranges = (traced.action_low, traced.action_high, traced.observation_low, traced.observation_high)
        return _glimpse()(section, key), [jnp.asarray(end) for end in ranges], jnp.asarray(sizes)

    return tracing.digest(everything, section, seed_key(0))


def _pair(found: Any, rule: str) -> tuple[Any, Any]:
    """What a function of an environment returned, which must be a pair."""
    if not isinstance(found, tuple) or len(found) != 2:
        what = f"{len(found)} values" if isinstance(found, tuple) else f"a {type(found).__name__}"
        raise ValueError(f"{rule}, not {what}")
    return found


def _kind(leaf: Any) -> str:
    """The type and shape of an array, or what stands in the place of one."""
    return f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "dtype") else f"a {type(leaf).__name__}"


def _sentence(error: BaseException) -> str:
    """Where in the user's code an error was raised, its kind where the text alone would not say it, and its first
    line, or else the line of code."""
    if isinstance(error, jax.errors.JaxRuntimeError) and (called_back := callback_error(error)):
        return called_back
    frames = [
        (frame, summary)
        for (frame, _), summary in zip(
            traceback.walk_tb(error.__traceback__), traceback.extract_tb(error.__traceback__), strict=True
        )
        if frame.f_globals.get("__name__", "").split(".")[0] not in _NOT_THE_USERS
    ]
    theirs = [summary for frame, summary in frames if frame.f_globals["__name__"].split(".")[0] != "gymnax"]
    text = next((line for line in str(error).splitlines() if line.strip()), "")
    place = next(reversed(theirs or [summary for _, summary in frames]), None)
    if place is None:
        return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text or 'without a text'}"
    file = Path(place.filename)
    named = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
    return f"{named} line {place.lineno}: {type(error).__name__}: {text or f'{place.line} in {place.name}'}"


def callback_error(error: jax.errors.JaxRuntimeError) -> str | None:
    """Where in the user's code a Python function was that JAX called back and that failed, and how; None where it was
    something else that failed."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines or "callback" not in lines[0]:
        return None
    places = [line.removeprefix("File ").replace('"', "") for line in lines if line.startswith("File ")]
    return ": ".join([*places[-1:], lines[-1]])


def make_agent(
    environment: Environment, section: settings.DDPG | settings.COPDAC, axis_name: str | None = None
) -> Agent:
    """The agent that a section describes; `axis_name` is that of the shards into which its batches fall, if they do."""
    match section:
        case settings.DDPG():
            return ddpg(environment, section, axis_name)
        case settings.COPDAC():
            return copdac(environment, make_features(environment, section.features), section, axis_name)
        case _:
            assert_never(section)


def make_features(
    environment: Environment, section: settings.Tiles | settings.Fourier | settings.Radial | settings.Polynomial
) -> Features:
    """The encoding that a section describes, on its ranges or else the environment's.

    Raises:
        ValueError: there is no finite range, or not one for each observation.
    """
    size = environment.observation_size
    stated = section.low or section.high
    if stated and len(section.low) != size:
        raise ValueError(
            f"agent.features.low and high have {len(section.low)} numbers, but there are {size} observations"
        )
    low, high = (section.low, section.high) if stated else (environment.observation_low, environment.observation_high)
    low, high = (jnp.broadcast_to(jnp.asarray(bound, jnp.float32), (size,)) for bound in (low, high))
    # Environments without bounds often state the largest float instead of infinity.
    ranged = (low > -1e30) & (low < high) & (high < 1e30)
    if not isinstance(ranged, jax.core.Tracer) and not bool(jnp.all(ranged)):
        raise ValueError(
            f"features scale to finite ranges of the observations, but low is {low} and high {high}; state "
            "agent.features.low and agent.features.high, one number per observation, each low below its high"
        )
    match section:
        case settings.Tiles():
            return features.tiles(low, high, section.num_tilings, section.num_tiles)
        case settings.Fourier():
            return features.fourier(low, high, section.order)
        case settings.Radial():
            return features.radial(low, high, section.num_centers, section.width)
        case settings.Polynomial():
            return features.polynomial(low, high, section.order)
        case _:
            assert_never(section)


def build(member: Member) -> Trainer:
    """The trainer of one member, which an `Experiment` also is; built inside `jit`, its numbers may be traced."""
    trainer, num_shards = build_shard(member), member.training.num_shards
    return trainer if num_shards == 1 else shards.together(trainer, num_shards)


def build_shard(member: Member) -> Trainer:
    """The trainer of one of the shards of a member, to be run under the axis `shards.AXIS`; of one that has only one it
    is that of the member."""
    environment, num_shards = make_environment(member.environment), member.training.num_shards
    return make_trainer(
        environment,
        make_agent(environment, member.agent, shards.AXIS if num_shards > 1 else None),
        noise.ornstein_uhlenbeck(**vars(member.noise)),
        REPLAYS[member.replay.sampling](member.replay.capacity // num_shards),
        member.training,
        member.evaluation,
    )


def populate(experiment: Experiment) -> Population:
    """The population of an experiment: every variant of the settings with each of the seeds; ConfigError as
    `check_shares`."""
    check_shares(experiment.training.num_shards, [device.process_index for device in jax.devices()])
    count = experiment.population.num_seeds
    members = [variant.member() for variant in variants(experiment) for _ in range(count)]
    return make_population(
        build_shard,
        members,
        experiment.population.seeds(),
        experiment.population.placement,
        experiment.training.num_shards,
        digest(members[0].environment),
    )


def check_shares(num_shards: int, owners: Sequence[int]) -> None:
    """ConfigError where the rows of devices for the shards of members leave out all devices of a process; `owners` are
    the processes of all devices."""
    count, row = len(owners), shards.devices_each(num_shards, len(owners))
    if without := {*owners} - {*owners[: count // row * row]}:
        what = f"training.num_shards is {num_shards}, which leaves process {min(without)} none of the {count} devices"
        raise ConfigError([f"{what}; start fewer processes, or choose a num_shards that divides {count}"])


def state_like(experiment: Experiment, members: int | None = None) -> State:
    """The shapes and types of the state of so many members, of all by default, each leaf [M, ...]."""
    count = experiment.population.num_members if members is None else members
    alone = jax.eval_shape(build(variants(experiment)[0].member()).init, seed_key(0))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype), alone)
