"""A file read as a table."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa


class BadRow(NamedTuple):
    """A row that cannot be used. Lines count from 1; `reason` says what is wrong, and in which file
    where there are several. `counted` is what is counted: "line", or "row" of a table in memory,
    from 0."""

    line: int
    reason: str
    counted: str = "line"

    def __str__(self) -> str:
        return f"{self.counted} {self.line}: {self.reason}"


class RawTable(NamedTuple):
    """Rows as their file holds them.

    Attributes:
      table: of delimited text all columns are text, null where a value is empty or nan; of other
        formats they have the types of the file, text as `pa.string()`, floats as float64 with null
        for NaN, and no dictionaries. May have no rows if `bad` has some.
      lines: (rows,) int64, the number of each row's line in its file, the first being 1. Rows of
        formats without lines count from 2, as below a header.
      bad: the rows left out because they cannot be read as rows, in the order of the files.
      notes: what was found out on the way, one sentence each without a full stop.
      parts: (name, rows) of each file, in the order of the rows.
      counted: what `lines` counts, see `BadRow`.
    """

    table: pa.Table
    lines: np.ndarray
    bad: list[BadRow]
    notes: list[str]
    parts: list[tuple[str, int]]
    counted: str = "line"

    def __str__(self) -> str:
        return ",".join(name for name, _ in self.parts)

    def bad_row(self, row: int, reason: str) -> BadRow:
        """Row number `row` of the table as a bad one, its file named if there are several."""
        if len(self.parts) > 1:
            ends = np.cumsum([rows for _, rows in self.parts])
            reason = f"{self.parts[int(np.searchsorted(ends, row, side='right'))][0]}: {reason}"
        return BadRow(int(self.lines[row]), reason, self.counted)
