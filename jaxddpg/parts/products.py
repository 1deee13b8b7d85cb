"""The matrix products of hidden layers, in float32 or with factors rounded to bfloat16."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def dot_general(precision: str) -> Callable[..., jax.Array]:
    """The `dot_general` of a `flax.linen.Dense` with this precision.

    With "bfloat16" the factors of the product and of both products of its derivative are rounded to bfloat16, and sums
    are accumulated and returned in float32 (Micikevicius et al. 2018, "Mixed precision training", section 3.3). That
    is written as casts, because XLA ignores the precision that a product asks for on a CPU.
    """
    return _rounded if precision == "bfloat16" else lax.dot_general


def _rounded(x: jax.Array, kernel: jax.Array, dimensions: Any, precision: Any = None) -> jax.Array:
    """[..., K], [K, N] -> [..., N]"""
    del dimensions, precision  # those of every dense layer, and the default
    return _product(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], -1)


def _dot(x: jax.Array, y: jax.Array, over: tuple[int, int]) -> jax.Array:
    dimensions = (((over[0],), (over[1],)), ((), ()))
    return lax.dot_general(x, y, dimensions, preferred_element_type=jnp.float32)


@jax.custom_vjp
def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _forward(x, kernel)[0]


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    rounded = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    return _dot(*rounded, over=(1, 0)).astype(x.dtype), rounded


def _backward(factors: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = factors
    rounded = gradient.astype(jnp.bfloat16)
    # XLA has a fast kernel for x y and x y^T on a CPU, but none for x^T y. The barrier keeps it from folding the
    # transpose into the product.
    transposed = lax.optimization_barrier(x.T)
    by_x, by_kernel = _dot(rounded, kernel, over=(1, 1)), _dot(transposed, rounded, over=(1, 0))
    return by_x.astype(gradient.dtype), by_kernel.astype(gradient.dtype)


_product.defvjp(_forward, _backward)
