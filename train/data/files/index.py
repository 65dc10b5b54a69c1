"""Columns that only number the rows, as pandas writes its index."""

import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

pc: Any = pyarrow.compute  # its functions are made when it is imported

# What pandas calls a column whose name is empty when it reads one.
UNNAMED = "Unnamed: 0"
_INDEX = re.compile(r"__index_level_\d+__")


def without_index(table: pa.Table, notes: list[str]) -> pa.Table:
    """Leaves out an index of pandas, under whichever name it stands, and says so.

    A column without a name is one if it holds different whole numbers (rows may have been dropped
    or shuffled), one called "index" only if it counts 0, 1, 2, ... or 1, 2, 3, ... .
    """
    for name in table.column_names:
        if table.num_columns < 2:
            break
        is_index = bool(_INDEX.fullmatch(name))
        if not is_index and name in ("", UNNAMED, "index"):
            is_index = _counts(table[name], in_order=name == "index")
        if is_index:
            shown = "" if name == UNNAMED else name
            notes.append(f"column {shown!r} numbers the rows: left out")
            table = table.drop_columns([name])
    return table


def _counts(column: pa.ChunkedArray, *, in_order: bool) -> bool:
    """True if these are the numbers of rows."""
    if column.null_count or not len(column):
        return False
    if pa.types.is_string(column.type):
        if not pc.all(pc.match_substring_regex(column, r"^\d{1,18}$")).as_py():
            return False
        column = column.cast(pa.int64())
    if not pa.types.is_integer(column.type):
        return False
    numbers = column.to_numpy()
    if in_order:
        return numbers[0] in (0, 1) and bool((np.diff(numbers) == 1).all())
    return len(np.unique(numbers)) == len(numbers)
