"""Evaluation of a deterministic policy: the returns of whole episodes, and how well the critic predicted them."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.struct import PyTreeNode

from jaxddpg.types import Environment, Key, Metrics, Scalar, State


class CompensatedSum(PyTreeNode):
    """A sum whose rounding error does not grow with the number of terms.

    A million rewards of 0.1 add up to 100,958 in single precision, and to 100,000 here. Kahan 1965, "Further remarks on
    reducing truncation errors".
    """

    value: jax.Array
    excess: jax.Array
    """The accumulated rounding error: `value - excess` is the compensated sum."""

    @classmethod
    def zeros(cls, shape: int) -> "CompensatedSum":
        """Empty sums [shape]."""
        return cls(jnp.zeros(shape), jnp.zeros(shape))

    def add(self, term: jax.Array) -> "CompensatedSum":
        """The sum with one more term of the same shape."""
        term = term - self.excess
        value = self.value + term
        return CompensatedSum(value, (value - self.value) - term)


CAUSES = (
    "",
    "observation of the environment's reset",
    "action of the policy",
    "observation of the environment's step",
    "reward of the environment's step",
)
"""The values of an evaluation that are checked to be finite, the earliest first."""


class _Rollout(NamedTuple):
    """E episodes after some steps."""

    state: State
    observation: jax.Array
    """[E, O]"""
    running: jax.Array
    """[E]: 1 until the episode has ended, then 0."""
    weight: jax.Array
    """[E]: gamma^t"""
    returns: CompensatedSum
    """[E]: undiscounted."""
    discounted: CompensatedSum
    """[E]"""
    final_observation: jax.Array
    """[E, O]: where a time limit cut the episode."""
    final_weight: jax.Array
    """[E]: gamma^T there, 0 in all other episodes."""
    cause: jax.Array
    """[E] uint8: index into `CAUSES`."""


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
        key: consumed.
        environment: `environment.episode_length` steps are taken, some of them after the end of an episode.
        act: observation [E, O] -> action [E, A], which is clipped to [-1, 1].
        value: observation [E, O] -> predicted discounted return of `act` [E].
        gamma: the discount of one step.

    Returns:
        Metrics []. `return_mean`, `return_std`: the mean and the standard deviation of the undiscounted returns, over
        episodes. `q_start_mean`: the predicted return, the mean value of the first observations.
        `discounted_return_mean`: the actual return, sum_t gamma^t r_t, plus the discounted value of the final
        observation where a time limit cut the episode. `overestimation`: the predicted minus the actual return.
        `cause`: uint8, an index into `CAUSES`, to be read by `causes`: the first value that was not finite.
    """
    reset_key, step_key = jax.random.split(key)
    state, start = jax.vmap(environment.reset)(jax.random.split(reset_key, num_episodes))
    ones, zeros, nothing = jnp.ones(num_episodes), jnp.zeros(num_episodes), CompensatedSum.zeros(num_episodes)
    checked = {"observation of the environment's reset": start}
    cause = _first_cause(jnp.zeros(num_episodes, jnp.uint8), ones > 0, checked)
    rollout = _Rollout(state, start, ones, ones, nothing, nothing, start, zeros, cause)

    def step(rollout: _Rollout, key: Key) -> tuple[_Rollout, None]:
        return _step(key, environment, act, gamma, rollout), None

    rollout, _ = jax.lax.scan(step, rollout, jax.random.split(step_key, environment.episode_length))
    actual = jnp.mean(rollout.discounted.value + rollout.final_weight * value(rollout.final_observation))
    predicted = jnp.mean(value(start))
    first = jnp.min(jnp.where(rollout.cause > 0, rollout.cause, jnp.uint8(len(CAUSES))))
    return {
        "return_mean": jnp.mean(rollout.returns.value),
        "return_std": jnp.std(rollout.returns.value),
        "q_start_mean": predicted,
        "discounted_return_mean": actual,
        "overestimation": predicted - actual,
        "cause": first % jnp.uint8(len(CAUSES)),
    }


def causes(metrics: dict[str, np.ndarray]) -> list[str]:
    """Pops `cause` from the metrics [M] of evaluations and names the value that was not finite in each, "" for none.

    Critic values and return sums are checked here, via the metrics they make non-finite, since checking them on the
    device would change their rounding.
    """
    found = [CAUSES[cause] for cause in metrics.pop("cause")]
    summed = np.isfinite(metrics["return_mean"]) & np.isfinite(metrics["return_std"])
    valued = np.isfinite(metrics["overestimation"])
    return [
        cause or ("" if whole and finite else "value of the policy" if finite else "sum of rewards")
        for cause, finite, whole in zip(found, summed, valued, strict=True)
    ]


def _step(
    key: Key, environment: Environment, act: Callable[[jax.Array], jax.Array], gamma: Scalar, rollout: _Rollout
) -> _Rollout:
    """Takes one step in each of the E environments; only running episodes are counted."""
    action = jnp.clip(act(rollout.observation), -1.0, 1.0)
    keys = jax.random.split(key, len(rollout.running))
    state, time_step = jax.vmap(environment.step)(keys, rollout.state, action)
    running = rollout.running > 0
    checked = {
        "action of the policy": action,
        "observation of the environment's step": time_step.final_observation,
        "reward of the environment's step": time_step.reward,
    }
    reward = jnp.where(running, time_step.reward, 0.0)  # 0 times a value that is not finite is not 0
    weight = rollout.weight * gamma
    cut = running & time_step.truncated & ~time_step.terminated
    return _Rollout(
        state=state,
        observation=time_step.observation,
        running=rollout.running * (1.0 - (time_step.terminated | time_step.truncated)),
        weight=weight,
        returns=rollout.returns.add(rollout.running * reward),
        discounted=rollout.discounted.add(rollout.running * rollout.weight * reward),
        final_observation=jnp.where(cut[:, None], time_step.final_observation, rollout.final_observation),
        final_weight=jnp.where(cut, weight, rollout.final_weight),
        cause=_first_cause(rollout.cause, running, checked),
    )


def _first_cause(cause: jax.Array, running: jax.Array, values: dict[str, jax.Array]) -> jax.Array:
    """The first cause [E] of each episode after a check of values [E, ...], by their cause, in running episodes [E]."""
    for name, value in values.items():
        finite = jnp.all(jnp.isfinite(value.reshape(len(value), -1)), axis=1)
        cause = jnp.where((cause > 0) | finite | ~running, cause, jnp.uint8(CAUSES.index(name)))
    return cause
