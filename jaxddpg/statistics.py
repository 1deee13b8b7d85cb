"""Robust statistics over members: the interquartile mean, performance profiles and the probability of improvement, each
with its bootstrap interval (Agarwal et al. 2021, arXiv 2108.13264)."""

from collections.abc import Callable, Sequence

import numpy as np


def worst_if_not_finite(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Values in which what is not finite, a diverged member's, counts as the worst there is."""
    return np.where(np.isfinite(values), values, -np.inf)


def best(values: Sequence[float] | np.ndarray) -> int:
    """Which of the values is the highest, the first of equal ones."""
    return int(np.argmax(worst_if_not_finite(values)))


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """The mean over the last axis without its lowest and highest quarter, rounded down.

    A member whose value is not finite (diverged) counts as the worst there is.
    """
    ordered = np.sort(worst_if_not_finite(values), axis=-1)
    quarter = ordered.shape[-1] // 4
    return ordered[..., quarter : ordered.shape[-1] - quarter].mean(-1)


def confidence_interval(values: np.ndarray, resamples: int = 2_000) -> tuple[np.ndarray, np.ndarray]:
    """The 95% percentile bootstrap interval of the interquartile mean over the last axis, members [..., M]."""
    index = np.random.default_rng(0).integers(values.shape[-1], size=(resamples, values.shape[-1]))
    # Row by row: all resamples of all rows at once would take gigabytes for a long run.
    rows = values.reshape(-1, values.shape[-1])
    means = np.stack([interquartile_mean(row[index]) for row in rows]).reshape(*values.shape[:-1], resamples)
    low, high = np.quantile(means, [0.025, 0.975], axis=-1, method="nearest")
    return low, high


def pooled_mean(strata: Sequence[np.ndarray]) -> float:
    """The interquartile mean of the members of all strata, such as tasks, together."""
    return float(interquartile_mean(np.concatenate(strata)))


def performance_profile(strata: Sequence[np.ndarray], thresholds: np.ndarray) -> np.ndarray:
    """The share of members above each threshold [T], the mean over the strata. A diverged member is above none."""
    return np.mean([(values[:, None] > thresholds).mean(0) for values in strata], axis=0)


def probability_of_improvement(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> float:
    """Probability that a member of one method exceeds a member of the other (ties count half), averaged over strata.

    A member whose value is not finite is below all that are. Agarwal et al. 2021, section 4.3: the Mann-Whitney U
    statistic over the number of pairs.
    """
    shares = []
    for a, b in zip(one, other, strict=True):
        a, b = map(worst_if_not_finite, (a, b))
        shares.append(np.mean((a[:, None] > b) + 0.5 * (a[:, None] == b)))
    return float(np.mean(shares))


def stratified_interval(
    statistic: Callable[..., np.ndarray | float], *samples: Sequence[np.ndarray], resamples: int = 2_000
) -> tuple[np.ndarray, np.ndarray]:
    """The 95% percentile bootstrap interval of `statistic(*samples)`, each sample a list of strata [M], whose members
    are drawn again, each within its stratum."""
    rng = np.random.default_rng(0)
    found = [
        statistic(*([values[rng.integers(len(values), size=len(values))] for values in strata] for strata in samples))
        for _ in range(resamples)
    ]
    low, high = np.quantile(np.array(found), [0.025, 0.975], axis=0, method="nearest")
    return low, high
