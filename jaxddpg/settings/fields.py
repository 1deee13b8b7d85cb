"""What sections of settings are made of: fields with a default, a meaning and constraints, and rules between them."""

import dataclasses
from typing import Annotated, Any, NamedTuple

Scalar = Annotated[float, "traced"]
Factory = Annotated[str, "package.module:factory"]
"""The name of a function of the user's, by which a section is that of a custom agent, noise or replay."""
CUSTOM = "package.module:factory"
"""How such a name is written."""
AXIS_FORM = (
    "a list of values, {linspace: [first, last, num]}, {geomspace: [first, last, num]}, or, for random draws, "
    "{uniform: [low, high]} or {loguniform: [low, high]}"
)
"""What describes the values of a swept setting."""
MAX_VARIANTS = 10_000
"""Of a sweep; more are almost certainly a mistake."""
MAX_MEMBERS = 100_000
"""Of a run; listing more takes minutes before memory is checked."""


class Rule(NamedTuple):
    """A rule between settings. A section that has any lists them in a method `rules`."""

    holds: bool
    names: tuple[str, ...]
    """The settings involved, relative to the section; the message starts with the first."""
    words: str
    """The sentence after "NAME is VALUE, "."""


def setting(
    default: Any,
    meaning: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
) -> Any:
    """A settings field with a default, a description and constraints; for a list, the constraints apply to each entry.

    A number may be infinite only where that is its neutral default.
    """
    rule = {"at least": at_least, "greater than": above, "at most": at_most}
    metadata = {"meaning": meaning, "rule": {words: bound for words, bound in rule.items() if bound is not None}}
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)
