"""Numerical self-tests with known answers, to verify results on a given accelerator.

Each check runs the package's own functions and compares the result with a closed form or a float64 NumPy reference.
Later checks rely on earlier ones.
"""

from collections.abc import Iterator

import jax

from jaxddpg.check.case import Case, Check, compare
from jaxddpg.check.estimated import ESTIMATED
from jaxddpg.check.exact import EXACT

__all__ = ["ESTIMATED", "EXACT", "Case", "Check", "compare", "self_test"]


def self_test() -> Iterator[Check]:
    """Runs all checks in float32, and the exact ones again in float64 if the device supports it.

    Matrix products are as precise as in training for those that are estimated, and of the highest precision otherwise.
    """
    for group in ESTIMATED:
        yield from map(compare, group())
    with jax.default_matmul_precision("highest"):
        for group in EXACT:
            yield from map(compare, group())
        if jax.default_backend() != "tpu":
            with jax.enable_x64(True):
                for group in EXACT:
                    yield from map(compare, group())
