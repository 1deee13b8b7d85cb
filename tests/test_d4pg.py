"""D4PG: the projection, and one update against the paper in NumPy."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from helpers import faults, tiny

from jaxddpg import config
from jaxddpg.agents.d4pg import d4pg
from jaxddpg.parts import equations
from jaxddpg.settings import D4PG, PlainActor, PlainCritic
from jaxddpg.types import Clock, Environment, Transition

CLOCK = Clock(np.uint32(1), np.uint32(0), num_envs=1)
WORLD = Environment(None, None, observation_size=3, action_size=2, episode_length=1)
CONFIG = D4PG(
    tau=0.05,
    actor_learning_rate=2e-3,
    critic_learning_rate=5e-3,
    num_atoms=11,
    v_min=-3.0,
    v_max=5.0,
    actor=PlainActor(hidden_sizes=(16, 12), final_bound=0.3),
    critic=PlainCritic(hidden_sizes=(16, 12), final_bound=0.3),
)


def batch(seed=0, rows=24, offset=0.0, scale=1.0):
    rng = np.random.default_rng(seed)
    return Transition(
        rng.normal(size=(rows, 3)),
        np.tanh(rng.normal(size=(rows, 2))),
        offset + scale * rng.normal(size=rows),
        rng.normal(size=(rows, 3)),
        0.9 * (rng.random(rows) > 0.3),
    )


def layers(variables):
    params = variables["params"]
    return [(np.asarray(params[n]["kernel"]), np.asarray(params[n]["bias"])) for n in sorted(params)]


@pytest.mark.parametrize(
    ("rows", "offset", "scale", "num_atoms", "v_min", "v_max"),
    [
        (24, 0.0, 1.0, 11, -3.0, 5.0),
        (1, 0.0, 1.0, 51, -3.0, 5.0),
        (2, 0.0, 1.0, 2, 0.0, 1.0),
        (24, 1e4, 1.0, 51, 1e4 - 10, 1e5),
        (24, 0.0, 1e-3, 51, -0.01, 0.01),
        (24, 0.0, 1e4, 51, -1e5, 1e5),
    ],
)
@pytest.mark.parametrize("wide", [True, False], ids=["float64", "float32"])
def test_updates_are_those_of_the_paper(rows, offset, scale, num_atoms, v_min, v_max, wide):
    section = dataclasses.replace(CONFIG, num_atoms=num_atoms, v_min=v_min, v_max=v_max)
    with jax.enable_x64(wide):
        agent = d4pg(WORLD, section)
        state, other = agent.init(jax.random.key(0)), agent.init(jax.random.key(1))
        state = state.replace(target_actor=other.actor, target_critic=other.critic)
        networks = [layers(v) for v in (state.actor, state.critic, state.target_actor, state.target_critic)]
        oracle = oracles.D4PG(*networks, 2e-3, 5e-3, 0.05, np.linspace(v_min, v_max, num_atoms))
        update, tolerance = jax.jit(agent.update), 1e-9 if wide else 3e-3
        for seed in range(5):
            data = batch(seed, rows, offset, scale)
            state, metrics = update(jax.random.key(0), CLOCK, state, jax.tree.map(jnp.asarray, data))
            critic_loss, actor_loss = oracle.update(*jax.tree.leaves(data))
            np.testing.assert_allclose(metrics["critic_loss"], critic_loss, rtol=tolerance)
            size = max(abs(v_min), abs(v_max))
            np.testing.assert_allclose(metrics["actor_loss"], actor_loss, atol=tolerance * size)
        found = [layers(v) for v in (state.actor, state.critic, state.target_actor, state.target_critic)]
    expected = [oracle.actor, oracle.critic, oracle.target_actor, oracle.target_critic]
    # In float32 Adam gives a gradient near zero its full step, of either sign.
    tolerance = 1e-9 if wide else 1.1e-2
    for ours, theirs in zip(found, expected, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance), ours, theirs)


def target(probabilities, reward, discount, v_min, v_max):
    return np.asarray(
        equations.categorical_target(
            jnp.asarray(probabilities), jnp.asarray(reward), jnp.asarray(discount), v_min, v_max
        )
    )


def random(rows, atoms, seed=0):
    return np.random.default_rng(seed).dirichlet(np.ones(atoms), rows).astype("f4")


@pytest.mark.parametrize(("v_min", "v_max", "atoms"), [(-10, 10, 51), (0, 1, 2), (-150, 150, 101), (1e4, 1e4 + 1, 11)])
def test_the_projection_keeps_mass_and_mean(v_min, v_max, atoms):
    """The mean where nothing is clipped."""
    rng = np.random.default_rng(1)
    width, p = v_max - v_min, random(300, atoms)
    discount = rng.uniform(0, 1, 300).astype("f4")
    reward = (v_min - discount * v_min + (1 - discount) * width * rng.uniform(0, 1, 300)).astype("f4")
    found, support = target(p, reward, discount, v_min, v_max), np.linspace(v_min, v_max, atoms)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    assert found.min() >= 0
    wanted = reward.astype("f8") + discount * (p.astype("f8") @ support)
    np.testing.assert_allclose(found.astype("f8") @ support, wanted, atol=1e-5 * width + 3e-7 * abs(v_max))
    # Rewards and values are rounded to float32, here in units of atoms.
    rounding = 2 * np.finfo("f4").eps * max(abs(v_min), abs(v_max)) / (support[1] - support[0])
    np.testing.assert_allclose(found, oracles.project(p.astype("f8"), reward, discount, support), atol=1e-4 + rounding)


def test_identities_of_the_projection():
    p = random(20, 51)
    ones, zeros = np.ones(20, "f4"), np.zeros(20, "f4")
    np.testing.assert_allclose(target(p, zeros, ones, -10, 10), p, atol=1e-6)
    shifted = target(p, 0.4 * ones, ones, -10, 10)  # by exactly one atom, the integer case
    np.testing.assert_allclose(shifted[:, 1:-1], p[:, :-2], atol=1e-5)
    point = target(p, 0.1 * ones, zeros, -10, 10)
    np.testing.assert_allclose(point[:, 25], 0.75, atol=1e-5)
    np.testing.assert_allclose(point[:, 26], 0.25, atol=1e-5)
    for reward, atom in ((1e3, -1), (-1e3, 0)):
        np.testing.assert_allclose(target(p, reward * ones, ones, -10, 10)[:, atom], 1, atol=1e-5)


def test_the_gradient_of_the_loss_is_the_difference_of_the_distributions():
    logits, wanted = jnp.asarray(np.random.default_rng(0).normal(size=(7, 5)), "float32"), random(7, 5)
    gradient = jax.grad(equations.categorical_loss)(logits, wanted)
    np.testing.assert_allclose(gradient, (jax.nn.softmax(logits) - wanted) / 7, atol=1e-6)
    uniform = equations.categorical_loss(jnp.zeros((7, 51)), random(7, 51))
    assert float(uniform) == pytest.approx(math.log(51), rel=1e-5)


def test_no_gradient_passes_the_target():
    p = jnp.asarray(random(3, 5))
    gradient = jax.grad(lambda p: equations.categorical_target(p, jnp.ones(3), jnp.ones(3), -1.0, 1.0)[:, 0].sum())(p)
    np.testing.assert_array_equal(gradient, 0)


def test_the_value_is_the_mean_of_the_distribution_in_units_of_the_reward():
    agent = d4pg(WORLD, dataclasses.replace(CONFIG, reward_scale=0.1))
    state, observation = agent.init(jax.random.key(0)), batch().observation
    action = np.tanh(oracles.mlp(layers(state.actor), observation)[0])
    logits, _ = oracles.mlp(layers(state.critic), np.hstack([observation, action]))
    expected = oracles.softmax(logits) @ np.linspace(-3, 5, 11) / 0.1
    np.testing.assert_allclose(agent.value(state, jnp.asarray(observation, "float32")), expected, rtol=1e-4, atol=1e-3)


def test_a_range_without_width_is_refused():
    content = config.as_mapping(tiny())
    content["agent"] = {"algorithm": "d4pg", "batch_size": 4, "v_min": 3.0, "v_max": 3.0}
    assert "agent.v_min is 3.0, but must be below agent.v_max, 3.0" in faults(content)
