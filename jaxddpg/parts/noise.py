"""Exploration noise, one independent process per environment.

The Ornstein-Uhlenbeck process is x' = smoothing * x + scale * eps, eps ~ N(0, 1), in discrete time: white noise through
a one-pole low-pass filter. Its stationary standard deviation is scale / sqrt(1 - smoothing^2), its autocorrelation over
k steps smoothing^k.
"""

import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

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
        scale: a standard deviation, for actions scaled to [-1, 1].
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


def pink(
    scale: Scalar = 0.3, horizon: int = 1_000, *, final_scale: Scalar = 0.0, decay_steps: Scalar = math.inf
) -> Noise:
    """Makes pink noise, with a spectrum of 1/f down to one period per horizon: Eberhard et al. 2023, "Pink noise is all
    you need" (ICLR).

    It is a sum of one-pole processes (see `one_pole_fit`), each of which starts from its stationary distribution at the
    beginning of an episode, so that its standard deviation is `scale` at every step.

    Args:
        scale: the stationary standard deviation, for actions scaled to [-1, 1].
        horizon: steps of an episode.
        final_scale: the scale that is reached linearly after `decay_steps` env steps.
        decay_steps: inf keeps `scale` constant.
    """
    poles, variances = map(jnp.asarray, one_pole_fit(horizon))

    def init(key: Key, shape: tuple[int, ...]) -> jax.Array:
        return jnp.sqrt(variances) * jax.random.normal(key, (*shape, len(poles)))

    def sample(key: Key, clock: Clock, state: jax.Array) -> tuple[jax.Array, jax.Array]:
        innovation = jnp.sqrt((1 - poles**2) * variances) * jax.random.normal(key, state.shape)
        state = poles * state + innovation
        return state, clock.anneal(scale, final_scale, decay_steps) * jnp.sum(state, axis=-1)

    def reset(key: Key, state: jax.Array, mask: jax.Array) -> jax.Array:
        return jnp.where(mask[:, None, None], init(key, state.shape[:-1]), state)

    return Noise(init, sample, reset)


@functools.cache
def one_pole_fit(horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """The poles [K] and variances [K] of one-pole processes whose sum has the autocorrelation of pink noise.

    The variances are fitted, by non-negative least squares, to the autocorrelation of noise with the power spectrum 1/f
    at the frequencies k / horizon, and at frequency 0 the power of the lowest of them; the time constants are powers of
    2. The variances sum to 1.
    """
    import scipy.optimize  # takes a while to import

    frequency = np.maximum(np.fft.rfftfreq(max(horizon, 2)), 1 / max(horizon, 2))
    autocovariance = np.fft.irfft(1 / frequency, max(horizon, 2))
    lags = np.unique(np.geomspace(1, max(horizon // 2, 1), 200).astype(int)) - 1
    poles = np.array([0.0, *(np.exp(-1 / 2.0**k) for k in range(-1, max(horizon, 2).bit_length()))])
    powers = poles[None, :] ** lags[:, None]
    variances, _ = scipy.optimize.nnls(powers, autocovariance[lags] / autocovariance[0])
    used = variances > 1e-6
    return poles[used], variances[used] / variances[used].sum()


def ladder(min_scale: Scalar = 0.0, max_scale: Scalar = 0.4) -> Noise:
    """Makes white noise whose standard deviation differs between environments, uniform on [min_scale, max_scale] and
    drawn again at the beginning of each episode. Seo et al. 2025, "FastTD3" (arXiv 2505.22642)."""

    def init(key: Key, shape: tuple[int, ...]) -> jax.Array:
        drawn = jax.random.uniform(key, (shape[0], 1), minval=min_scale, maxval=max_scale)
        return jnp.broadcast_to(drawn, shape)

    def sample(key: Key, clock: Clock, state: jax.Array) -> tuple[jax.Array, jax.Array]:
        del clock
        return state, state * jax.random.normal(key, state.shape)

    def reset(key: Key, state: jax.Array, mask: jax.Array) -> jax.Array:
        return jnp.where(mask[:, None], init(key, state.shape), state)

    return Noise(init, sample, reset)


def euler_maruyama(theta: Scalar, sigma: Scalar, dt: Scalar) -> dict[str, Scalar]:
    """The `smoothing` and `scale` of dx = -theta x dt + sigma dW in Euler-Maruyama steps, the usual form in DDPG code.

    theta 0.15, sigma 0.2 and dt 1 give smoothing 0.85, scale 0.2; dt 0.01 gives 0.9985 and 0.02.
    """
    return {"smoothing": 1 - theta * dt, "scale": sigma * dt**0.5}
