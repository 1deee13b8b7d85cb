"""The parameters of environments, and the arguments of the user's functions. Needs no JAX."""

import dataclasses
import difflib
import sys
import types
from collections.abc import Mapping
from typing import Any

from jaxddpg import settings
from jaxddpg.config.reader import read_number, suggest, text
from jaxddpg.envs import registry


def _is_plain(value: Any) -> bool:
    """Whether YAML can hold a value."""
    if isinstance(value, Mapping):
        return all(isinstance(name, str) and _is_plain(entry) for name, entry in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return isinstance(value, bool | int | float | str | types.NoneType)


def read_environment(environment: settings.Environment, errors: dict[str, str]) -> settings.Environment:
    """The environment with its parameters by their declared types, as far as that is known without importing it."""
    name = environment.name
    declared: Mapping[str, type] | None = None
    if name in registry.CONTINUOUS:
        declared = registry.CONTINUOUS[name].parameters
    elif name in registry.DISCRETE:
        suitable = ", ".join(registry.CONTINUOUS)
        errors["environment.name"] = (
            f"environment.name is {name}, which has discrete actions, but deterministic policies need continuous ones; "
            f"try {suitable}"
        )
    # One of the user's own is registered, or known to its module or to the gymnax that this program has imported.
    elif not (":" in name or name in registry.REGISTERED) and not (
        "gymnax" in sys.modules and name in sys.modules["gymnax"].registered_envs
    ):
        near = difflib.get_close_matches(name, [*registry.CONTINUOUS, *registry.REGISTERED], n=2, cutoff=0.4)
        question = f"did you mean {' or '.join(near)}?" if near else f"try {', '.join(registry.CONTINUOUS)}."
        errors["environment.name"] = (
            f"environment.name is {text(name)}, which is neither a gymnax nor a built-in environment; {question} An "
            "environment of your own is named as package.module:factory, or is given a name by jaxddpg.register in the "
            "Python process that then calls jaxddpg.run, resume or evaluate"
        )
    parameters = {}
    for parameter, value in environment.parameters.items():
        path = f"environment.parameters.{parameter}"
        kind = float if declared is None else declared.get(parameter)
        if kind is None:
            here = [f"environment.parameters.{declared_name}" for declared_name in declared or ()]
            errors[path] = f"{path} is not a parameter{suggest(str(parameter), 'environment.parameters.', here)}"
        elif (kind is bool) != isinstance(value, bool) and declared is not None:
            errors[path] = f"{path} is {text(value)}, but must be {'true or false' if kind is bool else 'a number'}"
        elif declared is None:
            parameters[parameter] = read_argument(path, value, errors)
        else:
            try:
                parameters[parameter] = value if kind is bool else read_number(kind, value)
            except ValueError as error:
                errors[path] = f"{path} is {text(value)}, but must be {error}"
    return dataclasses.replace(environment, parameters=parameters)


def read_custom(section: Any, path: str, errors: dict[str, str]) -> Any:
    """A section with the arguments of the user's function, if it is a custom one."""
    if not isinstance(getattr(section, "settings", None), Mapping):
        return section
    arguments = {
        name: read_argument(f"{path}.settings.{name}", value, errors) for name, value in section.settings.items()
    }
    return dataclasses.replace(section, settings=arguments)


def read_argument(path: str, value: Any, errors: dict[str, str]) -> Any:
    """The value of an argument of a user's function: a float, which is traced, or what is static."""
    if isinstance(value, float):
        try:
            return read_number(float, value)
        except ValueError as error:
            errors[path] = f"{path} is {text(value)}, but must be {error}"
    elif not _is_plain(value):
        errors[path] = f"{path} is {text(value)}, but must be a number, a string, true or false, or a list of these"
    return value
