"""The axes of a sweep: from what a config says of each to the values that every variant has."""

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxddpg.settings import AXIS_FORM, MAX_VARIANTS

POINTS = ("linspace", "geomspace")
RANGES = ("uniform", "loguniform")


def is_range(axis: Any) -> bool:
    """Whether an axis has no points of its own, so that values can only be drawn from it."""
    return isinstance(axis, Mapping) and any(kind in axis for kind in RANGES)


def points(axis: Any) -> list[Any]:
    """The values along an axis that is no range, in order.

    Raises:
        ValueError: it is not a valid axis; the message says what would be.
    """
    if isinstance(axis, list | tuple) and axis:
        return list(axis)
    kind, (first, last, count) = _numbers(axis, POINTS, 3)
    if not 2 <= count == int(count) <= MAX_VARIANTS:
        raise ValueError(f"{AXIS_FORM}; num must be an integer from 2 to {MAX_VARIANTS}")
    return [_between(kind == "geomspace", first, last, index / (count - 1)) for index in range(int(count))]


def check(axis: Any) -> None:
    """ValueError unless it is an axis; the text says what would be one."""
    if is_range(axis):
        _numbers(axis, RANGES, 2)
    else:
        points(axis)


def draw(axis: Any, source: random.Random) -> Any:
    """A value of an axis at random: within a range, or one of its points, each as likely."""
    share = source.random()
    if is_range(axis):
        kind, (low, high) = _numbers(axis, RANGES, 2)
        return _between(kind == "loguniform", low, high, share)
    values = points(axis)
    return values[int(share * len(values))]


def variants(axes: Mapping[str, Any], combine: str, num_draws: int, seed: int) -> Iterator[dict[str, Any]]:
    """The values of each variant, by the names of the axes; without axes one variant that changes nothing.

    Args:
        combine: "grid", every value of an axis with every value of the others, the last axis fastest; "zip", the
            first values of all axes, then the second, ...; "random", a value of each axis until there are
            `num_draws` different variants; fewer where so many do not exist.
        seed: of the draws.
    """
    choices: Iterator[Sequence[Any]]
    if combine == "random" and axes:
        source, drawn = random.Random(seed), dict[str, list[Any]]()
        for _ in range(100 * num_draws):
            values = [draw(axis, source) for axis in axes.values()]
            drawn.setdefault(repr(values), values)  # skip duplicates
            if len(drawn) == num_draws:
                break
        choices = iter(drawn.values())
    elif combine == "zip" and axes:
        choices = zip(*map(points, axes.values()), strict=True)
    else:
        choices = itertools.product(*map(points, axes.values()))
    return (dict(zip(axes, values, strict=True)) for values in choices)


def _numbers(axis: Any, kinds: Sequence[str], count: int) -> tuple[str, list[float]]:
    """The kind of an axis that is given by numbers, and these."""
    if isinstance(axis, Mapping) and "logspace" in axis:
        raise ValueError(
            "{geomspace: [first, last, num]}, where first and last are values, not exponents as in np.logspace"
        )
    try:
        ((kind, given),) = axis.items()
        numbers = [float(number) for number in given]
    except (AttributeError, TypeError, ValueError):
        raise ValueError(AXIS_FORM) from None
    if kind not in kinds or len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise ValueError(AXIS_FORM)
    if numbers[0] >= numbers[1]:
        raise ValueError(f"{AXIS_FORM}; the first number must be below the second")
    if kind in ("geomspace", "loguniform") and numbers[0] <= 0:
        raise ValueError(f"{AXIS_FORM}; both bounds of a geomspace or loguniform axis must be positive")
    return kind, numbers


def _between(logarithmic: bool, low: float, high: float, share: float) -> float:
    """The number at this share of the way from one to another, rounded to the precision of a float32."""
    number = low * (high / low) ** share if logarithmic else low + (high - low) * share
    return float(f"{number:.7g}")
