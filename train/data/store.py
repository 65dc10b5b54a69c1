"""Columns that grow on disk, for data sets that do not fit in memory.

Rows are written one after another to a file without a name, and read back memory-mapped. A row's
columns lie side by side: a shuffled batch touches one page of the disk per row, not one per value.
The file goes when the last array that reads it goes, or with the process, however that ends.

The environment variable RECJAX_CACHE names the folder of such files; by default it is the system's
for temporary files. Where that one lives in memory, a large data set needs another.
"""

from collections.abc import Iterator, Mapping
import os
from pathlib import Path
import tempfile
from typing import Any, NamedTuple
import weakref

import numpy as np

from .errors import DataError

FOLDER = "RECJAX_CACHE"
BLOCK_BYTES = 2**25


class ColumnType(NamedTuple):
    """Type of a column: `(R, *shape)` of `dtype`."""

    dtype: Any
    shape: tuple[int, ...] = ()


class ColumnStore:
    """`R` rows of the same columns, appended block by block.

    Raises DataError if the folder cannot be written or is full.
    """

    def __init__(self, columns: Mapping[str, ColumnType]):
        self._row = np.dtype([(name, *column) for name, column in columns.items()], align=True)
        self._folder = Path(os.environ.get(FOLDER) or tempfile.gettempdir())
        self._rows = 0
        try:
            self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)
        except OSError as error:
            raise self._failure(error) from error
        weakref.finalize(self, self._file.close)

    def __len__(self) -> int:
        return self._rows

    def append(self, block: Mapping[str, np.ndarray]) -> None:
        """Adds the rows of `block`: every column, all of one length."""
        if set(block) != set(self._row.names or ()):
            raise ValueError(f"A block must hold {self._row.names}, got {tuple(block)}.")
        rows = len(next(iter(block.values())))
        records = np.zeros(rows, self._row)
        for name, value in block.items():
            _require(name, value, records[name])
            records[name] = value
        self._write(records, self._rows)
        self._rows += rows

    def read(self, start: int, rows: int) -> dict[str, np.ndarray]:
        """Copies of the columns of `rows` rows from `start` on."""
        records = self._read(start, rows)
        return {name: records[name] for name in self._row.names or ()}

    def blocks(self, rows: int | None = None) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """(index of the first row, copies of the columns) of consecutive blocks.

        A block is of BLOCK_BYTES, unless `rows` says of how many rows.
        """
        rows = rows or max(1, BLOCK_BYTES // self._row.itemsize)
        for start in range(0, self._rows, rows):
            yield start, self.read(start, min(rows, self._rows - start))

    def replace(self, start: int, block: Mapping[str, np.ndarray]) -> None:
        """Overwrites some columns of the rows from `start` on."""
        rows = len(next(iter(block.values())))
        records = self._read(start, rows)
        for name, value in block.items():
            _require(name, value, records[name])
            records[name] = value
        self._write(records, start)

    def columns(self) -> dict[str, np.ndarray]:
        """The columns so far, read-only views of the file."""
        if self._rows == 0:  # An empty file cannot be mapped.
            empty = np.zeros(0, self._row)
            return {name: empty[name] for name in self._row.names or ()}
        file: Any = self._file
        mapped = np.memmap(file, dtype=self._row, mode="r", shape=(self._rows,))
        # As plain arrays: what is picked from them is no map of a file.
        return {name: np.asarray(mapped[name]) for name in self._row.names or ()}

    def _read(self, start: int, rows: int) -> np.ndarray:
        if not 0 <= start <= self._rows - rows:
            raise ValueError(f"Rows {start}..{start + rows} are not all among {self._rows}.")
        records = np.empty(rows, self._row)
        size, view = self._row.itemsize, records.view(np.uint8).data
        done = 0
        while done < len(view):
            read = os.preadv(self._file.fileno(), [view[done:]], start * size + done)
            assert read, "the file is shorter than what was written"
            done += read
        return records

    def _write(self, records: np.ndarray, start: int) -> None:
        size, view = self._row.itemsize, records.view(np.uint8).data
        done = 0
        try:
            while done < len(view):
                done += os.pwrite(self._file.fileno(), view[done:], start * size + done)
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> DataError:
        written = f" after {self._rows} rows" if self._rows else ""
        return DataError(
            f"{self._folder}: {error.strerror}{written}; {FOLDER} names the folder of columns."
        )


def _require(name: str, value: np.ndarray, place: np.ndarray) -> None:
    if value.dtype != place.dtype or value.shape != place.shape:
        raise ValueError(
            f"Column {name!r} must be {place.dtype} of shape {place.shape}, "
            f"got {value.dtype} of shape {value.shape}."
        )
