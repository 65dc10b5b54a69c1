r"""`aliccp:DIR`: Ali-CCP (Alibaba Click and Conversion Prediction) as Alimama published it.

Ma et al., "Entire Space Multi-Task Model", SIGIR 2018, https://arxiv.org/abs/1804.07931;
https://tianchi.aliyun.com/dataset/408. The folder holds, plain or compressed,

    sample_skeleton_{train,test}.csv   sample id, click, conversion, visit, count, features
    common_features_{train,test}.csv   visit, count, features

without headers; features as in `feature_lists`. A visit (the publisher's "common feature index")
is what many impressions share: the user. It is stored once, as a user of the log without events.
Every line of a skeleton is one request with one candidate, whose features are columns of the
request: nothing needs to be constant for an item, and no memory is used.

Fields: `USER`, `CONTEXT` and `CANDIDATE` of `aliccp_files`, one table each. Values of features
(logarithms of counts, or 1) are not read, but for bags: what the user did in 14 days keeps the
`BAG` heaviest entries. Features of other numbers, and those beyond the width of their field, are
left out and counted in `facts`. A value that training sees on fewer than 10 lines reads row 1: it
does not repay a row of its own (AITM's preparation does about the same).

Tasks: click, and conversion, which here is click *and* conversion: a few published lines have a
conversion without a click, bought some other way. They stay, as impressions nobody clicked; the
preparation that is most often used (of AITM, KDD 2021) leaves them out. GAUC is by visit.

Split: the published test files, which follow the training files in time, are the test.
Validation is the last tenth of the visits in the order of common_features_train.csv, wherever
their lines stand: a visit never straddles the split, as it does where lines are drawn one by one.
Sample ids are not compared: a line that stands there twice counts twice. `Requests.time` is the
number of the line: it only orders.
"""

from pathlib import Path

import numpy as np

from ....zoo.features import DistinctCounts, Field, Role, RowMap, Schema, Table
from .. import files
from ..coded import admit, watched_blocks
from ..dataset import Dataset
from ..errors import DataError
from ..event_log import EventLog, Requests
from ..files.lines import BadRows, OnBadRow
from ..store import ColumnStore, ColumnType
from .aliccp_files import CANDIDATE, CONTEXT, USER, Published, Reader

MIN_COUNT = 10
_ROLES: dict[Role, tuple[Published, ...]] = {
    "user": USER,
    "context": CONTEXT,
    "candidate": CANDIDATE,
}
_FIELDS = (*USER, *CONTEXT, *CANDIDATE)


def load(
    folder: str | Path,
    *,
    min_count: int = MIN_COUNT,
    on_bad_row: OnBadRow = "stop",
    row_maps: dict[str, RowMap] | None = None,
) -> Dataset:
    """Reads each file once, into columns on disk (see `store`).

    Args:
      folder: of the four files, each plain or compressed, or of the two archives that they are
        published in (`sample_train.tar.gz`, `sample_test.tar.gz`); or one archive of the four.
      min_count: on how many training lines a value must stand for a row of its own.
      on_bad_row: "stop" at the first line that cannot be used, naming it; or "skip" such lines and
        count them in `facts`.
      row_maps: vocabularies of an earlier run.

    Raises:
      DataError: a file is missing or damaged, a line is bad, or a split is empty. A line is bad
        if its count is not that of its features, or its visit is not listed.
    """
    # A folder that is not there lacks its first file.
    is_wanted = lambda name: name.startswith(("sample_skeleton_", "common_features_"))
    name = files.name_of(Path(folder))
    if files.is_file(folder):
        folder = files.folder_of(folder, is_wanted)
    reader = Reader(Path(folder), BadRows(on_bad_row))
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
        name=f"aliccp:{name}",
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


def _columns(fields: tuple[Published, ...], *lead: int) -> dict[str, ColumnType]:
    width = lambda field: () if field.width is None else (field.width,)
    return {field.name: ColumnType(np.int32, (*lead, *width(field))) for field in fields}


def _request_store() -> ColumnStore:
    return ColumnStore(
        {
            **_columns(CONTEXT),
            **_columns(CANDIDATE, 1),
            "visit": ColumnType(np.int32),
            "line": ColumnType(np.int64),
            "clicked": ColumnType(np.float32, (1,)),
            "converted": ColumnType(np.float32, (1,)),
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
