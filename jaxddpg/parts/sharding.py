"""A member in equal shares, its shards: each has its part of the environments, the replay and every batch, and all
average what they learn from, so that their learners stay one."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from jaxddpg.types import Clock, Key, Metrics, State, Trainer

AXIS = "shards"
"""The mapped axis, by `vmap` or over devices, under which the functions of one shard run."""


def devices_each(num_shards: int, available: int) -> int:
    """On how many of the available devices a member lies: one for each of its shards, or one for all of them."""
    return num_shards if num_shards <= available else 1


def averaging(axis_name: str | None) -> Callable[[Any], Any]:
    """What makes of a shard's means over its rows those over the whole batch; None where there is but one shard."""
    return partial(jax.lax.pmean, axis_name=axis_name) if axis_name else lambda tree: tree


def together(trainer: Trainer, num_shards: int) -> Trainer:
    """The trainer of a whole member from that of a shard: all of them side by side on one device, by `vmap`."""
    over = partial(jax.vmap, axis_name=AXIS, axis_size=num_shards)
    axes = jax.tree.map(lambda split: 0 if split else None, trainer.split)

    def where_split(function: Callable[[jax.Array], jax.Array], state: State) -> State:
        return jax.tree.map(lambda split, part: jax.tree.map(function, part) if split else part, trainer.split, state)

    def divided(state: State) -> State:
        return where_split(lambda x: x.reshape(num_shards, -1, *x.shape[1:]), state)

    def joined(state: State) -> State:
        return where_split(lambda x: x.reshape(-1, *x.shape[2:]), state)

    def init(key: Key) -> State:
        return joined(over(trainer.init, in_axes=None, out_axes=axes)(key))

    def epoch(key: Key, clock: Clock, state: State) -> tuple[State, Metrics]:
        each = over(trainer.epoch, in_axes=(None, None, axes), out_axes=(axes, None))
        state, metrics = each(key, clock, divided(state))
        return joined(state), metrics

    return trainer._replace(init=init, epoch=epoch)
