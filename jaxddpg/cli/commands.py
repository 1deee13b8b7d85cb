"""The CLI commands. Each takes parsed options and returns an exit code; JAX is imported lazily."""

import argparse
import atexit
import csv
import json
import os
import secrets
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from jaxddpg import config
from jaxddpg.cli.process import lasting
from jaxddpg.cli.signals import Signals
from jaxddpg.config import ConfigError, Plan
from jaxddpg.runs import distributed


def train(options: argparse.Namespace) -> int:
    """`jaxddpg train` and `jaxddpg sweep`, which differ in whether settings are swept."""
    overrides: dict[str, str] = options.overrides
    short = {"num-seeds": ("population.num_seeds", options.num_seeds), "seed": ("population.seed", options.seed)}
    given = {flag: (path, value) for flag, (path, value) in short.items() if value is not None}
    if twice := [
        f"--{flag} is {value}, but --{path} is {overrides[path]}; use one of the two"
        for flag, (path, value) in given.items()
        if path in overrides
    ]:
        raise ConfigError(twice)
    _rendezvous(options)  # an error in these flags does not wait for a run
    plan = config.read(options.config, overrides | dict(given.values()))
    if options.print_config:
        print(config.dump(plan.experiment), end="")
        return 0
    swept = plan.experiment.population.sweep
    if swept and not options.sweep:
        raise ConfigError(["population.sweep is set; use `jaxddpg sweep` instead of `jaxddpg train`"])
    if options.sweep and not swept:
        raise ConfigError(["population.sweep is empty; list the settings to sweep, e.g. {noise.scale: [0.1, 0.2]}"])
    if options.run_dir == "":
        raise ConfigError(["--run-dir is empty; pass a directory or omit the flag"])
    directory = Path(options.run_dir) if options.run_dir else _new_directory(options.config.stem)
    if options.distributed and not options.run_dir:
        raise ConfigError(["--distributed needs a --run-dir, the same for all processes"])

    def start(**how: Any) -> list[Any]:
        from jaxddpg.runs.start import run, sweep

        return sweep(plan, directory, **how) if options.sweep else [run(plan, directory, **how)]

    return _run(options, plan, directory, start)


def resume(options: argparse.Namespace) -> int:
    """`jaxddpg resume`."""
    changes = options.overrides
    plan, _ = config.read_changed(options.run, changes)

    def start(**how: Any) -> list[Any]:
        from jaxddpg.runs.start import resume, resume_sweep

        if distributed.of_first((options.run / config.SWEEP).exists):
            return resume_sweep(options.run, changes, **how)
        return [resume(options.run, changes, **how)]

    return _run(options, plan, options.run, start)


def _run(options: argparse.Namespace, plan: Plan, directory: Path, start: Callable[..., list[Any]]) -> int:
    """Starts or resumes runs, and prints their results; of several processes in a child, which this one supervises."""
    rendezvous = _rendezvous(options)
    if rendezvous and not options.child:
        remedy = f"`{config.command('resume', directory)}` continues from the newest checkpoint"
        return distributed.supervise(options.arguments, rendezvous.seconds, remedy)
    if options.child:
        sys.stdout, sys.stderr = (
            lasting(os.fdopen(int(descriptor), "w", 1, errors="backslashreplace"))
            for descriptor in options.child.split(",")
        )
    if not options.quiet:
        # Before the seconds that importing JAX and the environments takes.
        print(f"{plan.experiment.environment.name}: starting", file=sys.stderr, flush=True)
    _import_jax()
    with Signals(from_parent=bool(options.child)) as signals:
        if not rendezvous:
            return _run_here(options, plan, directory, start, signals)
        code = None
        try:
            given = {"the command": options.arguments[0], "the run directory": str(directory), "--debug": options.debug}
            distributed.join(rendezvous, given | config.all_settings(plan.experiment))
            signals.training = True
            code = _run_here(options, plan, directory, start, signals)
        except ConfigError as error:
            code = print_errors(error)
        except Exception:
            traceback.print_exc(file=sys.__stderr__)  # to what JAX's libraries wrote, whose end the parent shows
        distributed.leave(code)


def _run_here(
    options: argparse.Namespace, plan: Plan, directory: Path, start: Callable[..., list[Any]], signals: Signals
) -> int:
    """As `_run`, in the process that trains."""
    from jaxddpg.cli.results import print_results
    from jaxddpg.runs.run import RunError

    try:
        with _debugging() if options.debug else nullcontext():
            results = start(quiet=options.quiet, should_stop=lambda: bool(signals.received), profile=options.profile)
    except RunError as error:
        return print_failure(str(error))
    except FloatingPointError as error:
        remedy = "run without --debug to see which member and env step, and which value was non-finite"
        print(f"error: {config.first_line(error)}; {remedy}", file=sys.stderr)
        return 1
    for each in plan.runs if options.profile and not options.quiet and distributed.is_first() else ():
        if (place := directory / each.name / "profile").is_dir():
            how = f"open its file .trace.json.gz at https://ui.perfetto.dev, or run `xprof --logdir {place}`"
            print(f"trace in {place}: {how}", file=sys.stderr)
    received = distributed.largest(signals.received)
    return print_results(plan, directory, [result.summary for result in results], options.quiet, received)


def print_errors(error: ConfigError) -> int:
    """Prints what is wrong with the input, and returns the exit code."""
    for sentence in error.errors:
        print(f"error: {sentence}", file=sys.stderr)
    return 2


def print_failure(sentence: str) -> int:
    """Prints why a command failed, and returns the exit code."""
    print(f"error: {sentence}", file=sys.stderr)
    atexit.register(setattr, sys, "unraisablehook", lambda _: None)  # at exit JAX raises errors of callbacks again
    return 1


def _rendezvous(options: argparse.Namespace) -> distributed.Rendezvous | None:
    """Where the processes of this run meet; None where it has one."""
    given = (options.coordinator, options.num_processes, options.process_id)
    if not options.distributed:
        if any(value is not None for value in (*given, options.meet_seconds)):
            raise ConfigError(["--coordinator, --num-processes, --process-id and --meet-seconds need --distributed"])
        return None
    seconds = 300 if options.meet_seconds is None else options.meet_seconds
    if seconds < 1:
        raise ConfigError([f"--meet-seconds is {seconds}, but must be at least 1"])
    if len({value is None for value in given}) > 1:
        raise ConfigError(["--coordinator, --num-processes and --process-id must be given together"])
    if options.coordinator is not None:
        host, _, port = options.coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise ConfigError([f"--coordinator is {options.coordinator}, but must be HOST:PORT, such as node1:29500"])
        if options.num_processes < 1:
            raise ConfigError([f"--num-processes is {options.num_processes}, but must be at least 1"])
        if not 0 <= options.process_id < options.num_processes:
            raise ConfigError(
                [f"--process-id is {options.process_id}, but must be at least 0 and below {options.num_processes}"]
            )
    return distributed.Rendezvous(*given, seconds)


@contextmanager
def _debugging() -> Iterator[None]:
    """Has JAX stop at the first NaN, and at a key that is used twice."""
    import jax

    with jax.debug_nans(True), jax.debug_key_reuse(True):
        yield


def evaluate(options: argparse.Namespace) -> int:
    """`jaxddpg evaluate`."""
    config.read_run_or_sweep(options.run)  # an error in the input does not wait for JAX
    path = options.output or options.run / "evaluation.csv"
    config.check_output(path)
    _import_jax()
    from jaxddpg.cli.results import print_evaluation
    from jaxddpg.runs import load

    rows = load.evaluate(options.run, options.num_episodes, options.seed, options.epoch)
    with path.open("w", newline="") as file:  # before printing, since stdout may be a closed pipe
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return print_evaluation(options.run, rows, path)


def plot(options: argparse.Namespace) -> int:
    """`jaxddpg plot`."""
    for run in options.run:
        config.read_run_or_sweep(run)
    if options.output is None and len(options.run) > 1:
        raise ConfigError(["plotting several runs requires --output FILE.png"])
    _import_jax()
    from jaxddpg.runs import show

    path = options.output or options.run[0] / "learning_curve.png"
    show.plot(options.run, path)
    print(path)
    return 0


def report(options: argparse.Namespace) -> int:
    """`jaxddpg report`."""
    for run in options.run:
        config.read_run_or_sweep(run)
    _import_jax()
    from jaxddpg.report.console import print_table
    from jaxddpg.report.page import PAGE
    from jaxddpg.runs.show import write_report

    command = config.command("report", *options.run, "--output", options.output)
    tables = write_report(options.run, options.output, command)
    for environment, rows in tables.items():
        # The page has all columns; 80 characters of a terminal have room for these, and for what was lost.
        names = ["method", "seeds", "IQM [95%]", "worst and best seed"]
        names += [name for name in ("diverged", "not finite") if any(row[name] for row in rows)]
        print_table(environment, [{name: row[name] for name in names} for row in rows])
    print(options.output / PAGE)
    return 0


def schema(options: argparse.Namespace) -> int:
    """`jaxddpg schema`."""
    print(json.dumps(config.schema(), indent=1))
    return 0


def check(options: argparse.Namespace) -> int:
    """`jaxddpg check`."""
    _import_jax()
    import jax

    from jaxddpg.check import rates, self_test
    from jaxddpg.report.console import print_table
    from jaxddpg.runs import backend

    backend.check_devices()
    device = f"{jax.devices()[0].device_kind}, jax {jax.__version__}"
    print(f"running self-tests on {device} (less than a minute on CPU) ...", file=sys.stderr, flush=True)
    checks = list(self_test())
    failed = [f"{each.name} ({each.dtype})" for each in checks if not each.holds]
    print_table(
        device,
        [
            {
                "check": each.name,
                "type": each.dtype,
                "computed": f"{each.computed:.4g}",
                "exact": f"{each.exact:.4g}",
                "error": f"{each.error:.1e}",
                "tolerance": f"{each.bound:.1e}",
                "holds": "yes" if each.holds else "NO",
            }
            for each in checks
        ],
        f"{len(failed)} of {len(checks)} checks failed: {', '.join(failed)}"
        if failed
        else f"all {len(checks)} checks passed",
    )
    full, reduced = (rates.rate(precision) / 1e9 for precision in ("float32", "bfloat16"))
    print(f"hidden layers: {full:,.0f} GFLOP/s with agent.precision float32, {reduced:,.0f} with bfloat16")
    return 1 if failed else 0


def render(options: argparse.Namespace) -> int:
    """`jaxddpg render`."""
    config.read_run(options.run)  # an error in the input does not wait for JAX
    _import_jax()
    from jaxddpg.runs import load

    path = options.output or options.run / "rollout.gif"
    load.render(options.run, path, options.member, options.seed, options.epoch)
    print(path)
    return 0


def export(options: argparse.Namespace) -> int:
    """`jaxddpg export`."""
    config.read_run(options.run)  # an error in the input does not wait for JAX
    _import_jax()
    from jaxddpg.runs.export import README, export

    directory = options.output or options.run / "policy"
    export(options.run, directory, options.member, options.epoch)
    print(directory / README)
    return 0


def _import_jax() -> None:
    """Imports JAX, which reads its variables then; ConfigError where one is not what it may be."""
    try:
        import jax  # noqa: F401
    except ValueError as error:
        raise ConfigError([f"JAX failed to import: {config.first_line(error)}; fix or unset that variable"]) from error


def _new_directory(name: str) -> Path:
    """A unique new directory under runs/."""
    return Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
