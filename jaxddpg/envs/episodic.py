"""Conversion of plain dynamics to an `Environment`, which truncates long episodes and resets itself."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxddpg.parts.structure import kind, mismatch
from jaxddpg.types import Environment, Key, Scalar, State, TimeStep


def episodic(
    reset: Callable[[Key], State],
    step: Callable[[Key, State, jax.Array], tuple[State, jax.Array, jax.Array]],
    observe: Callable[[State], jax.Array],
    *,
    observation_size: int,
    action_size: int,
    episode_length: int,
    timeout_reward: Scalar = 0.0,
    **ranges: Any,
) -> Environment:
    """Adds a time limit and auto-reset to a task, making an `Environment`.

    Args:
        reset: key -> the first state of an episode.
        step: key, state, action [A] in [-1, 1] -> state, reward [], terminated [] bool.
        observe: state -> observation [O].
        observation_size: O.
        action_size: A.
        episode_length: steps after which an episode is truncated.
        timeout_reward: added to the reward of a step that is truncated.
        ranges: of actions and observations, as fields of `Environment`.

    Raises:
        ValueError: while the environment is traced, where `step` does not return a state like that of `reset`, a reward
            and a bool, or `observe` no observation.
    """

    def observed(state: State) -> jax.Array:
        observation = observe(state)
        shape, is_array = (observation_size,), hasattr(observation, "dtype")
        if not is_array or observation.shape != shape or not jnp.issubdtype(observation.dtype, jnp.floating):
            raise ValueError(f"observe must return float32{list(shape)}, not {kind(observation)}")
        return observation

    def reset_episode(key: Key) -> tuple[State, jax.Array]:
        state = reset(key)
        return (state, jnp.zeros((), jnp.int32)), observed(state)

    def step_episode(key: Key, timed: State, action: jax.Array) -> tuple[State, TimeStep]:
        state, time = timed
        reset_key, step_key = jax.random.split(key)
        stepped = step(step_key, state, action)
        if not isinstance(stepped, tuple) or len(stepped) != 3:
            raise ValueError("step must return a state, a reward and whether the task terminated")
        state, reward, terminated = stepped
        terminated = jnp.asarray(terminated)  # ~ of a Python bool is a number
        if terminated.dtype != bool:
            raise ValueError(f"step must return a bool as terminated, not {terminated.dtype}")
        truncated = (time + 1 >= episode_length) & ~terminated
        last = terminated | truncated
        first = reset_episode(reset_key)
        if wrong := mismatch("reset", first[0][0], "step", state):
            raise ValueError(wrong)
        final_observation = observed(state)
        timed, observation = jax.tree.map(
            lambda new, old: jnp.where(last, new, old), first, ((state, time + 1), final_observation)
        )
        return timed, TimeStep(
            observation=observation,
            final_observation=final_observation,
            reward=reward + jnp.where(truncated, timeout_reward, 0.0),
            terminated=terminated,
            truncated=truncated,
        )

    return Environment(reset_episode, step_episode, observation_size, action_size, episode_length, **ranges)
