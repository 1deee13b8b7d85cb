"""Data parallelism within a member: its environments, its replay and every batch are split into equal shards.

All shards hold the same learner, because they average their gradients, moments and metrics.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from jaxddpg.types import Clock, Key, Metrics, State, Trainer

AXIS = "shards"
"""The mapped axis, of `vmap` or of a mesh, under which the functions of one shard run."""


def devices_each(num_shards: int, available: int) -> int:
    """How many of the available devices a member takes: one for each of its shards, or one for all of them."""
    return num_shards if num_shards <= available else 1


def mean_over_shards(tree: Any, axis_name: str | None) -> Any:
    """Averages a pytree over the shards under `axis_name`; None where there is only one, which is returned as it is."""
    return jax.lax.pmean(tree, axis_name=axis_name) if axis_name else tree


def vmap_shards(trainer: Trainer, num_shards: int) -> Trainer:
    """Makes the trainer of a member from that of one of its shards, which `vmap` maps on one device.

    The sharded leaves of its state are those of all shards, concatenated along the first axis.
    """
    axes = jax.tree.map(lambda sharded: 0 if sharded else None, trainer.sharded_axes)
    over_shards = partial(jax.vmap, axis_name=AXIS, axis_size=num_shards)

    def map_sharded(function: Callable[[jax.Array], jax.Array], state: State) -> State:
        def map_part(sharded: bool, part: State) -> State:
            return jax.tree.map(function, part) if sharded else part

        return jax.tree.map(map_part, trainer.sharded_axes, state)

    def split_shards(state: State) -> State:
        """[X, ...] -> [num_shards, X / num_shards, ...]"""
        return map_sharded(lambda x: x.reshape(num_shards, -1, *x.shape[1:]), state)

    def merge_shards(state: State) -> State:
        """[num_shards, X / num_shards, ...] -> [X, ...]"""
        return map_sharded(lambda x: x.reshape(-1, *x.shape[2:]), state)

    def init(key: Key) -> State:
        return merge_shards(over_shards(trainer.init, in_axes=None, out_axes=axes)(key))

    def epoch(key: Key, clock: Clock, state: State) -> tuple[State, Metrics]:
        run = over_shards(trainer.epoch, in_axes=(None, None, axes), out_axes=(axes, None))
        state, metrics = run(key, clock, split_shards(state))
        return merge_shards(state), metrics

    return trainer._replace(init=init, epoch=epoch)
