"""Random numbers by address: the value depends on (seed, epoch, example, draw), not on history.

Training can then resume anywhere, and two processes that draw for different examples agree. For
orders and negatives, which NumPy's sequential generators would tie to the order of asking.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np

from ...zoo.features.signature import mix
from . import columns
from .event_log import EventLog

_STEP = np.uint64(0x9E3779B97F4A7C15)
_AT_ONCE = 2**20
# Draws that hit a touched item this often are made from the explicit complement instead.
_ROUNDS = 64
_COMPLEMENT_CELLS = 2**22
# When an item appeared that training never sees.
NEVER = np.iinfo(np.int64).max


def bits(*address: int | np.ndarray) -> np.ndarray:
    """uint64 noise of the broadcast shape of the address' parts."""
    shape = np.broadcast_shapes(*(np.shape(part) for part in address))
    state = np.zeros(shape or 1, np.uint64)
    with np.errstate(over="ignore"):
        for part in address:
            part = np.asarray(part)
            part = part if part.dtype == np.uint64 else part.astype(np.int64).view(np.uint64)
            state = mix((state ^ part) + _STEP)
    return state.reshape(shape)


def below(limit: int, *address: int | np.ndarray) -> np.ndarray:
    """int64 numbers in [0, limit); the bias of the modulus is below limit / 2^64."""
    return (bits(*address) % np.uint64(limit)).astype(np.int64)


def uniform(*address: int | np.ndarray) -> np.ndarray:
    """float64 numbers in [0, 1)."""
    return as_uniform(bits(*address))


def as_uniform(noise: np.ndarray) -> np.ndarray:
    """float64 numbers in [0, 1) of uint64 noise."""
    return (noise >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(size: int, *address: int) -> np.ndarray:
    """An order of `range(size)`."""
    noise = np.empty(size, np.uint64)
    # A block at a time: `bits` needs several times what it gives, and orders can be long.
    for start in range(0, size, _AT_ONCE):
        stop = min(start + _AT_ONCE, size)
        noise[start:stop] = bits(*address, np.arange(start, stop))
    return np.argsort(noise, kind="stable")


@runtime_checkable
class Proposal(Protocol):
    """A distribution over items, from which those that must not be drawn are then taken out."""

    @property
    def items(self) -> np.ndarray:
        """(N,) int32, the items that may be drawn at all."""
        ...

    def weight(self, time: np.ndarray | None) -> np.ndarray:
        """(N,) or (R, N) int64 >= 0: how likely each item is for a request at each time (R,)."""
        ...

    def propose(self, noise: np.ndarray, time: np.ndarray | None) -> np.ndarray:
        """(n,) items for uint64 noise (n,) and times (n,); -1 proposes nothing."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Everything:
    """Every item of a catalogue of `size`, all alike, at any time."""

    size: int

    @property
    def items(self) -> np.ndarray:
        """(N,) int32: all of them."""
        return np.arange(self.size, dtype=np.int32)

    def weight(self, time: np.ndarray | None) -> np.ndarray:
        """(N,) ones."""
        return np.ones(self.size, np.int64)

    def propose(self, noise: np.ndarray, time: np.ndarray | None) -> np.ndarray:
        """(n,) items."""
        return (noise % np.uint64(self.size)).astype(np.int32)


class ByCount:
    """Items in proportion to `counts` (N,), at any time; those that count 0 are never drawn."""

    def __init__(self, counts: np.ndarray):
        self.items = np.flatnonzero(counts).astype(np.int32)
        self._counts = counts[self.items].astype(np.int64)
        self._ends = np.cumsum(self._counts)

    def weight(self, time: np.ndarray | None) -> np.ndarray:
        """(N,) the counts."""
        return self._counts

    def propose(self, noise: np.ndarray, time: np.ndarray | None) -> np.ndarray:
        """(n,) items."""
        at = (noise % np.uint64(self._ends[-1])).astype(np.int64)
        return self.items[np.searchsorted(self._ends, at, side="right")]


class Catalogue:
    """The items that training knows, all alike.

    An item that training never sees is never drawn. As a negative it would read the unseen row,
    which would then stand for "not clicked" in place of "unknown".

    Args:
      appeared: (N,) the time at which each item appeared; `NEVER` if training does not know it.
      point_in_time: whether a request gets only items that had appeared when it was made. Then an
        item is a negative the more often the older it is, and new ones look better than they are:
        the default is all of them at any time.
    """

    def __init__(self, appeared: np.ndarray, *, point_in_time: bool = False):
        order = np.argsort(appeared, kind="stable")
        order = order[: int(np.count_nonzero(appeared < NEVER))]
        if not len(order):
            raise ValueError("training knows no item, so no negative can be drawn.")
        self.items = order.astype(np.int32)
        self._appeared = appeared[order] if point_in_time else np.full(len(order), -NEVER)

    def weight(self, time: np.ndarray | None) -> np.ndarray:
        """(R, N) ones where an item had appeared; (N,) ones without a time."""
        if time is None:
            return np.ones(len(self.items), np.int64)
        return (self._appeared <= time[:, None]).astype(np.int64)

    def propose(self, noise: np.ndarray, time: np.ndarray | None) -> np.ndarray:
        """(n,) items; -1 where nothing had appeared."""
        there = np.full(len(noise), len(self.items))
        if time is not None:
            there = np.searchsorted(self._appeared, time, side="right")
        rank = (noise % np.maximum(there, 1).astype(np.uint64)).astype(np.int64)
        return np.where(there > 0, self.items[rank], np.int32(-1))


class UntouchedItems:
    """Draws items that a user never touches in the whole log.

    The cost of a draw does not follow the length of anybody's history: see `draw`.
    """

    def __init__(self, log: EventLog):
        self._users, self._size = log.num_users, log.num_items
        # One array of 8 bytes an event, sorted in place.
        keys = np.repeat(np.arange(log.num_users) * np.int64(self._size), log.lengths())
        keys += log.item
        self._touched = columns.distinct_of(keys)

    def touched_among(self, items: np.ndarray) -> np.ndarray:
        """(users,) how many of these items each user touches."""
        among = np.zeros(self._size, bool)
        among[items] = True
        counts = np.zeros(self._users, np.int64)
        for piece in columns.pieces(len(self._touched)):
            user, item = np.divmod(self._touched[piece], self._size)
            counts += np.bincount(user[among[item]], minlength=self._users)
        return counts

    def draw(
        self,
        user: np.ndarray,
        count: int,
        *address: int | np.ndarray,
        proposal: Proposal | None = None,
        time: np.ndarray | None = None,
    ) -> np.ndarray:
        """(len(user), count) int32 items; `address` broadcasts against `user`.

        Args:
          user: (R,) whose untouched items are wanted.
          count: how many for each; one request's draws may repeat each other.
          address: of the noise, see `bits`.
          proposal: the distribution, restricted to what the user does not touch; uniform over the
            whole catalogue by default.
          time: (R,) when each request is made, for proposals that depend on it. Where all that
            had appeared by then is touched, the draw is from all that the proposal knows.

        A draw that hits a touched item is made again, a few times; what is left after that is
        drawn from the explicit complement. Both have the same distribution.

        Raises:
          ValueError: a user touches all that the proposal knows.
        """
        proposal = proposal or Everything(self._size)
        shape = (len(user), count)
        row, column = (x.ravel() for x in np.indices(shape))
        parts = [np.broadcast_to(np.asarray(part), len(user)) for part in address]
        noise = lambda some, attempt: bits(*(p[row[some]] for p in parts), column[some], attempt)
        found = np.full(len(row), -1, np.int32)
        pending = np.arange(len(row))
        owner = user.astype(np.int64)
        for attempt in range(_ROUNDS):
            of = row[pending]
            item = proposal.propose(noise(pending, attempt), None if time is None else time[of])
            fine = (item >= 0) & ~self._is_touched(owner[of] * self._size + item)
            found[pending[fine]] = item[fine]
            pending = pending[~fine]
            if not len(pending):
                return found.reshape(shape)
        left = row[pending]
        # Requests of one user at one time have one complement: whoever touched nearly all may
        # have many of them.
        of = np.stack([owner[left], np.zeros(len(left), np.int64) if time is None else time[left]])
        _, first, which = np.unique(of, axis=1, return_index=True, return_inverse=True)
        left, which = left[first], which.ravel()
        step = max(1, _COMPLEMENT_CELLS // max(1, len(proposal.items)))
        for start in range(0, len(left), step):
            some = left[start : start + step]
            mass = self._complement(owner[some], None if time is None else time[some], proposal)
            for entry in np.flatnonzero((which >= start) & (which < start + step)):
                at = pending[entry]
                cumulative = mass[which[entry] - start]
                drawn = noise(np.array([at]), _ROUNDS) % np.uint64(cumulative[-1])
                rank = np.searchsorted(cumulative, drawn.astype(np.int64), side="right")
                found[at] = proposal.items[rank[0]]
        return found.reshape(shape)

    def _complement(
        self, user: np.ndarray, time: np.ndarray | None, proposal: Proposal
    ) -> np.ndarray:
        """(R, N) cumulative weight of the proposal's items that each user does not touch."""
        touched = self._is_touched(user[:, None] * self._size + proposal.items)
        weight = np.where(touched, 0, proposal.weight(time))
        nothing = ~weight.any(axis=1)
        weight[nothing] = np.where(touched[nothing], 0, proposal.weight(None))
        if not weight.any(axis=1).all():
            stuck = int(user[~weight.any(axis=1)][0])
            raise ValueError(
                f"user {stuck} of the log touched all {len(proposal.items)} items that could be "
                "drawn: no negative is left."
            )
        return np.cumsum(weight, axis=1)

    def _is_touched(self, key: np.ndarray) -> np.ndarray:
        if not len(self._touched):
            return np.zeros(key.shape, bool)
        at = np.minimum(np.searchsorted(self._touched, key), len(self._touched) - 1)
        return self._touched[at] == key
