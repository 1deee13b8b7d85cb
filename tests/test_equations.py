import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxddpg.parts import equations


@pytest.mark.parametrize(("v_min", "v_max"), [(-5.0, 0.0), (9_990.0, 10_010.0), (-1e-3, 1e-3), (-1e4, 1e4)])
@pytest.mark.parametrize("num_atoms", [2, 51])
def test_the_expected_value_far_from_zero_is_as_exact_as_its_result(v_min, v_max, num_atoms):
    probabilities = np.random.default_rng(0).dirichlet(np.ones(num_atoms), size=8)
    exact = probabilities @ np.linspace(v_min, v_max, num_atoms)
    found = equations.expected_value(jnp.asarray(probabilities, "float32"), v_min, v_max)
    np.testing.assert_allclose(found, exact, atol=2e-7 * max(abs(v_min), abs(v_max)), rtol=0)


def test_td_target_is_the_papers():
    rng = np.random.default_rng(0)
    reward, discount, next_q = rng.normal(size=(3, 7)).astype(np.float32)
    np.testing.assert_allclose(equations.td_target(reward, discount, next_q), reward + discount * next_q, rtol=1e-6)


def test_no_gradient_passes_the_target():
    gradient = jax.grad(lambda q: equations.td_target(jnp.ones(3), jnp.ones(3), q).sum())(jnp.ones(3))
    np.testing.assert_array_equal(gradient, 0)


def test_critic_loss_is_the_mean_square_and_its_gradient_that_of_the_rows():
    rng = np.random.default_rng(1)
    q, y = rng.normal(size=(2, 9)).astype(np.float32)
    loss, gradient = jax.value_and_grad(equations.critic_loss)(q, y)
    np.testing.assert_allclose(loss, np.mean((y - q) ** 2), rtol=1e-6)
    np.testing.assert_allclose(gradient, 2 * (q - y) / 9, rtol=1e-5)


def test_losses_refuse_the_shapes_that_would_broadcast():
    with pytest.raises(AssertionError):
        equations.critic_loss(jnp.ones((4, 1)), jnp.ones(4))
    with pytest.raises(AssertionError):
        equations.td_target(jnp.ones(4), jnp.ones(4), jnp.ones((4, 1)))


def test_with_few_actions_and_the_best_of_them_as_policy_it_is_dqn():
    """Mnih et al. 2015: the gradient of the linear Q(s, a) = w[a] s towards r + gamma max_a Q'(s', a)."""
    rng = np.random.default_rng(2)
    weights, target_weights = rng.normal(size=(2, 3, 4)).astype("f4")
    s, s_next = rng.normal(size=(2, 20, 4)).astype("f4")
    action, reward = rng.integers(3, size=20), rng.normal(size=20).astype("f4")
    discount = 0.9 * (rng.random(20) > 0.2).astype("f4")

    def loss(weights):
        policy = jnp.argmax(s_next @ target_weights.T, axis=-1)
        next_q = jnp.sum(target_weights[policy] * s_next, -1)
        return equations.critic_loss(jnp.sum(weights[action] * s, -1), equations.td_target(reward, discount, next_q))

    expected = np.zeros((3, 4))
    for row in range(20):
        best = max(target_weights[a] @ s_next[row] for a in range(3))
        error = reward[row] + discount[row] * best - weights[action[row]] @ s[row]
        expected[action[row]] -= 2 * error * s[row] / 20
    np.testing.assert_allclose(jax.grad(loss)(jnp.asarray(weights)), expected, atol=1e-5)


@pytest.mark.parametrize("tau", [0.001, 0.005, 0.1, 1.0])
def test_soft_update_answers_a_step_like_a_low_pass_filter(tau):
    online, start, steps = 3.0, -1.0, 1_000
    target = {"leaf": jnp.float32(start)}
    target = jax.lax.fori_loop(0, steps, lambda _, t: equations.soft_update(t, {"leaf": online}, tau), target)
    np.testing.assert_allclose(target["leaf"], online - (1 - tau) ** steps * (online - start), rtol=2e-4)


def test_soft_update_answers_an_impulse_with_a_sum_of_one():
    tau, response, target = 0.1, [], {"leaf": jnp.float32(0)}
    for step in range(200):
        target = equations.soft_update(target, {"leaf": jnp.float32(step == 0)}, tau)
        response.append(float(target["leaf"]))
    np.testing.assert_allclose(response[:50], tau * (1 - tau) ** np.arange(50), rtol=1e-4)
    assert sum(response) == pytest.approx(1, abs=1e-4)


def test_soft_update_without_gain_keeps_every_leaf():
    target = {"a": jnp.arange(3.0), "b": {"c": jnp.ones((2, 2))}}
    online = jax.tree.map(lambda x: x + 5, target)
    jax.tree.map(np.testing.assert_array_equal, equations.soft_update(target, online, 0.0), target)
    jax.tree.map(np.testing.assert_array_equal, equations.soft_update(target, online, 1.0), online)
