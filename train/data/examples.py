"""Some requests as raw records, so that people see what a record holds and have some to try.

They are what `zoo.features.encode` turns into the very batch that the requests give.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa

from ...zoo.features import Role, Schema
from .as_of import Seconds
from .event_log import EventLog, Requests
from .fields.encoding import Attribute
from .raw_interactions import Interactions

COUNT = 10
"""Requests that are kept as records."""
_HISTORY = 200


@dataclasses.dataclass(frozen=True, eq=False)
class RawValues:
    """What the source said, of those requests alone.

    Attributes:
      requests: (R, 3) user, cut and time, which tell them from others.
      items: {field: (N,) Arrow array}, of all items.
      users: {field: (R,)}, of each request's user.
      context: {field: (R,)}.
      at: (E,) ascending indices of the log's events that are histories of these requests.
      events: {field: (E,)} of those events.
    """

    requests: np.ndarray
    items: Mapping[str, pa.Array]
    users: Mapping[str, pa.Array]
    context: Mapping[str, pa.Array]
    at: np.ndarray
    events: Mapping[str, pa.Array]

    def those_of(self, requests: Requests) -> Requests:
        """Those of the requests that are among these, which may have been left out since."""
        keys = set(map(tuple, self.requests.tolist()))
        first = requests.take(np.arange(min(len(requests), 2 * COUNT)))
        return first.take(np.array([k for k, key in enumerate(_keys(first)) if key in keys], int))

    def records(
        self, log: EventLog, requests: Requests, schema: Schema, shown: Mapping[str, Any]
    ) -> tuple[dict[str, Any], ...]:
        """The requests as records of a schema.

        `shown` has what candidates have in their request alone, {field: (R, C) raw values}.
        """
        past_items, items_now = (self._of_role(schema, role) for role in ("history", "candidate"))
        found, place_of = [], {key: k for k, key in enumerate(map(tuple, self.requests.tolist()))}
        for row, key in enumerate(_keys(requests)):
            asked = place_of[key]
            end = int(log.offsets[requests.user[row]] + requests.cut[row])
            past = np.arange(max(end - _HISTORY, int(log.offsets[requests.user[row]])), end)
            place = np.searchsorted(self.at, past)
            history = [
                {**_row(past_items, int(log.item[event])), **_row(self.events, int(where))}
                | ({"time": int(log.time[event])} if log.has_clock else {})
                for event, where in zip(past, place, strict=True)
            ]
            items = [
                _row(items_now, int(item)) | {x: values[row][k] for x, values in shown.items()}
                for k, item in enumerate(requests.candidate[row])
                if item >= 0
            ]
            time = {"time": int(requests.time[row])} if log.has_clock else {}
            found.append(
                {
                    "context": time | _row(self.context, asked),
                    "user": {**_row(self.users, asked), "history": history},
                    "items": items,
                }
            )
        return tuple(found)

    def _of_role(self, schema: Schema, role: Role) -> dict[str, pa.Array]:
        known = {field.name for field in schema.role(role)}
        return {name: values for name, values in self.items.items() if name in known}


def of_interactions(
    raw: Interactions,
    log: EventLog,
    seconds: Seconds,
    items: Sequence[Attribute],
    user_ids: np.ndarray,
    order: np.ndarray,
    events: np.ndarray,
) -> RawValues:
    """What is said of the requests for these events, given the attributes of all items.

    See `interactions.build` for the other arguments.
    """
    user = np.searchsorted(log.offsets, events, side="right") - 1
    cut = seconds.own[events] - log.offsets[user]
    at = histories(log.offsets, user, cut)
    before = seconds.first[events] - 1
    of_user = np.where(before >= log.offsets[user], order[np.maximum(before, 0)], -1)
    return RawValues(
        requests=np.stack([user, cut, log.time[events]], axis=1),
        items={one.name: one.values for one in items},
        users=taken(raw.users, user_ids[user]),
        context=taken(raw.context, order[events]) | taken(raw.changing_users, of_user),
        at=at,
        events=taken((*raw.events, *raw.changing_items), order[at]),
    )


def _keys(requests: Requests) -> list[tuple[int, ...]]:
    return list(
        zip(requests.user.tolist(), requests.cut.tolist(), requests.time.tolist(), strict=True)
    )


def histories(log_offsets: np.ndarray, user: np.ndarray, cut: np.ndarray) -> np.ndarray:
    """Ascending indices of the events that are the newest past of such requests."""
    ends = log_offsets[user] + cut
    starts = np.maximum(log_offsets[user], ends - _HISTORY)
    parts = [np.arange(start, end) for start, end in zip(starts, ends, strict=True)]
    return np.unique(np.concatenate([np.zeros(0, np.int64), *parts])).astype(np.int64)


def taken(attributes: tuple[Attribute, ...], rows: np.ndarray) -> dict[str, pa.Array]:
    """The raw values of attributes in some rows; a negative row has none."""
    at = pa.array(np.maximum(rows, 0), mask=np.asarray(rows) < 0)
    return {one.name: one.values.take(at) for one in attributes}


def _row(columns: Mapping[str, pa.Array], row: int) -> dict[str, Any]:
    """The values of a row that are there."""
    found = {name: values[row].as_py() for name, values in columns.items()}
    return {name: value for name, value in found.items() if value is not None}
