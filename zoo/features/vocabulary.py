"""Vocabularies of frequent values, counted as they stream by."""

import numpy as np


class DistinctCounts:
    """Distinct values of a stream, and how often each came: memory follows the distinct ones.

    Sorted runs of (value, count). A new run is merged into the one before it unless that is more
    than twice as long, so lengths at least halve from run to run: D distinct values take at most
    2 D entries, and one that comes in a stream of n is moved O(log n) times.
    """

    def __init__(self):
        self._runs: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, values: np.ndarray, counts: np.ndarray | None = None) -> None:
        """Counts a block of values, of the same dtype each time; `counts` are 1 by default."""
        values = np.ravel(values)
        if not len(values):
            return
        self._runs.append(_merged(values, None if counts is None else np.ravel(counts)))
        while len(self._runs) > 1 and len(self._runs[-2][0]) <= 2 * len(self._runs[-1][0]):
            self._merge_last()

    def total(self) -> tuple[np.ndarray, np.ndarray]:
        """The distinct values, ascending, and their counts (int64)."""
        while len(self._runs) > 1:
            self._merge_last()
        if not self._runs:
            return np.zeros(0, np.uint64), np.zeros(0, np.int64)
        return self._runs[0]

    def frequent(self, min_count: int) -> np.ndarray:
        """The values that came at least `min_count` times, ascending."""
        if min_count < 1:
            raise ValueError(f"min_count must be >= 1, got {min_count}.")
        values, counts = self.total()
        return values[counts >= min_count]

    def _merge_last(self) -> None:
        (a, times_a), (b, times_b) = self._runs[-2:]
        # The pair leaves the list first: with the result it would be in memory twice over.
        del self._runs[-2:]
        both, times = np.concatenate([a, b]), np.concatenate([times_a, times_b])
        del a, b, times_a, times_b
        self._runs.append(_merged(both, times))


def _merged(values: np.ndarray, counts: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Sorted distinct values with the sums of their counts."""
    if counts is None:
        values = np.sort(values)
    else:
        # Two sorted runs, one behind the other, are what a stable sort merges in linear time.
        order = np.argsort(values, kind="stable")
        values, counts = values[order], counts[order]
    first = np.ones(len(values), bool)
    np.not_equal(values[1:], values[:-1], out=first[1:])
    starts = np.flatnonzero(first)
    if counts is None:
        return values[starts], np.diff(starts, append=len(values))
    return values[starts], np.add.reduceat(counts, starts, dtype=np.int64)
