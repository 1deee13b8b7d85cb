"""Reads an experiment from YAML and flags, checks it, and writes it back. Needs no JAX.

Overrides are applied to the file, values are parsed according to their declared types, constraints are checked, and the
variants of a sweep are resolved. Each step collects all of its errors before reporting.
"""

import dataclasses
import difflib
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxddpg.config import notation
from jaxddpg.config.arguments import read_custom, read_environment
from jaxddpg.config.reader import (
    ConfigError,
    as_mapping,
    broken_rules,
    leaves,
    read_section,
    text,
)
from jaxddpg.config.sweep import Plan, broken_axes, check_axes, resolve
from jaxddpg.settings import Experiment


def read(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Plan:
    """The experiment of a YAML file, with values from `overrides` ("agent.tau": "0.01") laid over it, and its runs.

    Raises:
        ConfigError: with all errors at once.
    """
    if not isinstance(path, str | Path):
        raise ConfigError([f"expected the path of a YAML file, not {text(path)}"])
    path = Path(path)
    if path.is_dir():
        raise ConfigError([f"{path} is a directory; name a YAML file in it"])
    try:
        with path.open() as file:  # whose name is part of YAML's errors
            content = notation.load(file)
    except FileNotFoundError:
        files = {file.stem: file for file in path.parent.glob("[!.]*.y*ml")}
        near = [str(files[stem]) for stem in difflib.get_close_matches(path.stem, files)]
        hint = f"did you mean {' or '.join(near)}?" if near else "name a YAML file, such as configs/pendulum.yaml"
        raise ConfigError([f"{path} does not exist; {hint}"]) from None
    except OSError as error:
        raise ConfigError([f"{path} cannot be read: {error.strerror}; make it readable"]) from None
    except notation.Error as error:
        raise ConfigError([f"{path} is not valid YAML: {' '.join(str(error).split()).rstrip(' ^')}"]) from None
    if content is None and path.is_file() and not path.read_text().strip():
        raise ConfigError([f"{path} is empty; write at least the line `environment: {{name: Pendulum-v1}}`"])
    if not isinstance(content, dict | types.NoneType):
        raise ConfigError([f"{path} must be a mapping of sections such as `agent:`, not {content!r}"])
    return parse(content or {}, overrides)


def parse(content: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Plan:
    """As `read`, from nested mappings. Numbers and arrays may be those of NumPy or JAX."""
    errors: dict[str, str] = {}  # by the path of the setting
    experiment = read_section(Experiment, _overlay(_built_in(content), _decoded(overrides or {})), "", errors)
    experiment = dataclasses.replace(
        experiment,
        environment=read_environment(experiment.environment, errors),
        agent=read_custom(experiment.agent, "agent", errors),
        noise=read_custom(experiment.noise, "noise", errors),
        replay=read_custom(experiment.replay, "replay", errors),
        population=check_axes(experiment.population, errors),
    )
    sentences = [*errors.values(), *broken_rules(experiment, "", set(errors))]
    if not any(path.startswith("population.") for path in errors):
        sentences += broken_axes(experiment.population)
    if sentences:
        raise ConfigError(sentences)
    return resolve(experiment)


def validate(experiment: Experiment) -> Plan:
    """The runs of an experiment made or changed in Python; ConfigError unless it obeys every rule."""
    if not isinstance(experiment, Experiment):
        raise ConfigError([f"expected an Experiment, not {text(experiment)}; load one with jaxddpg.load(PATH)"])
    return parse(as_mapping(experiment))


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


def _decoded(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The values that flags spell in YAML."""
    texts = {leaf.path for leaf in leaves() if leaf.field.type is str}
    found = {}
    for path, given in overrides.items():
        try:
            found[path] = notation.load(given) if isinstance(given, str) and path not in texts else _built_in(given)
        except notation.Error:
            found[path] = given
    return found


def _built_in(value: Any) -> Any:
    """A value in Python's own types, as YAML would give it, where it has numbers or arrays of NumPy or JAX."""
    if isinstance(value, Mapping):
        return {name: _built_in(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple | range):
        return [_built_in(entry) for entry in value]
    return value.tolist() if hasattr(value, "tolist") else value


def _overlay(content: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The content with values laid over it: first whole sections, then the settings in them."""
    merged, paths = dict(content), [leaf.path for leaf in leaves()]
    for path, value in sorted(overrides.items(), key=lambda item: item[0].count(".")):
        # What lies below a setting that holds names with values, such as population.sweep, is one name.
        above = next((leaf for leaf in paths if path.startswith(f"{leaf}.")), "")
        *sections, name = [*above.split("."), path.removeprefix(f"{above}.")] if above else path.split(".")
        place = merged
        for section in sections:
            inner = place.get(section)
            if not isinstance(inner, Mapping | types.NoneType):
                break  # an error, found when the section is read
            place[section] = dict(inner or {})
            place = place[section]
        else:
            place[name] = value
    return merged
