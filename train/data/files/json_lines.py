"""JSON Lines, and JSON that is one array of objects.

Numbers never pass through floats that were not written so: every whole number stays what it is.
"""

from collections.abc import Iterator
import json
from pathlib import Path
import reprlib
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import DataError
from .index import without_index
from .table import BadRow
from .unify import column_of, stacked

_ROWS_AT_ONCE = 2**16
_DECODER = json.JSONDecoder()
_SPACES = " \t\r\n"
_REMEDY = "write one object per line (pandas: to_json(FILE, orient='records', lines=True))"


def is_json(head: bytes) -> bool:
    """True if a text that begins so is JSON's objects, or an array of them."""
    start = head.lstrip()
    if start[:1] == b"[":
        return start[1:].lstrip()[:1] in (b"{", b"]")
    return start[:1] == b"{" and start[1:].lstrip()[:1] in (b'"', b"}")


def read_json(
    path: Path, text: pa.Buffer, notes: list[str]
) -> tuple[pa.Table, np.ndarray, list[BadRow]]:
    """A row for each object: native types, null where a key is missing.

    A column of mixed kinds (1 and "1") is text; nested values stay lists and structs.

    Raises:
      DataError: it is neither objects by the line nor an array of them, or holds none.
    """
    head = text.slice(0, min(len(text), 2**16)).to_pybytes()
    rows = _array(path, text) if head.lstrip().startswith(b"[") else _lines(text)
    names: dict[str, None] = {}
    blocks: list[list[dict[str, Any]]] = [[]]
    lines: list[int] = []
    bad: list[BadRow] = []
    parts: list[pa.Table] = []

    def put_away() -> None:
        held = blocks[0]
        columns = {name: column_of([row.get(name) for row in held]) for name in names}
        parts.append(pa.table(columns))
        blocks[0] = []

    for line, row in rows:
        if not isinstance(row, dict):
            bad.append(BadRow(line, str(row)))
            continue
        names |= dict.fromkeys(row)
        blocks[0].append(row)
        lines.append(line)
        if len(blocks[0]) == _ROWS_AT_ONCE:
            put_away()
    if not lines and bad:
        raise DataError(f"{path}: cannot be read as a table: {bad[0]}; {_REMEDY}.")
    if len(lines) == 1 and not bad:
        _require_row(path, blocks[0][0])
    if not lines and not bad:
        raise DataError(f"{path}: holds no events.")
    put_away()
    table = without_index(stacked(path, parts, list(names), notes), notes)
    return table, np.array(lines, np.int64), bad


class _NoRow(str):
    """Why there is no object."""


def _lines(text: pa.Buffer) -> Iterator[tuple[int, Any]]:
    """The number of each line that is not blank, and its object, or why it has none."""
    number, start = 1, 0
    letters = np.frombuffer(text, np.uint8)
    ends = np.append(np.flatnonzero(letters == 10), len(letters))
    view = memoryview(text)
    for number, end in enumerate(ends.tolist(), start=1):
        line = bytes(view[start:end]).strip()
        start = end + 1
        if line:
            yield number, _object(line)


def _object(line: bytes) -> Any:
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError:
        return _NoRow("is not UTF-8 text")
    except (ValueError, RecursionError) as error:
        return _NoRow(f"is not JSON ({_reason(error)}): {_shown(line)}")
    if isinstance(value, dict):
        return value
    return _NoRow(f"must be an object, got {reprlib.repr(value)}")


def _reason(error: BaseException) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at letter {error.colno}"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _shown(line: bytes) -> str:
    return reprlib.repr(line.decode(errors="replace"))


def _array(path: Path, text: pa.Buffer) -> Iterator[tuple[int, Any]]:
    """The same of the elements of one array."""
    try:
        content = text.to_pybytes().decode()
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 text at byte {error.start}"
        raise DataError(f"{path}: cannot be read as a table: {reason}.") from None
    at, line, counted = content.index("[") + 1, 1, 0

    def skip(at: int) -> int:
        while at < len(content) and content[at] in _SPACES:
            at += 1
        return at

    at = skip(at)
    is_first = True
    while content[at : at + 1] != "]":
        try:
            if not is_first:
                if content[at : at + 1] != ",":
                    raise json.JSONDecodeError("Expecting ',' or ']'", content, at)
                at = skip(at + 1)
            line += content.count("\n", counted, at)
            counted = at
            value, at = _DECODER.raw_decode(content, at)
        except (ValueError, RecursionError) as error:
            where = getattr(error, "lineno", line)
            reason = getattr(error, "msg", "") or str(error)
            raise DataError(
                f"{path}: cannot be read as a table: line {where}: is not JSON ({reason})."
            ) from error
        is_first = False
        is_row = isinstance(value, dict)
        yield line, value if is_row else f"must be an object, got {reprlib.repr(value)}"
        at = skip(at)
    if skip(at + 1) < len(content):
        raise DataError(f"{path}: more follows its array of objects; {_REMEDY}.")


def _require_row(path: Path, row: dict[str, Any]) -> None:
    """Refuses one object that holds the whole table."""
    values = list(row.values())
    if row and all(isinstance(value, dict | list) for value in values):
        shown = ", ".join(reprlib.repr(name) for name in list(row)[:5])
        raise DataError(f"{path}: one object of all data (keys {shown}); {_REMEDY}.")
