"""Reads an experiment from YAML and flags, checks it, and writes it back. Needs no JAX.

There is one way in: flags are laid over the file, then every value is read by its declared type, then the rules are
checked. All faults are found before any is reported.
"""

import dataclasses
import difflib
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from fractions import Fraction
from math import inf
from pathlib import Path
from typing import Any, Literal

import yaml

from jaxddpg import settings
from jaxddpg.envs import known
from jaxddpg.settings import Experiment


class ConfigError(ValueError):
    """Bad input, as a list of clear sentences."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key given twice, of which the standard loader silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a name must be a text", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Experiment:
    """The experiment of a YAML file, with values from `overrides` ("agent.tau": "0.01") laid over it.

    Raises:
        ConfigError: with all faults at once.
    """
    path = Path(path)
    if path.is_dir():
        raise ConfigError([f"{path} is a directory; name a YAML file in it"])
    try:
        content = yaml.load(path.read_text(), _Loader)
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], n=3, cutoff=0.3)
        hint = f"; {path.parent} holds {', '.join(near)}" if near else ""
        raise ConfigError([f"there is no file {path}{hint}"]) from None
    except OSError as error:
        raise ConfigError([f"{path} cannot be read: {error.strerror}"]) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path} is not valid YAML: {' '.join(str(error).split())}"]) from None
    if not isinstance(content, dict | types.NoneType):
        raise ConfigError([f"{path} must hold sections such as `agent:`, not {content!r}"])
    return parse(content or {}, overrides)


def parse(content: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Experiment:
    """As `read`, from nested mappings."""
    faults: dict[str, str] = {}  # by the path of the setting
    experiment = _section(Experiment, _overlay(content, overrides or {}), "", faults)
    experiment = dataclasses.replace(experiment, environment=_environment(experiment.environment, faults))
    sentences = [*faults.values(), *_cross_check(experiment, set(faults))]
    if sentences:
        raise ConfigError(sentences)
    return experiment


def checked(experiment: Experiment) -> Experiment:
    """An experiment made or changed in Python, read as if from a file; ConfigError unless it obeys every rule."""
    return parse(as_mapping(experiment))


def leaves(section: Any = Experiment, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field]]:
    """Every setting with its dotted path."""
    for field in dataclasses.fields(section):
        kind = _kind(section, field.name)
        if dataclasses.is_dataclass(kind):
            yield from leaves(kind, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, field


def as_mapping(section: Any) -> dict[str, Any]:
    """Nested dicts of plain values, as they stand in YAML."""
    return {field.name: _plain(getattr(section, field.name)) for field in dataclasses.fields(section)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return as_mapping(value)
    if isinstance(value, Fraction):
        return str(value) if value.denominator > 1 else value.numerator
    return dict(value) if isinstance(value, Mapping) else list(value) if isinstance(value, tuple) else value


def text(value: Any) -> str:
    """A value as it is written in YAML, on one line."""
    return yaml.safe_dump(_plain(value), default_flow_style=True, width=1_000).removesuffix("...\n").strip()


def dump(section: Any, indent: str = "") -> str:
    """Complete YAML that `read` reads back, each setting with its meaning as a comment."""
    lines = []
    for field in dataclasses.fields(section):
        value, meaning = getattr(section, field.name), field.metadata["meaning"]
        if dataclasses.is_dataclass(value):
            lines.append(f"{indent}{field.name}:  # {meaning}\n" + dump(value, indent + "  "))
        else:
            lines.append(f"{indent}{field.name}: {text(value)}  # {meaning}\n")
    return "".join(lines)


def _overlay(content: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(content)
    kinds = {path: field.type for path, field in leaves()}
    for path, given in overrides.items():
        try:
            value = yaml.load(given, _Loader) if isinstance(given, str) and kinds.get(path) is not str else given
        except yaml.YAMLError:
            value = given
        *sections, name = path.split(".")
        place = merged
        for section in sections:
            inner = place.get(section)
            if not isinstance(inner, Mapping | types.NoneType):
                break  # a fault, found when the section is read
            place[section] = dict(inner or {})
            place = place[section]
        else:
            place[name] = value
    return merged


def _section(kind: Any, content: Any, path: str, faults: dict[str, str]) -> Any:
    """A settings dataclass from a mapping; a faulty setting keeps its default so that reading can go on."""
    if content is None:
        content = {}
    if not isinstance(content, Mapping):
        section = path.rstrip(".")
        faults[section] = f"{section} must be a section with settings below it, not {content!r}"
        return kind()
    fields = {field.name: field for field in dataclasses.fields(kind)}
    values = {}
    for name, value in content.items():
        if name not in fields:
            faults[f"{path}{name}"] = f"{path}{name} is not a setting{_suggestion(str(name), path, list(fields))}"
            continue
        field_kind = _kind(kind, name)
        if dataclasses.is_dataclass(field_kind):
            values[name] = _section(field_kind, value, f"{path}{name}.", faults)
            continue
        try:
            values[name] = _value(field_kind, value, fields[name])
        except ValueError as error:
            default = fields[name].default
            hint = "" if default is dataclasses.MISSING else f" (default {text(default)})"
            faults[f"{path}{name}"] = f"{path}{name} is {text(value)}, but must be {error}{hint}"
    return kind(**values)


def _value(kind: Any, value: Any, field: dataclasses.Field) -> Any:
    """A value by its declared type and rule; ValueError ends the sentence "... is X, but must be"."""
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return value
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list | tuple) or not value:
            raise ValueError("a list of at least one whole number, such as [64, 64]")
        return tuple(_value(typing.get_args(kind)[0], entry, field) for entry in value)
    if typing.get_origin(kind) is Mapping:
        if not isinstance(value, Mapping):
            raise ValueError("names with values, such as {dt: 0.02}")
        return dict(value)
    if kind is bool:
        if not isinstance(value, bool):
            raise ValueError("true or false")
        return value
    if kind is str:
        if not isinstance(value, str):
            raise ValueError("a text")
        return value
    number = _number(kind, value)
    if number == inf != field.default:
        raise ValueError("a finite number")
    holds = {
        "at least": lambda bound: number >= bound,
        "greater than": lambda bound: number > bound,
        "at most": lambda bound: number <= bound,
    }
    rule = field.metadata["rule"]
    if not all(holds[words](bound) for words, bound in rule.items()):
        raise ValueError(" and ".join(f"{words} {bound}" for words, bound in rule.items()))
    return number


def _number(kind: type, value: Any) -> Any:
    """A float, int or Fraction; YAML reads 1e-3 as a text, so texts that spell a number are numbers."""
    words = {
        float: "a number",
        int: "a whole number",
        Fraction: "a whole number k, or 1/k for one update every k vector steps",
    }[kind]
    if isinstance(value, bool) or not isinstance(value, int | float | str | Fraction):
        raise ValueError(words)
    try:
        if kind is float:
            number: Any = float(value)
        else:
            number = Fraction(str(value))
            if kind is int:
                number = int(number) if number.denominator == 1 else None
            elif 1 not in (number.numerator, number.denominator):
                number = None
    except (ValueError, ZeroDivisionError, OverflowError):
        raise ValueError(words) from None
    if number is None or number != number:
        raise ValueError(words)
    if kind is not float and number >= 2**31:
        raise ValueError(f"{words} below 2^31")
    return number


def _spells_number(value: Any) -> bool:
    try:
        _number(float, value)
    except ValueError:
        return False
    return True


def _kind(section: Any, name: str) -> Any:
    """The declared type of a field; a `Scalar` is a float here."""
    return typing.get_type_hints(section)[name]


def _suggestion(name: str, path: str, siblings: list[str]) -> str:
    """The end of a sentence that says that there is no such name: the nearest that there is, or all."""
    near = [leaf for leaf, _ in leaves() if leaf.split(".")[-1] == name]
    near = near or [path + match for match in difflib.get_close_matches(name, siblings, n=1, cutoff=0.5)]
    near = near or difflib.get_close_matches(path + name, [leaf for leaf, _ in leaves()], n=1, cutoff=0.85)
    section = path.rstrip(".") or "an experiment"
    return f"; did you mean {' or '.join(near)}?" if near else f"; {section} has {', '.join(siblings)}"


def _cross_check(experiment: Experiment, faulty: set[str]) -> list[str]:
    """The rules between settings; those about a setting already found faulty are left out."""
    agent, replay, training, noise = experiment.agent, experiment.replay, experiment.training, experiment.noise
    period = training.updates_per_step.denominator
    warmup_rows = training.warmup_steps * training.num_envs
    last_step = training.warmup_steps + training.num_epochs * training.steps_per_epoch
    rounded_epoch = -(-training.steps_per_epoch // period) * period
    rounded_capacity = -(-replay.capacity // training.num_envs) * training.num_envs
    rules = [
        (
            agent.batch_size <= replay.capacity,
            ("agent.batch_size", "replay.capacity"),
            f"agent.batch_size is {agent.batch_size}, but must be at most replay.capacity, {replay.capacity}",
        ),
        (
            warmup_rows >= agent.batch_size,
            ("training.warmup_steps", "training.num_envs", "agent.batch_size"),
            f"training.warmup_steps is {training.warmup_steps}, which with {training.num_envs} environments makes "
            f"{warmup_rows} rows, but the first batch needs agent.batch_size, {agent.batch_size}; use at least "
            f"{-(-agent.batch_size // training.num_envs)} steps",
        ),
        (
            replay.capacity % training.num_envs == 0,
            ("replay.capacity", "training.num_envs"),
            f"replay.capacity is {replay.capacity}, but must be a multiple of training.num_envs, {training.num_envs}, "
            f"because each vector step writes one row per environment; use {rounded_capacity}",
        ),
        (
            training.steps_per_epoch % period == 0,
            ("training.steps_per_epoch", "training.updates_per_step"),
            f"training.steps_per_epoch is {training.steps_per_epoch}, but must be a multiple of the {period} steps "
            f"between updates; use {rounded_epoch}",
        ),
        (
            last_step < 2**32,
            ("training.num_epochs", "training.steps_per_epoch", "training.warmup_steps"),
            f"training.num_epochs is {training.num_epochs}, which makes {last_step} vector steps, but a run counts "
            "them in 32 bits; use more training.num_envs and fewer steps",
        ),
        (
            agent.critic.action_layer < len(agent.critic.hidden_sizes),
            ("agent.critic.action_layer", "agent.critic.hidden_sizes"),
            f"agent.critic.action_layer is {agent.critic.action_layer}, but the critic has only "
            f"{len(agent.critic.hidden_sizes)} hidden layer; use 0",
        ),
        (
            noise.scale_of == "innovation" or noise.smoothing < 1,
            ("noise.smoothing", "noise.scale_of"),
            "noise.smoothing is 1, but a random walk has no stationary deviation; use noise.scale_of: innovation",
        ),
    ]
    return [
        sentence
        for holds, paths, sentence in rules
        if not holds and not any(path == fault or path.startswith(f"{fault}.") for path in paths for fault in faulty)
    ]


def _environment(environment: settings.Environment, faults: dict[str, str]) -> settings.Environment:
    """The environment with its parameters by their declared types, as far as that is known without importing it."""
    name = environment.name
    declared: Mapping[str, type] | None = None
    if name in known.CONTINUOUS:
        declared = known.CONTINUOUS[name].parameters
    elif name in known.DISCRETE:
        suitable = ", ".join(known.CONTINUOUS)
        faults["environment.name"] = (
            f"environment.name is {name}, which has discrete actions, but DDPG needs continuous ones; try {suitable}"
        )
    # One of the user's own is known to its module, or to the gymnax that his program has imported.
    elif ":" not in name and not ("gymnax" in sys.modules and name in sys.modules["gymnax"].registered_envs):
        near = difflib.get_close_matches(name, known.CONTINUOUS, n=2, cutoff=0.4)
        question = f"did you mean {' or '.join(near)}?" if near else f"try {', '.join(known.CONTINUOUS)}."
        faults["environment.name"] = (
            f"environment.name is {name}, which is not an environment of gymnax; {question} One of your own is named "
            "package.module:factory"
        )
    parameters = {}
    for parameter, value in environment.parameters.items():
        path = f"environment.parameters.{parameter}"
        kind = float if declared is None else declared.get(parameter)
        if kind is None:
            suggestion = _suggestion(str(parameter), "environment.parameters.", list(declared or []))
            faults[path] = f"{path} is not a parameter{suggestion}"
        elif (kind is bool) != isinstance(value, bool) and declared is not None:
            faults[path] = f"{path} is {text(value)}, but must be {'true or false' if kind is bool else 'a number'}"
        elif declared is None and (isinstance(value, bool | int) or not _spells_number(value)):
            parameters[parameter] = value
        else:
            try:
                parameters[parameter] = value if kind is bool else _number(kind, value)
            except ValueError as error:
                faults[path] = f"{path} is {text(value)}, but must be {error}"
    return dataclasses.replace(environment, parameters=parameters)
