"""The members of a population over the devices; below the edge, no other room knows the member axis.

Members are held in groups of devices x block. Each function is one compiled program, spread over the local devices by
`shard_map`, each device holding a block of members. A block of one runs as if alone, which on a CPU, with one virtual
device per core, is faster than a vmap; on an accelerator one block holds all. Groups are dispatched one after the other
without waiting.

A member that falls into shards takes a row of devices, one for each of them, and the mesh has a second dimension; where
there are fewer devices than shards, a device holds all shards of a member.
"""

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxddpg import shards
from jaxddpg.types import Clock, State, Trainer, seed_key

Groups = list[State]
HostMetrics = dict[str, np.ndarray]


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
                f"the CPU backend was already initialized with {jax.local_device_count()} device(s), so that members "
                f"train on so many of {cores} cores; set JAX_NUM_CPU_DEVICES={cores} in the environment, or call "
                f'jax.config.update("jax_num_cpu_devices", {cores}) before any other JAX operation',
                stacklevel=2,
            )


class Program:
    """A jitted function that is compiled once, at its first call or before."""

    def __init__(self, function: Callable, donate_argnums: tuple[int, ...] = ()) -> None:
        self._jitted = jax.jit(function, donate_argnums=donate_argnums)
        self.compiled: jax.stages.Compiled | None = None

    def shapes(self, *args: Any) -> Any:
        """The shapes and types of what it returns; it is traced no second time when it is lowered."""
        return self._jitted.eval_shape(*args)

    def lower(self, *args: Any) -> jax.stages.Lowered:
        """Traces it for arguments, or for their shapes, types and shardings."""
        return self._jitted.lower(*args)

    def __call__(self, *args: Any) -> Any:
        if _debugging():
            # Both checks look into what was traced. That each program splits a member's key by purpose is no reuse.
            return self._jitted(*jax.tree.map(_unused, args))
        if self.compiled is None:
            self.compiled = self.lower(*args).compile()
        return self.compiled(*args)


def _debugging() -> bool:
    return jax.config.jax_debug_nans or jax.config.jax_debug_key_reuse  # type: ignore[attr-defined]


_PROGRAMS: dict[Any, dict[str, Program]] = {}
"""The programs of populations made in this process, in the order of their last use: runs that differ in traced numbers
and seeds alone compile once."""
_MOST_PROGRAMS = 16


def numerics() -> dict[str, Any]:
    """The settings of JAX that change numbers beyond rounding, by name."""
    names = ("enable_x64", "threefry_partitionable", "random_seed_offset", "default_matmul_precision")
    return {name: getattr(jax.config, f"jax_{name}") for name in names}


def _configuration() -> tuple:
    """The settings of JAX that a traced or compiled program depends on."""
    names = ("numpy_dtype_promotion", "numpy_rank_promotion", "debug_infs", "default_prng_impl")
    return (*numerics().values(), *(getattr(jax.config, f"jax_{name}") for name in names))


def _unused(leaf: Any) -> Any:
    """A key as if it was never used."""
    return jax.random.clone(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


class Population(NamedTuple):
    """Many members as one. A state is a list of groups, each leaf [group size, ...]; metrics are [M], on the host."""

    compile: Callable[[Clock, bool], None]
    """`compile(clock, resumed)`: compiles side by side what a run needs, `init` only where it is not resumed; without
    it each program compiles at its first call"""
    init: Callable[[], Groups]
    epoch: Callable[..., tuple[Groups, Callable[[], HostMetrics]]]
    """`epoch(clock, groups, members) -> groups, metrics`: returns at once; call `metrics()` to wait for the numbers.
    `members` are the groups of `enrol`, by default of all members as they were first given"""
    evaluate: Callable[..., Callable[[], HostMetrics]]
    """`evaluate(clock, agents, members) -> metrics`, likewise, of groups of agent states"""
    enrol: Callable[[Sequence[Any]], Groups]
    """`enrol(settings) -> members`: M members, each with its first seed, but with numbers of these settings"""
    take: Callable[[Groups, Sequence[int]], Groups]
    """`take(groups, wanted) -> groups` of copies of the wanted members, any number in any order, made on the devices.
    Fewer members fill fewer groups of the same size, which the same programs serve"""
    choose: Callable[[Sequence[bool] | np.ndarray, Groups, Groups], Groups]
    """`choose(mask, ones, others) -> groups`: of each member in the groups, in their order, the one where the mask is
    true, else the other"""
    gather: Callable[[Groups], State]
    """`gather(groups) -> state` on the host, each leaf [M, ...] whatever the placement"""
    scatter: Callable[[State], Groups]
    """The inverse of `gather`"""
    scatter_agents: Callable[[State], Groups]
    """The same for agent states"""
    like: Callable[[int], State]
    """`like(number)`: the shapes and types of the state of so many members, each leaf [number, ...]"""
    members: Groups
    """all, as they were first given"""
    programs: dict[str, Program]
    version: str | None
    """as it was given"""


@jax.jit
def _choose(mask: jax.Array, one: State, other: State) -> State:
    """Of each member the one where the mask [M] is true, else the other, each leaf [M, ...]."""
    return jax.tree.map(lambda a, b: jnp.where(mask.reshape(-1, *[1] * (a.ndim - 1)), a, b), one, other)


def make_population(
    build: Callable[[Any], Trainer],
    members: Sequence[Any],
    seeds: Sequence[int],
    placement: int = 0,
    num_shards: int = 1,
    version: str | None = None,
) -> Population:
    """A population of members given by their settings and seeds.

    Args:
        build: settings -> Trainer, of a shard where there are several; called while tracing, with the settings' numbers
            traced.
        members: M pytrees of one structure, whose leaves are the numbers that may differ.
        seeds: M seeds, each the only source of its member's randomness.
        placement: at most so many members per device and dispatch; 0 chooses: 1 on a CPU, all on an accelerator.
        num_shards: into which a member falls.
        version: of all that `build` reads beside the settings. Programs are kept in the process for populations of the
            same structure and version; None keeps none.
    """
    count = len(seeds)
    row = shards.devices_each(num_shards, jax.local_device_count())
    spread = row > 1
    available = jax.local_device_count() // row
    block = min(placement, count) or (1 if jax.default_backend() == "cpu" else -(-count // available))
    # As few dispatches as the block allows, spread over all devices, then as few devices as that leaves busy.
    dispatches = -(-count // (available * block))
    block = -(-count // (dispatches * available))
    num_devices = -(-count // (dispatches * block))
    size = num_devices * block
    axes = {"member": num_devices} | ({shards.AXIS: num_shards} if spread else {})
    devices, automatic = jax.local_devices()[: num_devices * row], (AxisType.Auto,) * len(axes)
    mesh = jax.make_mesh((*axes.values(),), (*axes,), axis_types=automatic, devices=devices)
    by_member, by_shard, everywhere = PartitionSpec("member"), PartitionSpec(*axes), PartitionSpec()
    of_state = by_member
    if spread:
        of_state = jax.tree.map(lambda split: by_shard if split else by_member, build(members[0]).split)

    def one(member: Any) -> Trainer:
        """What a device runs of a member."""
        return build(member) if spread or num_shards == 1 else shards.together(build(member), num_shards)

    def shardings(specs: Any, tree: Any) -> Any:
        """The sharding of each leaf, from a prefix of specs."""
        return jax.tree.map(lambda spec, part: jax.tree.map(lambda _: NamedSharding(mesh, spec), part), specs, tree)

    def places(number: int) -> np.ndarray:
        """Which of so many members is where, [groups, size]: the last group is filled up with copies of the last one,
        whose results `gather` drops."""
        return np.minimum(np.arange(-(-number // size) * size), number - 1).reshape(-1, size)

    def scatter(state: State, specs: Any = by_member) -> Groups:
        found = shardings(specs, state)
        return [jax.device_put(jax.tree.map(lambda leaf, i=i: leaf[i], state), found) for i in places(count)]

    def take(groups: Groups, wanted: Sequence[int]) -> Groups:
        devices = mesh.devices.reshape(num_devices, row)
        sources = np.asarray(wanted)[places(len(wanted))].reshape(-1, num_devices, block)

        def taken(*leaves: jax.Array) -> list[jax.Array]:
            held = [{shard.device: shard.data for shard in leaf.addressable_shards} for leaf in leaves]

            def block_of(sources: np.ndarray, column: int, device: jax.Device) -> jax.Array:
                """Copies of the members of these places, on a device."""
                group, place = np.divmod(sources, size)
                origins = [held[g][devices[p // block, column]] for g, p in zip(group, place, strict=True)]
                if all(origin is held[group[0]][device] for origin in origins):
                    return jnp.take(origins[0], place % block, axis=0)  # in one step, without a copy of each by itself
                rows = [origin[p % block] for origin, p in zip(origins, place, strict=True)]
                return jnp.stack([jax.device_put(one, device) for one in rows])

            return [
                jax.make_array_from_single_device_arrays(
                    leaves[0].shape,
                    leaves[0].sharding,
                    [
                        block_of(group[block_row], column, devices[block_row, column])
                        for block_row, column in np.ndindex(*devices.shape)
                    ],
                )
                for group in sources
            ]

        found = jax.tree.map(taken, *groups)
        return [jax.tree.map(lambda _, new, i=i: new[i], groups[0], found) for i in range(len(sources))]

    def choose(mask: Sequence[bool] | np.ndarray, ones: Groups, others: Groups) -> Groups:
        masks = np.asarray(mask)[places(len(mask))]
        return [
            jax.device_put(_choose(mask, one, other), shardings(by_member, one)) if mask.any() else other
            for mask, one, other in zip(masks, ones, others, strict=True)
        ]

    def gather(groups: Groups) -> State:
        def join(*leaves: jax.Array) -> np.ndarray:
            host = np.empty((len(leaves), *leaves[0].shape), leaves[0].dtype)
            for place, leaf in zip(host, leaves, strict=True):
                # Shard by shard: of a whole array JAX would make, and keep, another copy.
                for shard in leaf.addressable_shards:
                    place[shard.index] = np.asarray(shard.data)
            return host.reshape(-1, *leaves[0].shape[1:])[:count]

        return jax.tree.map(join, *groups)

    def over_members(function: Callable, specs: Any, out_specs: Any, donate_argnums: tuple[int, ...] = ()) -> Program:
        """One member's function of arguments that are its own, or shared (`everywhere`)."""

        def alone(*args: Any) -> Any:
            own = [
                arg if spec is everywhere else jax.tree.map(lambda x: jnp.squeeze(x, 0), arg)
                for arg, spec in zip(args, specs, strict=True)
            ]
            return jax.tree.map(lambda x: jnp.expand_dims(x, 0), function(*own))

        together = jax.vmap(function, in_axes=tuple(None if spec is everywhere else 0 for spec in specs))
        # Members never speak to each other, and of what shards say to each other check_vma would take the gradient of
        # an average for a sum.
        mapped = jax.shard_map(
            alone if block == 1 else together, mesh=mesh, in_specs=specs, out_specs=out_specs, check_vma=False
        )
        return Program(mapped, donate_argnums)

    kind = (version, build, jax.tree.structure(members[0]), mesh, block, num_shards, _configuration())
    programs = _PROGRAMS.pop(kind, None) or {
        "init": over_members(lambda member, key: one(member).init(key), (by_member, by_member), of_state),
        "epoch": over_members(
            lambda member, key, clock, state: one(member).epoch(key, clock, state),
            (by_member, by_member, everywhere, of_state),
            (of_state, by_member),
            donate_argnums=(3,),
        ),
        "evaluate": over_members(
            lambda member, key, clock, agent: one(member).evaluate(key, clock, agent),
            (by_member, by_member, everywhere, by_member),
            by_member,
        ),
    }
    if version is not None:
        _PROGRAMS[kind] = programs  # as the one used last
        while len(_PROGRAMS) > _MOST_PROGRAMS:
            del _PROGRAMS[next(iter(_PROGRAMS))]
    keys = scatter(jax.vmap(seed_key)(np.asarray(seeds, np.uint32)))

    def enrol(members: Sequence[Any]) -> Groups:
        numbers = scatter(jax.tree.map(lambda *leaves: np.asarray(leaves, np.float32), *members))
        return [*zip(numbers, keys, strict=True)]

    first = enrol(members)

    def compile(clock: Clock, resumed: bool) -> None:
        if _debugging():
            return  # it traces again at every call
        missing = [name for name, program in programs.items() if not (program.compiled or (resumed and name == "init"))]
        if not missing:
            return
        found = programs["init"].shapes(*first[0])
        state = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            found,
            shardings(of_state, found),
        )
        arguments = {"init": (), "epoch": (clock, state), "evaluate": (clock, state.agent)}
        with ThreadPoolExecutor() as threads:
            # Tracing holds Python's lock, compiling does not.
            running = {
                name: threads.submit(programs[name].lower(*first[0], *arguments[name]).compile) for name in missing
            }
            for name, compiling in running.items():
                programs[name].compiled = compiling.result()

    def like(number: int) -> State:
        found = programs["init"].shapes(*first[0])
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((number, *leaf.shape[1:]), leaf.dtype), found)

    def init() -> Groups:
        return [programs["init"](*group) for group in first]

    def epoch(clock: Clock, groups: Groups, members: Groups = first) -> tuple[Groups, Callable[[], HostMetrics]]:
        states, metrics = [], []
        for member, state in zip(members, groups, strict=True):
            state, output = programs["epoch"](*member, clock, state)
            states.append(state)
            metrics.append(output)
        return states, lambda: gather(metrics)

    def evaluate(clock: Clock, groups: Groups, members: Groups = first) -> Callable[[], HostMetrics]:
        metrics = [programs["evaluate"](*member, clock, agent) for member, agent in zip(members, groups, strict=True)]
        return lambda: gather(metrics)

    scatter_states = partial(scatter, specs=of_state)
    return Population(
        compile,
        init,
        epoch,
        evaluate,
        enrol,
        take,
        choose,
        gather,
        scatter_states,
        scatter,
        like,
        first,
        programs,
        version,
    )
