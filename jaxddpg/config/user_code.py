"""Functions of the user's: loading them by name, and where and how they failed."""

import importlib
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax

from jaxddpg.config.reader import nearest

_NOT_THE_USERS = {"jaxddpg", "jax", "jaxlib", "flax", "numpy"} | sys.stdlib_module_names
"""Modules that are not user code, skipped when locating an error."""


def load_function(place: str) -> Callable[..., Any]:
    """The function that `package.module:factory` names; ValueError if there is none."""
    module, _, name = place.partition(":")
    if not (module and name):
        raise ValueError("a function is named as package.module:factory")
    if "/" in module or module.endswith(".py"):
        dotted = ".".join(Path(module).with_suffix("").parts)
        raise ValueError(f"{module} is a path, but must be the name of a module; use {dotted}:{name}")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise  # of what the module imports
        *package, last = (error.name or module).split(".")
        files = sorted(path.stem for path in Path(*package).glob("*.py"))
        hint = nearest(last, files, ".".join(package) or "the working directory")
        raise ValueError(f"there is no module {error.name}{hint}") from None
    if not hasattr(found, name):
        held = [own for own, value in vars(found).items() if getattr(value, "__module__", "") == found.__name__]
        raise ValueError(f"there is no function {name} in {module}{nearest(name, held, 'the module')}")
    function = getattr(found, name)
    if not callable(function):
        raise ValueError(f"{name} has the type {type(function).__name__}, but must be a function that returns one")
    return function


def check_parameters(function: Callable[..., Any], names: Iterable[str]) -> None:
    """ValueError where a function has no parameters of these names."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # it has no signature
        return
    if any(parameter.kind == inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for name in names:
        if name not in parameters:
            called = getattr(function, "__name__", "the function")
            raise ValueError(f"{called} has no parameter {name}{nearest(name, [*parameters], 'it')}")


def sentence(error: BaseException) -> str:
    """Where in the user's code an error was raised, its kind where the text alone would not say it, and its first
    line, or else the line of code."""
    if isinstance(error, jax.errors.JaxRuntimeError) and (called_back := callback_error(error)):
        return called_back
    frames = [
        (frame, summary)
        for (frame, _), summary in zip(
            traceback.walk_tb(error.__traceback__), traceback.extract_tb(error.__traceback__), strict=True
        )
        if frame.f_globals.get("__name__", "").split(".")[0] not in _NOT_THE_USERS
    ]
    theirs = [summary for _, summary in frames if not summary.filename.startswith(_libraries())]
    message = next((line for line in str(error).splitlines() if line.strip()), "")
    if isinstance(error, jax.errors.TracerBoolConversionError):
        message += " Use jnp.where or jax.lax.cond instead of a Python condition."
    kind = type(error).__name__
    place = next(reversed(theirs or [summary for _, summary in frames]), None)
    if place is None:
        return message if isinstance(error, ValueError) and message else f"{kind}: {message or 'no message'}"
    file = Path(place.filename)
    named = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
    return f"{named} line {place.lineno}: {kind}: {message or f'{place.line} in {place.name}'}"


def callback_error(error: RuntimeError) -> str | None:
    """Where in the user's code a Python callback failed, and its message; None if the error is not one of JAX from a
    callback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines or "callback" not in lines[0]:
        return None
    places = [line.removeprefix("File ").replace('"', "") for line in lines if line.startswith("File ")]
    theirs = [place for place in places if not place.startswith(_libraries())]
    return ": ".join([*(theirs or places)[-1:], lines[-1]])


def _libraries() -> tuple[str, str]:
    """Where the files of installed packages lie."""
    return sysconfig.get_paths()["stdlib"], sysconfig.get_paths()["purelib"]
