"""`events:FILE`: any log of interactions as CSV (optionally gzipped) or Parquet.

Columns: `user_id`, `item_id`; optionally `category_id`, `timestamp` (whole seconds; without it
the file's order is the time), `behavior`. Every further column is an attribute of the item if
each item has one value of it, else of the user if each user has one, and is otherwise left out.
Columns of numbers with a fraction are dense, all others are ids.
"""

import csv
import dataclasses
import gzip
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from ...zoo.features import RowMap
from . import interactions
from .dataset import Dataset
from .errors import DataError
from .interactions import Attribute, Interactions

OnBadRow = Literal["stop", "skip"]

_REQUIRED = ("user_id", "item_id")
_KNOWN = (*_REQUIRED, "category_id", "timestamp", "behavior")
_INTEGER = r"^[+-]?\d{1,18}$"
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"


def load(
    path: str | Path,
    *,
    max_train_per_user: int = 20,
    on_bad_row: OnBadRow = "stop",
    row_maps: dict[str, RowMap] | None = None,
) -> Dataset:
    """Reads a file of events and splits it by the protocol of `interactions`.

    Args:
      path: a `.csv`, `.csv.gz` or `.parquet` file.
      max_train_per_user: newest training targets per user.
      on_bad_row: "stop" at the first row that cannot be read, naming its line; or "skip" such
        rows and count them in `facts`.
      row_maps: vocabularies of an earlier run; see `interactions.build`.

    Raises:
      DataError: no such file, not a table, a missing column, a bad row, or too few events.
    """
    path = Path(path)
    table, bad = _read(path)
    for column in _REQUIRED:
        if column not in table.column_names:
            found = ", ".join(table.column_names)
            raise DataError(f"{path}: column {column!r} is missing; found {found}.")
    table, more = _without_bad_rows(table, bad)
    bad = sorted(bad + more)
    if bad and on_bad_row == "stop":
        raise DataError(
            f"{path}: line {bad[0].line}: {bad[0].reason} (--on-bad-row skip passes over it)."
        )
    if table.num_rows == 0:
        raise DataError(f"{path}: holds no events.")
    dataset = interactions.build(
        f"events:{path.name}",
        _interactions(table),
        max_train_per_user=max_train_per_user,
        row_maps=row_maps,
    )
    if bad:
        facts = {**dataset.facts, "rows skipped": len(bad), "first row skipped": str(bad[0])}
        dataset = dataclasses.replace(dataset, facts=facts)
    return dataset


class _BadRow(NamedTuple):
    """A row that cannot be used. Lines count from 1, the header."""

    line: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


def _read(path: Path) -> tuple[pa.Table, list[_BadRow]]:
    """The file as a table, text columns for CSV, and the rows of the wrong width."""
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty.")
    try:
        if path.suffix in (".parquet", ".pq"):
            return pyarrow.parquet.read_table(path), []
        return _read_csv(path)
    except (pa.ArrowInvalid, OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: cannot be read as a table: {reason}") from error


def _read_csv(path: Path) -> tuple[pa.Table, list[_BadRow]]:
    """Every column as text, so that a bad number is reported with its line."""
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        header = file.readline().decode("utf-8-sig").strip()
    names = next(csv.reader([header]), [])
    if len(set(names)) != len(names) or not all(names):
        raise DataError(f"{path}: the first line must name the columns once each, got {header!r}.")
    bad: list[_BadRow] = []

    def on_wrong_width(row: Any) -> str:
        reason = f"has {row.actual_columns} values, expected {row.expected_columns}"
        bad.append(_BadRow(row.number, reason))
        return "skip"

    table = pyarrow.csv.read_csv(
        path,
        # One thread, and empty lines kept, or rows would have no line numbers.
        read_options=pyarrow.csv.ReadOptions(use_threads=False),
        parse_options=pyarrow.csv.ParseOptions(
            invalid_row_handler=on_wrong_width, ignore_empty_lines=False
        ),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types={name: pa.string() for name in names},
            strings_can_be_null=True,
            null_values=[""],
        ),
    )
    return table, bad


def _without_bad_rows(table: pa.Table, known: list[_BadRow]) -> tuple[pa.Table, list[_BadRow]]:
    """Drops rows whose ids are missing or whose timestamp is no whole number, and blank lines."""
    every = np.arange(2, table.num_rows + len(known) + 2)
    lines = np.setdiff1d(every, [row.line for row in known])
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
            fine = pc.fill_null(pc.match_substring_regex(column, _INTEGER), False)
        else:
            fine = pc.and_(pc.is_valid(column), pa.types.is_integer(column.type))
        not_whole = lambda row: f"timestamp must be whole seconds, got {column[row].as_py()!r}"
        reject(~flags(fine), not_whole)
    return table.filter(pa.array(usable)), bad


def _interactions(table: pa.Table) -> Interactions:
    user, users = _codes(table["user_id"])
    item, item_ids = _codes(_typed(table["item_id"]))
    has_clock = "timestamp" in table.column_names
    time = (
        table["timestamp"].cast(pa.int64()).to_numpy()
        if has_clock
        else np.arange(table.num_rows, dtype=np.int64)
    )
    items: list[Attribute] = []
    user_attributes: list[Attribute] = []
    events: list[Attribute] = []
    for name in table.column_names:
        column = table[name]
        if name == "behavior":
            events.append(Attribute(name=name, values=_typed(column), dim=4))
        elif name == "category_id":
            items.append(Attribute(name="category", values=_first(_typed(column), item)))
        elif name not in _KNOWN:
            values = _typed(column)
            if _constant_within(values, item):
                items.append(Attribute(name=name, values=_first(values, item)))
            elif _constant_within(values, user):
                user_attributes.append(Attribute(name=name, values=_first(values, user), dim=8))
    del users
    return Interactions(
        user=user,
        item=item,
        time=time,
        item_ids=item_ids,
        items=tuple(items),
        users=tuple(user_attributes),
        events=tuple(events),
        has_clock=has_clock and _looks_like_seconds(time),
    )


def _looks_like_seconds(time: np.ndarray) -> bool:
    """Timestamps that only number the events (0, 1, 2, ...) tell an order, not a time.

    Seconds since 1970 of any real log lie far above; a year of them is 3e7.
    """
    return bool(time.max(initial=0) - time.min(initial=0) >= 86_400)


def _typed(column: pa.ChunkedArray) -> pa.Array:
    """Text that is all integers as int64, all numbers as float64; anything else as it is."""
    values = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if not pa.types.is_string(values.type):
        if pa.types.is_integer(values.type):
            return values.cast(pa.int64())
        return values.cast(pa.float64()) if pa.types.is_floating(values.type) else values
    for pattern, kind in ((_INTEGER, pa.int64()), (_NUMBER, pa.float64())):
        if pc.all(pc.match_substring_regex(values, pattern), min_count=0).as_py():
            return values.cast(kind)
    return values


def _codes(column: Any) -> tuple[np.ndarray, pa.Array]:
    """Integers in order of first appearance, and the values that they stand for."""
    values = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    coded = values.dictionary_encode()
    return coded.indices.to_numpy().astype(np.int64), coded.dictionary


def _first(values: pa.Array, owner: np.ndarray) -> pa.Array:
    """Each owner's first value; owners are 0, 1, 2, ... in order of first appearance."""
    _, first = np.unique(owner, return_index=True)
    return values.take(pa.array(first))


def _constant_within(values: pa.Array, owner: np.ndarray) -> bool:
    return bool(
        pc.fill_null(pc.equal(values, _first(values, owner).take(pa.array(owner))), True)
        .to_numpy(zero_copy_only=False)
        .all()
    )
