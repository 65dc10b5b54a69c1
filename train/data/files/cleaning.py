"""Columns of text as their values are meant: spaces and words that only stand for nothing."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute

from ..errors import DataError

pc: Any = pyarrow.compute  # its functions are made when it is imported

_SAMPLE = 100
_NOTHING = pa.array(
    ["NULL", "Null", "null", "None", "none", "NA", "N/A", "n/a", "<NA>", "NaT", "\\N"]
)
_NUMBER_OR_DATE = r"^([+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|\d{4}-\d{2}-\d{2}([T ].*)?)$"
# Numbers that are not written as they are read: what they are, one of them, all of them.
_ODD_NUMBERS = (
    ("decimal commas", r"^[+-]?\d+,\d+$", r"^[+-]?\d+(,\d+)?$"),
    (
        "thousands separators",
        r"^[+-]?\d{1,3}(,\d{3})+(\.\d+)?$",
        r"^[+-]?\d{1,3}(,\d{3})*(\.\d+)?$",
    ),
    (
        "thousands separators and decimal commas",
        r"^[+-]?\d{1,3}(\.\d{3})+,\d+$",
        r"^[+-]?\d{1,3}(\.\d{3})*(,\d+)?$",
    ),
    (
        "thousands separators",
        "^[+-]?\\d{1,3}([ '\u00a0\u202f\u2019]\\d{3})+([.,]\\d+)?$",
        "^[+-]?\\d{1,3}([ '\u00a0\u202f\u2019]\\d{3})*([.,]\\d+)?$",
    ),
)


def cleaned(path: Path, table: pa.Table, notes: list[str]) -> pa.Table:
    """The same columns without padding, null where a column of numbers or dates says NULL.

    Columns that are no text are as they are meant.

    Raises:
      DataError: numbers with decimal commas or thousands separators: they would be read as words.
    """
    columns = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_string(column.type):
            column = _without_nothing(name, _without_padding(name, column, notes), notes)
            _check_numbers(path, name, column)
        columns.append(column)
    return pa.table(columns, names=table.column_names)


def _without_padding(name: str, column: pa.ChunkedArray, notes: list[str]) -> pa.ChunkedArray:
    """Without spaces around values, where all have them or all are numbers."""
    padded = lambda values: pc.match_substring_regex(values, r"^\s|\s$")
    if not _any(padded(column.slice(0, _SAMPLE))):
        return column
    trimmed = pc.utf8_trim_whitespace(column)
    if _all(pc.match_substring_regex(column, r"^\s")) or _all(
        pc.match_substring_regex(column, r"\s$")
    ):
        pass
    elif not _all(pc.match_substring_regex(trimmed, _NUMBER_OR_DATE)):
        return column
    notes.append(f"column {name!r} has spaces around its values: left out")
    return pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, pa.string()), trimmed)


def _without_nothing(name: str, column: pa.ChunkedArray, notes: list[str]) -> pa.ChunkedArray:
    """Null in place of words for nothing, where all other values are numbers or dates."""
    nothing = pc.and_(pc.is_in(column, _NOTHING), pc.is_valid(column))
    if not _any(nothing):
        return column
    there = pc.if_else(nothing, pa.scalar(None, pa.string()), column)
    if there.null_count == len(there) or not _all(pc.match_substring_regex(there, _NUMBER_OR_DATE)):
        return column
    word = column.filter(nothing)[0].as_py()
    notes.append(f"column {name!r} says {word!r} where it has no value")
    return there


def _check_numbers(path: Path, name: str, column: pa.ChunkedArray) -> None:
    start = column.slice(0, _SAMPLE)
    kinds = [kind for kind in _ODD_NUMBERS if _all(pc.match_substring_regex(start, kind[2]))]
    if kinds and _is_plain(column):
        return
    for what, some, every in kinds:
        odd = pc.fill_null(pc.match_substring_regex(column, some), False)
        if _any(odd) and _all(pc.match_substring_regex(column, every)):
            seen = column.filter(odd)[0].as_py()
            raise DataError(
                f"{path}: column {name!r} is written with {what} ({seen!r}); write numbers with a "
                "decimal point and nothing else (lists of values: a|b)."
            )


def _is_plain(column: pa.ChunkedArray) -> bool:
    """True if all are numbers as programs write them; that is quick to see."""
    try:
        column.cast(pa.float64())
    except pa.ArrowInvalid:
        return False
    return True


def _all(mask: Any) -> bool:
    # Nulls do not count.
    return pc.all(mask, min_count=0).as_py()


def _any(mask: Any) -> bool:
    return bool(pc.any(mask, min_count=0).as_py())
