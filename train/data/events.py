"""`events:FILE`: any log of interactions as CSV (optionally gzipped) or Parquet.

Columns: `user_id`, `item_id`; optionally `category_id`, `timestamp` (whole seconds; without it
the file's order is the time), `behavior`. A column `context_NAME` was known before the event (its
scene, the hour) and is the field NAME of the request's context. Every further column is an
attribute of the item if each item has one value of it, else of the user if each user has one, and
is otherwise left out: what differs from event to event may well be their outcome. Lists of numbers
(in Parquet) are vectors, and left as they are.

Columns of numbers with a fraction are dense (standardised by what training sees, and clipped), all
others are ids (and so are the known columns). Text that is all whole numbers is read as numbers,
unless one has leading zeros. Metrics are broken down by the fields `scene` and `segment`.
"""

import codecs
import csv
import dataclasses
import gzip
import io
from pathlib import Path
import reprlib
from typing import Any, NamedTuple
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet

from ...zoo.features import RowMap
from . import interactions
from .arrow_buffers import reader_of
from .dataset import Dataset
from .errors import DataError
from .event_columns import (
    as_id,
    as_typed,
    as_vector,
    codes,
    constant_within,
    first_of,
    is_fraction,
    is_vector,
)
from .interactions import Attribute, Interactions
from .lines import OnBadRow

pc: Any = pyarrow.compute  # its functions are made when it is imported

_REQUIRED = ("user_id", "item_id")
_KNOWN = (*_REQUIRED, "category_id", "timestamp", "behavior")
_FIELDS = {"item_id": "item", "category_id": "category"}
_RESERVED = ("time", "history")
_CONTEXT = "context_"
_STANDARD = "zscore | clip(-5, 5)"
_SECONDS = r"^-?\d{1,18}$"


def load(
    path: str | Path,
    *,
    max_train_per_user: int = 20,
    on_bad_row: OnBadRow = "stop",
    row_maps: dict[str, RowMap] | None = None,
    transforms: dict[str, str] | None = None,
) -> Dataset:
    """Reads a file of events and splits it by the protocol of `interactions`.

    Args:
      path: a `.csv`, `.csv.gz` or `.parquet` file.
      max_train_per_user: newest training targets per user.
      on_bad_row: "stop" at the first row that cannot be read, naming its line; or "skip" such
        rows and count them in `facts`.
      row_maps, transforms: of an earlier run; see `interactions.build`.

    Raises:
      DataError: no such file, not a table, a missing column, a bad row, or too few events.
    """
    path = Path(path)
    table, lines, bad = _read(path)
    _check_columns(path, table.column_names)
    table, more = _without_bad_rows(table, lines)
    bad = sorted(bad + more)
    if bad and on_bad_row == "stop":
        raise DataError(
            f"{path}: line {bad[0].line}: {bad[0].reason} (--on-bad-row skip passes over it)."
        )
    if table.num_rows == 0:
        raise DataError(f"{path}: holds no events{f' ({bad[0]})' if bad else ''}.")
    raw, left_out = _interactions(path, table)
    dataset = interactions.build(
        f"events:{path.name}",
        raw,
        max_train_per_user=max_train_per_user,
        row_maps=row_maps,
        transforms=transforms,
    )
    facts = dict(dataset.facts)
    if bad:
        facts |= {"rows skipped": len(bad), "first row skipped": str(bad[0])}
    if left_out:
        facts["columns left out"] = ", ".join(left_out)
    return dataclasses.replace(dataset, facts=facts)


class _BadRow(NamedTuple):
    """A row that cannot be used. Lines count from 1, the header."""

    line: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


def _read(path: Path) -> tuple[pa.Table, np.ndarray, list[_BadRow]]:
    """The file as a table (text columns for CSV), the line of each row, and the rows left out."""
    if not path.is_file():
        raise DataError(f"{path}: {'not a file' if path.exists() else 'no such file'}.")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty.")
    try:
        if path.suffix in (".parquet", ".pq"):
            table = _plain(pyarrow.parquet.read_table(path))
            return table, np.arange(2, table.num_rows + 2), []
        return _read_csv(path)
    except (pa.ArrowException, OSError, EOFError, UnicodeError, csv.Error, zlib.error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: cannot be read as a table: {reason}") from error


def _plain(table: pa.Table) -> pa.Table:
    """The same table, whichever of Arrow's types for text its writer chose."""
    columns = []
    for column in table.columns:
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
            column = column.cast(pa.string())
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.timestamp("s", column.type.tz), safe=False).cast(pa.int64())
        if pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
            column = column.cast(pa.float64())
            column = pc.if_else(pc.is_nan(column), pa.scalar(None, pa.float64()), column)
        columns.append(column)
    return pa.table(columns, names=table.column_names)


def _check_columns(path: Path, names: list[str]) -> None:
    found = ", ".join(names)
    for name in sorted(set(names)):
        if names.count(name) > 1:
            raise DataError(f"{path}: column {name!r} appears twice; found {found}.")
    for column in _REQUIRED:
        if column not in names:
            raise DataError(f"{path}: column {column!r} is missing; found {found}.")
    fields = {name: _FIELDS.get(name, name.removeprefix(_CONTEXT)) for name in names}
    for name, field in fields.items():
        # Every field has a table of its own; a request's record has names of its own.
        other = next((n for n in names if n != name and fields[n] == field), None)
        if other or field in _RESERVED:
            taken = repr(max(name, other)) if other else "the request itself"
            name = min(name, other) if other else name
            raise DataError(f"{path}: column {name!r} must be renamed: {taken} takes its name.")
        if not field:
            raise DataError(f"{path}: column {name!r} must be renamed: it names no field.")


def _read_csv(path: Path) -> tuple[pa.Table, np.ndarray, list[_BadRow]]:
    """Every column as text, so that a bad number is reported with its line."""
    with _open(path) as file:
        header = file.readline().decode("utf-8-sig").strip()
        is_all = not file.read(1)
    names = [name.strip() for name in next(csv.reader([header]), [])]
    if not names or len(set(names)) != len(names) or not all(names):
        shown = reprlib.repr(header)
        raise DataError(f"{path}: the first line must name the columns once each, got {shown}.")
    if is_all:
        raise DataError(f"{path}: holds no events.")
    source, broken = (path, []) if _is_text(path) else _blank_what_is_no_text(path)
    bad: list[_BadRow] = []

    def on_wrong_width(row: Any) -> str:
        reason = f"has {row.actual_columns} values, expected {row.expected_columns}"
        bad.append(_BadRow(row.number, reason))
        return "skip"

    table = pyarrow.csv.read_csv(
        source,
        # One thread, and empty lines kept, or rows would have no line numbers.
        read_options=pyarrow.csv.ReadOptions(use_threads=False, skip_rows=1, column_names=names),
        parse_options=pyarrow.csv.ParseOptions(
            invalid_row_handler=on_wrong_width, ignore_empty_lines=False
        ),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types={name: pa.string() for name in names},
            strings_can_be_null=True,
            null_values=["", "nan", "NaN"],
        ),
    )
    every = np.arange(2, table.num_rows + len(bad) + 2)
    lines = np.setdiff1d(every, [row.line for row in bad])
    return table, lines, bad + broken


def _open(path: Path) -> Any:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _is_text(path: Path) -> bool:
    """Whether all of the file is UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with _open(path) as file:
            while block := file.read(2**20):
                decoder.decode(block)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _blank_what_is_no_text(path: Path) -> tuple[pa.BufferReader, list[_BadRow]]:
    """The file's content with empty lines in place of those that are not UTF-8."""
    clean, broken = io.BytesIO(), []
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                broken.append(_BadRow(number, "is not UTF-8 text"))
                line = b"\n"
            clean.write(line)
    return reader_of(clean.getbuffer()), broken


def _without_bad_rows(table: pa.Table, lines: np.ndarray) -> tuple[pa.Table, list[_BadRow]]:
    """Drops rows without ids, with a broken timestamp or an endless number, and blank lines."""
    flags = lambda mask: mask.to_numpy()
    blank = np.ones(table.num_rows, bool)
    for name in table.column_names:
        blank &= flags(pc.is_null(table[name]))
    usable = ~blank
    bad: list[_BadRow] = []

    def reject(rows: np.ndarray, reason: Any) -> None:
        for row in np.flatnonzero(rows & usable):
            bad.append(_BadRow(int(lines[row]), reason(row)))
        usable[rows] = False

    for name in _REQUIRED:
        missing = lambda row, name=name: f"{name} is missing"
        reject(flags(pc.is_null(table[name])), missing)
    if "timestamp" in table.column_names:
        column = table["timestamp"]
        if pa.types.is_string(column.type):
            fine = pc.fill_null(pc.match_substring_regex(column, _SECONDS), False)
        else:
            fine = pc.and_(pc.is_valid(column), pa.types.is_integer(column.type))
        shown = lambda row: reprlib.repr(column[row].as_py())
        not_whole = lambda row: f"timestamp must be whole seconds, got {shown(row)}"
        reject(~flags(fine), not_whole)
    for name in [name for name in table.column_names if name not in _KNOWN]:
        column = table[name]
        if is_fraction(column):
            column = column.cast(pa.float64())
        if pa.types.is_floating(column.type):
            endless = pc.greater(pc.abs(column), float(np.finfo(np.float32).max))
            shown = lambda row, name=name, column=column: (
                f"{name} must be a number within float32, got {column[row].as_py()}"
            )
            reject(flags(pc.fill_null(endless, False)), shown)
    return table.filter(pa.array(usable)), bad


def _interactions(path: Path, table: pa.Table) -> tuple[Interactions, list[str]]:
    """The events, and the names of the columns that none of their fields holds."""

    def column(name: str, read: Any) -> pa.Array:
        try:
            return read(table[name].combine_chunks())
        except pa.ArrowException as error:
            reason = str(error).splitlines()[0]
            raise DataError(f"{path}: column {name!r} cannot be used: {reason}") from error

    user, _ = codes(column("user_id", as_id))
    item, item_ids = codes(column("item_id", as_id))
    has_clock = "timestamp" in table.column_names
    time = np.arange(table.num_rows, dtype=np.int64)
    if has_clock:
        time = column("timestamp", lambda values: values.cast(pa.int64())).to_numpy()
    items: list[Attribute] = []
    users: list[Attribute] = []
    events: list[Attribute] = []
    context: list[Attribute] = []
    left_out: list[str] = []
    for name in table.column_names:
        if name == "behavior":
            events.append(Attribute(name=name, values=column(name, as_id), dim=4))
        elif name == "category_id":
            items.append(Attribute(name="category", values=first_of(column(name, as_id), item)))
        elif name in _KNOWN:
            continue
        elif pa.types.is_nested(table[name].type) and not is_vector(table[name].type):
            left_out.append(name)
        else:
            vector = is_vector(table[name].type)
            values = column(name, as_vector if vector else as_typed)
            transform = "identity" if vector else _STANDARD
            if name.startswith(_CONTEXT):
                short = name.removeprefix(_CONTEXT)
                context.append(Attribute(name=short, values=values, dim=4, transform=transform))
            elif constant_within(values, item):
                items.append(
                    Attribute(name=name, values=first_of(values, item), transform=transform)
                )
            elif constant_within(values, user):
                users.append(
                    Attribute(name=name, values=first_of(values, user), dim=8, transform=transform)
                )
            else:
                left_out.append(name)
    raw = Interactions(
        user=user,
        item=item,
        time=time,
        item_ids=item_ids,
        items=tuple(items),
        users=tuple(users),
        events=tuple(events),
        context=tuple(context),
        has_clock=has_clock and _looks_like_seconds(time),
    )
    return raw, left_out


def _looks_like_seconds(time: np.ndarray) -> bool:
    """Timestamps that only number the events (0, 1, 2, ...) tell an order, not a time.

    Seconds since 1970 of any real log lie far above; a year of them is 3e7.
    """
    return bool(time.max(initial=0) - time.min(initial=0) >= 86_400)
