"""The adapter of gymnax (>= 1.0)."""

import importlib
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxddpg.types import Environment, Key, State, TimeStep, rescale


def from_gymnax(environment: Any, parameters: Mapping[str, Any] | None = None) -> Environment:
    """Makes an `Environment` of a gymnax environment or of the registered name of one.

    Actions in [-1, 1] are clipped and rescaled to the action Box, observations are flattened to [O], and the successor
    where an episode ends is gymnax's `final_observation`.

    Args:
        environment: a `gymnax.environments.environment.Environment` or a name that `gymnax.make` knows.
        parameters: values that replace the environment's default parameters; floats may be traced.

    Raises:
        ValueError: the name or a parameter is unknown, the action space is not a finite Box with low < high, the
            observation space is not a Box, or there is no parameter max_steps_in_episode.
    """
    if isinstance(environment, str):
        # Imported here because it takes a second and starts the JAX backend.
        environment, defaults = _import_gymnax().make(environment)
    else:
        defaults = environment.default_params
    unknown = [name for name in parameters or {} if not hasattr(defaults, name)]
    if unknown:
        raise ValueError(
            f"{environment.name} has no parameter {', '.join(unknown)}; it has {', '.join(vars(defaults))}"
        )
    params = defaults.replace(**parameters or {})
    if not hasattr(params, "max_steps_in_episode"):
        raise ValueError(
            f"{environment.name} has no parameter max_steps_in_episode, the steps after which an episode is truncated; "
            "derive its parameters from gymnax's EnvParams"
        )
    low, high = _box(environment, params)
    size = low.shape[0]
    observation_space = environment.observation_space(params)
    if not (hasattr(observation_space, "low") and hasattr(observation_space, "high")):
        raise ValueError(
            f"{environment.name} has the observation space {type(observation_space).__name__}, but networks take a "
            "single numeric array; return one array (e.g. one-hot encoded) and a Box as its space"
        )

    def flat(observation: Any) -> jax.Array:
        if not hasattr(observation, "dtype"):
            raise ValueError(
                f"{environment.name} returns {type(observation).__name__} observations, but must return a single "
                "numeric array"
            )
        return jnp.ravel(observation).astype(jnp.float32)

    def reset(key: Key) -> tuple[State, jax.Array]:
        observation, state = environment.reset(key, params)
        return _strong(state), flat(observation)

    def step(key: Key, state: State, action: jax.Array) -> tuple[State, TimeStep]:
        action = rescale(action, low, high).reshape(environment.action_space(params).shape)
        observation, state, reward, terminated, truncated, info = environment.step(key, state, action, params)
        time_step = TimeStep(
            observation=flat(observation),
            final_observation=flat(info["final_observation"]),
            reward=jnp.asarray(reward, jnp.float32).reshape(()),
            terminated=jnp.asarray(terminated, bool),
            truncated=jnp.asarray(truncated, bool),
        )
        return _strong(state), time_step

    return Environment(
        reset=reset,
        step=step,
        observation_size=int(np.prod(observation_space.shape, dtype=int)),
        action_size=size,
        episode_length=int(params.max_steps_in_episode),
        action_low=low,
        action_high=high,
        observation_low=jnp.ravel(jnp.asarray(observation_space.low, jnp.float32)),
        observation_high=jnp.ravel(jnp.asarray(observation_space.high, jnp.float32)),
    )


def _import_gymnax() -> Any:
    """Imports gymnax, but not the libraries that some of its environments draw with: they take longer than gymnax
    itself, and are imported when they are used. `importlib.util.LazyLoader` does not help, because `inspect` asks every
    module for its file."""
    libraries = ("seaborn", "matplotlib.pyplot")
    absent = {name: _postponed(name) for name in libraries if name not in sys.modules and "gymnax" not in sys.modules}
    sys.modules.update(absent)
    try:
        return importlib.import_module("gymnax")
    finally:
        for name, module in absent.items():
            if sys.modules.get(name) is module:  # so that others import the real one
                del sys.modules[name]


def _postponed(name: str) -> ModuleType:
    """A module that is imported when something of it is used."""
    module = ModuleType(name)

    def load(attribute: str) -> Any:
        if attribute.startswith("__"):  # asked of every module, e.g. by `inspect`
            raise AttributeError(attribute)
        if sys.modules.get(name) is module:
            del sys.modules[name]
        return getattr(importlib.import_module(name), attribute)

    module.__getattr__ = load  # type: ignore[method-assign]
    return module


def _box(environment: Any, params: Any) -> tuple[Any, Any]:
    """The bounds of the action Box, each [A]; see `check_box`."""
    space = environment.action_space(params)
    if not (hasattr(space, "low") and hasattr(space, "high")):
        raise ValueError(
            f"{environment.name} has the action space {type(space).__name__}, but a deterministic policy gradient "
            "needs a continuous Box"
        )
    return check_box(environment.name, space.low, space.high, space.shape)


def check_box(name: str, low: Any, high: Any, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Broadcasts the bounds of an environment's action Box to its shape and flattens each to [A].

    Raises:
        ValueError: the bounds do not fit the shape; or, where they are not traced, they are not finite or low is not
            below high.
    """
    if any(isinstance(bound, jax.core.Tracer) for bound in jax.tree.leaves((low, high))):
        low, high = (jnp.broadcast_to(jnp.asarray(bound, jnp.float32), shape).ravel() for bound in (low, high))
    else:  # in NumPy, which compiles nothing
        with np.errstate(over="ignore"):  # in a bound that is infinite in float32
            low, high = (np.broadcast_to(np.asarray(bound, np.float32), shape).ravel() for bound in (low, high))
        # Boxes without bounds are sometimes written with the largest float instead of infinity.
        if not np.all((np.abs(low) < 1e30) & (np.abs(high) < 1e30)):
            raise ValueError(
                f"{name} has an unbounded action Box (low {low}, high {high}); actions are scaled to the Box, so it "
                "needs finite bounds"
            )
        if not np.all(low < high):
            raise ValueError(f"{name} has a reversed action Box: low {low} must be below high {high}")
    return low, high


def _strong(state: State) -> State:
    """The state with strong types; gymnax's time starts weakly typed, which would make a scan trace twice."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.asarray(x).dtype), state)
