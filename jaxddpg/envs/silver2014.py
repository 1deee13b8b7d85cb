"""The tasks of Silver et al. 2014, section 5; numbers that the paper does not give are those of the work that it cites.

Every factory returns an `Environment`; states and observations are in the task's own units.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxddpg.envs.episodic import episodic
from jaxddpg.types import Environment, Key, rescale

BEST_ACTION = 4.0
GOAL_POSITION = 0.45
PUDDLE_CENTERS = ((0.3, 0.6), (0.4, 0.5), (0.8, 0.9))
PUDDLE_WIDTHS = ((0.1, 0.03), (0.03, 0.1), (0.03, 0.1))
"""The standard deviations of each puddle's Gaussian density along the axes."""


def bandit(dimensions: int = 10) -> Environment:
    """The continuous bandit of section 5.1: reward -(a - a*)^T C (a - a*), one step, a constant observation.

    a* = (4, ..., 4). C is diagonal with the eigenvalues 0.1 and 1 in equal parts (of an odd number the smaller one has
    one fewer), so that a* lies as far along flat directions as along steep ones, as it does on average if C is rotated
    at random. The paper bounds no action; here the Box is [-8, 8].
    """
    curvature = jnp.where(jnp.arange(dimensions) < dimensions // 2, 0.1, 1.0)

    def step(key: Key, state: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        distance = rescale(action, -8.0, 8.0) - BEST_ACTION
        return state, -jnp.sum(curvature * distance**2), jnp.ones((), bool)

    return episodic(
        reset=lambda key: jnp.zeros(1),
        step=step,
        observe=lambda state: state,
        episode_length=1,
        observation_size=1,
        action_size=dimensions,
        action_low=-8.0,
        action_high=8.0,
        observation_low=-1.0,
        observation_high=1.0,
    )


def mountain_car() -> Environment:
    """The mountain car of section 5.2: reward -1 per step until the goal, at most 5000 steps.

    The dynamics are those of Gymnasium's continuous mountain car: force in [-1, 1], goal at 0.45. The observation is
    position and speed.
    """
    low, high = np.array([-1.2, -0.07]), np.array([0.6, 0.07])

    def step(key: Key, state: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        position, speed = state
        force = jnp.clip(action[0], -1.0, 1.0)
        speed = jnp.clip(speed + 0.0015 * force - 0.0025 * jnp.cos(3 * position), low[1], high[1])
        position = jnp.clip(position + speed, low[0], high[0])
        speed = jnp.where((position == low[0]) & (speed < 0), 0.0, speed)
        return jnp.stack([position, speed]), jnp.array(-1.0), position >= GOAL_POSITION

    return episodic(
        reset=lambda key: jnp.stack([jax.random.uniform(key, minval=-0.6, maxval=-0.4), jnp.zeros(())]),
        step=step,
        observe=lambda state: state,
        episode_length=5000,
        observation_size=2,
        action_size=1,
        observation_low=low,
        observation_high=high,
    )


def pendulum() -> Environment:
    """The pendulum of section 5.2: reward cos(angle) per step, 5000 steps, from hanging down.

    The paper's returns, from about -5000 to 5000, are those of a cosine. The dynamics are those of Gymnasium's
    pendulum: torque in [-2, 2], steps of 0.05 s, speed at most 8. The observation is the angle in [-pi, pi), 0 upright,
    and the speed.
    """

    def step(key: Key, state: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        angle, speed = state
        torque = rescale(action[0], -2.0, 2.0)
        speed = jnp.clip(speed + 0.05 * (15.0 * jnp.sin(angle) + 3.0 * torque), -8.0, 8.0)
        angle = (angle + 0.05 * speed + jnp.pi) % (2 * jnp.pi) - jnp.pi
        return jnp.stack([angle, speed]), jnp.cos(angle), jnp.zeros((), bool)

    return episodic(
        reset=lambda key: jnp.array([-jnp.pi, 0.0]),
        step=step,
        observe=lambda state: state,
        episode_length=5000,
        observation_size=2,
        action_size=1,
        action_low=-2.0,
        action_high=2.0,
        observation_low=np.array([-np.pi, -8.0]),
        observation_high=np.array([np.pi, 8.0]),
    )


def puddle_world() -> Environment:
    """The puddle world of section 5.2 and Degris et al. 2012 with continuous actions, at most 5000 steps.

    A point in the unit square moves by up to 0.05 along each axis, plus uniform noise of up to 0.025, from (0.2, 0.4)
    to within a Manhattan distance of 0.1 of (1, 1). A step costs 1, plus twice the Gaussian densities of three puddles.
    """

    def step(key: Key, state: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        drift = jax.random.uniform(key, (2,), minval=-0.025, maxval=0.025)
        position = jnp.clip(state + rescale(action, -0.05, 0.05) + drift, 0.0, 1.0)
        centers, widths = jnp.array(PUDDLE_CENTERS), jnp.array(PUDDLE_WIDTHS)
        density = jnp.prod(jax.scipy.stats.norm.pdf(position, centers, widths), axis=-1)
        return position, -1.0 - 2.0 * jnp.sum(density), jnp.sum(1.0 - position) < 0.1

    return episodic(
        reset=lambda key: jnp.array([0.2, 0.4]),
        step=step,
        observe=lambda state: state,
        episode_length=5000,
        observation_size=2,
        action_size=2,
        action_low=-0.05,
        action_high=0.05,
        observation_low=0.0,
        observation_high=1.0,
    )
