"""From raw columns to what a batch holds: rows of tables, and numbers after their transforms."""

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa

from ....zoo.features import Field, KnownRows, RowMap, Table, signatures
from ....zoo.features.record import numbers_of, rows_of
from ....zoo.features.transforms import fitted, function
from .. import columns
from ..errors import DataError

ITEM_DIM = 16
# Fields by which metrics are broken down, where a log has them.
SEGMENTS = ("scene", "segment")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attribute:
    """A column of items, users or events: raw values, and how a field reads them.

    `values` is an Arrow array: integers or text (an id; as a dictionary, if few repeat often),
    lists of them (a bag), floats (dense), lists of floats of one length (a dense vector). What
    `transform` has to learn (see `zoo.features.transforms`), it learns from what training sees.
    `width` is that of a bag or a vector; the longest value's by default.
    """

    name: str
    values: Any
    dim: int = ITEM_DIM
    transform: str = "identity"
    width: int | None = None


class Encoder:
    """Turns attributes into columns; gathers their fields, tables and vocabularies."""

    def __init__(self, given: dict[str, RowMap], transforms: dict[str, str]):
        self._given, self._transforms = given, transforms
        self.labels: dict[str, dict[int, str]] = {}
        self.fields: list[Field] = []
        self.tables: list[Table] = []
        self.row_maps: dict[str, RowMap] = {}

    def add(self, attribute: Attribute, roles: tuple[str, ...], weight: np.ndarray) -> np.ndarray:
        """The encoded values; `weight` is how often training sees each: if never, it is unknown."""
        field, flat, owners = _field_of(attribute)
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

    def missing(self, role: str, name: str) -> float:
        """Value of a field where nothing is known: padding, or its transform of no number."""
        field = next(f for f in self.fields if (f.role, f.name) == (role, name))
        if field.kind != "dense":
            return 0.0
        return float(function(field.transform)(np.array([np.nan]))[0])

    def _numbers(
        self, field: Field, values: np.ndarray, roles: tuple[str, ...], weight: np.ndarray
    ) -> np.ndarray:
        """Dense values (n,) or (n, width), NaN where missing, after their transform."""
        text = self._transforms.get(f"{roles[0]}.{field.name}", field.transform)
        text = fitted(text, values[weight > 0].ravel())
        self.fields += [dataclasses.replace(field, role=role, transform=text) for role in roles]
        return function(text)(values)


def event_column(
    encoder: Encoder,
    order: np.ndarray,
    seen: Any,
    for_training: np.ndarray,
    attribute: Attribute,
    roles: tuple[str, ...],
) -> np.ndarray:
    """The encoded values of an attribute of the ordered events.

    Args:
      encoder: gathers the fields.
      order: the events of the log.
      seen: (values, size) -> how often each value stands in events that training may see.
      for_training: which of the ordered events these are.
      attribute: with a value per event of the file.
      roles: of the fields.
    """
    values = attribute.values
    if pa.types.is_floating(values.type) or pa.types.is_nested(values.type):
        weight = np.zeros(len(values), bool)
        weight[order[for_training]] = True
        return columns.take(encoder.add(attribute, roles, weight), order)
    # There are few distinct values: encode each once. One more code stands for null.
    coded = values if pa.types.is_dictionary(values.type) else values.dictionary_encode()
    size = len(coded.dictionary)
    code = coded.indices
    if code.null_count:
        code = code.cast(pa.int32()).fill_null(size)
    code = columns.take(code.to_numpy(zero_copy_only=False), order)
    distinct = dataclasses.replace(attribute, values=coded.dictionary)
    rows = encoder.add(distinct, roles, seen(code, size + 1)[:size])
    return columns.take(np.append(rows, np.int32(0)), code)


def _field_of(attribute: Attribute) -> tuple[Field, Any, np.ndarray]:
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
        width = attribute.width or max(1, int(sizes.max(initial=0)))
        if sizes.max(initial=0) > width:
            raise DataError(f"Bags of {name!r} must hold {width} values at most.")
        field = Field(name=name, role="user", kind="bag", width=width, value=kind)
        flat = values.flatten()
        owners = np.repeat(owners, sizes)
    else:
        kind = "int" if pa.types.is_integer(values.type) else "string"
        field, flat = Field(name=name, role="user", value=kind), values
    return field, flat.cast(pa.int64() if kind == "int" else pa.string()), owners


def _read_vectors(attribute: Attribute) -> tuple[Field, np.ndarray, np.ndarray]:
    """Like `_field_of`; (n, width) numbers. Raises DataError unless all have one length."""
    values, name = attribute.values, attribute.name
    sizes = np.unique(values.value_lengths().drop_null().to_numpy())
    if attribute.width is not None and len(sizes) == 0:
        sizes = np.array([attribute.width])
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
