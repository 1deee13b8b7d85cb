"""Populations of members trained together; lower layers are unaware of the member axis.

A state is one pytree of arrays [P, ...]: place p holds member p, see `placement`. Each function is one compiled
program, sharded with `shard_map` over the devices of all processes. A device runs its members in blocks, sequentially.
A block of one is not vmapped, which is faster on CPU (with one virtual device per core); on an accelerator one block
holds all members.

A member in shards takes a row of devices, one for each of them, and the mesh has a second dimension; where there are
fewer devices than shards, a device holds all shards of a member.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jaxddpg.parts import sharding
from jaxddpg.training.placement import BY_MEMBER, EVERYWHERE, Placement, choosing, place, seeding
from jaxddpg.types import Clock, Key, Metrics, State, Trainer

HostMetrics = dict[str, np.ndarray]
Build = Callable[[Any], Trainer]


class Program:
    """A jitted function that is compiled once, at its first call or before."""

    def __init__(self, function: Callable, donate_argnums: tuple[int, ...] = ()) -> None:
        self._jitted = jax.jit(function, donate_argnums=donate_argnums)
        self.compiled: jax.stages.Compiled | None = None

    def shapes(self, *args: Any) -> Any:
        """The shapes and dtypes of the output; lowering afterwards does not retrace."""
        return self._jitted.eval_shape(*args)

    def lower(self, *args: Any) -> jax.stages.Lowered:
        """Traces it for arguments, or for their shapes, types and shardings."""
        return self._jitted.lower(*args)

    def __call__(self, *args: Any) -> Any:
        if _debugging():
            # Both checks need the traced function. Each program splits the member's key by purpose, which is not reuse.
            return self._jitted(*jax.tree.map(_unused, args))
        if self.compiled is None:
            self.compiled = self.lower(*args).compile()
        return self.compiled(*args)


def _debugging() -> bool:
    return jax.config.jax_debug_nans or jax.config.jax_debug_key_reuse  # type: ignore[attr-defined]


def _unused(leaf: Any) -> Any:
    """A clone of a key, so it does not count as reused."""
    return jax.random.clone(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


_PROGRAMS: dict[Any, dict[str, Program]] = {}
"""An LRU cache of compiled programs: runs that differ only in traced settings and seeds compile once."""
_MAX_PROGRAMS = 16


def numerics() -> dict[str, Any]:
    """The JAX options that change results beyond rounding, by name."""
    names = ("enable_x64", "threefry_partitionable", "random_seed_offset", "default_matmul_precision")
    return {name: getattr(jax.config, f"jax_{name}") for name in names}


def _configuration() -> tuple:
    """The settings of JAX that a traced or compiled program depends on."""
    names = ("numpy_dtype_promotion", "numpy_rank_promotion", "debug_infs", "default_prng_impl")
    return (*numerics().values(), *(getattr(jax.config, f"jax_{name}") for name in names))


class Inputs(NamedTuple):
    """The inputs of programs that differ between members, each leaf [P, ...]."""

    numbers: Any
    """of their settings"""
    keys: Key
    active: jax.Array
    """bool: whether they train"""


class Population:
    """M members that train together. Metrics are arrays [M] on the host, the same in every process."""

    def __init__(
        self,
        build: Build,
        settings: Sequence[Any],
        seeds: Sequence[int],
        at_once: int = 0,
        num_shards: int = 1,
        version: str | None = None,
    ) -> None:
        """Assigns members to devices; only their keys are computed.

        Args:
            build: settings -> Trainer, of a shard where there are several; called while tracing, with the settings'
                numbers traced.
            settings: M pytrees of one structure, whose leaves are the numbers that may differ.
            seeds: M seeds, each the only source of its member's randomness.
            at_once: maximum block size; 0: automatic (1 on CPU, all members of the device on an accelerator).
            num_shards: of each member.
            version: a key for everything `build` reads besides the settings. Compiled programs are cached for
                populations of the same structure and version; None disables caching.
        """
        if not settings or len(settings) != len(seeds):
            raise ValueError(f"there are {len(settings)} settings and {len(seeds)} seeds; pass one of each per member")
        self.placement, self.version = place(len(seeds), num_shards, at_once), version
        self._specs = _specs(build, settings[0], self.placement)
        structure = jax.tree.structure(settings[0])
        kind = (version, build, structure, self.placement._replace(num_members=0), num_shards, _configuration())
        kept = _PROGRAMS.pop(kind) if kind in _PROGRAMS else None
        self.programs = kept or _programs(build, self.placement, self._specs, num_shards)
        """the compiled programs by name"""
        if version is not None:
            _PROGRAMS[kind] = self.programs  # as the one used last
            while len(_PROGRAMS) > _MAX_PROGRAMS:
                del _PROGRAMS[next(iter(_PROGRAMS))]
        by_member = self.placement.sharding(BY_MEMBER)
        self._keys = seeding(by_member)(self.placement.scatter(np.asarray(seeds, np.uint32)))
        self.inputs = self.with_settings(settings)
        """of all members, as they were first given"""
        found = self.programs["init"].shapes(*self.inputs[:2])
        self.like: State = jax.tree.map(
            lambda x, placed: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed),
            found,
            self.placement.shardings(self._specs, found),
        )
        """the shapes, types and shardings of the state"""

    def compile(
        self, clock: Clock, resumed: bool, on_progress: Callable[[Sequence[str]], object] = lambda names: None
    ) -> None:
        """Compiles the programs of a run in parallel, `init` only if it is not resumed; otherwise each compiles at its
        first call. `on_progress` is called with the names of those that are left, again whenever one is compiled."""
        if _debugging():
            return  # it traces again at every call
        arguments = {
            "init": self.inputs[:2],
            "epoch": (*self.inputs, clock, self.like),
            "evaluate": (*self.inputs, clock, self.like.agent),
        }
        missing = [name for name in arguments if not (self.programs[name].compiled or (resumed and name == "init"))]
        on_progress(missing)
        with ThreadPoolExecutor() as threads:
            # Tracing holds Python's lock, compiling does not.
            running = {threads.submit(self.programs[name].lower(*arguments[name]).compile): name for name in missing}
            for done in as_completed(running):
                self.programs[running.pop(done)].compiled = done.result()
                on_progress([*running.values()])

    def init(self) -> State:
        """The first state of all members."""
        return self.programs["init"](*self.inputs[:2])

    def epoch(
        self, clock: Clock, state: State, inputs: Inputs | None = None
    ) -> tuple[State, Callable[[], HostMetrics]]:
        """Trains an epoch and returns at once, with a function that waits for the metrics. The state is donated.

        Args:
            inputs: from `with_settings`; by default as they were first given.
        """
        state, metrics = self.programs["epoch"](*(inputs or self.inputs), clock, state)
        return state, partial(self.gather, metrics)

    def evaluate(self, clock: Clock, agents: State, inputs: Inputs | None = None) -> Callable[[], HostMetrics]:
        """Evaluates agent states; also returns immediately, with a function that waits for the metrics."""
        return partial(self.gather, self.programs["evaluate"](*(inputs or self.inputs), clock, agents))

    def with_settings(self, settings: Sequence[Any], active: Sequence[bool] | np.ndarray | None = None) -> Inputs:
        """The inputs of M members with their original seeds but new settings. For members that are not `active` [M]
        (default: all are), agent and divergence are unchanged and the rest of the state is undefined."""
        placement = self.placement
        numbers = placement.scatter(jax.tree.map(lambda *leaves: np.asarray(leaves, np.float32), *settings))
        mask = np.zeros(placement.num_places, bool)
        mask[: placement.num_members] = True if active is None else active
        return Inputs(numbers, self._keys, placement.scatter(mask))

    def copy(self, state: State, learners: Mapping[int, int], replays: Mapping[int, int]) -> State:
        """Copies state between members. Each mapping is target -> source: `learners` copies everything but the replay,
        `replays` the replay. The state is donated; each device needs memory for two more members. A source must not
        also be a target."""
        pairs = np.zeros((2, 2, self.placement.num_places), np.int32)
        for which, sources in enumerate((learners, replays)):
            pairs[:, which, : len(sources)] = [*sources], [*sources.values()]
        return self.programs["copy"](state, *pairs, np.array([len(learners), len(replays)], np.int32))

    def choose(self, mask: Sequence[bool] | np.ndarray, one: State, other: State) -> State:
        """The agent states from `one` where the mask [M] is true, else from `other`, which is donated."""
        return choosing(self.placement.sharding(BY_MEMBER))(self.placement.scatter(np.asarray(mask)), one, other)

    def gather(self, tree: Any) -> Any:
        """A state, or a part of it, on the host of every process, each leaf [M, ...]."""
        return self.placement.gather(tree)

    def scatter(self, state: State) -> State:
        """The inverse of `gather`. What is on the devices already stays there."""
        return self.placement.scatter(state, self._specs)

    def scatter_agents(self, agents: State) -> State:
        """The same for agent states."""
        return self.placement.scatter(agents)

    def snapshot(self, state: State) -> State:
        """What a checkpoint can be written from while the next epoch changes the state; in one process as `gather`."""
        if not jax.distributed.is_initialized():
            return self.gather(state)
        # From other devices Orbax copies to the host before it returns.
        return jax.tree.map(jnp.copy, state) if jax.default_backend() == "cpu" else state


def _specs(build: Build, settings: Any, placement: Placement) -> Any:
    """How each part of a state is spread over the mesh."""
    if len(placement.mesh.axis_names) == 1:
        return BY_MEMBER
    by_shard = PartitionSpec(*placement.mesh.axis_names)
    return jax.tree.map(lambda sharded: by_shard if sharded else BY_MEMBER, build(settings).sharded_axes)


def _programs(build: Build, placement: Placement, specs: Any, num_shards: int) -> dict[str, Program]:
    """The programs of a population; `specs` are those of its state."""

    def build_whole(settings: Any) -> Trainer:
        """The part of a member that one device runs."""
        is_spread = len(placement.mesh.axis_names) > 1
        return build(settings) if is_spread or num_shards == 1 else sharding.vmap_shards(build(settings), num_shards)

    def program(function: Callable, in_specs: Any, out_specs: Any, donate_argnums: tuple[int, ...] = ()) -> Program:
        # Members do not communicate. check_vma is off because it would treat the gradient of a pmean over shards as a
        # psum.
        mapped = jax.shard_map(
            function,
            mesh=placement.mesh,
            in_specs=in_specs,
            out_specs=out_specs,
            check_vma=False,
        )
        return Program(mapped, donate_argnums)

    init, epoch, evaluate = (partial(function, build_whole, placement) for function in (_init, _epoch, _evaluate))
    inputs = 3 * [BY_MEMBER]
    return {
        "init": program(init, (BY_MEMBER, BY_MEMBER), specs),
        "epoch": program(epoch, (*inputs, EVERYWHERE, specs), (specs, BY_MEMBER), donate_argnums=(4,)),
        "copy": program(partial(_copy, placement), (specs, *3 * [EVERYWHERE]), specs, donate_argnums=(0,)),
        "evaluate": program(evaluate, (*inputs, EVERYWHERE, BY_MEMBER), BY_MEMBER),
    }


def _init(build: Build, placement: Placement, numbers: Any, key: Key) -> State:
    def of_one(_: None, numbers: Any, key: Key) -> tuple[None, State]:
        return None, build(numbers).init(key)

    return _in_turns(placement, of_one, None, numbers, key)[1]


def _epoch(
    build: Build, placement: Placement, numbers: Any, key: Key, active: jax.Array, clock: Clock, state: State
) -> tuple[State, Metrics]:
    def of_one(state: State, numbers: Any, key: Key, active: jax.Array) -> tuple[State, Metrics]:
        function = partial(build(numbers).epoch, key, clock)
        return _where_active(placement, active, function, state, ("agent", "health"))

    return _in_turns(placement, of_one, state, numbers, key, active)


def _evaluate(
    build: Build, placement: Placement, numbers: Any, key: Key, active: jax.Array, clock: Clock, agent: State
) -> Metrics:
    def of_one(_: None, numbers: Any, key: Key, active: jax.Array, agent: State) -> tuple[None, Metrics]:
        evaluate = partial(build(numbers).evaluate, key, clock)
        return None, _where_active(placement, active, lambda agent: (agent, evaluate(agent)), agent)[1]

    return _in_turns(placement, of_one, None, numbers, key, active, agent)[1]


def _copy(placement: Placement, state: State, places: jax.Array, sources: jax.Array, counts: jax.Array) -> State:
    """`places` and `sources` are [2, P], for learners and replays; the first `counts` [2] pairs of each are valid."""
    each = placement.each
    first = each * jax.lax.axis_index("member")

    def copied(leaf: jax.Array, place: jax.Array, source: jax.Array) -> jax.Array:
        own, there = source - first, place - first
        row = leaf[jnp.clip(own, 0, each - 1)]
        bits = row.view(f"uint{8 * row.dtype.itemsize}")  # which a sum with 0 leaves as they are
        bits = jax.lax.psum(jnp.where((own >= 0) & (own < each), bits, 0), "member")
        there = jnp.where(there < 0, each, there)  # not from the end
        return leaf.at[there].set(bits.view(row.dtype), mode="drop")

    def all_copied(part: State, places: jax.Array, sources: jax.Array, count: jax.Array) -> State:
        def one_copied(index: jax.Array, part: State) -> State:
            return jax.tree.map(lambda leaf: copied(leaf, places[index], sources[index]), part)

        return jax.lax.fori_loop(0, count, one_copied, part)

    learner, replay = map(all_copied, (state.replace(replay=None), state.replay), places, sources, counts)
    return learner.replace(replay=replay)


def _in_turns(placement: Placement, function: Callable, state: State, *own: Any) -> tuple[State, Any]:
    """Maps `function(state, *own) -> state, output` over the members of a device, block by block; leaves are [each,
    ...] and the state is updated in place."""
    turns, block = placement.turns, placement.block

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
    return state, jax.tree.map(lambda x: x.reshape(turns * block, *x.shape[2:]), output)


def _where_active(
    placement: Placement, active: jax.Array, function: Callable, state: State, kept: Sequence[str] = ()
) -> tuple[State, Metrics]:
    """Applies `function(state) -> state, metrics` if the member is active; otherwise returns its state unchanged and
    zero metrics. In a vmapped block, only the entries in `kept` are preserved."""
    function = jax.jit(function)  # traced once for both uses

    def leave(state: State) -> tuple[State, Metrics]:
        return state, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, state)[1])

    if placement.block == 1:
        return jax.lax.cond(active, function, leave, state)
    after, metrics = function(state)
    # In a vmap both are computed, and a choice between whole states would copy them.
    keep = partial(jax.tree.map, partial(jnp.where, active))
    changes = {name: keep(getattr(after, name), getattr(state, name)) for name in kept}
    return after.replace(**changes) if kept else after, metrics
