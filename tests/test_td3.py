"""TD3: one update against the paper in NumPy, and what its parts must and must not depend on."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from helpers import faults, tiny
from scipy import stats

from jaxddpg import config
from jaxddpg.agents.ddpg import ddpg
from jaxddpg.agents.td3 import td3
from jaxddpg.config import build
from jaxddpg.parts import equations
from jaxddpg.settings import DDPG, TD3, Actor, Critic, TD3Actor, TD3Critic
from jaxddpg.training.loop import clock_at
from jaxddpg.types import Clock, Environment, Transition

CLOCK = Clock(np.uint32(1), np.uint32(0), num_envs=1)
WORLD = Environment(None, None, observation_size=3, action_size=2, episode_length=1)
CONFIG = TD3(
    tau=0.05,
    actor_learning_rate=2e-3,
    critic_learning_rate=5e-3,
    actor=TD3Actor(hidden_sizes=(16, 12), final_bound=0.3),
    critic=TD3Critic(hidden_sizes=(16, 12), final_bound=0.3),
)


def batch(seed=0, rows=48, offset=0.0, scale=1.0):
    rng = np.random.default_rng(seed)
    return Transition(
        rng.normal(size=(rows, 3)),
        np.tanh(rng.normal(size=(rows, 2))),
        offset + scale * rng.normal(size=rows),
        rng.normal(size=(rows, 3)),
        0.9 * (rng.random(rows) > 0.3),
    )


def start(section=CONFIG):
    """The agent, and a state whose targets differ from the online networks, so that mixing them up shows."""
    agent = td3(WORLD, section)
    state, other = agent.init(jax.random.key(0)), agent.init(jax.random.key(1))
    return agent, state.replace(target_actor=other.actor, target_critics=other.critics)


def update(agent, state, data, seed=0):
    return jax.jit(agent.update)(jax.random.key(seed), CLOCK, state, jax.tree.map(jnp.asarray, data))


def layers(variables, index=...):
    params = variables["params"]
    return [(np.asarray(params[n]["kernel"])[index], np.asarray(params[n]["bias"])[index]) for n in sorted(params)]


def noises(key, section, rows):
    """The smoothing noise of each batch of an update, drawn as the agent does."""
    draw = lambda key: jax.random.normal(key, (rows, 2))  # noqa: E731
    drawn = np.asarray([draw(key) for key in jax.random.split(key, section.policy_delay)])
    return np.clip(section.target_noise * drawn, -section.target_noise_bound, section.target_noise_bound)


def same(one, other):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, one, other)))


@pytest.mark.parametrize(
    ("changes", "rows", "offset", "scale"),
    [
        ({}, 24, 0.0, 1.0),
        ({"policy_delay": 1}, 24, 0.0, 1.0),
        ({"policy_delay": 3, "num_critics": 3}, 8, 0.0, 1.0),
        ({"num_critics": 1}, 8, 0.0, 1.0),
        ({"microbatch_size": 6}, 24, 0.0, 1.0),
        ({"target_noise": 0.0}, 1, 0.0, 1.0),
        ({}, 2, 0.0, 1.0),
        ({}, 24, 1e4, 1.0),
        ({}, 24, 0.0, 1e-3),
        ({}, 24, 0.0, 1e4),
    ],
)
@pytest.mark.parametrize("wide", [True, False], ids=["float64", "float32"])
def test_updates_are_those_of_the_paper(changes, rows, offset, scale, wide):
    """Five updates; in float64 to 1e-9, with rewards far from zero and of any size."""
    section = dataclasses.replace(CONFIG, critic=dataclasses.replace(CONFIG.critic, weight_decay=0.1), **changes)
    with jax.enable_x64(wide):
        agent, state = start(section)
        critics, targets = (
            [layers(stack, index) for index in range(section.num_critics)]
            for stack in (state.critics, state.target_critics)
        )
        oracle = oracles.TD3(layers(state.actor), critics, layers(state.target_actor), targets, 2e-3, 5e-3, 0.05, 0.1)
        for seed in range(5):
            data = batch(seed, rows * section.policy_delay, offset, scale)
            state, metrics = update(agent, state, data, seed)
            batches = [
                [np.asarray(x)[part * rows : (part + 1) * rows] for x in jax.tree.leaves(data)]
                for part in range(section.policy_delay)
            ]
            critic_loss, actor_loss = oracle.update(batches, noises(jax.random.key(seed), section, rows))
            tolerance = 1e-9 if wide else 2e-3
            np.testing.assert_allclose(metrics["critic_loss"], critic_loss, rtol=tolerance)
            np.testing.assert_allclose(metrics["actor_loss"], actor_loss, rtol=tolerance, atol=tolerance)
        found = [layers(state.actor), layers(state.target_actor)]
        expected = [oracle.actor, oracle.target_actor]
        for index in range(section.num_critics):
            found += [layers(state.critics, index), layers(state.target_critics, index)]
            expected += [oracle.critics[index], oracle.target_critics[index]]
    # In float32 Adam gives a gradient near zero its full step, of either sign.
    tolerance = 1e-9 if wide else 5e-3
    for ours, theirs in zip(found, expected, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance), ours, theirs)


def test_with_one_critic_no_delay_and_no_noise_it_is_ddpg():
    networks = {"hidden_sizes": (16, 12), "final_bound": 0.3}
    shared = {"tau": 0.05, "actor_learning_rate": 2e-3, "critic_learning_rate": 5e-3, "reward_scale": 0.5}
    plain = ddpg(WORLD, DDPG(actor=Actor(**networks), critic=Critic(**networks), **shared))
    section = dataclasses.replace(CONFIG, num_critics=1, policy_delay=1, target_noise=0.0, **shared)
    agent = td3(WORLD, section)
    with jax.enable_x64(True):
        theirs, ours = plain.init(jax.random.key(0)), agent.init(jax.random.key(1))
        stacked = lambda tree: jax.tree.map(lambda x: x[None], tree)  # noqa: E731
        ours = ours.replace(
            actor=theirs.actor,
            critics=stacked(theirs.critic),
            target_actor=theirs.target_actor,
            target_critics=stacked(theirs.target_critic),
        )
        for seed in range(10):
            data = jax.tree.map(jnp.asarray, batch(seed))
            ours, found = update(agent, ours, data)
            theirs, expected = jax.jit(plain.update)(jax.random.key(0), CLOCK, theirs, data)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), found, expected)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), ours.actor, theirs.actor)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a[0], b, atol=1e-12), ours.target_critics, theirs.target_critic
        )


def test_the_smoothing_noise_is_a_clipped_normal_of_its_own_in_each_row_and_dimension():
    noise = np.asarray(equations.smoothing_noise(jax.random.key(0), (200_000, 2), 0.2, 0.5))
    ratio = 0.5 / 0.2
    tail = stats.norm.sf(ratio)
    variance = 0.04 * (1 - 2 * tail - 2 * ratio * stats.norm.pdf(ratio)) + 2 * 0.25 * tail
    assert variance == pytest.approx(0.03910, abs=1e-5)
    assert noise.var() == pytest.approx(variance, rel=0.01)
    assert np.mean(np.abs(noise) == 0.5) == pytest.approx(2 * tail, rel=0.05)
    assert abs(np.corrcoef(noise.T)[0, 1]) < 0.01
    assert abs(np.corrcoef(noise[:-1, 0], noise[1:, 0])[0, 1]) < 0.01


def test_two_unbiased_critics_make_a_target_that_is_too_low_by_what_the_smaller_of_two_normals_is():
    """The smaller of two independent N(0, 1) has the mean -1 / sqrt(pi)."""
    draws = np.random.default_rng(0).normal(size=(2, 400_000))
    assert np.minimum(*draws).mean() == pytest.approx(-1 / math.sqrt(math.pi), abs=5e-3)
    agent, state = start(dataclasses.replace(CONFIG, target_noise=0.0))
    low = jax.tree.map(lambda x: jnp.stack([x[0], x[0]]), state.target_critics)
    lower = jax.tree.map(lambda x: x, low)
    lower["params"]["Dense_2"]["bias"] = low["params"]["Dense_2"]["bias"].at[1].add(-100.0)
    data = batch()
    losses = [update(agent, state.replace(target_critics=c), data)[1]["critic_loss"] for c in (low, lower)]
    assert losses[1] > 100 * losses[0]


def test_the_actor_ascends_the_first_critic_on_the_last_batch():
    agent, state = start(dataclasses.replace(CONFIG, critic_learning_rate=1e-30))
    data = batch()
    actor = update(agent, state, data)[0].actor
    second = jax.tree.map(lambda x: x.at[1].add(1.0), state.critics)
    assert same(update(agent, state.replace(critics=second), data)[0].actor, actor)
    first = jax.tree.map(lambda x: x.at[0].mul(-1.0), state.critics)
    assert not same(update(agent, state.replace(critics=first), data)[0].actor, actor)
    early = jax.tree.map(lambda x: np.concatenate([x[:24] + 1, x[24:]]), data)
    assert same(update(agent, state, early)[0].actor, actor)
    late = jax.tree.map(lambda x: np.concatenate([x[:24], x[24:] + 1]), data)
    assert not same(update(agent, state, late)[0].actor, actor)


def test_the_target_does_not_depend_on_the_online_networks():
    agent, state = start(dataclasses.replace(CONFIG, policy_delay=1))
    other = agent.init(jax.random.key(7))
    loss = update(agent, state, batch())[1]["critic_loss"]
    assert update(agent, state.replace(actor=other.actor), batch())[1]["critic_loss"] == loss
    for name, value in (("target_actor", other.actor), ("target_critics", other.critics)):
        assert update(agent, state.replace(**{name: value}), batch())[1]["critic_loss"] != loss


def test_the_targets_move_once_per_update_whatever_the_delay():
    """With the online networks held still, the distance shrinks by 1 - tau each update."""
    section = dataclasses.replace(CONFIG, policy_delay=3, actor_learning_rate=1e-30, critic_learning_rate=1e-30)
    agent, state = start(section)
    after = state
    for seed in range(4):
        after, _ = update(agent, after, batch(seed))
    for online, target in (("actor", "target_actor"), ("critics", "target_critics")):
        distance = jax.tree.map(lambda a, b: np.asarray(a - b), getattr(state, online), getattr(state, target))
        found = jax.tree.map(lambda a, b: np.asarray(a - b), getattr(state, online), getattr(after, target))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 0.95**4 * b, atol=1e-6), found, distance)


def test_the_value_is_that_of_the_first_critic_in_units_of_the_reward():
    agent, state = start(dataclasses.replace(CONFIG, reward_scale=0.1))
    observation = batch().observation
    action, _ = oracles.mlp(layers(state.actor), observation)
    q, _ = oracles.mlp(layers(state.critics, 0), np.hstack([observation, np.tanh(action)]))
    np.testing.assert_allclose(agent.value(state, jnp.asarray(observation, "float32")), q[:, 0] / 0.1, rtol=2e-4)


@pytest.mark.parametrize(("delay", "ratio", "steps"), [(2, 1, 4), (1, 1, 4), (3, 6, 2), (2, 0.5, 8)])
def test_updates_per_step_counts_the_steps_of_the_critics(delay, ratio, steps):
    agent = {"algorithm": "td3", "policy_delay": delay, "batch_size": 4}
    networks = {"actor": {"hidden_sizes": [4]}, "critic": {"hidden_sizes": [4]}}
    content = config.as_mapping(tiny()) | {"agent": agent | networks}
    content["training"] |= {"updates_per_step": ratio, "steps_per_epoch": steps, "warmup_steps": 6}
    member = config.parse(content).experiment.member()
    trainer, key = build.build(member), jax.random.key(0)
    state, _ = jax.jit(trainer.epoch)(key, clock_at(member.training, 1), jax.jit(trainer.init)(key))
    assert optax.tree.get(state.agent.critic_optimizer, "count") == steps * ratio
    assert optax.tree.get(state.agent.actor_optimizer, "count") == steps * ratio / delay


@pytest.mark.parametrize(
    ("agent", "training", "replay", "said"),
    [
        (
            {"policy_delay": 3},
            {"steps_per_epoch": 4},
            {},
            "training.steps_per_epoch is 4, but must be a multiple of the 3 steps between updates; use 6",
        ),
        ({}, {"steps_per_epoch": 4}, {"sampling": "latest"}, "training.warmup_steps is 4"),
        ({"actor": {"normalization": "batch"}}, {}, {}, "agent.actor.normalization is batch, but must be one of none"),
        ({"num_critics": 0}, {}, {}, "agent.num_critics is 0, but must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused(agent, training, replay, said):
    content = config.as_mapping(tiny())
    content["agent"] = {"algorithm": "td3", "batch_size": 8} | agent
    content["training"] |= {"updates_per_step": 1} | training
    content["replay"] |= replay
    assert any(fault.startswith(said) for fault in faults(content)), faults(content)
