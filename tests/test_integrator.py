import jax
import numpy as np
import pytest

from jaxddpg import settings
from jaxddpg.config.environment import make_environment
from jaxddpg.envs import registry

NAME = "DoubleIntegrator"


def riccati():
    """The gain of the stationary linear-quadratic regulator."""
    a, b = np.array([[1.0, 0.1], [0.0, 1.0]]), np.array([[0.0], [0.1]])
    q, r, p = np.diag([1.0, 0.1]), np.array([[0.01]]), np.eye(2)
    for _ in range(2_000):
        gain = np.linalg.solve(r + b.T @ p @ b, b.T @ p @ a)
        p = q + a.T @ p @ (a - b @ gain)
    return gain[0]


def returns(control, episodes=4_000):
    """Of a controller [N, 2] -> [N] of forces, in NumPy."""
    state, total = np.random.default_rng(0).uniform(-1, 1, (episodes, 2)), np.zeros(episodes)
    for _ in range(100):
        force = np.clip(control(state), -2, 2)
        total -= state[:, 0] ** 2 + 0.1 * state[:, 1] ** 2 + 0.01 * force**2
        state = np.stack([state[:, 0] + 0.1 * state[:, 1], state[:, 1] + 0.1 * force], 1)
    return total


def test_the_best_known_return_is_that_of_the_clipped_regulator():
    gain = riccati()
    assert returns(lambda state: -state @ gain).mean() == pytest.approx(
        registry.CONTINUOUS[NAME].optimal_return, abs=0.1
    )
    rng = np.random.default_rng(1)
    random = returns(lambda state: rng.uniform(-2, 2, len(state)))
    assert random.mean() == pytest.approx(registry.CONTINUOUS[NAME].random_return, rel=0.1)


def test_its_steps_are_those_of_the_equations_and_it_ends_by_its_time_limit_alone():
    environment = make_environment(settings.Environment(NAME))
    gain, key = riccati(), jax.random.key(3)

    def step(carry, _):
        state, observation = carry
        action = -0.5 * (observation @ gain)[None]
        state, time_step = environment.step(key, state, action)
        return (state, time_step.observation), (observation, time_step)

    _, (observations, steps) = jax.lax.scan(step, environment.reset(key), None, 101)
    assert not np.any(steps.terminated)
    np.testing.assert_array_equal(np.flatnonzero(steps.truncated), [99])
    for number in range(99):
        position, speed = np.float64(observations[number])
        force = float(np.clip(-(observations[number] @ gain), -2, 2))
        reward = -(position**2 + 0.1 * speed**2 + 0.01 * force**2)
        assert float(steps.reward[number]) == pytest.approx(reward, rel=1e-4, abs=1e-6)
        np.testing.assert_allclose(observations[number + 1], [position + 0.1 * speed, speed + 0.1 * force], atol=1e-5)
