"""Cuts off outliers; after `zscore`, in standard deviations."""

import numpy as np


def apply(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """min(max(x, low), high)"""
    return np.clip(values, low, high)


def check(low: float, high: float) -> None:
    """Raises ValueError unless low < high."""
    if not low < high:
        raise ValueError(f"clip: low must be < high, got {low} and {high}.")
