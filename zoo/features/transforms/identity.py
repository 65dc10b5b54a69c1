"""The value as it is."""

import numpy as np


def apply(values: np.ndarray) -> np.ndarray:
    """x"""
    return values
