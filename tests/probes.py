"""Environments so small that their values are known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxddpg.envs.episodic import episodic
from jaxddpg.types import Environment, TimeStep, Transition


def endless_reward(reward: float = 1.0, limit: int = 4) -> Environment:
    """Constant reward, cut by a time limit, never terminated: the value is reward / (1 - gamma) for every policy.

    A learner that takes the limit for an end sees at most `limit` rewards. There is one observation only.
    """
    return _clockwork(limit, lambda time, action: (jnp.float32(reward), jnp.zeros((), bool)), blind=True)


def reward_then_end(reward: float = 1.0) -> Environment:
    """One step with a reward, then termination: the value is the reward, whatever gamma."""
    return _clockwork(1, lambda time, action: (jnp.float32(reward), jnp.ones((), bool)))


def quadratic(best: tuple[float, ...] = (0.3, -0.6)) -> Environment:
    """One step with reward -|a - best|^2: the actor must find `best`, the critic 0 there."""
    return _clockwork(
        1, lambda time, action: (-jnp.sum((action - jnp.array(best)) ** 2), jnp.ones((), bool)), action_size=len(best)
    )


def offset_observation(offset: float = 1000.0) -> Environment:
    """One step with reward -(a - 0.8 x)^2, x uniform in [-1, 1] and observed as x + offset: doing nothing earns -0.213,
    the best policy 0."""
    return episodic(
        reset=lambda key: jax.random.uniform(key, minval=-1.0, maxval=1.0),
        step=lambda key, state, action: (state, -((action[0] - 0.8 * state) ** 2), jnp.ones((), bool)),
        observe=lambda state: state[None] + offset,
        observation_size=1,
        action_size=1,
        episode_length=1,
    )


def boxed() -> Environment:
    """One step, with two actions of different, asymmetric bounds."""
    return episodic(
        reset=lambda key: jax.random.normal(key, (3,)),
        step=lambda key, state, action: (state, -jnp.sum((action - state[:2]) ** 2), jnp.ones((), bool)),
        observe=lambda state: state,
        observation_size=3,
        action_size=2,
        episode_length=1,
        action_low=jnp.array([0.0, -3.0]),
        action_high=jnp.array([1.0, 5.0]),
    )


def echo(limit: int = 3, action_size: int = 1) -> Environment:
    """The reward is the first action, so that what was executed can be read off; truncated after `limit` steps."""
    return _clockwork(limit, lambda time, action: (action[0], jnp.zeros((), bool)), action_size=action_size)


def noisy_reward(deviation: float = 1.0) -> Environment:
    """One step with reward N(0, deviation^2): the value is 0."""
    return episodic(
        reset=lambda key: jnp.zeros(()),
        step=lambda key, state, action: (state + 1, deviation * jax.random.normal(key), jnp.ones((), bool)),
        observe=lambda state: state[None],
        observation_size=1,
        action_size=1,
        episode_length=1,
    )


def rewarding(mean=1.0, deviation=0.0, limit=4, terminates=False) -> Environment:
    """The reward of every step is N(mean, deviation^2). Each step ends its episode if `terminates`; else a time limit
    cuts it. There is one observation only. All arguments may be traced."""
    return episodic(
        reset=lambda key: jnp.zeros(()),
        step=lambda key, state, action: (state, mean + deviation * jax.random.normal(key), jnp.asarray(terminates)),
        observe=lambda state: state[None],
        observation_size=1,
        action_size=1,
        episode_length=limit,
    )


def spoiled(nan_at_step=jnp.inf, inf_at_step=jnp.inf, lost_at_step=jnp.inf, limit: int = 8) -> Environment:
    """The reward 1 - a^2, but not a number or infinite at one step of its life, or no observation from one step on."""

    def observe(life: jax.Array) -> jax.Array:
        return jnp.where(life == lost_at_step + 1, jnp.nan, life[None] % limit / limit)

    def step(key, life, action):
        reward = 1.0 - action[0] ** 2
        reward = jnp.where(life == nan_at_step, jnp.nan, jnp.where(life == inf_at_step, jnp.inf, reward))
        life += 1
        no, over = jnp.zeros((), bool), life % limit == 0
        return life, TimeStep(observe(life), observe(life), reward, terminated=no, truncated=over)

    return Environment(lambda key: (jnp.zeros(()), observe(jnp.zeros(()))), step, 1, 1, limit)


@struct.dataclass
class Foreign:
    """A state as physics engines have: an array without elements, and constants that JAX does not see."""

    x: jax.Array
    empty: jax.Array
    table: np.ndarray = struct.field(pytree_node=False)


_TABLE = np.arange(3.0)


def foreign(limit: int = 5) -> Environment:
    """Bring x to 0: the state is a `Foreign`."""
    return episodic(
        reset=lambda key: Foreign(jax.random.uniform(key), jnp.zeros((0, 3)), _TABLE),
        step=lambda key, state, action: (state.replace(x=state.x + action[0]), -(state.x**2), jnp.zeros((), bool)),
        observe=lambda state: state.x * state.table,
        observation_size=3,
        action_size=1,
        episode_length=limit,
    )


def batch(key: jax.Array, environment: Environment, size: int) -> Transition:
    """Random transitions of an environment's sizes."""
    keys = jax.random.split(key, 4)
    observation, following = (jax.random.normal(k, (size, environment.observation_size)) for k in keys[:2])
    action = jax.random.uniform(keys[2], (size, environment.action_size), minval=-1.0)
    return Transition(observation, action, jax.random.normal(keys[3], (size,)), following, jnp.full(size, 0.9))


def _clockwork(limit, outcome, action_size: int = 1, blind: bool = False) -> Environment:
    """State and observation: the time in the episode; the first observation of an episode is 0."""
    return episodic(
        reset=lambda key: jnp.zeros((), jnp.int32),
        step=lambda key, time, action: (time + 1, *outcome(time, action)),
        observe=lambda time: jnp.where(blind, 0.0, time[None].astype(jnp.float32) / limit),
        observation_size=1,
        action_size=action_size,
        episode_length=limit,
    )
