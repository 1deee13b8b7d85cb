"""The summary of a run, as it stands in `summary.json`."""

import datetime
import hashlib
import importlib.metadata
import json
import math
import platform
import resource
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxddpg import config
from jaxddpg.config import RunPlan
from jaxddpg.report.rows import NOT_FINITE, Row, best_row, identity
from jaxddpg.runs import memory
from jaxddpg.statistics import best, confidence_interval, interquartile_mean
from jaxddpg.training.population import Population


def summarize(plan: RunPlan, rows: list[Row], population: Population) -> dict[str, Any]:
    """The summary of a run, from all its rows."""
    experiment, count, members = plan.experiment, len(plan.members), []
    for index, last in enumerate(rows[-count:]):
        own = rows[index::count]
        peak = own[best([row["eval/return_mean"] for row in own])]
        members.append(
            {
                **identity(last),
                **{name: last[name] for name in ("parent",) if name in last},
                "final_return": last["eval/return_mean"],
                "best_return": peak["eval/return_mean"],
                "best_epoch": peak["epoch"],
                # Rows of older runs do not have all of them.
                **{name: last[name] for name in NOT_FINITE if name in last},
            }
        )
    ends, device = rows[-count:], jax.local_devices()[0]
    steady = {
        name: float(np.median([rate for row in rows if (rate := row.get(name, np.nan)) == rate] or [np.nan]))
        for name in ("perf/env_steps_per_second", "perf/updates_per_second")
    }
    used = (device.memory_stats() or {}).get("peak_bytes_in_use") if device.platform != "cpu" else None
    compiled = population.programs["epoch"].compiled
    analysis = compiled.memory_analysis() if compiled else None
    return {
        "environment": experiment.environment.name,
        **_returns(plan, members),
        "epochs": ends[0]["epoch"],
        "env_steps_per_member": max(row["env_steps"] for row in ends),
        "env_steps_total": sum(row["env_steps"] for row in ends),
        "updates_total": sum(row["updates"] for row in ends),
        "wall_seconds": ends[0]["wall_seconds"],
        "env_steps_per_second": steady["perf/env_steps_per_second"],
        "updates_per_second": steady["perf/updates_per_second"],
        "peak_memory_bytes": used or _peak_rss(),
        "state_bytes": memory.bytes_by_part(population.like, count),
        "epoch_temporary_bytes": analysis.temp_size_in_bytes if analysis else None,
        "device": f"{device.device_kind} x {jax.local_device_count()}",
        "versions": versions(),
        "date": datetime.date.today().isoformat(),
        "config_hash": hashlib.sha256(config.dump(experiment).encode()).hexdigest()[:16],
    }


def _returns(plan: RunPlan, members: Sequence[Row]) -> dict[str, Any]:
    """The final returns of members, one by one and together."""
    final = np.array([member["final_return"] for member in members])
    low, high = confidence_interval(final)
    return {
        "members": [*members],
        "variants": _variants(plan, final) if plan.experiment.population.sweep and not plan.selects else [],
        "chosen": best_row(members, "final_return") if plan.selects else None,
        "final_return_iqm": float(interquartile_mean(final)),
        "final_return_interval_95": [float(low), float(high)],
    }


def read(path: Path) -> dict[str, Any] | None:
    """A `summary.json`, in which what was not finite is not a number; None where there is none, or it is damaged."""
    with suppress(FileNotFoundError, ValueError, TypeError, KeyError):
        found = json.loads(path.read_text())
        for member in found["members"]:
            member |= {name: math.nan for name in ("final_return", "best_return") if member[name] is None}
        return found if isinstance(found["epochs"], int) else None
    return None


def _variants(plan: RunPlan, final: np.ndarray) -> list[dict[str, Any]]:
    """What is swept and how it ended, variant by variant, from the final returns [M]."""
    found = []
    for variant, returns in zip(plan.variants, final.reshape(len(plan.variants), -1), strict=True):
        low, high = confidence_interval(returns)
        found.append(
            {
                **variant.swept,
                "final_return_iqm": float(interquartile_mean(returns)),
                "final_return_interval_95": [float(low), float(high)],
            }
        )
    return found


def versions() -> dict[str, str]:
    """Of all that a run depends on."""
    packages = ("jaxddpg", "jax", "flax", "optax", "gymnax")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def _peak_rss() -> int:
    """Bytes; Linux counts in kilobytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
