"""The terminal: progress while a run trains, and tables of results."""

import sys
import time
from collections.abc import Sequence
from typing import Self, TextIO

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

from jaxddpg.report.rows import Row, active, divergence, number, unmeasured
from jaxddpg.statistics import interquartile_mean


def _console(file: TextIO, quiet: bool) -> Console:
    """A console that prints names and paths as they are, brackets and colons included."""
    return Console(file=file, quiet=quiet, soft_wrap=True, markup=False, emoji=False, highlight=False)


class Display:
    """Progress on standard error: a live bar on a terminal that can redraw it, else a line every few seconds."""

    LINE_SECONDS = 5.0

    def __init__(self, title: str, num_epochs: int, quiet: bool = False) -> None:
        self._console = _console(sys.stderr, quiet)
        # Colors may be forced upon a pipe, and a dumb terminal cannot redraw a line.
        self._redraws = self._console.is_terminal and sys.stderr.isatty() and not self._console.is_dumb_terminal
        self._title, self._num_epochs = title, num_epochs
        self._first: tuple[int, float] | None = None
        """The first epoch seen, and when: nothing is compiled after it."""
        self._compiling = False
        self._last_line = time.perf_counter()
        self._diverged: set[int] = set()
        self._unmeasured: set[int] = set()
        # The spinner shows that the process is alive while it compiles, which can take minutes.
        self._bar = Progress(SpinnerColumn(), TextColumn("{task.description}"), BarColumn())
        self._task = self._bar.add_task("starting", total=num_epochs)
        self._status = Text(no_wrap=False, overflow="fold")
        self._live = Live(Group(self._bar, self._status), console=self._console, transient=True)

    def __enter__(self) -> Self:
        self._console.print(self._title)
        if self._redraws:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def note(self, text: str) -> None:
        self._console.print(text)

    def compiling(self, programs: Sequence[str], seconds: float | None) -> None:
        """Shows which programs are being compiled, and how many seconds all of them took last time."""
        if not programs:
            return
        text = f"compiling {', '.join(programs)}" + (f" (last time {seconds:.0f} s for all)" if seconds else "")
        self._bar.update(self._task, description=text)
        if not self._redraws and not self._compiling:
            self.note(text)
        self._compiling = True

    def epoch(self, rows: Sequence[Row]) -> None:
        rows = active(rows)
        row, now = rows[0], time.perf_counter()
        first_epoch, start = self._first = self._first or (row["epoch"], now)
        self._diverged &= {other["member"] for other in rows if other["diverged_by"]}  # others were replaced
        for other in rows:
            if other["diverged_by"] and other["member"] not in self._diverged:
                self._diverged.add(other["member"])
                self.note(f"{divergence(other)}; its last finite state is kept")
            if (sentence := unmeasured(other)) and other["member"] not in self._unmeasured:
                self.note(f"warning: after epoch {row['epoch']}, {sentence}")
        self._unmeasured = {other["member"] for other in rows if unmeasured(other)}
        iqm = float(interquartile_mean(np.array([row["eval/return_mean"] for row in rows])))
        parts = []
        if row["epoch"] > first_epoch:
            seconds = (now - start) / (row["epoch"] - first_epoch)
            parts.append(f"{seconds * (self._num_epochs - row['epoch']):.0f} s left")
        parts += [f"{row['env_steps']:,} env steps", f"IQM return {number(iqm)}"]
        if row["epoch"]:
            parts += [
                f"{row['perf/env_steps_per_second']:,.0f} env-steps/s",
                f"{row['perf/updates_per_second']:,.0f} updates/s",
            ]
        status = " | ".join(parts)
        self._bar.update(self._task, completed=row["epoch"], description=f"epoch {row['epoch']}/{self._num_epochs}")
        self._status.plain = status
        last = row["epoch"] == self._num_epochs
        if not self._redraws and (last or not row["epoch"] or now - self._last_line > self.LINE_SECONDS):
            self._last_line = now
            self.note(f"epoch {row['epoch']}/{self._num_epochs} | {status}")


def print_table(title: str, rows: Sequence[Row], summary: str = "") -> None:
    """Prints a table with a line per row, and a closing sentence, to standard output."""
    console = _console(sys.stdout, quiet=False)
    if not console.is_terminal:
        console.width = 240  # nothing is cut off in a file
    table = Table(title=title, title_justify="left", box=None, header_style="bold underline")
    for heading in rows[0]:
        words = all(isinstance(row[heading], str) for row in rows)
        table.add_column(heading, justify="left" if words else "right", overflow="fold")
    for row in rows:
        table.add_row(*(number(value) if isinstance(value, float) else str(value) for value in row.values()))
    console.print(table)
    if summary:
        console.print(summary)
