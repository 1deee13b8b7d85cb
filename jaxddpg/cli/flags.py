"""Settings as flags of argparse, `--section.name VALUE`, in a group for each section. Needs no JAX."""

import argparse
import dataclasses
import difflib
import typing
from collections.abc import Iterable, Sequence
from typing import Any

from jaxddpg import config
from jaxddpg.config import ConfigError, Leaf
from jaxddpg.settings import Experiment

SECTIONS = tuple(field.name for field in dataclasses.fields(Experiment))


class SetSetting(argparse.Action):
    """Stores the text of a setting or of a whole section by its dotted path in `overrides`."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        namespace.overrides = namespace.overrides | {self.option_strings[0].removeprefix("--"): values}


class ShowHelp(argparse.Action):
    """Prints the help, in which `--help-all` shows every flag, and `--help agent.actor` those of a section."""

    def completer(self, parser: Any, **_: Any) -> list[str]:
        """The topics that a shell completes; read by argcomplete."""
        return sorted({topic for topic, action, _ in parser.hidden})

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        topics = [*dict.fromkeys(topic for topic, *_ in parser.hidden)]
        if values and not any(f"{topic}.".startswith(f"{values}.") for topic in topics):
            near = difflib.get_close_matches(values, topics, n=3)
            meant = f"did you mean {' or '.join(near)}?" if near else f"use one of {', '.join(SECTIONS)} or distributed"
            raise ConfigError([f"--help knows no section {values}; {meant}"])
        for topic, action, text in parser.hidden:
            if option_string == "--help-all" or f"{topic}.".startswith(f"{values}."):
                action.help = text
        parser.print_help()
        parser.exit()


def add_settings(command: Any) -> None:
    """Adds a flag for every setting and every section."""
    command.set_defaults(takes_settings=True, overrides={})
    groups = {section: command.add_argument_group(f"{section} settings") for section in SECTIONS}
    found: dict[str, list[Leaf]] = {}  # in the order of declaration, each section before what it has
    for leaf in config.leaves():
        parts = leaf.path.split(".")
        for depth in range(1, len(parts)):
            found.setdefault(".".join(parts[:depth]), [])
        found.setdefault(leaf.path, []).append(leaf)
    for path, leaves in found.items():
        action = groups[path.partition(".")[0]].add_argument(
            f"--{path}", action=SetSetting, dest="overrides", default=argparse.SUPPRESS, metavar="VALUE"
        )
        action.completer = _Choices(leaves)  # read by argcomplete
        command.hide(
            path,
            action,
            _meaning(leaves) if leaves else "the whole section as a YAML mapping, e.g. '{name: value, ...}'",
        )


def joined(tokens: Sequence[str]) -> list[str]:
    """The tokens of a command line with `--section.name VALUE` as one token, so that argparse takes no value, such as
    -1e-3, for an option; and with underscores in the names."""
    found, stream = [], iter(tokens)
    for token in stream:
        name, equals, value = token.partition("=")
        path = name.removeprefix("--").replace("-", "_")
        if not is_setting(token):
            found.append(token)
            continue
        if not equals:
            value = next(stream, "--")
            if value.startswith("--"):
                raise ConfigError([f"{name} needs a value, as in {name} VALUE"])
        if not value and path in SECTIONS:
            raise ConfigError([f"{name} is empty; give a YAML mapping, or omit the flag"])
        found.append(f"--{path}={value}")
    return found


def is_setting(token: str) -> bool:
    """Whether a token sets a setting or a section, which may not exist."""
    name = token.partition("=")[0]
    return name.startswith("--") and ("." in name or name.removeprefix("--") in SECTIONS)


class _Choices:
    """The values that a shell completes."""

    def __init__(self, leaves: Iterable[Leaf]) -> None:
        self._choices = [str(choice) for leaf in leaves for choice in _choices(leaf)]

    def __call__(self, **_: Any) -> list[str]:
        return self._choices


def _choices(leaf: Leaf) -> Sequence[Any]:
    if leaf.field.type is bool:
        return "true", "false"
    return typing.get_args(leaf.field.type) if typing.get_origin(leaf.field.type) is typing.Literal else ()


def _meaning(leaves: Iterable[Leaf]) -> str:
    """The help of a setting: description, choices, constraints and default, per alternative where these differ."""
    having: dict[str, list[str]] = {}
    for leaf in leaves:
        rule = " and ".join(f"{words} {bound}" for words, bound in leaf.field.metadata["rule"].items())
        choices = " or ".join(_choices(leaf)) if leaf.field.type is not bool else ""
        default = "none" if leaf.field.default is dataclasses.MISSING else config.text(leaf.field.default)
        brackets = choices if choices == default else "; ".join(filter(None, (choices, rule, f"default {default}")))
        having.setdefault(f"{leaf.field.metadata['meaning']} ({brackets})", []).append(leaf.alternative)
    parts = [f"[{', '.join(tags)}] " * all(tags) + meaning for meaning, tags in having.items()]
    return "; ".join(parts).replace("%", "%%")
