"""Replay buffers on the device: rings that are sampled uniformly or by their newest rows."""

from collections.abc import Callable
from functools import partial

import chex
import jax
import jax.numpy as jnp
from flax.struct import PyTreeNode, field
from jax.flatten_util import ravel_pytree

from jaxddpg.types import Clock, Experience, Key, Replay

MAX_SIZE = 2**32
"""A replay must have fewer elements than this, because they are indexed by uint32."""


class Ring(PyTreeNode):
    """The rows of a ring buffer; the position of the next write and the number of filled rows follow from the clock."""

    rows: jax.Array
    """[capacity * W]: the fields of all rows, concatenated. With one array per field, XLA would order their writes and
    reads separately and copy some of them. On a TPU it would choose different layouts for reading and writing an array
    [members, capacity, W], and copy it in between."""
    row: Experience = field(pytree_node=False)
    """The shapes and types of one row."""

    def unpack(self, rows: jax.Array) -> Experience:
        """The fields [n, ...] of rows [n * W] or [n, W]."""
        width, unravel = ravel_pytree(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self.row))
        return jax.vmap(unravel)(rows.reshape(-1, width.size))


def uniform(capacity: int, steps: int = 1) -> Replay:
    """Makes a ring of `capacity` rows, sampled uniformly with replacement; the oldest rows are overwritten first.

    `sample` returns windows [n, steps] of successive rows of one environment, all of which have been written: none
    reaches from the newest row to the oldest. Windows may contain the end of an episode; see `equations.transition`.
    """

    def choose(key: Key, clock: Clock, filled: jax.Array, n: int) -> jax.Array:
        # Separate, because with other bounds the same key would draw other rows.
        if steps == 1:
            return jax.random.randint(key, (n,), 0, filled.astype(jnp.int32))[:, None]
        stride = clock.rows_per_step
        oldest = jnp.where(filled < capacity, 0, _position(clock, capacity)).astype(jnp.int32)
        age = jax.random.randint(key, (n,), 0, filled.astype(jnp.int32) - (steps - 1) * stride)
        return (oldest + age[:, None] + stride * jnp.arange(steps)) % capacity

    return _ring(capacity, choose)._replace(steps=steps)


def latest(capacity: int) -> Replay:
    """Makes a ring of which `sample` returns the `n` newest rows, from old to new: online learning.

    The caller must already have added at least n rows, e.g. during warm-up.

    Raises:
        ValueError: in `sample`, where `n` is larger than `capacity`.
    """

    def choose(key: Key, clock: Clock, filled: jax.Array, n: int) -> jax.Array:
        del key, filled  # nothing is drawn
        if n > capacity:
            raise ValueError(f"cannot sample the newest {n} rows of a replay with capacity {capacity}")
        newest = _position(clock, capacity).astype(jnp.int32)
        return ((newest - n + jnp.arange(n)) % capacity)[:, None]

    return _ring(capacity, choose)


def _ring(capacity: int, choose: Callable[[Key, Clock, jax.Array, int], jax.Array]) -> Replay:
    """Makes a ring; `choose(key, clock, filled, n) -> indices [n, steps]` selects the rows of a sample, of which
    `filled` have been written.

    Each step writes its rows as one contiguous slice, so `capacity` must be a multiple of `clock.rows_per_step`.

    Raises:
        ValueError: in `add` and `sample`, where it is not.
    """

    def init(example: Experience) -> Ring:
        flat, _ = ravel_pytree(example)
        row = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), example)
        if capacity * flat.size >= MAX_SIZE:
            raise ValueError(
                f"a replay of {capacity} rows of {flat.size} elements is too large; it may have at most "
                f"{(MAX_SIZE - 1) // flat.size} rows"
            )
        return Ring(rows=jnp.zeros(capacity * flat.size, flat.dtype), row=row)

    def add(clock: Clock, state: Ring, rows: Experience) -> Ring:
        chex.assert_tree_shape_prefix(rows, (clock.rows_per_step,))
        flat = jax.vmap(lambda row: ravel_pytree(row)[0])(rows)
        position = _position(clock, capacity) * jnp.uint32(flat.shape[1])
        return state.replace(rows=_write(state.rows, flat.ravel(), position))

    def sample(key: Key, clock: Clock, state: Ring, n: int) -> Experience:
        filled = jnp.minimum(clock.step, _slots(clock, capacity)) * clock.rows_per_step
        index, width = choose(key, clock, filled, n), state.rows.size // capacity
        found = jax.lax.gather(
            state.rows,
            index[..., None].astype(jnp.uint32) * jnp.uint32(width),
            jax.lax.GatherDimensionNumbers(offset_dims=(2,), collapsed_slice_dims=(), start_index_map=(0,)),
            slice_sizes=(width,),
            mode="promise_in_bounds",
        )
        return jax.vmap(state.unpack)(found)

    return Replay(init, add, sample)


@jax.custom_batching.custom_vmap
def _write(rows: jax.Array, new: jax.Array, position: jax.Array) -> jax.Array:
    """The elements [..., capacity * W] with the new ones [..., n * W] from a position on."""
    return jax.lax.dynamic_update_slice_in_dim(rows, new, position, axis=rows.ndim - 1)


@_write.def_vmap
def _write_all(size: int, batched: tuple[bool, ...], *args: jax.Array) -> tuple[jax.Array, bool]:
    """One slice of all members, if they share a clock. JAX's own rule makes it a scatter, for which a TPU copies the
    replay."""
    *held, position = args
    rows, new = (
        x if split else jnp.broadcast_to(x, (size, *x.shape)) for x, split in zip(held, batched[:2], strict=True)
    )
    if batched[2]:
        return jax.vmap(partial(jax.lax.dynamic_update_slice_in_dim, axis=rows.ndim - 2))(rows, new, position), True
    return _write(rows, new, position), True


def _position(clock: Clock, capacity: int) -> jax.Array:
    """The index of the next write."""
    return jnp.asarray(clock.step % _slots(clock, capacity)) * clock.rows_per_step


def _slots(clock: Clock, capacity: int) -> int:
    """The number of vector steps that a ring holds."""
    rows = clock.rows_per_step
    if capacity % rows:
        raise ValueError(
            f"replay capacity {capacity} is not a multiple of {rows} environments, so a write would wrap around the "
            f"end; use {-(-capacity // rows) * rows}"
        )
    return capacity // rows
