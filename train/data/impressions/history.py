"""The past of users: a second file of events, which shares its ids and columns with impressions."""

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from ..declaration.columns import Column, Columns
from ..declaration.guess import codes_of
from ..declaration.table import DeclaredTable, codes, first_of, read_declared
from ..declaration.values import read_values
from ..errors import DataError
from ..fields.encoding import Attribute
from ..files import RawTable
from ..files.lines import OnBadRow
from ..protocol import repeats
from .columns import LABEL, WEIGHT

pc: Any = pyarrow.compute  # its functions are made when it is imported


def read_history(
    file: str,
    raw: RawTable,
    table: DeclaredTable,
    columns: Columns | None,
    on_bad_row: OnBadRow,
) -> DeclaredTable:
    """A file of past events, whose ids and shared columns are read as those of impressions are."""
    there = raw.table.column_names
    settled = columns or [c for c in table.columns if c.role not in ("time", "history")]
    known = [
        c
        for c in settled
        if c.name in there and c.role not in (LABEL, WEIGHT, "position", "request", "context")
    ]
    history = read_declared(file, on_bad_row=on_bad_row, known=known, raw=raw)
    for one, other in ((table, file), (history, table.path)):
        if not one.has_time:
            raise DataError(
                f"{one.path}: needs a timestamp: what is a history at the time of a request of "
                f"the other file ({other}) cannot be told without."
            )
    if history.clock.has_clock != table.clock.has_clock:
        raise DataError(
            f"{file}: its times cannot be compared with those of {table.path}: only one of the two "
            "holds seconds since 1970."
        )
    return history


def of_users(history: DeclaredTable, table: DeclaredTable) -> tuple[DeclaredTable, int]:
    """The events of users that have requests, by the users' codes there; how many others have."""
    at = pc.index_in(history.user_ids, table.user_ids).fill_null(-1)
    user = at.to_numpy(zero_copy_only=False)[history.user].astype(np.int64)
    history = filtered(dataclasses.replace(history, user=user), user >= 0)
    return history, int(np.count_nonzero(user < 0))


def filtered(table: DeclaredTable, kept: np.ndarray) -> DeclaredTable:
    """Some of the rows; codes stay what they are."""
    if kept.all():
        return table
    return dataclasses.replace(
        table,
        table=table.table.filter(pa.array(kept)),
        user=table.user[kept],
        item=table.item[kept],
        clock=table.clock._replace(seconds=table.clock.seconds[kept]),
        parts=None if table.parts is None else table.parts[kept],
    )


def without_copies(table: DeclaredTable, drop: bool) -> tuple[DeclaredTable, int]:
    """Without the rows that say what one before them says, and how many these are."""
    if not drop:
        return table, 0
    keys = [table.user, table.item]
    if table.has_time:
        keys.append(table.clock.seconds)
    order = np.lexsort(keys)
    same = np.ones(len(order), bool)
    for key in keys:
        same[1:] &= key[order[1:]] == key[order[:-1]]
    same[:1] = False
    some = np.sort(order[same | np.append(same[1:], False)])
    taken = pa.array(some)
    more = [
        codes_of(table.table[column.name].combine_chunks().take(taken))
        for column in table.columns
        if column.role not in ("ignored", "user_id", "item_id", "time")
    ]
    kept = np.ones(len(order), bool)
    kept[some] = ~repeats(*(key[some] for key in keys), *more)
    return filtered(table, kept), int(np.count_nonzero(~kept))


def catalogue(
    table: DeclaredTable, history: DeclaredTable | None
) -> tuple[np.ndarray, np.ndarray, pa.Array]:
    """Codes of the items of both files, and the ids of all, sorted."""
    if history is None:
        return table.item, np.zeros(0, np.int64), table.item_ids
    used = np.unique(history.item)
    both, ids = codes(pa.concat_arrays([table.item_ids, history.item_ids.take(pa.array(used))]))
    size = len(table.item_ids)
    return both[:size][table.item], both[size:][np.searchsorted(used, history.item)], ids


class Shared:
    """The attributes of two files that speak of the same items and users."""

    def __init__(
        self,
        table: DeclaredTable,
        history: DeclaredTable | None,
        item: np.ndarray,
        past_item: np.ndarray,
    ):
        self._table, self._history = table, history
        past_user = np.zeros(0, np.int64) if history is None else history.user
        self._owners = {
            "item": np.concatenate([item, past_item]),
            "user": np.concatenate([table.user, past_user]),
        }

    def in_both(self, column: Column) -> bool:
        """True if past events have a column of the impressions."""
        if self._history is None:
            return True
        other = self._history.columns.get(column.name)
        return other is not None and (other.role, other.per) == (column.role, column.per)

    def of_owners(self, role: str) -> tuple[Attribute, ...]:
        """What never changes of items or of users, in whichever file it stands."""
        return tuple(
            table.attribute(column, first_of(values, self._owners[role]))
            for table, column, values in self._columns(role, role)
        )

    def changing_items(self) -> tuple[Attribute, ...]:
        """What items have from row to row, in both files."""
        return tuple(
            table.attribute(column, values)
            for table, column, values in self._columns("item", "event")
            if table is self._table and self.in_both(column)
        )

    def events(self) -> tuple[Attribute, ...]:
        """What is known of past events only: their behaviour, and what came of them."""
        found = []
        for role, per in (("behavior", None), ("history", "event"), ("item", "event")):
            for table, column, values in self._columns(role, per):
                if table is self._table and (role == "item" or not self.in_both(column)):
                    continue  # The candidate's too, or of no past event.
                if role == "behavior":
                    column = dataclasses.replace(column, dim=column.dim or 4, field="behavior")
                found.append(table.attribute(column, values))
        return tuple(found)

    def _columns(self, role: str, per: str | None) -> list[tuple[DeclaredTable, Column, pa.Array]]:
        """The columns of a role, each with its values in the rows of both files."""
        found = []
        sizes = [0 if t is None else len(t.user) for t in (self._table, self._history)]
        for column in self._table.columns.of(role):
            if column.per == per:
                values = self._table.values(column)
                rest = pa.nulls(sizes[1], values.type)
                if self._history is not None and self.in_both(column):
                    rest = read_values(
                        self._history.table[column.name].combine_chunks(), column
                    ).values.cast(values.type)
                found.append((self._table, column, pa.concat_arrays([values, rest])))
        if self._history is None:
            return found
        for column in self._history.columns.of(role):
            mine = self._table.columns.get(column.name)
            if column.per == per and (mine is None or (mine.role, mine.per) != (role, per)):
                values = self._history.values(column)
                before = pa.nulls(sizes[0], values.type)
                found.append((self._history, column, pa.concat_arrays([before, values])))
        return found


def all_columns(table: DeclaredTable, history: DeclaredTable | None) -> Columns:
    """The declaration of both files."""
    more = [] if history is None else [c for c in history.columns if not table.columns.get(c.name)]
    return Columns((*table.columns, *more))
