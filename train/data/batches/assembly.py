"""Batches of requests, whose ids are rows of whole tables or positions among the rows pulled."""

import dataclasses
import functools
from typing import Any, NamedTuple
import zlib

import numpy as np

from ....zoo.features import ROLES, UNSEEN_ROW, Field, Schema
from ....zoo.features.cross import cross
from ....zoo.features.record import or_unseen
from .. import draws
from ..event_log import EventLog, Requests
from .deduplicate import Pulled, deduplicate, distinct, padded_size
from .required import NOTHING, Extra
from .windows import Windows

_SMALL_TABLE = 4096


class Step(NamedTuple):
    """One training batch; its ids are positions in the rows it pulls."""

    batch: dict[str, Any]
    pulled: Pulled


class Hide(NamedTuple):
    """Share of a batch's distinct items that is shown as unknown, drawn at an address."""

    share: float = 0.0
    address: tuple[int, ...] = ()


_SHOW_ALL = Hide()


class _Column(NamedTuple):
    """One field of a role, as `value[at]`, or as `value` where `at` is None.

    Columns of the same `source` have the same `value`: those of an item's field, whatever the role.
    """

    role: str
    field: Field
    source: tuple[str, Field]
    value: np.ndarray
    at: np.ndarray | None = None

    def full(self, value: np.ndarray | None = None) -> np.ndarray:
        value = self.value if value is None else value
        return value if self.at is None else value[self.at]


def whole_batch(
    schema: Schema, log: EventLog, requests: Requests, *, history: int, extra: Extra = NOTHING
) -> dict[str, Any]:
    """The batch of these requests, ids being rows of the whole tables."""
    windows = Windows.cut(log, requests, history)
    batch = _frame(log, requests, windows, extra)
    for column in _columns(schema, log, requests, windows, extra):
        batch[column.role][column.field.name] = column.full()
    return batch


def pulled_batch(
    schema: Schema,
    log: EventLog,
    requests: Requests,
    *,
    history: int,
    extra: Extra = NOTHING,
    hide: Hide = _SHOW_ALL,
) -> Step:
    """The batch of these requests and the rows it pulls, ids being positions among them."""
    windows = Windows.cut(log, requests, history)
    columns = _columns(schema, log, requests, windows, extra, hide)
    ids = [column for column in columns if column.field.kind != "dense"]
    # What columns share is renamed once.
    plan: dict[str, dict[tuple[str, Field], np.ndarray]] = {
        table.name: {} for table in schema.tables
    }
    for column in ids:
        plan[column.field.table_name][column.source] = column.value
    sizes = {table.name: table.rows for table in schema.tables}
    # A small table is pulled at its full size whatever it names: one shape, compiled once.
    full = {name: padded_size(rows) for name, rows in sizes.items() if rows <= _SMALL_TABLE}
    arrays = {table: list(values.values()) for table, values in plan.items()}
    pulled, positions = deduplicate(arrays, sizes, at_least=full)
    renamed = {
        table: dict(zip(values, positions[table], strict=True)) for table, values in plan.items()
    }
    batch = _frame(log, requests, windows, extra)
    for column in columns:
        value = column.value
        if column.field.kind != "dense":
            value = renamed[column.field.table_name][column.source]
        batch[column.role][column.field.name] = column.full(value)
    # Sizes alone: nothing to carry.
    batch["pulled"] = {
        name: np.zeros((len(rows), 0), np.int8) for name, rows in pulled.rows.items()
    }
    return Step(batch, pulled)


def _columns(
    schema: Schema,
    log: EventLog,
    requests: Requests,
    windows: Windows,
    extra: Extra,
    hide: Hide = _SHOW_ALL,
) -> list[_Column]:
    """Every field of every role of the batch.

    Items repeat within a batch, so their columns are read once per distinct item: what follows
    (renaming ids) is then small. Slot 0 of the distinct items stands for no item.
    """
    events = {"history": windows}
    fields = {role: schema.role(role) for role in ROLES}
    named = {"candidate": requests.candidate}
    if extra.groups is not None:
        events["retrieved"] = Windows(extra.groups.at, extra.groups.mask)
        fields["retrieved"] = schema.role("history")
    if extra.history_negative is not None:
        named["history_negative"] = np.where(windows.mask, extra.history_negative, np.int32(-1))
        fields["history_negative"] = schema.item_fields
    if extra.sampled is not None:
        named["sampled"] = extra.sampled
        fields["sampled"] = schema.item_fields
    named |= {
        role: np.where(some.mask, log.item[some.at], np.int32(-1)) for role, some in events.items()
    }
    items, positions = distinct(*(item + np.int32(1) for item in named.values()))
    at = dict(zip(named, positions, strict=True))

    def shown(field: Field, value: np.ndarray, owner: np.ndarray) -> np.ndarray:
        """The values, but for some ids that training is to see as unknown."""
        if not hide.share:
            return value
        # By table: a new item usually comes in a known category.
        table = zlib.crc32(field.table_name.encode())
        hidden = (value > UNSEEN_ROW) & (draws.uniform(*hide.address, table, owner) < hide.share)
        return np.where(hidden, np.int32(UNSEEN_ROW), value)

    @functools.cache
    def value_of_items(field: Field) -> np.ndarray:
        value = _known(field, log.items[field.name][np.maximum(items - 1, 0)])
        value = _keep(items > 0, value)
        return shown(field, value, items) if field.kind == "id" else value

    def of_items(role: str, field: Field) -> _Column:
        anywhere = dataclasses.replace(field, role="candidate")
        return _Column(role, field, ("item", anywhere), value_of_items(anywhere), at[role])

    def of_requests(role: str, field: Field, value: np.ndarray) -> _Column:
        if field.missing == "unseen":
            value = shown(field, _known(field, value), np.arange(len(value)))
        return _Column(role, field, (role, field), value)

    def column(role: str, field: Field) -> _Column:
        if role == "user":
            return of_requests(role, field, log.users[field.name][requests.user])
        if role == "context":
            return of_requests(role, field, requests.context[field.name])
        if role in events and field.name in log.event:
            some = events[role]
            value = _known(field, log.event[field.name][some.at])
            return _Column(role, field, (role, field), _keep(some.mask, value))
        if role == "candidate" and field.name in requests.shown:
            value = _known(field, requests.shown[field.name])
            return _Column(role, field, (role, field), _keep(requests.candidate >= 0, value))
        return of_items(role, field)

    found = [
        column(role, field)
        for role, members in fields.items()
        for field in members
        if not field.cross
    ]
    parts = {(column.role, column.field.name): column for column in found}
    for field in schema.fields:
        if field.cross:
            values = [parts[part].full() for part in field.parts]
            crossed = cross(schema, field, values, windows.mask)
            found.append(_Column(field.role, field, (field.role, field), crossed))
    return found


def _frame(log: EventLog, requests: Requests, windows: Windows, extra: Extra) -> dict[str, Any]:
    """Everything of a batch that is not a field."""
    batch: dict[str, Any] = {role: {} for role in ROLES}
    batch["candidate_mask"] = requests.candidate >= 0
    batch["label"] = dict(requests.label)
    if requests.weight:
        batch["weight"] = dict(requests.weight)
    batch |= _events("history", log, requests, windows)
    if extra.groups is not None:
        groups = Windows(extra.groups.at, extra.groups.mask)
        batch |= {"retrieved": {}, "group": extra.groups.group}
        batch |= _events("retrieved", log, requests, groups)
    if extra.history_negative is not None:
        batch["history_negative"] = {}
    if extra.sampled is not None:
        batch |= {"sampled": {}, "sampled_log_q": extra.sampled_log_q}
        if extra.sampled_mask is not None:
            batch["sampled_mask"] = extra.sampled_mask
        batch["candidate_log_q"] = extra.candidate_log_q
    return batch


def _events(role: str, log: EventLog, requests: Requests, some: Windows) -> dict[str, Any]:
    """Mask and age of events, whatever role they stand in."""
    result: dict[str, Any] = {f"{role}_mask": some.mask}
    if log.has_clock:
        now = requests.time.reshape((-1,) + (1,) * (some.at.ndim - 1))
        age = np.clip(now - log.time[some.at], 0, 2**31 - 1)
        result[f"{role}_age"] = np.where(some.mask, age, 0).astype(np.int32)
    return result


def _known(field: Field, rows: np.ndarray) -> np.ndarray:
    """Rows of a field in which what is missing reads as the field says."""
    return or_unseen(rows) if field.missing == "unseen" else rows


def _keep(mask: np.ndarray, value: np.ndarray) -> np.ndarray:
    """`value` where real, zeros elsewhere."""
    mask = mask.reshape(mask.shape + (1,) * (value.ndim - mask.ndim))
    return np.where(mask, value, np.zeros((), value.dtype))
