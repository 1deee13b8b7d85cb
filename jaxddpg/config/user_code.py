"""Functions of the user's: loading them by name, and where and how they failed."""

import importlib
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

_NOT_THE_USERS = {"jaxddpg", "jax", "jaxlib", "flax", "numpy"} | sys.stdlib_module_names
"""Modules that are not user code, skipped when locating an error."""


def load_function(place: str) -> Callable[..., Any]:
    """The function that `package.module:factory` names; ValueError if it is no function."""
    module, _, name = place.partition(":")
    function = getattr(importlib.import_module(module), name)
    if not callable(function):
        raise ValueError(f"{name} has the type {type(function).__name__}, but must be a function that returns one")
    return function


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
    theirs = [summary for frame, summary in frames if frame.f_globals["__name__"].split(".")[0] != "gymnax"]
    text = next((line for line in str(error).splitlines() if line.strip()), "")
    place = next(reversed(theirs or [summary for _, summary in frames]), None)
    if place is None:
        return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text or 'no message'}"
    file = Path(place.filename)
    named = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
    return f"{named} line {place.lineno}: {type(error).__name__}: {text or f'{place.line} in {place.name}'}"


def callback_error(error: jax.errors.JaxRuntimeError) -> str | None:
    """The location and message of a failed Python callback; None if the error was not raised in a callback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines or "callback" not in lines[0]:
        return None
    places = [line.removeprefix("File ").replace('"', "") for line in lines if line.startswith("File ")]
    return ": ".join([*places[-1:], lines[-1]])
