"""The command line. Help and configuration errors import neither JAX nor any environment."""

import argparse
import csv
import dataclasses
import difflib
import errno
import hashlib
import importlib.metadata
import math
import os
import platform
import secrets
import shlex
import signal
import socket
import sys
import threading
import time
import traceback
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

import platformdirs

from jaxddpg import config
from jaxddpg.cli import process
from jaxddpg.config import ConfigError
from jaxddpg.runs import distributed as hosts
from jaxddpg.settings import Experiment


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without a page of usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            # What follows an unknown option may be its value, such as -1.
            named = [token for token in unknown if token[:1] == "-" and token.lstrip("-")[:1].isalpha()] or unknown
            raise ConfigError([self._unknown(token) for token in named])
        return options, unknown

    def _unknown(self, token: str) -> str:
        """Says that there is no such option or argument, and which is meant where that can be guessed."""
        kind = "option" if token.startswith("-") else "argument"
        given, equals, value = token.partition("=")
        name = given.lstrip("-").replace("-", "_")
        settings = config.by_last_part() if self.get_default("takes_settings") else {}
        flags = {last: [f"--{path}" for path in paths] for last, paths in settings.items()}
        flags |= {option.lstrip("-").replace("-", "_"): [option] for option in self._option_string_actions}
        last = name.rpartition(".")[2]
        near = [last] if last in flags else difflib.get_close_matches(last, flags, n=1, cutoff=0.6)
        found = [flag for key in near for flag in flags[key]]
        exact = [flag for flag in found if flag == f"--{name}"]
        guessed = exact or (found and (kind == "option" or equals))
        meant = " or ".join(f"{flag}{equals}{value}" for flag in exact or found)
        return (
            f"unknown {kind} {shlex.quote(token)}; {f'did you mean {meant}?' if guessed else f'see {self.prog} --help'}"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0 done, 1 failed, 2 bad input, 130 or 143 stopped by a signal."""
    try:
        with process.prepared(_compilation_cache()):
            return _run(sys.argv[1:] if arguments is None else arguments)
    except FileNotFoundError:
        print("error: the working directory no longer exists; change to one that does", file=sys.stderr)
        return 2


def _run(arguments: Sequence[str]) -> int:
    previous = signal.signal(signal.SIGINT, signal.SIG_DFL)  # JAX loses an exception raised in its callbacks
    try:
        tokens, overrides = _split(arguments)
        options = _parser().parse_args(tokens, argparse.Namespace(arguments=arguments))
        if overrides and not options.takes_settings:
            raise ConfigError([f"--{path} is a setting of `jaxddpg train`, `sweep` and `resume`" for path in overrides])
        return options.command(options, overrides)
    except ConfigError as error:
        return _refused(error)
    except OSError as error:
        print(f"error: {f'{error.filename}: ' if error.filename else ''}{error.strerror or error}", file=sys.stderr)
        return 1 if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EPIPE) else 2
    except RuntimeError as error:  # JAX's, which may not be imported
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print("error: there is not enough memory for this; ask for less", file=sys.stderr)
        return 2
    finally:
        signal.signal(signal.SIGINT, previous)


def _refused(error: ConfigError) -> int:
    """Prints what is wrong with the input, and returns the exit code."""
    for fault in error.faults:
        print(f"error: {fault}", file=sys.stderr)
    return 2


def _compilation_cache() -> dict[str, str]:
    """The variables by which JAX, not yet imported, keeps what it compiles in the user's cache directory, so that a
    program is compiled once on a machine."""
    # A program for one processor may not run on another, which may share the directory.
    description = Path("/proc/cpuinfo")
    lines = description.read_text().splitlines() if description.exists() else []
    processor = [
        platform.machine(),
        platform.processor(),
        *(line for line in lines if line.startswith(("model name", "flags", "Features", "CPU "))),
    ]
    name = hashlib.sha256("".join(sorted(set(processor))).encode()).hexdigest()[:8]
    path = platformdirs.user_cache_path("jaxddpg") / f"jax-{importlib.metadata.version('jax')}-{name}"
    return {"JAX_COMPILATION_CACHE_DIR": str(path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


def _import_jax() -> None:
    """Imports JAX, which reads its variables then; ConfigError where one is not what it may be."""
    try:
        import jax  # noqa: F401
    except ValueError as error:
        raise ConfigError([f"JAX cannot start: {config.first_line(error)}; correct or unset that variable"]) from error


def _train(options: argparse.Namespace, overrides: dict[str, str]) -> int:
    """`jaxddpg train` and `jaxddpg sweep`, which differ in whether settings are swept."""
    short = {"num-seeds": ("population.num_seeds", options.num_seeds), "seed": ("population.seed", options.seed)}
    given = {flag: (path, value) for flag, (path, value) in short.items() if value is not None}
    if twice := [
        f"--{flag} is {value}, but --{path} is {overrides[path]}; use one of the two"
        for flag, (path, value) in given.items()
        if path in overrides
    ]:
        raise ConfigError(twice)
    overrides |= dict(given.values())
    experiment = config.read(options.config, overrides)
    if options.print_config:
        print(config.dump(experiment), end="")
        return 0
    if experiment.population.sweep and not options.sweep:
        raise ConfigError(["population.sweep names settings to sweep; `jaxddpg sweep` does that"])
    if options.sweep and not experiment.population.sweep:
        raise ConfigError(["population.sweep is {}, but must name what to sweep, such as {noise.scale: [0.1, 0.2]}"])
    if options.run_dir == "":
        raise ConfigError(["--run-dir is empty; name a directory, or leave --run-dir out"])
    directory = Path(options.run_dir) if options.run_dir else _new_directory(options.config.stem)
    if options.distributed and not options.run_dir:
        raise ConfigError(["--distributed needs a --run-dir, the same for all processes"])
    if options.sweep:
        return _learn(options, experiment, directory, lambda room, **how: room.sweep(experiment, directory, **how))
    return _learn(options, experiment, directory, lambda room, **how: [room.run(experiment, directory, **how)])


def _resume(options: argparse.Namespace, changes: dict[str, str]) -> int:
    experiment, _ = config.extended(options.run, changes)

    def go(room: Any, **how: Any) -> list[Any]:
        if hosts.of_first((options.run / config.SWEEP).exists):
            return room.resume_sweep(options.run, changes, **how)
        return [room.resume(options.run, changes, **how)]

    return _learn(options, experiment, options.run, go)


def _learn(options: argparse.Namespace, experiment: Experiment, directory: Path, go: Callable[..., Any]) -> int:
    """Starts a run or continues one, or several, and reports the result."""
    rendezvous = _rendezvous(options)
    if rendezvous and not options.child:
        return hosts.supervise(
            options.arguments, rendezvous.seconds, f"`jaxddpg resume {directory}` continues from the newest checkpoint"
        )
    if options.child:
        sys.stdout, sys.stderr = (
            os.fdopen(int(descriptor), "w", 1, errors="backslashreplace") for descriptor in options.child.split(",")
        )
    if not options.quiet:
        # Before the seconds that importing JAX and the environments takes.
        print(f"{experiment.environment.name}: starting", file=sys.stderr, flush=True)
    _import_jax()
    with _Signals(from_parent=bool(options.child)) as signals:
        if not rendezvous:
            return _trained(options, experiment, directory, go, signals)
        code = None
        try:
            given = {"the command": options.arguments[0], "the run directory": str(directory), "--debug": options.debug}
            hosts.join(rendezvous, given | config.learning(experiment) | config.harmless(experiment))
            signals.training = True
            code = _trained(options, experiment, directory, go, signals)
        except ConfigError as error:
            code = _refused(error)
        except Exception:
            traceback.print_exc(file=sys.__stderr__)  # to what JAX's libraries wrote, whose end the parent shows
        hosts.leave(code)


def _trained(
    options: argparse.Namespace,
    experiment: Experiment,
    directory: Path,
    go: Callable[..., Any],
    signals: "_Signals",
) -> int:
    """As `_learn`, in the process that trains."""
    from jaxddpg.runs import run as room

    first = hosts.is_first()
    quiet = options.quiet or not first
    try:
        with _debugging() if options.debug else nullcontext():
            results = go(room, quiet=quiet, stopping=lambda: bool(signals.received))
    except room.RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except FloatingPointError as error:
        remedy = "without --debug the run reports the member, the env step and what was not finite"
        print(f"error: {config.first_line(error)}; {remedy}", file=sys.stderr)
        return 1
    summaries = [result.summary for result in results]
    return _tell(experiment, directory, summaries, quiet, first, hosts.largest(signals.received))


@contextmanager
def _debugging() -> Iterator[None]:
    """Has JAX stop at the first NaN, and at a key that is used twice."""
    import jax

    with jax.debug_nans(True), jax.debug_key_reuse(True):
        yield


def _tell(
    experiment: Experiment,
    directory: Path,
    summaries: Sequence[dict[str, Any]],
    quiet: bool,
    first: bool,
    received: int,
) -> int:
    """Says what came of runs, and gives the exit code; of several processes the `first` speaks for all. `received` is
    the signal that ended them, if one did."""
    import numpy as np

    from jaxddpg.report import console as reporting
    from jaxddpg.runs import run as room

    members = [member for summary in summaries for member in summary["members"]]
    returns = np.array([member["final_return"] for member in members])
    total = {
        name: sum(summary[name] for summary in summaries)
        for name in ("env_steps_total", "updates_total", "wall_seconds", "compile_seconds")
    }
    variants = any(summary["variants"] for summary in summaries)
    total_members = experiment.population.num_members
    share = f" of {len(members)} of the {total_members} members" if len(members) < total_members else ""
    outcome = f"IQM of the final returns{share} {reporting.mean_return(returns)}"
    if experiment.population.selection.method != "none":
        chosen = members[summaries[0]["chosen"]]
        # The best of several by this very measure: what it is worth, others must say.
        outcome = f"best in the end is the member of {reporting.named(chosen)}; `jaxddpg evaluate` measures it afresh"
    reporting.print_table(
        f"{experiment.environment.name}: {'IQM of the final returns, ' * variants}{experiment.evaluation.num_episodes} "
        "noiseless episodes per seed",
        _by_variant(summaries) if variants else _by_seed(members, summaries[0]["chosen"]),
        "\n".join(
            [
                # Of all variants together it would say nothing.
                *([] if variants else [outcome]),
                f"{total['env_steps_total']:,} env steps and {total['updates_total']:,} updates in "
                f"{total['wall_seconds']:.0f} s, after {total['compile_seconds']:.1f} s of compiling",
                f"run directory: {directory}",
            ]
        ),
        quiet,
    )
    halted = room.halted(experiment, members)
    epochs = min(summary["epochs"] for summary in summaries)
    ended = len(members) == experiment.population.num_members and epochs == experiment.training.num_epochs
    if received and not halted and not ended:
        print(f"stopped after epoch {epochs}; `jaxddpg resume {directory}` continues", file=sys.stderr)
        return 128 + received
    diverged = [member for member in members if member["diverged_by"]]
    for member in diverged if first else ():
        print(reporting.divergence(member), file=sys.stderr)
    unmeasured = [sentence for member in members if (sentence := reporting.unmeasured(member))]
    for sentence in unmeasured if first else ():
        print(f"warning: in the end, {sentence}", file=sys.stderr)
    if halted:
        remedy = "lower the learning rates, bound max_grad_norm, or look into the environment"
        if all(member.get("diverged_in") for member in diverged):
            remedy = "look into the environment, whose numbers are not finite"
        print(f"error: {len(diverged)} of {len(members)} members diverged; {remedy}", file=sys.stderr)
        return 1
    return _measured(returns, unmeasured)


def _measured(returns: Any, unmeasured: Sequence[str]) -> int:
    """The exit code of evaluations with these returns [M]: 1, with a sentence, where none is finite, and not only since
    members diverged."""
    if not unmeasured or any(map(math.isfinite, returns)):
        return 0
    print(
        f"error: the evaluations of {len(unmeasured)} of {len(returns)} members are not finite, and no other member "
        "has a return; look into the environment",
        file=sys.stderr,
    )
    return 1


def _rendezvous(options: argparse.Namespace) -> hosts.Rendezvous | None:
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
        raise ConfigError(["--coordinator, --num-processes and --process-id are given only together"])
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
    return hosts.Rendezvous(*given, seconds)


def _by_seed(members: Sequence[dict[str, Any]], chosen: int | None) -> list[dict[str, Any]]:
    from jaxddpg.report import console as reporting

    names = config.brief(name for name in members[0] if "." in name)
    return [
        {names[path]: config.text(member[path]) for path in names}
        | {
            "seed": member["seed"],
            "final return": "diverged" if member["diverged_by"] else member["final_return"],
            "best of all epochs": member["best_return"],
            "in epoch": member["best_epoch"],
        }
        | ({"": "best" if index == chosen else reporting.standing(member)} if "parent" in member else {})
        for index, member in enumerate(members)
    ]


def _by_variant(summaries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for variant in (variant for summary in summaries for variant in summary["variants"]):
        *values, iqm, (low, high) = variant.values()
        names = config.brief([*variant][: len(values)])
        named = {name: config.text(value) for name, value in zip(names.values(), values, strict=True)}
        rows.append(named | {"IQM": iqm, "from": low, "to (95 %)": high})
    if sum(len(summary["members"]) for summary in summaries) == len(rows):  # of one seed there is no interval
        rows = [{name: value for name, value in row.items() if name not in ("from", "to (95 %)")} for row in rows]
    return rows


def _evaluate(options: argparse.Namespace, _: dict[str, str]) -> int:
    config.of_run(options.run)  # a fault of the input does not wait for JAX
    path = options.output or options.run / "evaluation.csv"
    config.check_output(path)
    _import_jax()
    import numpy as np

    from jaxddpg.report import console as reporting
    from jaxddpg.runs.load import evaluate

    rows = evaluate(options.run, options.num_episodes, options.seed, options.epoch)
    with path.open("w", newline="") as file:  # before the words, whose reader may have gone
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    returns = np.array([row["return_mean"] for row in rows if row.get("standing") != "rests"])
    worst = float(np.nan_to_num(returns, nan=-np.inf).min())
    first, last = min(row["epoch"] for row in rows), max(row["epoch"] for row in rows)
    epochs = f"epoch {first}" if first == last else f"epochs {first} to {last}"
    best = [row["return_mean"] for row in rows if row.get("standing") == "best"]
    found_best = f"; of the one that training found best {reporting.number(best[0])}" if best else ""
    reporting.print_table(
        f"{options.run}, {epochs}: {options.num_episodes} episodes per seed",
        [
            {path: config.text(value) for path, value in reporting.swept(row).items()}
            | {"seed": row["seed"], "return": "diverged" if row["diverged"] else row["return_mean"]}
            | {"deviation": row["return_std"]}
            | ({"": row["standing"]} if "standing" in row else {})
            for row in rows
        ],
        f"IQM {reporting.mean_return(returns)}, worst {reporting.number(worst)}{found_best}",
    )
    unmeasured = [sentence for row in rows if (sentence := reporting.unmeasured(row))]
    for sentence in unmeasured:
        print(f"warning: {sentence}", file=sys.stderr)
    return _measured(returns, unmeasured)


def _plot(options: argparse.Namespace, _: dict[str, str]) -> int:
    for run in options.run:
        config.whole(run)
    _import_jax()
    from jaxddpg.runs.load import plot

    if options.output is None and len(options.run) > 1:
        raise ConfigError(["several runs make a new picture; name it with --output PICTURE.png"])
    path = options.output or options.run[0] / "learning_curve.png"
    plot(options.run, path)
    print(path)
    return 0


def _report(options: argparse.Namespace, _: dict[str, str]) -> int:
    for run in options.run:
        config.whole(run)
    _import_jax()
    from jaxddpg.report import page as report
    from jaxddpg.runs.load import write_report

    command = shlex.join(["jaxddpg", "report", *map(str, options.run), "--output", str(options.output)])
    write_report(options.run, options.output, command)
    print(options.output / report.PAGE)
    return 0


def _check(options: argparse.Namespace, _: dict[str, str]) -> int:
    _import_jax()
    import jax

    from jaxddpg.check import ladder
    from jaxddpg.report import console as reporting
    from jaxddpg.runs import backend

    backend.check_devices()
    device = f"{jax.devices()[0].device_kind}, jax {jax.__version__}"
    print(f"{device}: less than a minute on a CPU ...", file=sys.stderr, flush=True)
    rungs = list(ladder())
    fallen = [f"{rung.name} ({rung.dtype})" for rung in rungs if not rung.holds]
    reporting.print_table(
        device,
        [
            {
                "rung": rung.name,
                "type": rung.dtype,
                "computed": f"{rung.computed:.4g}",
                "exact": f"{rung.exact:.4g}",
                "error": f"{rung.error:.1e}",
                "bound": f"{rung.bound:.1e}",
                "holds": "yes" if rung.holds else "NO",
            }
            for rung in rungs
        ],
        f"{len(fallen)} of {len(rungs)} rungs do not hold: {', '.join(fallen)}" if fallen else f"all {len(rungs)} hold",
    )
    return 1 if fallen else 0


def _render(options: argparse.Namespace, _: dict[str, str]) -> int:
    config.of_run(options.run)  # a fault of the input does not wait for JAX
    _import_jax()
    from jaxddpg.runs.load import render

    path = options.output or options.run / "rollout.gif"
    render(options.run, path, options.member, options.seed, options.epoch)
    print(path)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="jaxddpg",
        description="Deterministic policy gradients in JAX: whole populations of agents, compiled.",
        allow_abbrev=False,
    )
    parser.set_defaults(takes_settings=False)
    parser.add_argument("--version", action="version", version=importlib.metadata.version("jaxddpg"))
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    for name, brief, description in (
        ("train", "run an experiment", "Runs the experiment of a YAML file."),
        (
            "sweep",
            "run an experiment with many values of its settings",
            "Runs the experiment of a YAML file with every variant of the settings that its population.sweep names, "
            "each with all seeds: as one compiled program where the settings are numbers that it takes as input.",
        ),
    ):
        train = commands.add_parser(
            name,
            help=brief,
            description=description,
            epilog=_settings_help(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        train.add_argument("config", metavar="CONFIG", type=Path, help="a YAML file, such as configs/pendulum.yaml")
        train.add_argument("--num-seeds", metavar="N", help="as --population.num_seeds")
        train.add_argument("--seed", metavar="S", help="the first seed, as --population.seed")
        train.add_argument("--run-dir", metavar="DIR", help="where to leave it (default: a new one below runs/)")
        train.add_argument("--quiet", action="store_true", help="print nothing but errors")
        train.add_argument("--print-config", action="store_true", help="print the whole experiment as YAML and end")
        train.add_argument("--debug", action="store_true", help="stop at the first NaN or reused key (slow)")
        _add_distributed(train)
        train.set_defaults(command=_train, sweep=name == "sweep", takes_settings=True)

    whose: Any = {
        "metavar": "E",
        "type": lambda text: int(text) if text.isdecimal() else text,
        "default": "newest",
        "help": "of which policies: newest (default), best of each member, or a number",
    }
    resume = commands.add_parser(
        "resume",
        help="go on with a run that was interrupted, or with more epochs",
        description="Goes on with a run from its newest sound checkpoint, as if it was never interrupted. Settings "
        "that do not alter what is learned may be changed, such as --training.num_epochs.",
        allow_abbrev=False,
    )
    resume.add_argument("run", metavar="RUN", type=Path, help="a run directory")
    resume.add_argument("--quiet", action="store_true", help="print nothing but errors")
    resume.add_argument("--debug", action="store_true", help="stop at the first NaN or reused key (slow)")
    _add_distributed(resume)
    resume.set_defaults(command=_resume, takes_settings=True)

    evaluate = commands.add_parser("evaluate", help="measure the policies of a run", allow_abbrev=False)
    evaluate.add_argument("run", metavar="RUN", type=Path, help="a run directory")
    evaluate.add_argument("--epoch", **whose)
    evaluate.add_argument("--num-episodes", metavar="N", type=int, default=100, help="per member (default 100)")
    evaluate.add_argument("--seed", metavar="S", type=int, default=0, help="of the episodes (default 0)")
    evaluate.add_argument("--output", metavar="CSV", type=Path, help="default: evaluation.csv in the run")
    evaluate.set_defaults(command=_evaluate)

    plot = commands.add_parser("plot", help="draw the learning curves of runs", allow_abbrev=False)
    plot.add_argument("run", metavar="RUN", type=Path, nargs="+", help="run directories")
    plot.add_argument("--output", metavar="PICTURE", type=Path, help="of one run: by default its learning_curve.png")
    plot.set_defaults(command=_plot)

    report = commands.add_parser("report", help="compare runs and sweeps, with tables and pictures", allow_abbrev=False)
    report.add_argument("run", metavar="RUN", type=Path, nargs="+", help="directories of runs and sweeps")
    report.add_argument("--output", metavar="DIR", type=Path, default=Path("report"), help="default: report")
    report.set_defaults(command=_report)

    render = commands.add_parser("render", help="draw an episode of a final policy as a GIF", allow_abbrev=False)
    render.add_argument("run", metavar="RUN", type=Path, help="a run directory")
    render.add_argument("--epoch", **whose)
    render.add_argument("--member", metavar="K", type=int, default=0, help="whose policy, from 0 (default 0)")
    render.add_argument("--seed", metavar="S", type=int, default=0, help="of the episode (default 0)")
    render.add_argument("--output", metavar="PICTURE", type=Path, help="default: rollout.gif in the run")
    render.set_defaults(command=_render)

    check = commands.add_parser("check", help="compare this machine's results with known answers", allow_abbrev=False)
    check.set_defaults(command=_check)
    return parser


def _add_distributed(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("several processes, on the devices of which the members train together")
    group.add_argument(
        "--distributed", action="store_true", help="be one of them; SLURM and its like tell which, or the flags below"
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where they meet, served by process 0")
    group.add_argument("--num-processes", metavar="N", type=int, help="how many there are")
    group.add_argument("--process-id", metavar="K", type=int, help="which of them this is, from 0")
    group.add_argument("--meet-seconds", metavar="S", type=int, help="to wait until all are there (default 300)")
    group.add_argument("--child", help=argparse.SUPPRESS)  # the streams of the process that started this one


def _settings_help() -> str:
    """Every setting once; one that only some alternatives of a section have says which."""
    having: dict[tuple[str, str], list[str]] = {}
    for path, field, alternative in config.leaves():
        rule = " and ".join(f"{words} {bound}" for words, bound in field.metadata["rule"].items())
        choices = " or ".join(typing.get_args(field.type)) if typing.get_origin(field.type) is typing.Literal else ""
        default = "none" if field.default is dataclasses.MISSING else config.text(field.default)
        brackets = choices if choices == default else "; ".join(filter(None, (choices, rule, f"default {default}")))
        having.setdefault((path, f"{field.metadata['meaning']} ({brackets})"), []).append(alternative)
    lines = ["every setting is a flag, and so is a whole section, as in --noise '{scale: 0.3}':"]
    for (path, meaning), alternatives in having.items():
        only = f"  [{', '.join(alternatives)}]" if all(alternatives) else ""
        lines += [f"  --{path}{only}", f"        {meaning}"]
    return "\n".join(lines)


def _split(tokens: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Splits off settings and whole sections, `--section.name VALUE`, `--section.name=VALUE` or
    `--section '{name: value}'`, whose names argparse need not know."""
    rest, overrides, stream = [], {}, iter(tokens)
    sections = {f"--{field.name}" for field in dataclasses.fields(Experiment)}
    for token in stream:
        name, equals, value = token.partition("=")
        if not name.startswith("--") or not ("." in name or name in sections):
            rest.append(token)
            continue
        if not equals:
            value = next(stream, "--")
            if value.startswith("--"):
                raise ConfigError([f"{name} needs a value, as in {name} VALUE"])
        overrides[name.removeprefix("--").replace("-", "_")] = value
    return rest, overrides


def _new_directory(name: str) -> Path:
    """A name below runs/ that no run beside this one will choose."""
    return Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


class _Signals:
    """Turns the first SIGINT or SIGTERM into a wish to stop; a second one, or one before the training, ends the program
    at once.

    They are watched for by a thread: Python's own handlers wait for as long as the main thread waits for JAX. A child
    reads them from its parent, with which it ends.
    """

    def __init__(self, from_parent: bool = False) -> None:
        self.received = 0
        self.training = not from_parent
        self._from_parent = from_parent
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "_Signals":
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._previous_writer = -1 if self._from_parent else signal.set_wakeup_fd(self._writer.fileno())
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, lambda *_: None)
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if not self._from_parent:
            signal.set_wakeup_fd(self._previous_writer)
        self._writer.close()

    def _watch(self) -> None:
        while byte := os.read(0 if self._from_parent else self._reader.fileno(), 1):
            (number,) = byte
            if number not in self._previous:
                continue
            if self.received or not self.training:
                os._exit(128 + number)
            self.received = number
            # Not print: the signal may have come in the middle of one.
            os.write(
                sys.stderr.fileno() if self._from_parent else 2,
                b"\nstopping after this epoch; once more to stop at once\n",
            )
        if self._from_parent:
            os._exit(1)  # the parent has ended
        self._reader.close()
