"""The rows of `metrics.jsonl`: one member after one epoch, a flat dict.

A name with "/" is that of a metric, one with "." that of a swept setting.
"""

import json
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from jaxddpg.statistics import best, confidence_interval, interquartile_mean

METRICS = "metrics.jsonl"


NOT_FINITE = ("diverged_by", "diverged_in", "diverged_at", "unmeasured_by")
"""The columns about non-finite values: what diverged, in which environment function and at which env step, and what was
non-finite in an evaluation."""


Row = dict[str, Any]


def swept(row: Row) -> Row:
    """The swept settings of a row, by dotted path."""
    return {name: value for name, value in row.items() if "." in name}


def identity(row: Row) -> Row:
    """What distinguishes the member of a row: its number, its seed, its swept settings."""
    return {"member": row["member"], "seed": row["seed"]} | swept(row)


def plain_json(value: Any) -> Any:
    """A value that JSON can hold: a number that is not finite is null."""
    if isinstance(value, dict):
        return {key: plain_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def number(value: float) -> str:
    """A number with five digits, whatever its size."""
    return f"{value + 0.0:.5g}" if math.isfinite(value) else "not finite"


def mean_return(returns: np.ndarray, interval: str = "95% interval ") -> str:
    """The interquartile mean of members [M], with its interval and the name of that where there is one."""
    low, high = map(float, confidence_interval(returns))
    known = len(returns) > 1 and math.isfinite(low)
    shown = f" ({interval}{number(low)} to {number(high)})" if known else ""
    return f"{number(float(interquartile_mean(returns)))}{shown}"


def active(rows: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Without the rows of members that were stopped."""
    return [dict(row) for row in rows if not _is_stopped(row)]


def best_row(rows: Sequence[Row], measure: str) -> int:
    """The index of the row whose measure is the highest, of members that were not stopped."""
    return best([math.nan if _is_stopped(row) else row[measure] for row in rows])


def _is_stopped(row: Mapping[str, Any]) -> bool:
    return row.get("parent", row["member"]) is None


def status(row: Row) -> str:
    """Whether a member of a run that selects them still trains."""
    return "stopped" if _is_stopped(row) else "active"


def describe(row: Row) -> str:
    """What distinguishes the member of a row, as part of a sentence."""
    return f"seed {row['seed']}" + "".join(f", {name} {value}" for name, value in swept(row).items())


def divergence(row: Row) -> str:
    """When and by what a member diverged, as part of a sentence."""
    source = f", from the environment's {function}" if (function := row.get("diverged_in")) else ""
    what = _not_finite(row["diverged_by"])
    return f"member with {describe(row)} diverged at env step {row['diverged_at']:,}: {what}{source}"


def unmeasured(row: Row) -> str:
    """What was not finite in the evaluation of a member that did not diverge, as a sentence; empty if nothing was."""
    cause = row.get("unmeasured_by")
    return f"{_not_finite(cause)} in the evaluation of the member with {describe(row)}" if cause else ""


def _not_finite(what: str) -> str:
    return f"{'an' if what[0] in 'aeiou' else 'a'} {what} was not finite"


def read_rows(path: Path) -> list[Row]:
    """The rows of a `metrics.jsonl` up to the first invalid line, with a warning where others follow it; none where
    there is no file."""
    rows: list[Row] = []
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return rows
    with suppress(ValueError, AttributeError, KeyError, TypeError):
        for line in lines:
            row = json.loads(line)
            int(row["epoch"] + row["member"] + row["env_steps"])
            rows.append({name: math.nan if "/" in name and value is None else value for name, value in row.items()})
    if len(rows) + 1 < len(lines):  # an interruption may leave half of a last line
        number, count = len(rows) + 1, len(lines)
        warnings.warn(
            f"line {number} of {count} of {path} is damaged; it and those after it are not used", stacklevel=2
        )
    return rows
