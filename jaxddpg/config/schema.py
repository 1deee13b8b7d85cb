"""The JSON Schema of an experiment, by which editors complete, explain and check its YAML. Needs no JAX."""

import dataclasses
import typing
from collections.abc import Mapping
from fractions import Fraction
from math import inf
from typing import Any, Literal

from jaxddpg.config.reader import alternatives_of, kind_of, plain
from jaxddpg.settings import Experiment, Factory

_BOUNDS = {"at least": "minimum", "greater than": "exclusiveMinimum", "at most": "maximum"}
_NUMBER_AS_TEXT = {"type": "string", "pattern": r"^[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?$"}
"""Numbers that YAML readers other than ours take for a text, such as 1e-3 (YAML 1.1) or 100_000 (YAML 1.2)."""
_WITHOUT_RULE: dict[Any, dict[str, Any]] = {
    bool: {"type": "boolean"},
    str: {"type": "string"},
    Fraction: {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string", "pattern": "^1/[1-9][0-9]*$"}]},
}


def schema() -> dict[str, Any]:
    """The schema (draft 7) of each section and setting, with meanings, choices, bounds and defaults."""
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "jaxddpg experiment"} | _section(Experiment)


def _section(kind: Any) -> dict[str, Any]:
    properties = {}
    for field in dataclasses.fields(kind):
        alternatives = [*alternatives_of(kind_of(kind, field.name)).values()]
        found = [*map(_section, alternatives)] or [_value(kind_of(kind, field.name), field)]
        # Not oneOf: where the tag is left out, the settings may be those of several.
        properties[field.name] = (
            {"description": field.metadata["meaning"]}
            | (found[0] if len(found) == 1 else {"anyOf": found})
            | ({} if field.default is dataclasses.MISSING else {"default": _plain(field.default)})
        )
    return {"type": ["object", "null"], "properties": properties, "additionalProperties": False}


def _value(kind: Any, field: dataclasses.Field) -> dict[str, Any]:
    """The schema of a setting of this type, or of an entry of its list."""
    if typing.get_origin(kind) is Literal:
        return {"enum": [*typing.get_args(kind)]}
    if typing.get_origin(kind) is Mapping:
        return {"type": "object"}
    if typing.get_origin(kind) is tuple:
        entries = {"type": "array", "items": _value(typing.get_args(kind)[0], field)}
        return entries if field.default == () else entries | {"minItems": 1}
    if field.type is Factory:
        return {"type": "string", "pattern": "^[^:]+:[^:]+$"}
    if kind in _WITHOUT_RULE:
        return _WITHOUT_RULE[kind]
    bounds = {_BOUNDS[words]: bound for words, bound in field.metadata["rule"].items()}
    number = {"type": "integer" if kind is int else "number"} | bounds
    return {"anyOf": [number, _NUMBER_AS_TEXT, *([{"const": "inf"}] if field.default == inf else [])]}


def _plain(value: Any) -> Any:
    """A value in JSON, which has no infinity."""
    return "inf" if value == inf else plain(value)
