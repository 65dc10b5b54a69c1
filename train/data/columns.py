"""Long columns, a piece at a time.

NumPy turns every index to int64 and makes a temporary of every expression, each as long as its
operands; on a hundred million events that is most of the memory. Here they are as long as a piece.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa
_PIECE = 2**22
# 64 MB of int32: what is smaller may stay with the allocator.
_CHUNK = 2**24
# A table of all ids between the smallest and the largest is looked up faster than sorted ids.
_LARGEST_TABLE = 2**27


def pieces(length: int) -> Iterator[slice]:
    """Consecutive slices of `range(length)`."""
    for start in range(0, length, _PIECE):
        yield slice(start, min(start + _PIECE, length))


def take(values: np.ndarray, index: np.ndarray, dtype: np.dtype | type | None = None) -> np.ndarray:
    """`values[index]`, as `dtype`."""
    result = np.empty((len(index), *values.shape[1:]), dtype or values.dtype)
    for piece in pieces(len(index)):
        result[piece] = values[index[piece]]
    return result


def count(values: np.ndarray, size: int = 0) -> np.ndarray:
    """(>= size,) int64, how often each of 0, 1, 2, ... occurs."""
    counts = np.zeros(max(size, int(values.max(initial=-1)) + 1), np.int64)
    for piece in pieces(len(values)):
        counts += np.bincount(values[piece], minlength=len(counts))
    return counts


def compact(values: np.ndarray) -> np.ndarray:
    """The same integers, as int32 if all fit."""
    if values.dtype == np.int32 or not len(values):
        return values.astype(np.int32)
    limits = np.iinfo(np.int32)
    fits = limits.min <= values.min() and values.max() <= limits.max
    return values.astype(np.int32) if fits else values


class Column:
    """A column that grows, in chunks so large that the system gets each back once it is freed."""

    def __init__(self):
        self._chunks: list[np.ndarray] = []
        self._free = 0

    def __len__(self) -> int:
        return sum(map(len, self._chunks)) - self._free

    def append(self, values: np.ndarray) -> None:
        """Adds values of any dtype; the column's is that which holds them all."""
        while len(values):
            if not self._free:
                self._chunks.append(np.empty(_CHUNK, values.dtype))
                self._free = _CHUNK
            chunk = self._chunks[-1].astype(np.result_type(self._chunks[-1], values), copy=False)
            start, size = _CHUNK - self._free, min(self._free, len(values))
            chunk[start : start + size] = values[:size]
            self._chunks[-1] = chunk
            self._free -= size
            values = values[size:]

    def whole(self) -> np.ndarray:
        """The values as one array; the column is empty afterwards, so nothing is held twice."""
        size, start = len(self), 0
        result = np.empty(size, np.result_type(*self._chunks) if size else np.int32)
        while start < size:
            chunk = self._chunks.pop(0)[: size - start]
            result[start : start + len(chunk)] = chunk
            start += len(chunk)
        self._free = 0
        return result


def distinct_of(values: np.ndarray) -> np.ndarray:
    """The distinct integers, sorted. Sorts `values` in place, and returns a part of it."""
    values.sort()
    end = 0
    for piece in pieces(len(values)):
        part = values[piece]
        new = np.empty(len(part), bool)
        new[1:] = part[1:] != part[:-1]
        new[:1] = end == 0 or part[0] != values[end - 1]
        part = part[new]
        values[end : end + len(part)] = part
        end += len(part)
    return values[:end]


def codes(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of each id among all distinct ids, sorted: the order of events does not matter.

    Returns:
      (E,) int32 codes, which take the place of `ids` if those are int32, and the (N,) ids.
    """
    low, high = int(ids.min(initial=0)), int(ids.max(initial=0))
    result = ids if ids.dtype == np.int32 else np.empty(len(ids), np.int32)
    if high - low >= _LARGEST_TABLE:
        distinct = distinct_of(ids.copy()).copy()
        for piece in pieces(len(ids)):
            result[piece] = np.searchsorted(distinct, ids[piece])
        return result, distinct
    occurs = np.zeros(high - low + 1, bool)
    for piece in pieces(len(ids)):
        occurs[ids[piece].astype(np.int64) - low] = True
    table = np.cumsum(occurs, dtype=np.int32) - np.int32(1)
    for piece in pieces(len(ids)):
        result[piece] = table[ids[piece].astype(np.int64) - low]
    return result, np.flatnonzero(occurs) + low


def codes_of_texts(parts: "list[pa.DictionaryArray]") -> "tuple[np.ndarray, pa.Array]":
    """The same for text that comes in parts, in the order of its UTF-8 bytes. Empties the list."""
    import pyarrow as pa
    import pyarrow.compute

    pc: Any = pyarrow.compute
    unified = pa.chunked_array(parts).unify_dictionaries()
    parts.clear()
    distinct = unified.chunk(0).dictionary
    order = pc.array_sort_indices(distinct).to_numpy()
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    result = Column()
    for chunk in unified.chunks:
        result.append(rank[chunk.indices.to_numpy()])
    return result.whole(), distinct.take(pa.array(order))


def first_of_each(codes: np.ndarray, values: np.ndarray, size: int) -> np.ndarray:
    """(size,) the value that stands beside the first occurrence of each code."""
    result = np.zeros(size, values.dtype)
    # Backwards: what is written last stays.
    for piece in reversed(list(pieces(len(codes)))):
        result[codes[piece][::-1]] = values[piece][::-1]
    return result


def firsts(keys: tuple[np.ndarray, ...], time: np.ndarray | None = None) -> np.ndarray:
    """(E,) bool: the events that no event of the same keys precedes, in time, then in the file."""
    order = np.lexsort((*(() if time is None else (time,)), *reversed(keys)))
    result = np.empty(len(order), bool)
    for piece in pieces(len(order)):
        before = order[np.maximum(np.arange(piece.start, piece.stop) - 1, 0)]
        same = np.ones(len(before), bool)
        for key in keys:
            same &= key[order[piece]] == key[before]
        if piece.start == 0:
            same[:1] = False
        result[order[piece]] = ~same
    return result
