"""The commands and their flags. Needs no JAX."""

import argparse
import difflib
import importlib.metadata
import shlex
from pathlib import Path
from typing import Any, NoReturn

from jaxddpg import config
from jaxddpg.cli import commands
from jaxddpg.cli.flags import SECTIONS, ShowHelp, add_settings, is_setting
from jaxddpg.config import ConfigError


class Parser(argparse.ArgumentParser):
    """Reports an error in one sentence, without a page of usage."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)
        self.hidden: list[tuple[str, argparse.Action, str]] = []
        """Flags that the short help leaves out, each with its topic and its text; see `ShowHelp`."""

    def hide(self, topic: str, action: argparse.Action, text: str) -> None:
        """Leaves a flag out of the help unless its topic is asked for."""
        action.help = argparse.SUPPRESS
        self.hidden.append((topic, action, text))

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        options, unknown = super().parse_known_args(args, namespace)
        settings = [token for token in unknown if is_setting(token)]
        if settings and not self.get_default("takes_settings"):
            names = [token.partition("=")[0] for token in settings]
            raise ConfigError([f"{name} is only accepted by `jaxddpg train`, `sweep` and `resume`" for name in names])
        # Custom names, such as those of environment parameters, or errors that are reported with the others.
        for token in settings:
            path, _, value = token.removeprefix("--").partition("=")
            options.overrides = options.overrides | {path: value}
        if unknown := [token for token in unknown if token not in settings]:
            # What follows an unknown option may be its value, such as -1.
            named = [token for token in unknown if token[:1] == "-" and token.lstrip("-")[:1].isalpha()] or unknown
            raise ConfigError([self._unknown(token) for token in named])
        return options, unknown

    def _unknown(self, token: str) -> str:
        """A sentence that there is no such option or argument, and which is meant where that can be guessed."""
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


def _path(text: str) -> Path:
    if not text:  # as of a variable of a shell that is not set
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(text)


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="jaxddpg",
        description="Deterministic policy gradients in JAX: whole populations of agents, compiled.",
    )
    parser.set_defaults(takes_settings=False)
    parser.add_argument("--version", action="version", version=importlib.metadata.version("jaxddpg"))
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)

    _add_training(subparsers)
    _add_reading(subparsers)
    schema = subparsers.add_parser("schema", help="print the JSON Schema of experiments, for editors")
    schema.set_defaults(command=commands.schema)
    check = subparsers.add_parser("check", help="compare this machine's results with known answers")
    check.set_defaults(command=commands.check)
    return parser


def _add_training(subparsers: Any) -> None:
    """The commands that train."""
    for name, brief, description in (
        ("train", "run an experiment", "Runs the experiment of a YAML file."),
        (
            "sweep",
            "train all variants of a sweep",
            "Trains every variant defined by population.sweep in a YAML file, each with all seeds. Variants that "
            "differ only in traced settings share one compiled program.",
        ),
    ):
        train = _add_command_with_settings(subparsers, name, "CONFIG", brief, description)
        train.add_argument("config", metavar="CONFIG", type=_path, help="a YAML file, such as configs/pendulum.yaml")
        train.add_argument("--num-seeds", metavar="N", help="number of seeds; same as --population.num_seeds")
        train.add_argument("--seed", metavar="S", help="the first seed, as --population.seed")
        train.add_argument("--run-dir", metavar="DIR", help="run directory (default: a new one under runs/)")
        train.add_argument("--print-config", action="store_true", help="print the complete experiment as YAML and exit")
        train.set_defaults(command=commands.train, sweep=name == "sweep")

    resume = _add_command_with_settings(
        subparsers,
        "resume",
        "RUN",
        "resume an interrupted run or sweep, or extend it with more epochs",
        "Continues a run from its newest valid checkpoint, as if it had never been interrupted. Settings that do not "
        "affect learning, such as --training.num_epochs, may be changed.",
    )
    resume.add_argument("run", metavar="RUN", type=_path, help="a run directory")
    resume.set_defaults(command=commands.resume)


def _add_command_with_settings(subparsers: Any, name: str, operand: str, brief: str, description: str) -> Parser:
    """A command that trains, with the flags that all of these have."""
    command: Parser = subparsers.add_parser(
        name,
        help=brief,
        description=description,
        usage=f"%(prog)s {operand} [options] [--SECTION.SETTING VALUE ...]",
        add_help=False,
    )
    topics = ", ".join(SECTIONS)
    command.add_argument(
        "-h",
        "--help",
        nargs="?",
        metavar="SECTION",
        action=ShowHelp,
        help=f"show this help; with SECTION, include its settings ({topics}) or the multi-process flags (distributed)",
    )
    command.add_argument("--help-all", nargs=0, action=ShowHelp, help="show every flag")
    command.add_argument("--quiet", action="store_true", help="print nothing but errors")
    command.add_argument("--debug", action="store_true", help="stop at the first NaN or reused key (slow)")
    command.add_argument("--profile", action="store_true", help="trace a second of training into the run directory")
    command.add_argument("--distributed", action="store_true", help="join a multi-process run")
    group = command.add_argument_group("multi-process options; SLURM and Open MPI set the first three")
    for flag, metavar, kind, text in (
        ("--coordinator", "HOST:PORT", str, "address of the coordinator, served by process 0"),
        ("--num-processes", "N", int, "number of processes"),
        ("--process-id", "K", int, "index of this process, from 0"),
        ("--meet-seconds", "S", int, "seconds to wait for all processes (default 300)"),
    ):
        command.hide("distributed", group.add_argument(flag, metavar=metavar, type=kind), text)
    group.add_argument("--child", help=argparse.SUPPRESS)  # the streams of the process that started this one
    add_settings(command)
    return command


def _add_reading(subparsers: Any) -> None:
    """The commands that read runs."""
    evaluate = _add_policies(
        subparsers, "evaluate", "evaluate the policies of a run or sweep", "run or sweep directory"
    )
    _add_seed(evaluate, "seed of the episodes")
    evaluate.add_argument(
        "--num-episodes", metavar="N", type=int, default=100, help="episodes per member (default 100)"
    )
    evaluate.add_argument(
        "--output", metavar="CSV", type=Path, help="output file (default: evaluation.csv in the run directory)"
    )
    evaluate.set_defaults(command=commands.evaluate)

    plot = subparsers.add_parser("plot", help="draw the learning curves of runs")
    plot.add_argument("run", metavar="RUN", type=_path, nargs="+", help="run directories")
    plot.add_argument(
        "--output",
        metavar="FILE",
        type=Path,
        help="output image; required for several runs (default for one run: its learning_curve.png)",
    )
    plot.set_defaults(command=commands.plot)

    report = subparsers.add_parser("report", help="compare runs and sweeps, with tables and figures")
    report.add_argument("run", metavar="RUN", type=_path, nargs="+", help="directories of runs and sweeps")
    report.add_argument(
        "--output", metavar="DIR", type=Path, default=Path("report"), help="output directory (default: report)"
    )
    report.set_defaults(command=commands.report)

    render = _add_policies(subparsers, "render", "draw an episode of a policy as a GIF", "a run directory")
    _add_seed(render, "seed of the episode")
    render.add_argument("--member", metavar="K", type=int, default=0, help="member index (default 0)")
    render.add_argument(
        "--output", metavar="FILE", type=Path, help="output file (default: rollout.gif in the run directory)"
    )
    render.set_defaults(command=commands.render)

    export = _add_policies(
        subparsers, "export", "export a policy to StableHLO (JAX), ONNX and NumPy", "a run directory"
    )
    export.add_argument(
        "--member",
        metavar="K",
        type=_number_or_word,
        default=0,
        help="member index (default 0), or all to export every member as one function",
    )
    export.add_argument(
        "--output", metavar="DIR", type=Path, help="output directory (default: policy in the run directory)"
    )
    export.set_defaults(command=commands.export)


def _add_policies(subparsers: Any, name: str, brief: str, directory: str) -> argparse.ArgumentParser:
    """Adds a command that takes policies of a run."""
    command = subparsers.add_parser(name, help=brief)
    command.add_argument("run", metavar="RUN", type=_path, help=directory)
    command.add_argument(
        "--epoch",
        metavar="E",
        type=_number_or_word,
        default="newest",
        help="checkpoint to use: newest (default), best (each member's best evaluation), or an epoch number",
    )
    return command


def _number_or_word(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text


def _add_seed(command: argparse.ArgumentParser, text: str) -> None:
    command.add_argument("--seed", metavar="S", type=int, default=0, help=f"{text} (default 0)")
