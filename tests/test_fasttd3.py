"""FastTD3: updates against NumPy, and where it differs from TD3 and from its reference code."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from helpers import tiny

from jaxddpg import config
from jaxddpg.agents.fasttd3 import fasttd3
from jaxddpg.config import build
from jaxddpg.settings import FastTD3, FastTD3Actor, FastTD3Critic
from jaxddpg.training.loop import clock_at
from jaxddpg.types import Clock, Environment, Transition

CLOCK = Clock(np.uint32(1), np.uint32(0), num_envs=1)
WORLD = Environment(None, None, observation_size=3, action_size=2, episode_length=1)
CONFIG = FastTD3(
    tau=0.05,
    actor_learning_rate=2e-3,
    critic_learning_rate=5e-3,
    decoupled_weight_decay=0.0,
    target_noise=0.2,
    num_atoms=11,
    v_min=-3.0,
    v_max=5.0,
    actor=FastTD3Actor(hidden_sizes=(16, 12), final_bound=0.3),
    critic=FastTD3Critic(hidden_sizes=(16, 12), final_bound=0.3),
)


def batch(seed=0, rows=48, scale=1.0):
    rng = np.random.default_rng(seed)
    return Transition(
        rng.normal(size=(rows, 3)),
        np.tanh(rng.normal(size=(rows, 2))),
        scale * rng.normal(size=rows),
        rng.normal(size=(rows, 3)),
        0.9 * (rng.random(rows) > 0.3),
    )


def start(section=CONFIG):
    agent = fasttd3(WORLD, section)
    state, other = agent.init(jax.random.key(0)), agent.init(jax.random.key(1))
    return agent, state.replace(target_critics=other.critics)


def update(agent, state, data, seed=0):
    return jax.jit(agent.update)(jax.random.key(seed), CLOCK, state, jax.tree.map(jnp.asarray, data))


def layers(variables, index=...):
    params = variables["params"]
    return [(np.asarray(params[n]["kernel"])[index], np.asarray(params[n]["bias"])[index]) for n in sorted(params)]


@pytest.mark.parametrize(
    ("changes", "rows", "scale"),
    [
        ({}, 24, 1.0),
        ({"clipped_double": False}, 24, 1.0),
        ({"policy_delay": 3, "microbatch_size": 4}, 8, 1.0),
        ({"policy_delay": 1}, 1, 1.0),
        ({}, 2, 1e-3),
        ({"v_min": -1e5, "v_max": 1e5}, 24, 1e4),
    ],
)
@pytest.mark.parametrize("wide", [True, False], ids=["float64", "float32"])
def test_updates_are_those_of_the_paper(changes, rows, scale, wide):
    section = dataclasses.replace(CONFIG, **changes)
    delay, support = section.policy_delay, np.linspace(section.v_min, section.v_max, 11)
    with jax.enable_x64(wide):
        agent, state = start(section)
        critics, targets = (
            [layers(stack, index) for index in range(2)] for stack in (state.critics, state.target_critics)
        )
        oracle = oracles.FastTD3(
            layers(state.actor), critics, targets, 2e-3, 5e-3, 0.05, support, section.clipped_double
        )
        tolerance = 1e-9 if wide else 3e-3
        for seed in range(4):
            data = batch(seed, rows * delay, scale)
            state, metrics = update(agent, state, data, seed)
            drawn = [
                0.2 * np.asarray(jax.random.normal(key, (rows, 2)))
                for key in jax.random.split(jax.random.key(seed), delay)
            ]
            parts = [
                [np.asarray(x)[part * rows : (part + 1) * rows] for x in jax.tree.leaves(data)] for part in range(delay)
            ]
            critic_loss, actor_loss = oracle.update(parts, np.clip(drawn, -0.5, 0.5))
            np.testing.assert_allclose(metrics["critic_loss"], critic_loss, rtol=tolerance)
            np.testing.assert_allclose(metrics["actor_loss"], actor_loss, atol=tolerance * section.v_max)
        found, expected = [layers(state.actor)], [oracle.actor]
        for index in range(2):
            found += [layers(state.critics, index), layers(state.target_critics, index)]
            expected += [oracle.critics[index], oracle.target_critics[index]]
    # In float32 Adam gives a gradient near zero its full step, of either sign.
    tolerance = 1e-9 if wide else 1.1e-2
    for ours, theirs in zip(found, expected, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance), ours, theirs)


def test_the_targets_follow_after_each_step_of_the_critics_and_the_actor_has_none():
    section = dataclasses.replace(CONFIG, policy_delay=3, critic_learning_rate=1e-30, actor_learning_rate=1e-30)
    agent, state = start(section)
    after, _ = update(agent, state, batch())
    jax.tree.map(
        lambda online, before, found: np.testing.assert_allclose(
            found - online, 0.95**3 * (before - online), atol=1e-6
        ),
        state.critics,
        state.target_critics,
        after.target_critics,
    )
    assert {field.name for field in dataclasses.fields(state)} == {
        "actor",
        "critics",
        "target_critics",
        "actor_optimizer",
        "critic_optimizer",
    }


def test_weights_decay_beside_the_step_and_biases_do_not():
    still = dataclasses.replace(CONFIG, critic_learning_rate=1e-30)  # else the actor would follow other critics
    plain, decayed = (dataclasses.replace(still, decoupled_weight_decay=decay) for decay in (0.0, 0.1))
    _, state = start()
    one, other = (update(fasttd3(WORLD, section), state, batch(rows=2))[0] for section in (plain, decayed))
    first = lambda s, kind: np.asarray(s.actor["params"]["Dense_1"][kind])  # noqa: E731
    np.testing.assert_allclose(
        first(one, "kernel") - first(other, "kernel"), 2e-3 * 0.1 * first(state, "kernel"), atol=1e-7
    )
    np.testing.assert_array_equal(first(one, "bias"), first(other, "bias"))


def test_it_trains_with_normalization_windows_and_a_ladder():
    content = config.as_mapping(tiny()) | {
        "agent": {
            "algorithm": "fasttd3",
            "batch_size": 8,
            "actor": {"hidden_sizes": [8]},
            "critic": {"hidden_sizes": [8]},
        },
        "noise": {"color": "ladder"},
    }
    content["replay"] |= {"steps": 3}
    content["training"] |= {"updates_per_step": 2, "warmup_steps": 8}
    member = config.parse(content).experiment.member()
    trainer, key = build.build(member), jax.random.key(0)
    state, metrics = jax.jit(trainer.epoch)(key, clock_at(member.training, 1), jax.jit(trainer.init)(key))
    steps = member.training.steps_per_epoch
    assert optax.tree.get(state.agent.agent.critic_optimizer, "count") == 2 * steps
    assert optax.tree.get(state.agent.agent.actor_optimizer, "count") == steps
    assert np.isfinite([*metrics.values()]).all()
