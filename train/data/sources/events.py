"""`events:FILE`: any log of interactions, as CSV, TSV, JSON Lines, Parquet or Feather.

A row is something that a user did with an item. Columns: `user_id`, `item_id`; optionally
`category_id`, `timestamp` (seconds, milliseconds, ... since 1970, dates or ISO texts; without it
the rows' order is the time), `behavior` and `rating`. A column `context_NAME` was known before the
event (its scene, the hour) and is the field NAME of the request's context. What every further
column is is guessed from its values, and said: see `declaration.guess`. A declaration (`Columns`,
or `--columns FILE`) decides instead, here and for files of other days; every run writes one.

Numbers with a fraction are dense (standardised by what training sees, and clipped); whole numbers
and text are ids, lists of them (or `a|b`) bags, lists of numbers vectors. Metrics are broken down
by the fields `scene` and `segment`.
"""

from collections.abc import Sequence
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from ....zoo.features import RowMap
from .. import interactions
from ..dataset import Dataset
from ..declaration.columns import Columns
from ..declaration.guess import codes_of
from ..declaration.table import DeclaredTable, read_declared, read_parts
from ..declaration.values import as_numbers, read_values
from ..errors import DataError
from ..files import InMemory, RawTable, Where, read_table
from ..files.lines import OnBadRow
from ..impressions.columns import LABEL, LABEL_NAMES, flags_or_numbers
from ..protocol import POPULARITY, UNIFORM, Protocol
from ..raw_interactions import Interactions

pc: Any = pyarrow.compute  # its functions are made when it is imported
_MOMENT, _OFTEN = 10, 0.05  # Seconds; share of the events.


def load(
    path: Where,
    *,
    on_bad_row: OnBadRow = "stop",
    row_maps: dict[str, RowMap] | None = None,
    transforms: dict[str, str] | None = None,
    protocol: Protocol | None = None,
    columns: Columns | None = None,
    names: Sequence[str] | None = None,
) -> Dataset:
    """Reads a file of events and splits it by the protocol of `interactions`.

    Args:
      path: a file, a folder of files or a glob; or three of them joined by commas, files of one's
        own to train, validate and test on; or such tables in memory.
      on_bad_row: "stop" at the first row that cannot be read, naming its line; or "skip" such
        rows and count them in `facts`.
      row_maps, transforms: of an earlier run; see `interactions.build`.
      protocol: how to split, and what counts.
      columns: what the columns are; guessed without it.
      names: of the columns, for text without a header.

    Raises:
      DataError: no such file, not a table, a missing column, a bad row, or too few events.
    """
    protocol = protocol or Protocol()
    raw, part = read_parts(_files(path), names)
    where = str(raw) if isinstance(path, InMemory) else path
    table = read_declared(where, columns=columns, on_bad_row=on_bad_row, raw=raw, parts=part)
    _refuse_labels(table, columns)
    dataset = interactions.build(
        f"events:{Path(where).name}",
        _interactions(table, protocol),
        row_maps=row_maps,
        transforms=transforms,
        protocol=protocol,
    )
    facts = dataset.facts | table.facts()
    notes = [*table.notes, *_advice(table)]
    if "duplicate rows dropped" in facts and not table.has_time:
        notes.append(
            "rows that repeat an earlier one were dropped; --set duplicates=keep reads them as "
            "events that repeat"
        )
    return dataclasses.replace(dataset, facts=facts, columns=table.columns, notes=tuple(notes))


def _files(path: Where) -> list[str] | list[RawTable]:
    """The file, or the three files to train, validate and test on."""
    if isinstance(path, InMemory):
        if len(path.tables) not in (1, 3):
            raise DataError(
                "Tables of one's own are three, to train, validate and test on, got "
                f"{len(path.tables)}."
            )
        return list(path.tables)
    if Path(path).exists() or "," not in str(path):
        return [str(path)]
    files = [part.strip() for part in str(path).split(",")]
    if len(files) != 3 or not all(files):
        raise DataError(
            f"{path}: files of one's own are three, to train, validate and test on, got "
            f"{len(files)}."
        )
    return files


def _refuse_labels(table: DeclaredTable, declared: Columns | None) -> None:
    """Raises DataError if a column says which rows were no interactions, unless it is declared."""
    for column in table.columns:
        if column.role in ("label", "weight", "position", "request"):
            raise DataError(
                f"{table.path}: column {column.name!r} is declared as {column.role}: these are "
                f"rows that were shown; {_as_impressions(table)}."
            )
        name = column.name.lower()
        is_label = name == LABEL or name.startswith(f"{LABEL}_")
        is_declared = declared is not None and declared.get(column.name) is not None
        if is_declared or not (is_label or name in LABEL_NAMES):
            continue
        values = as_numbers(table.table[column.name].combine_chunks())[0].drop_null()
        if is_label or set(values.unique().to_pylist()) == {0.0, 1.0}:
            raise DataError(
                f"{table.path}: column {column.name!r} says what came of each row, but every row "
                "of a file of events is an interaction. If rows were shown and some had no effect, "
                f"{_as_impressions(table)}; else leave the column out of the file, or declare its "
                "role as ignored."
            )


def _as_impressions(table: DeclaredTable) -> str:
    if table.in_memory:
        return 'read them with kind="impressions"'
    return f"read them by impressions:{table.path}"


def _interactions(table: DeclaredTable, protocol: Protocol) -> Interactions:
    columns = table.columns
    events = table.attributes("history", "event")
    behavior, rating = columns.one("behavior"), columns.one("rating")
    if behavior is not None:
        attribute = table.attribute(dataclasses.replace(behavior, dim=behavior.dim or 4))
        events = (dataclasses.replace(attribute, name="behavior"), *events)
    ratings = None
    if rating is not None:
        values = table.table[rating.name].combine_chunks()
        ratings = flags_or_numbers(values)
        there = values.drop_null()
        if protocol.min_rating and len(there) and np.isnan(ratings).all():
            raise DataError(
                f"{table.path}: column {rating.name!r} holds no numbers (it says "
                f"{there[0].as_py()!r}), so min_rating cannot choose among them."
            )
    item_ids, negatives = table.item_ids, None
    if protocol.evaluation_negatives not in (UNIFORM, POPULARITY):
        item_ids, negatives = _given(table, protocol.evaluation_negatives)
    items = table.attributes("item", "item")
    if len(item_ids) > len(table.item_ids):  # Given items that are of no event have no attributes.
        more = len(item_ids) - len(table.item_ids)
        items = tuple(
            dataclasses.replace(
                x, values=pa.concat_arrays([x.values, pa.nulls(more, x.values.type)])
            )
            for x in items
        )
    return Interactions(
        user=table.user,
        item=table.item,
        time=table.clock.seconds,
        item_ids=item_ids,
        items=items,
        users=table.attributes("user", "user"),
        events=events,
        context=table.attributes("context", "event"),
        changing_items=table.attributes("item", "event"),
        changing_users=table.attributes("user", "event"),
        has_clock=table.clock.has_clock,
        has_time=table.has_time,
        user_ids=table.user_ids,
        rating=ratings,
        part=table.parts,
        negatives=negatives,
    )


def _given(table: DeclaredTable, path: str) -> tuple[pa.Array, tuple[np.ndarray, np.ndarray]]:
    """All item ids, those of a file of pairs among them, and the pairs as indices."""
    try:
        raw = read_table(path).table
    except DataError as error:
        raise DataError(
            f"evaluation_negatives must be {UNIFORM}, {POPULARITY} or a file of pairs of user and "
            f"item: {error}"
        ) from error
    ids = []
    for role in ("user_id", "item_id"):
        column = table.columns.one(role)
        assert column is not None
        if column.name not in raw.column_names:
            found = ", ".join(raw.column_names)
            raise DataError(f"{path}: column {column.name!r} is missing; found {found}.")
        ids.append(read_values(raw[column.name].combine_chunks(), column).values)
    fine = pc.and_(ids[0].is_valid(), ids[1].is_valid())
    user, item = (values.filter(fine) for values in ids)
    new = item.filter(pc.invert(pc.is_in(item, table.item_ids))).unique()
    item_ids = pa.concat_arrays([table.item_ids, new])
    at = pc.index_in(user, table.user_ids).fill_null(-1)
    known = at.to_numpy(zero_copy_only=False) >= 0
    items = pc.index_in(item, item_ids).to_numpy(zero_copy_only=False)
    return item_ids, (at.to_numpy(zero_copy_only=False)[known], items[known])


def _advice(table: DeclaredTable) -> list[str]:
    """Notes on the times of a file."""
    if table.has_time:
        if len(np.unique(table.clock.seconds)) == 1 and len(table.user) > 1:
            return ["all events have one time: the order of the rows is each user's order"]
        return _logged_twice(table) if table.clock.has_clock else []
    notes = ["no timestamp: the order of the rows is each user's order, and there is no clock"]
    follows = np.flatnonzero(np.diff(table.user) != 0)
    if len(follows) + 1 > len(table.user_ids):
        notes.append(
            "the rows are not sorted by user: their order is taken as the order of time for all"
        )
    return notes


def _logged_twice(table: DeclaredTable) -> list[str]:
    """Events that say the same a moment apart: no copies by their time, perhaps by their making."""
    keys = [table.user, table.item]
    behavior = table.columns.one("behavior")
    if behavior is not None:
        keys.append(codes_of(table.table[behavior.name].combine_chunks()))
    seconds = table.clock.seconds
    order = np.lexsort((seconds, table.user))
    first, second = order[:-1], order[1:]
    gap = seconds[second] - seconds[first]
    again = (gap > 0) & (gap <= _MOMENT)
    for key in keys:
        again &= key[second] == key[first]
    share = np.count_nonzero(again) / len(order)
    if share < _OFTEN:
        return []
    return [
        f"{share:.0%} of the events repeat the user's last one within {_MOMENT} seconds: if they "
        "were logged twice, drop the copies, which else are target and history at once"
    ]
