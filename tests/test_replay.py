import functools

import flashbax
import jax
import numpy as np
import oracles
import pytest
from scipy import stats

from jaxddpg import config
from jaxddpg.config import ConfigError, build
from jaxddpg.parts import replay
from jaxddpg.types import Clock, Experience

ROW = Experience(np.zeros(2, "f4"), np.zeros(1, "f4"), np.zeros((), "f4"), np.zeros(2, "f4"), np.zeros((), np.uint8))


@functools.cache
def uniform(capacity, steps=1):
    """The replay, its functions compiled once."""
    memory = replay.uniform(capacity, steps)
    return memory._replace(
        init=jax.jit(memory.init), add=jax.jit(memory.add), sample=jax.jit(memory.sample, static_argnums=3)
    )


def sample(memory, key, clock, state, n):
    """Single rows [n], of which each is a window of its own."""
    drawn = memory.sample(key, clock, state, n)
    assert drawn.reward.shape == (n, 1)
    return jax.tree.map(lambda x: x[:, 0], drawn)


def rows(numbers):
    """Rows that carry their number in every field."""
    number = np.asarray(numbers, np.float32)
    wide = np.stack([number, -number], -1)
    return Experience(wide, number[:, None], number, wide + 0.5, (number % 3).astype(np.uint8))


def rewards(state):
    """Those of the whole ring."""
    return np.asarray(jax.jit(lambda state: state.unpack(state.rows).reward)(state))


def filled(capacity, num_envs, steps):
    """The ring after `steps` vector steps, and the clock of the next."""
    memory = uniform(capacity)
    state = memory.init(ROW)
    for step in range(steps):
        clock = Clock(np.uint32(0), np.uint32(step), num_envs)
        state = memory.add(clock, state, rows(np.arange(num_envs) + step * num_envs + 1))
    return memory, state, clock.after(1)


@pytest.mark.parametrize("make", [replay.uniform, replay.latest])
def test_its_elements_have_indices_of_32_bits(make):
    width = sum(np.size(x) for x in jax.tree.leaves(ROW))
    most = (2**32 - 1) // width
    state = jax.eval_shape(make(most).init, ROW)
    assert state.rows.shape == (most * width,)
    with pytest.raises(ValueError, match=f"a replay of {most + 1} rows of {width} elements.*at most {most} rows"):
        jax.eval_shape(make(most + 1).init, ROW)
    member = config.parse({"replay": {"capacity": 10**9}}).experiment.member()
    with pytest.raises(
        ConfigError, match=r"replay\.capacity is 1000000000, which makes a replay of 1000000000 rows of 9 el"
    ):
        build.check_member(member)


@pytest.mark.parametrize("steps", [1, 3, 4, 5, 14])
def test_it_holds_the_newest_rows_like_a_ring(steps):
    _, state, _ = filled(12, 3, steps)
    ring = oracles.Ring(12)
    for step in range(steps):
        ring.add(np.arange(3) + step * 3 + 1)
    held = rewards(state)
    assert sorted(held[held > 0]) == sorted(ring.rows)


def test_sampled_rows_are_whole():
    memory, state, clock = filled(12, 3, 7)
    batch = sample(memory, jax.random.key(0), clock, state, 500)
    jax.tree.map(np.testing.assert_array_equal, batch, rows(batch.reward))
    assert jax.tree.map(lambda x: x.dtype, batch) == jax.tree.map(lambda x: x.dtype, ROW)


@pytest.mark.parametrize("steps", [2, 4, 9])
def test_it_samples_uniformly_what_was_written_and_nothing_else(steps):
    memory, state, clock = filled(20, 5, steps)
    drawn = np.asarray(sample(memory, jax.random.key(1), clock, state, 40_000).reward)
    written = np.arange(max(0, steps * 5 - 20), steps * 5) + 1
    values, counts = np.unique(drawn, return_counts=True)
    np.testing.assert_array_equal(values, written)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_it_samples_what_flashbax_holds():
    memory, state, clock = filled(16, 4, 11)
    other = flashbax.make_item_buffer(16, 1, 16, add_batches=True)
    ring, add = jax.jit(other.init)(ROW), jax.jit(other.add)
    for step in range(11):
        ring = add(ring, rows(np.arange(4) + step * 4 + 1))
    ours = sample(memory, jax.random.key(0), clock, state, 2_000).reward
    draw = jax.jit(jax.vmap(lambda ring, key: other.sample(ring, key).experience.reward, (None, 0)))
    theirs = draw(ring, jax.random.split(jax.random.key(0), 99))
    np.testing.assert_array_equal(np.unique(ours), np.unique(theirs))


def test_the_same_key_draws_the_same_rows_and_another_others():
    memory, state, clock = filled(100, 10, 10)
    first, again = (sample(memory, jax.random.key(3), clock, state, 50).reward for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert np.any(np.asarray(first) != np.asarray(sample(memory, jax.random.key(4), clock, state, 50).reward))


def test_the_position_is_right_beyond_two_to_the_thirty_first():
    memory, step = uniform(8), 2**31 + 3
    clock = Clock(np.uint32(0), np.uint32(step), num_envs=2)
    state = memory.add(clock, memory.init(ROW), rows([5, 6]))
    position = (step % 4) * 2
    np.testing.assert_array_equal(rewards(state)[position : position + 2], [5, 6])


def test_a_capacity_that_would_wrap_is_refused():
    with pytest.raises(ValueError, match=r"10 is not a multiple of 4 environments.*use 12"):
        filled(10, 4, 1)
