import jax
import jax.numpy as jnp
import numpy as np
import probes
import pytest

from jaxddpg.training.evaluation import causes, evaluate


def measure(environment, act=None, value=None, gamma=0.9, episodes=5):
    act = act or (lambda observation: jnp.zeros((episodes, environment.action_size)))
    value = value or (lambda observation: jnp.zeros(episodes))
    return evaluate(jax.random.key(0), environment, act, value, gamma, episodes)


def test_returns_are_whole_episodes():
    metrics = measure(probes.echo(limit=7), act=lambda observation: jnp.full((5, 1), 0.5))
    assert metrics["return_mean"] == pytest.approx(3.5)
    assert metrics["return_std"] == pytest.approx(0)


def test_nothing_counts_after_termination():
    environment = probes.reward_then_end(2.0)._replace(episode_length=10)
    metrics = measure(environment, value=lambda observation: jnp.full(5, 100.0))
    assert metrics["return_mean"] == metrics["discounted_return_mean"] == 2.0


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.9])
def test_the_discounted_return_is_completed_by_the_value_where_a_limit_cut_it(gamma):
    environment = probes.endless_reward(limit=4)
    metrics = measure(environment, value=lambda observation: jnp.full(5, 7.0), gamma=gamma)
    assert metrics["discounted_return_mean"] == pytest.approx(sum(gamma**t for t in range(4)) + gamma**4 * 7)
    assert metrics["q_start_mean"] == 7


def test_a_true_prediction_equals_the_actual_return():
    metrics = measure(probes.endless_reward(), value=lambda observation: jnp.full(5, 10.0))
    assert metrics["discounted_return_mean"] == pytest.approx(metrics["q_start_mean"])


def test_the_value_is_asked_where_the_episode_truly_ended():
    metrics = measure(probes.echo(limit=3), value=lambda observation: 8 * observation[:, 0], gamma=0.5)
    assert metrics["discounted_return_mean"] == pytest.approx(0.5**3 * 8)  # 1 at the end, 0 after the reset


def test_actions_outside_the_box_are_clipped():
    assert measure(probes.echo(limit=1), act=lambda observation: jnp.full((5, 1), 9.0))["return_mean"] == 1


def test_the_standard_deviation_is_over_episodes():
    metrics = measure(probes.noisy_reward(2.0), episodes=4_000)
    assert metrics["return_std"] == pytest.approx(2.0, rel=0.1)
    assert abs(metrics["return_mean"]) < 5 * 2.0 / np.sqrt(4_000)


def test_a_return_does_not_drift():
    """A million rewards of 0.1; added up plainly in single precision they are 100,958."""
    environment = probes.endless_reward(0.1, limit=1_000_000)

    @jax.jit
    def measured(key):
        return evaluate(key, environment, lambda x: x, lambda x: jnp.zeros(len(x)), 1.0, 1)

    metrics = measured(jax.random.key(0))
    assert metrics["return_mean"] == pytest.approx(100_000, rel=1e-6)
    assert metrics["discounted_return_mean"] == pytest.approx(100_000, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "what", "cause"),
    [
        ({}, {}, ""),
        ({"lost_at_step": -1.0}, {}, "observation of the environment's reset"),
        ({"lost_at_step": 3.0}, {}, "observation of the environment's step"),
        ({"nan_at_step": 3.0}, {}, "reward of the environment's step"),
        ({"inf_at_step": 3.0, "lost_at_step": 3.0}, {}, "observation of the environment's step"),
        ({}, {"act": lambda observation: jnp.where(observation == 0.5, jnp.nan, observation)}, "action of the policy"),
        ({}, {"value": lambda observation: jnp.full(5, jnp.inf)}, "value of the policy"),
        ({"scale": 3e38}, {}, "sum of rewards"),
    ],
)
def test_what_is_not_finite_is_named(changes, what, cause):
    environment = probes.endless_reward(changes["scale"]) if "scale" in changes else probes.spoiled(**changes)
    metrics = {name: np.asarray(value)[None] for name, value in measure(environment, **what).items()}
    assert causes(metrics) == [cause]
    assert "cause" not in metrics
    unseen = not cause or "observation" in cause  # by a policy that is blind
    assert np.isfinite([*metrics.values()]).all() == (unseen and "inf_at_step" not in changes)


def test_what_comes_after_the_end_of_an_episode_is_no_part_of_it():
    """The seventh step and those after it belong to the next episode."""
    clean, spoiled = (
        measure(probes.spoiled(nan_at_step=at, limit=6)._replace(episode_length=8)) for at in (jnp.inf, 6.0)
    )
    assert spoiled == clean
    assert clean["return_mean"] > 0
