"""Parts of histories: which events of the log a request sees."""

import dataclasses

import numpy as np

from ..event_log import EventLog, Requests

_SHORTEST_BUCKET = 8


@dataclasses.dataclass(frozen=True)
class Windows:
    """Parts of histories: event positions in a log, (B, L) or more axes, and which are real."""

    at: np.ndarray
    mask: np.ndarray

    @staticmethod
    def cut(log: EventLog, requests: Requests, history: int) -> "Windows":
        """The newest `history` events before each cut, oldest first, left-aligned."""
        kept = np.minimum(requests.cut, history)
        first = log.offsets[requests.user] + requests.cut - kept
        # A log without events has nothing to point at, not even for padding.
        column = np.arange(window_length(requests, history) if log.num_events else 0)
        mask = column < kept[:, None]
        return Windows(np.where(mask, first[:, None] + column, 0), mask)


def window_length(requests: Requests, history: int) -> int:
    """L of the batch of these requests."""
    return bucket(min(int(requests.cut.max(initial=0)), history), history)


def bucket(longest: int, history: int) -> int:
    """The shortest of history, history / 2, history / 4, ... that holds `longest` events.

    A batch is padded to it, so that few different shapes compile.
    """
    length = history
    while length > _SHORTEST_BUCKET and -(-length // 2) >= longest:
        length = -(-length // 2)
    return length
