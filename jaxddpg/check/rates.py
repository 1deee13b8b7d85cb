"""Throughput of a hidden layer's matrix products on this machine, in each precision."""

import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from jaxddpg.parts import products


def rate(precision: str) -> float:
    """FLOP/s of one hidden layer, forward and backward: the fastest of five measurements of at least 0.1 s each."""
    size = 256 if jax.default_backend() == "cpu" else 4_096  # units of both layers, and rows of the batch
    kernel = jax.random.normal(jax.random.key(0), (size, size))
    repeat = jax.jit(partial(_products, products.dot_general(precision)))

    def seconds(count: int) -> float:
        start = time.perf_counter()
        jax.block_until_ready(repeat(kernel, count))
        return time.perf_counter() - start

    seconds(1)  # compiles
    count = 10
    while seconds(count) < 0.1:
        count *= 2
    return count * operations(size) / min(seconds(count) for _ in range(5))


def operations(size: int) -> int:
    """Floating-point operations of the three products of a layer."""
    return 3 * 2 * size**3


def _products(dot_general: Callable[..., jax.Array], kernel: jax.Array, count: jax.Array) -> jax.Array:
    def layer(_: jax.Array, kernel: jax.Array) -> jax.Array:
        # Each iteration consumes the result of the previous one, so none can be elided or overlapped.
        y, pull = jax.vjp(lambda x, k: dot_general(x, k, (((1,), (0,)), ((), ()))), kernel, kernel)
        by_x, by_kernel = pull(y)
        return jnp.tanh(by_x + by_kernel)

    return jax.lax.fori_loop(0, count, layer, kernel)
