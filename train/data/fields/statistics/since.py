"""Time since the last event."""

from collections.abc import Sequence

import numpy as np

from .past import Past

NEVER = -1.0
_DAY = 86_400


class Operation:
    """since(key; behaviour): days since the last such event before t, -1 if there is none."""

    TAKES = ((0, 1), (0,))
    IN_TIME = True
    TRANSFORM = "log1p"

    def __init__(self, pasts: Sequence[Past], seconds: int | None):
        (self._past,) = pasts

    def __call__(self, key: np.ndarray, time: np.ndarray) -> np.ndarray:
        """(n,) int64 keys and times to (n,) numbers."""
        first, last = self._past.span(key, time)
        none = last == first
        if none.all():
            return np.full(len(key), NEVER)
        age = time - self._past.time[np.where(none, 0, last - 1)]
        return np.where(none, NEVER, age / _DAY)
