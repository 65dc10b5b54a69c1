"""From labelled impressions to a data set: requests of what was shown, split, with their pasts.

A request's history holds the events strictly before its time: neither its own positives nor those
of another request in the same second. Vocabularies and transforms learn from the requests of
training and from the events that their histories hold.

Shapes: `n` impressions, `h` events of a file of histories, `E` past events, `R` requests, `C`
candidates of the longest one.
"""

from collections.abc import Sequence
import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import numpy as np

from ....zoo.features import RowMap, Schema
from .. import columns, examples
from ..as_of import Seconds, last_of_user
from ..dataset import Dataset
from ..errors import DataError
from ..event_log import EventLog, Requests
from ..fields.encoding import SEGMENTS, Attribute, Encoder, event_column
from ..protocol import TEST, TRAIN, VALIDATION, Protocol, parts_by_position, parts_by_time
from .groups import Grouped, Padded

_PARTS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
# By requests, as `protocol` does.
_SHARES = (0.8, 0.9)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Impressions:
    """Raw impressions in file order, and what was done before.

    Attributes:
      user, item: (n,) indices into the user attributes and `item_ids`.
      time: (n,) int64; the order of the requests where the file has no times.
      requests: the impressions by request.
      label, weight: {task: (n,) float32}; tasks in the order of the labels.
      item_ids: Arrow array of the items' published ids.
      items: attributes with a value per item. users: per user.
      context: attributes with `n` values that are the request's.
      shown: with `n` values that are the candidate's in its request only, such as its position.
      changing_items: with `n + h` values that an item has in that row, such as its price.
      changing_users: with `n` values; a request has the user's last one of an earlier second.
      events: with `n + h` values, seen of past events only.
      past: (user, item, time) of the `h` events that histories are made of, in any order; without
        them they are the impressions whose first label is positive.
      part: (n,) 0, 1 or 2 where files of one's own say what is to train, validate and test on.
      has_clock: whether times are in seconds. has_time: whether the file has times.
    """

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    requests: Grouped
    label: dict[str, np.ndarray]
    weight: dict[str, np.ndarray]
    item_ids: Any
    items: tuple[Attribute, ...] = ()
    users: tuple[Attribute, ...] = ()
    context: tuple[Attribute, ...] = ()
    shown: tuple[Attribute, ...] = ()
    changing_items: tuple[Attribute, ...] = ()
    changing_users: tuple[Attribute, ...] = ()
    events: tuple[Attribute, ...] = ()
    past: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
    part: np.ndarray | None = None
    has_clock: bool = True
    has_time: bool = True


def build(
    name: str,
    raw: Impressions,
    *,
    row_maps: dict[str, RowMap] | None = None,
    transforms: dict[str, str] | None = None,
    protocol: Protocol | None = None,
) -> Dataset:
    """Splits the requests and encodes what they hold.

    Args:
      name: of the data set.
      raw: the impressions.
      row_maps, transforms: of an earlier run; see `interactions.build`.
      protocol: None splits by time, for all users by the same two moments.

    Raises:
      DataError: nothing is left to train, validate or test on; labels that cannot be judged.
    """
    facts: dict[str, Any] = {}
    notes: list[str] = []
    asked, tasks = raw.requests, tuple(raw.label)
    past = _Past.of(raw)
    cut = past.before(asked.user, asked.time)
    part = _parts(name, raw, protocol, facts)
    if raw.part is not None:
        part = _without_later_parts(raw, part, notes)
    for split, own in _PARTS.items():
        if not np.any(part == own):
            raise DataError(f"{name}: no request is left for {split}.")
    _check_labels(name, raw, part, notes)

    for_training = part == TRAIN
    until = np.zeros(past.users, np.int64)
    np.maximum.at(until, asked.user[for_training], cut[for_training])
    visible = np.arange(len(past.rows)) - past.offsets[past.user] < until[past.user]
    shown_in_training = np.zeros(len(raw.user), bool)
    shown_in_training[asked.rows] = for_training[asked.request]

    encoder = Encoder(row_maps or {}, transforms or {})
    seen_items = columns.count(raw.item[shown_in_training], len(raw.item_ids))
    seen_items += columns.count(past.item[visible], len(raw.item_ids))
    listed = (Attribute(name="item", values=raw.item_ids), *raw.items)
    for_items = {x.name: encoder.add(x, ("candidate", "history"), seen_items) for x in listed}
    seen_users = columns.count(asked.user[for_training], past.users)
    for_users = {x.name: encoder.add(x, ("user",), seen_users) for x in raw.users}
    in_past = np.zeros(len(raw.user) + (0 if raw.past is None else len(past.rows)), bool)
    in_past[past.rows[visible]] = True
    anywhere = in_past.copy()
    anywhere[: len(raw.user)] |= shown_in_training

    def column(attribute: Attribute, roles: tuple[str, ...], learnt: np.ndarray) -> np.ndarray:
        counts = lambda code, size: columns.count(code[learnt], size)
        every = np.arange(len(learnt))
        return event_column(encoder, every, counts, learnt, attribute, roles)

    of_events = {x.name: column(x, ("history",), in_past)[past.rows] for x in raw.events}
    changing = {x.name: column(x, ("candidate", "history"), anywhere) for x in raw.changing_items}
    by_time = asked.rows[for_training[asked.request]]
    for x, value in changing.items():
        newest = np.zeros((len(raw.item_ids), *value.shape[1:]), value.dtype)
        newest[raw.item[by_time]] = value[by_time]
        for_items[x] = newest
    log = EventLog(
        offsets=past.offsets,
        item=past.item.astype(np.int32),
        time=past.time,
        event=of_events | {x: value[past.rows] for x, value in changing.items()},
        items=for_items,
        users=for_users,
        has_clock=raw.has_clock,
    )
    here = functools.partial(column, learnt=shown_in_training)
    of_rows = {x: value[: len(raw.user)] for x, value in changing.items()}
    of_rows |= {x.name: here(x, ("candidate",)) for x in raw.shown}
    context = {x.name: here(x, ("context",))[asked.first] for x in raw.context}
    for x in raw.changing_users:
        value = here(x, ("context",))[asked.rows[asked.starts + asked.lengths() - 1]]
        context[x.name] = _last_known(value, asked, encoder.missing("context", x.name))
    padded = Padded.of(asked, notes)

    def requests(own: int) -> Requests:
        """Those of one part, in the order of time."""
        fill = functools.partial(padded.fill, part == own)
        owner = padded.owners(part == own)
        return Requests(
            user=asked.user[owner].astype(np.int32),
            cut=cut[owner],
            time=asked.time[owner],
            candidate=fill(raw.item.astype(np.int32), empty=-1),
            label={task: fill(value) for task, value in raw.label.items()},
            weight={task: fill(value) for task, value in raw.weight.items()},
            context={x: value[owner] for x, value in context.items()},
            shown={x: fill(value) for x, value in of_rows.items()},
        )

    lengths = asked.lengths()
    schema = Schema(tables=tuple(encoder.tables), fields=tuple(encoder.fields), tasks=tasks)
    test = requests(TEST)
    return Dataset(
        name=name,
        schema=schema,
        row_maps=encoder.row_maps,
        log=log,
        train=requests(TRAIN),
        validation=requests(VALIDATION),
        test=test,
        segments={
            x: encoder.labels[x]
            for x in SEGMENTS
            if x in encoder.labels and (x in context or x in for_users)
        },
        facts={
            "users": log.num_users,
            "items": log.num_items,
            "requests": len(lengths),
            "impressions": len(raw.user),
            "most candidates in a request": int(lengths.max()),
            **{f"positives of {t}": int((value > 0).sum()) for t, value in raw.label.items()},
            "events in histories": log.num_events,
            **facts,
        },
        notes=tuple(notes),
        examples=_examples(raw, listed, log, past, padded, part == TEST, test, schema),
    )


def _examples(
    raw: Impressions,
    listed: Sequence[Attribute],
    log: EventLog,
    past: "_Past",
    padded: Padded,
    of_test: np.ndarray,
    test: Requests,
    schema: Schema,
) -> tuple[dict[str, Any], ...]:
    """The first requests of the test as raw records; `listed` are the attributes of all items."""
    asked, some = raw.requests, np.arange(min(len(test), examples.COUNT))
    few, owner = test.take(some), padded.owners(of_test)[some]
    rows = padded.fill(of_test, np.arange(len(raw.user)), empty=-1)[some]
    last = asked.rows[asked.starts + asked.lengths() - 1]
    at = examples.histories(log.offsets, few.user, few.cut)
    kept = examples.RawValues(
        requests=np.stack([few.user, few.cut, few.time], axis=1),
        items={one.name: one.values for one in listed},
        users=examples.taken(raw.users, few.user),
        context=examples.taken(raw.context, asked.first[owner])
        | examples.taken(raw.changing_users, _last_known(last, asked, -1)[owner]),
        at=at,
        events=examples.taken((*raw.events, *raw.changing_items), past.rows[at]),
    )
    shown = examples.taken((*raw.changing_items, *raw.shown), rows.reshape(-1))
    by_request = {
        x: [values.slice(k * rows.shape[1], rows.shape[1]).to_pylist() for k in some]
        for x, values in shown.items()
    }
    return kept.records(log, few, schema, by_request)


class _Past(NamedTuple):
    """The events that histories are made of, by user and time.

    `rows` says where the columns of each event stand: among the impressions, or behind them.
    """

    offsets: np.ndarray
    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    rows: np.ndarray

    @staticmethod
    def of(raw: Impressions) -> "_Past":
        if raw.past is None:
            rows = np.flatnonzero(next(iter(raw.label.values())) > 0)
            user, item, time = raw.user[rows], raw.item[rows], raw.time[rows]
        else:
            user, item, time = raw.past
            rows = len(raw.user) + np.arange(len(user))
        order = np.lexsort((time, user))
        counts = columns.count(user, int(raw.user.max(initial=-1)) + 1)
        offsets = np.concatenate([[0], np.cumsum(counts)])
        return _Past(offsets, user[order], item[order], time[order], rows[order])

    @property
    def users(self) -> int:
        return len(self.offsets) - 1

    def before(self, user: np.ndarray, time: np.ndarray) -> np.ndarray:
        """(R,) int64, how many events each user has strictly before each time."""
        times = np.unique(np.concatenate([self.time, time]))
        # One ascending number per event: a search for (user, time) is a search for a number.
        code = lambda user, time: user * (len(times) + 1) + np.searchsorted(times, time)
        found = np.searchsorted(code(self.user, self.time), code(user, time))
        return found - self.offsets[user]


def _parts(
    name: str, raw: Impressions, protocol: Protocol | None, facts: dict[str, Any]
) -> np.ndarray:
    """(R,) what each request is for: TRAIN, VALIDATION or TEST."""
    asked = raw.requests
    if raw.part is not None:
        return raw.part[asked.first]
    if protocol is not None and protocol.split == "last":
        order = np.argsort(asked.user, kind="stable")
        counts = columns.count(asked.user)
        part = np.empty(len(order), np.int8)
        offsets = np.concatenate([[0], np.cumsum(counts)])
        part[order] = parts_by_position(offsets, np.ones(len(order), bool))
        return part
    moments = protocol.split_at if protocol else ()
    if moments and not raw.has_time:
        raise DataError(f"{name}: split_at needs a timestamp; these requests only have an order.")
    part, moments = parts_by_time(asked.time, moments or _moments(name, asked.time))
    if raw.has_time:
        facts["split at"] = ", ".join(f"{moment:.0f}" for moment in moments)
    return part


def _moments(name: str, time: np.ndarray) -> tuple[float, float]:
    """The times at which about the last 20 % and 10 % of the requests begin."""
    distinct, counts = np.unique(time, return_counts=True)
    if len(distinct) < 3:
        raise DataError(
            f"{name}: a split by time needs three times or more, and the requests have "
            f"{len(distinct)}; split=last takes the last request of each user."
        )
    before = (np.cumsum(counts) - counts) / len(time)
    # What stands before each moment is not empty, nor what stands behind it.
    first = 1 + int(np.argmin(np.abs(before[1:-1] - _SHARES[0])))
    second = first + 1 + int(np.argmin(np.abs(before[first + 1 :] - _SHARES[1])))
    return float(distinct[first]), float(distinct[second])


def _without_later_parts(raw: Impressions, part: np.ndarray, notes: list[str]) -> np.ndarray:
    """The parts, -1 for requests whose history would hold what a later part asks for."""
    if raw.past is not None:
        return part
    asked, result = raw.requests, part.copy()
    assert raw.part is not None
    positive = next(iter(raw.label.values())) > 0
    for own in (TRAIN, VALIDATION):
        first = np.full(int(raw.user.max()) + 1, np.iinfo(np.int64).max)
        late = positive & (raw.part > own)
        np.minimum.at(first, raw.user[late], raw.time[late])
        result[(part == own) & (asked.time > first[asked.user])] = -1
    if (result < 0).any():
        count = int((result < 0).sum())
        notes.append(f"{count} requests left out: their users' later parts came before them")
    return result


def _check_labels(name: str, raw: Impressions, part: np.ndarray, notes: list[str]) -> None:
    """Says what cannot be judged; raises DataError where nothing could be."""
    part_of = np.empty(len(raw.user), np.int8)
    part_of[raw.requests.rows] = part[raw.requests.request]
    for task, label in raw.label.items():
        weight = raw.weight.get(task)
        for split, own in _PARTS.items():
            some = label[part_of == own]
            if own != TRAIN and ((some != 0) & (some != 1)).any():
                value = float(some[(some != 0) & (some != 1)][0])
                raise DataError(
                    f"{name}: labels of {task} must be 0 or 1 in validation and test, which AUC "
                    f"and log-loss judge by, got {value:g}; labels between are for training."
                )
            if weight is not None and not weight[part_of == own].any():
                raise DataError(f"{name}: weights of {task} must not all be 0 in {split}.")
            if not some.any() or some.all():
                what = "1" if some.any() else "0"
                of_test = "nothing can be learnt" if own == TRAIN else "AUC is undefined"
                notes.append(f"all labels of {task} in {split} are {what}: {of_test}")
    for one, other in itertools.pairwise(raw.label):
        count = int(np.count_nonzero((raw.label[other] > 0) & (raw.label[one] == 0)))
        if count:
            notes.append(f"{count} rows have {other} without {one}: not steps of one funnel, then")


def _last_known(value: np.ndarray, asked: Grouped, missing: float | int) -> np.ndarray:
    """(R,) of the values (R,) at each request, that of the user's last one in an earlier second."""
    order = np.argsort(asked.user, kind="stable")
    counts = columns.count(asked.user)
    log = EventLog(
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        item=np.zeros(len(order), np.int32),
        time=asked.time[order],
        event={},
        items={},
        users={},
    )
    result = np.empty_like(value)
    result[order] = last_of_user(value[order], Seconds.of(log), log, missing)
    return result
