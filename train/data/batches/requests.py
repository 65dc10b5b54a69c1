"""Requests completed: positives alone, negatives beside them, empty ones behind them."""

from collections.abc import Callable
import dataclasses
from typing import Any

import numpy as np

from .. import draws
from ..event_log import Requests


def positives(requests: Requests, task: str) -> Requests:
    """One request of a single candidate for every positive label of `task`."""
    row, column = np.nonzero((requests.label[task] > 0) & (requests.candidate >= 0))
    pick = lambda columns: {name: value[row, column][:, None] for name, value in columns.items()}
    return dataclasses.replace(
        requests.take(row),
        candidate=requests.candidate[row, column][:, None],
        label=pick(requests.label),
        weight=pick(requests.weight),
        shown=pick(requests.shown),
    )


def with_negatives(requests: Requests, negative: np.ndarray, *address: Any) -> Requests:
    """Adds `n` negatives to requests of one positive, shuffles, and weighs the positive n times.

    The weight keeps predictions calibrated to one negative per positive, whatever n. The order
    depends on `address` (see `draws`), which broadcasts against the requests.
    """
    size, count = negative.shape
    candidate = np.concatenate([requests.candidate, negative], axis=1)
    is_positive = np.arange(1 + count) == 0
    parts = [np.asarray(part)[..., None] for part in address]
    noise = draws.bits(*parts, np.arange(1 + count), -1)
    order = np.argsort(np.broadcast_to(noise, candidate.shape), axis=1)
    first = is_positive[order]
    weight = np.where(first, np.float32(count), np.float32(1))
    return dataclasses.replace(
        requests,
        candidate=np.take_along_axis(candidate, order, axis=1),
        label={
            task: np.where(first, label, np.float32(0)) for task, label in requests.label.items()
        },
        weight=dict.fromkeys(requests.label, weight),
    )


def with_candidates(
    requests: Requests,
    user: np.ndarray,
    item: np.ndarray,
    name: Callable[[int], Any] = "number {} of the log".format,
) -> Requests:
    """Adds given items of label 0 to requests of one positive, which stands first.

    Args:
      requests: of one candidate each.
      user, item: (P,) pairs; a request gets all items of its user but its own candidate.
      name: of a user, for the message.

    Raises:
      ValueError: a user of the requests has no other item.
    """
    pairs = np.unique(np.stack([user, item]).astype(np.int64), axis=1)
    starts = np.searchsorted(pairs[0], requests.user)
    sizes = np.searchsorted(pairs[0], requests.user, side="right") - starts
    width = int(sizes.max(initial=0))
    column = np.arange(width)
    real = column < sizes[:, None]
    more = np.where(real, pairs[1][np.where(real, starts[:, None] + column, 0)], -1)
    more = np.where(more == requests.candidate, -1, more).astype(np.int32)
    lonely = np.flatnonzero(~(more >= 0).any(axis=1)) if width else np.arange(len(requests))
    if len(lonely):
        first = int(requests.user[lonely[0]])
        raise ValueError(
            f"evaluation_negatives: {len(lonely)} targets have no given item beside their own, "
            f"first that of user {name(first)}."
        )
    candidate = np.concatenate([requests.candidate, more], axis=1)
    empty = np.zeros(more.shape, np.float32)
    label = {task: np.concatenate([x, empty], axis=1) for task, x in requests.label.items()}
    return dataclasses.replace(requests, candidate=candidate, label=label)


def fill_up(requests: Requests, size: int) -> Requests:
    """Appends requests without candidates or history until there are `size`."""
    missing = size - len(requests)
    if missing == 0:
        return requests
    filled = requests.take(np.concatenate([np.arange(len(requests)), np.zeros(missing, int)]))
    real = np.arange(size) < len(requests)
    return dataclasses.replace(
        filled,
        cut=np.where(real, filled.cut, 0),
        candidate=np.where(real[:, None], filled.candidate, np.int32(-1)),
    )
