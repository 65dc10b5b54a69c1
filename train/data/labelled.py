"""Data sets in which every line is a labelled request of one candidate, whoever's it is."""

import numpy as np

from .event_log import EventLog, Requests


def requests_of(
    context: dict[str, np.ndarray], label: np.ndarray, line: np.ndarray, split: slice
) -> Requests:
    """The lines of a split; all their features stand in the context.

    Args:
      context: columns of all lines. label: (R, 1). line: (R,) their numbers, which order them.
      split: the lines that are wanted.
    """
    count = len(range(*split.indices(len(line))))
    # The same for all: no memory.
    same = lambda value, *shape: np.broadcast_to(value, (count, *shape))
    return Requests(
        user=same(np.int32(0)),
        cut=same(np.int64(0)),
        time=line[split],
        candidate=same(np.int32(0), 1),
        label={"click": label[split]},
        context={name: column[split] for name, column in context.items()},
    )


def nobody() -> EventLog:
    """A log of one user without events."""
    return EventLog(
        offsets=np.zeros(2, np.int64),
        item=np.zeros(0, np.int32),
        time=np.zeros(0, np.int64),
        event={},
        items={},
        users={},
        has_clock=False,
    )
