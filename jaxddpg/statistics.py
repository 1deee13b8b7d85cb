"""Honest statistics over members: the interquartile mean and its bootstrap interval (Agarwal et al. 2021)."""

import numpy as np


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """The mean over the last axis without its lowest and highest quarter, rounded down.

    A member whose value is not finite (diverged) counts as the worst there is.
    """
    ordered = np.sort(np.where(np.isfinite(values), values, -np.inf), axis=-1)
    quarter = ordered.shape[-1] // 4
    return ordered[..., quarter : ordered.shape[-1] - quarter].mean(-1)


def confidence_interval(values: np.ndarray, resamples: int = 2_000) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % percentile bootstrap interval of the interquartile mean over the last axis, members [..., M]."""
    index = np.random.default_rng(0).integers(values.shape[-1], size=(resamples, values.shape[-1]))
    # Row by row: all resamples of all rows at once would take gigabytes for a long run.
    rows = values.reshape(-1, values.shape[-1])
    means = np.stack([interquartile_mean(row[index]) for row in rows]).reshape(*values.shape[:-1], resamples)
    low, high = np.quantile(means, [0.025, 0.975], axis=-1, method="nearest")
    return low, high
