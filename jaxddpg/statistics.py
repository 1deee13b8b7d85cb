"""Honest statistics over members: the interquartile mean and its bootstrap interval (Agarwal et al. 2021)."""

import numpy as np
from scipy import stats


def interquartile_mean(values: np.ndarray, axis: int = -1) -> np.ndarray:
    """The mean of the middle half. A member without a number (diverged) counts as the worst there is."""
    return stats.trim_mean(np.where(np.isnan(values), -np.inf, values), 0.25, axis=axis)


def confidence_interval(values: np.ndarray, resamples: int = 2_000) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % percentile bootstrap interval of the interquartile mean over the last axis, members [..., M]."""
    index = np.random.default_rng(0).integers(values.shape[-1], size=(resamples, values.shape[-1]))
    means = interquartile_mean(values[..., index])
    low, high = np.quantile(means, [0.025, 0.975], axis=-1, method="nearest")
    return low, high
