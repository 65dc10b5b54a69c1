"""Groups of impressions shown together, and their places in arrays of requests.

Shapes: `n` impressions, `R` requests, `P` pieces of requests, `C` candidates of the longest one.
"""

from typing import NamedTuple

import numpy as np

# The most candidates of a request: longer ones, of a crawler, are cut into several.
MOST_CANDIDATES = 1000
# Requests are padded to the longest: how many cells each impression may cost, and how many are
# always fine.
_CELLS, _FREE_CELLS = 16, 2**20


class Grouped(NamedTuple):
    """Impressions by request, requests by time, then by their first row.

    Attributes:
      rows: (n,) the impressions, by request and slot.
      request: (n,) the request of each of `rows`, ascending.
      starts: (R,) where each begins in `rows`.
      user: (R,). time: (R,) int64, of the first impression; without times the order of requests.
    """

    rows: np.ndarray
    request: np.ndarray
    starts: np.ndarray
    user: np.ndarray
    time: np.ndarray

    @property
    def first(self) -> np.ndarray:
        """(R,) the impression in the first slot of each request."""
        return self.rows[self.starts]

    def lengths(self) -> np.ndarray:
        """(R,) impressions of each request."""
        return np.diff(self.starts, append=len(self.rows))

    def times_of_rows(self) -> np.ndarray:
        """(n,) the time of the request of each impression, in the order of the file."""
        result = np.zeros(len(self.rows), np.int64)
        result[self.rows] = self.time[self.request]
        return result


def group(
    user: np.ndarray,
    time: np.ndarray,
    *,
    request: np.ndarray | None = None,
    slot: np.ndarray | None = None,
    part: np.ndarray | None = None,
    has_time: bool = True,
) -> Grouped:
    """Requests of impressions: those of one user and one request code, or else of one time.

    Args:
      user: (n,) codes.
      time: (n,) int64; the number of the row where `has_time` is false.
      request: (n,) codes.
      slot: (n,) numbers by which a request is ordered; file order breaks ties.
      part: (n,) of which file each is: no request goes on in the next one.
      has_time: whether times are known.
    """
    key = np.unique(time, return_inverse=True)[1] if request is None else request
    code = user.astype(np.int64) * (int(key.max(initial=0)) + 1) + key
    if part is not None:
        code = code * (int(part.max(initial=0)) + 1) + part
    of_row = np.unique(code, return_inverse=True)[1]
    order = np.argsort(of_row, kind="stable") if slot is None else np.lexsort((slot, of_row))
    starts = np.flatnonzero(np.diff(of_row[order], prepend=-1))
    first = np.minimum.reduceat(order, starts)
    moment = np.minimum.reduceat(time[order], starts)
    sequence = np.lexsort((first, moment))
    rank = np.empty(len(starts), np.int64)
    rank[sequence] = np.arange(len(starts))
    request = rank[of_row[order]]
    again = np.argsort(request, kind="stable")
    rows, request = order[again], request[again]
    starts = np.flatnonzero(np.diff(request, prepend=-1))
    moment = moment[sequence] if has_time else np.arange(len(starts))
    return Grouped(rows, request, starts, user[rows[starts]], moment.astype(np.int64))


class Padded(NamedTuple):
    """Where each impression stands once all requests are as long as the longest.

    `owner` (P,) is the request of each piece: long requests are cut into several. `piece`, `slot`
    (n,) are those of `Grouped.rows`.
    """

    asked: Grouped
    owner: np.ndarray
    piece: np.ndarray
    slot: np.ndarray
    width: int

    @staticmethod
    def of(asked: Grouped, notes: list[str]) -> "Padded":
        """Cuts what is too long, and says so in `notes`."""
        lengths = asked.lengths()
        longest = int(lengths.max())
        width = min(longest, MOST_CANDIDATES)
        most = _CELLS * len(asked.rows) + _FREE_CELLS
        while width > 1 and width * int((-(-lengths // width)).sum()) > most:
            width = -(-width // 2)
        if longest > width:
            cut = int((lengths > width).sum())
            notes.append(
                f"{cut} {'requests have' if cut > 1 else 'request has'} more than {width} "
                f"candidates (up to {longest}), cut into several of the same history"
            )
        pieces = -(-lengths // width)
        within = np.arange(len(asked.rows)) - asked.starts[asked.request]
        piece = (np.cumsum(pieces) - pieces)[asked.request] + within // width
        owner = np.repeat(np.arange(len(lengths)), pieces)
        return Padded(asked, owner, piece, within % width, width)

    def owners(self, chosen: np.ndarray) -> np.ndarray:
        """The request of each piece of the chosen requests (R,)."""
        return self.owner[chosen[self.owner]]

    def fill(self, chosen: np.ndarray, values: np.ndarray, empty: int = 0) -> np.ndarray:
        """(P', C, ...) the values (n, ...) of the chosen requests (R,), `empty` behind them."""
        number = np.cumsum(chosen[self.owner]) - 1
        some = chosen[self.asked.request]
        shape = (int(number[-1]) + 1, self.width, *values.shape[1:])
        result = np.full(shape, empty, values.dtype)
        result[number[self.piece[some]], self.slot[some]] = values[self.asked.rows[some]]
        return result
