"""Named transforms of dense values. A new one is one function and one line of the table."""

from collections.abc import Callable

import numpy as np


def identity(value: np.ndarray) -> np.ndarray:
    """The value as it is."""
    return value


def log1p(value: np.ndarray) -> np.ndarray:
    """sign(x) * log(1 + |x|): tames counts and prices, defined for every number."""
    return np.sign(value) * np.log1p(np.abs(value))


TRANSFORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "identity": identity,
    "log1p": log1p,
}
