import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from jaxddpg.envs.goddard import rocket

THRUSTS = {
    "none": np.zeros(700),
    "full": np.ones(700),
    "half": np.full(700, 0.5),
    "random": np.random.default_rng(0).uniform(0, 1, 700),
    "full_then_none": np.where(np.arange(700) % 230 < 60, 1.0, 0.05),
    "too_little_then_full": np.where(np.arange(700) < 40, 0.2, 1.0),
    "last_drops_while_falling": np.where(np.arange(700) < 50, 1.0, np.where(np.arange(700) > 165, 0.15, 0.0)),
    "two_burns": np.where((np.arange(700) % 350 < 40) | (np.arange(700) % 350 > 180), 1.0, 0.0),
    "random_pulses": np.random.default_rng(1).integers(0, 2, 700).astype(float),
}


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


@jax.jit
def fly(thrust):
    """The time steps of a sequence of thrusts, one episode after the other."""
    environment = rocket()
    # The state begins as float32 whatever the thrust is; nothing is lost, as it begins with small whole numbers.
    state, _ = environment.reset(jax.random.key(0))
    state = jax.tree.map(lambda x: x.astype(thrust.dtype) if x.dtype == jnp.float32 else x, state)
    action = 2 * thrust[:, None] - 1
    return jax.lax.scan(lambda state, a: environment.step(jax.random.key(0), state, a), state, action)[1]


def expected(thrust):
    """What the oracle shows, step by step, one episode after the other: observation, reward, terminated, truncated."""
    rows, world = [], oracles.Goddard()
    for u in thrust:
        rows.append(world.step(u))
        if rows[-1][2] or rows[-1][3]:
            world = oracles.Goddard()
    return [np.array(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("name", THRUSTS)
def test_every_flight_is_that_of_the_equations(float64, name):
    seen, (observation, reward, terminated, truncated) = fly(THRUSTS[name]), expected(THRUSTS[name])
    assert seen.final_observation.dtype == np.float64
    np.testing.assert_array_equal(seen.terminated, terminated)
    np.testing.assert_array_equal(seen.truncated, truncated)
    np.testing.assert_allclose(seen.final_observation, observation, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(seen.reward, reward, rtol=1e-9)
    assert (terminated | truncated).any()


@pytest.mark.parametrize("name", THRUSTS)
def test_single_precision_loses_little_and_ends_in_the_same_step(name):
    seen = fly(np.float32(THRUSTS[name]))
    observation, reward, terminated, truncated = expected(np.float32(THRUSTS[name]))
    assert seen.final_observation.dtype == np.float32
    np.testing.assert_array_equal(seen.terminated, terminated)
    np.testing.assert_array_equal(seen.truncated, truncated)
    np.testing.assert_allclose(seen.final_observation, observation, atol=1e-4)
    np.testing.assert_allclose(seen.reward, reward, rtol=1e-5)


def test_full_thrust_reaches_its_known_height_in_its_known_time():
    seen = fly(np.ones(200, "f4"))
    assert np.flatnonzero(seen.terminated)[0] == 184 - 1
    assert seen.reward[183] == pytest.approx(0.0118865, abs=5e-8)
    np.testing.assert_array_equal(seen.reward[:183], 0)


def test_the_reward_is_the_peak_of_the_flight_not_the_height_at_its_end():
    """It falls from its first peak, and burns what is left when that no longer lifts it as high."""
    seen = fly(np.float32(THRUSTS["two_burns"]))
    end = np.flatnonzero(seen.terminated)[0]
    height = 0.015 * np.asarray(seen.final_observation)[: end + 1, 1]
    assert seen.reward[end] == pytest.approx(height.max(), rel=1e-6)
    assert seen.reward[end] > 1.5 * height[end]


def test_without_thrust_it_stays_and_is_told_off_after_three_hundred_steps():
    seen = fly(np.zeros(301, "f4"))
    np.testing.assert_array_equal(np.flatnonzero(seen.truncated), [299])
    assert not seen.terminated.any()
    assert seen.reward[299] == -1
    np.testing.assert_array_equal(np.delete(seen.reward, 299), 0)
    np.testing.assert_array_equal(seen.final_observation[:, 1], 0)  # never off the ground
    np.testing.assert_allclose(seen.final_observation[:, 2], 1, rtol=1e-6)  # nor lighter


def test_on_the_ground_any_speed_is_lost_in_the_next_step():
    """At rest gravity gives it one step's speed downwards, and the next step takes it; so does it to the first thrust,
    which is why the second step of a flight has no speed."""
    falling = np.asarray(fly(np.zeros(6, "f4")).final_observation)[:, 0] * 0.14
    np.testing.assert_allclose(falling, [-0.001, 0] * 3, rtol=1e-6)
    rising = np.asarray(fly(np.ones(6, "f4")).final_observation)[:, 0] * 0.14
    assert rising[0] == pytest.approx(0.001 * (3.5 - 1), rel=1e-5)
    assert rising[1] == 0
    assert np.all(np.diff(rising[1:]) > 0)


def test_uniformly_random_thrust_reaches_its_known_mean():
    thrust = np.random.default_rng(2).uniform(0, 1, (1_000, 300)).astype("f4")
    seen = jax.vmap(fly)(thrust)
    first = np.argmax(np.asarray(seen.terminated), axis=-1)
    peak = np.asarray(seen.reward)[np.arange(1_000), first]
    assert np.asarray(seen.terminated).any(-1).all()
    assert peak.mean() == pytest.approx(0.00997, abs=5e-5)
    assert peak.max() < 0.0118


def test_the_tank_holds_enough_for_its_known_time_and_no_thrust_comes_from_an_empty_one():
    """0.4 of mass at 0.007 a step are 58 steps, the last of them not full."""
    mass = np.asarray(fly(np.ones(100, "f4")).final_observation)[:, 2]
    assert np.flatnonzero(mass == 0)[0] == 58 - 1
    speed = np.asarray(fly(np.ones(100, "f4")).final_observation)[:, 0]
    assert np.all(np.diff(speed[58:]) < 0)


def test_an_action_is_the_share_of_full_thrust_from_end_to_end():
    environment = rocket()
    np.testing.assert_array_equal([environment.action_low, environment.action_high], [0, 1])
    state, _ = environment.reset(jax.random.key(0))
    for action, thrust in [(-1.0, 0.0), (0.0, 0.5), (0.5, 0.75), (1.0, 1.0), (-3.0, 0.0), (3.0, 1.0)]:
        _, time_step = environment.step(jax.random.key(0), state, jnp.full(1, action))
        mass = 0.4 * float(time_step.final_observation[2]) + 0.6
        assert mass == pytest.approx(1 - 0.007 * thrust, abs=1e-7)
