"""A count that forgets."""

from collections.abc import Sequence

import numpy as np

from .past import Past


class Operation:
    """decayed(key; behaviour; half-life): the events before t, each 2^-((t - time) / half-life)."""

    TAKES = ((0, 1), (1,))
    IN_TIME = True
    TRANSFORM = "log1p"

    def __init__(self, pasts: Sequence[Past], seconds: int | None):
        assert seconds is not None
        (self._past,), self._half_life = pasts, seconds
        self._total = self._totals()

    def __call__(self, key: np.ndarray, time: np.ndarray) -> np.ndarray:
        """(n,) int64 keys and times to (n,) numbers."""
        first, last = self._past.span(key, time)
        none = last == first
        if none.all():
            return np.zeros(len(key))
        newest = np.where(none, 0, last - 1)
        return np.where(
            none, 0.0, self._total[newest] * self._faded(time - self._past.time[newest])
        )

    def _faded(self, seconds: np.ndarray) -> np.ndarray:
        return np.exp2(-np.maximum(seconds, 0) / self._half_life)

    def _totals(self) -> np.ndarray:
        """(E,) the value right after each event: s_i = 1 + s_{i-1} 2^-(gap / half-life), per key.

        Affine maps s -> a s + b compose, so the recurrence is a scan by doubling.
        """
        gap = np.diff(self._past.time, prepend=0)
        a = np.where(self._past.starts, 0.0, self._faded(gap))
        b = np.ones(len(a))
        reach = 1
        while reach < len(a) and a.any():
            b[reach:] = a[reach:] * b[:-reach] + b[reach:]
            a[reach:] = a[reach:] * a[:-reach]
            reach *= 2
        return b
