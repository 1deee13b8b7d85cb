import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from jaxddpg import settings
from jaxddpg.config.build import make_features
from jaxddpg.parts import features
from jaxddpg.types import Environment

LOW, HIGH = np.array([-1.5, 0.0, 2.0]), np.array([0.5, 4.0, 10.0])


def points(count=40, dimensions=3, seed=0, beyond=0.0):
    """Observations spread over the range, and a share `beyond` it on each side."""
    low, high = LOW[:dimensions], HIGH[:dimensions]
    unit = np.random.default_rng(seed).uniform(-beyond, 1 + beyond, (count, dimensions))
    return low + unit * (high - low)


def phi(encoding, observation):
    """The features themselves [..., size]."""
    return np.asarray(jax.jit(encoding.dot)(np.eye(encoding.size, dtype=observation.dtype), observation))


def plain_environment(size=3, **ranges):
    return Environment(None, None, observation_size=size, action_size=1, episode_length=1, **ranges)


ENCODINGS = {
    "tiles": features.tiles(LOW, HIGH, 4, 3),
    "fourier": features.fourier(LOW, HIGH, 2),
    "radial": features.radial(LOW, HIGH, 4, 0.7),
    "polynomial": features.polynomial(LOW, HIGH, 2),
}


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(("dimensions", "num_tilings", "num_tiles"), [(1, 5, 4), (2, 10, 10), (3, 8, 3), (2, 1, 6)])
def test_tiles_are_those_of_explicit_offset_grids(float64, dimensions, num_tilings, num_tiles):
    low, high = LOW[:dimensions], HIGH[:dimensions]
    encoding = features.tiles(low, high, num_tilings, num_tiles)
    seen = points(60, dimensions, beyond=0.3)
    expected = np.stack([oracles.tile_coding(x, low, high, num_tilings, num_tiles) for x in seen])
    assert encoding.size == num_tilings * (num_tiles + 1) ** dimensions
    weights = np.random.default_rng(1).normal(size=(encoding.size, 2))
    np.testing.assert_allclose(jax.jit(encoding.dot)(weights, seen), expected @ weights, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("num_tilings", [1, 8, 10])
def test_in_each_tiling_one_tile_is_active_and_together_they_have_norm_one(num_tilings):
    encoded = phi(features.tiles(LOW, HIGH, num_tilings, 3), points(beyond=0.3))
    by_tiling = encoded.reshape(len(encoded), num_tilings, -1)
    np.testing.assert_array_equal(np.count_nonzero(by_tiling, axis=-1), 1)
    np.testing.assert_allclose(encoded[encoded != 0], num_tilings**-0.5, rtol=1e-6)


@pytest.mark.parametrize("dimension", [0, 1, 2])
def test_observations_a_fraction_of_a_tile_apart_share_all_tilings_but_as_many_fractions(float64, dimension):
    """The tilings' edges lie evenly, so k / n of a tile crosses k of n of them: so finely do tiles resolve."""
    n, num_tiles = 8, 4
    encoding = features.tiles(LOW, HIGH, n, num_tiles)
    start = LOW + (HIGH - LOW) * 0.4
    tile = (HIGH - LOW)[dimension] / num_tiles
    here = phi(encoding, start)
    there = phi(encoding, start + np.eye(3)[dimension] * tile * np.arange(n + 1)[:, None] / n)
    np.testing.assert_array_equal(np.count_nonzero(here * there, axis=-1), n - np.arange(n + 1))


def test_neighbors_in_every_dimension_share_most_tiles(float64):
    encoding, rng = features.tiles(LOW[:2], HIGH[:2], 10, 10), np.random.default_rng(2)
    here = points(200, 2) * 0.9
    step = rng.uniform(-1, 1, here.shape) * (HIGH - LOW)[:2] / 10 / 10
    shared = np.count_nonzero(phi(encoding, here) * phi(encoding, here + step), axis=-1)
    assert shared.min() >= 8  # each dimension crosses one edge at most
    assert shared.max() == 10


def test_observations_beyond_the_range_belong_to_the_outermost_tiles():
    encoding = features.tiles(LOW, HIGH, 4, 3)
    beyond = points(100, beyond=2.0).astype("f4")
    np.testing.assert_array_equal(
        phi(encoding, beyond), phi(encoding, np.clip(beyond, np.float32(LOW), np.float32(HIGH)))
    )


def test_every_tile_of_every_grid_can_be_active():
    encoding = features.tiles(LOW[:2], HIGH[:2], 4, 3)
    grid = np.stack(np.meshgrid(*(np.linspace(LOW[d], HIGH[d], 61) for d in range(2))), -1).reshape(-1, 2)
    active = phi(encoding, grid) > 0
    # Without an offset the last tile of a dimension is the upper end alone.
    np.testing.assert_array_equal(active.any(0), True)


def test_the_gradient_touches_the_weights_of_active_tiles_only():
    encoding, seen = features.tiles(LOW, HIGH, 4, 3), points(1)[0]
    gradient = jax.grad(lambda weights: jnp.sum(encoding.dot(weights, seen)))(jnp.ones((encoding.size, 2)))
    np.testing.assert_allclose(gradient, np.repeat(phi(encoding, seen)[:, None], 2, axis=1), rtol=1e-6)
    assert np.count_nonzero(gradient) == 4 * 2


@pytest.mark.parametrize(("dimensions", "order"), [(1, 4), (2, 3), (3, 2), (2, 0)])
def test_fourier_features_are_the_cosines_along_and_across(float64, dimensions, order):
    low, high = LOW[:dimensions], HIGH[:dimensions]
    seen = points(20, dimensions)
    cosines = [
        [np.cos(np.pi * sum(c * u for c, u in zip(wave, (x - low) / (high - low), strict=True))) for x in seen]
        for wave in itertools.product(range(order + 1), repeat=dimensions)
    ]
    encoded = phi(features.fourier(low, high, order), seen)
    np.testing.assert_allclose(encoded, np.transpose(cosines) / np.sqrt(len(cosines)), atol=1e-13)
    assert np.max(np.sum(encoded**2, -1)) <= 1


@pytest.mark.parametrize(("num_centers", "width"), [(2, 1.0), (5, 0.5), (4, 3.0)])
def test_radial_features_are_normalized_gaussians_around_a_grid(float64, num_centers, width):
    low, high = LOW[:2], HIGH[:2]
    seen, spacing = points(20, 2, beyond=0.2), (high - low) / (num_centers - 1)
    centers = [low + spacing * place for place in itertools.product(range(num_centers), repeat=2)]
    bumps = [[np.exp(-np.sum(((x - center) / spacing / width) ** 2) / 2) for center in centers] for x in seen]
    encoding = features.radial(low, high, num_centers, width)
    encoded = phi(encoding, seen)
    np.testing.assert_allclose(encoded, bumps / np.sum(bumps, -1, keepdims=True), rtol=1e-10)
    np.testing.assert_allclose(np.sum(encoded, -1), 1, rtol=1e-12)
    # At its own center a bump outdoes all others.
    np.testing.assert_array_equal(np.argmax(phi(encoding, np.stack(centers)), -1), np.arange(len(centers)))


def test_polynomials_of_order_one_are_a_constant_and_the_scaled_observation(float64):
    seen = points()
    encoded = phi(features.polynomial(LOW, HIGH, 1), seen)
    np.testing.assert_allclose(encoded[:, 0], 1)
    np.testing.assert_allclose(encoded[:, 1:], (seen - (LOW + HIGH) / 2) / ((HIGH - LOW) / 2), atol=1e-13)


def test_polynomials_of_order_two_in_three_dimensions_are_the_ten_monomials(float64):
    seen = points()
    x, y, z = ((seen - (LOW + HIGH) / 2) / ((HIGH - LOW) / 2)).T
    expected = np.stack([np.ones_like(x), x, y, z, x * x, x * y, x * z, y * y, y * z, z * z], -1)
    np.testing.assert_allclose(phi(features.polynomial(LOW, HIGH, 2), seen), expected, atol=1e-13)


@pytest.mark.parametrize(("dimensions", "order", "size"), [(1, 5, 6), (2, 3, 10), (3, 3, 20), (3, 0, 1)])
def test_polynomials_are_all_monomials_up_to_their_order(float64, dimensions, order, size):
    low, high = LOW[:dimensions], HIGH[:dimensions]
    encoding, seen = features.polynomial(low, high, order), points(10, dimensions)
    assert encoding.size == size
    expected = np.stack([oracles.monomials(x, low, high, order) for x in seen])
    np.testing.assert_allclose(phi(encoding, seen), expected, atol=1e-12)


@pytest.mark.parametrize("name", ENCODINGS)
def test_a_batch_is_encoded_like_its_rows(name):
    encoding, seen = ENCODINGS[name], points(12, beyond=0.1).astype("f4")
    weights = np.random.default_rng(3).normal(size=(encoding.size, 5)).astype("f4")
    dot = jax.jit(encoding.dot)
    rows = np.stack([dot(weights, x) for x in seen])
    assert rows.shape == (12, 5)
    np.testing.assert_allclose(dot(weights, seen), rows, rtol=1e-5, atol=1e-5)
    grid = dot(weights, seen.reshape(3, 4, 3))
    np.testing.assert_allclose(grid, rows.reshape(3, 4, 5), rtol=1e-5, atol=1e-5)


SECTIONS = {
    "tiles": (settings.Tiles(num_tilings=4, num_tiles=3), features.tiles, (4, 3)),
    "fourier": (settings.Fourier(order=2), features.fourier, (2,)),
    "radial": (settings.Radial(num_centers=4, width=0.7), features.radial, (4, 0.7)),
    "polynomial": (settings.Polynomial(order=2), features.polynomial, (2,)),
}


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_says_which_encoding_and_the_environment_its_range(name):
    section, function, arguments = SECTIONS[name]
    made = make_features(plain_environment(observation_low=LOW, observation_high=HIGH), section)
    expected, seen = function(jnp.float32(LOW), jnp.float32(HIGH), *arguments), points().astype("f4")
    assert made.size == expected.size
    np.testing.assert_array_equal(phi(made, seen), phi(expected, seen))


def test_a_range_of_the_environment_may_be_one_for_all_observations():
    made = make_features(plain_environment(observation_low=-2.0, observation_high=4.0), settings.Polynomial())
    np.testing.assert_allclose(phi(made, np.float32([-2, 1, 4])), [1, -1, 0, 1], atol=1e-6)


@pytest.mark.parametrize("ranges", [{}, {"observation_low": np.full(3, -9.0), "observation_high": np.full(3, 9.0)}])
def test_a_range_of_the_settings_goes_before_that_of_the_environment(ranges):
    section = settings.Polynomial(low=(0.0, 0.0, -4.0), high=(1.0, 10.0, 4.0))
    made = make_features(plain_environment(**ranges), section)
    np.testing.assert_allclose(phi(made, np.float32([0.75, 5, -4])), [1, 0.5, 0, -1], atol=1e-6)


def test_a_range_may_be_traced():
    @jax.jit
    def encoded(low, high, seen):
        made = make_features(plain_environment(observation_low=low, observation_high=high), settings.Tiles(num_tiles=3))
        return made.dot(jnp.eye(made.size), seen)

    low, high, seen = np.float32(LOW), np.float32(HIGH), points().astype("f4")
    made = make_features(plain_environment(observation_low=low, observation_high=high), settings.Tiles(num_tiles=3))
    np.testing.assert_array_equal(encoded(low, high, seen), phi(made, seen))


@pytest.mark.parametrize(
    "ranges",
    [
        {},
        {"observation_low": np.zeros(3), "observation_high": np.array([1, np.inf, 1])},
        {"observation_low": np.array([0, 0, -3.4028235e38]), "observation_high": np.ones(3)},
        {"observation_low": np.array([0, 0, np.nan]), "observation_high": np.ones(3)},
        {"observation_low": np.array([0, 1, 0]), "observation_high": np.ones(3)},
    ],
    ids=["none", "infinite", "largest_float", "nan", "empty"],
)
@pytest.mark.parametrize("name", SECTIONS)
def test_observations_without_a_range_are_refused_with_the_way_out(name, ranges):
    message = r"finite observation bounds, but low is .* and high is .*; set {0}\.low and {0}\.high"
    with pytest.raises(ValueError, match=message.format(r"agent\.features")):
        make_features(plain_environment(**ranges), SECTIONS[name][0])


@pytest.mark.parametrize(
    ("low", "high", "count"), [((0.0,) * 2, (1.0,) * 2, 2), ((0.0,) * 4, (1.0,) * 4, 4), ((), (1.0,) * 3, 0)]
)
def test_a_range_for_another_number_of_observations_is_refused(low, high, count):
    with pytest.raises(ValueError, match=f"low and high have {count} numbers, but there are 3 observations"):
        make_features(plain_environment(), settings.Tiles(low=low, high=high))


@pytest.mark.parametrize(
    ("function", "dimensions", "argument", "size"),
    [
        (features.tiles, 7, 10, 10 * 11**7),
        (features.fourier, 2, 4_096, 4_097**2),
        (features.radial, 2, 4_097, 4_097**2),
        (features.polynomial, 5_800, 2, 5_802 * 5_801 // 2),
    ],
    ids=ENCODINGS,
)
def test_a_grid_that_cannot_be_meant_is_refused_before_it_is_made(function, dimensions, argument, size):
    sentence = f"{dimensions} observation dimensions give {size} features, more than the maximum of 16777216"
    with pytest.raises(ValueError, match=sentence):
        function(np.zeros(dimensions), np.ones(dimensions), argument)


def test_many_observations_have_few_monomials():
    assert features.polynomial(np.zeros(50), np.ones(50), 2).size == 1 + 50 + 50 * 51 // 2
