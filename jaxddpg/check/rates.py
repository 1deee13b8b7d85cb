"""What the matrix products of a hidden layer reach on this machine, in each precision."""

import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from jaxddpg.parts import products

SIZE = 256
"""Units of both layers, and rows of the batch."""


def rate(precision: str) -> float:
    """Floating-point operations per second of one hidden layer: of its product and of both of its derivative, in the
    fastest of five measurements of at least a tenth of a second."""
    kernel = jax.random.normal(jax.random.key(0), (SIZE, SIZE))
    repeat = jax.jit(partial(_products, products.dot_general(precision)))

    def seconds(count: int) -> float:
        start = time.perf_counter()
        jax.block_until_ready(repeat(kernel, count))
        return time.perf_counter() - start

    seconds(1)  # compiles
    count = 10
    while seconds(count) < 0.1:
        count *= 2
    return count * 3 * 2 * SIZE**3 / min(seconds(count) for _ in range(5))


def _products(dot_general: Callable[..., jax.Array], kernel: jax.Array, count: jax.Array) -> jax.Array:
    def layer(_: jax.Array, kernel: jax.Array) -> jax.Array:
        # Takes what the one before gave, so that none can be left out or run beside another.
        y, pull = jax.vjp(lambda x, k: dot_general(x, k, (((1,), (0,)), ((), ()))), kernel, kernel)
        by_x, by_kernel = pull(y)
        return jnp.tanh(by_x + by_kernel)

    return jax.lax.fori_loop(0, count, layer, kernel)
