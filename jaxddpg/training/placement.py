"""How the members of a population are placed on the devices of all processes."""

import os
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxddpg.parts import sharding
from jaxddpg.types import Key, State, seed_key

BY_MEMBER, EVERYWHERE = PartitionSpec("member"), PartitionSpec()


def use_all_cores() -> None:
    """One virtual CPU device per core, unless the user has set their number; a warning where JAX has started before."""
    if jax.config.jax_num_cpu_devices >= 0:  # type: ignore[attr-defined]
        return
    if "host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        jax.config.update("jax_num_cpu_devices", cores)
    except RuntimeError:  # the backend runs already
        if jax.default_backend() == "cpu" and jax.local_device_count() < cores:
            warnings.warn(
                f"the CPU backend was already initialized with {jax.local_device_count()} device(s), so members will "
                f"use only that many of {cores} cores; set JAX_NUM_CPU_DEVICES={cores} in the environment, or call "
                f'jax.config.update("jax_num_cpu_devices", {cores}) before any other JAX operation',
                stacklevel=2,
            )


class Placement(NamedTuple):
    """The assignment of members to device slots: slot p holds member p. Every device has the same number of slots, so
    the last ones may be padding."""

    mesh: Mesh
    """the devices, by member and, where a member is spread over devices, by shard"""
    num_members: int
    """M"""
    each: int
    """places on a device, or on a row of devices over which a member is spread"""
    block: int
    """members that a device computes at once"""

    @property
    def num_places(self) -> int:
        """P"""
        return self.mesh.shape["member"] * self.each

    @property
    def turns(self) -> int:
        """The blocks that a device computes one after the other."""
        return self.each // self.block

    def sharding(self, spec: PartitionSpec) -> NamedSharding:
        return NamedSharding(self.mesh, spec)

    def shardings(self, specs: Any, tree: Any) -> Any:
        """The sharding of each leaf of a tree, from a prefix of specs."""
        return jax.tree.map(lambda spec, part: jax.tree.map(lambda _: self.sharding(spec), part), specs, tree)

    def scatter(self, tree: Any, specs: Any = BY_MEMBER) -> Any:
        """A tree of arrays [M, ...] that every process has on its host, on the devices as [P, ...]. What is on the
        devices already stays there."""
        return jax.tree.map(self._put, tree, self.shardings(specs, tree))

    def gather(self, tree: Any) -> Any:
        """The inverse of `scatter`: on the host of every process, each leaf [M, ...]."""
        return jax.tree.map(self._whole, tree)

    def _put(self, leaf: Any, sharding: NamedSharding) -> jax.Array:
        if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
            return leaf
        host = np.asarray(leaf)
        places = np.minimum(np.arange(self.num_places), len(host) - 1)  # padding slots repeat the last member

        def part(index: Any) -> np.ndarray:
            return host[(places[index[0]], *index[1:])]

        return jax.make_array_from_callback((self.num_places, *host.shape[1:]), sharding, part)

    def _whole(self, leaf: jax.Array) -> np.ndarray:
        if not leaf.is_fully_addressable:
            return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))[: self.num_members]
        host = np.empty(leaf.shape, leaf.dtype)
        # Shard by shard, because np.asarray of the whole array would make JAX cache another copy.
        for shard in leaf.addressable_shards:
            host[shard.index] = np.asarray(shard.data)
        return host[: self.num_members]


def place(num_members: int, num_shards: int, at_once: int) -> Placement:
    """Places M = `num_members` members on all devices.

    Args:
        num_shards: of each member.
        at_once: the most members in a block; 0 chooses: 1 on a CPU, all of a device on an accelerator.
    """
    row = sharding.devices_each(num_shards, jax.device_count())
    rows = np.asarray(jax.devices()[: jax.device_count() // row * row]).reshape(-1, row)
    each = -(-num_members // len(rows))
    block = min(at_once or (1 if jax.default_backend() == "cpu" else each), each)
    turns = -(-each // block)
    # Use the smallest block for that many turns, then the fewest devices; with several processes, all are used.
    block = -(-each // turns)
    each = turns * block
    used = -(-num_members // each) if jax.process_count() == 1 else len(rows)
    axes = {"member": used} | ({sharding.AXIS: num_shards} if row > 1 else {})
    mesh = Mesh(rows[:used].reshape(*axes.values()), (*axes,), axis_types=(AxisType.Auto,) * len(axes))
    return Placement(mesh, num_members, each, block)


@cache
def seeding(sharding: NamedSharding) -> Callable[[jax.Array], Key]:
    """Makes keys of seeds [P]."""
    return jax.jit(jax.vmap(seed_key), out_shardings=sharding)


@cache
def choosing(sharding: NamedSharding) -> Callable[[jax.Array, State, State], State]:
    """Selects `one` where the mask [P] is true, else `other`, which is donated."""

    def chosen(mask: jax.Array, one: State, other: State) -> State:
        return jax.tree.map(lambda a, b: jnp.where(mask.reshape(-1, *[1] * (a.ndim - 1)), a, b), one, other)

    return jax.jit(chosen, out_shardings=sharding, donate_argnums=2)
