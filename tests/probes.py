"""Environments so small that their values are known in closed form."""

import jax
import jax.numpy as jnp

from jaxddpg.types import Environment, TimeStep


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


def _clockwork(limit, outcome, action_size: int = 1, blind: bool = False) -> Environment:
    """State and observation: the time in the episode; the first observation of an episode is 0."""

    def observe(time):
        return jnp.where(blind, 0.0, time[None].astype(jnp.float32) / limit)

    def reset(key):
        del key  # always the same
        time = jnp.zeros((), jnp.int32)
        return time, observe(time)

    def step(key, time, action):
        reward, terminated = outcome(time, action)
        time = time + 1
        truncated = time >= limit
        fresh, fresh_observation = reset(key)
        over = terminated | truncated
        return jnp.where(over, fresh, time), TimeStep(
            observation=jnp.where(over, fresh_observation, observe(time)),
            final_observation=observe(time),
            reward=reward,
            terminated=terminated,
            truncated=truncated,
        )

    return Environment(reset, step, observation_size=1, action_size=action_size, episode_length=limit)


def noisy_reward(deviation: float = 1.0) -> Environment:
    """One step with reward N(0, deviation^2): the value is 0."""

    def reset(key):
        del key
        return jnp.zeros(()), jnp.zeros(1)

    def step(key, state, action):
        reward = deviation * jax.random.normal(key)
        done = jnp.ones((), bool)
        return state, TimeStep(jnp.zeros(1), jnp.ones(1), reward, done, ~done)

    return Environment(reset, step, observation_size=1, action_size=1, episode_length=1)
