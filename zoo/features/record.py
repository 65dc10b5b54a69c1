"""The request record, and its way into a batch: the same code for logged and live requests.

One Arrow struct per request. `context` and `user` hold raw values of their fields; `user.history`
is a list of past events, oldest first; `items` is the list of candidates. Whoever serves fills
this record and whoever trains reads it, so the two cannot disagree.

    context: {time: int64 seconds, <field>...}
    user:    {<field>..., history: [{time: int64 seconds, <field>...}]}
    items:   [{<field>...}]
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from .row_map import RowMap
from .schema import Field, Schema
from .signature import signatures
from .transforms import TRANSFORMS

if TYPE_CHECKING:
    import pyarrow as pa


def record_type(schema: Schema) -> "pa.Schema":
    """The Arrow schema of this schema's requests; extra columns in a record are ignored."""
    import pyarrow as pa

    def columns(role) -> list[tuple[str, Any]]:
        return [(field.raw_name, _arrow_type(field)) for field in schema.role(role)]

    history = pa.list_(pa.struct([("time", pa.int64()), *columns("history")]))
    return pa.schema(
        [
            ("context", pa.struct([("time", pa.int64()), *columns("context")])),
            ("user", pa.struct([*columns("user"), ("history", history)])),
            ("items", pa.list_(pa.struct(columns("candidate")))),
        ]
    )


def _arrow_type(field: Field) -> Any:
    import pyarrow as pa

    if field.kind == "dense":
        return pa.list_(pa.float32(), field.width) if field.width else pa.float32()
    scalar = pa.int64() if field.value == "int" else pa.string()
    return pa.list_(scalar) if field.kind == "bag" else scalar


def encode(
    records: "pa.Table | list[dict[str, Any]]",
    schema: Schema,
    row_maps: dict[str, RowMap],
    *,
    history: int,
) -> dict[str, Any]:
    """Turns request records into a batch without labels.

    Args:
      records: `R` requests, an Arrow table of `record_type(schema)` (columns of compatible types
        are cast) or a list of dicts of that shape. A missing or null value reads as padding (ids)
        or 0 (numbers).
      schema: what the batch holds.
      row_maps: {table: RowMap}; values that a map does not know become row 1.
      history: the newest so many events are kept.

    Returns:
      A batch (see `zoo.contract`), `L` = the longest kept history (at least 1), `C` = the most
      candidates; shorter ones are padded on the right.

    Raises:
      ValueError: naming the column, if a value cannot be read as its field says.
    """
    import pyarrow as pa

    if history < 1:
        raise ValueError(f"history must be >= 1, got {history}.")
    if isinstance(records, list):
        try:
            records = pa.Table.from_pylist(records, schema=record_type(schema))
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise ValueError(f"A request does not fit the schema: {error}") from error
    records = records.combine_chunks()
    context, user = _struct(records, "context"), _struct(records, "user")
    items = _struct(records, "items")
    events = _child(user, "history")

    item_counts = _counts(items)
    candidates = max(1, int(item_counts.max(initial=0)))
    event_counts = np.minimum(_counts(events), history)
    length = max(1, int(event_counts.max(initial=0)))
    event_slots = _Slots(events, event_counts, length)
    item_slots = _Slots(items, item_counts, candidates)

    values = lambda role, field, struct: _values(field, _child(struct, field.raw_name), row_maps)
    batch: dict[str, Any] = {"user": {}, "context": {}, "history": {}, "candidate": {}}
    for field in schema.role("user"):
        batch["user"][field.name] = values("user", field, user)
    for field in schema.role("context"):
        batch["context"][field.name] = values("context", field, context)
    for field in schema.role("history"):
        batch["history"][field.name] = event_slots.place(values("history", field, events.values))
    for field in schema.role("candidate"):
        batch["candidate"][field.name] = item_slots.place(values("candidate", field, items.values))
    batch["history_mask"] = event_slots.mask
    batch["candidate_mask"] = item_slots.mask
    now = _int(_child(context, "time"))
    then = event_slots.place(_int(_child(events.values, "time")))
    age = np.clip(now[:, None] - then, 0, 2**31 - 1)
    batch["history_age"] = np.where(event_slots.mask, age, 0).astype(np.int32)
    return batch


class _Slots:
    """Where the values of a list column go in a (R, width) array: the newest, left-aligned."""

    def __init__(self, column: Any, counts: np.ndarray, width: int):
        ends = np.asarray(column.offsets)[1:] - np.asarray(column.offsets)[0]
        self.mask = np.arange(width)[None] < counts[:, None]
        at = (ends - counts)[:, None] + np.arange(width)[None]
        self._at = np.where(self.mask, at, 0)

    def place(self, values: np.ndarray) -> np.ndarray:
        shape = self._at.shape + values.shape[1:]
        if len(values) == 0:
            return np.zeros(shape, values.dtype)
        mask = self.mask.reshape(self.mask.shape + (1,) * (values.ndim - 1))
        return np.where(mask, values[self._at], np.zeros((), values.dtype))


def _struct(records: Any, name: str) -> Any:
    if name not in records.column_names:
        raise ValueError(f"A request record needs the column {name!r}, got {records.column_names}.")
    column = records.column(name)
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _child(struct: Any, name: str) -> Any:
    """A field of a struct array, or None if the record does not carry it."""
    index = struct.type.get_field_index(name)
    return None if index < 0 else struct.flatten()[index]


def _counts(column: Any) -> np.ndarray:
    if column is None:
        raise ValueError("A request record needs user.history and items, lists of structs.")
    return column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)


def _int(column: Any) -> np.ndarray:
    if column is None:
        raise ValueError("A request record needs context.time and the time of each past event.")
    return column.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)


def _values(field: Field, column: Any, row_maps: dict[str, RowMap]) -> np.ndarray:
    """One value per entry: int32 rows or float32 numbers."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if column is None:
        raise ValueError(f"The request record lacks {field.role}.{field.raw_name}.")
    try:
        column = column.cast(_arrow_type(field))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        where = f"{field.role}.{field.raw_name}"
        raise ValueError(
            f"{where} cannot be read as {field.kind} ({field.value}): {error}"
        ) from error
    if field.kind == "dense":
        flat = column.flatten() if field.width else column
        if field.width and column.null_count:
            raise ValueError(f"{field.role}.{field.raw_name}: a dense vector must not be null.")
        numbers = pc.fill_null(flat, 0.0).to_numpy(zero_copy_only=False)
        numbers = TRANSFORMS[field.transform](numbers.astype(np.float32)).astype(np.float32)
        return numbers.reshape(-1, field.width) if field.width else numbers
    if field.kind == "id":
        return rows_of(field.table_name, column, row_maps)
    counts = np.minimum(_counts(column), field.width)
    flat_rows = rows_of(field.table_name, column.values, row_maps)
    return _Bag(column, counts, field.width or 1).place(flat_rows)


class _Bag(_Slots):
    """Slots that keep the first values of a list instead of the newest."""

    def __init__(self, column: Any, counts: np.ndarray, width: int):
        super().__init__(column, counts, width)
        starts = np.asarray(column.offsets)[:-1] - np.asarray(column.offsets)[0]
        self._at = np.where(self.mask, starts[:, None] + np.arange(width)[None], 0)


def rows_of(table: str, column: Any, row_maps: dict[str, RowMap]) -> np.ndarray:
    """int32 rows of an Arrow column of raw ids; nulls become padding."""
    missing = column.is_null().to_numpy(zero_copy_only=False)
    if str(column.type) == "int64":
        signed = signatures(table, column.fill_null(0).to_numpy(zero_copy_only=False))
    else:
        # Sign each distinct text once: ids repeat, and hashing text is the slow part.
        coded = column.fill_null("").dictionary_encode()
        distinct = signatures(table, np.asarray(coded.dictionary.to_pylist(), object))
        signed = distinct[coded.indices.to_numpy(zero_copy_only=False)]
    return np.where(missing, 0, row_maps[table](signed)).astype(np.int32)
