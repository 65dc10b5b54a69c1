"""Number of events; the pattern of every operation here.

`TAKES` says how many behaviours and durations its text may name, `IN_TIME` whether its number means
a time, so that the log must have a clock, `TRANSFORM` what happens to the number before a model
sees it. An `Operation` is made once per log, of one `Past` per behaviour (or
one of all events), and then asked for any keys and times.
"""

from collections.abc import Sequence

import numpy as np

from .past import Past


class Operation:
    """count(key; behaviour; duration): events of the key before t, in [t - duration, t)."""

    TAKES = ((0, 1), (0, 1))
    IN_TIME = False
    TRANSFORM = "log1p"

    def __init__(self, pasts: Sequence[Past], seconds: int | None):
        (self._past,), self._seconds = pasts, seconds

    def __call__(self, key: np.ndarray, time: np.ndarray) -> np.ndarray:
        """(n,) int64 keys and times to (n,) numbers."""
        first, last = self._past.span(key, time, self._seconds)
        return last - first
