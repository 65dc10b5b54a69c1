r"""`aliccp:DIR`: Ali-CCP (Alibaba Click and Conversion Prediction) as Alimama published it.

Ma et al., "Entire Space Multi-Task Model", SIGIR 2018, https://arxiv.org/abs/1804.07931;
https://tianchi.aliyun.com/dataset/408. The folder holds, plain or gzipped,

    sample_skeleton_{train,test}.csv   sample id, click, conversion, visit, count, features
    common_features_{train,test}.csv   visit, count, features

without headers; features as in `feature_lists`. A visit (the publisher's "common feature index")
is what many impressions share: the user. It is stored once, as a user of the log without events.
Every line of a skeleton is one request with one candidate, whose features are columns of the
request: nothing needs to be constant for an item, and no memory is used.

Fields: those of `USER`, `CONTEXT` and `CANDIDATE` below, one table each; the publisher numbers the
values of each field anew. Values of features (logarithms of counts, or 1) are not read, but for
bags: what the user did in 14 days keeps the `BAG` heaviest entries. Features of other numbers, and
those beyond the width of their field, are left out and counted in `facts`. A value that training
sees on fewer than 10 lines reads row 1, as it does not repay a row of its own.

Tasks: click, and conversion, which here is click *and* conversion: some published lines have a
conversion without a click, bought some other way. They stay, as impressions nobody clicked.
GAUC is by visit.

Split: the published test files, which follow the training files in time, are the test.
Validation is the last tenth of the visits in the order of common_features_train.csv, wherever
their lines stand: a visit never straddles the split. Sample ids are not compared: a line that
stands there twice counts twice. `Requests.time` is the number of the line: it only orders.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ...zoo.features import DistinctCounts, Field, Role, RowMap, Schema, Table, signatures
from . import feature_lists
from .coded import admit, watched_blocks
from .dataset import Dataset
from .errors import DataError
from .event_log import EventLog, Requests
from .feature_lists import Features
from .lines import BadRows, OnBadRow, read_blocks
from .store import Column, ColumnStore

BAG = 50
# An item may have several intention nodes.
NODES = 8
MIN_COUNT = 10


class _Published(NamedTuple):
    """A field: its published number, its name here, the dim of its table, the slots of a bag."""

    number: str
    name: str
    dim: int = 16
    width: int | None = None


USER = (
    _Published("101", "user"),
    _Published("121", "profile", 8),
    _Published("122", "profile_group", 8),
    _Published("124", "gender", 4),
    _Published("125", "age", 4),
    _Published("126", "consumption_1", 4),
    _Published("127", "consumption_2", 4),
    _Published("128", "occupation", 4),
    _Published("129", "geography", 4),
    _Published("109_14", "user_categories", 16, BAG),
    _Published("110_14", "user_shops", 16, BAG),
    _Published("127_14", "user_brands", 16, BAG),
    _Published("150_14", "user_nodes", 16, BAG),
)
CONTEXT = (_Published("301", "position", 4),)
CANDIDATE = (
    _Published("205", "item"),
    _Published("206", "category"),
    _Published("207", "shop"),
    _Published("210", "nodes", 16, NODES),
    _Published("216", "brand"),
    # The user's past with this item's category, shop, brand and nodes.
    _Published("508", "category_match"),
    _Published("509", "shop_match"),
    _Published("702", "brand_match"),
    _Published("853", "node_match", 16, NODES),
)
_ROLES: dict[Role, tuple[_Published, ...]] = {
    "user": USER,
    "context": CONTEXT,
    "candidate": CANDIDATE,
}
_FIELDS = (*USER, *CONTEXT, *CANDIDATE)
_LIST = {"count": pa.int64(), "features": pa.string()}
_VISIT = {"visit": pa.dictionary(pa.int32(), pa.string())}
_COMMON = {**_VISIT, **_LIST}
_SKELETON = {
    "sample": pa.int64(),
    "click": pa.string(),
    "conversion": pa.string(),
    **_VISIT,
    **_LIST,
}


def load(
    folder: str | Path,
    *,
    min_count: int = MIN_COUNT,
    on_bad_row: OnBadRow = "stop",
    row_maps: dict[str, RowMap] | None = None,
) -> Dataset:
    """Reads each file once, into columns on disk (see `store`).

    Args:
      folder: of the four files.
      min_count: on how many training lines a value must stand for a row of its own.
      on_bad_row: "stop" at the first line that cannot be used, naming it; or "skip" such lines and
        count them in `facts`.
      row_maps: vocabularies of an earlier run.

    Raises:
      DataError: a file is missing or damaged, a line is bad, or a split is empty. A line is bad
        if its count is not that of its features, or its visit is not listed.
    """
    reader = _Reader(Path(folder), BadRows(on_bad_row))
    visits = ColumnStore(_columns(USER))
    known = {part: reader.visits(part, visits) for part in ("train", "test")}
    parts = {part: _request_store() for part in ("train", "validation", "test")}
    last = known["test"].first * 9 // 10
    for requests in reader.requests("train", known["train"]):
        is_train = requests["visit"] < last
        for part, chosen in (("train", is_train), ("validation", ~is_train)):
            parts[part].append({name: column[chosen] for name, column in requests.items()})
    for requests in reader.requests("test", known["test"]):
        parts["test"].append(requests)
    for part, store in parts.items():
        if not len(store):
            raise DataError(f"{folder}: no line of the visits for {part} can be used.")
    row_maps = _replace_codes(visits, parts, min_count, row_maps or {})
    users = visits.columns()
    requests = {part: _requests(store.columns()) for part, store in parts.items()}
    clicks, conversions = (
        float(requests["train"].label[task].mean(dtype=np.float64))
        for task in ("click", "conversion")
    )
    return Dataset(
        name=f"aliccp:{Path(folder).name}",
        schema=_schema(row_maps),
        row_maps=row_maps,
        log=EventLog(
            offsets=np.broadcast_to(np.int64(0), (len(visits) + 1,)),
            item=np.zeros(0, np.int32),
            time=np.zeros(0, np.int64),
            event={},
            items={},
            users=users,
            has_clock=False,
        ),
        train=requests["train"],
        validation=requests["validation"],
        test=requests["test"],
        facts={
            "visits": len(visits),
            **{f"lines of {part}": len(store) for part, store in parts.items()},
            "clicks per line": round(clicks, 5),
            "conversions per line": round(conversions, 6),
            **reader.facts(),
        },
    )


class _Visits(NamedTuple):
    """The visits of one file: their signatures, ascending, and the place of each in the log."""

    signed: np.ndarray
    place: np.ndarray
    first: int

    def find(self, visits: pa.DictionaryArray) -> np.ndarray:
        """(R,) int32 places; -1 where a visit is not listed."""
        signed = signatures("visit", visits.dictionary.to_pylist())
        at = np.minimum(np.searchsorted(self.signed, signed), len(self.signed) - 1)
        place = np.where(self.signed[at] == signed, self.place[at], np.int32(-1))
        return place[visits.indices.to_numpy()]


class _Reader:
    """Reads the files of a folder, and counts what it leaves out."""

    def __init__(self, folder: Path, bad: BadRows):
        self._folder, self._bad = folder, bad
        self._unknown: Counter[str] = Counter()
        self._cut: Counter[str] = Counter()
        self._without_click = 0

    def visits(self, part: str, store: ColumnStore) -> _Visits:
        """Appends the visits of a file to `store`, as codes."""
        path, first = self._path(f"common_features_{part}"), len(store)
        seen: list[np.ndarray] = []
        lines: list[np.ndarray] = []
        for block, features in self._blocks(path, _COMMON):
            store.append(self._codes(USER, features, block.num_rows))
            visit = block["visit"]
            signed = signatures("visit", visit.dictionary.to_pylist())
            seen.append(signed[visit.indices.to_numpy()])
            lines.append(block["line"].to_numpy())
        signed, line = np.concatenate(seen), np.concatenate(lines)
        if not len(signed):
            raise DataError(f"{path}: no line can be used ({self._bad.first}).")
        order = np.argsort(signed, kind="stable")
        again = np.flatnonzero(signed[order][1:] == signed[order][:-1])
        for at in again[np.argsort(order[again + 1])]:
            twin = line[order[at]]
            self._bad.add(
                path, int(line[order[at + 1]]), f"repeats the common feature index of line {twin}"
            )
        # Of a visit that comes twice the first counts.
        order = np.delete(order, again + 1)
        return _Visits(signed[order], (first + order).astype(np.int32), first)

    def requests(self, part: str, visits: _Visits) -> Iterator[dict[str, np.ndarray]]:
        """Blocks of requests, features as codes."""
        path = self._path(f"sample_skeleton_{part}")
        for block, features in self._blocks(path, _SKELETON, visits):
            place = visits.find(block["visit"])
            click, conversion = (_flags(block[task]) for task in ("click", "conversion"))
            self._without_click += int(np.count_nonzero(conversion & ~click))
            columns = self._codes((*CONTEXT, *CANDIDATE), features, block.num_rows)
            for field in CANDIDATE:
                columns[field.name] = columns[field.name][:, None]
            yield {
                **columns,
                "visit": place,
                "line": block["line"].to_numpy(),
                "clicked": click.astype(np.float32)[:, None],
                "converted": (click & conversion).astype(np.float32)[:, None],
            }

    def facts(self) -> dict[str, Any]:
        """What was left out."""
        facts: dict[str, Any] = {}
        if self._without_click:
            facts["conversions without a click, not counted"] = self._without_click
        for title, counter in (
            ("features of unknown fields", self._unknown),
            ("features beyond the width of their field", self._cut),
        ):
            if counter:
                facts[title] = ", ".join(f"{name}: {n}" for name, n in sorted(counter.items()))
        return {**facts, **self._bad.facts()}

    def _path(self, stem: str) -> Path:
        plain = self._folder / f"{stem}.csv"
        packed = self._folder / f"{stem}.csv.gz"
        return packed if packed.is_file() and not plain.is_file() else plain

    def _blocks(
        self, path: Path, columns: dict[str, pa.DataType], visits: _Visits | None = None
    ) -> Iterator[tuple[pa.RecordBatch, Features]]:
        """The usable rows of each block, with their features."""
        blocks = read_blocks(
            path,
            columns,
            bad=self._bad,
            optional=("features",),
            choices=dict.fromkeys({"click", "conversion"} & columns.keys(), ("0", "1")),
            numbered=True,
        )
        for block in blocks:
            if visits is not None:
                listed = visits.find(block["visit"]) >= 0
                stray = {int(row): _unlisted(block, int(row)) for row in np.flatnonzero(~listed)}
                block = self._without(path, block, stray)
            counts = block["count"].to_numpy()
            features, broken = feature_lists.parse(block["features"], counts)
            yield self._without(path, block, broken), features

    def _without(self, path: Path, block: pa.RecordBatch, bad: dict[int, str]) -> pa.RecordBatch:
        if not bad:
            return block
        for row, reason in bad.items():
            self._bad.add(path, block["line"][row].as_py(), reason)
        kept = np.ones(block.num_rows, bool)
        kept[list(bad)] = False
        return block.filter(pa.array(kept))

    def _codes(
        self, fields: tuple[_Published, ...], features: Features, rows: int
    ) -> dict[str, np.ndarray]:
        columns = {}
        for field in fields:
            if field.width is None:
                columns[field.name], cut = features.first(field.number, rows)
            else:
                columns[field.name], cut = features.heaviest(field.number, rows, field.width)
            if cut:
                self._cut[field.number] += cut
        known = {field.number for field in fields}
        for index, name in enumerate(features.names):
            if name not in known:
                self._unknown[name] += int(np.count_nonzero(features.field == index))
        return columns


def _unlisted(block: pa.RecordBatch, row: int) -> str:
    return f"common feature index {block['visit'][row].as_py()!r} is not listed"


def _flags(column: pa.StringArray) -> np.ndarray:
    return np.asarray(column.to_numpy(zero_copy_only=False) == "1", bool)


def _columns(fields: tuple[_Published, ...], *lead: int) -> dict[str, Column]:
    width = lambda field: () if field.width is None else (field.width,)
    return {field.name: Column(np.int32, (*lead, *width(field))) for field in fields}


def _request_store() -> ColumnStore:
    return ColumnStore(
        {
            **_columns(CONTEXT),
            **_columns(CANDIDATE, 1),
            "visit": Column(np.int32),
            "line": Column(np.int64),
            "clicked": Column(np.float32, (1,)),
            "converted": Column(np.float32, (1,)),
        }
    )


def _replace_codes(
    visits: ColumnStore,
    parts: dict[str, ColumnStore],
    min_count: int,
    given: dict[str, RowMap],
) -> dict[str, RowMap]:
    """Puts rows in the place of codes; vocabularies by the lines of training, unless given."""
    counts = {field.name: DistinctCounts() for field in _FIELDS}
    lines = np.zeros(len(visits), np.int64)
    for part, store in parts.items():
        for _, block in watched_blocks(store, f"{part}: counting values"):
            for field in (*CONTEXT, *CANDIDATE):
                # For a given vocabulary all values matter, wherever they stand.
                if part == "train" or field.name in given:
                    codes = block[field.name]
                    counts[field.name].add(codes[codes >= 0])
            if part == "train":
                lines += np.bincount(block["visit"], minlength=len(visits))
    for start, block in watched_blocks(visits, "visits: counting values"):
        for field in USER:
            codes = block[field.name]
            times = np.ones(len(codes), np.int64)
            if field.name not in given:
                times = lines[start : start + len(codes)]
            times = np.broadcast_to(times.reshape(-1, *(1,) * (codes.ndim - 1)), codes.shape)
            seen = (codes >= 0) & (times > 0)
            counts[field.name].add(codes[seen], times[seen])
    row_maps, rows = admit(counts, lambda codes: codes, min_count, given)
    for title, store in (("visits", visits), *parts.items()):
        fields = USER if store is visits else (*CONTEXT, *CANDIDATE)
        for start, block in watched_blocks(store, f"{title}: finding rows"):
            found = {}
            for field in fields:
                codes = block[field.name]
                found[field.name] = np.where(codes >= 0, rows[field.name](codes), np.int32(0))
            store.replace(start, found)
    return row_maps


def _requests(columns: dict[str, np.ndarray]) -> Requests:
    count = len(columns["line"])
    pick = lambda fields: {field.name: columns[field.name] for field in fields}
    return Requests(
        user=columns["visit"],
        # The same for all: no memory.
        cut=np.broadcast_to(np.int64(0), (count,)),
        time=columns["line"],
        candidate=np.broadcast_to(np.int32(0), (count, 1)),
        label={"click": columns["clicked"], "conversion": columns["converted"]},
        context=pick(CONTEXT),
        shown=pick(CANDIDATE),
    )


def _schema(row_maps: dict[str, RowMap]) -> Schema:
    return Schema(
        tables=tuple(Table(name=f.name, rows=row_maps[f.name].rows, dim=f.dim) for f in _FIELDS),
        fields=tuple(
            Field(
                name=field.name,
                role=role,
                kind="id" if field.width is None else "bag",
                width=field.width,
            )
            for role, fields in _ROLES.items()
            for field in fields
        ),
        tasks=("click", "conversion"),
    )
