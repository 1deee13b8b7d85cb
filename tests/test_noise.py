import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import lfilter

from jaxddpg import noise
from jaxddpg.types import Clock

CLOCK = Clock(epoch=np.uint32(1), step=np.uint32(0), num_envs=1)


def path(process, steps, shape=(1, 1), clock=CLOCK, seed=0):
    """The process from rest, [steps, *shape]."""
    start = process.init(jax.random.key(9), shape)
    keys = jax.random.split(jax.random.key(seed), steps)
    return np.asarray(jax.lax.scan(lambda state, key: process.sample(key, clock, state), start, keys)[1], np.float64)


def test_it_is_gaussian_noise_through_a_low_pass_filter():
    smoothing, scale, steps = 0.9, 0.3, 500
    keys = jax.random.split(jax.random.key(0), steps)
    innovations = np.array([jax.random.normal(key, (1, 1)).item() for key in keys])
    expected = lfilter([scale], [1, -smoothing], innovations)
    np.testing.assert_allclose(path(noise.ornstein_uhlenbeck(smoothing, scale), steps)[:, 0, 0], expected, atol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.5, 0.85, 0.95])
def test_stationary_moments(smoothing):
    x = path(noise.ornstein_uhlenbeck(smoothing, 0.2), 4_000, (200, 1))[200:, :, 0]
    variance = 0.2**2 / (1 - smoothing**2)
    # 200 independent rows: the error of the mean shrinks with them and with the correlation time.
    assert abs(x.mean()) < 5 * np.sqrt(variance * (1 + smoothing) / (1 - smoothing) / x.size)
    assert x.var() == pytest.approx(variance, rel=0.03)
    for lag in (1, 5):
        assert np.mean(x[lag:] * x[:-lag]) / x.var() == pytest.approx(smoothing**lag, abs=0.02)


def test_deviation_grows_from_rest():
    smoothing, scale = 0.9985, 0.02
    x = path(noise.ornstein_uhlenbeck(smoothing, scale), 200, (20_000, 1))
    for steps in (10, 50, 200):
        variance = scale**2 * (1 - smoothing ** (2 * steps)) / (1 - smoothing**2)
        assert x[steps - 1].std() == pytest.approx(np.sqrt(variance), rel=0.02)


def test_short_windows_need_not_have_mean_zero():
    smoothing, window = 0.85, 50
    x = path(noise.ornstein_uhlenbeck(smoothing, 1.0), 200 + window, (20_000, 1))[200:, :, 0]
    ratio = x.mean(0).var() / (x.var() / window)
    expected = (1 + smoothing) / (1 - smoothing) - 2 * smoothing * (1 - smoothing**window) / (
        window * (1 - smoothing) ** 2
    )
    assert ratio == pytest.approx(expected, rel=0.05)


def test_the_stationary_scale_is_the_deviation_of_the_noise_itself():
    for smoothing in (0.0, 0.5, 0.9):
        process = noise.ornstein_uhlenbeck(smoothing, 0.4, scale_of="stationary")
        assert path(process, 300, (20_000, 1))[-1].std() == pytest.approx(0.4, rel=0.02)


def test_gaussian_is_white():
    x = path(noise.gaussian(0.3), 2_000, (100, 2))
    assert x.std() == pytest.approx(0.3, rel=0.02)
    assert abs(np.mean(x[1:] * x[:-1]) / x.var()) < 0.01
    assert abs(np.corrcoef(x[:, :, 0].ravel(), x[:, :, 1].ravel())[0, 1]) < 0.01


def test_euler_maruyama_gives_the_same_path():
    theta, sigma, dt = 0.15, 0.2, 0.1
    process = noise.ornstein_uhlenbeck(**noise.euler_maruyama(theta, sigma, dt))
    x, expected = 0.0, []
    for key in jax.random.split(jax.random.key(0), 300):
        x += -theta * x * dt + sigma * np.sqrt(dt) * jax.random.normal(key, (1, 1)).item()
        expected.append(x)
    np.testing.assert_allclose(path(process, 300)[:, 0, 0], expected, atol=1e-5)


def test_only_the_rows_whose_episode_ended_are_reset():
    process = noise.ornstein_uhlenbeck()
    state = jnp.arange(1.0, 9.0).reshape(4, 2)
    mask = jnp.array([False, True, False, True])
    after = process.reset(jax.random.key(0), state, mask)
    np.testing.assert_array_equal(after, [[1, 2], [0, 0], [5, 6], [0, 0]])


def test_the_scale_follows_the_clock_in_env_steps():
    process = noise.ornstein_uhlenbeck(0.0, 1.0, final_scale=0.2, decay_steps=1_000.0)
    for step, expected in ((0, 1.0), (50, 0.6), (100, 0.2), (10_000, 0.2)):
        clock = Clock(np.uint32(1), np.uint32(step), num_envs=10)
        x = path(process, 1, (50_000, 1), clock)
        assert x.std() == pytest.approx(expected, rel=0.02)
