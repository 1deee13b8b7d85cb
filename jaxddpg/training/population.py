"""The members of a population over the devices; below the edge, no other room knows the member axis.

A state is one pytree of arrays [P, ...]. Place p holds member p; the last places may be left over, because each device
has the same number of them. Each function is one compiled program, spread by `shard_map` over the devices of all
processes. A device computes its members in blocks, one block after the other. A block of one runs as if alone, which on
a CPU, with one virtual device per core, is faster than a vmap; on an accelerator one block holds all.

A member that falls into shards takes a row of devices, one for each of them, and the mesh has a second dimension; where
there are fewer devices than shards, a device holds all shards of a member.
"""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxddpg.parts import sharding as shards
from jaxddpg.types import Clock, Key, Metrics, State, Trainer, seed_key

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


@cache
def _seeding(sharding: NamedSharding) -> Callable[[jax.Array], Key]:
    """Makes keys of seeds [P]."""
    return jax.jit(jax.vmap(seed_key), out_shardings=sharding)


@cache
def _choosing(sharding: NamedSharding) -> Callable[[jax.Array, State, State], State]:
    """Of each member takes the one where the mask [P] is true, else the other."""

    def chosen(mask: jax.Array, one: State, other: State) -> State:
        return jax.tree.map(lambda a, b: jnp.where(mask.reshape(-1, *[1] * (a.ndim - 1)), a, b), one, other)

    return jax.jit(chosen, out_shardings=sharding, donate_argnums=2)


class Members(NamedTuple):
    """What differs between members, each leaf [P, ...]."""

    numbers: Any
    """of their settings"""
    keys: Key
    running: jax.Array
    """bool: whether they train"""


class Population(NamedTuple):
    """Many members as one. Metrics are arrays [M] on the host, the same in every process."""

    compile: Callable[[Clock, bool], None]
    """`compile(clock, resumed)`: compiles side by side what a run needs, `init` only where it is not resumed; without
    it each program compiles at its first call"""
    init: Callable[[], State]
    epoch: Callable[..., tuple[State, Callable[[], HostMetrics]]]
    """`epoch(clock, state, members) -> state, metrics`: returns at once; call `metrics()` to wait for the numbers. The
    state is donated. `members` are those of `enrol`, by default as they were first given"""
    evaluate: Callable[..., Callable[[], HostMetrics]]
    """`evaluate(clock, agents, members) -> metrics`, likewise, of agent states"""
    enrol: Callable[..., Members]
    """`enrol(settings, running) -> members`: M members, each with its first seed, but with numbers of these settings.
    Of those that are not `running` [M], by default none, agent and health stay as they are, and all else means
    nothing"""
    copy: Callable[[State, Mapping[int, int], Mapping[int, int]], State]
    """`copy(state, learners, replays) -> state`: of each mapping the members that are keys get what those that are
    values have: of the second the replay, of the first all else. The state is donated; beside it each device holds two
    members more. In a mapping no source may be copied to"""
    choose: Callable[[Sequence[bool] | np.ndarray, State, State], State]
    """`choose(mask, one, other) -> agents`: of each member the agent state in `one` where the mask [M] is true, else
    that in the other, which is donated"""
    gather: Callable[[State], State]
    """`gather(state)`: on the host of every process, each leaf [M, ...]"""
    snapshot: Callable[[State], State]
    """`snapshot(state)`: what a checkpoint can be written from while the next epoch changes the state; in one process
    as `gather`"""
    scatter: Callable[[State], State]
    """The inverse of `gather`; what is on the devices already stays there"""
    scatter_agents: Callable[[State], State]
    """The same for agent states"""
    like: State
    """The shapes, types and shardings of the state"""
    block: int
    """members that a device computes at once"""
    members: Members
    """all, as they were first given"""
    mesh: Mesh
    """of the devices, by member and where a member is spread also by shard"""
    programs: dict[str, Program]
    version: str | None
    """as it was given"""


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
        placement: at most so many members in a block; 0 chooses: 1 on a CPU, all of a device on an accelerator.
        num_shards: into which a member falls.
        version: of all that `build` reads beside the settings. Programs are kept in the process for populations of the
            same structure and version; None keeps none.
    """
    count = len(seeds)
    row = shards.devices_each(num_shards, jax.device_count())
    spread = row > 1
    rows = np.asarray(jax.devices()[: jax.device_count() // row * row]).reshape(-1, row)
    each = -(-count // len(rows))
    block = min(placement or (1 if jax.default_backend() == "cpu" else each), each)
    turns = -(-each // block)
    # As few in a block as those turns allow, then as few devices as that leaves busy; of several processes all devices,
    # as each process takes part.
    block = -(-each // turns)
    each = turns * block
    num_devices = -(-count // each) if jax.process_count() == 1 else len(rows)
    size = num_devices * each
    axes = {"member": num_devices} | ({shards.AXIS: num_shards} if spread else {})
    mesh = Mesh(
        rows[:num_devices].reshape(*axes.values()),
        (*axes,),
        axis_types=(AxisType.Auto,) * len(axes),
    )
    by_member, by_shard, everywhere = PartitionSpec("member"), PartitionSpec(*axes), PartitionSpec()
    of_state = by_member
    if spread:
        of_state = jax.tree.map(lambda split: by_shard if split else by_member, build(members[0]).sharded_axes)

    def one(member: Any) -> Trainer:
        """What a device runs of a member."""
        return build(member) if spread or num_shards == 1 else shards.vmap_shards(build(member), num_shards)

    def shardings(specs: Any, tree: Any) -> Any:
        """The sharding of each leaf, from a prefix of specs."""
        return jax.tree.map(lambda spec, part: jax.tree.map(lambda _: NamedSharding(mesh, spec), part), specs, tree)

    def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
        """What every process has whole, of which each keeps its own part."""
        if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
            return leaf
        host = np.asarray(leaf)
        places = np.minimum(np.arange(size), len(host) - 1)  # what is left over are copies of the last

        def part(index: Any) -> np.ndarray:
            return host[(places[index[0]], *index[1:])]

        return jax.make_array_from_callback((size, *host.shape[1:]), sharding, part)

    def scatter(state: State, specs: Any = by_member) -> State:
        return jax.tree.map(put, state, shardings(specs, state))

    def gather(state: State) -> State:
        def whole(leaf: jax.Array) -> np.ndarray:
            if not leaf.is_fully_addressable:
                return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))[:count]
            host = np.empty(leaf.shape, leaf.dtype)
            # Shard by shard: of a whole array JAX would make, and keep, another copy.
            for shard in leaf.addressable_shards:
                host[shard.index] = np.asarray(shard.data)
            return host[:count]

        return jax.tree.map(whole, state)

    def snapshot(state: State) -> State:
        if not jax.distributed.is_initialized():
            return gather(state)
        # From other devices Orbax copies to the host before it returns.
        return jax.tree.map(jnp.copy, state) if jax.default_backend() == "cpu" else state

    def program(function: Callable, specs: Any, out_specs: Any, donate_argnums: tuple[int, ...] = ()) -> Program:
        # Members never speak to each other, and of what shards say to each other check_vma would take the gradient of
        # an average for a sum.
        mapped = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out_specs, check_vma=False)
        return Program(mapped, donate_argnums)

    def copy_all(state: State, places: jax.Array, sources: jax.Array, numbers: jax.Array) -> State:
        """`places` and `sources` are [2, P], of learners and of replays, each of which begins with as many pairs as
        `numbers` [2] says."""
        first = each * jax.lax.axis_index("member")

        def copied(leaf: jax.Array, place: jax.Array, source: jax.Array) -> jax.Array:
            own, there = source - first, place - first
            row = leaf[jnp.clip(own, 0, each - 1)]
            bits = row.view(f"uint{8 * row.dtype.itemsize}")  # which a sum with 0 leaves as they are
            bits = jax.lax.psum(jnp.where((own >= 0) & (own < each), bits, 0), "member")
            there = jnp.where(there < 0, each, there)  # not from the end
            return leaf.at[there].set(bits.view(row.dtype), mode="drop")

        def all_copied(part: State, places: jax.Array, sources: jax.Array, number: jax.Array) -> State:
            def one_copied(index: jax.Array, part: State) -> State:
                return jax.tree.map(lambda leaf: copied(leaf, places[index], sources[index]), part)

            return jax.lax.fori_loop(0, number, one_copied, part)

        learner, replay = map(all_copied, (state.replace(replay=None), state.replay), places, sources, numbers)
        return learner.replace(replay=replay)

    def copy(state: State, learners: Mapping[int, int], replays: Mapping[int, int]) -> State:
        pairs = np.zeros((2, 2, size), np.int32)
        for which, sources in enumerate((learners, replays)):
            pairs[:, which, : len(sources)] = [*sources], [*sources.values()]
        return programs["copy"](state, *pairs, np.array([len(learners), len(replays)], np.int32))

    def choose(mask: Sequence[bool] | np.ndarray, one: State, other: State) -> State:
        return _choosing(NamedSharding(mesh, by_member))(scatter(np.asarray(mask)), one, other)

    def in_turns(function: Callable, state: State, *own: Any) -> tuple[State, Any]:
        """`function(state, *own) -> state, output` of one member for all of a device, each leaf [each, ...], block by
        block; the state is changed in place."""

        def of_block(*args: Any) -> Any:
            if block > 1:
                return jax.vmap(function)(*args)
            alone = function(*jax.tree.map(lambda x: jnp.squeeze(x, 0), args))
            return jax.tree.map(lambda x: jnp.expand_dims(x, 0), alone)

        def turn(state: State, inputs: tuple) -> tuple[State, Any]:
            place, own = inputs
            before = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, place, block), state)
            after, output = of_block(before, *own)
            put = partial(jax.lax.dynamic_update_slice_in_dim, start_index=place, axis=0)
            return jax.tree.map(put, state, after), output

        if turns == 1:
            return of_block(state, *own)
        blocks = jax.tree.map(lambda x: x.reshape(turns, block, *x.shape[1:]), own)
        state, output = jax.lax.scan(turn, state, (block * jnp.arange(turns), blocks))
        return state, jax.tree.map(lambda x: x.reshape(each, *x.shape[2:]), output)

    def init_all(member: Any, key: Key) -> State:
        return in_turns(lambda _, member, key: (None, one(member).init(key)), None, member, key)[1]

    def epoch_all(member: Any, key: Key, running: jax.Array, clock: Clock, state: State) -> tuple[State, Metrics]:
        def of_one(state: State, member: Any, key: Key, running: jax.Array) -> tuple[State, Metrics]:
            return where_running(running, partial(one(member).epoch, key, clock), state, ("agent", "health"))

        return in_turns(of_one, state, member, key, running)

    def evaluate_all(member: Any, key: Key, running: jax.Array, clock: Clock, agent: State) -> Metrics:
        def of_one(_: None, member: Any, key: Key, running: jax.Array, agent: State) -> tuple[None, Metrics]:
            evaluate = partial(one(member).evaluate, key, clock)
            return None, where_running(running, lambda agent: (agent, evaluate(agent)), agent)[1]

        return in_turns(of_one, None, member, key, running, agent)[1]

    def where_running(
        running: jax.Array, function: Callable, state: State, kept: Sequence[str] = ()
    ) -> tuple[State, Metrics]:
        """`function(state) -> state, metrics` of a member that trains, else what it has, and zeros; in a block of
        several only of the entries to be `kept`."""

        function = jax.jit(function)  # traced once for both uses

        def leave(state: State) -> tuple[State, Metrics]:
            return state, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, state)[1])

        if block == 1:
            return jax.lax.cond(running, function, leave, state)
        after, metrics = function(state)
        # In a vmap both are computed, and a choice between whole states would copy them.
        keep = partial(jax.tree.map, partial(jnp.where, running))
        changes = {name: keep(getattr(after, name), getattr(state, name)) for name in kept}
        return after.replace(**changes) if kept else after, metrics

    kind = (version, build, jax.tree.structure(members[0]), mesh, each, block, num_shards, _configuration())
    programs = _PROGRAMS.pop(kind, None) or {
        "init": program(init_all, (by_member, by_member), of_state),
        "epoch": program(
            epoch_all, (*3 * [by_member], everywhere, of_state), (of_state, by_member), donate_argnums=(4,)
        ),
        "copy": program(copy_all, (of_state, *3 * [everywhere]), of_state, donate_argnums=(0,)),
        "evaluate": program(evaluate_all, (*3 * [by_member], everywhere, by_member), by_member),
    }
    if version is not None:
        _PROGRAMS[kind] = programs  # as the one used last
        while len(_PROGRAMS) > _MOST_PROGRAMS:
            del _PROGRAMS[next(iter(_PROGRAMS))]
    keys = _seeding(NamedSharding(mesh, by_member))(scatter(np.asarray(seeds, np.uint32)))

    def enrol(members: Sequence[Any], running: Sequence[bool] | np.ndarray = (True,) * count) -> Members:
        numbers = scatter(jax.tree.map(lambda *leaves: np.asarray(leaves, np.float32), *members))
        return Members(numbers, keys, scatter(np.append(running, np.zeros(size - count, bool))))

    first = enrol(members)
    found = programs["init"].shapes(*first[:2])
    like = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), found, shardings(of_state, found)
    )

    def compile(clock: Clock, resumed: bool) -> None:
        if _debugging():
            return  # it traces again at every call
        arguments = {"init": first[:2], "epoch": (*first, clock, like), "evaluate": (*first, clock, like.agent)}
        missing = [name for name in arguments if not (programs[name].compiled or (resumed and name == "init"))]
        with ThreadPoolExecutor() as threads:
            # Tracing holds Python's lock, compiling does not.
            running = {name: threads.submit(programs[name].lower(*arguments[name]).compile) for name in missing}
            for name, compiling in running.items():
                programs[name].compiled = compiling.result()

    def init() -> State:
        return programs["init"](*first[:2])

    def epoch(clock: Clock, state: State, members: Members = first) -> tuple[State, Callable[[], HostMetrics]]:
        state, metrics = programs["epoch"](*members, clock, state)
        return state, lambda: gather(metrics)

    def evaluate(clock: Clock, agents: State, members: Members = first) -> Callable[[], HostMetrics]:
        metrics = programs["evaluate"](*members, clock, agents)
        return lambda: gather(metrics)

    return Population(
        compile=compile,
        init=init,
        epoch=epoch,
        evaluate=evaluate,
        enrol=enrol,
        copy=copy,
        choose=choose,
        gather=gather,
        snapshot=snapshot,
        scatter=partial(scatter, specs=of_state),
        scatter_agents=scatter,
        like=like,
        block=block,
        members=first,
        mesh=mesh,
        programs=programs,
        version=version,
    )
