"""Columns of a file of impressions, and its usable rows."""

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from ..declaration.columns import Column, Columns
from ..declaration.guess import Events, codes_of, guess, replaced
from ..declaration.table import DeclaredTable, codes
from ..declaration.values import as_ids, as_numbers, is_whole
from ..errors import DataError
from ..files import RawTable
from .groups import Grouped, group

pc: Any = pyarrow.compute  # its functions are made when it is imported

CLICK = "click"
LABEL, WEIGHT = "label", "weight"
# Names of labels where none begins with "label", by task.
_NAMED = {
    CLICK: ("click", "clicked", "is_click", "is_clicked", "labels", "target", "y"),
    "cart": ("cart", "is_cart", "add_to_cart"),
    "conversion": ("conversion", "converted", "is_conversion"),
    "purchase": ("purchase", "purchased", "is_purchase"),
    "buy": ("buy", "bought", "is_buy"),
    "order": ("ordered", "is_order"),
    "pay": ("pay", "paid", "is_pay"),
}
LABEL_NAMES = frozenset(alias for aliases in _NAMED.values() for alias in aliases)
# Steps of a funnel; tasks of other names stand between the click and what ends it.
_FUNNEL = (
    ("view", "open"),
    ("click", "ctr"),
    (),
    ("cart", "add_to_cart"),
    ("order", "checkout"),
    ("conversion", "convert", "cvr", "ctcvr", "buy", "purchase", "pay", "payment"),
)
_DAY = 86_400
_FEW_WRONG = 0.1
_OUTCOME = "is what came of the row: declare it, if it is not"
_LARGEST = float(np.finfo(np.float32).max)


def known(table: pa.Table) -> list[Column]:
    """The columns that the names tell, beside those of every log."""
    names, found = table.column_names, []
    why = "name"
    for prefix in (LABEL, WEIGHT):
        for name in names:
            start, line, task = name.partition("_")
            if start.lower() == prefix and bool(task) == bool(line):
                task = task or None
                found.append(Column(name=name, role=prefix, task=task, kind="number", why=why))  # type: ignore[arg-type]
    outcomes = {alias: task for task, aliases in _NAMED.items() for alias in aliases}
    tasks = set()
    for name in names:
        if any(column.name == name for column in found) or name.lower() not in outcomes:
            continue
        task = outcomes[name.lower()]
        if any(c.role == LABEL and c.why == why for c in found) or task in tasks:
            found.append(Column(name=name, role="ignored", why=_OUTCOME))
        elif _are_flags(table[name].combine_chunks()):
            tasks.add(task)
            found.append(
                Column(name=name, role=LABEL, task=task, kind="number", why="named like a label")
            )
    for name, role in (("request_id", "request"), ("position", "position")):
        if name in names:
            found.append(Column(name=name, role=role, why=why, **_id_of(table, name)))  # type: ignore[arg-type]
    if "rating" in names:
        found.append(Column(name="rating", role="ignored", why=_OUTCOME))
    return found


def _are_flags(values: pa.Array) -> bool:
    numbers = flags_or_numbers(values)
    numbers = numbers[~np.isnan(numbers)]
    return bool(len(numbers) and np.isin(numbers, (0, 1)).all())


def flags_or_numbers(values: pa.Array) -> np.ndarray:
    """(n,) float64; true and false are 1 and 0, what is no number NaN."""
    numbers = as_numbers(values)[0]
    if numbers.null_count and pa.types.is_string(values.type):
        flags = as_ids(values, "bool")[0]
        flags = pc.if_else(pc.is_in(flags, pa.array([0, 1])), flags, None)
        numbers = pc.coalesce(numbers, flags.cast(pa.float64()))
    return numbers.fill_null(float("nan")).to_numpy(zero_copy_only=False)


def _id_of(table: pa.Table, name: str) -> dict[str, Any]:
    return {"kind": "id", "value": "int" if is_whole(table[name].combine_chunks()) else "string"}


def good_rows(
    path: str, raw: RawTable, part: np.ndarray | None, columns: list[Column]
) -> tuple[RawTable, np.ndarray | None]:
    """The rows whose labels and weights can be used, and that have a request if any has."""
    if not any(column.role == LABEL for column in columns):
        raise DataError(
            f"{path}: no column of labels: 'label', 'label_TASK' or {', '.join(_NAMED[CLICK][:4])};"
            f" found {', '.join(raw.table.column_names)}. If every row is an interaction, read it "
            "by events:."
        )
    fine = np.ones(raw.table.num_rows, bool)
    blank = fine.copy()
    for name in raw.table.column_names:
        blank &= raw.table[name].is_null().to_numpy()
    bad = list(raw.bad)
    for column in columns:
        if column.name not in raw.table.column_names:
            continue  # Whoever reads the declaration says so.
        values = raw.table[column.name].combine_chunks()
        if column.role == "request":
            wrong, rule = values.is_null().to_numpy(zero_copy_only=False), ""
        else:
            numbers = flags_or_numbers(values)
            top, rule = (1.0, "within [0, 1]") if column.role == LABEL else (_LARGEST, ">= 0")
            wrong = ~((numbers >= 0) & (numbers <= top))
            if column.role == LABEL:
                _check_scale(path, column, values, wrong & ~blank)
        for row in np.flatnonzero(wrong & fine & ~blank):
            value = values[int(row)].as_py()
            reason = f"{column.name} must be a number {rule}, got {value!r}"
            reason = f"{column.name} is missing" if value is None else reason
            bad.append(raw.bad_row(int(row), reason))
        fine &= ~wrong | blank
    if fine.all():
        return raw, part
    ends = np.cumsum([rows for _, rows in raw.parts])
    counts = np.diff(np.concatenate([[0], np.cumsum(fine)])[ends], prepend=0)
    kept = RawTable(
        raw.table.filter(pa.array(fine)),
        raw.lines[fine],
        bad,
        raw.notes,
        [(name, int(count)) for (name, _), count in zip(raw.parts, counts, strict=True)],
    )
    return kept, None if part is None else part[fine]


def _check_scale(path: str, column: Column, values: pa.Array, wrong: np.ndarray) -> None:
    """Raises DataError for labels on a scale of their own: to skip rows would not mend them."""
    wrong = wrong & values.is_valid().to_numpy(zero_copy_only=False)
    if wrong.sum() <= _FEW_WRONG * len(wrong):
        return
    seen = sorted(map(str, values.drop_null().unique().slice(0, 4).to_pylist()))
    raise DataError(
        f"{path}: column {column.name!r} must hold labels within [0, 1], got {', '.join(seen)}, "
        "...; write 1 for what had an effect and 0 for what had none."
    )


def grouped(
    table: DeclaredTable, notes: list[str], *, guessed: bool
) -> tuple[DeclaredTable, Grouped]:
    """The requests; of guessed columns, whether they are the request's, and the user's indeed."""
    request, position = table.columns.one("request"), table.columns.one("position")
    ids = slot = None
    if request is not None:
        ids = codes(table.values(request))[0]
    if position is not None:
        numbers = as_numbers(table.table[position.name].combine_chunks())[0]
        if numbers.null_count == len(numbers):
            notes.append(f"{position.name}: no numbers; candidates stand as in the file")
        else:
            slot = numbers.fill_null(float("inf")).to_numpy(zero_copy_only=False)
    asked = group(
        table.user,
        table.clock.seconds,
        request=ids,
        slot=slot,
        part=table.parts,
        has_time=table.has_time,
    )
    notes += _about_requests(table, asked, ids)
    columns = table.columns
    for column in table.columns.of("context"):
        code = codes_of(table.table[column.name].combine_chunks())[asked.rows]
        odd = len(np.unique(asked.request[code != code[asked.starts][asked.request]]))
        if odd and guessed:
            why = f"differs between candidates of {odd} requests: the candidate's"
            columns = replaced(columns, column.name, role="item", per="event", why=why)
        elif odd:
            notes.append(
                f"{column.name} differs between candidates of {odd} requests: the first one's is "
                "the request's"
            )
    if guessed and len(asked.starts) < len(asked.rows):
        columns = _of_users_indeed(table, columns, asked)
    return dataclasses.replace(table, columns=columns), asked


def _of_users_indeed(table: DeclaredTable, columns: Columns, asked: Grouped) -> Columns:
    """Rows of one request agree in what came of it, so the user's are what requests agree in."""
    names = [column.name for column in columns.of("user")]
    first = asked.first
    events = Events(table.user[first], table.item[first], table.clock.seconds[first])
    again = guess(
        table.table.select(names).take(pa.array(first)),
        events,
        columns.of("time"),
        has_clock=table.clock.has_clock,
    )
    for column in again:
        if column.role != "user":
            why = "has one value per request, and may be its outcome: declare it, if it is not"
            column = Column(name=column.name, role="ignored", why=why)
        columns = Columns(tuple(column if c.name == column.name else c for c in columns))
    return columns


def _about_requests(table: DeclaredTable, asked: Grouped, ids: np.ndarray | None) -> list[str]:
    notes = []
    if ids is None and not table.has_time:
        notes.append("neither request_id nor timestamp: every row is a request of one candidate")
    elif ids is None:
        notes.append("no request_id: rows of one user and one timestamp are a request")
    else:
        of_request = ids[asked.first]
        shared = len(of_request) - len(np.unique(of_request))
        if shared and table.parts is None:
            notes.append(f"{shared} request ids are of several users: a request is of one user")
        last = np.maximum.reduceat(table.clock.seconds[asked.rows], asked.starts)
        longest = int((last - asked.time).max())
        if table.clock.has_clock and longest > _DAY:
            notes.append(
                f"rows of one request lie up to {longest / _DAY:.1f} days apart: its time is the "
                "first one's"
            )
    if not table.has_time:
        notes.append("no timestamp: the order of the requests in the file is the time")
        if np.count_nonzero(np.diff(asked.user)) + 1 == len(table.user_ids) > 2:
            notes.append(
                "the rows are sorted by user: validation and test are of other users than training "
                "(split=last takes the last request of each user)"
            )
    order = np.lexsort((table.item[asked.rows], asked.request))
    item, request = table.item[asked.rows][order], asked.request[order]
    again = (item[1:] == item[:-1]) & (request[1:] == request[:-1])
    if again.any():
        count = len(np.unique(request[1:][again]))
        notes.append(f"{count} requests show an item twice: each is a candidate of its own")
    return notes


def tasks_of(
    table: DeclaredTable, notes: list[str], *, guessed: bool, asked: tuple[str, ...] = ()
) -> tuple[dict[str, Column], DeclaredTable]:
    """{task: column} in order, and the declaration with the labels in that order.

    Args:
      table: the impressions.
      notes: where to say what the order is.
      guessed: whether the columns are not declared: then tasks follow a funnel.
      asked: the tasks that are wanted, in order; all by default.

    Raises:
      DataError: a task has two labels, or none.
    """
    labels = table.columns.of(LABEL)
    if guessed:
        labels = sorted(labels, key=lambda column: _step(column.task or CLICK))
    found: dict[str, Column] = {}
    for column in labels:
        task = column.task or CLICK
        if task in found:
            raise DataError(
                f"{table.path}: columns {found[task].name!r} and {column.name!r} are both labels "
                f"of {task!r}: declare another task for one of them."
            )
        found[task] = column
    weights: set[str | None] = set()
    for column in table.columns.of(WEIGHT):
        if column.task in weights:
            raise DataError(f"{table.path}: column {column.name!r} is a second weight of its task.")
        weights.add(column.task)
        if column.task not in (None, *found):
            raise DataError(
                f"{table.path}: column {column.name!r} weighs {column.task!r}, which has no label "
                f"({', '.join(found)})."
            )
    for task in asked:
        if task not in found:
            raise DataError(f"{table.path}: no label of task {task!r} ({', '.join(found)}).")
    if asked:
        found = {task: found[task] for task in asked}
    elif len(found) > 1:
        order = "a funnel" if guessed else "the declaration"
        notes.append(f"tasks {', '.join(found)}, in the order of {order}")
    ordered = iter(labels)
    columns = tuple(next(ordered) if c.role == LABEL else c for c in table.columns)
    return found, dataclasses.replace(table, columns=Columns(columns))


def _step(task: str) -> int:
    """Place of a task in the funnel."""
    return next((n for n, names in enumerate(_FUNNEL) if task.lower() in names), 2)
