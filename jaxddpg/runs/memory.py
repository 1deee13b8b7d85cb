"""Checks a population's memory requirement against free memory before allocating anything."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxddpg.config import ConfigError, RunPlan
from jaxddpg.runs import distributed
from jaxddpg.settings import Experiment
from jaxddpg.training.population import Population
from jaxddpg.types import State

RESERVED = 8 * 10**8
"""Bytes of a CPU's memory left for what is not counted: compiling, and the chunks of a checkpoint that is written."""


def check(plan: RunPlan, population: Population, length: int, on_disk: bool) -> None:
    """Refuses a population that does not fit the memory of a device, or of the machine where that is a CPU, or whose
    evaluation does not fit beside it.

    Args:
        length: the steps of an episode.
        on_disk: whether checkpoints are written, and so the best policy of each member is kept.

    Raises:
        ConfigError: as `check_state` and `check_evaluation`.
    """
    like, at_once, _ = held(population)
    left = _check(plan, population, on_disk, free(), 0)
    if on_disk and jax.default_backend() != "cpu":
        # A checkpoint is gathered from all devices, and copied once more on the way.
        check_state(plan.experiment, like, 2 * jax.local_device_count(), free_on_host(), best=True, place="the host")
    check_evaluation(plan.experiment, like, length, at_once, left)


def check_compiled(plan: RunPlan, population: Population, on_disk: bool) -> None:
    """Refuses a population that does not fit beside what its compiled epoch takes, such as batches and gradients.

    Raises:
        ConfigError: as `check_state`.
    """
    if program := population.programs["epoch"].compiled:
        _, _, devices = held(population)
        temporary = devices * getattr(program.memory_analysis(), "temp_size_in_bytes", 0)
        _check(plan, population, on_disk, free(reserved=0), temporary)


def _check(plan: RunPlan, population: Population, on_disk: bool, free: int | None, temporary: int) -> int | None:
    like, at_once, devices = held(population)
    copies = 1
    if on_disk and jax.default_backend() == "cpu":
        copies = 5 if jax.distributed.is_initialized() else 2
    spare = at_once if at_once < len(jax.tree.leaves(like)[0]) else 2 * devices * plan.selects
    return check_state(plan.experiment, like, copies, free, spare, on_disk, temporary)


def held(population: Population) -> tuple[State, int, int]:
    """The part of a population's state that shares one memory, as shapes and dtypes [members, ...]; how many of these
    members run at once; and the number of devices sharing that memory (on CPU, all of them)."""
    first = jax.tree.leaves(population.like)[0]
    starts = {index[0].start for index in first.sharding.addressable_devices_indices_map(first.shape).values()}
    devices = len(starts) if jax.default_backend() == "cpu" else 1

    def share(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        assert leaf.sharding
        each, *rest = leaf.sharding.shard_shape(leaf.shape)
        shape = (devices * each, *leaf.shape[1:]) if jax.default_backend() == "cpu" else (each, *rest)
        return jax.ShapeDtypeStruct(shape, leaf.dtype)

    return jax.tree.map(share, population.like), devices * population.placement.block, devices


def bytes_by_part(like: State, members: int) -> dict[str, int]:
    """The bytes of each part of the state, of so many members of a population's state, or of its shapes and types."""
    # The state of a custom agent may be any pytree, even a single array.
    fields = jax.tree_util.tree_leaves_with_path(like.agent, is_leaf=lambda node: node is not like.agent)
    inner = {f"agent.{jax.tree_util.keystr(place, simple=True)}".rstrip("."): value for place, value in fields}
    outer = {name: value for name, value in vars(like).items() if name != "agent"}
    (places, *_) = like.observation.shape
    return {name: _size(value) // places * members for name, value in (inner | outer).items()}


def check_state(
    experiment: Experiment,
    like: State,
    copies: int,
    free: int | None,
    spare: int = 0,
    best: bool = False,
    temporary: int = 0,
    place: str = "",
) -> int | None:
    """Refuses a state that does not fit.

    Args:
        like: the shapes and types of the state of those members, [M, ...], that share the memory.
        copies: number of copies held simultaneously; on CPU, a checkpoint is written from a second copy, and of several
            processes Orbax makes three more.
        free: bytes; None where that is unknown.
        spare: additional member copies held while members are computed or copied.
        best: whether the best policy of each member is kept beside its state.
        temporary: bytes that the compiled epoch takes, of which the spare members are part.
        place: whose memory it is, if not that of the device.

    Raises:
        ConfigError: more is needed than is free, with the largest capacity and number of members that would fit.

    Returns:
        The bytes that are left; None where that is unknown.
    """
    members = len(jax.tree.leaves(like)[0])
    size, rows = _size(like) + best * _size(like.agent), _size(like.replay)
    spare, temporary = (0, temporary) if temporary > spare * size // members else (spare, 0)
    held = copies * members + spare
    needed = size * held // members + temporary
    if free is None or needed <= free:
        return None if free is None else free - needed
    capacity, num_envs = experiment.replay.capacity, experiment.training.num_envs
    fitting = ((free - temporary) * members - (size - rows) * held) * capacity // (rows * held) // num_envs * num_envs
    remedies = [f"replay.capacity to {fitting}"] if fitting >= max(experiment.agent.batch_size, num_envs) else []
    population = experiment.population
    count = population.num_seeds * (((free - temporary) * members // size - spare) // copies) // members
    remedies += [f"population.num_seeds to {count}"] if count > 0 else []
    remedies += ["the number of variants in population.sweep"] if population.sweep else []
    where = f" on {place}" if place else ""
    what, share = max(bytes_by_part(like, members).items(), key=lambda item: item[1])
    many, writing = "s"[: members > 1], f" (held {copies} times while a checkpoint is written)" if copies > 1 else ""
    what = f"replay buffer{many}" if what == "replay" else what
    raise ConfigError(
        [
            f"this experiment needs {_readable(needed)} of memory, of which {_readable(share * held // members)} for "
            f"the {what} of {members} member{many}{writing}, but only {_readable(free)} is free{where}; "
            f"reduce {' or '.join(remedies) or 'the hidden_sizes'}"
        ]
    )


def check_evaluation(
    experiment: Experiment,
    like: State,
    length: int,
    at_once: int,
    left: int | None,
    name: str = "evaluation.num_episodes",
) -> None:
    """Refuses an evaluation that does not fit beside the state.

    Args:
        like: the shapes and types of the state of some members, [M, ...].
        length: the steps of an episode.
        at_once: members that are evaluated side by side.
        left: bytes that are free beside the state; None where that is unknown.
        name: of the setting that says how many episodes there are.

    Raises:
        ConfigError: more is needed than is free, with the largest number of episodes that would fit.
    """
    if left is None:
        return
    environments = len(jax.tree.leaves(like)[0]) * experiment.training.num_envs
    networks = [section for section in vars(experiment.agent).values() if hasattr(section, "hidden_sizes")]
    widest = max((units for section in networks for units in section.hidden_sizes), default=0)
    # At the least: a state before and after, and three layers of activations; XLA takes up to a twentieth more.
    episode = 2 * _size((like.environment, like.observation)) // environments + 3 * 4 * widest
    keys, count = 8 * length, experiment.evaluation.num_episodes
    needed = at_once * (count * episode + keys)
    if needed <= left:
        return
    fitting = (left // at_once - keys) // episode
    remedy = f"lower {name} to {fitting}" if fitting > 0 else "shorten the environment's episodes"
    members = f"{at_once} member{'s'[: at_once > 1]}"
    raise ConfigError(
        [
            f"the evaluation of this experiment needs {_readable(needed)} for {count:,} episodes of at most {length:,} "
            f"steps, {members} at a time, but only {_readable(max(left, 0))} is free; {remedy}"
        ]
    )


def free(reserved: int = RESERVED) -> int | None:
    """Bytes that are free on each local device, or of a CPU's memory for each process of this run but for what is
    `reserved`; None where that is unknown."""
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        return stats["bytes_limit"] - stats["bytes_in_use"] if "bytes_limit" in stats else None
    return free_on_host(reserved)


def free_on_host(reserved: int = RESERVED) -> int | None:
    """Bytes of the machine's memory that are free for each process of this run but for what is `reserved`; None where
    that is unknown."""
    found = [*_control_groups(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))]
    if (meminfo := Path("/proc/meminfo")).exists():
        entries = dict(line.split(":") for line in meminfo.read_text().splitlines())
        found.append(int(entries["MemAvailable"].split()[0]) * 1024)
    if not found:
        return None
    each = min(found) // distributed.processes_here()
    return each - min(reserved, each // 2)  # so that the smallest experiments run on the smallest machines


def _control_groups(own: Path, root: Path) -> Iterator[int]:
    """Free bytes in this process's cgroup (version 2) and each enclosing one, as of a container or a SLURM job."""
    line = next((line for line in own.read_text().splitlines() if line.startswith("0::/")), "") if own.exists() else ""
    group = root / line.removeprefix("0::/")
    for place in (group, *group.parents):
        if (limit := place / "memory.max").exists() and (text := limit.read_text().strip()) != "max":
            used = int((place / "memory.current").read_text())
            # Of which what only caches files is given back when needed.
            entries = dict(line.split() for line in (place / "memory.stat").read_text().splitlines())
            yield int(text) - used + int(entries.get("inactive_file", 0))


def _size(tree: Any) -> int:
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _readable(size: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.1f} GB"
