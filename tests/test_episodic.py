import importlib
import inspect
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxddpg import settings
from jaxddpg.config.environment import check_environment, make_environment
from jaxddpg.envs.episodic import episodic
from jaxddpg.envs.registry import CONTINUOUS
from jaxddpg.types import Environment

KEY = jax.random.key(0)
OURS = {name: entry for name, entry in CONTINUOUS.items() if entry.factory}


class Walk(NamedTuple):
    """The state of a task: a number of its start, the sum of the actions, and a draw of the last step."""

    label: jax.Array
    place: jax.Array
    draw: jax.Array


def walk(length=3, timeout_reward=0.0, end=2.5):
    """The sum of the actions, from 0 in every episode; rewarded with the action; terminated beyond `end`."""

    def step(key, state, action):
        after = Walk(state.label, state.place + action[0], jax.random.uniform(key))
        return after, 10.0 * action[0], after.place >= end

    return episodic(
        reset=lambda key: Walk(jax.random.uniform(key), jnp.zeros(()), jnp.zeros(())),
        step=step,
        observe=lambda state: jnp.stack([state.label, state.place]),
        episode_length=length,
        timeout_reward=timeout_reward,
        observation_size=2,
        action_size=1,
    )


def play(environment, actions, seed=0):
    """The first observation and the time steps of a sequence of actions, stacked, and the states after each."""

    def step(state, inputs):
        number, action = inputs
        state, time_step = environment.step(jax.random.fold_in(jax.random.key(seed), number), state, action)
        return state, (state, time_step)

    actions = jnp.asarray(actions, jnp.float32).reshape(len(actions), -1)
    state, first = environment.reset(jax.random.key(seed + 1_000))
    _, (states, time_steps) = jax.jit(lambda *a: jax.lax.scan(step, *a))(state, (jnp.arange(len(actions)), actions))
    return first, states, jax.tree.map(np.asarray, time_steps)


def test_an_episode_is_truncated_at_its_length_and_the_next_one_begins():
    first, _, seen = play(walk(3), [0.1] * 7)
    np.testing.assert_array_equal(seen.truncated, [False, False, True, False, False, True, False])
    np.testing.assert_array_equal(seen.terminated, False)
    # Where the action led counts on; where to act next has begun again.
    np.testing.assert_allclose(seen.final_observation[:, 1], [0.1, 0.2, 0.3] * 2 + [0.1], rtol=1e-6)
    np.testing.assert_allclose(seen.observation[:, 1], [0.1, 0.2, 0, 0.1, 0.2, 0, 0.1], rtol=1e-6)
    # The final observation is of the old episode, the next one of another start.
    np.testing.assert_array_equal(seen.final_observation[:3, 0], first[0])
    np.testing.assert_array_equal(seen.final_observation[3:6, 0], seen.observation[2, 0])
    assert len({float(first[0]), *(float(label) for label in seen.observation[:, 0])}) == 3


def test_a_termination_ends_the_episode_before_its_length():
    _, states, seen = play(walk(5), [1, 1, 1, 1, 1, 1, 1])
    np.testing.assert_array_equal(seen.terminated, [False, False, True, False, False, True, False])
    np.testing.assert_array_equal(seen.truncated, False)
    np.testing.assert_array_equal(seen.final_observation[:, 1], [1, 2, 3, 1, 2, 3, 1])
    np.testing.assert_array_equal(seen.observation[:, 1], [1, 2, 0, 1, 2, 0, 1])
    np.testing.assert_array_equal(states[0].place, seen.observation[:, 1])


def test_the_clock_of_an_episode_restarts_after_a_termination():
    """An episode of 2 steps is followed by one that is cut at 4, not at 2."""
    _, _, seen = play(walk(4), [1, 2, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(np.flatnonzero(seen.terminated), [1])
    np.testing.assert_array_equal(np.flatnonzero(seen.truncated), [5])


def test_a_task_that_ends_in_its_last_step_has_terminated_and_was_not_cut():
    _, _, seen = play(walk(3, timeout_reward=-7.0), [1, 1, 1, 1])
    np.testing.assert_array_equal(seen.terminated, [False, False, True, False])
    np.testing.assert_array_equal(seen.truncated, False)
    np.testing.assert_array_equal(seen.reward, 10)


def test_the_timeout_reward_is_added_where_an_episode_is_cut_and_nowhere_else():
    _, _, seen = play(walk(2, timeout_reward=-7.0), [0.5, 0.25, 1, 0.125, 3, 0.5])
    np.testing.assert_array_equal(seen.reward, [5, 2.5 - 7, 10, 1.25 - 7, 30, 5])
    np.testing.assert_array_equal(seen.terminated, [False] * 4 + [True, False])


def test_one_step_episodes_are_cut_at_once():
    _, _, seen = play(walk(1), [0.5] * 3)
    np.testing.assert_array_equal(seen.truncated, True)
    np.testing.assert_array_equal(seen.observation[:, 1], 0)


def test_a_start_and_a_move_draw_from_keys_of_their_own():
    """Were they the same, an episode that ends would begin with the number that its last step drew."""
    environment = walk(1)
    state, _ = environment.reset(KEY)
    fresh, time_step = environment.step(KEY, state, jnp.zeros(1))
    continued, _ = walk(9).step(KEY, state, jnp.zeros(1))
    assert time_step.observation[0] == fresh[0].label
    assert len({float(state[0].label), float(fresh[0].label), float(continued[0].draw)}) == 3


def test_parallel_environments_end_each_by_itself():
    environment = walk(9)
    states, _ = jax.vmap(environment.reset)(jax.random.split(KEY, 3))
    _, time_step = jax.vmap(environment.step)(jax.random.split(KEY, 3), states, jnp.array([[1.0], [2.5], [3.0]]))
    np.testing.assert_array_equal(time_step.terminated, [False, True, True])
    np.testing.assert_array_equal(time_step.observation[:, 1], [1, 0, 0])
    np.testing.assert_array_equal(time_step.final_observation[:, 1], [1, 2.5, 3])


def wander(starts, reset_scale=1.0):
    """Random ends, about one in 13 steps, and a limit of 20. `starts` counts the resets computed."""

    def reset(key):
        jax.debug.callback(lambda _: starts.append(1), jax.random.bits(key))  # called for each of a batch
        return {"place": reset_scale * jax.random.normal(key, (3,)), "number": jax.random.bits(key)}

    def step(key, state, action):
        place = state["place"] + action[0] * jax.random.normal(key, (3,))
        return state | {"place": place}, place[0], jax.random.uniform(jax.random.fold_in(key, 1)) < 1 / 13

    return episodic(
        reset=reset,
        step=step,
        observe=lambda state: state["place"],
        episode_length=20,
        observation_size=3,
        action_size=1,
    )


def reset_in_every_step(environment):
    """The steps of an environment that computes a reset in each and selects."""

    def step(key, timed, action):
        state, time = timed
        reset_key, step_key = jax.random.split(key)
        place = state["place"] + action[0] * jax.random.normal(step_key, (3,))
        terminated = jax.random.uniform(jax.random.fold_in(step_key, 1)) < 1 / 13
        truncated = (time + 1 >= 20) & ~terminated
        last, after = terminated | truncated, ((state | {"place": place}, time + 1), place)
        return jax.tree.map(lambda new, old: jnp.where(last, new, old), environment.reset(reset_key), after)

    return step


def rolled(step, reset, axes, num_steps=300):
    """The states and observations of a rollout under `vmap` over each of the axes."""

    def one_step(state, key):
        state, seen = step(key, state, jnp.ones(1))
        return state, (state, seen)

    def rollout(key):
        reset_key, step_key = jax.random.split(key)
        return jax.lax.scan(one_step, reset(reset_key)[0], jax.random.split(step_key, num_steps))[1]

    keys = jax.random.split(KEY, axes)
    for _ in axes:
        rollout = jax.vmap(rollout)
    return jax.jit(rollout)(keys)


@pytest.mark.parametrize("axes", [(), (1,), (2,), (7,), (40,), (300,), (3, 1), (2, 40), (2, 3, 5)], ids=str)
def test_a_reset_where_an_episode_ended_equals_a_reset_in_every_step(axes):
    environment = wander([])
    states, seen = rolled(environment.step, environment.reset, axes)
    assert np.mean(seen.terminated) > 0.03
    assert np.any(seen.truncated)
    expected_states, expected = rolled(reset_in_every_step(environment), environment.reset, axes)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6), states, expected_states)
    np.testing.assert_allclose(seen.observation, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("num_envs", "ended", "computed"), [(40, [], 0), (40, [0, 39], 8), (40, range(9), 16), (4, [2], 4), (400, [5], 25)]
)
def test_resets_are_computed_in_blocks_and_only_where_an_episode_ended(num_envs, ended, computed):
    starts = []
    environment = wander(starts)
    (state, time), _ = jax.vmap(environment.reset)(jax.random.split(KEY, num_envs))
    time = time.at[jnp.array(ended, int)].set(19)
    jax.effects_barrier()
    starts.clear()
    keys = jax.vmap(jax.random.key)(jnp.arange(num_envs) + 1_000)
    ends = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(jax.random.split(key)[1], 1)) < 1 / 13)(keys)
    keys = jnp.where(ends, jax.random.key(int(jnp.argmin(ends)) + 1_000), keys)  # nothing terminates
    _, seen = jax.jit(jax.vmap(environment.step))(keys, (state, time), jnp.ones((num_envs, 1)))
    jax.effects_barrier()
    np.testing.assert_array_equal(np.flatnonzero(seen.terminated | seen.truncated), list(ended))
    assert len(starts) == computed


def test_a_reset_may_use_a_parameter_that_differs_by_member_or_by_environment():
    def observed(scale, keys):
        environment = wander([], scale)
        state, _ = jax.vmap(environment.reset)(keys)
        state = (state[0], jnp.full_like(state[1], 19))
        return jax.vmap(environment.step)(keys, state, jnp.zeros((len(keys), 1)))[1].observation

    scales, keys = jnp.array([1.0, 10.0, 1e4]), jax.random.split(KEY, (3, 5))
    alone = jnp.stack([observed(scale, own) for scale, own in zip(scales, keys, strict=True)])
    np.testing.assert_allclose(jax.vmap(observed)(scales, keys), alone, rtol=1e-6)  # by member

    def single(scale, key):
        environment = wander([], scale)
        state, _ = environment.reset(key)
        return environment.step(key, (state[0], jnp.array(19)), jnp.zeros(1))[1].observation

    by_environment = jax.vmap(single)(scales, keys[:, 0])
    np.testing.assert_allclose(by_environment, alone[:, 0], rtol=1e-6)


@pytest.mark.parametrize("name", OURS)
def test_our_own_environments_keep_the_contract(name):
    check_environment(settings.Environment(name))
    assert isinstance(make_environment(settings.Environment(name)), Environment)


@pytest.mark.parametrize("name", OURS)
def test_known_parameters_are_those_of_the_factory(name):
    module, _, factory = OURS[name].factory.partition(":")
    signature = inspect.signature(getattr(importlib.import_module(module), factory))
    assert {key: type(entry.default) for key, entry in signature.parameters.items()} == OURS[name].parameters
    assert not signature.return_annotation or signature.return_annotation is Environment


@pytest.mark.parametrize("name", OURS)
def test_our_own_states_keep_their_strong_types(name):
    """A weak type would change in the first step, and a compiled loop would be traced twice."""
    environment = make_environment(settings.Environment(name))
    state, observation = jax.eval_shape(environment.reset, KEY)
    after, time_step = jax.eval_shape(environment.step, KEY, state, jnp.zeros(environment.action_size))
    seen = (observation, time_step.observation, time_step.final_observation)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves((state, after, seen)))


@pytest.mark.parametrize("name", OURS)
def test_actions_beyond_the_box_are_clipped_and_its_ends_differ(name):
    environment = make_environment(settings.Environment(name))
    state, _ = environment.reset(KEY)
    step = jax.jit(lambda size: environment.step(KEY, state, jnp.full(environment.action_size, size)))
    for sign in (-1.0, 1.0):
        jax.tree.map(np.testing.assert_array_equal, step(sign * 7), step(sign))
    down, up = step(-1.0)[1], step(1.0)[1]
    assert np.any(np.append(down.final_observation, down.reward) != np.append(up.final_observation, up.reward))


@pytest.mark.parametrize("name", OURS)
def test_observations_stay_within_the_range_that_the_environment_states(name):
    """Of random actions, each held for some time so that they lead far; features scale by this range."""
    environment = make_environment(settings.Environment(name))
    rng = np.random.default_rng(0)
    actions = np.repeat(rng.uniform(-2, 2, (40, environment.action_size)), 25, axis=0)
    first, _, seen = play(environment, actions)
    low, high = np.float32(environment.observation_low), np.float32(environment.observation_high)
    for observations in (first, seen.observation, seen.final_observation):
        assert np.all((low <= observations) & (observations <= high))
    assert np.all(low < high)
