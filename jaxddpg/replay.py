"""Memories of experience on the device: a uniform ring buffer."""

import chex
import jax
import jax.numpy as jnp

from jaxddpg.types import Clock, Experience, Key, Replay


def uniform(capacity: int) -> Replay:
    """A ring of `capacity` rows, the oldest overwritten first, sampled uniformly with replacement.

    The state holds the rows alone: where to write and how much is filled follow from the clock. Each step writes one
    row per environment as one contiguous slice, so `capacity` must be a multiple of `clock.num_envs`.
    """

    def init(example: Experience) -> Experience:
        return jax.tree.map(lambda row: jnp.zeros((capacity, *row.shape), row.dtype), example)

    def add(clock: Clock, state: Experience, rows: Experience) -> Experience:
        chex.assert_tree_shape_prefix(rows, (clock.num_envs,))
        position = (clock.step % _slots(clock)) * clock.num_envs
        return jax.tree.map(
            lambda ring, new: jax.lax.dynamic_update_slice_in_dim(ring, new, position, axis=0), state, rows
        )

    def sample(key: Key, clock: Clock, state: Experience, n: int) -> Experience:
        filled = jnp.minimum(clock.step + 1, _slots(clock)) * clock.num_envs
        index = jax.random.randint(key, (n,), 0, filled.astype(jnp.int32))
        return jax.tree.map(lambda ring: ring.at[index].get(mode="promise_in_bounds"), state)

    def _slots(clock: Clock) -> int:
        if capacity % clock.num_envs:
            raise ValueError(
                f"replay capacity {capacity} is not a multiple of {clock.num_envs} environments, so a step's rows "
                f"would wrap around its end; try {-(-capacity // clock.num_envs) * clock.num_envs}"
            )
        return capacity // clock.num_envs

    return Replay(init, add, sample)
