"""Parts of the examples by a value of theirs: the scene, the kind of user, ...

Shapes: `R` requests of `C` candidates, `mask` True where a candidate is real.
"""

from collections.abc import Iterator
from typing import NamedTuple

from jaxtyping import Bool, Int, Shaped
import numpy as np

MOST = 100
"""So many segments are told apart, those of the most examples; the others are counted."""


class Segment(NamedTuple):
    """The examples of one value.

    Attributes:
      label: the value as text.
      rows: the requests that have such examples, ascending.
      mask: which of their candidates are such examples.
    """

    label: str
    rows: Int[np.ndarray, " P"]
    mask: Bool[np.ndarray, "P C"]


class Segments:
    """The largest segments by examples, `MOST` at most; among equals, what sorts first.

    Examples are sorted once by their segment: the cost follows them, however many values there are.

    Attributes:
      left_out: {"segments": how many are not among them, "examples": how many those hold}; empty
        where none is left out.
    """

    def __init__(self, value: Shaped[np.ndarray, "R ..."], mask: Bool[np.ndarray, "R C"]):
        """`value` is of each request (R,) or of each candidate (R, C)."""
        self._mask = mask
        distinct, code = _coded(value)
        code = np.broadcast_to(code[:, None] if code.ndim == 1 else code, mask.shape)
        self._at = np.flatnonzero(mask)
        of_example = code.reshape(-1)[self._at]
        self._at = self._at[np.argsort(of_example, kind="stable")]
        size = np.bincount(of_example, minlength=len(distinct))
        self._end = np.cumsum(size)
        self._start = self._end - size
        some = np.flatnonzero(size)
        kept = np.sort(some[np.argsort(-size[some], kind="stable")][:MOST])
        self._kept = [(int(code), str(distinct[code])) for code in kept]
        self.left_out: dict[str, int] = {}
        if len(some) > len(kept):
            rest = int(size.sum() - size[kept].sum())
            self.left_out = {"segments": len(some) - len(kept), "examples": rest}

    def __iter__(self) -> Iterator[Segment]:
        """In order of their values."""
        for code, label in self._kept:
            row, column = np.divmod(
                self._at[self._start[code] : self._end[code]], self._mask.shape[1]
            )
            rows, place = np.unique(row, return_inverse=True)
            mask = np.zeros((len(rows), self._mask.shape[1]), bool)
            mask[place, column] = True
            yield Segment(label, rows, mask)


def _coded(value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct values in order, and each one's index among them."""
    if value.dtype != object:
        distinct, code = np.unique(value, return_inverse=True)
        return distinct, code.reshape(value.shape)
    # Sorting compares Python's objects one by one: only the distinct ones.
    flat = value.reshape(-1).tolist()
    distinct = sorted(set(flat))
    index = {one: code for code, one in enumerate(distinct)}
    code = np.fromiter(map(index.__getitem__, flat), np.int64, len(flat))
    return np.array(distinct, object), code.reshape(value.shape)
