"""From a log of interactions to a data set: one protocol for every such source.

Per user by (timestamp, file order): the last event is the test target, the one before it the
validation target, the newest `max_train_per_user` earlier ones are training targets. The history
of a target is what came before it. Each validation and test target comes with one item, drawn
uniformly among those that the user never touches in the whole log; training negatives are drawn
anew each epoch by the pipeline. Users of fewer than three events are left out, and with them the
items that nobody else touched.

Known values are those of events that training may see: an item that only ever is a target of
validation or test is unseen (row 1).
"""

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa

from ...zoo.features import Field, KnownRows, RowMap, Schema, Table, signatures
from ...zoo.features.record import numbers_of, rows_of
from ...zoo.features.transforms import fitted, function
from . import columns, draws
from .dataset import Dataset
from .errors import DataError
from .event_log import EventLog, Requests
from .pipeline import with_negatives

MIN_EVENTS = 3
ITEM_DIM = 16
# Fields by which metrics are broken down, where a log has them.
SEGMENTS = ("scene", "segment")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attribute:
    """A column of items, users or events: raw values, and how a field reads them.

    `values` is an Arrow array: integers or text (an id; as a dictionary, if few repeat often),
    lists of them (a bag), floats (dense), lists of floats of one length (a dense vector). What
    `transform` has to learn (see `zoo.features.transforms`), it learns from what training sees.
    """

    name: str
    values: Any
    dim: int = ITEM_DIM
    transform: str = "identity"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interactions:
    """Raw events in file order, with attributes of items, users and events.

    Attributes:
      user, item: (E,) integers, indices into the user attributes and `item_ids`.
      time: (E,) integers.
      item_ids: (N,) Arrow array of the items' published ids.
      items: attributes with N values. users: with U values. events: with E values.
      context: attributes with E values that are known before the event, such as its scene; those
        of the target's own event are the request's.
      has_clock: whether `time` is in seconds.
    """

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    item_ids: Any
    items: tuple[Attribute, ...] = ()
    users: tuple[Attribute, ...] = ()
    events: tuple[Attribute, ...] = ()
    context: tuple[Attribute, ...] = ()
    has_clock: bool = True


def build(
    name: str,
    raw: Interactions,
    *,
    max_train_per_user: int = 20,
    task: str = "click",
    row_maps: dict[str, RowMap] | None = None,
    transforms: dict[str, str] | None = None,
) -> Dataset:
    """Applies the protocol. Raises DataError if no user has three events, or one touched all items.

    `row_maps` and `transforms` (of dense fields, by "role.name") are those of an earlier run, for
    data that its model is to score; by default every table gets a vocabulary of the values that
    training may see, and every transform learns from them.

    Of an event the log takes 12 bytes, and 4 for each attribute; beside it and `raw` (which is let
    go in time if the caller keeps no name for it) at most 12 more are held.
    """
    if max_train_per_user < 1:
        raise ValueError(f"max_train_per_user must be >= 1, got {max_train_per_user}.")
    num_users = max((len(attribute.values) for attribute in raw.users), default=0)
    counts = columns.count(raw.user, num_users)
    if counts.max(initial=0) < MIN_EVENTS:
        raise DataError(
            f"{name}: every user has fewer than {MIN_EVENTS} events ({len(raw.user)} events of "
            f"{(counts > 0).sum()} users): nothing to train, validate and test on."
        )
    kept = counts >= MIN_EVENTS
    order = _order(raw, kept, int(counts[kept].sum()))
    user_ids = np.flatnonzero(kept)
    offsets = np.concatenate([[0], np.cumsum(counts[user_ids])])
    ends = offsets[1:]

    # Who leaves takes along the items that nobody else touched: they are of no event, and drawn as
    # negatives they would be told by being unknown.
    item = columns.take(raw.item, order, np.int32)
    touched = columns.count(item, len(raw.item_ids))
    catalogue = np.flatnonzero((touched > 0) | (columns.count(raw.item, len(touched)) == 0))
    renamed = np.zeros(len(touched), np.int32)
    renamed[catalogue] = np.arange(len(catalogue), dtype=np.int32)
    item = columns.take(renamed, item)

    def seen(values: np.ndarray, size: int) -> np.ndarray:
        """How often each value stands in the ordered events that training may see."""
        late = np.concatenate([values[ends - 1], values[ends - 2]])
        return columns.count(values, size) - columns.count(late, size)

    encoder = _Encoder(row_maps or {}, transforms or {})
    listed = (Attribute(name="item", values=raw.item_ids), *raw.items)
    listed = [dataclasses.replace(x, values=x.values.take(pa.array(catalogue))) for x in listed]
    of_items = seen(item, len(catalogue))
    for_items = {x.name: encoder.add(x, ("candidate", "history"), of_items) for x in listed}
    for_users = {x.name: encoder.add(x, ("user",), kept)[user_ids] for x in raw.users}
    log = EventLog(
        offsets=offsets,
        item=item,
        time=columns.take(raw.time, order, np.int64),
        event={
            x.name: _event_column(encoder, x, ("history",), order, seen, ends) for x in raw.events
        },
        items=for_items,
        users=for_users,
        has_clock=raw.has_clock,
    )
    context = {
        x.name: _event_column(encoder, x, ("context",), order, seen, ends) for x in raw.context
    }
    # Else what nobody reads any more would be held to the end.
    del raw, order, item

    def targets(first: np.ndarray, end: np.ndarray) -> Requests:
        """One request for each event in `first[u]:end[u]` of every user."""
        sizes = np.maximum(end - first, 0)
        user = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        index = np.arange(len(user)) + np.repeat(first - np.cumsum(sizes) + sizes, sizes)
        return Requests(
            user=user,
            cut=index - offsets[user],
            time=log.time[index],
            candidate=log.item[index][:, None],
            label={task: np.ones((len(index), 1), np.float32)},
            context={name: column[index] for name, column in context.items()},
        )

    # Before the requests of training, which are many: what tells untouched items is large.
    validation, test = _judged(name, log, targets(ends - 2, ends - 1), targets(ends - 1, ends))
    return Dataset(
        name=name,
        schema=Schema(tables=tuple(encoder.tables), fields=tuple(encoder.fields), tasks=(task,)),
        row_maps=encoder.row_maps,
        log=log,
        train=targets(np.maximum(offsets[:-1], ends - 2 - max_train_per_user), ends - 2),
        validation=validation,
        test=test,
        samples_negatives=True,
        segments={name: encoder.labels[name] for name in SEGMENTS if name in encoder.labels},
        facts={
            "users": log.num_users,
            "items": int(np.count_nonzero(touched)),
            "events": log.num_events,
            "users dropped (fewer than 3 events)": int((counts > 0).sum() - log.num_users),
        },
    )


def _judged(name: str, log: EventLog, *parts: Requests) -> list[Requests]:
    """Validation and test: each target with one item that its user never touches."""
    try:
        untouched = draws.UntouchedItems(log)
    except ValueError as error:
        raise DataError(f"{name}: {error}") from error
    fingerprint = log.fingerprint()
    judged = []
    for split, requests in enumerate(parts, start=1):
        negative = untouched.draw(requests.user, 1, fingerprint, split, requests.user)
        pairs = with_negatives(requests, negative, fingerprint, split, requests.user)
        judged.append(dataclasses.replace(pairs, weight={}))
    return judged


def _order(raw: Interactions, kept: np.ndarray, size: int) -> np.ndarray:
    """(size,) the events of kept users, by user and time; file order breaks ties."""
    order = np.lexsort((raw.time, raw.user))
    # Half of what an int64 order would take, from here on.
    result = np.empty(size, np.int32 if len(order) < 2**31 else np.int64)
    start = 0
    for piece in columns.pieces(len(order)):
        part = order[piece]
        part = part[kept[raw.user[part]]]
        result[start : start + len(part)] = part
        start += len(part)
    return result


class _Encoder:
    """Turns attributes into columns; gathers their fields, tables and vocabularies."""

    def __init__(self, given: dict[str, RowMap], transforms: dict[str, str]):
        self._given, self._transforms = given, transforms
        self.labels: dict[str, dict[int, str]] = {}
        self.fields: list[Field] = []
        self.tables: list[Table] = []
        self.row_maps: dict[str, RowMap] = {}

    def add(self, attribute: Attribute, roles: tuple[str, ...], weight: np.ndarray) -> np.ndarray:
        """The encoded values; `weight` is how often training sees each: if never, it is unknown."""
        field, flat, owners = _read(attribute)
        if field.kind == "dense":
            return self._numbers(field, flat, roles, weight)
        self.fields += [dataclasses.replace(field, role=role) for role in roles]
        if field.name in self._given:
            row_map = self._given[field.name]
        else:
            known = flat.filter(pa.array(weight[owners] > 0)).drop_null().unique()
            signed = signatures(
                field.name, known.to_numpy() if field.value == "int" else known.to_pylist()
            )
            row_map = KnownRows.of(signed)
        self.row_maps[field.name] = row_map
        self.tables.append(Table(name=field.table_name, rows=row_map.rows, dim=attribute.dim))
        rows = rows_of(field.name, flat, self.row_maps)
        if field.name in SEGMENTS:
            text = flat.cast(pa.string()).to_pylist()
            self.labels[field.name] = {int(r): t for r, t in zip(rows, text, strict=True) if r > 1}
        if field.kind == "bag":
            within = np.arange(len(rows)) - np.searchsorted(owners, owners)
            bag = np.zeros((len(attribute.values), field.width or 1), np.int32)
            bag[owners, within] = rows
            rows = bag
        return rows

    def _numbers(
        self, field: Field, values: np.ndarray, roles: tuple[str, ...], weight: np.ndarray
    ) -> np.ndarray:
        """Dense values (n,) or (n, width), NaN where missing, after their transform."""
        text = self._transforms.get(f"{roles[0]}.{field.name}", field.transform)
        text = fitted(text, values[weight > 0].ravel())
        self.fields += [dataclasses.replace(field, role=role, transform=text) for role in roles]
        return function(text)(values)


def _event_column(
    encoder: _Encoder,
    attribute: Attribute,
    roles: tuple[str, ...],
    order: np.ndarray,
    seen: Any,
    ends: np.ndarray,
) -> np.ndarray:
    """The encoded values of an attribute of the ordered events."""
    values = attribute.values
    if pa.types.is_floating(values.type) or pa.types.is_nested(values.type):
        weight = np.zeros(len(values), bool)
        weight[order] = True
        weight[order[ends - 1]] = weight[order[ends - 2]] = False
        return columns.take(encoder.add(attribute, roles, weight), order)
    # There are few distinct values: encode each once. One more code stands for null.
    coded = values if pa.types.is_dictionary(values.type) else values.dictionary_encode()
    size = len(coded.dictionary)
    code = coded.indices
    if code.null_count:
        code = code.cast(pa.int32()).fill_null(size)
    code = columns.take(code.to_numpy(), order)
    distinct = dataclasses.replace(attribute, values=coded.dictionary)
    rows = encoder.add(distinct, roles, seen(code, size + 1)[:size])
    return columns.take(np.append(rows, np.int32(0)), code)


def _read(attribute: Attribute) -> tuple[Field, Any, np.ndarray]:
    """The field of an attribute (role to be set), its flat values, and whose each value is."""
    values, name = attribute.values, attribute.name
    owners = np.arange(len(values))
    if pa.types.is_floating(values.type):
        field = Field(name=name, role="user", kind="dense", transform=attribute.transform)
        return field, numbers_of(values), owners
    if pa.types.is_list(values.type) and pa.types.is_floating(values.type.value_type):
        return _read_vectors(attribute)
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        sizes = values.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        kind = "int" if pa.types.is_integer(values.type.value_type) else "string"
        width = max(1, int(sizes.max(initial=0)))
        field = Field(name=name, role="user", kind="bag", width=width, value=kind)
        flat = values.flatten()
        owners = np.repeat(owners, sizes)
    else:
        kind = "int" if pa.types.is_integer(values.type) else "string"
        field, flat = Field(name=name, role="user", value=kind), values
    return field, flat.cast(pa.int64() if kind == "int" else pa.string()), owners


def _read_vectors(attribute: Attribute) -> tuple[Field, np.ndarray, np.ndarray]:
    """Like `_read`; (n, width) numbers. Raises DataError unless all vectors are of one length."""
    values, name = attribute.values, attribute.name
    sizes = np.unique(values.value_lengths().drop_null().to_numpy())
    if len(sizes) != 1 or sizes[0] == 0:
        found = ", ".join(map(str, sizes[:5])) or "none"
        raise DataError(f"Vectors of {name!r} must all have one length, got {found}.")
    width = int(sizes[0])
    if np.isinf(numbers_of(values.flatten())).any():
        raise DataError(f"Vectors of {name!r} must hold finite numbers within float32.")
    numbers = np.full((len(values), width), np.nan, np.float32)
    real = values.is_valid().to_numpy(zero_copy_only=False)
    numbers[real] = numbers_of(values.flatten()).reshape(-1, width)
    field = Field(name=name, role="user", kind="dense", width=width, transform=attribute.transform)
    return field, numbers, np.arange(len(values))
