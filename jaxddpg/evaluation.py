"""The measure of a policy: returns of noiseless episodes, and how well they were predicted."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxddpg.types import Environment, Key, Metrics, Scalar


def evaluate(
    key: Key,
    environment: Environment,
    act: Callable[[jax.Array], jax.Array],
    value: Callable[[jax.Array], jax.Array],
    gamma: Scalar,
    num_episodes: int,
) -> Metrics:
    """Plays one whole episode in each of E = `num_episodes` environments.

    Args:
        act: observation [E, O] -> action [E, A].
        value: observation [E, O] -> predicted discounted return of `act` [E].

    Returns:
        `return_mean`, `return_std`: of the undiscounted returns, over episodes. `q_start_mean`: the mean value of the
        first observations. `discounted_return_mean`: what that value predicts, sum_t gamma^t r_t, plus the discounted
        value of the final observation where a time limit cut the episode.
    """
    reset_key, step_key = jax.random.split(key)

    def step(carry: tuple, step_key: Key) -> tuple[tuple, None]:
        state, observation, running, weight, returns, discounted, final_observation, final_weight = carry
        action = jnp.clip(act(observation), -1.0, 1.0)
        state, time_step = jax.vmap(environment.step)(jax.random.split(step_key, num_episodes), state, action)
        returns += running * time_step.reward
        discounted += running * weight * time_step.reward
        weight *= gamma
        cut = (running > 0) & time_step.truncated & ~time_step.terminated
        final_observation = jnp.where(cut[:, None], time_step.final_observation, final_observation)
        final_weight = jnp.where(cut, weight, final_weight)
        running *= 1.0 - (time_step.terminated | time_step.truncated)
        observation = time_step.observation
        return (state, observation, running, weight, returns, discounted, final_observation, final_weight), None

    state, start = jax.vmap(environment.reset)(jax.random.split(reset_key, num_episodes))
    ones, zeros = jnp.ones(num_episodes), jnp.zeros(num_episodes)
    carry = (state, start, ones, ones, zeros, zeros, start, zeros)
    (*_, returns, discounted, final_observation, final_weight), _ = jax.lax.scan(
        step, carry, jax.random.split(step_key, environment.episode_length)
    )
    discounted += final_weight * value(final_observation)
    return {
        "return_mean": jnp.mean(returns),
        "return_std": jnp.std(returns),
        "q_start_mean": jnp.mean(value(start)),
        "discounted_return_mean": jnp.mean(discounted),
    }
