"""What a population takes, counted before anything is allocated, against what is free."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxddpg import shards
from jaxddpg.config import ConfigError
from jaxddpg.settings import Experiment
from jaxddpg.types import State


class Sharing(NamedTuple):
    """How the members of a population share a memory."""

    devices: int
    """of as many devices"""
    members: int
    """at most, in the memory of these devices together"""
    at_once: int
    """that are computed side by side"""


def sharing(experiment: Experiment, count: int) -> Sharing:
    """How so many members of an experiment share a memory; the devices of a CPU have that of the machine in common."""
    on_cpu, placement = jax.default_backend() == "cpu", experiment.population.placement
    devices = 1 if on_cpu else jax.local_device_count()
    row = shards.devices_each(experiment.training.num_shards, devices)
    members = -(-count // (devices // row))
    block = (placement or 1) * jax.local_device_count() if on_cpu else placement or members
    return Sharing(row, members, min(members, block))


def parts(like: State) -> dict[str, int]:
    """Bytes by what they are for, of a population's state or of what tells its shapes and types."""
    inner = {f"agent.{name}": value for name, value in vars(like.agent).items()}
    outer = {name: value for name, value in vars(like).items() if name != "agent"}
    return {name: _size(value) for name, value in (inner | outer).items()}


def check(experiment: Experiment, like: State, copies: int, free: int | None, best: bool = False) -> int | None:
    """Refuses what does not fit.

    Args:
        like: the shapes and types of the state of those members, [M, ...], that share the memory.
        copies: how often they are held at once: on a CPU a checkpoint that is being written is a second time, and so
            are, anywhere, members that go on as others.
        free: bytes; None where nobody knows.
        best: whether the best policy of each member is kept beside its state.

    Raises:
        ConfigError: more is needed than is free, with the largest capacity and number of members that would fit.

    Returns:
        The bytes that are left; None where nobody knows.
    """
    size = _size(like) + best * _size(like.agent)
    if free is None or size * copies <= free:
        return None if free is None else free - size * copies
    members = len(jax.tree.leaves(like)[0])
    capacity, num_envs = experiment.replay.capacity, experiment.training.num_envs
    rows = _size(like.replay)
    room = (free - (size - rows) * copies) * capacity // (rows * copies) // num_envs * num_envs
    remedies = [f"replay.capacity to {room}"] if room >= max(experiment.agent.batch_size, num_envs) else []
    population = experiment.population
    count = population.num_seeds * (free // (size // members * copies)) // members
    remedies += [f"population.num_seeds to {count}"] if count else []
    remedies += ["the number of variants in population.sweep"] if population.sweep else []
    raise ConfigError(
        [
            f"this experiment needs {_readable(size * copies)}, {_readable(rows)} of it for the replays of {members} "
            f"members{f', and all {copies} times at moments of checkpoints or selection' if copies > 1 else ''}, but "
            f"{_readable(free)} are free; lower {' or '.join(remedies) or 'the hidden_sizes'}"
        ]
    )


def check_evaluation(
    experiment: Experiment,
    like: State,
    length: int,
    at_once: int,
    room: int | None,
    name: str = "evaluation.num_episodes",
) -> None:
    """Refuses an evaluation that does not fit beside the state.

    Args:
        like: the shapes and types of the state of some members, [M, ...].
        length: the steps of an episode.
        at_once: members that are evaluated side by side.
        room: bytes; None where nobody knows.
        name: of the setting that says how many episodes there are.

    Raises:
        ConfigError: more is needed than there is room for, with the largest number of episodes that would fit.
    """
    if room is None:
        return
    worlds = len(jax.tree.leaves(like)[0]) * experiment.training.num_envs
    networks = [section for section in vars(experiment.agent).values() if hasattr(section, "hidden_sizes")]
    widest = max((units for section in networks for units in section.hidden_sizes), default=0)
    # At the least: a state before and after, and three layers of activations; XLA takes up to a twentieth more.
    episode = 2 * _size((like.environment, like.observation)) // worlds + 3 * 4 * widest
    keys, count = 8 * length, experiment.evaluation.num_episodes
    needed = at_once * (count * episode + keys)
    if needed <= room:
        return
    fitting = (room // at_once - keys) // episode
    remedy = f"lower {name} to {fitting}" if fitting > 0 else "have the environment end its episodes earlier"
    members = f"{at_once} member{'s'[: at_once > 1]}"
    raise ConfigError(
        [
            f"the evaluation of this experiment needs {_readable(needed)} for {count:,} episodes of at most {length:,} "
            f"steps, of {members} at a time, but {_readable(max(room, 0))} are free; {remedy}"
        ]
    )


def free() -> int | None:
    """Bytes to be had on each local device; None where nobody knows."""
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        return stats["bytes_limit"] - stats["bytes_in_use"] if "bytes_limit" in stats else None
    found = []
    if (meminfo := Path("/proc/meminfo")).exists():
        entries = dict(line.split(":") for line in meminfo.read_text().splitlines())
        found.append(int(entries["MemAvailable"].split()[0]) * 1024)
    control_group = Path("/sys/fs/cgroup")  # of a container that may use less than the machine has
    if (limit := control_group / "memory.max").exists() and (text := limit.read_text().strip()) != "max":
        used = int((control_group / "memory.current").read_text())
        # Of which what only caches files is given back when needed.
        entries = dict(line.split() for line in (control_group / "memory.stat").read_text().splitlines())
        found.append(int(text) - used + int(entries.get("inactive_file", 0)))
    return min(found, default=None)


def _size(tree: Any) -> int:
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _readable(size: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.1f} GB"
