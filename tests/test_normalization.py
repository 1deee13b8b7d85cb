"""Observation normalization: the statistics, and what an agent sees by them."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import probes
import pytest
from helpers import after, comparable, equal, tiny

from jaxddpg import config
from jaxddpg.agents.ddpg import ddpg
from jaxddpg.config import build
from jaxddpg.parts import sharding
from jaxddpg.parts.normalization import BOUND, NormalizedState, normalized
from jaxddpg.runs.load import evaluate
from jaxddpg.runs.start import resume, run
from jaxddpg.settings import DDPG, Actor, Critic
from jaxddpg.training.loop import clock_at
from jaxddpg.types import Agent, Clock, Environment

WORLD = Environment(None, None, observation_size=3, action_size=2, episode_length=1)
PLAIN = ddpg(WORLD, DDPG(actor=Actor((8,), final_bound=0.3), critic=Critic((8,), final_bound=0.3)))
BLANK = Agent(lambda key: (), None, None, None, None, 0.9, 1)


def observed(observations):
    """The statistics after vector steps [T, N, O]."""
    agent = normalized(BLANK, observations.shape[-1])
    state = agent.init(jax.random.key(0))

    def step(state, inputs):
        number, observation = inputs
        return agent.observe(Clock(np.uint32(0), number, observation.shape[0]), state, observation), None

    return jax.jit(lambda x: jax.lax.scan(step, state, (jnp.arange(len(x), dtype=jnp.uint32), x)))(observations)[0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("offset", "scale"), [(0.0, 1.0), (1e4, 1.0), (-3.0, 1e-3), (0.0, 1e4)])
@pytest.mark.parametrize(("steps", "num_envs"), [(1, 2), (2, 1), (200, 1), (200, 4), (2_000, 3)])
def test_the_statistics_are_those_of_all_observations(steps, num_envs, offset, scale, dtype):
    rng = np.random.default_rng(0)
    data = (offset + scale * rng.normal(size=(steps, num_envs, 3))).astype(dtype)
    with jax.enable_x64(dtype == "float64"):
        state = observed(jnp.asarray(data))
        assert state.mean.dtype == dtype
    flat = data.astype("f8").reshape(-1, 3)
    precision = np.finfo(dtype).eps * (abs(offset) + scale) * 30
    mean = np.asarray(state.origin, "f8") + np.asarray(state.mean, "f8")
    np.testing.assert_allclose(mean, flat.mean(0), atol=precision)
    np.testing.assert_allclose(state.variance, flat.var(0), rtol=1e-2 if dtype == "float32" else 1e-9)


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e6])
def test_the_mean_follows_a_drift_that_is_small_beside_it(offset):
    """A running mean of 10,000 in float32 would stay where it is: each step moves it by less than its rounding."""
    rng = np.random.default_rng(0)
    data = rng.integers(-2, 3, size=(30_000, 1, 1)) + np.where(np.arange(30_000) < 5_000, 0.0, 3.0)[:, None, None]
    state = observed(jnp.asarray(offset + data, "float32"))
    assert float(state.origin[0]) + float(state.mean[0]) - offset == pytest.approx(
        data.mean(), abs=0.01 + 1e-7 * abs(offset)
    )
    assert float(state.variance[0]) == pytest.approx(data.var(), rel=0.01)


@pytest.mark.parametrize("offset", [0.0, 7.0, 1e4, -1e-3])
def test_what_is_constant_is_seen_as_zero_and_not_as_rounding(offset):
    state = observed(jnp.full((500, 3, 1), offset) * jnp.ones(1))
    agent = normalized(BLANK._replace(act=lambda _, observation: observation), 1)
    assert abs(float(agent.act(state, jnp.full(1, offset))[0])) < 0.1


@pytest.mark.parametrize(("offset", "scale"), [(0.0, 1.0), (1e4, 1.0), (0.0, 1e-3), (0.0, 1e4)])
def test_an_agent_sees_observations_of_mean_0_and_variance_1_within_the_bound(offset, scale):
    rng = np.random.default_rng(0)
    data = jnp.asarray(offset + scale * rng.normal(size=(1_000, 4, 2)), "float32")
    agent = normalized(BLANK._replace(act=lambda _, observation: observation), 2)
    state = observed(data)
    seen = agent.act(state, data.reshape(-1, 2))
    np.testing.assert_allclose(seen.mean(0), 0, atol=0.02)
    np.testing.assert_allclose(seen.std(0), 1, atol=0.02)
    np.testing.assert_array_equal(agent.act(state, jnp.full(2, offset + 1e6 * scale)), BOUND)


def test_everything_that_reads_observations_reads_them_normalized():
    agent = normalized(PLAIN, 3)
    mean, variance = jnp.array([1.0, -2.0, 0.5]), jnp.array([4.0, 0.25, 1.0])
    inner = PLAIN.init(jax.random.key(0))
    state = NormalizedState(inner, jnp.array([0.5, 0.0, -0.5]), mean - jnp.array([0.5, 0.0, -0.5]), variance)
    batch = probes.batch(jax.random.key(1), WORLD, 16)
    scaled = batch.replace(
        observation=(batch.observation - mean) / jnp.sqrt(variance),
        next_observation=(batch.next_observation - mean) / jnp.sqrt(variance),
    )
    clock, key = Clock(np.uint32(1), np.uint32(5), 1), jax.random.key(2)
    close = partial(jax.tree.map, partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6))
    close(agent.act(state, batch.observation), PLAIN.act(inner, scaled.observation))
    close(agent.value(state, batch.observation), PLAIN.value(inner, scaled.observation))
    close(agent.diagnostics(state, batch), PLAIN.diagnostics(inner, scaled))
    after_ours, metrics = agent.update(key, clock, state, batch)
    after_theirs, expected = PLAIN.update(key, clock, inner, scaled)
    close((after_ours.agent, metrics), (after_theirs, expected))
    close((after_ours.origin + after_ours.mean, after_ours.variance), (mean, variance))


@pytest.mark.parametrize("num_envs", [1, 2])
@pytest.mark.parametrize("spoiled", [jnp.nan, jnp.inf, 3e19])
def test_the_statistics_stay_finite_where_an_observation_or_its_square_is_not(num_envs, spoiled):
    data = jnp.asarray(np.random.default_rng(0).normal(size=(20, num_envs, 1)), "float32")
    clean, spoiled = observed(data[:10]), observed(data.at[10:, -1].set(spoiled))
    jax.tree.map(np.testing.assert_array_equal, (spoiled.mean, spoiled.variance), (clean.mean, clean.variance))


def test_shards_have_the_statistics_of_all_environments():
    rng = np.random.default_rng(0)
    data = jnp.asarray(1e3 + rng.normal(size=(8, 3)), "float32")
    clock = Clock(np.uint32(0), np.uint32(4), 8)
    start = NormalizedState((), jnp.full(3, 1e3), jnp.zeros(3), jnp.full(3, 2.0))
    whole = normalized(BLANK, 3).observe(clock, start, data)
    shard = normalized(BLANK, 3, sharding.AXIS)
    split = jax.vmap(lambda x: shard.observe(clock, start, x), axis_name=sharding.AXIS)(data.reshape(4, 2, 3))
    for leaf, expected in ((split.mean, whole.mean), (split.variance, whole.variance)):
        np.testing.assert_allclose(leaf, np.tile(expected, (4, 1)), rtol=1e-5)


def experiment(**changes):
    agent = {"batch_size": 4, "normalize_observations": True}
    networks = {"actor": {"hidden_sizes": [8]}, "critic": {"hidden_sizes": [8]}}
    return tiny(agent=agent | networks, **changes)


@pytest.mark.parametrize("algorithm", ["ddpg", "td3"])
def test_each_observation_that_is_acted_on_counts_once_those_of_the_warm_up_too(algorithm):
    """As the replay has them, which holds all of them here."""
    member = experiment(replay={"capacity": 64}).member()
    agent = dataclasses.replace(member.agent)
    if algorithm == "td3":
        agent = config.parse(
            {"agent": {"algorithm": "td3", "batch_size": 4, "normalize_observations": True}}
        ).experiment
        member = dataclasses.replace(member, agent=dataclasses.replace(agent.agent, policy_delay=1))
    trainer, key = build.build(member), jax.random.key(0)
    state = jax.jit(trainer.init)(key)
    steps = member.training.warmup_steps
    for number in range(3):
        rows = state.replay.unpack(state.replay.rows)
        flat = np.asarray(rows.observation, "f8")[: steps * member.training.num_envs]
        np.testing.assert_allclose(state.agent.origin + state.agent.mean, flat.mean(0), rtol=1e-5)
        np.testing.assert_allclose(state.agent.variance, flat.var(0), rtol=1e-4)
        clock = clock_at(member.training, number + 1)
        state, steps = jax.jit(trainer.epoch)(key, clock, state)[0], steps + member.training.steps_per_epoch


def test_a_run_is_resumed_to_the_bit_and_evaluated_by_its_statistics(tmp_path):
    whole = run(experiment(), tmp_path / "whole")
    run(experiment(), tmp_path / "run", should_stop=after(2))
    equal(resume(tmp_path / "run"), whole)
    assert comparable(tmp_path / "run") == comparable(tmp_path / "whole")
    assert np.isfinite([row["return_mean"] for row in evaluate(tmp_path / "run", 2)]).all()
    assert np.ptp(whole.agents.mean, axis=0).min() > 0  # each member has its own
