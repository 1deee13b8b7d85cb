"""Environments so small that their values are known in closed form."""

import jax
import jax.numpy as jnp

from jaxddpg.envs.episodic import episodic
from jaxddpg.types import Environment


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


def echo(limit: int = 3, action_size: int = 1) -> Environment:
    """The reward is the first action, so that what was executed can be read off; truncated after `limit` steps."""
    return _clockwork(limit, lambda time, action: (action[0], jnp.zeros((), bool)), action_size=action_size)


def noisy_reward(deviation: float = 1.0) -> Environment:
    """One step with reward N(0, deviation^2): the value is 0."""
    return episodic(
        start=lambda key: jnp.zeros(()),
        move=lambda key, state, action: (state + 1, deviation * jax.random.normal(key), jnp.ones((), bool)),
        observe=lambda state: state[None],
        observation_size=1,
        action_size=1,
        episode_length=1,
    )


def _clockwork(limit, outcome, action_size: int = 1, blind: bool = False) -> Environment:
    """State and observation: the time in the episode; the first observation of an episode is 0."""
    return episodic(
        start=lambda key: jnp.zeros((), jnp.int32),
        move=lambda key, time, action: (time + 1, *outcome(time, action)),
        observe=lambda time: jnp.where(blind, 0.0, time[None].astype(jnp.float32) / limit),
        observation_size=1,
        action_size=action_size,
        episode_length=limit,
    )
