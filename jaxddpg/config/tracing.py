"""What a function computes, as JAX traces it."""

import hashlib
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.extend
import numpy as np


def digest(function: Callable, *args: Any) -> str:
    """A digest of the computation of a function, with its constants, for arguments of these shapes and types."""
    closed = jax.make_jaxpr(function)(*args)
    return hashlib.sha256(str([*_described(closed.jaxpr, closed.consts)]).encode()).hexdigest()


def _described(jaxpr: jax.extend.core.Jaxpr, constants: Sequence[Any] = ()) -> Iterator[Any]:
    """A computation with its constants, and those inside it, without names and addresses; not as JAX prints it, which
    depends on what was traced before."""
    places: dict[Any, int] = {}

    def place(variable: Any) -> Any:
        if isinstance(variable, jax.extend.core.Literal):
            return _constant(variable.val)
        return places.setdefault(variable, len(places)), str(variable.aval)

    yield [*map(place, (*jaxpr.constvars, *jaxpr.invars))], [*map(_constant, constants)]
    for equation in jaxpr.eqns:
        yield equation.primitive.name, [*map(place, equation.invars)], [*map(place, equation.outvars)]
        for name, parameter in sorted(equation.params.items()):
            for value in parameter if isinstance(parameter, tuple) else (parameter,):
                if isinstance(value, jax.extend.core.ClosedJaxpr):
                    yield [*_described(value.jaxpr, value.consts)]
                elif isinstance(value, jax.extend.core.Jaxpr):
                    yield [*_described(value)]
                elif name == "callback":
                    yield _source(getattr(value, "callback_func", value))
                elif name != "name" and not callable(value):
                    yield name, re.sub("0x[0-9a-f]+", "", str(value))
    yield [*map(place, jaxpr.outvars)]


def _source(function: Any) -> str:
    """The code of a Python function that is called from the computation, but not of what it calls itself."""
    function = inspect.unwrap(getattr(function, "func", function))  # of a `functools.partial` too
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):  # it has none
        return getattr(function, "__qualname__", type(function).__qualname__)


def _constant(value: Any) -> tuple:
    is_key = hasattr(value, "dtype") and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key)
    array = np.asarray(jax.random.key_data(value) if is_key else value)
    return str(array.dtype), array.shape, hashlib.sha256(array.tobytes()).hexdigest()
