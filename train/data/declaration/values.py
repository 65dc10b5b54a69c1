"""Values of a column as its declaration reads them, whatever type the file gave them.

7, 7.0, "7" and "7.0" are one id; in text, CSV, Parquet and JSON alike. What an id declared as a
whole number cannot be ("x7" on some later day) is a value that no vocabulary knows.
"""

import ast
import json
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute

from ....zoo.features import signatures
from .columns import Column, Value

pc: Any = pyarrow.compute  # its functions are made when it is imported

_WHOLE = r"^-?(0|[1-9]\d*)(\.0*)?$"
_DIGITS = r"^-?\d+$"
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+|(?i:inf|infinity))([eE][+-]?\d+)?$"
_TRUE, _FALSE = "true", "false"
_LARGEST = float(np.finfo(np.float32).max)


class Read(NamedTuple):
    """A column as its field takes it.

    Attributes:
      values: int64 or text ids, lists of them, float64 numbers, or lists of them.
      odd: how many values are not what the column is declared as: unknown ids, missing numbers.
      endless: (n,) bool, numbers beyond float32, whose rows are bad.
    """

    values: pa.Array
    odd: int
    endless: np.ndarray


def read_values(values: pa.Array, column: Column) -> Read:
    """The values of a column by its kind."""
    nothing = np.zeros(len(values), bool)
    if column.kind == "number":
        numbers, odd = as_numbers(values)
        endless = pc.greater(pc.abs(numbers), _LARGEST)
        return Read(numbers, odd, _flags(pc.fill_null(endless, False)))
    if column.kind == "id":
        ids, odd = as_ids(values, column.value)
        return Read(ids, odd, nothing)
    lists, odd = as_lists(values, column.separator)
    if column.kind == "vector":
        vectors, more = _vectors(lists, column.width)
        return Read(vectors, odd + more, nothing)
    ids, more = as_ids(lists.flatten(), column.value)
    return Read(_cut(_relisted(lists, ids), column.width), odd + more, nothing)


def as_ids(values: pa.Array, value: Value) -> tuple[pa.Array, int]:
    """int64 or text ids, and how many are not of the declared kind.

    Those are still told apart, by an integer that stands for their text.
    """
    if value == "string":
        return as_text(values), 0
    if value == "bool":
        flags = _booleans(values)
        odd = flags.is_null().to_numpy(zero_copy_only=False)
        odd &= values.is_valid().to_numpy(zero_copy_only=False)
        return _with_strange(flags.cast(pa.int64()), as_text(values), odd)
    numbers, whole = whole_numbers(values)
    odd = ~whole & values.is_valid().to_numpy(zero_copy_only=False)
    return _with_strange(numbers, as_text(values), odd) if odd.any() else (numbers, 0)


def as_text(values: pa.Array) -> pa.Array:
    """Texts; whole numbers without a fraction, whatever type holds them."""
    kind = values.type
    if pa.types.is_string(kind):
        return values
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind):
        return values.cast(pa.string())
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        numbers, whole = whole_numbers(values)
        texts = values.cast(pa.float64()).cast(pa.string())
        return pc.if_else(pa.array(whole), numbers.cast(pa.string()), texts)
    if pa.types.is_null(kind):
        return pa.nulls(len(values), pa.string())
    if pa.types.is_nested(kind):
        texts = [None if x is None else json.dumps(x, default=str) for x in values.to_pylist()]
        return pa.array(texts, pa.string())
    return values.cast(pa.string())


def whole_numbers(values: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """(n,) int64, null where a value is no whole number within 64 bits, and where it is one."""
    kind, size = values.type, len(values)
    null = values.is_null().to_numpy(zero_copy_only=False)
    if pa.types.is_integer(kind):
        if kind != pa.uint64():
            return values.cast(pa.int64()), ~null
        fits = _flags(pc.fill_null(pc.less_equal(values, pa.scalar(2**63 - 1, pa.uint64())), False))
        return pc.if_else(pa.array(fits), values, None).cast(pa.int64()), fits
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        floats = values.cast(pa.float64())
        numbers = floats.fill_null(0.5).to_numpy(zero_copy_only=False)
        whole = np.isfinite(numbers) & (np.abs(np.nan_to_num(numbers)) < 2.0**63)
        whole &= np.trunc(np.where(whole, numbers, 0.0)) == numbers
        ints = np.where(whole, numbers, 0.0).astype(np.int64)
        if pa.types.is_decimal(kind) and kind.scale == 0:  # More digits than a float has.
            exact = values.filter(pa.array(whole)).cast(pa.int64(), safe=False)
            ints[whole] = exact.to_numpy(zero_copy_only=False)
        return pa.array(ints, mask=~whole), whole
    if pa.types.is_string(kind):
        # Few distinct texts stand for many rows.
        coded = values.dictionary_encode()
        texts = coded.dictionary
        plain = _flags(pc.match_substring_regex(texts, _WHOLE))
        digits = pc.replace_substring_regex(texts, r"\.0*$", "").to_pylist()
        found = np.zeros(len(texts), np.int64)
        for at in np.flatnonzero(plain):
            number = int(digits[at]) if len(digits[at]) <= 20 else 2**64
            plain[at] = -(2**63) <= number < 2**63
            found[at] = number if plain[at] else 0
        code = coded.indices.fill_null(0).to_numpy(zero_copy_only=False)
        if not len(texts):
            return pa.nulls(size, pa.int64()), np.zeros(size, bool)
        whole = plain[code] & ~null
        return pa.array(found[code], mask=~whole), whole
    return pa.nulls(size, pa.int64()), np.zeros(size, bool)


def as_numbers(values: pa.Array) -> tuple[pa.Array, int]:
    """float64 numbers, null where a value is none, and how many of those there are."""
    kind = values.type
    if pa.types.is_string(kind):
        fine = pc.fill_null(pc.match_substring_regex(values, _NUMBER), False)
        numbers = pc.if_else(fine, values, pa.scalar(None, pa.string())).cast(pa.float64())
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        numbers = values.cast(pa.int8() if pa.types.is_boolean(kind) else kind)
        numbers = numbers.cast(pa.float64(), safe=False)
        numbers = pc.if_else(pc.is_nan(numbers), pa.scalar(None, pa.float64()), numbers)
    elif pa.types.is_decimal(kind):
        numbers = values.cast(pa.float64())
    else:
        numbers = pa.nulls(len(values), pa.float64())
    return numbers, numbers.null_count - values.null_count - _count_nan(values)


def _count_nan(values: pa.Array) -> int:
    if not pa.types.is_floating(values.type):
        return 0
    return int(pc.sum(pc.fill_null(pc.is_nan(values), False)).as_py() or 0)


def as_lists(values: pa.Array, separator: str | None) -> tuple[pa.Array, int]:
    """Lists of a column of lists, or of texts that a separator splits (`[]`: written as JSON)."""
    kind = values.type
    if is_list(kind):
        return values.cast(pa.large_list(kind.value_type)).cast(pa.list_(kind.value_type)), 0
    texts = as_text(values)
    if separator is None:  # Each value alone.
        each = [None if text is None else [text] for text in texts.to_pylist()]
        return pa.array(each, pa.list_(pa.string())), 0
    coded = texts.dictionary_encode()
    if separator == "[]":
        parsed = [parse_list(text) for text in coded.dictionary.to_pylist()]
        odd = sum(value is None for value in parsed)
        parts = [None if p is None else [_plain(x) for x in p] for p in parsed]
    else:
        split = (text.split(separator) for text in coded.dictionary.to_pylist())
        parts = [[part.strip() for part in some if part.strip()] for some in split]
        odd = 0
    lists = pa.array(parts, pa.list_(pa.string()))
    return lists.take(coded.indices), odd


def _plain(value: Any) -> str | None:
    return None if value is None else value if isinstance(value, str) else json.dumps(value)


def parse_list(text: str) -> list[Any] | None:
    """The list that a text writes, as JSON, Python or NumPy would; None if it writes none."""
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    for read in (json.loads, ast.literal_eval, _numpy_list):
        try:
            found = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        plain = all(x is None or isinstance(x, (int, float, str)) for x in found)
        return list(found) if isinstance(found, list) and plain else None
    return None


def _numpy_list(text: str) -> list[float]:
    return [float(part) for part in text[1:-1].split()]


def is_list(kind: pa.DataType) -> bool:
    """True if this is a type of lists."""
    return (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def is_whole(values: pa.Array) -> bool:
    """True if every value is a whole number within 64 bits, and not a truth value."""
    return bool((whole_numbers(values)[1] | _flags(values.is_null())).all())


def is_boolean(values: pa.Array) -> bool:
    """True if every value is true or false, as a type or as text."""
    if pa.types.is_boolean(values.type):
        return True
    if not pa.types.is_string(values.type) or values.null_count == len(values):
        return False
    words = pc.is_in(pc.utf8_lower(values.drop_null()), pa.array([_TRUE, _FALSE]))
    return pc.all(words).as_py()


def is_fraction(values: pa.Array) -> bool:
    """True if all are numbers, and some have a fraction or an exponent: no ids, then."""
    kind = values.type
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return not is_whole(values)
    if not pa.types.is_string(kind) or values.null_count == len(values):
        return False
    there = values.drop_null()
    if not pc.all(pc.match_substring_regex(there, _NUMBER)).as_py():
        return False
    ids = pc.or_(
        pc.match_substring_regex(there, _DIGITS), pc.match_substring_regex(there, r"^-?\d+\.0*$")
    )
    return not pc.all(ids).as_py()


def _booleans(values: pa.Array) -> pa.Array:
    if pa.types.is_boolean(values.type):
        return values
    if not pa.types.is_string(values.type):
        numbers, whole = whole_numbers(values)
        truth = pa.array(whole & np.isin(numbers.fill_null(-1).to_numpy(), (0, 1)))
        return pc.if_else(truth, pc.equal(numbers, 1), pa.scalar(None, pa.bool_()))
    lower = pc.utf8_lower(values)
    true = pc.is_in(lower, pa.array([_TRUE, "1"]))
    known = pc.or_(true, pc.is_in(lower, pa.array([_FALSE, "0"])))
    return pc.if_else(known, true, pa.scalar(None, pa.bool_()))


def _with_strange(numbers: pa.Array, texts: pa.Array, odd: np.ndarray) -> tuple[pa.Array, int]:
    """Puts an integer that stands for its text where a value is none of its own."""
    if not odd.any():
        return numbers, 0
    found = numbers.fill_null(0).to_numpy(zero_copy_only=False).copy()
    null = numbers.is_null().to_numpy(zero_copy_only=False).copy()
    at = np.flatnonzero(odd)
    signed = signatures("strange", texts.take(pa.array(at)).to_pylist())
    # Below zero, where ids rarely are.
    found[at] = -1 - (signed >> np.uint64(1)).astype(np.int64)
    null[at] = False
    return pa.array(found, mask=null), len(at)


def _relisted(lists: pa.Array, flat: pa.Array) -> pa.Array:
    sizes = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    null = lists.is_null()
    return pa.ListArray.from_arrays(pa.array(offsets), flat, mask=null if null.true_count else None)


def _cut(lists: pa.Array, width: int | None) -> pa.Array:
    sizes = lists.value_lengths()
    if width is None or (pc.max(sizes).as_py() or 0) <= width:
        return lists
    return pc.list_slice(lists, 0, width)


def _vectors(lists: pa.Array, width: int | None) -> tuple[pa.Array, int]:
    """Lists of float64 of one length; null where a list has another one."""
    numbers, odd = as_numbers(lists.flatten())
    lists = _relisted(lists, numbers)
    if width is None:
        return lists, odd
    wrong = _flags(pc.fill_null(pc.not_equal(lists.value_lengths(), width), False))
    if not wrong.any():
        return lists, odd
    rows = np.where(wrong, -1, np.arange(len(lists)))
    return lists.take(pa.array(rows, mask=wrong)), odd + int(wrong.sum())


def _flags(values: Any) -> np.ndarray:
    return np.array(values.to_numpy(zero_copy_only=False), bool)
