"""The commands and their flags. Needs no JAX."""

import argparse
import dataclasses
import difflib
import importlib.metadata
import shlex
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from jaxddpg import config
from jaxddpg.cli import commands
from jaxddpg.config import ConfigError
from jaxddpg.settings import Experiment


class Parser(argparse.ArgumentParser):
    """Reports an error in one sentence, without a page of usage."""

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


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="jaxddpg",
        description="Deterministic policy gradients in JAX: whole populations of agents, compiled.",
        allow_abbrev=False,
    )
    parser.set_defaults(takes_settings=False)
    parser.add_argument("--version", action="version", version=importlib.metadata.version("jaxddpg"))
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)

    _add_training(subparsers)
    _add_reading(subparsers)
    check = subparsers.add_parser("check", help="compare this machine's results with known answers", allow_abbrev=False)
    check.set_defaults(command=commands.check)
    return parser


def _add_training(subparsers: Any) -> None:
    """The commands that train."""
    for name, brief, description in (
        ("train", "run an experiment", "Runs the experiment of a YAML file."),
        (
            "sweep",
            "run an experiment with many values of its settings",
            "Runs the experiment of a YAML file with every variant of the settings that its population.sweep names, "
            "each with all seeds: as one compiled program where the settings are numbers that it takes as input.",
        ),
    ):
        train = subparsers.add_parser(
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
        train.set_defaults(command=commands.train, sweep=name == "sweep", takes_settings=True)

    resume = subparsers.add_parser(
        "resume",
        help="continue a run or a sweep that was interrupted, or with more epochs",
        description="Continues a run from its newest valid checkpoint, as if it had never been interrupted. Settings "
        "that do not alter what is learned may be changed, such as --training.num_epochs.",
        allow_abbrev=False,
    )
    resume.add_argument("run", metavar="RUN", type=Path, help="a run directory")
    resume.add_argument("--quiet", action="store_true", help="print nothing but errors")
    resume.add_argument("--debug", action="store_true", help="stop at the first NaN or reused key (slow)")
    _add_distributed(resume)
    resume.set_defaults(command=commands.resume, takes_settings=True)


def _add_reading(subparsers: Any) -> None:
    """The commands that read runs."""
    evaluate = _add_policies(subparsers, "evaluate", "measure the policies of a run", "of the episodes")
    evaluate.add_argument("--num-episodes", metavar="N", type=int, default=100, help="per member (default 100)")
    evaluate.add_argument("--output", metavar="CSV", type=Path, help="default: evaluation.csv in the run")
    evaluate.set_defaults(command=commands.evaluate)

    plot = subparsers.add_parser("plot", help="draw the learning curves of runs", allow_abbrev=False)
    plot.add_argument("run", metavar="RUN", type=Path, nargs="+", help="run directories")
    plot.add_argument("--output", metavar="FILE", type=Path, help="of one run: by default its learning_curve.png")
    plot.set_defaults(command=commands.plot)

    report = subparsers.add_parser(
        "report", help="compare runs and sweeps, with tables and figures", allow_abbrev=False
    )
    report.add_argument("run", metavar="RUN", type=Path, nargs="+", help="directories of runs and sweeps")
    report.add_argument("--output", metavar="DIR", type=Path, default=Path("report"), help="default: report")
    report.set_defaults(command=commands.report)

    render = _add_policies(subparsers, "render", "draw an episode of a final policy as a GIF", "of the episode")
    render.add_argument("--member", metavar="K", type=int, default=0, help="whose policy, from 0 (default 0)")
    render.add_argument("--output", metavar="FILE", type=Path, help="default: rollout.gif in the run")
    render.set_defaults(command=commands.render)


def _add_policies(subparsers: Any, name: str, brief: str, seeded: str) -> argparse.ArgumentParser:
    """A command that plays policies of a run, whose `--seed` is that of what is `seeded`."""
    command = subparsers.add_parser(name, help=brief, allow_abbrev=False)
    command.add_argument("run", metavar="RUN", type=Path, help="a run directory")
    command.add_argument(
        "--epoch",
        metavar="E",
        type=lambda text: int(text) if text.isdecimal() else text,
        default="newest",
        help="of which policies: newest (default), best of each member, or a number",
    )
    command.add_argument("--seed", metavar="S", type=int, default=0, help=f"{seeded} (default 0)")
    return command


def _add_distributed(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("several processes, on the devices of which the members train together")
    group.add_argument(
        "--distributed", action="store_true", help="be one of them; SLURM and its like say which, or the flags below"
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


def split(tokens: Sequence[str]) -> tuple[list[str], dict[str, str]]:
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
