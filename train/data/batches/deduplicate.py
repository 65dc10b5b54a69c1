"""From the row ids of a batch to the distinct rows it names: what a step pulls and pushes.

It runs on the host, in the input pipeline, with NumPy alone. A table of any size costs the same:
time and memory follow the ids of the batch, never the rows of the table.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxtyping import Bool, Int32
import numpy as np

from ....zoo.features.schema import PADDING_ROW, RESERVED_ROWS, UNSEEN_ROW

QUANTUM = 256
_POSSIBLE_PER_VALUE = 16  # From about 32 on, sorting is faster.


class Pulled(NamedTuple):
    """The rows that a batch names, table by table. `P` differs between tables.

    Attributes:
      rows: ids of the pulled rows, ascending and distinct: 0 (padding), 1 (the unseen), the other
        ids of the batch, then fill ids `num_rows, num_rows + 1, ...` that no table has.
      touched: which of them the batch really names, hence may change: never position 0, never a
        fill id, position 1 only if an id of the batch was 1.
    """

    rows: dict[str, Int32[Any, " P"]]
    touched: dict[str, Bool[Any, " P"]]


def deduplicate(
    ids: Mapping[str, Sequence[np.ndarray]],
    num_rows: Mapping[str, int],
    *,
    quantum: int = QUANTUM,
    at_least: Mapping[str, int] | None = None,
) -> tuple[Pulled, dict[str, list[np.ndarray]]]:
    """The distinct rows of a batch, and its ids renamed to positions among them.

    For every table and every array of ids, `rows[renamed] == ids`; 0 stays 0 and 1 stays 1, so a
    model that compares ids with 0 or with each other sees no difference. Masked slots must hold 0
    already, otherwise their rows count as touched.

    Args:
      ids: per table, int32 arrays of any shapes, with values in [0, num_rows).
      num_rows: rows of every table, the two reserved ones included. A table that `ids` leaves out
        is pulled with its reserved rows alone.
      quantum: smallest number of pulled rows and divisor of all; see `padded_size`.
      at_least: per table, a lower bound on the pulled rows. Every new combination of shapes
        compiles the step anew, and tables that vary independently make many; a pipeline that
        passes the largest sizes so far sees each size only grow. The size can move the last bit of
        an update (the compiler vectorises another length), so a run that must resume bit for bit
        keeps these sizes with its state, or passes none.

    Raises:
      ValueError: an id outside [0, num_rows), an array that is not int32, or an unknown table.
    """
    unknown = sorted(ids.keys() - num_rows.keys())
    if unknown:
        raise ValueError(f"ids name the tables {unknown}; num_rows has {sorted(num_rows)}.")
    pulled, renamed = Pulled({}, {}), {}
    reserved = np.array([PADDING_ROW, UNSEEN_ROW], np.int32)
    for table, size in num_rows.items():
        arrays = ids.get(table, ())
        _check(table, arrays, size)
        names, (_, *renamed[table]) = distinct(reserved, *arrays)
        length = padded_size(len(names), quantum)
        length = max(length, (at_least or {}).get(table, 0))
        rows = np.arange(size - len(names), size - len(names) + length, dtype=np.int32)
        rows[: len(names)] = names
        touched = np.zeros(length, bool)
        touched[UNSEEN_ROW] = any((array == UNSEEN_ROW).any() for array in arrays)
        touched[RESERVED_ROWS : len(names)] = True
        pulled.rows[table], pulled.touched[table] = rows, touched
    return pulled, renamed


def padded_size(size: int, quantum: int = QUANTUM) -> int:
    """The next number >= size of the ladder quantum * (1, 2, ..., 8, 10, 12, 14, 16, 20, 24, ...).

    Four steps per doubling: at most a fifth of the result is padding once size >= 4 * quantum,
    and the sizes of a data set's batches, which vary by a few per cent, meet one or two steps.
    """
    if quantum < RESERVED_ROWS:
        raise ValueError(f"quantum must be >= {RESERVED_ROWS}, got {quantum}.")
    steps = -(-size // quantum)
    stride = 1 << max(0, (steps - 1).bit_length() - 3)
    return max(1, -(-steps // stride) * stride) * quantum


def distinct(*arrays: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """The sorted distinct values of int32 arrays, and every array as positions among them.

    Where values are small beside their number, a table of all that are possible is several times
    faster than sorting.
    """
    total = sum(array.size for array in arrays)
    lowest = min((int(array.min()) for array in arrays if array.size), default=0)
    possible = 1 + max((int(array.max()) for array in arrays if array.size), default=-1)
    if lowest >= 0 and possible <= _POSSIBLE_PER_VALUE * total:
        return _marked(possible, arrays)
    return _sorted(total, arrays)


def _marked(possible: int, arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """`distinct` of values below `possible`, by a table of them."""
    there = np.zeros(possible, bool)
    for array in arrays:
        there[array] = True
    values = np.flatnonzero(there).astype(np.int32)
    position = np.empty(possible, np.int32)
    position[values] = np.arange(len(values), dtype=np.int32)
    return values, [np.asarray(position[array]) for array in arrays]


def _sorted(total: int, arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """`distinct` of `total` values, by sorting.

    Each value is packed with its own index into one int64, because sorting numbers is several
    times faster than sorting indices by number.
    """
    ends = np.cumsum([0, *(array.size for array in arrays)])
    keys = np.empty(total, np.int64)
    for start, end, array in zip(ends[:-1], ends[1:], arrays, strict=True):
        keys[start:end] = array.reshape(-1)
    keys <<= 32
    keys |= np.arange(total)
    keys.sort()
    values = (keys >> 32).astype(np.int32)
    first = np.empty(total, bool)
    first[:1] = True
    np.not_equal(values[1:], values[:-1], out=first[1:])
    positions = np.empty(total, np.int32)
    positions[keys & 0xFFFFFFFF] = np.cumsum(first, dtype=np.int32) - np.int32(1)
    parts = [
        positions[start:end].reshape(array.shape)
        for start, end, array in zip(ends[:-1], ends[1:], arrays, strict=True)
    ]
    return values[first], parts


def _check(table: str, arrays: Sequence[np.ndarray], num_rows: int) -> None:
    for array in arrays:
        if array.dtype != np.int32:
            raise ValueError(f"ids of table {table!r} must be int32, got {array.dtype}.")
        if array.size:
            for value in (array.min(), array.max()):
                if not 0 <= value < num_rows:
                    raise ValueError(
                        f"ids of table {table!r} must be in [0, {num_rows}), got {value}."
                    )
