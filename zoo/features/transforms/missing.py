"""1 where a value is missing: as a second field of the same raw value, it tells none from 0."""

import numpy as np


def apply(values: np.ndarray) -> np.ndarray:
    """1 where x is missing, else 0"""
    return np.isnan(values).astype(np.float64)
