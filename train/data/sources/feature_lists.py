r"""Lists of features in one value of a line, `field\x02id\x03value` joined by \x01, as arrays.

The form in which Alimama publishes its logs.
"""

import re
import reprlib
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv

from ..files.arrow_buffers import reader_of

pc: Any = pyarrow.compute  # its functions are made when it is imported

MAX_ID = 2**31 - 1
_BETWEEN, _AFTER_FIELD, _AFTER_ID = b"\x01", b"\x02", b"\x03"
_FEATURE = re.compile(
    r"[^\x02\x03]+\x02([0-9]{1,10})\x03(-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
)
_AS_LINES = bytes.maketrans(_BETWEEN + _AFTER_ID, b"\n" + _AFTER_FIELD)
_COLUMNS = {
    "field": pa.dictionary(pa.int32(), pa.string()),
    "id": pa.int64(),
    "value": pa.float64(),
}


class Features(NamedTuple):
    """`E` features of `R` lists, in order.

    Attributes:
      row: (E,) the list that each stands in, ascending.
      field: (E,) index into `names`.
      id: (E,) int32. value: (E,) float64.
      names: fields that occur.
    """

    row: np.ndarray
    field: np.ndarray
    id: np.ndarray
    value: np.ndarray
    names: tuple[str, ...]

    def first(self, name: str, rows: int) -> tuple[np.ndarray, int]:
        """(rows,) the first id of a field in each list, -1 for none; and how many came after."""
        found = np.full(rows, -1, np.int32)
        at = self._at(name)
        # Backwards: what is written last stays.
        found[self.row[at[::-1]]] = self.id[at[::-1]]
        return found, len(at) - int(np.count_nonzero(found >= 0))

    def heaviest(self, name: str, rows: int, width: int) -> tuple[np.ndarray, int]:
        """(rows, width) ids of a field by falling value, -1 for none; and how many did not fit."""
        found = np.full((rows, width), -1, np.int32)
        at = self._at(name)
        at = at[np.lexsort((-self.value[at], self.row[at]))]
        row = self.row[at]
        rank = np.arange(len(at)) - np.searchsorted(row, row)
        fits = rank < width
        found[row[fits], rank[fits]] = self.id[at[fits]]
        return found, int(np.count_nonzero(~fits))

    def _at(self, name: str) -> np.ndarray:
        if name not in self.names:
            return np.zeros(0, np.int64)
        return np.flatnonzero(self.field == self.names.index(name))


def parse(lists: pa.StringArray, counts: np.ndarray) -> tuple[Features, dict[int, str]]:
    """Reads the lists of a block.

    Args:
      lists: null where a list is empty.
      counts: how many features each list is said to hold.

    Returns:
      The features of the lists that can be read (rows count only those), and {row: reason} of the
      others.
    """
    held = pc.add(pc.count_substring(lists, _BETWEEN.decode()), 1)
    held = pc.fill_null(held, 0).to_numpy(zero_copy_only=False)
    broken = {
        int(row): f"says that it holds {counts[row]} features, holds {held[row]}"
        for row in np.flatnonzero(held != counts)
    }
    features = _at_once(*_without(broken, lists, held))
    if features is None:
        for row, text in enumerate(lists.to_pylist()):
            if row not in broken and (reason := _reason(text)):
                broken[row] = reason
        features = _at_once(*_without(broken, lists, held))
        assert features is not None
    return features, dict(sorted(broken.items()))


def _without(broken: dict[int, str], lists: Any, held: np.ndarray) -> tuple[Any, np.ndarray]:
    if not broken:
        return lists, held
    kept = np.ones(len(held), bool)
    kept[list(broken)] = False
    return lists.filter(pa.array(kept)), held[kept]


def _at_once(lists: pa.StringArray, held: np.ndarray) -> Features | None:
    """All features; None if one of them may be broken."""
    if not held.sum():
        nothing = np.zeros(0, np.int32)
        return Features(nothing, nothing, nothing, np.zeros(0), ())
    full = lists.drop_null()
    whole = pa.ListArray.from_arrays(pa.array([0, len(full)], pa.int32()), full)
    text = pc.binary_join(whole, _BETWEEN.decode())[0].as_buffer().to_pybytes()
    # Arrow ends a line at a lone CR, skips spaces, and takes 0x10 for 16.
    if any(letter in text for letter in (b"\r", b" ", b"\t", b"x", b"X")):
        return None
    letters = np.frombuffer(text, np.uint8)
    marks = letters[(letters == _AFTER_FIELD[0]) | (letters == _AFTER_ID[0])]
    if (marks[::2] != _AFTER_FIELD[0]).any() or (marks[1::2] != _AFTER_ID[0]).any():
        return None
    try:
        table = pyarrow.csv.read_csv(
            reader_of(text.translate(_AS_LINES)),
            read_options=pyarrow.csv.ReadOptions(column_names=list(_COLUMNS), block_size=2**22),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=_AFTER_FIELD.decode(), quote_char=False, ignore_empty_lines=False
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=_COLUMNS, null_values=[""], strings_can_be_null=True
            ),
        )
    except pa.ArrowInvalid:
        return None
    table = table.unify_dictionaries().combine_chunks()
    field, id_, value = (table[name].combine_chunks() for name in _COLUMNS)
    if table.num_rows != held.sum() or any(column.null_count for column in (field, id_, value)):
        return None
    ids, values = id_.to_numpy(), value.to_numpy()
    if ids.min() < 0 or ids.max() > MAX_ID or not np.isfinite(values).all():
        return None
    return Features(
        row=np.repeat(np.arange(len(lists)), held),
        field=field.indices.to_numpy(),
        id=ids.astype(np.int32),
        value=values,
        names=tuple(field.dictionary.to_pylist()),
    )


def _reason(text: str | None) -> str:
    """Why a list cannot be read; "" if it can."""
    for feature in text.split(_BETWEEN.decode()) if text else ():
        match = _FEATURE.fullmatch(feature)
        if not match:
            return f"a feature must be field\\x02id\\x03value, got {reprlib.repr(feature)}"
        if int(match[1]) > MAX_ID:
            return f"an id must be <= {MAX_ID}, got {match[1]}"
        if not np.isfinite(float(match[2])):
            return f"a value must be finite, got {match[2]}"
    return ""
