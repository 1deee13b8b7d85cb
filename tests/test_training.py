from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import probes
import pytest

from jaxddpg.agents.ddpg import ddpg
from jaxddpg.agents.td3 import td3
from jaxddpg.parts import noise, replay
from jaxddpg.settings import DDPG, TD3, Actor, Critic, Evaluation, Training
from jaxddpg.training.loop import clock_at, make_trainer
from jaxddpg.types import Agent, Clock

SMALL = DDPG(gamma=0.9, tau=0.05, batch_size=32, actor=Actor((16,)), critic=Critic((32,)))


def make(environment, config, agent=SMALL, exploration=None, capacity=256):
    """The trainer of an agent, or of the one that settings describe, with its functions compiled once."""
    trainer = make_trainer(
        environment,
        agent if isinstance(agent, Agent) else ddpg(environment, agent),
        exploration or noise.gaussian(0.3),
        replay.uniform(capacity),
        config,
        Evaluation(2),
    )
    return trainer._replace(
        init=jax.jit(trainer.init), epoch=jax.jit(trainer.epoch), evaluate=jax.jit(trainer.evaluate)
    )


def witness(rate=0.1):
    """An agent that compiles quickly: its one action depends on every key, step and row from which it learned,
    the last most, as long as the rate is not 0; and it counts its updates."""

    def update(key, clock, state, batch):
        drawn, rows = jax.random.normal(key), sum(jnp.mean(leaf) for leaf in jax.tree.leaves(batch))
        lesson = jnp.sin(rows + drawn + clock.step.astype(jnp.float32))
        updated = {"updates": state["updates"] + 1, "action": state["action"] + rate * (lesson - state["action"])}
        return updated, {"critic_loss": lesson}

    return Agent(
        init=lambda key: {"updates": jnp.zeros((), jnp.int32), "action": jnp.zeros(())},
        act=lambda state, observation: jnp.broadcast_to(state["action"], (*observation.shape[:-1], 1)),
        value=lambda state, observation: jnp.zeros(observation.shape[:-1]),
        update=update,
        diagnostics=lambda state, batch: {},
        gamma=0.9,
        batch_size=32,
    )


def run(trainer, config, seed=0):
    """The state and metrics after all epochs of a config."""
    key = jax.random.key(seed)
    state, metrics = trainer.init(key), {}
    for number in range(1, config.num_epochs + 1):
        state, metrics = trainer.epoch(key, clock_at(config, number), state)
    return state, metrics


def stored_rows(state):
    """The whole ring, field by field."""
    return state.replay.unpack(state.replay.rows)


@jax.jit
def learned_value(mean, deviation, limit, terminates):
    """What the critic of a member believes of the policy at the start, after 4,000 updates, where every step is
    rewarded with N(mean, deviation^2). One program serves all tests."""
    environment = probes.rewarding(mean, deviation, limit, terminates)
    config = Training(num_envs=4, updates_per_step=Fraction(4), warmup_steps=8, steps_per_epoch=1_000, num_epochs=1)
    agent = ddpg(environment, SMALL)
    trainer = make_trainer(environment, agent, noise.gaussian(0.3), replay.uniform(256), config)
    key = jax.random.key(0)
    state, _ = trainer.epoch(key, clock_at(config, 1), trainer.init(key))
    _, observation = environment.reset(key)
    return agent.value(state.agent, observation)


def test_a_time_limit_does_not_cut_the_bootstrap():
    assert learned_value(1.0, 0.0, 4, False) == pytest.approx(1 / (1 - 0.9), rel=0.01)


@pytest.mark.slow
def test_batch_normalization_learns_from_observations_with_an_offset():
    """Doing nothing earns -0.213; where the variance is E[x^2] - E[x]^2 nothing is learned."""
    environment, network = probes.offset_observation(1000.0), {"hidden_sizes": (32, 32), "normalization": "batch"}
    agent = DDPG(batch_size=64, actor=Actor(**network), critic=Critic(**network))
    config = Training(num_envs=8, warmup_steps=50, steps_per_epoch=2_000, num_epochs=1)
    trainer = make(environment, config, agent, capacity=8_000)
    state, _ = run(trainer, config)
    metrics = trainer.evaluate(jax.random.key(1), clock_at(config, 1), state.agent)
    assert metrics["return_mean"] > -0.02


def test_termination_does():
    assert learned_value(1.0, 0.0, 1, True) == pytest.approx(1.0, abs=0.02)


def test_noise_in_the_reward_averages_out():
    assert learned_value(0.0, 1.0, 1, True) == pytest.approx(0.0, abs=0.25)


def test_the_actor_finds_the_argmax_in_the_loop():
    environment, config = probes.quadratic(), Training(4, Fraction(2), 16, 2_000, 1)
    trainer = make(environment, config, exploration=noise.gaussian(0.3), capacity=8_192)
    state, _ = run(trainer, config)
    action = jax.jit(ddpg(environment, SMALL).act)(state.agent, np.zeros(1, "f4"))
    np.testing.assert_allclose(action, [0.3, -0.6], atol=0.08)


@pytest.fixture(scope="module")
def echoed():
    """A short run in the environment that rewards with the executed action: settings and final state."""
    config = Training(num_envs=4, updates_per_step=Fraction(2), warmup_steps=10, steps_per_epoch=11, num_epochs=2)
    trainer = make(probes.echo(limit=3), config, witness(), noise.gaussian(2.0))
    return config, trainer, run(trainer, config)


def test_the_executed_action_is_stored(echoed):
    stored = stored_rows(echoed[2][0])
    rows = (10 + 2 * 11) * 4
    action, reward = np.asarray(stored.action)[:rows, 0], np.asarray(stored.reward)[:rows]
    np.testing.assert_array_equal(action, reward)
    assert np.abs(action).max() == 1.0  # noise of deviation 2 was clipped before it was stored
    assert np.all(np.asarray(stored.reward)[rows:] == 0)


def test_rows_tell_where_the_action_led_and_how_the_episode_went(echoed):
    stored = stored_rows(echoed[2][0])
    time = np.arange(32).repeat(4) % 3
    np.testing.assert_allclose(stored.observation[:128, 0], time / 3, atol=1e-6)
    np.testing.assert_allclose(stored.next_observation[:128, 0], (time + 1) / 3, atol=1e-6)
    np.testing.assert_array_equal(stored.ending[:128], time == 2)  # truncated, never terminated


def test_warmup_acts_uniformly_and_learns_nothing():
    config = Training(num_envs=64, warmup_steps=100)
    trainer = make(probes.echo(), config, witness(), capacity=6_400)
    state = trainer.init(jax.random.key(0))
    action = np.asarray(stored_rows(state).action)
    assert action.min() < -0.99
    assert action.max() > 0.99
    assert action.mean() == pytest.approx(0, abs=0.03)
    assert action.var() == pytest.approx(1 / 3, rel=0.05)
    assert state.agent["updates"] == 0


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        pytest.param("1", 24, marks=pytest.mark.slow),
        ("3", 72),
        pytest.param("1/2", 12, marks=pytest.mark.slow),
        ("1/24", 1),
    ],
)
def test_updates_per_step(ratio, expected):
    config = Training(4, Fraction(ratio), warmup_steps=4, steps_per_epoch=24, num_epochs=1)
    state, _ = run(make(probes.echo(), config, witness()), config)
    assert state.agent["updates"] == expected
    assert np.count_nonzero(stored_rows(state).reward) == (4 + 24) * 4  # every vector step acted and was stored


def test_the_length_of_an_epoch_changes_nothing():
    one, several = Training(4, Fraction(1, 2), 8, 24, 1), Training(4, Fraction(1, 2), 8, 6, 4)
    (whole, _), (parts, _) = (run(make(probes.echo(), config, witness()), config) for config in (one, several))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), whole, parts)
    assert whole.agent["action"] != 0


def test_each_epoch_is_evaluated_on_episodes_of_its_own():
    config = Training(4, warmup_steps=8)
    trainer = make(probes.noisy_reward(), config, witness())
    agent_state = trainer.init(jax.random.key(0)).agent
    returns = [
        float(trainer.evaluate(jax.random.key(0), clock_at(config, epoch), agent_state)["return_mean"])
        for epoch in (1, 1, 2)
    ]
    assert returns[0] == returns[1] != returns[2]


def test_the_noise_does_not_depend_on_what_is_learned_and_has_no_mean():
    """The executed action minus the policy's own, through the loop, where the Box does not cut it."""
    config = Training(num_envs=64, updates_per_step=Fraction(1), warmup_steps=4, steps_per_epoch=200, num_epochs=1)
    environment = probes.endless_reward(limit=50)  # a single observation
    exploration, buffer = noise.gaussian(0.1), replay.uniform(64 * 204)

    @jax.jit
    def executed(rate):
        trainer = make_trainer(environment, witness(rate), exploration, buffer, config)
        key = jax.random.key(0)
        state, _ = trainer.epoch(key, clock_at(config, 1), trainer.init(key))
        return stored_rows(state).action[4 * 64 :, 0]

    deviations = [np.asarray(executed(rate)) for rate in (0.0, 0.01)]
    assert np.any(deviations[0] != deviations[1])
    np.testing.assert_allclose(*deviations, atol=0.2)
    assert np.corrcoef(*deviations)[0, 1] > 0.9
    assert abs(deviations[0].mean()) < 0.01 + 5 * 0.1 / np.sqrt(200 * 64)


def test_the_oldest_rows_give_way_in_the_loop():
    config = Training(num_envs=4, updates_per_step=Fraction(1), warmup_steps=8, steps_per_epoch=30, num_epochs=1)
    small, _ = run(make(probes.echo(), config, witness(), capacity=32), config)
    time = np.asarray(stored_rows(small).observation)[:, 0] * 3
    steps = np.concatenate([np.arange(32, 38), np.arange(30, 32)])  # 38 vector steps in 8 slots
    np.testing.assert_allclose(time.reshape(8, 4)[:, 0], steps % 3, atol=1e-6)


def test_training_returns_are_those_of_the_episodes_that_ended():
    config = Training(4, Fraction(1), warmup_steps=4, steps_per_epoch=9, num_epochs=1)
    state, metrics = run(make(probes.echo(limit=3), config, witness()), config)
    rewards = np.asarray(stored_rows(state).reward)[: 13 * 4].reshape(13, 4)
    # Episodes end at steps 2, 5, 8 and 11; the epoch is steps 4 to 12.
    episodes = [rewards[end - 2 : end + 1].sum(0) for end in (5, 8, 11)]
    assert metrics["episodes_ended"] == 3 * 4
    assert metrics["return_sum"] == pytest.approx(np.sum(episodes), rel=1e-5)


def test_noise_is_reset_with_each_episode():
    """A random walk that is reset every third step cannot wander: its variance is that of at most three steps."""
    config = Training(64, Fraction(1), warmup_steps=3, steps_per_epoch=2, num_epochs=150)
    trainer = make(probes.echo(limit=3), config, witness(), noise.ornstein_uhlenbeck(1.0, 0.1), capacity=640)
    state, _ = run(trainer, config)
    np.testing.assert_array_equal(state.noise, 0)  # step 302 ended an episode
    state, _ = trainer.epoch(jax.random.key(0), clock_at(config, 151), state)
    assert state.noise.std() == pytest.approx(0.1 * np.sqrt(2), rel=0.25)


def test_seeds_differ_and_repeat():
    config = Training(4, Fraction(1), warmup_steps=4, steps_per_epoch=8, num_epochs=1)
    trainer = make(probes.echo(), config, witness())
    first, again, other = (run(trainer, config, seed)[0] for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert np.any(np.asarray(first.replay.rows) != np.asarray(other.replay.rows))


def test_the_clock_of_an_epoch():
    config = Training(num_envs=8, warmup_steps=100, steps_per_epoch=50)
    assert [int(clock_at(config, epoch).step) for epoch in range(4)] == [0, 100, 150, 200]


@pytest.mark.parametrize("env_steps", [0, 500, 1_000, 2**33])
def test_schedules_count_env_steps_beyond_32_bits(env_steps):
    clock = Clock(np.uint32(1), np.uint32(env_steps // 4), num_envs=4)
    expected = np.interp(env_steps, [0, 1_000], [1.0, 0.5])
    assert float(clock.anneal(1.0, 0.5, 1_000.0)) == pytest.approx(expected)
    assert float(clock.anneal(1.0, 0.5, 2.0**34)) == pytest.approx(1 - 0.5 * env_steps / 2**34)


@pytest.mark.parametrize(
    ("training", "words"),
    [
        (
            {"steps_per_epoch": 301},
            "steps_per_epoch is 301, but must be a multiple of the 2 vector steps between updates",
        ),
        ({"num_envs": 3, "num_shards": 2}, "num_envs is 3, but must be a multiple of the 2 shards; use 4"),
        ({"num_shards": 3, "num_envs": 3}, "the batch size of the agent is 32, but must be a multiple of the 3 shards"),
        ({"warmup_steps": 2}, "warmup_steps is 2, but must be at least the 3 steps of a window of the replay"),
    ],
)
def test_a_trainer_that_would_leave_rows_unwritten_or_cannot_be_split_is_refused(training, words):
    environment = probes.echo()
    agent = td3(environment, TD3(batch_size=16))
    config = Training(**{"num_envs": 2, "steps_per_epoch": 300, "warmup_steps": 40} | training)
    with pytest.raises(ValueError, match=words):
        make_trainer(environment, agent, noise.gaussian(0.1), replay.uniform(600, steps=3), config)


@pytest.mark.parametrize(("batch_size", "expected"), [(1, 1), (1_024, 1_024), (1_025, 1_024), (4_000, 1_024)])
def test_diagnostics_are_computed_on_a_batch_of_bounded_size(batch_size, expected):
    sizes = lambda state, batch: {"rows": jnp.asarray(batch.reward.size)}  # noqa: E731
    agent = witness()._replace(batch_size=batch_size, diagnostics=sizes)
    config = Training(num_envs=2, warmup_steps=2_000, steps_per_epoch=1)
    trainer = make_trainer(probes.echo(), agent, noise.gaussian(0.1), replay.uniform(4_000), config)
    key = jax.random.key(0)
    _, metrics = jax.jit(trainer.epoch)(key, clock_at(config, 1), jax.jit(trainer.init)(key))
    assert metrics["rows"] == expected


def test_an_agent_without_state_and_metrics_trains_at_a_whole_number_of_updates_per_step():
    environment = probes.echo()
    agent = Agent(
        init=lambda key: (),
        act=lambda state, observation: jnp.zeros((*observation.shape[:-1], environment.action_size)),
        value=lambda state, observation: jnp.zeros(observation.shape[:-1]),
        update=lambda key, clock, state, batch: (state, {}),
        diagnostics=lambda state, batch: {},
        gamma=0.9,
        batch_size=4,
    )
    config = Training(num_envs=2, updates_per_step=2, warmup_steps=4, steps_per_epoch=6)
    trainer = make_trainer(environment, agent, noise.gaussian(0.1), replay.uniform(64), config)
    state, metrics = trainer.epoch(jax.random.key(0), clock_at(config, 1), trainer.init(jax.random.key(0)))
    assert set(metrics) == {"return_sum", "episodes_ended"}
    assert not state.health.diverged
