"""From the plain dynamics of a task to an `Environment` that cuts long episodes and resets itself."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxddpg.types import Environment, Key, Scalar, State, TimeStep


def episodic(
    start: Callable[[Key], State],
    move: Callable[[Key, State, jax.Array], tuple[State, jax.Array, jax.Array]],
    observe: Callable[[State], jax.Array],
    *,
    observation_size: int,
    action_size: int,
    episode_length: int,
    timeout_reward: Scalar = 0.0,
    **ranges: Any,
) -> Environment:
    """An `Environment` from a task that knows neither time nor resets.

    Args:
        start: key -> the state in which an episode begins.
        move: key, state, action [A] in [-1, 1] -> state, reward [], terminated [] bool.
        observe: state -> observation [O].
        observation_size: O.
        action_size: A.
        episode_length: steps after which an episode is truncated.
        timeout_reward: added to the reward of a step that is truncated.
        ranges: of actions and observations, as fields of `Environment`.
    """

    def reset(key: Key) -> tuple[State, jax.Array]:
        state = start(key)
        return (state, jnp.zeros((), jnp.int32)), observe(state)

    def step(key: Key, timed: State, action: jax.Array) -> tuple[State, TimeStep]:
        state, time = timed
        reset_key, move_key = jax.random.split(key)
        moved = move(move_key, state, action)
        if not isinstance(moved, tuple) or len(moved) != 3:
            raise ValueError("move must return a state, a reward and whether the task terminated")
        state, reward, terminated = moved
        terminated = jnp.asarray(terminated)  # of a bool of Python's, ~ makes a number
        if terminated.dtype != bool:
            raise ValueError(f"move must return a bool as terminated, not {terminated.dtype}")
        final_observation = observe(state)
        truncated = (time + 1 >= episode_length) & ~terminated
        over = terminated | truncated
        fresh = reset(reset_key)
        timed, observation = jax.tree.map(
            lambda new, old: jnp.where(over, new, old), fresh, ((state, time + 1), final_observation)
        )
        return timed, TimeStep(
            observation=observation,
            final_observation=final_observation,
            reward=reward + jnp.where(truncated, timeout_reward, 0.0),
            terminated=terminated,
            truncated=truncated,
        )

    return Environment(reset, step, observation_size, action_size, episode_length, **ranges)
