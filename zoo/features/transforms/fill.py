"""Puts a number where a value is missing."""

import numpy as np


def apply(values: np.ndarray, default: float) -> np.ndarray:
    """x, or default where x is missing"""
    return np.where(np.isnan(values), default, values)
