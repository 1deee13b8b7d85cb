"""One comparison of the self-test."""

from typing import Any, NamedTuple

import numpy as np


class Case(NamedTuple):
    """A result and what it must be."""

    name: str
    computed: Any
    exact: Any
    bound: float
    """on the largest |computed - exact|"""


class Check(NamedTuple):
    """The outcome of a case, shown where its error is largest."""

    name: str
    dtype: str
    computed: float
    exact: float
    error: float
    bound: float

    @property
    def holds(self) -> bool:
        """False too where the error is not a number."""
        return self.error <= self.bound


def compare(case: Case) -> Check:
    """Compares a case; returns the element with the largest error."""
    computed = np.ravel(np.asarray(case.computed))
    exact = np.broadcast_to(np.asarray(case.exact, np.float64), np.shape(case.computed)).ravel()
    error = np.abs(computed.astype(np.float64) - exact)
    worst = int(np.argmax(error))  # of a NaN, if there is one
    return Check(
        case.name, str(computed.dtype), float(computed[worst]), float(exact[worst]), float(error[worst]), case.bound
    )
