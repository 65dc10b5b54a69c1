"""From 64-bit signatures to rows of a table. Row 0 is padding, row 1 is the unseen."""

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np

from .schema import RESERVED_ROWS, UNSEEN_ROW
from .signature import mix


@runtime_checkable
class RowMap(Protocol):
    """Turns signatures into rows. `rows` is the size of the table that it needs."""

    @property
    def rows(self) -> int:
        """Rows of the table, the two reserved ones included."""
        ...

    def __call__(self, signatures: np.ndarray) -> np.ndarray:
        """int32 rows, of the signatures' shape, all in [1, rows)."""
        ...


@dataclasses.dataclass(frozen=True)
class HashedRows:
    """Hashed buckets: every value has a row from the start; distinct values may share one.

    Nothing is ever unseen and nothing is stored, which suits open-ended ids. With n values in r
    rows a value shares its row with probability about 1 - exp(-n / r).
    """

    rows: int

    def __post_init__(self):
        if not RESERVED_ROWS < self.rows < 2**31:
            raise ValueError(
                f"HashedRows.rows must be > {RESERVED_ROWS} and fit in int32, got {self.rows}."
            )

    def __call__(self, signatures: np.ndarray) -> np.ndarray:
        """int32 rows in [2, rows)."""
        buckets = np.uint64(self.rows - RESERVED_ROWS)
        return (mix(signatures) % buckets).astype(np.int32) + np.int32(RESERVED_ROWS)


@dataclasses.dataclass(frozen=True, eq=False)
class KnownRows:
    """A fixed vocabulary: one row for each known value, the unseen row for all others.

    `signatures` is sorted and distinct; value i has row 2 + i.
    """

    signatures: np.ndarray

    @classmethod
    def of(cls, signatures: np.ndarray, *, min_count: int = 1) -> "KnownRows":
        """The vocabulary of the signatures that occur at least `min_count` times."""
        known, counts = np.unique(signatures, return_counts=True)
        return cls(known[counts >= min_count])

    @property
    def rows(self) -> int:
        """Rows of the table, the two reserved ones included."""
        return RESERVED_ROWS + len(self.signatures)

    def __call__(self, signatures: np.ndarray) -> np.ndarray:
        """int32 rows in [1, rows)."""
        if len(self.signatures) == 0:
            return np.full(np.shape(signatures), UNSEEN_ROW, np.int32)
        at = np.searchsorted(self.signatures, signatures)
        at = np.minimum(at, len(self.signatures) - 1)
        found = self.signatures[at] == signatures
        return np.where(found, at + RESERVED_ROWS, UNSEEN_ROW).astype(np.int32)
