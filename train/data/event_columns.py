"""What the columns of a table of events hold: ids, numbers, vectors; of items, users or events."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

pc: Any = pyarrow.compute  # its functions are made when it is imported

_INTEGER = r"^(0|-?[1-9]\d{0,17})$"
_DIGITS = r"^-?\d+$"
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+|(?i:inf|infinity))([eE][+-]?\d+)?$"


def is_vector(kind: pa.DataType) -> bool:
    """Whether this is the type of lists of numbers with fractions."""
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    lists = lists or pa.types.is_fixed_size_list(kind)
    return lists and pa.types.is_floating(kind.value_type)


def as_vector(values: pa.Array) -> pa.Array:
    """Lists of float64."""
    return values.cast(pa.list_(pa.float64()))


def as_id(values: pa.Array) -> pa.Array:
    """Whole numbers, or text that is all whole numbers, as int64; anything else as text."""
    whole = pa.types.is_integer(values.type)
    if pa.types.is_floating(values.type):
        whole = pc.all(pc.equal(values, pc.trunc(values)), min_count=0).as_py()
    return values.cast(pa.int64()) if whole or _all(values, _INTEGER) else values.cast(pa.string())


def as_typed(values: pa.Array) -> pa.Array:
    """Numbers with a fraction as float64; anything else as `as_id` reads it."""
    if pa.types.is_floating(values.type):
        return values
    return values.cast(pa.float64()) if is_fraction(values) else as_id(values)


def is_fraction(values: pa.Array | pa.ChunkedArray) -> bool:
    """Whether this is text that is all numbers, and not all digits."""
    return _all(values, _NUMBER) and not _all(values, _DIGITS)


def _all(values: pa.Array | pa.ChunkedArray, pattern: str) -> bool:
    """Whether every text that is there matches; false for other types."""
    if not pa.types.is_string(values.type):
        return False
    return pc.all(pc.match_substring_regex(values, pattern), min_count=0).as_py()


def codes(values: pa.Array) -> tuple[np.ndarray, pa.Array]:
    """Integers in order of first appearance, and the values that they stand for."""
    coded = values.dictionary_encode()
    return coded.indices.to_numpy().astype(np.int64), coded.dictionary


def first_of(values: pa.Array, owner: np.ndarray) -> pa.Array:
    """Each owner's first value that is not null, if any; owners are 0, 1, 2, ... ."""
    order = np.lexsort((values.is_null().to_numpy(zero_copy_only=False), owner))
    _, first = np.unique(owner[order], return_index=True)
    return values.take(pa.array(order[first]))


def constant_within(values: pa.Array, owner: np.ndarray) -> bool:
    """Whether every owner has one value at most, nulls aside; of vectors, number by number."""
    expected = first_of(values, owner).take(pa.array(owner))
    if not pa.types.is_list(values.type):
        same = pc.fill_null(pc.equal(values, expected), True)
        return bool(same.to_numpy(zero_copy_only=False).all())
    there = values.is_valid()
    values, expected = values.filter(there), expected.filter(there)
    if not values.value_lengths().equals(expected.value_lengths()):
        return False
    numbers = (x.flatten().to_numpy(zero_copy_only=False) for x in (values, expected))
    return bool(np.array_equal(*numbers, equal_nan=True))
