"""YAML as an experiment is read from it and written to it. Only decimal numbers are numbers, as in YAML 1.2: YAML 1.1,
which PyYAML reads, takes 010 for 8 and 1:30 for 90."""

import json
import re
from math import inf
from typing import Any, TextIO

import yaml

Error = yaml.YAMLError


class _Loader(yaml.SafeLoader):
    """A key given twice is refused; the standard loader silently keeps the last."""

    def construct_number(self, node: yaml.ScalarNode) -> int | float | str:
        """A number; one that Python cannot hold, such as 1e999, remains a text, which no setting takes for a number."""
        word = node.value.lower().replace(".inf", "inf").replace(".nan", "nan")
        try:
            return int(word)
        except ValueError:
            number = float(word)
            return node.value if abs(number) == inf and "inf" not in word else number

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "keys must be strings", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key.value}", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """A text is quoted where `_Loader` or a reader of YAML 1.1 would take it for something else."""


_DIGITS = "[0-9](?:_?[0-9])*"
_NUMBER = re.compile(
    rf"(?:[-+]?(?:(?:{_DIGITS}(?:\.(?:{_DIGITS})?)?|\.{_DIGITS})(?:[eE][-+]?{_DIGITS})?|\.(?:inf|Inf|INF))"
    r"|\.(?:nan|NaN|NAN))\Z"
)
_INT, _FLOAT, *_OTHERS = (f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "timestamp", "value"))
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in pairs if tag not in (_INT, _FLOAT, *_OTHERS)]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for tag in (_INT, _FLOAT):
    _Loader.add_constructor(tag, _Loader.construct_number)
for language in (_Loader, _Dumper):
    language.add_implicit_resolver(_FLOAT, _NUMBER, "-+.0123456789")
# Values that no setting can take, such as functions or dates, must still be printable in error messages.
PLAIN = (type(None), bool, int, float, str, list, tuple, dict)
_Dumper.yaml_representers = {kind: _Dumper.yaml_representers[kind] for kind in PLAIN}
_Dumper.add_multi_representer(object, lambda dumper, value: dumper.represent_str(repr(value)[:80]))


def load(source: str | TextIO) -> Any:
    """The value that YAML spells.

    Raises:
        Error: it is not valid YAML.
    """
    try:
        value = yaml.load(source, _Loader)
        json.dumps(value, default=str)  # a ValueError where an alias stands inside what it refers to
        return value
    except (ValueError, LookupError, AttributeError, RecursionError) as error:  # as of `!!int x`, or of other bytes
        raise Error(str(error)) from error


def dump(value: Any) -> str:
    """A value on one line, as `load` reads it back."""
    written = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, sort_keys=False, width=inf)
    return written.removesuffix("...\n").strip()
