"""`impressions:FILE[,HISTORY_FILE]`: what was shown and what came of it, one row per candidate.

Any format of `events:` files. Rows of one `request_id` and user were shown together; without such
a column those of one user and one `timestamp` were.

    user_id,request_id,timestamp,position,item_id,context_scene,label_click,label_buy,weight
    ann,7,1600000000,1,shoe,home,1,0,1
    ann,7,1600000000,2,lamp,home,0,0,1
    bob,8,1600000055,1,lamp,search,1,1,0.5

`label` is the click, `label_TASK` a label of any task, all within [0, 1]; where there is neither,
columns called `click`, `conversion`, ... are read. Tasks go down the funnel: the first one ranks,
and makes the histories. `weight` or `weight_TASK` (>= 0) is that of the row, `position` its slot,
by which a request is ordered and which is a field of the candidate. A column `context_NAME` was
known before: it is the request's where all its candidates agree, else the candidate's. What the
columns of items and users are is guessed (`declaration.guess`), and everything else left out, as
it may be an outcome, until a declaration says what it is: there, "per": "event" of an item is what
the candidate was shown with, such as its price or the score of another model.

A history holds the user's own positives before the request, or the events before it of a second
file, which has the same user and item ids. Without timestamps the order of the requests in the
file is the time.

The last 20 % of the requests are for validation and test, by the same two moments for all users;
requests of more than 1,000 candidates are cut. Files of one's own to train, validate and test on
are three paths joined by commas, and a file of histories may follow them.
"""

from collections.abc import Sequence
import dataclasses
from pathlib import Path

import numpy as np

from ....zoo.features import RowMap
from ..dataset import Dataset
from ..declaration.columns import Column, Columns
from ..declaration.table import DeclaredTable, read_declared, read_parts
from ..errors import DataError
from ..files import InMemory, RawTable, Where, read_table
from ..files.lines import OnBadRow
from ..impressions.columns import (
    LABEL,
    WEIGHT,
    flags_or_numbers,
    good_rows,
    grouped,
    known,
    tasks_of,
)
from ..impressions.groups import Grouped
from ..impressions.history import (
    Shared,
    all_columns,
    catalogue,
    of_users,
    read_history,
    without_copies,
)
from ..impressions.requests import Impressions, build
from ..protocol import UNIFORM, Protocol


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
    """Reads impressions, groups them into requests, and splits these.

    Args:
      path: FILE, or FILE,HISTORY_FILE, or TRAIN,VALIDATION,TEST, or these and a HISTORY_FILE; each
        a file, a folder of files or a glob; or such tables in memory.
      on_bad_row: "stop" at the first row that cannot be read, naming its line; or "skip" such
        rows and count them in `facts`. A row without a label is one.
      row_maps, transforms: of an earlier run; see `interactions.build`.
      protocol: how to split; None splits by time, at the same two moments for all users.
      columns: what the columns of all files are; guessed without it.
      names: of the columns, for text without a header.

    Raises:
      DataError: no such file, not a table, a missing column, a bad row, or too few requests.
    """
    _refuse_drawing(path, protocol)
    files, history_file = _paths(path)
    raw, part = read_parts(files, names)
    history_raw = None if history_file is None else read_table(history_file)
    history_name = str(history_file)
    declared = None if columns is None else _own(columns, raw, history_raw)
    named = known(raw.table) if declared is None else []
    labels = [c for c in declared or named if c.role in (LABEL, WEIGHT, "request")]
    raw, part = good_rows(str(files[0]), raw, part, labels)
    table = read_declared(
        ",".join(map(str, files)),
        columns=declared,
        on_bad_row=on_bad_row,
        known=named,
        raw=raw,
        parts=part,
    )
    drop = protocol is None or protocol.duplicates == "drop"
    asked_tasks = protocol.tasks if protocol else ()
    table, copies = without_copies(table, drop)
    notes = list(table.notes)
    table, asked = grouped(table, notes, guessed=declared is None)
    labels, table = tasks_of(table, notes, guessed=declared is None, asked=asked_tasks)
    history, facts = None, {}
    if history_raw is not None:
        history = read_history(history_name, history_raw, table, columns, on_bad_row)
        history, facts["duplicate rows of histories dropped"] = without_copies(history, drop)
        history, others = of_users(history, table)
        facts["events of users without requests left out"] = others
        notes += [f"{Path(history_name).name}: {note}" for note in history.notes]
    facts |= {"duplicate rows dropped": copies}
    name = f"impressions:{Path(str(files[0])).name}"
    dataset = build(
        name,
        _impressions(table, asked, labels, history),
        row_maps=row_maps,
        transforms=transforms,
        protocol=protocol,
    )
    if not any(some.cut.any() for some in (dataset.train, dataset.validation, dataset.test)):
        whose = "are the ids and the times those of the file of histories?"
        if history is None:
            whose = "no user has a positive label before another request"
        notes.append(f"no request has a history: {whose}")
    return dataclasses.replace(
        dataset,
        facts=dataset.facts | {k: v for k, v in facts.items() if v} | table.facts(),
        columns=all_columns(table, history),
        notes=(*notes, *dataset.notes),
    )


def _refuse_drawing(path: Where, protocol: Protocol | None) -> None:
    """Raises DataError for what is asked of logs of interactions only."""
    if protocol is not None and protocol.min_rating:
        raise DataError(f"{path}: min_rating is for events; impressions have labels.")
    if protocol is not None and protocol.evaluation_negatives != UNIFORM:
        raise DataError(
            f"{path}: evaluation_negatives is for events: among impressions, those without a "
            "positive label are the negatives."
        )


def _paths(path: Where) -> tuple[list[str | RawTable], str | RawTable | None]:
    """The files of impressions, and the file of histories if there is one."""
    if not isinstance(path, InMemory) and Path(path).exists():
        return [str(path)], None
    paths: list[str | RawTable] = []
    if isinstance(path, InMemory):
        paths += path.tables
    else:
        paths += [part.strip() for part in str(path).split(",")]
    if len(paths) > 4 or not all(paths):
        raise DataError(
            f"{path}: FILE, FILE,HISTORY_FILE or TRAIN,VALIDATION,TEST[,HISTORY_FILE], got "
            f"{len(paths)} paths."
        )
    history = paths.pop() if len(paths) in (2, 4) else None
    return paths, history


def _own(columns: Columns, raw: RawTable, history: RawTable | None) -> Columns:
    """The declared columns but for those that only the file of histories has."""
    if history is None:
        return columns
    here, there = raw.table.column_names, history.table.column_names
    return Columns(tuple(c for c in columns if c.name in here or c.name not in there))


def _impressions(
    table: DeclaredTable,
    asked: Grouped,
    labels: dict[str, Column],
    history: DeclaredTable | None,
) -> Impressions:
    item, past_item, item_ids = catalogue(table, history)
    past = None
    if history is not None:
        past = (history.user, past_item, history.clock.seconds)
    read = lambda column: flags_or_numbers(table.table[column.name].combine_chunks())
    weights = {column.task: column for column in table.columns.of(WEIGHT)}
    weight = {task: weights.get(task, weights.get(None)) for task in labels}
    shared = Shared(table, history, item, past_item)
    position = table.columns.one("position")
    shown = [c for c in table.columns.of("item") if c.per == "event" and not shared.in_both(c)]
    if position is not None:
        shown.append(position)
    time = table.clock.seconds if table.has_time else asked.times_of_rows()
    return Impressions(
        user=table.user,
        item=item,
        time=time,
        requests=asked,
        label={task: read(column).astype(np.float32) for task, column in labels.items()},
        weight={task: read(column).astype(np.float32) for task, column in weight.items() if column},
        item_ids=item_ids,
        items=shared.of_owners("item"),
        users=shared.of_owners("user"),
        context=table.attributes("context", "event"),
        shown=tuple(table.attribute(column) for column in shown),
        changing_items=shared.changing_items(),
        changing_users=table.attributes("user", "event"),
        events=shared.events(),
        past=past,
        part=table.parts,
        has_clock=table.clock.has_clock,
        has_time=table.has_time,
    )
