"""Exploration noise, one independent process per environment.

The process is x' = smoothing * x + scale * eps, eps ~ N(0, 1): an Ornstein-Uhlenbeck process in discrete time, or white
noise through a one-pole low-pass filter. Its stationary standard deviation is scale / sqrt(1 - smoothing^2), its
autocorrelation over k steps smoothing^k.
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp

from jaxddpg.types import Clock, Key, Noise, Scalar


def ornstein_uhlenbeck(
    smoothing: Scalar = 0.85,
    scale: Scalar = 0.2,
    *,
    scale_of: Literal["innovation", "stationary"] = "innovation",
    final_scale: Scalar = 0.0,
    decay_steps: Scalar = math.inf,
) -> Noise:
    """Makes Ornstein-Uhlenbeck noise, which starts from zero: Uhlenbeck & Ornstein 1930; Lillicrap et al. 2015.

    Args:
        smoothing: lambda in [0, 1]; 0 is Gaussian white noise, 1 a random walk.
        scale: a standard deviation, in half-widths of the action Box.
        scale_of: "innovation" if it is that of one step, or "stationary" if it is that of x, which then does not depend
            on `smoothing`.
        final_scale: the scale that is reached linearly after `decay_steps` env steps.
        decay_steps: inf keeps `scale` constant.
    """

    def init(key: Key, shape: tuple[int, ...]) -> jax.Array:
        del key  # the first state is zero
        return jnp.zeros(shape)

    def sample(key: Key, clock: Clock, state: jax.Array) -> tuple[jax.Array, jax.Array]:
        step_scale = clock.anneal(scale, final_scale, decay_steps)
        if scale_of == "stationary":
            step_scale = step_scale * jnp.sqrt(1 - smoothing**2)
        state = smoothing * state + step_scale * jax.random.normal(key, state.shape)
        return state, state

    def reset(key: Key, state: jax.Array, mask: jax.Array) -> jax.Array:
        del key  # the first state is zero
        return jnp.where(mask[:, None], 0.0, state)

    return Noise(init, sample, reset)


def gaussian(scale: Scalar = 0.1, *, final_scale: Scalar = 0.0, decay_steps: Scalar = math.inf) -> Noise:
    """Makes white noise N(0, scale^2): the Ornstein-Uhlenbeck process with `smoothing` 0."""
    return ornstein_uhlenbeck(0.0, scale, final_scale=final_scale, decay_steps=decay_steps)


def euler_maruyama(theta: Scalar, sigma: Scalar, dt: Scalar) -> dict[str, Scalar]:
    """The `smoothing` and `scale` of dx = -theta x dt + sigma dW in Euler-Maruyama steps, the usual form in DDPG code.

    theta 0.15, sigma 0.2 and dt 1 give smoothing 0.85, scale 0.2; dt 0.01 gives 0.9985 and 0.02.
    """
    return {"smoothing": 1 - theta * dt, "scale": sigma * dt**0.5}
