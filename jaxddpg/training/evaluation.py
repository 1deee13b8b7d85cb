"""The measure of a policy: returns of noiseless episodes, and how well they were predicted."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax.struct import PyTreeNode

from jaxddpg.types import Environment, Key, Metrics, Scalar


class Total(PyTreeNode):
    """A sum that does not drift, however many terms it has; Kahan 1965, "Further remarks on reducing truncation
    errors".

    A million rewards of 0.1 add up to 100 958 in single precision, and to 100 000 here.
    """

    value: jax.Array
    excess: jax.Array
    """by which the value is too large"""

    @classmethod
    def zeros(cls, shape: int) -> "Total":
        return cls(jnp.zeros(shape), jnp.zeros(shape))

    def plus(self, term: jax.Array) -> "Total":
        """With one term more."""
        term = term - self.excess
        value = self.value + term
        return Total(value, (value - self.value) - term)


CAUSES = (
    "",
    "observation of the environment's reset",
    "action of the policy",
    "observation of the environment's step",
    "reward of the environment's step",
)
"""What may be not finite in an evaluation, the earliest first."""


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
        value of the final observation where a time limit cut the episode. `overestimation`: by how much the promise
        exceeds the outcome. `cause`: uint8, index into `CAUSES`: what was not finite, for `causes` to read.
    """
    reset_key, step_key = jax.random.split(key)

    def step(carry: tuple, step_key: Key) -> tuple[tuple, None]:
        state, observation, running, weight, returns, discounted, final_observation, final_weight, cause = carry
        action = jnp.clip(act(observation), -1.0, 1.0)
        state, time_step = jax.vmap(environment.step)(jax.random.split(step_key, num_episodes), state, action)
        cause = _watched(
            cause,
            running > 0,
            {
                "action of the policy": action,
                "observation of the environment's step": time_step.final_observation,
                "reward of the environment's step": time_step.reward,
            },
        )
        reward = jnp.where(running > 0, time_step.reward, 0.0)  # 0 times what is not finite is not 0
        returns = returns.plus(running * reward)
        discounted = discounted.plus(running * weight * reward)
        weight *= gamma
        cut = (running > 0) & time_step.truncated & ~time_step.terminated
        final_observation = jnp.where(cut[:, None], time_step.final_observation, final_observation)
        final_weight = jnp.where(cut, weight, final_weight)
        running *= 1.0 - (time_step.terminated | time_step.truncated)
        observation = time_step.observation
        return (state, observation, running, weight, returns, discounted, final_observation, final_weight, cause), None

    state, start = jax.vmap(environment.reset)(jax.random.split(reset_key, num_episodes))
    ones, zeros, nothing = jnp.ones(num_episodes), jnp.zeros(num_episodes), Total.zeros(num_episodes)
    cause = _watched(jnp.zeros(num_episodes, jnp.uint8), ones > 0, {"observation of the environment's reset": start})
    carry = (state, start, ones, ones, nothing, nothing, start, zeros, cause)
    (*_, returns, discounted, final_observation, final_weight, cause), _ = jax.lax.scan(
        step, carry, jax.random.split(step_key, environment.episode_length)
    )
    outcome = jnp.mean(discounted.value + final_weight * value(final_observation))
    promise = jnp.mean(value(start))
    first = jnp.min(jnp.where(cause > 0, cause, jnp.uint8(len(CAUSES))))
    return {
        "return_mean": jnp.mean(returns.value),
        "return_std": jnp.std(returns.value),
        "q_start_mean": promise,
        "discounted_return_mean": outcome,
        "overestimation": promise - outcome,
        "cause": first % jnp.uint8(len(CAUSES)),
    }


def causes(metrics: dict[str, np.ndarray]) -> list[str]:
    """Takes `cause` out of the metrics [M] of evaluations: what was not finite in each, empty where nothing was.

    Values are looked at here, by what comes of them: on the device that would change how they are rounded.
    """
    found = [CAUSES[cause] for cause in metrics.pop("cause")]
    summed = np.isfinite(metrics["return_mean"]) & np.isfinite(metrics["return_std"])
    valued = np.isfinite(metrics["overestimation"])
    return [
        cause or ("" if whole and finite else "value of the policy" if finite else "sum of rewards")
        for cause, finite, whole in zip(found, summed, valued, strict=True)
    ]


def _watched(cause: jax.Array, playing: jax.Array, values: dict[str, jax.Array]) -> jax.Array:
    """The first cause of each episode [E] that is being played, after a look at values [E, ...] by their cause."""
    for name, value in values.items():
        finite = jnp.all(jnp.isfinite(value.reshape(len(value), -1)), axis=1)
        cause = jnp.where((cause > 0) | finite | ~playing, cause, jnp.uint8(CAUSES.index(name)))
    return cause
