"""Random numbers by address: the value depends on (seed, epoch, example, draw), not on history.

Training can then resume anywhere, and two processes that draw for different examples agree. For
orders and negatives, which NumPy's sequential generators would tie to the order of asking.
"""

from collections.abc import Callable

import numpy as np

from ...zoo.features.signature import mix
from . import columns
from .event_log import EventLog

_STEP = np.uint64(0x9E3779B97F4A7C15)
_AT_ONCE = 2**20


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
    return (bits(*address) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(size: int, *address: int) -> np.ndarray:
    """An order of `range(size)`."""
    noise = np.empty(size, np.uint64)
    # A block at a time: `bits` needs several times what it gives, and orders can be long.
    for start in range(0, size, _AT_ONCE):
        stop = min(start + _AT_ONCE, size)
        noise[start:stop] = bits(*address, np.arange(start, stop))
    return np.argsort(noise, kind="stable")


class UntouchedItems:
    """Draws items that a user never touches in the whole log."""

    def __init__(self, log: EventLog):
        self._users, self._size = log.num_users, log.num_items
        # One array of 8 bytes an event, sorted in place.
        keys = np.repeat(np.arange(log.num_users) * np.int64(self._size), log.lengths())
        keys += log.item
        self._touched = columns.distinct_of(keys)
        bounds = np.arange(log.num_users + 1) * np.int64(self._size)
        per_user = np.diff(np.searchsorted(self._touched, bounds))
        if self._size and per_user.max(initial=0) >= self._size:
            user = int(per_user.argmax())
            raise ValueError(
                f"user {user} of the log touched all {self._size} items: no negative can be drawn."
            )

    def touched_among(self, items: np.ndarray) -> np.ndarray:
        """(users,) how many of these items each user touches."""
        counts = np.zeros(self._users, np.int64)
        for piece in columns.pieces(len(self._touched)):
            user, item = np.divmod(self._touched[piece], self._size)
            counts += np.bincount(user[np.isin(item, items)], minlength=self._users)
        return counts

    def draw(
        self,
        user: np.ndarray,
        count: int,
        *address: int | np.ndarray,
        items: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> np.ndarray:
        """(len(user), count) int32 items; `address` broadcasts against `user`.

        Uniform over all items, unless `items` makes them of uniform numbers in [0, 1).
        A draw that hits a touched item is drawn again until it does not. One request's negatives
        may repeat each other.
        """
        column = np.arange(count)
        parts = [np.asarray(part)[..., None] for part in address]
        attempt = 0

        def propose() -> np.ndarray:
            if items is None:
                return below(self._size, *parts, column[None], attempt)
            return items(uniform(*parts, column[None], attempt))

        item = propose()
        item = np.broadcast_to(item, (len(user), count)).copy()
        users = np.broadcast_to(user.astype(np.int64)[:, None], item.shape)
        while True:
            again = self._is_touched(users * np.int64(self._size) + item)
            if not again.any():
                return item.astype(np.int32)
            attempt += 1
            item[again] = np.broadcast_to(propose(), item.shape)[again]

    def _is_touched(self, key: np.ndarray) -> np.ndarray:
        at = np.minimum(np.searchsorted(self._touched, key), len(self._touched) - 1)
        return self._touched[at] == key
