"""A file, a folder or a glob of files as one table, whatever their format."""

from collections.abc import Sequence
import glob
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow as pa

from ..errors import DataError
from .archives import (
    READ_ERRORS,
    is_file,
    name_of,
    one_line,
    open_counted,
    read_buffer,
    require_file,
)
from .cleaning import cleaned
from .columnar import MAGIC, read_columnar
from .delimited import read_delimited
from .json_lines import is_json, read_json
from .table import BadRow, RawTable
from .text import as_utf8, require_table
from .unify import stacked

_FORMATS = {
    **dict.fromkeys((".csv", ".tsv", ".txt"), "delimited text"),
    **dict.fromkeys((".parquet", ".pq"), "Parquet"),
    **dict.fromkeys((".feather", ".arrow", ".ipc"), "Arrow"),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "JSON"),
}
# Folders that these keep beside files of Parquet.
_TABLE_FORMATS = {"_delta_log": "Delta Lake", ".hoodie": "Apache Hudi"}
_HEAD_BYTES = 4096


def read_table(where: str | Path | RawTable, *, names: Sequence[str] | None = None) -> RawTable:
    """Reads a log as a table, its format told by its content and name.

    Delimited text (the separator is found among comma, tab, semicolon and pipe), JSON Lines (or
    one array of objects), Parquet, Feather and Arrow files; any of them compressed, or the member
    of an archive (`FILE.zip/MEMBER`). Text is UTF-8, or UTF-16 with a mark in front.

    Args:
      where: a file; a folder of files of one format (those of `key=value` folders get a column);
        or a glob. Several files are one table, in the order of their sorted paths. A table that
        has been read already is given back.
      names: of the columns of delimited text in order, where the first line does not hold them.

    Raises:
      DataError: no such file, one that holds no events, a damaged one, or one that is no table;
        files that do not have the same columns.
    """
    if isinstance(where, RawTable):
        if names is not None and list(names) != where.table.column_names:
            raise _named_already(Path(str(where)), "a table in memory", names)
        return where
    notes: list[str] = []
    paths = _files(where, notes)
    if len(paths) == 1 and Path(where) == paths[0]:
        return _read(paths[0], names, notes)
    notes.append(f"{len(paths)} files" if len(paths) > 1 else f"file {paths[0]}")
    root = _root(where)
    tables, lines, bad, parts = [], [], [], []
    for path in paths:
        name = str(path.relative_to(root))
        found: list[str] = []
        one = _read(path, names, found)
        notes += [note for note in found if note not in notes]
        tables.append(_with_folders(one.table, path, root))
        _require_same_columns(path, tables[0], tables[-1], paths[0])
        lines.append(one.lines)
        bad += [BadRow(row.line, f"{name}: {row.reason}") for row in one.bad]
        parts.append((name, one.table.num_rows))
    table = stacked(Path(where), tables, tables[0].column_names, notes)
    return RawTable(table, np.concatenate(lines), bad, notes, parts)


def _files(where: str | Path, notes: list[str]) -> list[Path]:
    """The files that are meant, sorted."""
    path = Path(where)
    try:
        if path.is_dir():
            return _files_below(path, notes)
        if is_file(path):
            return [path]
        if glob.has_magic(str(where)):
            found = sorted(Path(name) for name in glob.glob(str(where), recursive=True))
            below = (_files_below(one, notes) if one.is_dir() else [one] for one in found)
            if every := [file for some in below for file in some]:
                return every
    except OSError as error:  # e.g. a name that is too long
        raise DataError(f"{path}: cannot be read: {one_line(error)}") from error
    require_file(path)
    return [path]


def _files_below(folder: Path, notes: list[str]) -> list[Path]:
    """The files of a format that is read; not what begins with "_" or ".", as other tools do."""
    for log, what in _TABLE_FORMATS.items():
        if (folder / log).is_dir():
            raise DataError(
                f"{folder}: a table of {what}, some of whose files may be deleted rows; write it "
                "as plain Parquet files."
            )
    found: dict[str, list[Path]] = {}
    others: list[str] = []
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder).parts
        if path.is_file() and not any(part.startswith(("_", ".")) for part in inner):
            suffix = Path(name_of(path)).suffix.lower()
            if suffix in _FORMATS:
                found.setdefault(_FORMATS[suffix], []).append(path)
            else:
                others.append(path.name)
    if not found:
        kinds = ", ".join(_FORMATS)
        raise DataError(f"{folder}: not a file, and a folder without files of a log ({kinds}).")
    if len(found) > 1:
        seen = ", ".join(f"{paths[0].name} ({form})" for form, paths in found.items())
        raise DataError(
            f"{folder}: a folder of several formats ({seen}); name the files: '{folder}/*.csv'."
        )
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        notes.append(f"left out, of no known format: {', '.join(others[:3])}{more}")
    return next(iter(found.values()))


def _read(path: Path, names: Sequence[str] | None, notes: list[str]) -> RawTable:
    if path.is_file() and path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty.")
    try:
        with open_counted(path, notes) as (stream, _):
            head = stream.read(_HEAD_BYTES)
    except READ_ERRORS as error:
        raise DataError(f"{path}: cannot be read as a table: {one_line(error)}") from error
    suffix = Path(name_of(path)).suffix.lower()
    form = next((form for magic, form in MAGIC.items() if head.startswith(magic)), None)
    if form is not None:
        return _columnar(path, form, names, notes)
    if _FORMATS.get(suffix) in ("Parquet", "Arrow"):
        raise DataError(
            f"{path}: cannot be read as a table: its name ends in {suffix} but it is no "
            f"{_FORMATS[suffix]} file (it starts with {head[:8]!r})."
        )
    require_table(path, head)
    text = as_utf8(path, read_buffer(path), notes)
    start = text.slice(0, min(len(text), _HEAD_BYTES)).to_pybytes()
    if _FORMATS.get(suffix) == "JSON" or is_json(start):
        if _FORMATS.get(suffix) != "JSON":
            notes.append("JSON by its content")
        if names is not None:
            raise _named_already(path, "JSON", names)
        table, lines, bad = read_json(path, text, notes)
        table = cleaned(path, table, notes)
    else:
        table, lines, bad = read_delimited(path, text, names, notes)
    if not table.num_rows and not bad:
        raise DataError(f"{path}: holds no events.")
    return RawTable(table, lines, bad, notes, [(path.name, table.num_rows)])


def _columnar(path: Path, form: str, names: Sequence[str] | None, notes: list[str]) -> RawTable:
    packed = not path.is_file() or _is_packed(path)
    table = read_columnar(path, read_buffer(path) if packed else path, form, notes)
    table = cleaned(path, table, notes)
    if names is not None and list(names) != table.column_names:
        raise _named_already(path, "Parquet" if form == "parquet" else "Arrow", names)
    rows = table.num_rows
    return RawTable(table, np.arange(2, rows + 2), [], notes, [(path.name, rows)])


def _is_packed(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(8)
    return not any(head.startswith(magic) for magic in MAGIC)


def _named_already(path: Path, form: str, names: Sequence[str]) -> DataError:
    return DataError(
        f"{path}: {form} names its columns itself; names ({', '.join(names)}) are for text "
        "without a header."
    )


def _root(where: str | Path) -> Path:
    """The folder that a folder of files is, or that the fixed part of a glob names."""
    path = Path(where)
    while glob.has_magic(str(path)):
        path = path.parent
    return path


def _with_folders(table: pa.Table, path: Path, root: Path) -> pa.Table:
    """With a column of text for each folder `key=value` between the root and the file."""
    for part in path.relative_to(root).parts[:-1]:
        key, equals, value = part.partition("=")
        if equals and key and key not in table.column_names:
            text = None if value == "__HIVE_DEFAULT_PARTITION__" else unquote(value)
            table = table.append_column(key, pa.array([text] * table.num_rows, pa.string()))
    return table


def _require_same_columns(path: Path, first: pa.Table, other: pa.Table, of_first: Path) -> None:
    one, two = first.column_names, other.column_names
    if set(one) != set(two):
        more = ", ".join(sorted(set(two) - set(one)))
        less = ", ".join(sorted(set(one) - set(two)))
        told = "; ".join([f"has also {more}"] * bool(more) + [f"lacks {less}"] * bool(less))
        raise DataError(f"{path}: not the columns of {of_first.name}: {told}.")
