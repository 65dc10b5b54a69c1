"""Selection of a log's events, and which of them are targets."""

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa

from . import columns
from .declaration.guess import codes_of
from .errors import DataError
from .protocol import (
    Protocol,
    repeats,
)
from .raw_interactions import Interactions

_NAMED = 5  # Users that a message names.


@dataclasses.dataclass(frozen=True, eq=False)
class Labels:
    """Targets among the events, and how far each went along the tasks.

    `reached` (E,) is the number of the task of an event's behaviour, -1 for none.
    """

    reached: np.ndarray

    @staticmethod
    def of(name: str, raw: Interactions, protocol: Protocol) -> "Labels":
        """Of the behaviours that are tasks; by default every event is a target."""
        if not protocol.tasks:
            return Labels(np.zeros(len(raw.user), np.int8))
        behavior = next((x.values for x in raw.events if x.name == "behavior"), None)
        if behavior is None:
            raise DataError(f"{name}: tasks are behaviours, but the events have none.")
        coded = behavior if pa.types.is_dictionary(behavior.type) else behavior.dictionary_encode()
        known = [str(value) for value in coded.dictionary.to_pylist()]
        for task in protocol.tasks:
            if task not in known:
                raise DataError(f"{name}: no event is a {task!r} ({', '.join(known)}).")
        number = [protocol.tasks.index(x) if x in protocol.tasks else -1 for x in known]
        code = coded.indices.fill_null(len(known)).to_numpy(zero_copy_only=False)
        return Labels(np.array([*number, -1], np.int8)[code])

    @property
    def is_target(self) -> np.ndarray:
        """(n,) bool."""
        return self.reached >= 0

    def take(self, order: np.ndarray) -> "Labels":
        """Those of some events, in that order."""
        return Labels(columns.take(self.reached, order))

    def of_task(self, task: int, index: np.ndarray) -> np.ndarray:
        """float32 labels of one task, of some events."""
        return (self.reached[index] >= task).astype(np.float32)


def chosen_events(
    name: str, raw: Interactions, protocol: Protocol, labels: Labels, facts: dict[str, Any]
) -> np.ndarray:
    """The events that are kept, by user and time; file order breaks ties."""
    order = np.lexsort((raw.time, raw.user))
    if len(order) < 2**31:  # Half of what an int64 order would take, from here on.
        order = order.astype(np.int32)
    if protocol.duplicates == "drop":
        repeated = copies(raw, order)
        if repeated.any():
            facts["duplicate rows dropped"] = int(repeated.sum())
            order = order[~repeated]
    if protocol.min_rating:
        if raw.rating is None:
            raise DataError(f"{name}: min_rating needs ratings, and the events have none.")
        low = ~(raw.rating[order] >= protocol.min_rating)
        facts[f"events rated below {protocol.min_rating:g} left out"] = int(low.sum())
        order = order[~low]
    counts = columns.count(raw.user[order][labels.is_target[order]])
    everyone = int(np.count_nonzero(columns.count(raw.user)))
    if counts.max(initial=0) < protocol.min_events:
        only = f" rated {protocol.min_rating:g} or more" if protocol.min_rating else ""
        raise DataError(
            f"{name}: every user has fewer than {protocol.min_events} events{only} ({len(order)} "
            f"events of {everyone} users): nothing to train, validate and test on."
        )
    kept = np.zeros(int(raw.user.max(initial=0)) + 1, bool)
    kept[: len(counts)] = counts >= protocol.min_events
    facts[f"users dropped (fewer than {protocol.min_events} events)"] = everyone - int(kept.sum())
    order = order[kept[raw.user[order]]]
    full: list[int] = []
    while len(more := who_has_all(raw, order)):
        full += more.tolist()
        order = order[~np.isin(raw.user[order], more)]
    if full:
        facts["users left out (touched every item)"] = named_users(raw, full)
    if not len(order):
        raise DataError(
            f"{name}: every user touched all items ({named_users(raw, full)}): nothing can be "
            "drawn to compare theirs with."
        )
    return order


def named_users(raw: Interactions, users: list[int]) -> str:
    """The first few users by their own ids, for a message."""
    ids = users if raw.user_ids is None else [raw.user_ids[user].as_py() for user in users]
    more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    return ", ".join(map(str, ids[:_NAMED])) + more


def who_has_all(raw: Interactions, order: np.ndarray) -> np.ndarray:
    """Users who touched every item of the catalogue that the events of `order` leave."""
    touched = columns.count(columns.take(raw.item, order), len(raw.item_ids))
    of_nobody = columns.count(raw.item, len(touched)) == 0
    size = int(np.count_nonzero((touched > 0) | of_nobody))
    user = columns.take(raw.user, order)
    counts = columns.count(user)
    many = np.flatnonzero(counts >= size)
    some = order[np.isin(user, many)]
    pairs = np.unique(np.stack([raw.user[some], raw.item[some]]).astype(np.int64), axis=1)
    owner, distinct = np.unique(pairs[0], return_counts=True)
    return owner[distinct >= size]


def copies(raw: Interactions, order: np.ndarray) -> np.ndarray:
    """(E,) of the ordered events, whether each says what one before it says."""
    attributes = (*raw.events, *raw.context, *raw.changing_items, *raw.changing_users)
    if raw.has_time:
        # Copies stand in the same second of a user: only where there are two is more to compare.
        result = np.zeros(len(order), bool)
        same = np.zeros(len(order), bool)
        for piece in columns.pieces(len(order)):
            at = order[piece]
            before = order[np.maximum(np.arange(piece.start, piece.stop) - 1, 0)]
            same[piece] = (raw.user[at] == raw.user[before]) & (raw.time[at] == raw.time[before])
        same[:1] = False
        some = np.flatnonzero(same | np.append(same[1:], False))
        run = np.cumsum(~same)[some]
    else:
        result, some, run = np.zeros(len(order), bool), np.arange(len(order)), raw.user[order]
    rows = order[some]
    keys = [codes_of(x.values.take(pa.array(rows))) for x in attributes]
    if raw.rating is not None:
        # Numbers that compare: one missing rating is like another.
        keys.append(np.unique(raw.rating[rows], return_inverse=True)[1])
    result[some] = repeats(run, raw.item[rows], *keys)
    return result
