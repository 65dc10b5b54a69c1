"""Arguments of metrics: their shapes, and checks of labels and weights."""

import math
from typing import Any

from jaxtyping import Bool, Real, Shaped
import numpy as np

Score = Real[np.ndarray, " N"]


Label = Shaped[np.ndarray, " N"]


Scores = Real[np.ndarray, "R C"]


Labels = Shaped[np.ndarray, "R C"]


Mask = Bool[np.ndarray, "R C"]


def binary(label: np.ndarray) -> np.ndarray:
    """(n,) bool. Raises ValueError for labels other than 0 and 1."""
    positive = label == 1
    wrong = ~(positive | (label == 0))
    if wrong.any():
        raise ValueError(f"label must be 0 or 1, got {label[wrong][0]}.")
    return positive


def weights_of(weight: np.ndarray | None, like: np.ndarray) -> np.ndarray:
    """(n,) float64, ones for None. Raises ValueError for a negative weight."""
    if weight is None:
        return np.ones(len(like))
    weight = np.asarray(weight, np.float64)
    if not (weight >= 0.0).all():
        raise ValueError(f"weight must be >= 0, got {weight[~(weight >= 0.0)][0]}.")
    return weight


def starts_of(changes: np.ndarray) -> np.ndarray:
    """Indices where runs begin, given where an element differs from the one before it."""
    return np.concatenate([[0], np.flatnonzero(changes) + 1])


def ratio(part: Any, whole: Any) -> float:
    """part / whole; NaN where there is nothing."""
    return float(part) / float(whole) if whole > 0 else math.nan
