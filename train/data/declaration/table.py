"""A file of rows, read by a declaration of its columns: codes of users and items, and attributes.

What `events:` and `impressions:` files have in common. Nothing is guessed about a column that is
declared; what is guessed becomes part of the declaration, and is said.
"""

from collections.abc import Sequence
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from ..errors import DataError
from ..fields.encoding import ITEM_DIM, Attribute
from ..files import BadRow, RawTable, read_table
from ..files.lines import OnBadRow
from ..files.unify import stacked
from .clock import Clock, read_clock
from .columns import FEATURES, Column, Columns
from .guess import Events, codes_of, guess, named
from .presence import _REQUIRED, check_names, missing, present
from .values import is_list, read_values

pc: Any = pyarrow.compute  # its functions are made when it is imported

# Robust, since files mark what is missing by numbers far from all others.
STANDARD = "robust | clip(-5, 5)"
_DIMS = {"user": 8, "context": 4, "history": 4, "behavior": 4}
_REMEDY = " (--on-bad-row skip passes over it)"


@dataclasses.dataclass(frozen=True, eq=False)
class DeclaredTable:
    """The good rows of a file, and how they are read.

    Attributes:
      path: of the file, for messages.
      table: `n` rows, as the file has them.
      columns: the declaration, complete.
      user, item: (n,) int64 codes, in the order of the ids.
      user_ids, item_ids: Arrow arrays of what the codes stand for.
      clock: of the rows; without a time column their order.
      bad: rows that were skipped.
      notes: what people should know, a sentence each.
      parts: (n,) numbers that came with the rows, if any did.
      in_memory: whether it is a table in memory, and `path` its name.
    """

    path: Path
    table: pa.Table
    columns: Columns
    user: np.ndarray
    item: np.ndarray
    user_ids: pa.Array
    item_ids: pa.Array
    clock: Clock
    bad: list[BadRow]
    notes: list[str]
    parts: np.ndarray | None = None
    in_memory: bool = False

    @property
    def has_time(self) -> bool:
        """True if there is a time column; else the order of the rows is all that is known."""
        return self.columns.one("time") is not None

    def values(self, column: Column) -> pa.Array:
        """(n,) the values of a column, as declared."""
        try:
            return read_values(self.table[column.name].combine_chunks(), column).values
        except pa.ArrowException as error:
            reason = str(error).splitlines()[0]
            raise DataError(
                f"{self.path}: column {column.name!r} cannot be used: {reason}"
            ) from error

    def attribute(self, column: Column, values: pa.Array | None = None) -> Attribute:
        """A feature, or the behaviour, as an attribute; of all rows unless `values` are given."""
        dense = column.kind in ("number", "vector")
        transform = STANDARD if column.kind == "number" else "identity"
        return Attribute(
            name=column.field_name,
            values=self.values(column) if values is None else values,
            dim=column.dim or _DIMS.get(column.role, ITEM_DIM),
            transform=column.transform or transform if dense else "identity",
            width=column.width,
        )

    def attributes(self, role: str, per: str) -> tuple[Attribute, ...]:
        """The features of a role that are per "user", "item" or "event".

        Those per user or item have a value for each code: the first that is not null.
        """
        found = []
        for column in self.columns.of(role):
            if column.per != per:
                continue
            values = self.values(column)
            if per != "event":
                values = first_of(values, self.user if per == "user" else self.item)
            found.append(self.attribute(column, values))
        return tuple(found)

    def facts(self) -> dict[str, Any]:
        """For `Dataset.facts`."""
        facts: dict[str, Any] = {}
        if self.bad:
            facts |= {"rows skipped": len(self.bad), "first row skipped": str(self.bad[0])}
        left_out = [column.name for column in self.columns.of("ignored")]
        if left_out:
            facts["columns left out"] = ", ".join(left_out)
        return facts


def read_declared(
    where: str | Path,
    *,
    columns: Columns | None = None,
    names: Sequence[str] | None = None,
    on_bad_row: OnBadRow = "stop",
    known: Sequence[Column] = (),
    raw: RawTable | None = None,
    parts: np.ndarray | None = None,
) -> DeclaredTable:
    """Reads a file by `columns`; by a guess from its names and values without them.

    Args:
      where: a file, folder or glob; see `files.read_table`.
      columns: the declaration. Columns of the file that it does not name are left out, and said.
      names: of the columns, for text without a header.
      on_bad_row: "stop" at the first row that cannot be read; or "skip" such rows.
      known: columns that the source knows by name, beside those of every log; without `columns`.
      raw: the file's content, if it has been read.
      parts: (rows,) a number for each row of `raw`; those of good rows are kept.

    Raises:
      DataError: no such file, not a table, a missing column, a bad row, or no rows.
    """
    path = Path(where)
    raw = raw or read_table(where, names=names)
    notes, declared = list(raw.notes), columns is not None
    if columns is None:
        check_names(path, raw.table.column_names)
        try:
            by_name = named(raw.table)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        settled = [*known, *(c for c in by_name if c.name not in {k.name for k in known})]
    else:
        settled = list(present(path, raw.table, columns, notes))
    roles = {column.role: column for column in settled}
    for role in _REQUIRED:
        if role not in roles:
            if declared:
                raise DataError(f"{path}: the declaration has no column of role {role!r}.")
            raise DataError(missing(path, role, raw.table))
    ids = {}
    for role in _REQUIRED:
        column = roles[role]
        values = raw.table[column.name].combine_chunks()
        if is_list(values.type) or pa.types.is_nested(values.type):
            raise DataError(
                f"{path}: column {column.name!r} must hold one id per row, got {values.type}."
            )
        read = read_values(values, column)
        ids[role] = read.values
        if read.odd and declared:
            notes.append(_odd(column, read.odd))
    bad = BadValues(raw)
    for role in _REQUIRED:
        bad.add(ids[role].is_null(), lambda row, role=role: f"{roles[role].name} is missing")
    clock = None
    if "time" in roles:
        column = roles["time"]
        values = raw.table[column.name].combine_chunks()
        clock = read_clock(values.filter(pa.array(bad.usable)), column.unit)
        clock = _spread(clock, bad.usable)
        bad.add_rows(clock.bad)
        unit = dataclasses.replace(column, unit=clock.unit)
        if not declared and clock.note:
            notes.append(f"{column.name}: {clock.note}")
            unit = dataclasses.replace(unit, why=clock.note)
        settled = [unit if c.name == column.name else c for c in settled]
    partial = DeclaredTable(
        path=path,
        table=raw.table,
        columns=Columns(tuple(settled)),
        user=np.zeros(0, np.int64),
        item=np.zeros(0, np.int64),
        user_ids=ids["user_id"],
        item_ids=ids["item_id"],
        clock=clock or _order(raw.table.num_rows),
        bad=[],
        notes=notes,
        parts=parts,
        in_memory=raw.counted == "row",
    )
    table = _complete(partial, bad, declared)
    return _checked(table, bad, on_bad_row)


def read_parts(
    files: Sequence[str | RawTable], names: Sequence[str] | None
) -> tuple[RawTable, np.ndarray | None]:
    """The rows of one file; or of three, to train, validate and test on, and whose each row is.

    Files that have been read already are taken as they are.

    Raises:
      DataError: see `files.read_table`; a later file lacks a column of the first one.
    """
    tables = [read_table(file, names=names) for file in files]
    if len(tables) == 1:
        return tables[0], None
    order = tables[0].table.column_names
    for file, table in zip(files[1:], tables[1:], strict=True):
        lacks = set(order) - set(table.table.column_names)
        if lacks:
            raise DataError(f"{file}: lacks {', '.join(sorted(lacks))}, which {files[0]} has.")
    notes = [note for table in tables for note in table.notes]
    whole = stacked(
        Path(str(files[0])), [table.table.select(order) for table in tables], order, notes
    )
    sizes = [table.table.num_rows for table in tables]
    raw = RawTable(
        whole,
        np.concatenate([table.lines for table in tables]),
        [row for table in tables for row in table.bad],
        list(dict.fromkeys(notes)),
        list(zip(map(str, files), sizes, strict=True)),
        tables[0].counted,
    )
    return raw, np.repeat(np.arange(len(files), dtype=np.int8), sizes)


def _complete(table: DeclaredTable, bad: "BadValues", declared: bool) -> DeclaredTable:
    """Without the bad rows so far, with codes, and with every column declared."""
    kept = pa.array(bad.usable)
    user, user_ids = codes(table.user_ids.filter(kept))
    item, item_ids = codes(table.item_ids.filter(kept))
    rows = np.flatnonzero(bad.usable)
    clock = table.clock
    clock = clock._replace(seconds=clock.seconds[rows], bad={})
    good = table.table.filter(kept)
    columns = table.columns
    if not declared and len(rows):
        events = Events(user, item, clock.seconds)
        comparable = clock.has_clock or table.columns.one("time") is None
        try:
            columns = guess(good, events, list(columns), has_clock=comparable)
        except DataError as error:
            raise DataError(f"{table.path}: {error}") from error
    done = dataclasses.replace(
        table,
        table=good,
        columns=columns,
        user=user,
        item=item,
        user_ids=user_ids,
        item_ids=item_ids,
        clock=clock,
        parts=None if table.parts is None else table.parts[rows],
    )
    endless, notes = np.zeros(len(rows), bool), []
    for column in columns:
        if column.role not in FEATURES:
            continue
        read = read_values(good[column.name].combine_chunks(), column)
        endless |= read.endless
        for at in np.flatnonzero(read.endless):
            value = good[column.name][int(at)].as_py()
            reason = f"{column.name} must be a number within float32, got {value}"
            bad.add_row(int(rows[at]), reason)
        if read.odd and declared:
            notes.append(_odd(column, read.odd))
        if declared or column.why == "name":
            notes += _unlike_declared(column, read.values, done)
    if endless.any():
        return _complete(table, bad, declared)
    table.notes.extend(notes)
    return done


def _unlike_declared(column: Column, values: pa.Array, table: DeclaredTable) -> list[str]:
    """What a column that nobody guessed from its values holds, unlike what it is said to be."""
    if len(values) and values.null_count == len(values):
        return [f"column {column.name!r}: no value at all"]
    if column.per not in ("user", "item"):
        return []
    owner, code = getattr(table, column.per), codes_of(values)
    there = code >= 0
    owner, code = owner[there], code[there]
    first = np.zeros(int(owner.max(initial=-1)) + 1, np.int64)
    first[owner[::-1]] = code[::-1]
    count = len(np.unique(owner[first[owner] != code]))
    if not count:
        return []
    who = f"1 {column.per} has" if count == 1 else f"{count} {column.per}s have"
    return [
        f"column {column.name!r}: {who} several values: the first one is read "
        '("per": "event" reads each as of its event)'
    ]


def _odd(column: Column, count: int) -> str:
    values = f"{count} value{'s' if count > 1 else ''}"
    what = {
        "id": f"no {'truth value' if column.value == 'bool' else 'whole number'}: unknown ids",
        "bag": "not what its ids are: unknown",
        "number": "no number: missing",
        "vector": f"no vector of {column.width} numbers: missing",
    }
    return f"column {column.name!r}: {values} {what[column.kind]}"


def _checked(table: DeclaredTable, bad: "BadValues", on_bad_row: OnBadRow) -> DeclaredTable:
    found = sorted(bad.found)
    if found and (on_bad_row == "stop" or not table.table.num_rows):
        # Where no row is good, nothing is left to pass on to.
        remedy = _REMEDY if table.table.num_rows else ""
        others = len(found) - 1
        more = f"; and {others} more bad row{'s' if others > 1 else ''}" if others else ""
        raise DataError(f"{table.path}: {found[0]}{remedy}{more}.")
    if not table.table.num_rows:
        raise DataError(f"{table.path}: holds no events.")
    return dataclasses.replace(table, bad=found)


class BadValues:
    """Rows that cannot be used, of a file that has been read."""

    def __init__(self, raw: RawTable):
        self._raw, self.found = raw, list(raw.bad)
        blank = np.ones(raw.table.num_rows, bool)
        for name in raw.table.column_names:
            blank &= np.asarray(raw.table[name].is_null())
        self.usable = ~blank

    def add(self, mask: Any, reason: Any) -> None:
        """The usable rows where `mask` is true, each for `reason(row)`."""
        for row in np.flatnonzero(np.asarray(mask) & self.usable):
            self.add_row(int(row), reason(int(row)))

    def add_rows(self, reasons: dict[int, str]) -> None:
        """These usable rows."""
        for row, reason in reasons.items():
            self.add_row(row, reason)

    def add_row(self, row: int, reason: str) -> None:
        """One row, unless it is out already."""
        if self.usable[row]:
            self.found.append(self._raw.bad_row(row, reason))
            self.usable[row] = False


def _spread(clock: Clock, usable: np.ndarray) -> Clock:
    """The clock of all rows, from that of the usable ones."""
    rows = np.flatnonzero(usable)
    seconds = np.zeros(len(usable), np.int64)
    seconds[rows] = clock.seconds
    bad = {int(rows[row]): reason for row, reason in clock.bad.items()}
    return clock._replace(seconds=seconds, bad=bad)


def _order(rows: int) -> Clock:
    return Clock(np.arange(rows, dtype=np.int64), {}, "order", False, "")


def codes(values: pa.Array) -> tuple[np.ndarray, pa.Array]:
    """The place of each value among all distinct ones, sorted, and these.

    So the order of the rows does not matter, nor what else the file holds.
    """
    coded = values.dictionary_encode()
    order = pc.array_sort_indices(coded.dictionary).to_numpy()
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    code = coded.indices.to_numpy(zero_copy_only=False)
    return rank[code] if len(order) else np.zeros(0, np.int64), coded.dictionary.take(order)


def first_of(values: pa.Array, owner: np.ndarray) -> pa.Array:
    """Each owner's first value that is not null, if any; owners are 0, 1, 2, ... ."""
    order = np.lexsort((values.is_null().to_numpy(zero_copy_only=False), owner))
    _, first = np.unique(owner[order], return_index=True)
    return values.take(pa.array(order[first]))
