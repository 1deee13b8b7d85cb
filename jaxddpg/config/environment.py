"""The environment that a section names, and whether it keeps the contract of `Environment`."""

import warnings
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxddpg import settings
from jaxddpg.config import tracing, trial
from jaxddpg.config.reader import ConfigError
from jaxddpg.config.user_code import check_parameters, load_function, sentence
from jaxddpg.envs.gymnax import check_box, from_gymnax
from jaxddpg.envs.registry import CONTINUOUS, REGISTERED
from jaxddpg.parts.structure import has_key, kind, mismatch
from jaxddpg.types import Environment, Key, State, TimeStep, seed_key

MAX_EPISODE_LENGTH = 10**8


def make_environment(section: settings.Environment) -> Environment:
    """The environment that a name stands for: gymnax's, ours, one of Brax or MuJoCo Playground, one that is registered,
    or what `package.module:factory` makes.

    A factory is called with the parameters and returns an `Environment` or a gymnax environment.

    Raises:
        ConfigError: there is no such environment, or it cannot be used.
    """
    try:
        make = _factory(section)
        if make is None:
            return from_gymnax(section.name, section.parameters)
        check_parameters(make, section.parameters)
        made = make(**section.parameters)
        if isinstance(made, Environment):
            for size in ("observation_size", "action_size", "episode_length"):
                if not isinstance(getattr(made, size), int) or getattr(made, size) < 1:
                    raise ValueError(f"its {size} is {getattr(made, size)}, but must be an integer of at least 1")
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
        raise ConfigError([f"environment {section.name} cannot be used: {sentence(error)}"]) from error


def _factory(section: settings.Environment) -> Callable[..., Any] | None:
    """What makes the environment of a name; None where gymnax does."""
    name = section.name
    if section.library:
        return partial(load_function(f"jaxddpg.envs.{section.library}:make"), name.partition(":")[2])
    if name in REGISTERED:
        return REGISTERED[name]
    place = (CONTINUOUS[name].factory or name) if name in CONTINUOUS else name
    if ":" not in place:
        return None
    make = load_function(place)
    if isinstance(make, Environment):
        raise ValueError(f"{place} is an Environment, but must be a function that returns one")
    return make


def check_environment(section: settings.Environment) -> None:
    """Looks at an environment before anything depends on it.

    Raises:
        ConfigError: with its concrete numbers its Box or an episode is impossible, or with traced ones its functions
            violate the contract of `Environment`, as shown by tracing or by a few episodes of a custom environment.
    """
    environment = make_environment(section)
    try:
        before, after, start, time_step = jax.eval_shape(_glimpse(), section, seed_key(0))
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError([f"environment {section.name} cannot be traced by JAX: {sentence(error)}"]) from error
    observation, number, flag = f"float32[{environment.observation_size}]", "float32[]", "bool[]"
    contract = {
        "reset's observation": (start, observation),
        "observation": (time_step.observation, observation),
        "final_observation": (time_step.final_observation, observation),
        "reward": (time_step.reward, number),
        "terminated": (time_step.terminated, flag),
        "truncated": (time_step.truncated, flag),
    }
    wrong: dict[tuple[str, str], list[str]] = {}
    for name, (leaf, wanted) in contract.items():
        if kind(leaf) != wanted:
            wrong.setdefault((kind(leaf), wanted), []).append(name)
    errors = [
        f"environment {section.name} returns {' and '.join(names)} as {found}, but must return {wanted}"
        for (found, wanted), names in wrong.items()
    ]
    if differs := mismatch("reset", before, "step", after):
        errors.append(f"environment {section.name} cannot be used: {differs}")
    if has_key(before):
        errors.append(f"environment {section.name} stores a PRNG key in its state; use the key passed to step instead")
    if not 1 <= environment.episode_length <= MAX_EPISODE_LENGTH:
        errors.append(
            f"environment {section.name} has episode_length {environment.episode_length}, but it must be at least 1 "
            f"and at most {MAX_EPISODE_LENGTH}, because each evaluation runs full episodes"
        )
    if errors:
        raise ConfigError(errors)
    if section.name not in CONTINUOUS and not section.library:
        try:
            ends = trial.ended(_player(digest(section))(section, seed_key(0)))
        except Exception as error:
            raise ConfigError([f"environment {section.name} cannot be used: {sentence(error)}"]) from error
        if errors := trial.errors(ends, environment.episode_length):
            raise ConfigError([f"environment {section.name} {error}" for error in errors])
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
