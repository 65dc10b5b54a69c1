"""From a log of interactions to a data set: one protocol for every such source.

Per user by (timestamp, file order): the last event is the test target, the one before it the
validation target, the newest `max_train_per_user` earlier ones are training targets (`Protocol`
has other splits). The history of a target is what came before it. Each validation and test target
comes with one item, drawn among those that the user never touches in the whole log; training
negatives are drawn anew each epoch by the pipeline, from what training knows. Users of fewer than
three events are left out, and with them the items that nobody else touched; so are users who
touched every item, as nothing is left to compare theirs with.

Rows that say the same are one event, unless they are kept: a copy would be target and history at
once. For the same reason the history of a target ends before its own item in the same second.

Known values are those of events that training may see: an item that only ever is a target of
validation or test is unseen (row 1).
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import numpy as np
import pyarrow as pa

from ...zoo.features import RowMap, Schema
from . import columns, draws, examples
from .as_of import LastSeen, Seconds, last_of_user
from .batches.requests import with_candidates, with_negatives
from .chosen_events import Labels, chosen_events
from .dataset import Dataset
from .errors import DataError
from .event_log import EventLog, Requests
from .fields.encoding import SEGMENTS, Attribute, Encoder, event_column
from .protocol import (
    POPULARITY,
    TEST,
    TRAIN,
    UNIFORM,
    VALIDATION,
    Protocol,
    newest_of_each,
    not_behind_later_parts,
    parts_by_position,
    parts_by_time,
)
from .raw_interactions import Interactions


def build(
    name: str,
    raw: Interactions,
    *,
    task: str = "click",
    row_maps: dict[str, RowMap] | None = None,
    transforms: dict[str, str] | None = None,
    protocol: Protocol | None = None,
) -> Dataset:
    """Applies the protocol. Raises DataError if nothing is left to train, validate and test on.

    `row_maps` and `transforms` (of dense fields, by "role.name") are those of an earlier run, for
    data that its model is to score; by default every table gets a vocabulary of the values that
    training may see, and every transform learns from them.

    Of an event the log takes 12 bytes, and 4 for each attribute; beside it and `raw` (which is let
    go in time if the caller keeps no name for it) at most 16 more are held.
    """
    protocol, facts = protocol or Protocol(), {}
    labels = Labels.of(name, raw, protocol)
    order = chosen_events(name, raw, protocol, labels, facts)
    user = columns.take(raw.user, order)
    starts = np.flatnonzero(np.diff(user, prepend=-1))
    user_ids, offsets = user[starts].astype(np.int64), np.append(starts, len(order))
    del user
    catalogue, item = _catalogue(raw, order)
    time = columns.take(raw.time, order, np.int64)
    labels = labels.take(order)
    part = _parts(name, raw, order, offsets, time, labels.is_target, protocol, facts)
    for_training = part == TRAIN

    def seen(values: np.ndarray, size: int) -> np.ndarray:
        """Counts of each value in the ordered events that training may see."""
        return columns.count(values, size) - columns.count(values[~for_training], size)

    encoder = Encoder(row_maps or {}, transforms or {})
    listed = (Attribute(name="item", values=raw.item_ids), *raw.items)
    listed = [dataclasses.replace(x, values=x.values.take(pa.array(catalogue))) for x in listed]
    of_items = seen(item, len(catalogue))
    for_items = {x.name: encoder.add(x, ("candidate", "history"), of_items) for x in listed}
    for_users = {}
    for x in raw.users:
        kept = np.zeros(len(x.values), bool)
        kept[user_ids] = True
        for_users[x.name] = encoder.add(x, ("user",), kept)[user_ids]
    column = functools.partial(event_column, encoder, order, seen, for_training)
    for_events = {x.name: column(x, ("history",)) for x in raw.events}
    changing = {x.name: column(x, ("candidate", "history")) for x in raw.changing_items}
    if changing and raw.has_time and not raw.has_clock:
        first = next(iter(changing))
        raise DataError(f"{name}: {first!r} is read as of the event, which needs a clock.")
    for x, value in changing.items():
        for_items[x] = _newest(item[for_training], value[for_training], len(catalogue))
    log = EventLog(
        offsets=offsets,
        item=item,
        time=time,
        event=for_events | changing,
        items=for_items,
        users=for_users,
        has_clock=raw.has_clock,
    )
    context = {x.name: column(x, ("context",)) for x in raw.context}
    seconds = Seconds.of(log)
    for x in raw.changing_users:
        value, missing = column(x, ("context",)), encoder.missing("context", x.name)
        context[x.name] = last_of_user(value, seconds, log, missing)
    own_parts, own_ids = raw.part, user_ids
    if raw.user_ids is not None:
        own_ids = raw.user_ids.take(pa.array(user_ids))
    given, tasks = _given(raw, catalogue, user_ids), protocol.tasks or (task,)
    first = np.flatnonzero((part == TEST) & labels.is_target)[: examples.COUNT]
    kept = examples.of_interactions(raw, log, seconds, listed, user_ids, order, first)
    # A candidate has what any user's event said of it.
    as_of_events = {x.name: x.values.take(pa.array(order)) for x in raw.changing_items}
    # Else what nobody reads any more would be held to the end.
    del raw, order, item, column

    def targets(index: np.ndarray) -> Requests:
        """One request for each of these events."""
        owner = np.searchsorted(offsets, index, side="right").astype(np.int32) - np.int32(1)
        return Requests(
            user=owner,
            cut=seconds.own[index] - offsets[owner],
            time=log.time[index],
            candidate=log.item[index][:, None],
            label={name: labels.of_task(k, index)[:, None] for k, name in enumerate(tasks)},
            context={name: column[index] for name, column in context.items()},
        )

    chosen = [np.flatnonzero((part == own) & labels.is_target) for own in range(3)]
    chosen = [not_behind_later_parts(index, offsets, part, own) for own, index in enumerate(chosen)]
    train = newest_of_each(chosen[TRAIN], offsets, protocol.max_train_per_user)
    # Before the requests of training, which are many: what tells untouched items is large.
    try:
        untouched = draws.UntouchedItems(log)
        popularity = columns.count(log.item[for_training])
        judged = _Judged(untouched, log, protocol, popularity, given, own_ids)
        validation, test = (
            judged(split, targets(chosen[split]), chosen[split]) for split in (VALIDATION, TEST)
        )
        train = _with_something_to_draw(log, train, of_items, untouched, facts)
    except ValueError as error:
        raise DataError(f"{name}: {error}") from error
    requests = {"train": targets(train), "validation": validation, "test": test}
    for split, some in requests.items():
        if not len(some):
            raise DataError(
                f"{name}: no event is left for {split} ({_how(protocol, log, own_parts)})."
            )
    appeared = np.full(log.num_items, draws.NEVER)
    np.minimum.at(appeared, log.item[for_training], log.time[for_training])
    complete: Callable[[Requests], Requests] = lambda requests: requests
    few, shown = kept.those_of(test), {}
    if changing:
        complete = LastSeen(log, {x: encoder.missing("candidate", x) for x in changing})
        events = complete.events(few)
        for x, values in as_of_events.items():
            shown[x] = [[values[at].as_py() if at >= 0 else None for at in row] for row in events]
    schema = Schema(tables=tuple(encoder.tables), fields=tuple(encoder.fields), tasks=tasks)
    return Dataset(
        name=name,
        schema=schema,
        row_maps=encoder.row_maps,
        log=log,
        train=requests["train"],
        validation=complete(validation),
        test=complete(test),
        samples_negatives=True,
        segments={name: encoder.labels[name] for name in SEGMENTS if name in encoder.labels},
        facts={
            "users": log.num_users,
            "items": int(np.count_nonzero(columns.count(log.item))),
            "events": log.num_events,
            **facts,
        },
        appeared=appeared,
        complete=complete,
        examples=kept.records(log, few, schema, shown),
    )


def _how(protocol: Protocol, log: EventLog, given: np.ndarray | None) -> str:
    """Description of the split, with a remedy, for messages."""
    if given is not None:
        return (
            "files of one's own are for training, validation and test in this order, later ones "
            "hold later events of the same users, and no row stands in two of them"
        )
    if protocol.split != "time":
        return f"split={protocol.split}"
    at = ", ".join(f"{moment:.0f}" for moment in protocol.split_at) or "80 % and 90 %"
    return f"split=time at {at}; the times are {log.time.min()} to {log.time.max()}"


def _catalogue(raw: Interactions, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The items that stay, and the item of each event, numbered among them.

    Who leaves takes along the items that nobody else touched: as negatives they would be
    recognisable, since their rows are never trained.
    """
    item = columns.take(raw.item, order, np.int32)
    touched = columns.count(item, len(raw.item_ids))
    catalogue = np.flatnonzero((touched > 0) | (columns.count(raw.item, len(touched)) == 0))
    renamed = np.zeros(len(touched), np.int32)
    renamed[catalogue] = np.arange(len(catalogue), dtype=np.int32)
    return catalogue, columns.take(renamed, item)


def _parts(
    name: str,
    raw: Interactions,
    order: np.ndarray,
    offsets: np.ndarray,
    time: np.ndarray,
    is_target: np.ndarray,
    protocol: Protocol,
    facts: dict[str, Any],
) -> np.ndarray:
    """(E,) what each event is for: TRAIN, VALIDATION or TEST."""
    if raw.part is not None:
        return columns.take(raw.part, order, np.int8)
    if protocol.split != "time":
        return parts_by_position(offsets, is_target)
    if not raw.has_clock:
        raise DataError(f"{name}: a split by time needs a clock; these events only have an order.")
    part, moments = parts_by_time(time, protocol.split_at)
    facts["split at"] = ", ".join(f"{moment:.0f}" for moment in moments)
    return part


def _newest(item: np.ndarray, value: np.ndarray, size: int) -> np.ndarray:
    """(size, ...) the value of each item's last event in the order given; zeros for none."""
    result = np.zeros((size, *value.shape[1:]), value.dtype)
    result[item] = value
    return result


def _given(
    raw: Interactions, catalogue: np.ndarray, user_ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Given negatives as (user, item) of the log, those of users and items that are left."""
    if raw.negatives is None:
        return None
    users = np.full(int(raw.user.max(initial=0)) + 2, -1)
    users[user_ids] = np.arange(len(user_ids))
    items = np.full(len(raw.item_ids) + 1, -1)
    items[catalogue] = np.arange(len(catalogue))
    user, item = users[raw.negatives[0]], items[raw.negatives[1]]
    fine = (user >= 0) & (item >= 0)
    return user[fine], item[fine]


class _Judged:
    """Makes requests of validation and test of targets: adds the items to compare them with."""

    def __init__(
        self,
        untouched: draws.UntouchedItems,
        log: EventLog,
        protocol: Protocol,
        popularity: np.ndarray,
        given: tuple[np.ndarray, np.ndarray] | None,
        user_ids: Any,
    ):
        self._untouched, self._log, self._given = untouched, log, given
        self._user_ids = user_ids
        self._proposal: draws.Proposal = draws.Everything(log.num_items)
        if protocol.evaluation_negatives == POPULARITY:
            self._proposal = draws.ByCount(popularity)
        elif protocol.evaluation_negatives != UNIFORM and given is None:
            raise ValueError(
                f"evaluation_negatives must be {UNIFORM}, {POPULARITY} or a file of pairs, got "
                f"{protocol.evaluation_negatives!r}."
            )
        self._fingerprint = log.fingerprint()

    def __call__(self, split: int, requests: Requests, index: np.ndarray) -> Requests:
        """The requests of one split; `index` says of which events they are."""
        if self._given is not None:
            return with_candidates(requests, *self._given, lambda user: self._user_ids[user])
        # A user who is asked once is told by their number, whatever else the log holds.
        once = len(np.unique(requests.user)) == len(requests)
        address = self._fingerprint, split, requests.user if once else index
        negative = self._untouched.draw(requests.user, 1, *address, proposal=self._proposal)
        return dataclasses.replace(with_negatives(requests, negative, *address), weight={})


def _with_something_to_draw(
    log: EventLog,
    train: np.ndarray,
    seen: np.ndarray,
    untouched: draws.UntouchedItems,
    facts: dict[str, Any],
) -> np.ndarray:
    """The targets of users who have not touched everything that training knows."""
    known = np.flatnonzero(seen > 0)
    many = np.flatnonzero(log.lengths() >= len(known))
    if not len(many):
        return train
    full = many[untouched.touched_among(known)[many] >= len(known)]
    owner = np.searchsorted(log.offsets, train, side="right") - 1
    stuck = np.isin(owner, full)
    if stuck.any():
        facts["training targets left out (their users touched all that training knows)"] = int(
            stuck.sum()
        )
    return train[~stuck]
