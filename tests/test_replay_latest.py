import functools

import jax
import numpy as np
import oracles
import pytest

from jaxddpg.parts import replay
from jaxddpg.types import Clock, Experience

ROW = Experience(np.zeros(2, "f4"), np.zeros(1, "f4"), np.zeros((), "f4"), np.zeros(2, "f4"), np.zeros((), np.uint8))


@functools.cache
def latest(capacity):
    """The memory, its functions compiled once."""
    memory = replay.latest(capacity)
    return memory._replace(add=jax.jit(memory.add), sample=jax.jit(memory.sample, static_argnums=3))


def rows(numbers):
    """Rows that carry their number in every field."""
    number = np.asarray(numbers, np.float32)
    wide = np.stack([number, -number], -1)
    return Experience(wide, number[:, None], number, wide + 0.5, (number % 3).astype(np.uint8))


def filled(capacity, num_envs, steps, first=0):
    """The ring after the vector steps from `first` on, an oracle that saw the same, and the clock of the next."""
    memory, ring = latest(capacity), oracles.Ring(capacity)
    state = memory.init(ROW)
    for step in range(steps):
        clock = Clock(np.uint32(0), np.uint32(first + step), num_envs)
        numbers = np.arange(num_envs) + step * num_envs + 1
        state = memory.add(clock, state, rows(numbers))
        ring.add(numbers)
    return memory, state, clock.after(1), ring.rows


def drawn(memory, state, clock, n, seed=0):
    windows = memory.sample(jax.random.key(seed), clock, state, n)
    assert windows.reward.shape == (n, 1)
    return jax.tree.map(lambda x: x[:, 0], windows)


@pytest.mark.parametrize(
    ("num_envs", "steps"),
    [(1, 1), (1, 5), (1, 12), (1, 13), (1, 31), (3, 1), (3, 3), (3, 4), (3, 5), (3, 14), (12, 1), (12, 3)],
)
def test_it_samples_the_newest_rows_the_oldest_of_them_first(num_envs, steps):
    memory, state, clock, held = filled(12, num_envs, steps)
    for n in [n for n in (1, 3, 5, 12) if n <= len(held)]:
        np.testing.assert_array_equal(drawn(memory, state, clock, n).reward, held[-n:])


@pytest.mark.parametrize("steps", [2, 7])
def test_sampled_rows_are_whole(steps):
    memory, state, clock, held = filled(12, 3, steps)
    batch = drawn(memory, state, clock, 6)
    jax.tree.map(np.testing.assert_array_equal, batch, rows(held[-6:]))
    assert jax.tree.map(lambda x: x.dtype, batch) == jax.tree.map(lambda x: x.dtype, ROW)


def test_nothing_is_drawn():
    memory, state, clock, _ = filled(12, 3, 7)
    one, other = (drawn(memory, state, clock, 5, seed) for seed in (0, 1))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_memory_of_one_step_is_enough():
    """What the next step overwrites has been learned from before."""
    for steps in (1, 2, 5):
        memory, state, clock, _ = filled(4, 4, steps)
        np.testing.assert_array_equal(drawn(memory, state, clock, 4).reward, np.arange(4) + 4 * steps - 3)


def test_the_order_holds_beyond_two_to_the_thirty_first_step():
    memory, state, clock, held = filled(8, 2, 6, first=2**31 - 3)
    np.testing.assert_array_equal(drawn(memory, state, clock, 8).reward, held)


def test_it_works_outside_jit_too():
    _, state, clock, held = filled(12, 3, 7)
    np.testing.assert_array_equal(drawn(replay.latest(12), state, clock, 7).reward, held[-7:])


def test_a_capacity_that_would_wrap_is_refused():
    with pytest.raises(ValueError, match=r"10 is not a multiple of 4 environments.*use 12"):
        filled(10, 4, 1)
