"""From the metrics of an epoch to its rows, one for each member."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxddpg import settings
from jaxddpg.report.rows import Row, active
from jaxddpg.settings import Experiment
from jaxddpg.training.divergence import Divergence
from jaxddpg.training.evaluation import causes


def rows_of_epoch(
    training: settings.Training,
    epoch: int,
    members: Sequence[Mapping[str, Any]],
    before: Sequence[Row],
    health: Divergence,
    trained: dict[str, np.ndarray],
    evaluated: dict[str, np.ndarray],
    seconds: float,
    wall_seconds: float,
) -> list[Row]:
    """The rows of an epoch.

    Args:
        members: what distinguishes each of the M members.
        before: the rows of the epoch before, which those of stopped members repeat; empty for the first.
        health: each leaf [M].
        trained, evaluated: metrics [M] by name.
        seconds: that the epoch took.
        wall_seconds: that the run has taken so far.
    """
    unmeasured_by = causes(evaluated)
    metrics = {f"eval/{name}": values for name, values in evaluated.items()}
    metrics |= {f"train/{name}": values for name, values in _means(trained).items()}
    # Counted on the host in Python's integers, which do not wrap.
    env_steps = training.steps_per_epoch * training.num_envs
    updates = int(training.steps_per_epoch * training.updates_per_step)
    counts: dict[str, Any] = {
        "env_steps": training.warmup_steps * training.num_envs + epoch * env_steps,
        "updates": epoch * updates,
        "wall_seconds": wall_seconds,
    }
    running = len(active(members))
    rates = {"env_steps": running * env_steps, "updates": running * updates} if epoch else {}
    reasons = [Divergence.REASONS[reason] for reason in health.reason]
    rows = [
        {"epoch": epoch, **member}
        | counts
        | {
            "diverged_by": "observation" if reasons[index] == "start" else reasons[index],
            "diverged_in": Divergence.FUNCTIONS.get(reasons[index], ""),
            "diverged_at": (int(health.step[index]) + 1) * training.num_envs if health.diverged[index] else None,
            "unmeasured_by": "" if health.diverged[index] else unmeasured_by[index],
        }
        # What a diverged member would have done is not measured.
        | {name: math.nan if health.diverged[index] else float(values[index]) for name, values in metrics.items()}
        | {f"perf/{name}_per_second": number / seconds for name, number in rates.items()}
        for index, member in enumerate(members)
    ]
    return [
        row if active([row]) else _repeated(earlier, row) for row, earlier in zip(rows, before or rows, strict=True)
    ]


def _repeated(earlier: Row, row: Row) -> Row:
    """The row of a stopped member: that of the epoch before, without what was measured in training."""
    undone = {name: math.nan for name in row if name.startswith(("train/", "perf/"))}
    return earlier | undone | {name: row[name] for name in ("epoch", "wall_seconds", "parent")}


def _means(metrics: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The metrics of an epoch with the mean return in place of its parts; not a number where no episode ended."""
    total, ended = metrics.pop("return_sum", np.zeros(0)), metrics.pop("episodes_ended", np.zeros(0))
    if not ended.size:
        return metrics
    return {"return_mean": np.where(ended, total / np.maximum(ended, 1), np.nan)} | metrics


def is_over(experiment: Experiment, rows: Sequence[Row]) -> bool:
    """Whether nothing is left to be done after the rows of an epoch."""
    return bool(rows) and (rows[0]["epoch"] == experiment.training.num_epochs or halted(experiment, rows))


def halted(experiment: Experiment, members: Sequence[Row]) -> bool:
    """Whether the divergence of members, as rows or summaries state it, ends the run."""
    diverged = [member["diverged_by"] != "" for member in active(members)]
    return any(diverged) if experiment.population.on_divergence == "stop" else all(diverged)
