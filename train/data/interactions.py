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
from . import draws
from .dataset import Dataset
from .errors import DataError
from .event_log import EventLog, Requests
from .pipeline import with_negatives

MIN_EVENTS = 3
ITEM_DIM = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attribute:
    """A column of items, users or events: raw values, and how a field reads them.

    `values` is an Arrow array: integers or text (an id), lists of them (a bag), floats (dense).
    """

    name: str
    values: Any
    dim: int = ITEM_DIM
    transform: str = "identity"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interactions:
    """Raw events in file order, with attributes of items, users and events.

    Attributes:
      user, item: (E,) integers, indices into `item_ids` and the user attributes.
      time: (E,) int64.
      item_ids: (N,) Arrow array of the items' published ids.
      items: attributes with N values. users: with U values. events: with E values.
      has_clock: whether `time` is in seconds.
    """

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    item_ids: Any
    items: tuple[Attribute, ...] = ()
    users: tuple[Attribute, ...] = ()
    events: tuple[Attribute, ...] = ()
    has_clock: bool = True


def build(
    name: str,
    raw: Interactions,
    *,
    max_train_per_user: int = 20,
    task: str = "click",
    row_maps: dict[str, RowMap] | None = None,
) -> Dataset:
    """Applies the protocol. Raises DataError if no user has three events, or one touched all items.

    `row_maps` are those of an earlier run, for data that its model is to score; by default every
    table gets a vocabulary of the values that training may see.
    """
    if max_train_per_user < 1:
        raise ValueError(f"max_train_per_user must be >= 1, got {max_train_per_user}.")
    num_users = max((len(attribute.values) for attribute in raw.users), default=0)
    counts = np.bincount(raw.user, minlength=num_users)
    if counts.max(initial=0) < MIN_EVENTS:
        raise DataError(
            f"{name}: every user has fewer than {MIN_EVENTS} events ({len(raw.user)} events of "
            f"{(counts > 0).sum()} users): nothing to train, validate and test on."
        )
    kept = counts[raw.user] >= MIN_EVENTS
    order = np.lexsort((raw.time, raw.user))  # stable: file order breaks ties
    order = order[kept[order]]
    user_ids, user = np.unique(raw.user[order], return_inverse=True)
    lengths = np.bincount(user)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    position = np.arange(len(order)) - offsets[user]
    from_end = lengths[user] - 1 - position
    seen = from_end >= 2

    # Who leaves takes along the items that nobody else touched: they are of no event, and drawn as
    # negatives they would be told by being unknown.
    events = lambda item: np.bincount(item, minlength=len(raw.item_ids))
    catalogue = np.flatnonzero((events(raw.item[order]) > 0) | (events(raw.item) == 0))
    item = np.searchsorted(catalogue, raw.item[order])
    listed = (Attribute(name="item", values=raw.item_ids), *raw.items)
    listed = [dataclasses.replace(x, values=x.values.take(pa.array(catalogue))) for x in listed]
    attributes = {
        "items": tuple(listed),
        "users": raw.users,
        "event": raw.events,
    }
    weights = {
        "items": np.bincount(item[seen], minlength=len(catalogue)),
        "users": np.isin(np.arange(len(counts)), user_ids),
        "event": np.bincount(order[seen], minlength=len(raw.user)),
    }
    fields, row_maps, columns = _columns(attributes, weights, row_maps or {})
    pick = lambda group, index: {key: value[index] for key, value in columns[group].items()}
    log = EventLog(
        offsets=offsets,
        item=item.astype(np.int32),
        time=raw.time[order],
        event=pick("event", order),
        items=columns["items"],
        users=pick("users", user_ids),
        has_clock=raw.has_clock,
    )

    def targets(where: np.ndarray) -> Requests:
        index = np.flatnonzero(where)
        return Requests(
            user=user[index].astype(np.int32),
            cut=position[index],
            time=log.time[index],
            candidate=log.item[index][:, None],
            label={task: np.ones((len(index), 1), np.float32)},
        )

    try:
        untouched = draws.UntouchedItems(log)
    except ValueError as error:
        raise DataError(f"{name}: {error}") from error
    fingerprint = log.fingerprint()

    def judged(requests: Requests, split: int) -> Requests:
        negative = untouched.draw(requests.user, 1, fingerprint, split, requests.user)
        pairs = with_negatives(requests, negative, fingerprint, split, requests.user)
        return dataclasses.replace(pairs, weight={})

    tables = tuple(
        Table(name=table, rows=row_maps[table].rows, dim=dim)
        for table, dim in _table_dims(attributes, fields).items()
    )
    return Dataset(
        name=name,
        schema=Schema(tables=tables, fields=tuple(fields), tasks=(task,)),
        row_maps=row_maps,
        log=log,
        train=targets(seen & (from_end < 2 + max_train_per_user)),
        validation=judged(targets(from_end == 1), 1),
        test=judged(targets(from_end == 0), 2),
        samples_negatives=True,
        facts={
            "users": log.num_users,
            "items": int(np.count_nonzero(np.bincount(log.item))),
            "events": log.num_events,
            "users dropped (fewer than 3 events)": int((counts > 0).sum() - log.num_users),
        },
    )


def _columns(
    attributes: dict[str, tuple[Attribute, ...]],
    weights: dict[str, np.ndarray],
    given: dict[str, RowMap],
) -> tuple[list[Field], dict[str, RowMap], dict[str, dict[str, np.ndarray]]]:
    """Fields, a vocabulary per table, and the encoded columns of every group.

    `weights` says how often training sees each value of a group; what it never sees is unknown.
    """
    roles = {"items": ("candidate", "history"), "users": ("user",), "event": ("history",)}
    fields: list[Field] = []
    row_maps: dict[str, RowMap] = {}
    columns: dict[str, dict[str, np.ndarray]] = {group: {} for group in attributes}
    for group, members in attributes.items():
        for attribute in members:
            field, flat, owners = _read(attribute)
            fields += [dataclasses.replace(field, role=role) for role in roles[group]]
            if field.kind == "dense":
                columns[group][field.name] = flat
                continue
            if field.name in given:
                row_maps[field.name] = given[field.name]
            else:
                known = flat.filter(pa.array(weights[group][owners] > 0)).drop_null()
                signed = signatures(field.name, np.asarray(known.to_pylist(), object))
                row_maps[field.name] = KnownRows.of(signed)
            rows = rows_of(field.name, flat, row_maps)
            if field.kind == "bag":
                within = np.arange(len(rows)) - np.searchsorted(owners, owners)
                bag = np.zeros((len(attribute.values), field.width or 1), np.int32)
                bag[owners, within] = rows
                rows = bag
            columns[group][field.name] = rows
    return fields, row_maps, columns


def _read(attribute: Attribute) -> tuple[Field, Any, np.ndarray]:
    """The field of an attribute (role to be set), its flat values, and whose each value is."""
    values, name = attribute.values, attribute.name
    owners = np.arange(len(values))
    if pa.types.is_floating(values.type):
        field = Field(name=name, role="user", kind="dense", transform=attribute.transform)
        return field, numbers_of(attribute.transform, values), owners
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


def _table_dims(
    attributes: dict[str, tuple[Attribute, ...]], fields: list[Field]
) -> dict[str, int]:
    dims = {a.name: a.dim for members in attributes.values() for a in members}
    return {f.table_name: dims[f.name] for f in fields if f.kind != "dense"}
