"""Where the rows of a run go: files in its directory, TensorBoard, Weights & Biases.

Loggers run on the host while the next epoch computes.
"""

import importlib.util
import json
import math
import os
import secrets
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

import jax
import numpy as np

from jaxddpg import config, settings
from jaxddpg.config import ConfigError
from jaxddpg.report.rows import METRICS, Row, active, plain_json, swept
from jaxddpg.settings import Experiment
from jaxddpg.statistics import interquartile_mean


class Callback(Protocol):
    """What a run calls after each epoch. It is a context manager, so that it is closed however the run ends."""

    def __enter__(self) -> Self: ...
    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None: ...
    def epoch(self, rows: Sequence[Row]) -> None: ...


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

        for row in active(rows):
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

        # A run that is resumed is the same one there.
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
        rows = active(rows)
        names = [name for name in rows[0] if "/" in name or ("parent" in rows[0] and "." in name)]
        log = {name: float(interquartile_mean(np.array([row[name] for row in rows]))) for name in names}
        if len(rows) > 1:
            log |= {f"member_{row['member']}/{name}": row[name] for row in rows for name in names}
        self._run.log(log | {"env_steps": rows[0]["env_steps"]}, step=rows[0]["epoch"])


class Profiler:
    """A trace by `jax.profiler` in `profile/` of the run directory, of the first second after the first row: on a CPU
    each second is some 100 MB, and all vector steps are alike."""

    SECONDS = 1.0

    def __init__(self, directory: Path) -> None:
        self._directory, self._is_over = directory / "profile", threading.Event()
        self._thread = threading.Thread(target=self._trace)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        if self._thread.ident is not None:  # it was started
            self._thread.join()

    def epoch(self, rows: Sequence[Row]) -> None:
        if self._thread.ident is None:
            self._thread.start()  # the next epoch computes already

    def _trace(self) -> None:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # its events would be most of the trace
        with jax.profiler.trace(self._directory, profiler_options=options):
            self._is_over.wait(self.SECONDS)


def of_section(experiment: Experiment, directory: Path, rows: Sequence[Row]) -> list[Callback]:
    """The loggers that an experiment asks for, which hold `rows` already or will."""
    section = experiment.reporting
    found: list[Callback] = [MetricsFile(directory, rows)]
    if section.tensorboard:
        found.append(TensorBoard(directory, rows))
    if section.wandb:
        found.append(WeightsAndBiases(directory, section.wandb_project, config.as_mapping(experiment)))
    return found


def check(section: settings.Reporting) -> None:
    """ConfigError where a logger that is asked for cannot be used."""
    wanted = {"tensorboard": ("tensorboardX", section.tensorboard), "wandb": ("wandb", section.wandb)}
    errors = [
        f"reporting.{name} is true, but {package} is not installed; install it with pip install {package}"
        for name, (package, is_wanted) in wanted.items()
        if is_wanted and importlib.util.find_spec(package) is None
    ]
    if not errors and section.wandb:
        try:
            check_wandb()
        except ValueError as error:
            errors = [f"reporting.wandb is true, but {error}"]
    if errors:
        raise ConfigError(errors)
