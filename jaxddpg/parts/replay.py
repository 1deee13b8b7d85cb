"""Replay buffers on the device: rings that are sampled uniformly or by their newest rows."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from flax.struct import PyTreeNode, field
from jax.flatten_util import ravel_pytree

from jaxddpg.types import Clock, Experience, Key, Replay


class Ring(PyTreeNode):
    """The rows of a ring buffer; the position of the next write and the number of filled rows follow from the clock."""

    rows: jax.Array
    """[capacity, W]: the fields of each row, concatenated. With one array per field, XLA would order their writes and
    reads separately and copy some of them."""
    row: Experience = field(pytree_node=False)
    """The shapes and types of one row."""

    def unpack(self, rows: jax.Array) -> Experience:
        """The fields of rows [n, W]."""
        _, unravel = ravel_pytree(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self.row))
        return jax.vmap(unravel)(rows)


def uniform(capacity: int) -> Replay:
    """Makes a ring of `capacity` rows, sampled uniformly with replacement; the oldest rows are overwritten first."""

    def choose(key: Key, position: jax.Array, filled: jax.Array, n: int) -> jax.Array:
        return jax.random.randint(key, (n,), 0, filled.astype(jnp.int32))

    return _ring(capacity, choose)


def latest(capacity: int) -> Replay:
    """Makes a ring of which `sample` returns the `n` newest rows, from old to new: online learning.

    The caller must already have added at least n rows, e.g. during warm-up.

    Raises:
        ValueError: in `sample`, where `n` is larger than `capacity`.
    """

    def choose(key: Key, position: jax.Array, filled: jax.Array, n: int) -> jax.Array:
        del key  # nothing is drawn
        if n > capacity:
            raise ValueError(f"cannot sample the newest {n} rows of a replay with capacity {capacity}")
        return (position.astype(jnp.int32) - n + jnp.arange(n)) % capacity

    return _ring(capacity, choose)


def _ring(capacity: int, choose: Callable[[Key, jax.Array, jax.Array, int], jax.Array]) -> Replay:
    """Makes a ring; `choose(key, position, filled, n) -> indices [n]` selects the rows of a sample.

    `position` is the index of the next write, `filled` the number of rows that have been written. Each step writes its
    rows as one contiguous slice, so `capacity` must be a multiple of `clock.rows_per_step`.

    Raises:
        ValueError: in `add` and `sample`, where it is not.
    """

    def init(example: Experience) -> Ring:
        flat, _ = ravel_pytree(example)
        row = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), example)
        return Ring(rows=jnp.zeros((capacity, *flat.shape), flat.dtype), row=row)

    def add(clock: Clock, state: Ring, rows: Experience) -> Ring:
        chex.assert_tree_shape_prefix(rows, (clock.rows_per_step,))
        flat = jax.vmap(lambda row: ravel_pytree(row)[0])(rows)
        return state.replace(rows=jax.lax.dynamic_update_slice_in_dim(state.rows, flat, position(clock), axis=0))

    def sample(key: Key, clock: Clock, state: Ring, n: int) -> Experience:
        filled = jnp.minimum(clock.step, slots(clock)) * clock.rows_per_step
        index = choose(key, position(clock), filled, n)
        return state.unpack(state.rows.at[index].get(mode="promise_in_bounds"))

    def position(clock: Clock) -> jax.Array:
        return jnp.asarray(clock.step % slots(clock)) * clock.rows_per_step

    def slots(clock: Clock) -> int:
        rows = clock.rows_per_step
        if capacity % rows:
            raise ValueError(
                f"replay capacity {capacity} is not a multiple of {rows} environments, so a write would wrap around "
                f"the end; use {-(-capacity // rows) * rows}"
            )
        return capacity // rows

    return Replay(init, add, sample)
