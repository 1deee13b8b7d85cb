"""Where results go: a live display, files in the run directory, TensorBoard, Weights & Biases.

A row is one member after one epoch, a flat dict. Everything here runs on the host, while the next epoch computes.
"""

import json
import math
import os
import secrets
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from jaxddpg.statistics import best, confidence_interval, interquartile_mean

METRICS = "metrics.jsonl"
FAULTS = ("diverged_by", "diverged_in", "diverged_at", "unmeasured_by")
"""What a row says of numbers that are not finite: by what a member diverged, in which function of the environment and
at which env step, and what was not finite in its evaluation."""
Row = dict[str, Any]


def swept(row: Row) -> Row:
    """What a row tells of swept settings, by dotted path."""
    return {name: value for name, value in row.items() if "." in name}


def identity(row: Row) -> Row:
    """What tells the member of a row from others."""
    return {"member": row["member"], "seed": row["seed"]} | swept(row)


class Reporter(Protocol):
    """A place for results. Used as a context manager, so that it is closed however the run ends."""

    def __enter__(self) -> Self: ...
    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None: ...
    def epoch(self, rows: Sequence[Row]) -> None: ...


def plain_json(value: Any) -> Any:
    """A value that JSON can hold: a number that is not finite is null."""
    if isinstance(value, dict):
        return {key: plain_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def number(value: float) -> str:
    """A number to be read: five digits, whatever its size."""
    return f"{value + 0.0:.5g}" if math.isfinite(value) else "not finite"


def mean_return(returns: np.ndarray) -> str:
    """The interquartile mean of members [M], with its interval where there is one, as part of a sentence."""
    low, high = map(float, confidence_interval(returns))
    known = len(returns) > 1 and math.isfinite(low)
    interval = f" (95 % interval {number(low)} to {number(high)})" if known else ""
    return f"{number(float(interquartile_mean(returns)))}{interval}"


def running(rows: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Without those of members that rest."""
    return [dict(row) for row in rows if not _rests(row)]


def leader(rows: Sequence[Row], measure: str) -> int:
    """The place of the row whose measure is the highest, of members that do not rest."""
    return best([math.nan if _rests(row) else row[measure] for row in rows])


def _rests(row: Mapping[str, Any]) -> bool:
    return row.get("parent", row["member"]) is None


def standing(row: Row) -> str:
    """Whether a member of a run that selects them goes on."""
    return "rests" if _rests(row) else "runs"


def named(row: Row) -> str:
    """What tells the member of a row from others, as part of a sentence."""
    return f"seed {row['seed']}" + "".join(f", {name} {value}" for name, value in swept(row).items())


def divergence(row: Row) -> str:
    """What became of a diverged member, as part of a sentence."""
    source = f", from the environment's {function}" if (function := row.get("diverged_in")) else ""
    what = _not_finite(row["diverged_by"])
    return f"the member of {named(row)} diverged at env step {row['diverged_at']:,}: {what}{source}"


def unmeasured(row: Row) -> str:
    """What was not finite in the evaluation of a member that did not diverge, as a sentence; empty if nothing was."""
    cause = row.get("unmeasured_by")
    return f"{_not_finite(cause)} in the evaluation of the member of {named(row)}" if cause else ""


def _not_finite(what: str) -> str:
    return f"{'an' if what[0] in 'aeiou' else 'a'} {what} was not finite"


def _console(file: TextIO, quiet: bool) -> Console:
    """A console that prints names and paths as they are, brackets and colons included."""
    return Console(file=file, quiet=quiet, soft_wrap=True, markup=False, emoji=False, highlight=False)


def read_rows(path: Path) -> list[Row]:
    """The rows of a `metrics.jsonl` up to the first line that is none; none where there is no file."""
    rows: list[Row] = []
    with suppress(OSError, ValueError, AttributeError, KeyError, TypeError):
        for line in path.read_bytes().splitlines():
            row = json.loads(line)
            int(row["epoch"] + row["member"] + row["env_steps"])
            rows.append({name: math.nan if "/" in name and value is None else value for name, value in row.items()})
    return rows


class MetricsFile:
    """`metrics.jsonl`, one line per row, flushed after each epoch; of what the file held, `rows` are kept."""

    def __init__(self, directory: Path, rows: Sequence[Row] = ()) -> None:
        self._path, self._rows = directory / METRICS, rows

    def __enter__(self) -> Self:
        partial = self._path.with_name(f"{METRICS}.partial")
        self._file: TextIO = partial.open("w")
        self.epoch(self._rows)
        partial.replace(self._path)  # which stays open
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def epoch(self, rows: Sequence[Row]) -> None:
        try:
            self._file.writelines(json.dumps(plain_json(row), allow_nan=False) + "\n" for row in rows)
            self._file.flush()
            os.fsync(self._file.fileno())  # a checkpoint is of use only with the metrics up to it
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error


class TensorBoard:
    """Event files, one folder per member, by tensorboardX; of what they held, what lies after `rows` is dropped."""

    def __init__(self, directory: Path, rows: Sequence[Row] = ()) -> None:
        self._directory = directory
        self._purge_step = rows[-1]["env_steps"] + 1 if rows else None
        self._writers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self._writers.values():
            writer.close()

    def epoch(self, rows: Sequence[Row]) -> None:
        from tensorboardX import SummaryWriter

        for row in running(rows):
            member = row["member"]
            selected = "parent" in row
            if member not in self._writers:
                values = "".join(f"{name}={value}," for name, value in swept(row).items())
                values = f"member_{member}," if selected else values
                path = self._directory / "tensorboard" / f"{values}seed_{row['seed']}"
                self._writers[member] = SummaryWriter(str(path), purge_step=self._purge_step)
            for name, value in row.items():
                # There is no point of what is not finite, such as the return of an epoch in which no episode ended.
                if ("/" in name and math.isfinite(value)) or (selected and "." in name):
                    self._writers[member].add_scalar(name, value, row["env_steps"])


def check_wandb() -> None:
    """Raises ValueError where Weights & Biases would log to its server, but cannot."""
    import wandb

    if wandb.setup().settings.mode in ("offline", "dryrun", "disabled"):
        return
    remedy = "run `wandb login`, or set WANDB_MODE=offline"
    try:
        has_key = wandb.login(prompt=False, timeout=10)
    except wandb.errors.Error as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise ValueError(f"Weights & Biases cannot be used: {reason}; {remedy}") from error
    if not has_key:
        raise ValueError(f"Weights & Biases has no API key; {remedy}")


class WeightsAndBiases:
    """One Weights & Biases run: each metric's interquartile mean, and its members under `member_<k>/`."""

    def __init__(self, directory: Path, project: str, config: dict[str, Any]) -> None:
        self._arguments: dict[str, Any] = {
            "dir": str(directory),
            "project": project,
            "config": config,
            "name": directory.name,
            "resume": "allow",
        }
        self._identity = directory / "wandb_id.txt"

    def __enter__(self) -> Self:
        import wandb

        # A run that goes on is the same one there.
        if not self._identity.exists():
            self._identity.write_text(secrets.token_hex(8))
        try:
            self._run = wandb.init(**self._arguments, id=self._identity.read_text())
        except wandb.errors.Error as error:
            raise OSError(f"Weights & Biases cannot be used: {error}".split("\n")[0]) from error
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._run.finish(exit_code=1 if kind else 0)

    def epoch(self, rows: Sequence[Row]) -> None:
        rows = running(rows)
        names = [name for name in rows[0] if "/" in name or ("parent" in rows[0] and "." in name)]
        log = {name: float(interquartile_mean(np.array([row[name] for row in rows]))) for name in names}
        if len(rows) > 1:
            log |= {f"member_{row['member']}/{name}": row[name] for row in rows for name in names}
        self._run.log(log | {"env_steps": rows[0]["env_steps"]}, step=rows[0]["epoch"])


class Display:
    """The terminal: a live bar where there is one to redraw, else a line now and then."""

    LINE_SECONDS = 5.0

    def __init__(self, title: str, num_epochs: int, quiet: bool = False) -> None:
        self._console = _console(sys.stderr, quiet)
        # Colours may be forced upon a pipe, and a dumb terminal cannot redraw a line.
        self._redraws = self._console.is_terminal and sys.stderr.isatty() and not self._console.is_dumb_terminal
        self._title, self._num_epochs = title, num_epochs
        self._first: tuple[int, float] | None = None
        """The first epoch seen, and when: nothing is compiled after it."""
        self._last_line = time.perf_counter()
        self._diverged: set[int] = set()
        self._unmeasured: set[int] = set()
        self._bar = Progress(TextColumn("{task.description}"), BarColumn())
        self._task = self._bar.add_task("compiling ...", total=num_epochs)
        self._status = Text(overflow="ellipsis", no_wrap=True)
        self._live = Live(Group(self._bar, self._status), console=self._console, transient=True)

    def __enter__(self) -> Self:
        self._console.print(self._title)
        if self._redraws:
            self._live.start()
        else:
            self._console.print("compiling ...")
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def note(self, text: str) -> None:
        self._console.print(text)

    def epoch(self, rows: Sequence[Row]) -> None:
        rows = running(rows)
        row, now = rows[0], time.perf_counter()
        first_epoch, start = self._first = self._first or (row["epoch"], now)
        self._diverged &= {other["member"] for other in rows if other["diverged_by"]}  # others took their places
        for other in rows:
            if other["diverged_by"] and other["member"] not in self._diverged:
                self._diverged.add(other["member"])
                self.note(f"{divergence(other)}; its last finite state is kept")
            if (sentence := unmeasured(other)) and other["member"] not in self._unmeasured:
                self.note(f"warning: after epoch {row['epoch']}, {sentence}")
        self._unmeasured = {other["member"] for other in rows if unmeasured(other)}
        iqm = float(interquartile_mean(np.array([row["eval/return_mean"] for row in rows])))
        parts = [f"{row['env_steps']:,} env steps", f"IQM return {number(iqm)}"]
        if row["epoch"]:
            parts += [
                f"{row['perf/env_steps_per_second']:,.0f} env-steps/s",
                f"{row['perf/updates_per_second']:,.0f} updates/s",
            ]
        if row["epoch"] > first_epoch:
            seconds = (now - start) / (row["epoch"] - first_epoch)
            parts.append(f"{seconds * (self._num_epochs - row['epoch']):.0f} s left")
        status = " | ".join(parts)
        self._bar.update(self._task, completed=row["epoch"], description=f"epoch {row['epoch']}/{self._num_epochs}")
        self._status.plain = status
        last = row["epoch"] == self._num_epochs
        if not self._redraws and (last or not row["epoch"] or now - self._last_line > self.LINE_SECONDS):
            self._last_line = now
            self.note(f"epoch {row['epoch']}/{self._num_epochs} | {status}")


def print_table(title: str, rows: Sequence[Row], summary: str, quiet: bool = False) -> None:
    """A table with a line per row and a closing sentence, on standard output."""
    console = _console(sys.stdout, quiet)
    if not console.is_terminal:
        console.width = 240  # nothing is cut off in a file
    table = Table(title=title, title_justify="left", box=None, header_style="bold underline")
    for heading in rows[0]:
        words = all(isinstance(row[heading], str) for row in rows)
        table.add_column(heading, justify="left" if words else "right")
    for row in rows:
        table.add_row(*(number(value) if isinstance(value, float) else str(value) for value in row.values()))
    console.print(table)
    console.print(summary)
