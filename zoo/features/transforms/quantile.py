"""The share of training values below a value: any distribution becomes uniform in [0, 1]."""

import numpy as np

POINTS = 33


def apply(values: np.ndarray, *boundaries: float) -> np.ndarray:
    """The empirical distribution function, linear between its `boundaries` (which may repeat)."""
    shares = np.linspace(0.0, 1.0, len(boundaries))
    low = np.searchsorted(boundaries, values, side="left")
    high = np.searchsorted(boundaries, values, side="right")
    # A value that fills several quantiles has the middle of them.
    tied = (shares[np.minimum(low, len(shares) - 1)] + shares[np.maximum(high - 1, 0)]) / 2
    found = np.where(high > low, tied, np.interp(values, boundaries, shares))
    return np.where(np.isnan(values), np.nan, found)


def fit(values: np.ndarray) -> tuple[float, ...]:
    """33 quantiles of the values, from the smallest to the largest."""
    if not len(values):
        return 0.0, 1.0
    return tuple(np.quantile(values, np.linspace(0.0, 1.0, POINTS)))


def check(*boundaries: float) -> None:
    """Raises ValueError unless there are two or more boundaries, in order."""
    if len(boundaries) < 2 or np.any(np.diff(boundaries) < 0):
        raise ValueError(f"quantile: boundaries must be two or more, rising, got {boundaries}.")
