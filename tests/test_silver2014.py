import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxddpg import settings
from jaxddpg.config.environment import make_environment
from jaxddpg.envs import silver2014

KEY = jax.random.key(0)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def after(environment, states, actions, seed=0):
    """One step from each of many states of the task, early in an episode."""
    states = jnp.asarray(states)
    timed = (states, jnp.zeros(len(states), jnp.int32))
    keys = jax.random.split(jax.random.key(seed), len(states))
    _, time_step = jax.jit(jax.vmap(environment.step))(keys, timed, jnp.asarray(actions))
    return jax.tree.map(np.asarray, time_step)


def trajectory(environment, actions, seed=0):
    """The first observation and the time steps along one sequence of actions."""

    @jax.jit
    def play(actions):
        state, first = environment.reset(jax.random.key(seed))
        keys = jax.random.split(jax.random.key(seed + 1), len(actions))
        return first, jax.lax.scan(
            lambda state, inputs: environment.step(inputs[0], state, inputs[1]), state, (keys, actions)
        )[1]

    return jax.tree.map(np.asarray, play(jnp.asarray(actions)))


@pytest.mark.parametrize(("dimensions", "flat"), [(10, 5), (25, 12), (50, 25), (1, 0)])
def test_the_bandits_reward_is_minus_the_papers_cost(float64, dimensions, flat):
    environment = silver2014.bandit(dimensions)
    actions = np.random.default_rng(0).uniform(-1.3, 1.3, (50, dimensions))
    seen = after(environment, np.zeros((50, 1)), actions)
    cost = np.diag([0.1] * flat + [1.0] * (dimensions - flat))
    # Actions of the Box [-8, 8]; a* is (4, ..., 4).
    distance = 8 * np.clip(actions, -1, 1) - 4
    np.testing.assert_allclose(seen.reward, [-d @ cost @ d for d in distance], rtol=1e-6)
    assert seen.terminated.all()
    assert not seen.truncated.any()


def test_the_bandits_best_action_is_four_in_each_direction():
    environment = silver2014.bandit(7)
    actions = 0.5 + np.concatenate([np.zeros((1, 7)), 0.1 * np.eye(7), -0.1 * np.eye(7)])
    reward = after(environment, np.zeros((15, 1), "f4"), actions.astype("f4")).reward
    assert reward[0] == 0
    assert np.all(reward[1:] < 0)
    np.testing.assert_array_equal([environment.action_low, environment.action_high], [-8, 8])


def test_the_bandit_shows_nothing_and_never_lasts():
    seen = trajectory(silver2014.bandit(3), np.random.default_rng(0).uniform(-1, 1, (6, 3)).astype("f4"))[1]
    np.testing.assert_array_equal(seen.observation, 0)
    np.testing.assert_array_equal(seen.final_observation, 0)
    assert seen.terminated.all()


def test_the_number_of_the_bandits_dimensions_is_a_setting():
    assert make_environment(settings.Environment("Bandit-silver", {"dimensions": 25})).action_size == 25
    assert make_environment(settings.Environment("Bandit-silver")).action_size == 10


def car(position, speed, force):
    """Gymnasium's Continuous_MountainCarEnv, one step: position, speed, at the goal."""
    speed += min(max(force, -1), 1) * 0.0015 - 0.0025 * np.cos(3 * position)
    speed = min(max(speed, -0.07), 0.07)
    position = min(max(position + speed, -1.2), 0.6)
    if position == -1.2 and speed < 0:
        speed = 0.0
    return position, speed, position >= 0.45 and speed >= 0


def test_the_mountain_car_moves_as_gymnasiums_from_anywhere(float64):
    rng, count = np.random.default_rng(0), 2_000
    states = np.stack([rng.uniform(-1.2, 0.6, count), rng.uniform(-0.07, 0.07, count)], -1)
    states[:200, 0] = rng.uniform(-1.2, -1.15, 200)  # near the wall
    forces = rng.uniform(-1.5, 1.5, (count, 1))
    seen = after(silver2014.mountain_car(), states, forces)
    expected = np.array([car(*state, force) for state, (force,) in zip(states, forces, strict=True)])
    np.testing.assert_allclose(seen.final_observation, expected[:, :2], atol=1e-12)
    # From above the goal one may roll back over it: then Gymnasium's speed is negative. No episode gets there.
    reached = expected[:, 0] >= 0.45
    np.testing.assert_array_equal(seen.terminated, reached)
    np.testing.assert_array_equal(seen.reward, -1)
    assert np.count_nonzero(expected[:, 0] == -1.2) > 20
    assert 20 < np.count_nonzero(reached) < count / 2


def test_the_mountain_car_stops_at_the_wall_and_ends_at_the_goal(float64):
    """Whole episodes: full force backwards into the wall, forwards over the hill, and once more."""
    environment = silver2014.mountain_car()
    force = np.where(np.arange(400) % 120 < 45, -1.0, 1.0)
    first, seen = trajectory(environment, force[:, None])
    (position, speed), walls, goals = first, 0, 0
    for step in range(400):
        position, speed, goal = car(position, speed, force[step])
        np.testing.assert_allclose(seen.final_observation[step], [position, speed], atol=1e-9)
        assert (seen.terminated[step], seen.truncated[step], seen.reward[step]) == (goal, False, -1)
        walls += position == -1.2
        goals += goal
        if goal:
            position, speed = seen.observation[step]
            assert -0.6 <= position <= -0.4
            assert speed == 0
    assert walls >= 1
    assert goals >= 2


def test_the_mountain_car_starts_at_rest_somewhere_in_the_valley():
    _, first = jax.vmap(silver2014.mountain_car().reset)(jax.random.split(KEY, 2_000))
    position, speed = np.asarray(first).T
    np.testing.assert_array_equal(speed, 0)
    assert stats.kstest(position, stats.uniform(-0.6, 0.2).cdf).pvalue > 1e-3


def test_the_mountain_car_gives_up_after_five_thousand_steps():
    _, seen = trajectory(silver2014.mountain_car(), np.zeros((5_001, 1), "f4"))
    np.testing.assert_array_equal(np.flatnonzero(seen.truncated), [4_999])
    assert not seen.terminated.any()
    assert seen.reward[:5_000].sum() == -5_000


def pendulum(angle, speed, action):
    """Gymnasium's PendulumEnv with g = 10 and m = l = 1, one step: angle in [-pi, pi), speed."""
    torque = min(max(2 * action, -2), 2)
    speed = speed + (3 * 10 / (2 * 1) * np.sin(angle) + 3 / (1 * 1**2) * torque) * 0.05
    speed = min(max(speed, -8), 8)
    angle = angle + speed * 0.05
    while angle >= np.pi:
        angle -= 2 * np.pi
    while angle < -np.pi:
        angle += 2 * np.pi
    return angle, speed


def test_the_pendulum_moves_as_gymnasiums_and_is_rewarded_with_the_cosine(float64):
    rng, count = np.random.default_rng(0), 2_000
    states = np.stack([rng.uniform(-np.pi, np.pi, count), rng.uniform(-8, 8, count)], -1)
    states[:200, 0] = rng.choice([-1, 1], 200) * rng.uniform(3, np.pi, 200)  # about to wrap
    actions = rng.uniform(-1.5, 1.5, (count, 1))
    seen = after(silver2014.pendulum(), states, actions)
    expected = np.array([pendulum(*state, action) for state, (action,) in zip(states, actions, strict=True)])
    np.testing.assert_allclose(seen.final_observation, expected, atol=1e-12)
    np.testing.assert_allclose(seen.reward, np.cos(expected[:, 0]), atol=1e-12)
    assert not seen.terminated.any()
    assert np.count_nonzero(np.abs(expected[:, 0] - states[:, 0]) > 5) > 50
    assert np.count_nonzero(np.abs(expected[:, 1]) == 8) > 50


def test_the_pendulum_follows_its_equations_from_hanging_down_through_turns_both_ways(float64):
    """Energy is pumped in by torque along the speed, with random intervals against it."""
    rng, speed, angle = np.random.default_rng(1), 0.0, -np.pi
    actions, expected = [], []
    for step in range(400):
        helpful = 1.0 if speed >= 0 else -1.0
        actions.append(helpful * (1 if step // 40 % 3 else rng.uniform(-1.2, 1.2)))
        angle, speed = pendulum(angle, speed, actions[-1])
        expected.append([angle, speed])
    first, seen = trajectory(silver2014.pendulum(), np.array(actions)[:, None])
    np.testing.assert_array_equal(first, [-np.pi, 0])
    np.testing.assert_allclose(seen.final_observation, expected, atol=1e-8)
    turns = np.diff(np.array(expected)[:, 0])
    assert turns.max() > 5
    assert turns.min() < -5
    assert np.abs(np.array(expected)[:, 1]).max() == 8


def test_the_pendulum_swings_for_five_thousand_steps_and_no_less():
    _, seen = trajectory(silver2014.pendulum(), np.zeros((5_001, 1), "f4"))
    np.testing.assert_array_equal(np.flatnonzero(seen.truncated), [4_999])
    # Without torque it hangs, which is the paper's worst return.
    np.testing.assert_allclose(seen.reward, -1, atol=1e-4)


def puddle_reward(x, y):
    """-1 - 2 (N(x, .3, .1) N(y, .6, .03) + N(x, .4, .03) N(y, .5, .1) + N(x, .8, .03) N(y, .9, .1)); Degris 2012."""
    bell = lambda z, mean, deviation: (  # noqa: E731
        np.exp(-0.5 * ((z - mean) / deviation) ** 2) / (deviation * np.sqrt(2 * np.pi))
    )
    puddles = bell(x, 0.3, 0.1) * bell(y, 0.6, 0.03) + bell(x, 0.4, 0.03) * bell(y, 0.5, 0.1)
    return -1 - 2 * (puddles + bell(x, 0.8, 0.03) * bell(y, 0.9, 0.1))


def test_in_the_puddle_world_a_step_costs_what_the_puddles_at_its_end_make_it_cost(float64):
    rng, count = np.random.default_rng(0), 2_000
    states, actions = rng.uniform(0, 1, (count, 2)), rng.uniform(-1, 1, (count, 2))
    seen = after(silver2014.puddle_world(), states, actions)
    expected = puddle_reward(*seen.final_observation.T)
    np.testing.assert_allclose(seen.reward, expected, rtol=1e-9)
    assert expected.min() < -40
    assert expected.max() > -1.001
    np.testing.assert_array_equal(seen.terminated, np.sum(1 - seen.final_observation, -1) < 0.1)
    assert seen.terminated.any()


def test_in_the_puddle_world_the_way_is_the_action_and_uniform_noise(float64):
    rng, count = np.random.default_rng(1), 4_000
    states, actions = rng.uniform(0.1, 0.9, (count, 2)), rng.uniform(-1.5, 1.5, (count, 2))
    seen = after(silver2014.puddle_world(), states, actions)
    noise = seen.final_observation - states - 0.05 * np.clip(actions, -1, 1)
    for axis in range(2):
        assert stats.kstest(noise[:, axis], stats.uniform(-0.025, 0.05).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(noise.T)[0, 1]) < 0.06
    assert np.abs(noise).max() <= 0.025


def test_the_puddle_world_has_walls(float64):
    corner, outwards = np.tile([[0.0, 0.01], [0.99, 0.3]], (100, 1)), np.tile([[-1.0, -1.0], [1.0, 0.0]], (100, 1))
    seen = after(silver2014.puddle_world(), corner, outwards).final_observation
    np.testing.assert_array_equal(seen[::2], 0)
    np.testing.assert_array_equal(seen[1::2, 0], 1)


def test_the_puddle_world_begins_at_its_start_and_can_be_crossed():
    actions = np.ones((120, 2), "f4")
    first, seen = trajectory(silver2014.puddle_world(), actions)
    np.testing.assert_allclose(first, [0.2, 0.4], rtol=1e-6)
    ends = np.flatnonzero(seen.terminated)
    assert len(ends) >= 3
    np.testing.assert_allclose(seen.observation[ends], np.tile([0.2, 0.4], (len(ends), 1)), rtol=1e-6)
    assert np.all(np.sum(1 - seen.final_observation[ends], -1) < 0.1)


def test_the_puddle_world_ends_after_five_thousand_steps():
    _, seen = trajectory(silver2014.puddle_world(), -np.ones((5_001, 2), "f4"))
    np.testing.assert_array_equal(np.flatnonzero(seen.truncated), [4_999])
    assert not seen.terminated.any()
