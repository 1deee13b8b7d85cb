"""The rows and states of an existing run, up to the checkpoint from which it continues."""

import itertools
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxddpg import config
from jaxddpg.config import ConfigError, RunPlan
from jaxddpg.report.rows import METRICS, Row, read_rows
from jaxddpg.runs import checkpoint, distributed, origin
from jaxddpg.runs.members import Best
from jaxddpg.statistics import worst_if_not_finite
from jaxddpg.training.loop import TrainingState
from jaxddpg.training.population import Population
from jaxddpg.types import State


class History(NamedTuple):
    """The rows of a run up to the checkpoint from which it continues."""

    rows: Sequence[Row] = ()
    notes: Sequence[str] = ()
    """Messages to show the user."""

    @property
    def epoch(self) -> int:
        """-1 where nothing has been done."""
        return self.rows[-1]["epoch"] if self.rows else -1


def read_history(directory: Path, plan: RunPlan, environment: str | None) -> History:
    """The rows up to the checkpoint that the first process finds; ConfigError as `newest`."""
    epoch, notes = distributed.of_first(lambda: newest(directory, plan, environment))
    count = (epoch + 1) * len(plan.members)
    with distributed.agreeing():
        rows = read_rows(directory / METRICS)[:count]
        if len(rows) < count:
            raise ConfigError([f"{directory / METRICS} differs from the one process 0 reads"])
    return History(rows, notes)


def newest(directory: Path, plan: RunPlan, environment: str | None = None) -> tuple[int, list[str]]:
    """The epoch of the newest valid checkpoint, -1 where the run was interrupted before its first, and what was found
    while it was looked for.

    Args:
        environment: the digest of the environment, where it is known.

    Raises:
        ConfigError: fewer epochs are asked for; or there were checkpoints, but none can be used, and to start again
            would lose what is valid.
    """
    count = len(plan.members)
    rows, found = read_rows(directory / METRICS), checkpoint.epochs(directory)
    expected = ((epoch, member) for epoch in itertools.count() for member in range(count))
    pairs = zip(((row["epoch"], row["member"]) for row in rows), expected, strict=False)
    complete, notes = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)), list[str]()
    for epoch in found:
        try:
            before = checkpoint.origin(directory, epoch)
        except checkpoint.DamagedError as error:
            notes.append(f"{error}; trying an older one")
            continue
        origin.check_jax(before)
        origin.check(before, plan, environment)  # its file may have been edited by hand
        if complete < (epoch + 1) * count:
            notes.append(f"the metrics end before the checkpoint of epoch {epoch}; trying an older one")
            continue
        if (asked := plan.experiment.training.num_epochs) < epoch:
            raise ConfigError(
                [f"training.num_epochs is {asked}, but the run has already reached epoch {epoch}; use at least {epoch}"]
            )
        return epoch, [*notes, f"continuing after epoch {epoch}"]
    last = config.read_run(directory).experiment.training.num_epochs  # before any changes
    # Without the summary it was interrupted while its last checkpoint was written.
    has_ended = complete >= (last + 1) * count and (directory / "summary.json").exists()
    if found:
        again = f"delete {directory / checkpoint.DIRECTORY} to start over"
        remedy = "start a new run with its config.yaml" if has_ended else again
        reason = notes[0].split(";")[0]
        raise ConfigError([f"{directory} cannot continue: {reason}; restore the files of the run, or {remedy}"])
    if has_ended:  # to train all of it again would replace what is there
        raise ConfigError(
            [
                f"{directory} has ended, but its checkpoints are gone, so it cannot continue; restore "
                f"{directory / checkpoint.DIRECTORY}, or train a new run of its config.yaml"
            ]
        )
    return -1, ["no checkpoint found; starting from scratch"]


def read_states(directory: Path, population: Population, history: History) -> tuple[State, Best]:
    """The states of all members and their best policies at the end of a history, from its checkpoint."""
    count = len(history.rows) // (history.epoch + 1)
    like = _on_disk(population, count)
    if distributed.of_first(lambda: checkpoint.holds(directory, history.epoch, "best")):
        like |= {"best": {"agent": like["agent"], "epoch": jax.ShapeDtypeStruct((count,), np.int32)}}
    state = _restored(directory, history.epoch, like)
    # Earlier versions kept none.
    best = state.pop("best", {"agent": state["agent"], "epoch": np.full(count, history.epoch, np.int32)})
    returns = [
        history.rows[epoch * count + member]["eval/return_mean"] for member, epoch in enumerate(best["epoch"].tolist())
    ]
    best = Best(population.scatter_agents(best["agent"]), best["epoch"], worst_if_not_finite(returns))
    return population.scatter(TrainingState(**state)), best


def read_agents(directory: Path, population: Population, history: History) -> State:
    """The agents at the end of a history, on the host, each leaf [M, ...]."""
    count = len(history.rows) // (history.epoch + 1)
    like = {"agent": _on_disk(population, count)["agent"]}
    agents = _restored(directory, history.epoch, like, partial=True)["agent"]
    return population.gather(population.scatter_agents(agents))


def _on_disk(population: Population, count: int) -> dict[str, Any]:
    """The shapes and types of what a checkpoint holds of the states of so many members, by name; of several processes
    each restores its own part."""
    like = population.like
    if jax.distributed.is_initialized():
        return {**vars(like)}
    return vars(jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape[1:]), leaf.dtype), like))


def _restored(directory: Path, epoch: int, like: dict[str, Any], partial: bool = False) -> dict[str, Any]:
    """What a checkpoint holds by name, or some of it; ConfigError where it does not fit."""
    try:
        return checkpoint.restore(directory, epoch, like, partial)
    except ValueError as error:
        raise ConfigError([f"the checkpoints of {directory} cannot be read: {config.first_line(error)}"]) from error
