"""The request record, and its way into a batch: the same code for logged and live requests.

One Arrow struct per request. `context` and `user` hold raw values of their fields; `user.history`
is a list of past events, oldest first; `items` is the list of candidates. Whoever serves fills
this record and whoever trains reads it, so the two cannot disagree.

    context: {time: int64 seconds, <field>...}
    user:    {<field>..., history: [{time: int64 seconds, <field>...}]}
    items:   [{<field>...}]

A field that a record lacks is null. A key that the schema does not know is refused, because it may
be a field's name misspelt.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from . import transforms
from .cross import add_crosses
from .record_keys import (
    keys_of_levels,
    keys_of_table,
    levels_of,
    misfit,
    require_known_keys,
    require_whole_ids,
)
from .row_map import RowMap
from .schema import PADDING_ROW, UNSEEN_ROW, Field, Schema
from .signature import signatures

if TYPE_CHECKING:
    import pyarrow as pa


def record_type(schema: Schema) -> "pa.Schema":
    """The Arrow schema of this schema's requests; see `encode` for columns beside these."""
    import pyarrow as pa

    def struct(role, **more) -> Any:
        # Fields that read the same raw value share a column.
        read = [field for field in schema.role(role) if not field.cross]
        columns = {field.raw_name: _arrow_type(field) for field in read}
        return pa.struct(list((columns | more).items()))

    history = pa.list_(struct("history", time=pa.int64()))
    return pa.schema(
        [
            ("context", struct("context", time=pa.int64())),
            ("user", struct("user", history=history)),
            ("items", pa.list_(struct("candidate"))),
        ]
    )


def _arrow_type(field: Field) -> Any:
    import pyarrow as pa

    if field.kind == "dense":
        # float64, because it takes larger integers; the batch is float32.
        return pa.list_(pa.float64(), field.width) if field.width else pa.float64()
    scalar = pa.int64() if field.value == "int" else pa.string()
    return pa.list_(scalar) if field.kind == "bag" else scalar


def encode(
    records: "pa.Table | list[dict[str, Any]]",
    schema: Schema,
    row_maps: dict[str, RowMap],
    *,
    history: int,
    unknown: str = "error",
) -> dict[str, Any]:
    """Turns request records into a batch without labels.

    Args:
      records: `R` requests, an Arrow table of `record_type(schema)` (columns of compatible types
        are cast) or a list of dicts of that shape. A null value, or one that a dict lacks, reads as
        padding (ids) or 0 (numbers; so does NaN); so does the id of a candidate, which is real and
        scored by its other fields alone. A null candidate or event counts, as one whose fields are
        null; a null list is an empty one.
      schema: what the batch holds.
      row_maps: {table: RowMap}; values that a map does not know become row 1.
      history: the newest so many events are kept.
      unknown: "error" or "ignore": what to do with keys that the schema has not, at any level.

    Returns:
      A batch (see `zoo.contract`), `L` = the longest kept history (at least 1), `C` = the most
      candidates (at least 1); shorter ones are padded on the right. A request without candidates
      has a mask of False throughout, and no records give a batch of no requests.

    Raises:
      ValueError: naming the column, if a value cannot be read as its field says, or a key is not
        one of the schema's.

    Examples:
      >>> import numpy as np
      >>> from recjax.zoo.features import Field, KnownRows, Schema, Table, encode, signatures
      >>> schema = Schema(
      ...     tables=(Table(name="item", rows=5, dim=4),),
      ...     fields=(Field(name="item", role="candidate"), Field(name="item", role="history")),
      ... )
      >>> row_maps = {"item": KnownRows(np.sort(signatures("item", [10, 20, 30])))}
      >>> request = {
      ...     "context": {"time": 100},
      ...     "user": {"history": [{"time": 40, "item": 10}]},
      ...     "items": [{"item": 10}, {"item": 77}],
      ... }
      >>> batch = encode([request], schema, row_maps, history=5)
      >>> batch["history_age"].tolist(), batch["candidate"]["item"][0, 1].item() # 77 is unknown
      ([[60]], 1)
    """
    import pyarrow as pa

    if history < 1:
        raise ValueError(f"history must be >= 1, got {history}.")
    if unknown not in ("error", "ignore"):
        raise ValueError(f"unknown must be 'error' or 'ignore', got {unknown!r}.")
    if isinstance(records, tuple):
        records = list(records)
    if isinstance(records, list):
        strange = [type(record).__name__ for record in records if not isinstance(record, dict)]
        if strange:
            raise ValueError(f"A request record must be a dict, got {strange[0]}.")
    elif not hasattr(records, "column_names"):
        raise ValueError(
            f"Request records must be a list of dicts or an Arrow table, got "
            f"{type(records).__name__}."
        )
    elif not records.num_rows and not records.column_names:
        records = []  # Arrow knows no columns of an empty list.
    elif isinstance(records, pa.RecordBatch):
        records = pa.Table.from_batches([records])
    if isinstance(records, list):
        levels = levels_of(records)
        if unknown == "error":
            require_known_keys(schema, keys_of_levels(levels))
        require_whole_ids(schema, levels)
        try:
            records = pa.Table.from_pylist(records, schema=record_type(schema))
        except (pa.ArrowException, TypeError, OverflowError) as error:
            where = misfit(schema, levels)
            raise ValueError(where or f"A request does not fit the schema: {error}") from error
    context, user = _column(records, "context"), _column(records, "user")
    items = _List("items", _column(records, "items"))
    events = _List("user.history", _child("user", user, "history"))

    event_counts = np.minimum(events.counts, history)
    event_slots = _Slots(events.ends - event_counts, event_counts)
    item_slots = _Slots(items.starts, items.counts)

    def values(role, struct) -> dict[str, np.ndarray]:
        child = lambda field: _child(role, struct, field.raw_name)
        read = [field for field in schema.role(role) if not field.cross]
        return {field.name: _values(field, child(field), row_maps) for field in read}

    place = lambda slots, columns: {name: slots.place(value) for name, value in columns.items()}
    now = _seconds("context.time", _child("context", context, "time"))
    then = _seconds("user.history.time", _child("history", events.values, "time"))
    age = np.clip(now[:, None] - event_slots.place(then), 0, 2**31 - 1)
    batch = {
        "user": values("user", user),
        "context": values("context", context),
        "history": place(event_slots, values("history", events.values)),
        "candidate": place(item_slots, values("candidate", items.values)),
        "history_mask": event_slots.mask,
        "candidate_mask": item_slots.mask,
        "history_age": np.where(event_slots.mask, age, 0).astype(np.int32),
    }
    if unknown == "error":  # Last: what is lacking says more than what is too much.
        require_known_keys(schema, keys_of_table(records))
    add_crosses(schema, batch)
    return batch


class _List:
    """A list column: the values of all its entries, and where each entry's lie among them."""

    def __init__(self, name: str, column: Any):
        import pyarrow as pa

        if pa.types.is_null(column.type):
            column = column.cast(pa.list_(pa.null()))
        if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
            raise ValueError(f"{name} must be a list in a request record, got {column.type}.")
        # A slice of a column still carries all of the column's values.
        offsets = np.asarray(column.offsets).astype(np.int64)
        self.values = column.values.slice(offsets[0], offsets[-1] - offsets[0])
        self.starts, self.ends = offsets[:-1] - offsets[0], offsets[1:] - offsets[0]
        null = column.is_null().to_numpy(zero_copy_only=False)
        self.counts = np.where(null, 0, self.ends - self.starts)


class _Slots:
    """Places values of a list column in a (R, width) array: `counts` of them from `starts`.

    `width` is by default the largest count, and at least 1.
    """

    def __init__(self, starts: np.ndarray, counts: np.ndarray, width: int | None = None):
        width = max(1, int(counts.max(initial=0))) if width is None else width
        self.mask = np.arange(width)[None] < counts[:, None]
        self._at = np.where(self.mask, starts[:, None] + np.arange(width)[None], 0)

    def place(self, values: np.ndarray) -> np.ndarray:
        shape = self._at.shape + values.shape[1:]
        if len(values) == 0:
            return np.zeros(shape, values.dtype)
        mask = self.mask.reshape(self.mask.shape + (1,) * (values.ndim - 1))
        return np.where(mask, values[self._at], np.zeros((), values.dtype))


def _column(records: Any, name: str) -> Any:
    if records.column_names.count(name) != 1:
        raise ValueError(f"A request record needs one column {name!r}, got {records.column_names}.")
    column = records.column(name)
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _child(role: str, struct: Any, name: str) -> Any:
    """A field of a struct array; null where the struct is."""
    import pyarrow as pa

    if pa.types.is_null(struct.type):
        return struct
    if not pa.types.is_struct(struct.type):
        raise ValueError(f"{role} must hold structs in a request record, got {struct.type}.")
    index = struct.type.get_field_index(name)
    if index < 0:
        raise ValueError(f"The request record lacks {role}.{name}; it has {_names(struct.type)}.")
    return struct.flatten()[index]


def _names(struct_type: Any) -> str:
    names = [struct_type.field(i).name for i in range(min(struct_type.num_fields, 10))]
    return ", ".join(names) or "nothing"


def _seconds(name: str, column: Any) -> np.ndarray:
    import pyarrow as pa

    try:
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.timestamp("s", column.type.tz), safe=False)
        column = column.cast(pa.int64())
    except pa.ArrowException as error:
        raise ValueError(f"{name} cannot be read as whole seconds: {error}") from error
    return column.fill_null(0).to_numpy(zero_copy_only=False)


def _values(field: Field, column: Any, row_maps: dict[str, RowMap]) -> np.ndarray:
    """One value per entry: int32 rows or float32 numbers."""
    import pyarrow as pa

    name = f"{field.role}.{field.raw_name}"
    try:
        # Unsafe only in that a large integer may lose its last digits as a number.
        column = column.cast(_arrow_type(field), safe=field.kind != "dense")
    except pa.ArrowException as error:
        raise ValueError(
            f"{name} cannot be read as {field.kind} ({field.value}): {error}"
        ) from error
    if field.kind == "dense":
        if field.width is None:
            return transforms.function(field.transform)(numbers_of(column))
        flat = column.values.slice(column.offset * field.width, len(column) * field.width)
        numbers = numbers_of(flat).reshape(-1, field.width)
        null = column.is_null().to_numpy(zero_copy_only=False)
        return transforms.function(field.transform)(np.where(null[:, None], np.nan, numbers))
    if field.kind == "id":
        rows = rows_of(field.table_name, column, row_maps)
        return or_unseen(rows) if field.missing == "unseen" else rows
    bags, width = _List(name, column), field.width or 1
    slots = _Slots(bags.starts, np.minimum(bags.counts, width), width)
    return slots.place(rows_of(field.table_name, bags.values, row_maps))


def numbers_of(column: Any) -> np.ndarray:
    """float32 numbers of an Arrow column of numbers, NaN where null."""
    numbers = column.cast("float64", safe=False).to_numpy(zero_copy_only=False)
    with np.errstate(over="ignore"):
        return numbers.astype(np.float32)


def or_unseen(rows: np.ndarray) -> np.ndarray:
    """Rows in which the unseen stands where nothing did."""
    return np.where(rows == PADDING_ROW, np.int32(UNSEEN_ROW), rows)


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
