"""A double integrator with an unbounded state: a linear-quadratic problem with bounded actions."""

import jax
import jax.numpy as jnp

from jaxddpg.envs.episodic import episodic
from jaxddpg.types import Environment, Key, rescale

STEP = 0.1
LIMIT = 2.0


def double_integrator() -> Environment:
    """Makes the double integrator: x' = x + 0.1 v, v' = v + 0.1 u with |u| <= 2, and the reward
    -(x^2 + 0.1 v^2 + 0.01 u^2).

    Episodes start with x and v uniform on [-1, 1] and are truncated after 100 steps. The observation is the state,
    which grows without bound under most policies; a linear-quadratic regulator, clipped, returns -3.2 on average.
    """

    def reset(key: Key) -> jax.Array:
        return jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0)

    def step(key: Key, state: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        del key  # nothing is drawn
        (position, speed), force = state, rescale(action[0], -LIMIT, LIMIT)
        reward = -(position**2 + 0.1 * speed**2 + 0.01 * force**2)
        after = jnp.stack([position + STEP * speed, speed + STEP * force])
        return after, reward, jnp.zeros((), bool)

    return episodic(
        reset=reset,
        step=step,
        observe=lambda state: state,
        episode_length=100,
        observation_size=2,
        action_size=1,
        action_low=-LIMIT,
        action_high=LIMIT,
    )
