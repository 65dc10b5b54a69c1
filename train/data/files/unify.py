"""Columns of one type, whatever their parts are: no number is rounded on the way."""

from collections.abc import Sequence
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from ..errors import DataError

pc: Any = pyarrow.compute  # its functions are made when it is imported

_WHOLE_FLOAT = 2**53


def column_of(values: Sequence[Any]) -> pa.Array:
    """Values of JSON as Arrow: null, bool, int64, uint64, float64, text, lists and structs.

    Of mixed kinds, or whole numbers beyond 64 bits, it is text; whole numbers stay exact.
    """
    kinds = set(map(type, values)) - {type(None)}
    if not kinds:
        return pa.nulls(len(values))
    if kinds == {list}:
        return _lists(values)
    if kinds == {dict}:
        names = dict.fromkeys(name for value in values if value for name in value)
        if names:
            fields = [column_of([v.get(n) if v else None for v in values]) for n in names]
            missing = pa.array([value is None for value in values])
            return pa.StructArray.from_arrays(fields, list(names), mask=missing)
    if kinds == {bool}:
        return pa.array(values, pa.bool_())
    if kinds == {str}:
        return _texts(values)
    if kinds <= {int, float}:
        whole = [value for value in values if type(value) is int]
        low, high = min(whole, default=0), max(whole, default=0)
        if float in kinds and -_WHOLE_FLOAT <= low and high <= _WHOLE_FLOAT:
            return _finite(pa.array(values, pa.float64()))
        if float not in kinds and -(2**63) <= low and high < 2**63:
            return pa.array(values, pa.int64())
        if float not in kinds and 0 <= low and high < 2**64:
            return pa.array(values, pa.uint64())
    return _texts([_text(value) for value in values])


def stacked(
    path: Path, parts: Sequence[pa.Table], names: Sequence[str], notes: list[str]
) -> pa.Table:
    """Tables below each other; columns that a part lacks are null there, types are unified.

    Raises:
      DataError: a column's parts cannot be of one type.
    """
    columns = []
    for name in names:
        pieces: list[pa.Array] = []
        for part in parts:
            has = name in part.column_names
            pieces += part[name].chunks if has else [pa.nulls(part.num_rows)]
        kinds = list(dict.fromkeys(piece.type for piece in pieces))
        kind = pa.null()
        for other in kinds:
            kind = _common(path, name, kind, other)
        if pa.types.is_null(kind):
            kind = pa.string()
        try:
            pieces = [_cast(piece, kind) for piece in pieces]
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            # Numbers that no type of numbers holds exactly.
            kind = _texts_of(kind)
            try:
                pieces = [_cast(piece, kind) for piece in pieces]
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise _mixed(path, name, *kinds) from error
        if pa.types.is_string(kind) and len([k for k in kinds if not pa.types.is_null(k)]) > 1:
            shown = " and ".join(str(k) for k in kinds if not pa.types.is_null(k))
            notes.append(f"column {name!r} holds {shown}: read as text")
        columns.append(pa.chunked_array(pieces, kind))
    return pa.table(columns, names=list(names))


def _lists(values: Sequence[Any]) -> pa.Array:
    lengths = np.array([len(value) if value else 0 for value in values])
    offsets = np.append(0, np.cumsum(lengths)).astype(np.int32)
    missing = pa.array([value is None for value in values])
    flat = column_of([element for value in values if value for element in value])
    return pa.ListArray.from_arrays(pa.array(offsets), flat, mask=missing)


def _finite(values: pa.Array) -> pa.Array:
    """NaN, which JSON's writers write although there is none, is null."""
    return pc.if_else(pc.is_nan(values), pa.scalar(None, pa.float64()), values)


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _texts(values: Sequence[Any]) -> pa.Array:
    try:
        return pa.array(values, pa.string())
    except UnicodeEncodeError:  # half of a pair of surrogates, which UTF-8 does not have
        clean = [v and v.encode(errors="replace").decode() for v in values]
        return pa.array(clean, pa.string())


def _common(path: Path, name: str, one: pa.DataType, two: pa.DataType) -> pa.DataType:
    if one == two or pa.types.is_null(two):
        return one
    if pa.types.is_null(one):
        return two
    if _is_list(one) and _is_list(two):
        return pa.list_(_common(path, name, one.value_type, two.value_type))
    if pa.types.is_struct(one) and pa.types.is_struct(two):
        fields = {field.name: field.type for kind in (one, two) for field in kind}
        for field in one:
            fields[field.name] = _common(path, name, field.type, fields[field.name])
        return pa.struct(list(fields.items()))
    if pa.types.is_nested(one) or pa.types.is_nested(two):
        raise _mixed(path, name, one, two)
    if pa.types.is_temporal(one) and pa.types.is_temporal(two):
        return _common_time(path, name, one, two)
    if pa.types.is_temporal(one) or pa.types.is_temporal(two):
        raise _mixed(path, name, one, two)
    if _is_number(one) and _is_number(two):
        if pa.types.is_integer(one) and pa.types.is_integer(two):
            signed = pa.types.is_signed_integer(one), pa.types.is_signed_integer(two)
            width = max(one.bit_width, two.bit_width)
            if signed[0] == signed[1]:
                return one if one.bit_width == width else two
            return pa.uint64() if width == 64 else pa.int64()
        return pa.float64()
    return pa.string()


def _common_time(path: Path, name: str, one: pa.DataType, two: pa.DataType) -> pa.DataType:
    if pa.types.is_date(one) and pa.types.is_date(two):
        return pa.date32()
    if pa.types.is_timestamp(one) and pa.types.is_timestamp(two):
        if (one.tz is None) == (two.tz is None):
            units = ("s", "ms", "us", "ns")
            unit = units[max(units.index(one.unit), units.index(two.unit))]
            return pa.timestamp(unit, one.tz if one.tz == two.tz else "UTC")
    raise _mixed(path, name, one, two)


def _cast(piece: pa.Array, kind: pa.DataType) -> pa.Array:
    if piece.type == kind:
        return piece
    if pa.types.is_struct(kind) and pa.types.is_struct(piece.type):
        there = {field.name: piece.field(field.name) for field in piece.type}
        fields = [
            _cast(there[f.name], f.type) if f.name in there else pa.nulls(len(piece), f.type)
            for f in kind
        ]
        return pa.StructArray.from_arrays(fields, fields=list(kind), mask=piece.is_null())
    if _is_list(kind) and _is_list(piece.type) and not pa.types.is_fixed_size_list(piece.type):
        flat = _cast(piece.flatten(), kind.value_type)
        lengths = pc.fill_null(piece.value_lengths(), 0).to_numpy(zero_copy_only=False)
        offsets = pa.array(np.append(0, np.cumsum(lengths)).astype(np.int32))
        return pa.ListArray.from_arrays(offsets, flat, mask=piece.is_null())
    return piece.cast(kind)


def _texts_of(kind: pa.DataType) -> pa.DataType:
    if _is_number(kind):
        return pa.string()
    if _is_list(kind):
        return pa.list_(_texts_of(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _texts_of(field.type)) for field in kind])
    return kind


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def _is_list(kind: pa.DataType) -> bool:
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return lists or pa.types.is_fixed_size_list(kind)


def _mixed(path: Path, name: str, *kinds: pa.DataType) -> DataError:
    shown = " and ".join(dict.fromkeys(str(kind) for kind in kinds if not pa.types.is_null(kind)))
    return DataError(f"{path}: column {name!r} holds {shown}; write it in one of them.")
