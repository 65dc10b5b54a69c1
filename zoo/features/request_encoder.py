"""Request records into batches, again and again: `encode` that remembers which row a value has.

A request of a hundred candidates is small: what costs is a dozen array operations for each of its
fields. Here plain records (dicts of whole numbers, texts and floats) are read by one dictionary per
table; anything else, and every error, is left to `encode`, whose batches these are bit for bit.
"""

from itertools import chain
from typing import Any

import numpy as np

from . import transforms
from .cross import add_crosses
from .record import encode
from .record_keys import ROLE_OF, known_keys
from .row_map import RowMap
from .schema import PADDING_ROW, UNSEEN_ROW, Field, Role, Schema
from .signature import signatures

_REMEMBERED = 1_000_000
"""Values per table; then what is remembered is forgotten."""
_NONE = type(None)
_KINDS = {"int": {int, _NONE}, "string": {str, _NONE}}


class _Unusual(Exception):
    """A record that `encode` has to read, or to refuse."""


class RequestEncoder:
    """Encodes request records of one schema.

    Examples:
      >>> import numpy as np
      >>> from recjax.zoo.features import Field, KnownRows, RequestEncoder, Schema, Table
      >>> from recjax.zoo.features import signatures
      >>> schema = Schema(
      ...     tables=(Table(name="item", rows=5, dim=4),),
      ...     fields=(Field(name="item", role="candidate"), Field(name="item", role="history")),
      ... )
      >>> row_maps = {"item": KnownRows(np.sort(signatures("item", [10, 20, 30])))}
      >>> encoder = RequestEncoder(schema, row_maps, history=5)
      >>> encoder([{"items": [{"item": 77}]}])["candidate"]["item"].tolist()  # 77 is unknown
      [[1]]
    """

    def __init__(self, schema: Schema, row_maps: dict[str, RowMap], *, history: int):
        """See `encode`."""
        self._schema, self._row_maps, self._history = schema, row_maps, history
        self._fields = {
            role: [field for field in schema.role(role) if not field.cross]
            for role in ROLE_OF.values()
        }
        self._known = {level: {*keys.values()} for level, keys in known_keys(schema).items()}
        self._transforms = {
            (field.role, field.name): transforms.function(field.transform)
            for field in schema.fields
            if field.kind == "dense"
        }
        # Whole numbers and texts of one table have rows of their own.
        self._rows: dict[tuple[str, str], dict[Any, int]] = {}

    def __call__(self, records: Any, *, unknown: str = "error") -> dict[str, Any]:
        """The batch of request records; see `encode`."""
        if isinstance(records, list | tuple) and unknown == "error":
            try:
                return self._encode(records)
            except _Unusual:
                pass
        return encode(records, self._schema, self._row_maps, history=self._history, unknown=unknown)

    def _encode(self, records: list[Any] | tuple[Any, ...]) -> dict[str, Any]:
        _require(set(map(type, records)) <= {dict})
        for record in records:
            _require(record.keys() <= self._known[""])
        contexts = [_dict(record.get("context")) for record in records]
        users = [_dict(record.get("user")) for record in records]
        items = [_list(record.get("items")) for record in records]
        events = [_list(user.get("history"))[-self._history :] for user in users]
        every_item, every_event = list(chain(*items)), list(chain(*events))
        levels = {"context": contexts, "user": users}
        levels |= {"user.history": every_event, "items": every_item}
        for level, parts in levels.items():
            _require(set(map(type, parts)) <= {dict})
            _require(all(map(self._known[level].issuperset, parts)))
        of_items, of_events = _Places(items), _Places(events)
        values = {
            ROLE_OF[level]: self._columns(ROLE_OF[level], parts) for level, parts in levels.items()
        }
        now = _seconds(contexts)
        age = np.clip(now[:, None] - of_events.place(_seconds(every_event)), 0, 2**31 - 1)
        place = lambda slots, columns: {name: slots.place(x) for name, x in columns.items()}
        batch = {
            "user": values["user"],
            "context": values["context"],
            "history": place(of_events, values["history"]),
            "candidate": place(of_items, values["candidate"]),
            "history_mask": of_events.mask,
            "candidate_mask": of_items.mask,
            "history_age": np.where(of_events.mask, age, 0).astype(np.int32),
        }
        add_crosses(self._schema, batch)
        return batch

    def _columns(self, role: Role, parts: list[dict[str, Any]]) -> dict[str, np.ndarray]:
        return {field.name: self._values(field, parts) for field in self._fields[role]}

    def _values(self, field: Field, parts: list[dict[str, Any]]) -> np.ndarray:
        name = field.raw_name
        values = [part.get(name) for part in parts]
        kinds = set(map(type, values))
        if field.kind == "dense":
            if field.width is not None:
                _require(kinds <= {list, tuple, _NONE})
                nothing = [None] * field.width
                lists = [nothing if value is None else value for value in values]
                _require(all(len(one) == field.width for one in lists))
                values, kinds = list(chain(*lists)), set(map(type, chain(*lists)))
            _require(kinds <= {int, float, _NONE})
            # Larger whole numbers are no floats.
            _require(int not in kinds or all(type(x) is not int or abs(x) <= 2**53 for x in values))
            with np.errstate(over="ignore"):
                numbers = np.array(values, np.float64).astype(np.float32)  # None is NaN.
            numbers = numbers.reshape(len(parts), *field.trailing)
            return self._transforms[field.role, field.name](numbers)
        if field.kind == "id":
            _require(kinds <= _KINDS[field.value])
            rows = self._rows_of(field, values)
            if field.missing == "unseen":
                rows = np.where(rows == PADDING_ROW, np.int32(UNSEEN_ROW), rows)
            return rows
        _require(kinds <= {list, tuple, _NONE})
        width = field.width or 1
        bags = [() if value is None else value[:width] for value in values]
        inside = list(chain(*bags))
        _require(set(map(type, inside)) <= _KINDS[field.value])
        return _Places(bags, width).place(self._rows_of(field, inside))

    def _rows_of(self, field: Field, values: list[Any]) -> np.ndarray:
        rows = self._rows.setdefault((field.table_name, field.value), {None: PADDING_ROW})
        try:
            found = list(map(rows.__getitem__, values))
        except KeyError:
            self._learn(field, rows, values)
            found = list(map(rows.__getitem__, values))
        return np.array(found, np.int32)

    def _learn(self, field: Field, rows: dict[Any, int], values: list[Any]) -> None:
        if len(rows) > _REMEMBERED:
            rows.clear()
            rows[None] = PADDING_ROW
        new = [value for value in dict.fromkeys(values) if value not in rows]
        kind = np.int64 if field.value == "int" else object
        try:
            signed = signatures(field.table_name, np.array(new, kind))
        except (OverflowError, UnicodeEncodeError) as error:
            raise _Unusual from error
        rows.update(zip(new, self._row_maps[field.table_name](signed).tolist(), strict=True))


class _Places:
    """Where the entries of lists stand in an array of as many rows."""

    def __init__(self, lists: list[Any], width: int | None = None):
        counts = np.array([len(one) for one in lists], np.int64)
        width = max(1, int(counts.max(initial=0))) if width is None else width
        self.mask = np.arange(width)[None] < counts[:, None]

    def place(self, values: np.ndarray) -> np.ndarray:
        """The values of all entries, zero where there are none."""
        found = np.zeros((*self.mask.shape, *values.shape[1:]), values.dtype)
        found[self.mask] = values
        return found


def _seconds(parts: list[dict[str, Any]]) -> np.ndarray:
    values = [part.get("time") for part in parts]
    _require(set(map(type, values)) <= {int, _NONE})
    try:
        return np.array([value or 0 for value in values], np.int64)
    except OverflowError as error:
        raise _Unusual from error


def _dict(value: Any) -> Any:
    return {} if value is None else value


def _list(value: Any) -> Any:
    _require(type(value) in (list, tuple, _NONE))
    return () if value is None else value


def _require(usual: bool) -> None:
    if not usual:
        raise _Unusual
