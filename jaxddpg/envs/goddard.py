"""Goddard's rocket, which must rise as high as its fuel allows, against gravity and the drag of a thinning atmosphere.

Goddard 1919, "A method of reaching extreme altitudes"; dimensionless as in Dolan, More & Munson 2004, "Benchmarking
optimization software with COPS 3.0", problem 9. Time steps, reward and time limit are those of a course exercise.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxddpg.envs.episodic import episodic
from jaxddpg.types import Environment, Key, rescale

DRY_MASS = 0.6
HEIGHT_UNIT = 0.015


class Flight(NamedTuple):
    """The state of the rocket, each []. Heights are above the ground, because 1 + height would lose digits."""

    speed: jax.Array
    height: jax.Array
    mass: jax.Array
    peak: jax.Array


def rocket() -> Environment:
    """Makes the rocket, whose thrust is 3.5 u with u in [0, 1], in Euler steps of 0.001.

    v' = (3.5 u - D) / m - 1 / h^2, h' = v, m' = -7 u while there is fuel, with D = 310 v |v| exp(-500 (h - 1)). It
    starts with v = 0, h = 1, m = 1. At h = 1 the ground sets the speed to 0: after a fall and, once, at the launch. The
    observation is v / 0.14, (h - 1) / 0.015 and (m - 0.6) / 0.4. The episode terminates with the reward max h - 1 when
    the tank is empty and the rocket falls; after 300 steps it is truncated with the reward -1; all other rewards are 0.
    """

    def reset(key: Key) -> Flight:
        del key  # the first state is always the same
        return Flight(*jnp.array([0.0, 0.0, 1.0, 0.0]))

    def step(key: Key, state: Flight, action: jax.Array) -> tuple[Flight, jax.Array, jax.Array]:
        del key  # nothing is drawn
        speed, height, mass, peak = state
        thrust = jnp.where(mass > DRY_MASS, 3.5 * rescale(action[0], 0.0, 1.0), 0.0)
        drag = 310.0 * speed * jnp.abs(speed) * jnp.exp(-500.0 * height)
        acceleration = (thrust - drag) / mass - 1.0 / (1.0 + height) ** 2
        grounded = (height == 0.0) & (speed != 0.0)
        after = Flight(
            speed=jnp.where(grounded, 0.0, speed + 0.001 * acceleration),
            height=jnp.maximum(height + 0.001 * speed, 0.0),
            mass=jnp.maximum(mass - 0.002 * thrust, DRY_MASS),
            peak=jnp.maximum(peak, height + 0.001 * speed),
        )
        terminated = (after.mass <= DRY_MASS) & (after.speed < 0.0)
        return after, jnp.where(terminated, after.peak, 0.0), terminated

    def observe(state: Flight) -> jax.Array:
        return jnp.stack([state.speed / 0.14, state.height / HEIGHT_UNIT, (state.mass - DRY_MASS) / 0.4])

    return episodic(
        reset=reset,
        step=step,
        observe=observe,
        episode_length=300,
        timeout_reward=-1.0,
        observation_size=3,
        action_size=1,
        action_low=0.0,
        action_high=1.0,
        observation_low=jnp.array([-1.0, 0.0, 0.0]),
        observation_high=jnp.array([1.0, 1.0, 1.0]),
    )
