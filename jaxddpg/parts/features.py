"""Features of observations for linear learners: tile coding, Fourier, radial and polynomial bases.

Each scales an observation [O] from its range [low, high] first. The squared norm of the features phi(s) is 1 or bounded
by 1 (but for polynomials), so that a step size means the same however many features there are.
"""

import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxddpg.types import Features, Scalar


def tiles(low: jax.Array, high: jax.Array, num_tilings: int = 8, num_tiles: int = 10) -> Features:
    """Tile coding (Sutton & Barto 2018, section 9.5.4): in each tiling one tile is active, worth 1 / sqrt(num_tilings).

    Tiling t is offset by t / num_tilings of a tile times (1, 3, 5, ...) along the dimensions, so each has one more tile
    than `num_tiles` along each. The offsets along a dimension are all different where `num_tilings` shares no factor
    with its odd number, as a power of 2 does; Sutton & Barto ask for at least four tilings per dimension. Only the
    weights of active tiles are read and changed; observations beyond the range belong to the outermost tiles.
    """
    dimensions = np.shape(low)[0]
    size = _bounded(num_tilings * (num_tiles + 1) ** dimensions, dimensions)
    offset = np.arange(num_tilings)[:, None] * (1 + 2 * np.arange(dimensions)) / num_tilings % 1
    stride = (num_tiles + 1) ** np.arange(dimensions)
    tiling = np.arange(num_tilings) * (num_tiles + 1) ** dimensions

    def dot(weights: jax.Array, observation: jax.Array) -> jax.Array:
        position = num_tiles * jnp.clip(_unit(observation, low, high), 0.0, 1.0)
        tile = jnp.floor(position[..., None, :] + offset).astype(jnp.int32)
        index = tiling + jnp.sum(tile * stride, axis=-1)
        return jnp.sum(weights[index], axis=-2) / num_tilings**0.5

    return Features(size, dot)


def fourier(low: jax.Array, high: jax.Array, order: int = 3) -> Features:
    """cos(pi c . x) for every c in {0 .. order}^O, over the square root of their number (Konidaris et al. 2011)."""
    frequency = _grid(np.arange(order + 1), np.shape(low)[0])

    def encode(observation: jax.Array) -> jax.Array:
        return jnp.cos(jnp.pi * _unit(observation, low, high) @ frequency.T) / len(frequency) ** 0.5

    return _dense(len(frequency), encode)


def radial(low: jax.Array, high: jax.Array, num_centers: int = 5, width: Scalar = 1.0) -> Features:
    """Gaussian bumps on a grid, normalized to sum to 1; `width` is their standard deviation, in grid spacings."""
    center = _grid(np.linspace(0, 1, num_centers), np.shape(low)[0])

    def encode(observation: jax.Array) -> jax.Array:
        distance = (_unit(observation, low, high)[..., None, :] - center) * (num_centers - 1) / width
        return jax.nn.softmax(-0.5 * jnp.sum(distance**2, axis=-1))

    return _dense(len(center), encode)


def polynomial(low: jax.Array, high: jax.Array, order: int = 1) -> Features:
    """All monomials up to total degree `order` of the observation scaled to [-1, 1], the constant first.

    Order 1 is a constant and the scaled observation itself.
    """
    dimensions = np.shape(low)[0]
    _bounded(math.comb(dimensions + order, order), dimensions)
    degrees = range(order + 1)
    monomials = [f for degree in degrees for f in itertools.combinations_with_replacement(range(dimensions), degree)]

    def encode(observation: jax.Array) -> jax.Array:
        x = 2 * _unit(observation, low, high) - 1
        return jnp.stack([jnp.prod(x[..., list(factors)], axis=-1) for factors in monomials], axis=-1)

    return _dense(len(monomials), encode)


def _unit(observation: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """The observation with its range scaled to [0, 1]."""
    return (observation - low) / (high - low)


def _grid(values: np.ndarray, dimensions: int) -> np.ndarray:
    """All points [len(values)^O, O] of the grid with these values along each dimension."""
    _bounded(len(values) ** dimensions, dimensions)
    return np.stack(np.meshgrid(*[values] * dimensions, indexing="ij"), axis=-1).reshape(-1, dimensions)


def _dense(size: int, encode: Callable[[jax.Array], jax.Array]) -> Features:
    return Features(size, lambda weights, observation: encode(observation) @ weights)


def _bounded(size: int, dimensions: int) -> int:
    """Returns the number of features; raises ValueError where it is too large to be intended."""
    if size > 2**24:
        raise ValueError(
            f"{dimensions} observation dimensions give {size} features, more than the maximum of {2**24}; use a "
            "coarser grid, or "
            "the polynomial encoding, which grows slowly"
        )
    return size
