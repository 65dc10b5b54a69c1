"""Standardises by the median and the quartiles, which a few values far away do not move.

A number that marks what is missing (-1, 999999), or one that is wrong, would flatten all others if
they were divided by the standard deviation.
"""

import numpy as np

# The quartiles of a normal distribution are this many standard deviations apart.
_QUARTILES, _TAILS = 1.349, 3.290


def apply(values: np.ndarray, median: float, deviation: float) -> np.ndarray:
    """(x - median) / deviation"""
    return (values - median) / deviation


def fit(values: np.ndarray) -> tuple[float, float]:
    """The median, and the standard deviation of a normal distribution with these quartiles.

    Where more than half of the values are the same, the 5 % and 95 % quantiles take the place of
    the quartiles, then the standard deviation; of a constant (or of nothing) it is 1.
    """
    if not len(values):
        return 0.0, 1.0
    values = np.asarray(values, np.float64)
    tail, low, median, high, top = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95])
    for spread, largest in (
        ((high - low) / _QUARTILES, max(-low, high)),
        ((top - tail) / _TAILS, max(-tail, top)),
        (values.std(), np.abs(values).max()),
    ):
        # A constant's spread is rounding error, if not 0.
        if spread > 1e-9 * largest:
            return float(median), float(spread)
    return float(median), 1.0


def check(median: float, deviation: float) -> None:
    """Raises ValueError for a deviation that is not positive."""
    if deviation <= 0:
        raise ValueError(f"robust: deviation must be > 0, got {deviation}.")
