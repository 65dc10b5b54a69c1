"""From codes on disk to rows of tables: a column is written as 32-bit codes and read back as rows.

The vocabulary is known only once all of training has been read, so text is parsed once, into
columns of codes; these are counted, and replaced where they stand.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from ...zoo.features import UNSEEN_ROW, DistinctCounts, KnownRows, RowMap, signatures
from ..progress import Progress
from .store import ColumnStore

# Values of codes, as `signatures` takes them.
Values = Callable[[np.ndarray], Any]

_SIGNED_AT_ONCE = 2**20
_WATCHED_FROM = 2**20


class CodeRows(NamedTuple):
    """Rows of those codes that have one of their own; all others are unseen.

    `codes` (n,) ascending, `rows` (n,) int32.
    """

    codes: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(cls, table: str, codes: np.ndarray, values: Values, row_map: RowMap) -> "CodeRows":
        """The rows that `row_map` gives to the values of distinct, ascending codes."""
        parts = [row_map(signed) for signed in _signed(table, codes, values)]
        rows = np.concatenate([np.zeros(0, np.int32), *parts])
        known = rows != UNSEEN_ROW
        return cls(codes[known], rows[known])

    def __call__(self, codes: np.ndarray) -> np.ndarray:
        """int32 rows, of the codes' shape."""
        if not len(self.codes):
            return np.full(np.shape(codes), UNSEEN_ROW, np.int32)
        at = np.minimum(np.searchsorted(self.codes, codes), len(self.codes) - 1)
        return np.where(self.codes[at] == codes, self.rows[at], np.int32(UNSEEN_ROW))


def admit(
    counts: dict[str, DistinctCounts],
    values: Values,
    min_count: int,
    given: dict[str, RowMap],
) -> tuple[dict[str, RowMap], dict[str, CodeRows]]:
    """A row map for each table, and the rows of its codes.

    Those of `given` stay as they are: `counts` must then hold all codes that may come. Others hold
    what was counted at least `min_count` times. Empties `counts`.
    """
    row_maps: dict[str, RowMap] = {}
    rows: dict[str, CodeRows] = {}
    for table in tuple(counts):
        codes = counts.pop(table).frequent(1 if table in given else min_count)
        if table in given:
            row_maps[table] = given[table]
        else:
            signed = [np.zeros(0, np.uint64), *_signed(table, codes, values)]
            row_maps[table] = KnownRows.of(np.concatenate(signed))
        rows[table] = CodeRows.of(table, codes, values, row_maps[table])
    return row_maps, rows


def watched_blocks(store: ColumnStore, title: str) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """`store.blocks()`, with a progress bar if there are many rows."""
    with Progress(f"{title}, rows", len(store), quiet=len(store) < _WATCHED_FROM) as bar:
        for start, block in store.blocks():
            yield start, block
            bar.advance(len(next(iter(block.values()))))


def _signed(table: str, codes: np.ndarray, values: Values) -> Iterator[np.ndarray]:
    for start in range(0, len(codes), _SIGNED_AT_ONCE):
        yield signatures(table, values(codes[start : start + _SIGNED_AT_ONCE]))
