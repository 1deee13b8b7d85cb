"""Windows of the replay, and the n-step transitions that are made of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import faults, tiny
from scipy import stats

from jaxddpg import config, settings
from jaxddpg.agents.ddpg import ddpg
from jaxddpg.config import build
from jaxddpg.envs.episodic import episodic
from jaxddpg.parts import equations, noise, replay, sharding
from jaxddpg.training.loop import clock_at, make_trainer
from jaxddpg.types import Clock, Experience

ROW = Experience(np.zeros(1, "f4"), np.zeros(1, "f4"), np.zeros((), "f4"), np.zeros(1, "f4"), np.zeros((), np.uint8))


def history(num_envs, steps, seed=0, ends=0.3):
    """Experience [steps, N] whose rewards and observations say environment and step, with episodes of random length."""
    rng = np.random.default_rng(seed)
    number = (np.arange(steps)[:, None] * 100 + np.arange(num_envs) + 1).astype("f4")
    ending = np.where(rng.random((steps, num_envs)) < ends, rng.integers(1, 3, (steps, num_envs)), 0).astype(np.uint8)
    return Experience(number[..., None], -number[..., None], number, number[..., None] + 0.5, ending)


@functools.cache
def uniform(capacity, steps):
    memory = replay.uniform(capacity, steps)
    return memory._replace(add=jax.jit(memory.add), sample=jax.jit(memory.sample, static_argnums=3))


def ring(capacity, steps, past):
    """The replay that has seen a history, and the clock of the next vector step."""
    memory, state = uniform(capacity, steps), uniform(capacity, steps).init(ROW)
    count, num_envs = past.reward.shape
    for step in range(count):
        clock = Clock(np.uint32(0), np.uint32(step), num_envs)
        state = memory.add(clock, state, jax.tree.map(lambda x, step=step: x[step], past))
    return memory, state, Clock(np.uint32(0), np.uint32(count), num_envs)


def n_step(past, env, start, n, gamma):
    """Reward, discount and successor of the window from `start`, row by row, in float64."""
    total, weight = 0.0, 1.0
    for step in range(start, start + n):
        total += weight * past.reward[step, env]
        weight *= gamma
        if past.ending[step, env]:
            break
    return total, weight * (past.ending[step, env] != 2), past.next_observation[step, env, 0]


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize(("num_envs", "steps"), [(1, 5), (1, 7), (1, 23), (3, 5), (3, 9), (3, 11), (4, 25)])
def test_every_complete_window_is_drawn_equally_often_and_no_other(num_envs, steps, n):
    """Partly filled, full and overwritten rings: none across the newest row, none of two environments."""
    slots = 8
    past = history(num_envs, steps)
    memory, state, clock = ring(slots * num_envs, n, past)
    drawn = memory.sample(jax.random.key(1), clock, state, 20_000)
    assert drawn.reward.shape == (20_000, n)
    first = np.asarray(drawn.reward[:, 0])
    np.testing.assert_array_equal(drawn.reward, first[:, None] + 100 * np.arange(n))
    starts = np.arange(max(0, steps - slots), steps - n + 1)
    values, counts = np.unique(first, return_counts=True)
    np.testing.assert_array_equal(values, np.sort((starts[:, None] * 100 + np.arange(num_envs) + 1).ravel()))
    assert len(counts) == 1 or stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("ends", [0.0, 0.3, 1.0])
def test_the_transitions_are_those_of_the_rows_one_by_one(n, gamma, ends):
    """With terminations and time limits anywhere in the windows, in rings of every age."""
    for num_envs, steps in ((1, 6), (3, 8), (3, 21)):
        past = history(num_envs, steps, seed=n, ends=ends)
        memory, state, clock = ring(8 * num_envs, n, past)
        found = equations.transition(memory.sample(jax.random.key(2), clock, state, 300), gamma)
        step, env = np.divmod(np.asarray(found.observation[:, 0]).astype(int) - 1, 100)
        expected = np.array([n_step(past, e, s, n, gamma) for s, e in zip(step, env, strict=True)])
        np.testing.assert_allclose(found.reward, expected[:, 0], rtol=1e-6)
        np.testing.assert_allclose(found.discount, expected[:, 1], rtol=1e-6)
        np.testing.assert_array_equal(found.next_observation[:, 0], expected[:, 2])
        np.testing.assert_array_equal(found.action[:, 0], -found.observation[:, 0])


def window(rewards, endings):
    rewards = np.asarray([rewards], "f4")
    number = np.arange(rewards.shape[1], dtype="f4")[None, :, None]
    return Experience(number, number, rewards, number + 0.5, np.asarray([endings], np.uint8))


@pytest.mark.parametrize(
    ("rewards", "endings", "gamma", "reward", "discount", "successor"),
    [
        # The bootstrap has gamma^n, not gamma (Stoix), or the value of 1 for ever would be 490 and not 100.
        ([1, 1, 1, 1, 1], [0, 0, 0, 0, 0], 0.99, (1 - 0.99**5) / 0.01, 0.99**5, 4.5),
        # A window that a time limit cuts has gamma^m (SimBa: gamma^n), and no reward of the next episode (TF-Agents).
        ([1, 2, 9, 9, 9], [0, 1, 0, 0, 0], 0.9, 1 + 0.9 * 2, 0.9**2, 1.5),
        # The reward of the step that ends an episode counts, and none of the next (MR.Q).
        ([2, 3, 7, 7, 7], [0, 2, 0, 0, 0], 1.0, 5, 0, 1.5),
        ([4, 9, 9, 9, 9], [2, 0, 0, 0, 0], 0.9, 4, 0, 0.5),
        ([4, 9, 9, 9, 9], [1, 2, 0, 0, 0], 0.9, 4, 0.9, 0.5),
        ([1, 1, 1, 1, 5], [0, 0, 0, 0, 2], 0.5, 1.875 + 5 / 16, 0, 4.5),
    ],
)
def test_where_other_implementations_are_wrong(rewards, endings, gamma, reward, discount, successor):
    found = equations.transition(window(rewards, endings), gamma)
    np.testing.assert_allclose(found.reward, [reward], rtol=1e-6)
    np.testing.assert_allclose(found.discount, [discount], rtol=1e-6)
    np.testing.assert_array_equal(found.next_observation, [[successor]])


def test_at_the_seam_of_the_ring_no_old_reward_is_mixed_in():
    """Capacity 10, n 5, the next write at 4: FastTD3's own mask gives the window from row 2 a reward of 15.52."""
    past = Experience(*(np.asarray(x) for x in jax.tree.leaves(history(1, 14, ends=0.0))))
    memory, state, clock = ring(10, 5, past)
    found = memory.sample(jax.random.key(0), clock, state, 2_000)
    newest = np.asarray(found.reward).max()
    assert newest == past.reward.max()
    assert np.all(np.diff(np.asarray(found.reward), axis=1) == 100)


def test_what_follows_an_end_does_not_matter_even_if_it_is_not_finite():
    found = equations.transition(window([1, 2, np.inf, np.nan], [0, 2, 0, 0]), 0.9)
    np.testing.assert_allclose(found.reward, [2.8], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("offset", "scale"), [(0.0, 1.0), (1e4, 1.0), (0.0, 1e-3), (0.0, 1e4)])
def test_rewards_far_from_zero_and_of_any_size_are_summed(offset, scale, dtype):
    rng = np.random.default_rng(0)
    rewards = (offset + scale * rng.normal(size=(50, 5))).astype(dtype)
    blank = np.zeros((50, 5, 1), dtype)
    rows = Experience(blank, blank, rewards, blank, np.zeros((50, 5), np.uint8))
    with jax.enable_x64(dtype == "float64"):
        found = equations.transition(jax.tree.map(jnp.asarray, rows), 0.99)
        assert found.reward.dtype == dtype
    expected = rewards.astype("f8") @ 0.99 ** np.arange(5)
    tolerance = {"float32": 1e-6, "float64": 1e-14}[dtype] * 5 * (abs(offset) + 3 * scale)
    np.testing.assert_allclose(found.reward, expected, atol=tolerance)


@pytest.mark.parametrize("n", [1, 3, 8])
def test_the_value_of_a_chain_does_not_depend_on_n(n):
    """Rewards of 1 for L steps, then a termination: Q(s) = (1 - gamma^(L - s)) / (1 - gamma), by sweeps of TD."""
    length, gamma = 12, 0.9
    steps = 3 * length
    ending = np.where(np.arange(steps) % length == length - 1, 2, 0).astype(np.uint8)[:, None]
    place = (np.arange(steps) % length).astype("f4")[:, None, None]
    past = Experience(place, place, np.ones((steps, 1), "f4"), place + 1, ending)
    memory, state, clock = ring(steps, n, past)
    batch = equations.transition(memory.sample(jax.random.key(0), clock, state, 2_000), gamma)
    values = np.zeros(length + 1)
    here, there = (np.asarray(x[:, 0]).astype(int) for x in (batch.observation, batch.next_observation))
    for _ in range(length + 1):
        values[here] = np.asarray(batch.reward) + np.asarray(batch.discount) * values[there]
    np.testing.assert_allclose(values[:length], (1 - gamma ** (length - np.arange(length))) / (1 - gamma), rtol=1e-5)


@pytest.mark.parametrize(
    ("replay", "training", "said"),
    [
        ({"steps": 0}, {}, "replay.steps is 0, but must be at least 1"),
        (
            {"steps": 2, "sampling": "latest"},
            {},
            "replay.steps is a setting of sampling uniform, but replay.sampling is latest",
        ),
        ({"steps": 5, "capacity": 8}, {}, "replay.steps is 5, but the replay holds only 4 vector steps"),
        ({"steps": 5}, {"warmup_steps": 4}, "replay.steps is 5, but the warm-up has only 4 vector steps"),
    ],
)
def test_windows_that_cannot_be_are_refused(replay, training, said):
    content = config.as_mapping(tiny())
    content["replay"] |= replay
    content["training"] |= training
    assert any(fault.startswith(said) for fault in faults(content)), faults(content)


@pytest.mark.parametrize("num_shards", [2, 4])
def test_the_windows_of_a_shard_are_those_of_its_own_environments(num_shards):
    """The ring of each shard is overwritten. An episode has a mark of its own and rewards that count its steps, so that
    a window of two episodes, environments or laps of the ring has another sum or another mark."""
    gamma, axis = 0.5, sharding.AXIS
    environment = episodic(
        reset=lambda key: jnp.stack([jax.random.uniform(key), 0.0]),
        step=lambda key, state, action: (state + jnp.array([0.0, 1.0]), state[1], jnp.zeros((), bool)),
        observe=lambda state: state,
        episode_length=7,
        observation_size=2,
        action_size=1,
    )
    config = settings.Training(num_envs=8, num_shards=num_shards, warmup_steps=16, steps_per_epoch=30)
    agent = ddpg(environment, settings.DDPG(batch_size=64, gamma=gamma), axis)

    def update(key, clock, state, batch):
        (mark, time), (last_mark, last_time) = batch.observation.T, batch.next_observation.T
        taken = jnp.arange(3)[:, None] < last_time - time
        total = jnp.sum(
            jnp.where(taken, gamma ** jnp.arange(3)[:, None] * (time + jnp.arange(3)[:, None]), 0.0), axis=0
        )
        errors = {
            "mark": jnp.abs(last_mark - mark),
            "reward": jnp.abs(batch.reward - total),
            "discount": jnp.abs(batch.discount - gamma ** (last_time - time)),
            "cut": (last_time - time != 3) & (last_time != 7),
        }
        return state, {name: jax.lax.pmax(jnp.max(error * 1.0), axis) for name, error in errors.items()}

    parts = (agent._replace(update=update), noise.gaussian(0.1), replay.uniform(80 // num_shards, steps=3))
    trainer = sharding.vmap_shards(make_trainer(environment, *parts, config), num_shards)
    key = jax.random.key(0)
    _, metrics = jax.jit(trainer.epoch)(key, clock_at(config, 1), jax.jit(trainer.init)(key))
    assert {name: float(metrics[name]) for name in ("mark", "reward", "discount", "cut")} == pytest.approx(
        dict.fromkeys(("mark", "reward", "discount", "cut"), 0.0), abs=1e-6
    )


@pytest.mark.parametrize("changes", [{}, {"training": {"num_shards": 2}}], ids=["whole", "shards"])
def test_it_trains_with_gamma_swept_as_each_gamma_alone(changes):
    """Under vmap, in shards too."""
    experiment = tiny(replay={"steps": 3}, **changes)
    gammas = (0.5, 0.99)
    members = [config.with_values(experiment, {"agent.gamma": gamma}).member() for gamma in gammas]
    clock, key = clock_at(experiment.training, 1), jax.random.key(0)

    def trained(member):
        trainer = build.build(member)
        return trainer.epoch(key, clock, trainer.init(key))[0].agent

    both = jax.jit(jax.vmap(trained))(jax.tree.map(lambda *x: jnp.stack([jnp.asarray(y) for y in x]), *members))
    for index, member in enumerate(members):
        alone = jax.jit(trained)(member)
        jax.tree.map(lambda x, y, index=index: np.testing.assert_allclose(x[index], y, atol=1e-6), both, alone)
    actors = jax.tree.leaves(both.critic)
    assert any(np.any(leaf[0] != leaf[1]) for leaf in actors)
