"""Standardises: mean 0, standard deviation 1. A missing value becomes the mean."""

import numpy as np


def apply(values: np.ndarray, mean: float, deviation: float) -> np.ndarray:
    """(x - mean) / deviation"""
    return (values - mean) / deviation


def fit(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation; of a constant (or of nothing) the deviation is 1."""
    if not len(values):
        return 0.0, 1.0
    deviation = float(values.std())
    # A constant's deviation is rounding error, if not 0.
    floor = 1e-9 * float(np.abs(values).max())
    return float(values.mean()), deviation if deviation > floor else 1.0


def check(mean: float, deviation: float) -> None:
    """Raises ValueError for a deviation that is not positive."""
    if deviation <= 0:
        raise ValueError(f"zscore: deviation must be > 0, got {deviation}.")
