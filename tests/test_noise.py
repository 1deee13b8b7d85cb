from functools import partial

import jax
import numpy as np
import pytest
from scipy.signal import lfilter

from jaxddpg.parts import noise
from jaxddpg.types import Clock

CLOCK = Clock(epoch=np.uint32(1), step=np.uint32(0), num_envs=1)


@partial(jax.jit, static_argnames=("make", "steps", "shape", "scale_of"))
def compiled_path(make, steps, shape, clock, numbers, **how):
    process = make(**numbers, **how)
    start = process.init(jax.random.key(9), shape)
    keys = jax.random.split(jax.random.key(0), steps)
    return jax.lax.scan(lambda state, key: process.sample(key, clock, state), start, keys)[1]


def path(make, steps, shape=(1, 1), clock=CLOCK, numbers=(), **how):
    """The process of a function of `noise` with such numbers from rest, [steps, *shape]; one program serves all
    numbers."""
    return np.asarray(compiled_path(make, steps, shape, clock, dict(numbers), **how), np.float64)


@partial(jax.jit, static_argnums=0)
def innovations(steps):
    """What the process draws, [steps]."""
    draw = jax.vmap(lambda key: jax.random.normal(key, (1, 1)))
    return draw(jax.random.split(jax.random.key(0), steps))[:, 0, 0]


def test_it_is_gaussian_noise_through_a_low_pass_filter():
    smoothing, scale, steps = 0.9, 0.3, 500
    expected = lfilter([scale], [1, -smoothing], innovations(steps))
    numbers = {"smoothing": smoothing, "scale": scale}
    found = path(noise.ornstein_uhlenbeck, steps, numbers=numbers)[:, 0, 0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.5, 0.85, 0.95])
def test_stationary_moments(smoothing):
    numbers = {"smoothing": smoothing, "scale": 0.2}
    x = path(noise.ornstein_uhlenbeck, 4_000, (200, 1), numbers=numbers)[200:, :, 0]
    variance = 0.2**2 / (1 - smoothing**2)
    # 200 independent rows: the error of the mean shrinks with them and with the correlation time.
    assert abs(x.mean()) < 5 * np.sqrt(variance * (1 + smoothing) / (1 - smoothing) / x.size)
    assert x.var() == pytest.approx(variance, rel=0.03)
    for lag in (1, 5):
        assert np.mean(x[lag:] * x[:-lag]) / x.var() == pytest.approx(smoothing**lag, abs=0.02)


def test_deviation_grows_from_rest():
    smoothing, scale = 0.9985, 0.02
    x = path(noise.ornstein_uhlenbeck, 200, (20_000, 1), numbers={"smoothing": smoothing, "scale": scale})
    for steps in (10, 50, 200):
        variance = scale**2 * (1 - smoothing ** (2 * steps)) / (1 - smoothing**2)
        assert x[steps - 1].std() == pytest.approx(np.sqrt(variance), rel=0.02)


def test_short_windows_need_not_have_mean_zero():
    smoothing, window, start = 0.85, 50, 60  # by then the variance lacks a part in 10^8
    numbers = {"smoothing": smoothing, "scale": 1.0}
    x = path(noise.ornstein_uhlenbeck, start + window, (20_000, 1), numbers=numbers)[start:, :, 0]
    ratio = x.mean(0).var() / (x.var() / window)
    expected = (1 + smoothing) / (1 - smoothing) - 2 * smoothing * (1 - smoothing**window) / (
        window * (1 - smoothing) ** 2
    )
    assert ratio == pytest.approx(expected, rel=0.05)


def test_the_stationary_scale_is_the_deviation_of_the_noise_itself():
    for smoothing in (0.0, 0.5, 0.9):
        numbers = {"smoothing": smoothing, "scale": 0.4}
        # After 60 steps the variance lacks 4 parts in 10^6 at most.
        x = path(noise.ornstein_uhlenbeck, 60, (20_000, 1), numbers=numbers, scale_of="stationary")
        assert x[-1].std() == pytest.approx(0.4, rel=0.02)


def test_gaussian_is_white():
    x = path(noise.gaussian, 2_000, (100, 2), numbers={"scale": 0.3})
    assert x.std() == pytest.approx(0.3, rel=0.02)
    assert abs(np.mean(x[1:] * x[:-1]) / x.var()) < 0.01
    assert abs(np.corrcoef(x[:, :, 0].ravel(), x[:, :, 1].ravel())[0, 1]) < 0.01


def test_euler_maruyama_gives_the_same_path():
    theta, sigma, dt = 0.15, 0.2, 0.1
    x, expected = 0.0, []
    for drawn in np.asarray(innovations(300), np.float64):
        x += -theta * x * dt + sigma * np.sqrt(dt) * drawn
        expected.append(x)
    numbers = noise.euler_maruyama(theta, sigma, dt)
    found = path(noise.ornstein_uhlenbeck, 300, numbers=numbers)[:, 0, 0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_only_the_rows_whose_episode_ended_are_reset():
    process = noise.ornstein_uhlenbeck()
    state = np.arange(1, 9, dtype="f4").reshape(4, 2)
    mask = np.array([False, True, False, True])
    after = jax.jit(process.reset)(jax.random.key(0), state, mask)
    np.testing.assert_array_equal(after, [[1, 2], [0, 0], [5, 6], [0, 0]])


def test_the_scale_follows_the_clock_in_env_steps():
    numbers = {"smoothing": 0.0, "scale": 1.0, "final_scale": 0.2, "decay_steps": 1_000.0}
    for step, expected in ((0, 1.0), (50, 0.6), (100, 0.2), (10_000, 0.2)):
        clock = Clock(np.uint32(1), np.uint32(step), num_envs=10)
        x = path(noise.ornstein_uhlenbeck, 1, (50_000, 1), clock, numbers)
        assert x.std() == pytest.approx(expected, rel=0.02)


def colored(make, steps, shape, clock=CLOCK):
    """The path of a noise from its start, [steps, *shape]."""

    @jax.jit
    def run(key):
        process = make()
        keys = jax.random.split(key, steps)
        return jax.lax.scan(lambda state, key: process.sample(key, clock, state), process.init(key, shape), keys)[1]

    return np.asarray(run(jax.random.key(5)), np.float64)


@pytest.mark.parametrize(("horizon", "expected"), [(200, (0.710, 0.292, 0.105)), (1_000, (0.774, 0.448, 0.298))])
def test_pink_noise_has_the_autocorrelation_and_the_spectrum_of_the_paper(horizon, expected):
    """Of the authors' `colorednoise` at lags 1, 10 and 30, and a slope of -1 from two periods per episode on."""
    x = colored(lambda: noise.pink(0.5, horizon), horizon, (4_000, 1))[..., 0]
    for lag, value in zip((1, 10, 30), expected, strict=True):
        assert np.mean(x[lag:] * x[:-lag]) / np.mean(x**2) == pytest.approx(value, abs=0.045)
    frequency = np.fft.rfftfreq(horizon)
    power = np.mean(np.abs(np.fft.rfft(x * np.hanning(horizon)[:, None], axis=0)) ** 2, axis=1)
    inside = (frequency >= 2 / horizon) & (frequency <= 0.4)
    slope, _ = np.polyfit(np.log(frequency[inside]), np.log(power[inside]), 1)
    assert slope == pytest.approx(-1, abs=0.1)


@pytest.mark.parametrize("horizon", [1, 2, 3, 10, 200, 20_000])
@pytest.mark.parametrize("scale", [1e-3, 0.3, 1e4])
def test_the_deviation_of_pink_noise_is_its_scale_at_every_step(horizon, scale):
    x = colored(lambda: noise.pink(scale, horizon), 60, (5_000, 2))
    np.testing.assert_allclose(x.std(axis=(1, 2)), scale, rtol=0.06)
    np.testing.assert_allclose(x.mean(axis=(1, 2)), 0, atol=0.06 * scale)
    poles, variances = noise.one_pole_fit(horizon)
    assert variances.sum() == pytest.approx(1)
    assert poles.min() >= 0
    assert poles.max() < 1


def test_pink_noise_begins_again_only_where_an_episode_ended():
    process = noise.pink(0.3, 1_000)
    state = process.init(jax.random.key(0), (500, 2))
    mask = np.arange(500) % 2 == 0
    after = process.reset(jax.random.key(1), state, mask)
    np.testing.assert_array_equal(after[1::2], state[1::2])
    fresh, before = np.asarray(after[::2]).ravel(), np.asarray(state[::2]).ravel()
    assert abs(np.corrcoef(fresh, before)[0, 1]) < 0.1
    np.testing.assert_allclose(np.asarray(after[::2]).std((0, 1)), np.sqrt(noise.one_pole_fit(1_000)[1]), rtol=0.15)


def test_a_ladder_has_a_scale_in_each_environment_which_is_drawn_again_in_each_episode():
    process = noise.ladder(0.1, 0.5)
    state = process.init(jax.random.key(0), (4_000, 3))
    np.testing.assert_array_equal(state, np.broadcast_to(state[:, :1], state.shape))
    scales = np.asarray(state[:, 0])
    assert scales.min() >= 0.1
    assert scales.max() <= 0.5
    assert scales.mean() == pytest.approx(0.3, abs=0.01)
    assert scales.var() == pytest.approx(0.4**2 / 12, rel=0.1)
    keys = jax.random.split(jax.random.key(2), 200)
    x = np.asarray(jax.lax.scan(lambda s, key: process.sample(key, CLOCK, s), state, keys)[1])
    assert x.std() == pytest.approx(np.sqrt(0.3**2 + 0.4**2 / 12), rel=0.02)
    np.testing.assert_allclose(x.std(0)[:, 0], scales, rtol=0.25)
    assert abs(np.corrcoef(x[:, :, 0].ravel(), x[:, :, 1].ravel())[0, 1]) < 0.01
    mask = np.arange(4_000) < 2_000
    after = np.asarray(process.reset(jax.random.key(1), state, mask))
    np.testing.assert_array_equal(after[2_000:], state[2_000:])
    assert np.mean(after[:2_000] != state[:2_000]) > 0.99
