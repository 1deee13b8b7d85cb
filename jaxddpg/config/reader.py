"""Reads settings by their declared types, and writes them back. Needs no JAX.

Every error is collected by the dotted path of its setting, so that all are found before any is reported.
"""

import dataclasses
import difflib
import functools
import operator
import shlex
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from math import inf
from typing import Any, Literal, NamedTuple

from jaxddpg.config import notation
from jaxddpg.settings import CUSTOM, Experiment

PARAMETERS = "environment.parameters."
NAMED_BY_USER = (PARAMETERS, "agent.settings.", "noise.settings.", "replay.settings.")
"""Below these, the names of settings are those of arguments of the user's functions."""


_SMALLEST, _LARGEST = 2.0**-126, 2.0**128 - 2.0**104
"""The range of normal float32 numbers; smaller ones may be flushed to 0."""


_hints: Callable[[Any], dict[str, Any]] = functools.cache(typing.get_type_hints)


class ConfigError(ValueError):
    """Invalid input, as a list of sentences."""

    def __init__(self, errors: list[str]) -> None:
        super().__init__("\n".join(errors))
        self.errors = errors


def first_line(error: Exception) -> str:
    """The first line of another library's error message."""
    return str(error).split("\n")[0][:200]


def command(*words: object) -> str:
    """A command of this package as it is typed into a shell: a path with spaces is quoted."""
    return shlex.join(["jaxddpg", *map(str, words)])


class Leaf(NamedTuple):
    """A setting and where it stands."""

    path: str
    field: dataclasses.Field
    alternative: str
    """The tag of the alternative that has it, such as ddpg; empty where there is no choice."""


@functools.cache
def leaves(section: Any = Experiment, prefix: str = "", alternative: str = "") -> tuple[Leaf, ...]:
    """Every setting with its dotted path; where a section has alternatives, the settings of each."""
    found = list[Leaf]()
    for field in dataclasses.fields(section):
        alternatives = alternatives_of(kind_of(section, field.name))
        for tag, kind in alternatives.items():
            found += leaves(kind, f"{prefix}{field.name}.", tag or alternative)
        if not alternatives:
            found.append(Leaf(prefix + field.name, field, alternative))
    return tuple(found)


def by_last_part() -> dict[str, list[str]]:
    """The dotted paths of settings by their last parts, such as tau."""
    found = dict[str, list[str]]()
    for path in dict.fromkeys(leaf.path for leaf in leaves()):
        found.setdefault(path.rpartition(".")[2], []).append(path)
    return found


def as_mapping(section: Any) -> dict[str, Any]:
    """Nested dicts of plain values, as they stand in YAML."""
    return {field.name: plain(getattr(section, field.name)) for field in dataclasses.fields(section)}


def flat(section: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting of an experiment by its dotted path."""
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            yield from flat(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, plain(value)


def plain(value: Any) -> Any:
    """A value as YAML writes it."""
    if dataclasses.is_dataclass(value):
        return as_mapping(value)
    if isinstance(value, Fraction):
        return str(value) if value.denominator > 1 else value.numerator
    return dict(value) if isinstance(value, Mapping) else list(value) if isinstance(value, tuple) else value


def text(value: Any) -> str:
    """A value as it is written in YAML, on one line."""
    return notation.dump(plain(value))


def read_section(kind: Any, content: Any, path: str, errors: dict[str, str]) -> Any:
    """A settings dataclass from a mapping; an invalid setting keeps its default, so that reading can continue."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if content is None:
        content = {}
    if not isinstance(content, Mapping):
        section, (name, equals, value) = path.rstrip("."), str(content).partition("=")
        first = _tag(kind)[0] or next(iter(fields))
        if equals and name in fields:
            hint = f"did you mean --{path}{name} {value}?"
        elif isinstance(content, str) and content.startswith("{"):
            hint = "it is a string; check its quotes, braces and colons"
        elif isinstance(content, str) and isinstance(fields[first].default, str):
            hint = f"use --{section} '{{{first}: {content}}}'"
        else:
            hint = f"name its settings, such as {path}{first}"
        errors[section] = f"{section} must be a section with settings below it, not {text(content)}; {hint}"
        return kind()
    values = {}
    for name, value in content.items():
        if name not in fields:
            here = [leaf.path for leaf in leaves(kind, path)]
            if f"{path}{name}" in here:  # with dots, as on the command line
                section, _, last = f"{path}{name}".rpartition(".")
                errors[f"{path}{name}"] = (
                    f"{path}{name}: dotted names are not allowed here; put {last} in the section {section}"
                )
                continue
            errors[f"{path}{name}"] = f"{path}{name} is not a setting{suggest(str(name), path, here)}"
            continue
        field_kind = kind_of(kind, name)
        if alternatives := alternatives_of(field_kind):
            values[name] = _alternative(alternatives, value, f"{path}{name}.", errors)
            continue
        try:
            values[name] = read_value(field_kind, value, fields[name])
        except ValueError as error:
            errors[f"{path}{name}"] = invalid(f"{path}{name}", value, fields[name], error)
    return kind(**values)


def invalid(path: str, value: Any, field: dataclasses.Field, error: ValueError) -> str:
    """The sentence for a value that breaks the rule of its setting."""
    hint = "" if field.default is dataclasses.MISSING else f" (default {text(field.default)})"
    return f"{path} is {text(value)}, but must be {error}{hint}"


@functools.cache
def alternatives_of(kind: Any) -> dict[str, type]:
    """The settings classes that a section may have, by tag, the default first; empty for a plain setting. The tag of a
    custom one is empty."""
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    return {_tag(kind)[1]: kind for kind in kinds if isinstance(kind, type) and dataclasses.is_dataclass(kind)}


@functools.cache
def _tag(kind: Any) -> tuple[str, str]:
    """The setting that distinguishes a section from its alternatives, the one with a single choice, and that choice."""
    for name, declared in _hints(kind).items():
        if typing.get_origin(declared) is Literal and len(choices := typing.get_args(declared)) == 1:
            return name, choices[0]
    return "", ""


def _alternative(alternatives: dict[str, type], content: Any, path: str, errors: dict[str, str]) -> Any:
    """One of several settings classes from a mapping, chosen by its tag."""
    default = next(iter(alternatives))
    tag, _ = _tag(alternatives[default])
    choice = content.get(tag, default) if isinstance(content, Mapping) else default
    if tag and "" in alternatives and isinstance(choice, str) and ":" in choice:
        own = _hints(alternatives[""])
        if any(name not in own and any(name in _hints(kind) for kind in alternatives.values()) for name in content):
            kept = {tag: choice} | {name: value for name, value in content.items() if name in own}
            listed = ", ".join(f"{name}: {value if name == tag else text(value)}" for name, value in kept.items())
            section = path.removesuffix(".")
            errors[section] = (
                f"{path}{tag} is {choice}, whose settings belong in {path}settings; replace the section: "
                f"--{section} '{{{listed}}}'"
            )
            return alternatives[default]()
        return read_section(alternatives[""], content, path, errors)
    if choice not in [*alternatives] or (tag and not choice):
        choices = ", ".join(name or CUSTOM for name in alternatives)
        # An error of the whole section: no rule applies to settings of an unknown kind.
        errors[path.removesuffix(".")] = (
            f"{path}{tag} is {text(choice)}, but must be one of {choices} (default {default})"
        )
        return alternatives[default]()
    if isinstance(content, Mapping):
        for name, given in content.items():
            inner = isinstance(given, Mapping)
            having = [
                value
                for value, kind in alternatives.items()
                if value and name in _hints(kind) and (not inner or alternatives_of(kind_of(kind, name)))
            ]
            if having and choice not in having:
                errors[path + name] = (
                    f"{path}{name} is a {'section' if inner else 'setting'} of {tag} {' or '.join(having)}, but "
                    f"{path}{tag} is {choice}; leave it out, or replace the section: --{path.removesuffix('.')} "
                    f"'{{{tag}: {choice}}}'"
                )
        content = {name: value for name, value in content.items() if path + str(name) not in errors}
    return read_section(alternatives[choice], content, path, errors)


def read_value(kind: Any, value: Any, field: dataclasses.Field) -> Any:
    """A value by its declared type and rule; ValueError ends the sentence "... is X, but must be"."""
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return value
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list | tuple) or not (value or field.default == ()):
            raise ValueError(f"a list of {'' if field.default == () else 'one or more '}numbers, such as [64, 64]")
        return tuple(read_value(typing.get_args(kind)[0], entry, field) for entry in value)
    if typing.get_origin(kind) is Mapping:
        if not isinstance(value, Mapping):
            raise ValueError("a mapping {name: value, ...}")
        return dict(value)
    if kind is bool:
        if not isinstance(value, bool):
            raise ValueError("true or false")
        return value
    if kind is str:
        if not isinstance(value, str):
            raise ValueError("a string")
        return value
    number = read_number(kind, value)
    holds = {
        "at least": lambda bound: number >= bound,
        "greater than": lambda bound: number > bound,
        "at most": lambda bound: number <= bound,
    }
    rule = field.metadata["rule"]
    if not all(holds[words](bound) for words, bound in rule.items()):
        raise ValueError(" and ".join(f"{words} {bound}" for words, bound in rule.items()))
    if abs(number) == inf and number != field.default:
        raise ValueError("a finite number")
    return number


def read_number(kind: type, value: Any) -> Any:
    """A float, int or Fraction; a text that spells a number, such as inf, is that number."""
    words = {
        float: "a number",
        int: "an integer",
        Fraction: "a whole number k, or 1/k for one update every k vector steps",
    }[kind]
    if isinstance(value, bool) or not isinstance(value, int | float | str | Fraction) or not str(value).isascii():
        raise ValueError(words)
    try:
        if kind is float:
            number: Any = float(value)
        else:
            # 1e9 is a number, but 1e999999999 must not be written out.
            exponent = "e" in str(value).lower()
            number = Fraction(min(float(value), 2.0**31) if exponent else str(value))
            if kind is int:
                number = int(number) if number.denominator == 1 else None
            elif 1 not in (number.numerator, number.denominator):
                number = None
    except (ValueError, ZeroDivisionError, OverflowError):
        number = None
    if number is None or number != number:
        raise ValueError(words + (" in decimal digits" if isinstance(value, str) and kind is not Fraction else ""))
    if kind is float and 0 < abs(number) < inf and not _SMALLEST <= abs(number) <= _LARGEST:
        raise ValueError("0, or between 1.2e-38 and 3.4e38 in magnitude (the float32 range)")
    if kind is not float and number >= 2**31:
        raise ValueError(f"{words} below 2^31")
    return number


def kind_of(section: Any, name: str) -> Any:
    """The declared type of a field; a `Scalar` is a float here."""
    return _hints(section)[name]


def nearest(name: str, names: Sequence[str], holder: str) -> str:
    """A suggestion to append to an 'unknown name' error: the closest of the names that `holder` has, or all of them."""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f"; {holder} has {', '.join(names) or 'none'}"


def suggest(name: str, path: str, here: list[str]) -> str:
    """A suggestion to append to an 'unknown name' error: the closest names, or all names.

    `here` are the dotted paths below this one.
    """
    names = list(dict.fromkeys(leaf.removeprefix(path).split(".")[0] for leaf in here))
    known = list(dict.fromkeys(here + [leaf.path for leaf in leaves() if not leaf.path.startswith(path)]))
    near = [leaf for leaf in known if leaf.split(".")[-1] == name]
    near = near or [path + match for match in difflib.get_close_matches(name, names, n=1, cutoff=0.5)]
    section = path.rstrip(".") or "an experiment"
    return f"; did you mean {' or '.join(near)}?" if near else f"; {section} has {', '.join(names)}"


def broken_rules(section: Any, path: str, invalid: set[str]) -> Iterator[str]:
    """The rules between settings that do not hold; those about a setting already found invalid are omitted."""
    for holds, names, words in section.rules() if hasattr(section, "rules") else ():
        paths = [path + name for name in names]
        if not holds and not any(p == other or p.startswith(f"{other}.") for p in paths for other in invalid):
            yield f"{paths[0]} is {text(operator.attrgetter(names[0])(section))}, {words}"
    for field in dataclasses.fields(section):
        inner = getattr(section, field.name)
        if dataclasses.is_dataclass(inner):
            yield from broken_rules(inner, f"{path}{field.name}.", invalid)
