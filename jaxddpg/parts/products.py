"""The matrix products of hidden layers, in float32 or with operands rounded to bfloat16."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def dot_general(precision: str, num_inputs: int = 0) -> Callable[..., jax.Array]:
    """The `dot_general` of a `flax.linen.Dense` with this precision.

    With "bfloat16" the operands of the product and of both products of its derivative are rounded to bfloat16, and sums
    are accumulated and returned in float32 (Kalamkar et al. 2019, "A study of BFLOAT16 for deep learning training",
    arXiv 1905.12322). That is written as casts, because XLA ignores the precision that a product asks for on a CPU. It
    has reverse-mode derivatives only.

    Args:
        num_inputs: how many of the last features of the layer's input are inputs of the network, such as an action.
            Their product stays float32.
    """
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"precision is {precision}, but must be float32 or bfloat16")
    return partial(_rounded, num_inputs) if precision == "bfloat16" else lax.dot_general


def _rounded(num_inputs: int, x: jax.Array, kernel: jax.Array, dimensions: Any, precision: Any = None) -> jax.Array:
    """[..., K], [K, N] -> [..., N]"""
    del dimensions, precision  # flax contracts the last axis of x with the first of the kernel
    hidden = kernel.shape[0] - num_inputs
    product = _product(x[..., :hidden].reshape(-1, hidden), kernel[:hidden]).reshape(*x.shape[:-1], kernel.shape[-1])
    return product + x[..., hidden:] @ kernel[hidden:] if num_inputs else product


def _dot(x: jax.Array, y: jax.Array, over: tuple[int, int]) -> jax.Array:
    dimensions = (((over[0],), (over[1],)), ((), ()))
    return lax.dot_general(x, y, dimensions, preferred_element_type=jnp.float32)


@jax.custom_vjp
def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _forward(x, kernel)[0]


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    rounded = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    return _dot(*rounded, over=(1, 0)).astype(x.dtype), rounded


def _backward(operands: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = operands
    rounded = gradient.astype(jnp.bfloat16)
    by_x, by_kernel = _dot(rounded, kernel, over=(1, 1)), _dot(_transposed(x), rounded, over=(1, 0))
    return by_x.astype(gradient.dtype), by_kernel.astype(gradient.dtype)


_product.defvjp(_forward, _backward)

_ROWS = 8


def _transposed(x: jax.Array) -> jax.Array:
    """[B, K] -> [K, B]

    XLA's CPU backend has a fast kernel for x y and x y^T but not for x^T y. Two blocked transposes, kept apart by
    barriers so that they are not folded into the product, are several times as fast as one transpose.
    """
    num_rows, size = x.shape
    if jax.default_backend() != "cpu" or num_rows % _ROWS:
        return x.T
    blocks = lax.optimization_barrier(x.reshape(num_rows // _ROWS, _ROWS, size).transpose(0, 2, 1))
    return lax.optimization_barrier(blocks.transpose(1, 0, 2).reshape(size, num_rows))
