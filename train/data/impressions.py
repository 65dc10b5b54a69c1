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

Files of one's own to train, validate and test on are three paths joined by commas, and a file of
histories may follow them.
"""

from collections.abc import Sequence
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from ...zoo.features import RowMap
from .dataset import Dataset
from .declaration import Column, Columns, Events, guess
from .declaration.guess import codes_of, replaced
from .declaration.values import as_ids, as_numbers, is_whole, read_values
from .declared_table import DeclaredTable, codes, first_of, read_declared
from .encoding import Attribute
from .errors import DataError
from .files import RawTable, read_table
from .files.unify import stacked
from .impression_requests import Grouped, Impressions, build, group
from .lines import OnBadRow
from .protocol import Protocol, repeats

pc: Any = pyarrow.compute  # its functions are made when it is imported

CLICK = "click"
_LABEL, _WEIGHT = "label", "weight"
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
# Steps of a funnel; tasks of other names stand between the click and what ends it.
_FUNNEL = (
    ("view", "open"),
    ("click", "ctr"),
    (),
    ("cart", "add_to_cart"),
    ("order", "checkout"),
    ("conversion", "convert", "cvr", "ctcvr", "buy", "purchase", "pay", "payment"),
)
_OUTCOME = "is what came of the row: declare it, if it is not"
_LARGEST = float(np.finfo(np.float32).max)


def load(
    path: str | Path,
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
        a file, a folder of files or a glob.
      on_bad_row: "stop" at the first row that cannot be read, naming its line; or "skip" such
        rows and count them in `facts`. A row without a label is one.
      row_maps, transforms: of an earlier run; see `interactions.build`.
      protocol: how to split; None splits by time, at the same two moments for all users.
      columns: what the columns of all files are; guessed without it.
      names: of the columns, for text without a header.

    Raises:
      DataError: no such file, not a table, a missing column, a bad row, or too few requests.
    """
    files, history_file = _paths(path)
    raw, part = _read(files, names)
    history_raw = None if history_file is None else read_table(history_file)
    declared = None if columns is None else _own(columns, raw, history_raw)
    known = _known(raw.table) if declared is None else []
    labels = [c for c in declared or known if c.role in ("label", "weight", "request")]
    raw, part = _good_rows(files[0], raw, part, labels)
    table = read_declared(
        ",".join(map(str, files)),
        columns=declared,
        on_bad_row=on_bad_row,
        known=known,
        raw=raw,
        parts=part,
    )
    drop = protocol is None or protocol.duplicates == "drop"
    table, copies = _without_copies(table, drop)
    notes = list(table.notes)
    table, asked = _grouped(table, notes, guessed=declared is None)
    labels, table = _tasks(table, notes, guessed=declared is None)
    history, facts = None, {}
    if history_file is not None and history_raw is not None:
        history = _history(history_file, history_raw, table, columns, on_bad_row)
        history, facts["duplicate rows of histories dropped"] = _without_copies(history, drop)
        history, others = _of_users(history, table)
        facts["events of users without requests left out"] = others
        notes += [f"{Path(history_file).name}: {note}" for note in history.notes]
    facts |= {"duplicate rows dropped": copies}
    name = f"impressions:{Path(files[0]).name}"
    dataset = build(
        name,
        _impressions(table, asked, labels, history),
        row_maps=row_maps,
        transforms=transforms,
        protocol=protocol,
    )
    return dataclasses.replace(
        dataset,
        facts=dataset.facts | {k: v for k, v in facts.items() if v} | table.facts(),
        columns=_all_columns(table, history),
        notes=(*notes, *dataset.notes),
    )


def _paths(path: str | Path) -> tuple[list[str], str | None]:
    """The files of impressions, and the file of histories if there is one."""
    if Path(path).exists():
        return [str(path)], None
    paths = [part.strip() for part in str(path).split(",")]
    if len(paths) > 4 or not all(paths):
        raise DataError(
            f"{path}: FILE, FILE,HISTORY_FILE or TRAIN,VALIDATION,TEST[,HISTORY_FILE], got "
            f"{len(paths)} paths."
        )
    history = paths.pop() if len(paths) in (2, 4) else None
    return paths, history


def _read(files: list[str], names: Sequence[str] | None) -> tuple[RawTable, np.ndarray | None]:
    """The rows, and for which part each is if every part has a file."""
    tables = [read_table(file, names=names) for file in files]
    if len(tables) == 1:
        return tables[0], None
    order = tables[0].table.column_names
    for file, table in zip(files[1:], tables[1:], strict=True):
        lacks = set(order) - set(table.table.column_names)
        if lacks:
            raise DataError(f"{file}: lacks {', '.join(sorted(lacks))}, which {files[0]} has.")
    notes = [note for table in tables for note in table.notes]
    whole = stacked(Path(files[0]), [table.table.select(order) for table in tables], order, notes)
    sizes = [table.table.num_rows for table in tables]
    raw = RawTable(
        whole,
        np.concatenate([table.lines for table in tables]),
        [row for table in tables for row in table.bad],
        list(dict.fromkeys(notes)),
        list(zip(files, sizes, strict=True)),
    )
    return raw, np.repeat(np.arange(3, dtype=np.int8), sizes)


def _own(columns: Columns, raw: RawTable, history: RawTable | None) -> Columns:
    """The declared columns but for those that only the file of histories has."""
    if history is None:
        return columns
    here, there = raw.table.column_names, history.table.column_names
    return Columns(tuple(c for c in columns if c.name in here or c.name not in there))


def _known(table: pa.Table) -> list[Column]:
    """The columns that the names tell, beside those of every log."""
    names, found = table.column_names, []
    why = "name"
    for prefix in (_LABEL, _WEIGHT):
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
        if any(c.role == _LABEL and c.why == why for c in found) or task in tasks:
            found.append(Column(name=name, role="ignored", why=_OUTCOME))
        elif _are_flags(table[name].combine_chunks()):
            tasks.add(task)
            found.append(
                Column(name=name, role=_LABEL, task=task, kind="number", why="named like a label")
            )
    for name, role in (("request_id", "request"), ("position", "position")):
        if name in names:
            found.append(Column(name=name, role=role, why=why, **_id_of(table, name)))  # type: ignore[arg-type]
    if "rating" in names:
        found.append(Column(name="rating", role="ignored", why=_OUTCOME))
    return found


def _are_flags(values: pa.Array) -> bool:
    numbers = _flags_or_numbers(values)
    numbers = numbers[~np.isnan(numbers)]
    return bool(len(numbers) and np.isin(numbers, (0, 1)).all())


def _flags_or_numbers(values: pa.Array) -> np.ndarray:
    """(n,) float64; true and false are 1 and 0, what is no number NaN."""
    numbers = as_numbers(values)[0]
    if numbers.null_count and pa.types.is_string(values.type):
        flags = as_ids(values, "bool")[0]
        flags = pc.if_else(pc.is_in(flags, pa.array([0, 1])), flags, None)
        numbers = pc.coalesce(numbers, flags.cast(pa.float64()))
    return numbers.fill_null(float("nan")).to_numpy(zero_copy_only=False)


def _id_of(table: pa.Table, name: str) -> dict[str, Any]:
    return {"kind": "id", "value": "int" if is_whole(table[name].combine_chunks()) else "string"}


def _good_rows(
    path: str, raw: RawTable, part: np.ndarray | None, columns: list[Column]
) -> tuple[RawTable, np.ndarray | None]:
    """The rows whose labels and weights can be used, and that have a request if any has."""
    if not any(column.role == _LABEL for column in columns):
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
            numbers = _flags_or_numbers(values)
            top, rule = (1.0, "within [0, 1]") if column.role == _LABEL else (_LARGEST, ">= 0")
            wrong = ~((numbers >= 0) & (numbers <= top))
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


def _filtered(table: DeclaredTable, kept: np.ndarray) -> DeclaredTable:
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


def _without_copies(table: DeclaredTable, drop: bool) -> tuple[DeclaredTable, int]:
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
    if table.parts is not None:
        more.append(table.parts[some])
    kept = np.ones(len(order), bool)
    kept[some] = ~repeats(*(key[some] for key in keys), *more)
    return _filtered(table, kept), int(np.count_nonzero(~kept))


def _grouped(
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


def _tasks(
    table: DeclaredTable, notes: list[str], *, guessed: bool
) -> tuple[dict[str, Column], DeclaredTable]:
    """{task: column} in order, and the declaration with the labels in that order."""
    labels = table.columns.of(_LABEL)
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
    for column in table.columns.of(_WEIGHT):
        if column.task not in (None, *found):
            raise DataError(
                f"{table.path}: column {column.name!r} weighs {column.task!r}, which has no label "
                f"({', '.join(found)})."
            )
    if len(found) > 1:
        order = "a funnel" if guessed else "the declaration"
        notes.append(f"tasks {', '.join(found)}, in the order of {order}")
    ordered = iter(labels)
    columns = tuple(next(ordered) if c.role == _LABEL else c for c in table.columns)
    return found, dataclasses.replace(table, columns=Columns(columns))


def _step(task: str) -> int:
    """How far down the funnel a task is."""
    return next((n for n, names in enumerate(_FUNNEL) if task.lower() in names), 2)


def _history(
    file: str,
    raw: RawTable,
    table: DeclaredTable,
    columns: Columns | None,
    on_bad_row: OnBadRow,
) -> DeclaredTable:
    """A file of past events, whose ids and shared columns are read as those of impressions are."""
    there = raw.table.column_names
    settled = columns or [
        c for c in table.columns if c.role not in ("time", "history")
    ]
    known = [
        c
        for c in settled
        if c.name in there and c.role not in (_LABEL, _WEIGHT, "position", "request", "context")
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


def _of_users(history: DeclaredTable, table: DeclaredTable) -> tuple[DeclaredTable, int]:
    """The events of users that have requests, by the users' codes there; how many others have."""
    at = pc.index_in(history.user_ids, table.user_ids).fill_null(-1)
    user = at.to_numpy(zero_copy_only=False)[history.user].astype(np.int64)
    history = _filtered(dataclasses.replace(history, user=user), user >= 0)
    return history, int(np.count_nonzero(user < 0))


def _impressions(
    table: DeclaredTable,
    asked: Grouped,
    labels: dict[str, Column],
    history: DeclaredTable | None,
) -> Impressions:
    item, past_item, item_ids = _catalogue(table, history)
    past = None
    if history is not None:
        past = (history.user, past_item, history.clock.seconds)
    read = lambda column: _flags_or_numbers(table.table[column.name].combine_chunks())
    weights = {column.task: column for column in table.columns.of(_WEIGHT)}
    weight = {task: weights.get(task, weights.get(None)) for task in labels}
    shared = _Shared(table, history, item, past_item)
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
        weight={
            task: read(column).astype(np.float32) for task, column in weight.items() if column
        },
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


def _catalogue(
    table: DeclaredTable, history: DeclaredTable | None
) -> tuple[np.ndarray, np.ndarray, pa.Array]:
    """Codes of the items of both files, and the ids of all, sorted."""
    if history is None:
        return table.item, np.zeros(0, np.int64), table.item_ids
    used = np.unique(history.item)
    both, ids = codes(pa.concat_arrays([table.item_ids, history.item_ids.take(pa.array(used))]))
    size = len(table.item_ids)
    return both[:size][table.item], both[size:][np.searchsorted(used, history.item)], ids


class _Shared:
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
        """Whether past events have a column of the impressions."""
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
        """What is known of past events only, and their behaviour."""
        source = self._history or self._table
        found = [
            source.attribute(column, values)
            for table, column, values in self._columns("history", "event")
            if table is source or self.in_both(column)
        ]
        if self._history is not None:
            found += [
                table.attribute(column, values)
                for table, column, values in self._columns("item", "event")
                if table is self._history
            ]
        for table, column, values in self._columns("behavior", None):
            if table is source or self.in_both(column):
                attribute = table.attribute(column, values)
                dim = column.dim or 4
                found.insert(0, dataclasses.replace(attribute, name="behavior", dim=dim))
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


def _all_columns(table: DeclaredTable, history: DeclaredTable | None) -> Columns:
    """The declaration of both files."""
    more = [] if history is None else [c for c in history.columns if not table.columns.get(c.name)]
    return Columns((*table.columns, *more))
