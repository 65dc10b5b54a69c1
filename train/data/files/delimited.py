"""Delimited text: its separator, its header, and what is wrong with its columns."""

from collections.abc import Sequence
from pathlib import Path
import re
import reprlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from ..errors import DataError
from .cleaning import cleaned
from .index import UNNAMED, without_index
from .rows import read_rows, split
from .table import BadRow

pc: Any = pyarrow.compute  # its functions are made when it is imported

_SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "pipes"}
_KNOWN = frozenset(("user_id", "item_id"))
_SAMPLE_BYTES, _SAMPLE_LINES = 2**16, 50
_VALUE = re.compile(
    r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"  # a number
    r"|[+-]?\d+(,\d+)+"  # one with commas
    r"|\d{4}[-/.]\d{1,2}[-/.]\d{1,2}([T ].*)?|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}([T ].*)?"  # a date
)
_LAST = "Unnamed"
# As RecBole names columns: with a type behind each.
_TYPED = re.compile(r"(\w+):(token|float|token_seq|float_seq)")
_REMEDY = "name the columns: --columns user_id,item_id,timestamp"


def read_delimited(
    path: Path, text: pa.Buffer, names: Sequence[str] | None, notes: list[str]
) -> tuple[pa.Table, np.ndarray, list[BadRow]]:
    """Columns of text, the line of each row, and the rows left out.

    Raises:
      DataError: the first line is no header and `names` is None, `names` are not as many as the
        columns, no rows, or numbers written with decimal commas or thousands separators.
    """
    head = text.slice(0, min(len(text), _SAMPLE_BYTES)).to_pybytes()
    end = head.find(b"\n") + 1 or len(head)
    if end == len(head) and len(text) > len(head):
        raise DataError(f"{path}: cannot be read as a table: its first line is too long.")
    try:
        first = head[:end].decode().strip("\r\n")
    except UnicodeDecodeError:
        raise DataError(
            f"{path}: cannot be read as a table: its first line is not UTF-8 text "
            f"({reprlib.repr(head[:end])}); convert it to UTF-8."
        ) from None
    sample = _sample(head[end:], len(text) == len(head))
    separator = _separator(path, first, sample, names)
    if separator != ",":
        notes.append(f"separated by {_SEPARATORS[separator]}")
    fields = [field.strip() for field in split(first, separator)]
    rows = [row for row in (split(line, separator) for line in sample) if len(row) == len(fields)]
    if names is None:
        columns, has_header = _header(path, first, fields, rows, notes), True
    else:
        columns, has_header = _named(path, first, fields, rows, names, notes)
    start = end if has_header else 0
    if len(text) == start:
        raise DataError(f"{path}: holds no events.")
    table, lines, bad = read_rows(text.slice(start), columns, separator, 1 + int(has_header))
    if has_header:
        table, lines, bad = _without_headers(table, fields, lines, bad)
    table = _without_unnamed(path, table, notes)
    table = cleaned(path, table, notes)
    return table, lines, sorted(bad)


def _sample(content: bytes, is_all: bool) -> list[str]:
    """Some lines after the first, as far as they are whole."""
    lines = content.decode(errors="replace").split("\n")
    lines = [line.rstrip("\r") for line in (lines if is_all else lines[:-1])]
    return [line for line in lines if line.strip()][:_SAMPLE_LINES]


def _separator(path: Path, first: str, sample: list[str], names: Sequence[str] | None) -> str:
    fields = {mark: [field.strip() for field in split(first, mark)] for mark in _SEPARATORS}
    if known := [mark for mark in _SEPARATORS if _KNOWN & set(fields[mark])]:
        return max(known, key=lambda mark: len(fields[mark]))
    found = [mark for mark in _SEPARATORS if len(fields[mark]) > 1]
    if names is not None and (right := [m for m in found if len(fields[m]) == len(names)]):
        found = right
    if len(found) < 2:
        return found[0] if found else ","
    steady = [m for m in found if all(len(split(line, m)) == len(fields[m]) for line in sample)]
    found = steady or found
    widest = max(len(fields[mark]) for mark in found)
    found = [mark for mark in found if len(fields[mark]) == widest]
    if len(found) > 1:
        marks = " or ".join(_SEPARATORS[mark] for mark in found)
        raise DataError(
            f"{path}: the first line may be separated by {marks}, got {reprlib.repr(first)}; "
            "separate the columns by one of them only."
        )
    return found[0]


def _header(
    path: Path, first: str, fields: list[str], rows: list[list[str]], notes: list[str]
) -> list[str]:
    """The names in the first line."""
    if _holds_values(fields, rows):
        shown = ", ".join(repr(reprlib.repr(field)[1:-1]) for field in fields[:4])
        more = ", ..." if len(fields) > 4 else ""
        raise DataError(
            f"{path}: the first line holds values, not names ({shown}{more}); {_REMEDY}."
        )
    names = list(fields)
    typed = [_TYPED.fullmatch(name) for name in names]
    if names and all(typed):
        names = [match[1] for match in typed if match]
        notes.append("types in the first line (user_id:token): left out")
    if names and not names[-1] and names[:-1] and all(not row[-1].strip() for row in rows):
        names[-1] = _LAST  # Every line ends in a separator, as `_without_unnamed` checks.
    if names and not names[0] and len(names) > 1:
        names[0] = UNNAMED  # As pandas writes an index.
    if not names or len(set(names)) != len(names) or not all(names):
        raise DataError(
            f"{path}: the first line must name the columns once each, got {reprlib.repr(first)}."
        )
    if len(names) == 1 and (parted := re.search(r"\s|::|:|\x01|~|\^", names[0])):
        raise DataError(
            f"{path}: the first line {reprlib.repr(first)} has none of the separators comma, tab, "
            f"semicolon and pipe; write one of them for {parted.group()!r}."
        )
    return names


def _holds_values(fields: list[str], rows: list[list[str]]) -> bool:
    """True if the first line does, as what stands below it tells."""
    filled = [at for at, field in enumerate(fields) if field]
    if not filled or _KNOWN & set(fields):
        return False
    values = [bool(_VALUE.fullmatch(fields[at])) for at in filled]
    if all(values):
        return True
    for at, is_value in zip(filled, values, strict=True):
        below = [row[at].strip() for row in rows]
        below = [value for value in below if value]
        if is_value and below and all(_VALUE.fullmatch(value) for value in below):
            return True
        # Repeated headers, as of files joined end to end, are no such repetition.
        if fields[at] in [row[at].strip() for row in rows if row != fields]:
            return True
    return False


def _named(
    path: Path,
    first: str,
    fields: list[str],
    rows: list[list[str]],
    names: Sequence[str],
    notes: list[str],
) -> tuple[list[str], bool]:
    """The given names, and whether the first line is a header."""
    names = list(names)
    if not all(names) or len(set(names)) != len(names):
        raise DataError(f"{path}: columns must be named once each, got {', '.join(names)}.")
    if len(fields) != len(names):
        raise DataError(
            f"{path}: {len(names)} names ({', '.join(names)}) for {len(fields)} columns; the first "
            f"line is {reprlib.repr(first)}."
        )
    if fields == names:
        return names, True
    moved = [name for at, name in enumerate(names) if name in fields and fields[at] != name]
    if moved:
        raise DataError(
            f"{path}: the first line already names column {moved[0]!r}, in another place than the "
            f"given names do ({', '.join(names)}); leave the names out, or name the columns in the "
            f"order of the file ({', '.join(fields)})."
        )
    is_value = lambda text: bool(_VALUE.fullmatch(text.strip()))
    below = [[row[at] for row in rows if row[at].strip()] for at in range(len(names))]
    if not any(map(is_value, fields)) and any(b and all(map(is_value, b)) for b in below):
        notes.append(
            f"the first line {reprlib.repr(first)} is a header: the given names replace it"
        )
        return names, True
    return names, False


def _without_headers(
    table: pa.Table, fields: list[str], lines: np.ndarray, bad: list[BadRow]
) -> tuple[pa.Table, np.ndarray, list[BadRow]]:
    """Files joined end to end bring their headers along, which are no events."""
    same = pc.fill_null(pc.equal(table.column(0), fields[0]), False)
    if not fields[0] or not pc.any(same, min_count=0).as_py():
        return table, lines, bad
    for column, field in zip(table.columns[1:], fields[1:], strict=True):
        same = pc.and_(
            same, pc.fill_null(pc.equal(pc.utf8_trim_whitespace(column), field), not field)
        )
    found = same.to_numpy()
    more = [BadRow(int(line), "repeats the header") for line in lines[found]]
    return table.filter(pc.invert(same)), lines[~found], bad + more


def _without_unnamed(path: Path, table: pa.Table, notes: list[str]) -> pa.Table:
    """Leaves out an index and an empty last column; raises DataError for others without a name."""
    if table.column_names[-1] == _LAST and table.column(-1).null_count == table.num_rows:
        notes.append("every line ends in a separator: the empty last column is left out")
        table = table.drop_columns([_LAST])
    table = without_index(table, notes)
    for name, what in ((UNNAMED, "first"), (_LAST, "last")):
        if name in table.column_names:
            raise DataError(
                f"{path}: the first line must name the columns once each; the {what} column has no "
                f"name{' and does not number the rows' if what == 'first' else ''}."
            )
    return table
