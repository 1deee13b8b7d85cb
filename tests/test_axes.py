import random

import numpy as np
import pytest

from jaxddpg.config import axes


def test_points_are_those_of_numpy():
    np.testing.assert_allclose(axes.points({"linspace": [-1, 2, 7]}), np.linspace(-1, 2, 7), rtol=1e-6)
    np.testing.assert_allclose(axes.points({"geomspace": ["1e-5", 1e-1, 9]}), np.geomspace(1e-5, 1e-1, 9), rtol=1e-6)
    assert axes.points([3, "1e-3", [64, 64]]) == [3, "1e-3", [64, 64]]


def test_ends_are_met():
    assert axes.points({"geomspace": [1e-4, 1e-2, 3]}) == [1e-4, 1e-3, 1e-2]
    assert axes.points({"linspace": [0.1, 0.3, 3]}) == [0.1, 0.2, 0.3]


@pytest.mark.parametrize(
    "axis",
    [
        *(3, "a", [], {}, {"linspace": 3}, {"linspace": [0, 1]}, {"linspace": [0, 1, 1]}, {"linspace": [0, 1, 2.5]}),
        *({"linspace": [1, 0, 3]}, {"geomspace": [0, 1, 3]}, {"linspace": [0, "b", 3]}, {"linspace": [0, np.inf, 3]}),
        *({"uniform": [0, 1, 2]}, {"uniform": [1, 1]}, {"loguniform": [-1, 1]}, {"normal": [0, 1]}),
        *({"uniform": [0, 1], "linspace": [0, 1, 2]}, {"linspace": None}, None),
    ],
)
def test_what_is_no_axis_is_refused(axis):
    with pytest.raises(ValueError, match="a list of values"):
        axes.check(axis)


def test_an_axis_that_numpy_means_otherwise_is_answered_with_its_name():
    """NumPy's logspace takes exponents."""
    with pytest.raises(ValueError, match=r"\{geomspace: .* values, not exponents"):
        axes.check({"logspace": [1, 5, 5]})


def test_a_grid_has_every_combination_the_last_axis_fastest():
    found = axes.variants({"a": [1, 2], "b": {"linspace": [0, 1, 3]}}, "grid", 1, 0)
    assert [(v["a"], v["b"]) for v in found] == [(1, 0), (1, 0.5), (1, 1), (2, 0), (2, 0.5), (2, 1)]


def test_zipped_axes_go_together():
    assert [*axes.variants({"a": [1, 2], "b": [3, 4]}, "zip", 1, 0)] == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]


@pytest.mark.parametrize("combine", ["grid", "zip", "random"])
def test_without_axes_there_is_one_variant_that_changes_nothing(combine):
    assert [*axes.variants({}, combine, 1, 0)] == [{}]


def test_draws_have_the_distribution_of_their_range():
    """Quantiles of many draws against those of the distributions, within four standard errors."""
    count = 4_000
    ranges = {"a": {"uniform": [2, 4]}, "b": {"loguniform": [1e-5, 1e-1]}, "c": [1, 2, 3, 4]}
    found = [*axes.variants(ranges, "random", count, 3)]
    share = np.arange(1, 10) / 10
    error = 4 * np.sqrt(share * (1 - share) / count)
    a, b, c = (np.array([variant[name] for variant in found]) for name in "abc")
    assert np.all(np.abs([np.mean(a < 2 + 2 * s) for s in share] - share) < error)
    assert np.all(np.abs([np.mean(b < 1e-5 * 1e4**s) for s in share] - share) < error)
    assert np.all(np.abs(np.bincount(c)[1:] / count - 0.25) < 4 * np.sqrt(0.25 * 0.75 / count))
    assert abs(np.corrcoef(a, np.log(b))[0, 1]) < 4 / np.sqrt(count)


def test_draws_depend_on_the_seed_alone():
    axis = {"a": {"uniform": [0, 1]}}
    random.seed(1)
    first = [*axes.variants(axis, "random", 5, 3)]
    random.seed(2)
    assert first == [*axes.variants(axis, "random", 5, 3)]
    assert first != [*axes.variants(axis, "random", 5, 4)]
    assert first == [*axes.variants(axis, "random", 9, 3)][:5]


def test_a_variant_is_drawn_once():
    found = [*axes.variants({"a": [1, 2, 3], "b": [1, 2]}, "random", 6, 0)]
    assert sorted((variant["a"], variant["b"]) for variant in found) == [(a, b) for a in (1, 2, 3) for b in (1, 2)]
