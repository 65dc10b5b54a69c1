"""Values as of a moment: what was known of an item or a user strictly before it."""

import dataclasses

import numpy as np

from .event_log import EventLog, Requests


class LastSeen:
    """The newest event of each item before a moment, whoever's it is.

    Args:
      log: whose `event` columns hold the values.
      missing: {field: value} of candidates that no event precedes.
    """

    def __init__(self, log: EventLog, missing: dict[str, float]):
        self._log, self._missing = log, missing
        self._order = np.lexsort((log.time, log.item))
        self._times, rank = np.unique(log.time, return_inverse=True)
        # One ascending number per event: a search for (item, time) is a search for a number.
        self._code = log.item[self._order].astype(np.int64) * (len(self._times) + 1)
        self._code += rank[self._order]

    def events(self, requests: Requests) -> np.ndarray:
        """(R, C) the newest event of each candidate before its request; -1 where none is."""
        item = requests.candidate
        code = np.maximum(item, 0).astype(np.int64) * (len(self._times) + 1)
        before = code + np.searchsorted(self._times, requests.time)[:, None]
        at = np.searchsorted(self._code, before) - 1
        there = (item >= 0) & (at >= 0)
        there &= self._code[np.maximum(at, 0)] >= code
        return np.where(there, self._order[np.maximum(at, 0)], -1)

    def __call__(self, requests: Requests) -> Requests:
        """The requests with the fields as columns of their candidates."""
        event = self.events(requests)
        there, event = event >= 0, np.maximum(event, 0)
        shown = dict(requests.shown)
        for name, missing in self._missing.items():
            column = self._log.event[name]
            mask = there.reshape(there.shape + (1,) * (column.ndim - 1))
            shown[name] = np.where(mask, column[event], np.asarray(missing, column.dtype))
        return dataclasses.replace(requests, shown=shown)


@dataclasses.dataclass(frozen=True, eq=False)
class Seconds:
    """Events of one user in the same second.

    Attributes:
      first: (E,) the first event of the second that each stands in.
      own: (E,) the first event of that second that is of the same item.
    """

    first: np.ndarray
    own: np.ndarray

    @staticmethod
    def of(log: EventLog) -> "Seconds":
        """Of a log whose events are in order."""
        count = log.num_events
        starts = np.ones(count, bool)
        starts[1:] = log.time[1:] != log.time[:-1]
        starts[log.offsets[:-1][log.lengths() > 0]] = True
        first = np.maximum.accumulate(np.where(starts, np.arange(count), 0))
        own = np.arange(count)
        shared = np.flatnonzero(~starts | ~np.append(starts[1:], True))
        if len(shared):
            order = np.lexsort((shared, log.item[shared], first[shared]))
            ordered = shared[order]
            new = np.ones(len(ordered), bool)
            new[1:] = (first[ordered[1:]] != first[ordered[:-1]]) | (
                log.item[ordered[1:]] != log.item[ordered[:-1]]
            )
            own[ordered] = ordered[np.maximum.accumulate(np.where(new, np.arange(len(new)), 0))]
        return Seconds(first, own)


def last_of_user(
    column: np.ndarray, seconds: Seconds, log: EventLog, missing: float | int
) -> np.ndarray:
    """(E, ...) the value of the user's newest event in an earlier second; `missing` where none."""
    at = seconds.first - 1
    start = np.repeat(log.offsets[:-1], log.lengths())
    there = at >= start
    mask = there.reshape(there.shape + (1,) * (column.ndim - 1))
    return np.where(mask, column[np.maximum(at, 0)], np.asarray(missing, column.dtype))
