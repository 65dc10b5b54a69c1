"""Tables in memory, where a source names the paths of files."""

from collections.abc import Mapping, Sequence
import dataclasses
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from ..errors import DataError
from .archives import one_line
from .cleaning import cleaned
from .columnar import settled
from .table import RawTable


@dataclasses.dataclass(frozen=True, eq=False)
class InMemory:
    """Tables in place of the files of a source; `str` of it is what a run remembers.

    Attributes:
      kind: of the source whose files would hold the same: "events" or "impressions".
      tables: in the order in which the source's paths stand.
    """

    kind: str
    tables: tuple[RawTable, ...]

    def __str__(self) -> str:
        return f"memory:{self.kind}"

    @classmethod
    def of(cls, kind: str, tables: Any) -> "InMemory":
        """From one table, or several in a tuple; see `in_memory`."""
        several = tables if isinstance(tables, tuple) else (tables,)
        return cls(kind, tuple(in_memory(table) for table in several))


Where: TypeAlias = str | Path | InMemory
"""What a source reads: the path of a file, a folder or a glob, or tables in memory."""


def in_memory(table: Any) -> RawTable:
    """Rows of a table in memory, as a Parquet file of it would give them.

    Args:
      table: a pandas or polars data frame, an Arrow table, or anything else that speaks Arrow's
        stream protocol; a dict of columns, or a list of dicts.

    Raises:
      DataError: it is none of these, a column has values of several types, or there are no rows.
    """
    name, notes = type(table).__name__, []
    try:
        found = _arrow(table)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{name}: cannot be read as a table: {one_line(error)}") from error
    if found is None:
        raise DataError(
            f"{name}: not a table; data are a SOURCE such as 'events:FILE', a pandas or polars "
            "data frame, an Arrow table, a dict of columns or a list of dicts."
        )
    path = Path(name)
    content = cleaned(path, settled(path, found, notes), notes)
    rows = content.num_rows
    return RawTable(content, np.arange(rows), [], notes, [(name, rows)], "row")


def _arrow(table: Any) -> pa.Table | None:
    if isinstance(table, pa.Table):
        return table
    if type(table).__module__.partition(".")[0] == "pandas":
        return pa.Table.from_pandas(table)
    if hasattr(table, "__arrow_c_stream__"):
        return pa.table(table)
    if hasattr(table, "collect"):  # A query that polars has not run yet.
        return pa.table(table.collect())
    if isinstance(table, Mapping):
        return pa.table(dict(table))
    if isinstance(table, Sequence) and table and all(isinstance(row, dict) for row in table):
        names = dict.fromkeys(name for row in table for name in row)
        return pa.table({name: [row.get(name) for row in table] for name in names})
    return None
