"""Sections of settings as pytrees, whose leaves are the traced settings. JAX is not imported for it."""

import dataclasses
import json
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import wrapt

from jaxddpg.settings.experiment import Member
from jaxddpg.settings.fields import Scalar


def _sections(section: type) -> Iterator[type]:
    """A settings class and all below it, alternatives too."""
    yield section
    for kind in typing.get_type_hints(section).values():
        for inner in typing.get_args(kind) or (kind,):
            if isinstance(inner, type) and dataclasses.is_dataclass(inner):
                yield from _sections(inner)


def _text(item: Any, is_static: bool) -> str | None:
    """A static value as JSON text, which is hashable and distinguishes 1 from True; None for a value to be traced."""
    if not isinstance(item, int | str | list | tuple | Mapping) and not (is_static and isinstance(item, float)):
        return None
    try:
        return json.dumps(item)
    except TypeError:  # it holds what JAX has put in the place of a number
        return None


def _flattening(section: type) -> tuple[Callable, Callable]:
    """The pytree flatten and unflatten functions of a settings class."""
    # By the default, not by the value: while JAX rebuilds a tree, a section may be any object.
    sections = {field.name for field in dataclasses.fields(section) if isinstance(field.default_factory, type)}

    def flatten(value: Any) -> tuple[tuple[dict[str, Any]], tuple]:
        numbers, structure = {}, []
        for field in dataclasses.fields(section):
            entry = getattr(value, field.name)
            if isinstance(entry, Mapping):
                is_static = bool(getattr(value, "library", ""))
                texts = {name: _text(item, is_static) for name, item in entry.items()}
                static = {name: text for name, text in texts.items() if text is not None}
                numbers[field.name] = {name: item for name, item in entry.items() if name not in static}
                structure.append((field.name, tuple(sorted(static.items()))))
            elif field.type is Scalar or field.name in sections:
                numbers[field.name] = entry
            else:
                structure.append((field.name, entry))
        return (numbers,), tuple(structure)

    def unflatten(structure: tuple, children: tuple[dict[str, Any]]) -> Any:
        (numbers,) = children
        mappings = {
            name: {key: json.loads(item) for key, item in entry} for name, entry in structure if name in numbers
        }
        plain = {name: entry for name, entry in structure if name not in numbers}
        return section(**numbers | plain | {name: entry | numbers[name] for name, entry in mappings.items()})

    return flatten, unflatten


@wrapt.when_imported("jax")
def _register(jax: Any) -> None:
    """Makes every settings class a pytree: what it declares a `Scalar`, and the floats of a mapping, are leaves.

    Runs when JAX is first imported, so that help and configuration errors do not import it.
    """
    for section in dict.fromkeys(_sections(Member)):
        jax.tree_util.register_pytree_node(section, *_flattening(section))
