"""Events in order of (key, time), for questions about the time before a moment."""

import numpy as np


class Past:
    """The events of a log that count for one statistic.

    Args:
      key: (E,) int64, what an event is counted under.
      time: (E,) int64.
      counts: (E,) bool, which events count.

    Attributes:
      time: (n,) of the events that count, by key and then time. starts: (n,) bool, first of a key.
    """

    def __init__(self, key: np.ndarray, time: np.ndarray, counts: np.ndarray):
        key, time = key[counts], time[counts]
        order = np.lexsort((time, key))
        key, self.time = key[order], time[order]
        self._keys, key = np.unique(key, return_inverse=True)
        self._times, rank = np.unique(self.time, return_inverse=True)
        # One sorted number per event: a search for (key, time) is then a search for a number.
        self._code = key * (len(self._times) + 1) + rank
        self.starts = np.diff(key, prepend=-1) != 0

    def span(
        self, key: np.ndarray, time: np.ndarray, seconds: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """[first, last): the key's events before `time`, at most `seconds` before it.

        Args:
          key: (n,) int64. time: (n,) int64.
          seconds: an event at exactly `time - seconds` still counts; None for no limit.

        Returns:
          Two (n,) arrays of positions in `self.time`; equal where there are none.
        """
        at = np.searchsorted(self._keys, key)
        known = at < len(self._keys)
        known[known] = self._keys[at[known]] == key[known]
        base = at * (len(self._times) + 1)
        # How many distinct times lie before: an event of the very moment is not before it.
        last = np.searchsorted(self._code, base + np.searchsorted(self._times, time))
        since = 0 if seconds is None else np.searchsorted(self._times, time - seconds)
        first = np.searchsorted(self._code, base + since)
        return np.where(known, first, 0), np.where(known, last, 0)
