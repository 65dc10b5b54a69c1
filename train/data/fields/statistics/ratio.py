"""Rate at which one behaviour follows another, smoothed."""

from collections.abc import Sequence

import numpy as np

from .past import Past


class Operation:
    """ratio(key; a/b; duration): (a + 1) / (b + 2), a and b counted before t.

    Laplace's rule: 1/2 where nothing is known yet. No constant is learnt from the log, so nothing
    of its future is in it.
    """

    TAKES = ((2,), (0, 1))
    IN_TIME = False
    TRANSFORM = "identity"

    def __init__(self, pasts: Sequence[Past], seconds: int | None):
        self._pasts, self._seconds = pasts, seconds

    def __call__(self, key: np.ndarray, time: np.ndarray) -> np.ndarray:
        """(n,) int64 keys and times to (n,) numbers."""
        spans = [past.span(key, time, self._seconds) for past in self._pasts]
        a, b = (last - first for first, last in spans)
        return (a + 1) / (b + 2)
