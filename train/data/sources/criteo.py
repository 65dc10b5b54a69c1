"""`criteo:FILE`: train.txt of the Display Advertising Challenge, as Criteo published it.

https://www.kaggle.com/c/criteo-display-ad-challenge (2014): 45,840,617 lines of seven days, plain
or compressed, without a header, tab separated: clicked or not, 13 whole numbers (counts, mostly;
they may be negative) and 26 categories as 8 hexadecimal digits; any but the label may be empty.

Every line is one request with one candidate. Nobody knows what was shown to whom: all features
stand in the role "context", nothing in any other; there is one user, without events, and so GAUC
is AUC. Models that need an item or a history say that they cannot be trained on this.

Numbers `i1` .. `i13`: log1p of the published value with its sign, an empty one reads as 0.
Categories `c1` .. `c26`: one table each, of the values that training sees at least 10 times, as in
the benchmark Criteo_x4 (https://openbenchmark.github.io/BARS): what is rarer learns little, and
would take most of the rows. Rare and new values read row 1, empty ones are padding.

Split: by time, which is the order of lines: the first eight tenths train, the next validates, the
last tests, as a model is used that predicts tomorrow. Published numbers are mostly of parts drawn
line by line (Criteo_x4: of these sizes), which shows a model the future of the campaigns that it
is tested on: not to be compared. Lines may repeat; they count as often as they stand there.
`Requests.time` is the number of the line: it only orders.
"""

from pathlib import Path
import reprlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from ....zoo.features import DistinctCounts, Field, RowMap, Schema, Table, transforms
from ....zoo.features.record import numbers_of
from ..coded import admit, watched_blocks
from ..dataset import Dataset
from ..errors import DataError
from ..files.lines import BadRows, OnBadRow, read_blocks
from ..labelled import nobody, requests_of
from ..store import ColumnStore, ColumnType

pc: Any = pyarrow.compute  # its functions are made when it is imported

NUMBERS = tuple(f"i{i}" for i in range(1, 14))
CATEGORIES = tuple(f"c{i}" for i in range(1, 27))
MIN_COUNT = 10
DIM = 16
_MIN_LINES = 10
_COLUMNS = {
    "label": pa.string(),
    **dict.fromkeys(NUMBERS, pa.int64()),
    **dict.fromkeys(CATEGORIES, pa.string()),
}
# A category's letter as four bits; 255 for what is no digit.
_DIGIT = np.full(256, 255, np.uint8)
_DIGIT[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)


def load(
    path: str | Path,
    *,
    min_count: int = MIN_COUNT,
    on_bad_row: OnBadRow = "stop",
    row_maps: dict[str, RowMap] | None = None,
) -> Dataset:
    """Reads the file once, into columns on disk (see `store`): 172 bytes a line.

    Args:
      path: `train.txt`, plain or compressed, or an archive (`FILE.tar.gz/train.txt`).
      min_count: how often training must see a category for a row of its own.
      on_bad_row: "stop" at the first line that cannot be read, naming it; or "skip" such lines and
        count them in `facts`.
      row_maps: vocabularies of an earlier run.

    Raises:
      DataError: no such file, a damaged one, a bad line, or fewer than 10 good ones.
    """
    path = Path(path)
    bad = BadRows(on_bad_row)
    features, rest = _read(path, bad)
    lines = len(features)
    if lines < _MIN_LINES:
        raise DataError(f"{path}: holds {lines} lines that can be read, needs {_MIN_LINES}.")
    ends = [0, lines * 8 // 10, lines * 9 // 10, lines]
    row_maps = _replace_codes(path, features, rest, ends[1], min_count, row_maps)
    splits = [slice(a, b) for a, b in zip(ends[:-1], ends[1:], strict=True)]
    context, told = features.columns(), rest.columns()
    train, validation, test = (
        requests_of(context, told["label"], told["line"], split) for split in splits
    )
    return Dataset(
        name=f"criteo:{path.name}",
        schema=_schema(row_maps),
        row_maps=row_maps,
        log=nobody(),
        train=train,
        validation=validation,
        test=test,
        facts={
            "lines": lines,
            "clicks per line": round(float(told["label"].mean(dtype=np.float64)), 4),
            "values known": sum(row_maps[table].rows for table in CATEGORIES),
            **bad.facts(),
        },
    )


def _read(path: Path, bad: BadRows) -> tuple[ColumnStore, ColumnStore]:
    """Numbers and codes of all good lines; their labels, lines, and which codes are missing."""
    features = ColumnStore(
        {
            **dict.fromkeys(NUMBERS, ColumnType(np.float32)),
            **dict.fromkeys(CATEGORIES, ColumnType(np.int32)),
        }
    )
    rest = ColumnStore(
        {
            "line": ColumnType(np.int64),
            "label": ColumnType(np.float32, (1,)),
            "missing": ColumnType(np.int32),
        }
    )
    blocks = read_blocks(
        path,
        _COLUMNS,
        bad=bad,
        separator="\t",
        optional=(*NUMBERS, *CATEGORIES),
        choices={"label": ("0", "1")},
        numbered=True,
    )
    log1p = transforms.function("log1p")
    for block in blocks:
        codes, usable = _codes(path, block, bad)
        block = block.filter(pa.array(usable))
        missing = np.zeros(block.num_rows, np.int32)
        for bit, name in enumerate(CATEGORIES):
            null = block[name].is_null().to_numpy(zero_copy_only=False)
            missing |= null.astype(np.int32) << np.int32(bit)
        features.append(
            {
                **{name: log1p(numbers_of(block[name])) for name in NUMBERS},
                **{name: codes[name][usable].view(np.int32) for name in CATEGORIES},
            }
        )
        clicked = pc.equal(block["label"], "1").to_numpy(zero_copy_only=False)
        rest.append(
            {
                "label": clicked.astype(np.float32)[:, None],
                "line": block["line"].to_numpy(),
                "missing": missing,
            }
        )
    return features, rest


def _codes(
    path: Path, block: pa.RecordBatch, bad: BadRows
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The codes of every row, and which rows have no broken one; `bad` is told of the others."""
    codes, usable = {}, np.ones(block.num_rows, bool)
    for name in CATEGORIES:
        codes[name], fine = codes_of(block[name])
        for row in np.flatnonzero(usable & ~fine):
            value = reprlib.repr(block[name][row].as_py())
            line = block["line"][row].as_py()
            bad.add(path, line, f"{name} must be 8 hexadecimal digits, got {value}")
        usable &= fine
    return codes, usable


def codes_of(column: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
    """The uint32 that 8 hexadecimal digits stand for, 0 for nulls; and which values are fine."""
    size = pc.fill_null(pc.binary_length(column), 0).to_numpy(zero_copy_only=False)
    fine = column.is_null().to_numpy(zero_copy_only=False)
    codes, wide = np.zeros(len(column), np.uint32), size == 8
    # What a filter returns is dense: one text behind the other.
    kept = column.filter(pa.array(wide))
    if len(kept):
        digit = _DIGIT[np.frombuffer(kept.buffers()[2], np.uint8, 8 * len(kept)).reshape(-1, 8)]
        fine[wide] = digit.max(axis=1) < 16
        codes[wide] = (digit[:, ::2] << 4 | digit[:, 1::2] & 15).view(">u4")[:, 0]
    return codes, fine


def _texts(codes: np.ndarray) -> list[str]:
    return [f"{code:08x}" for code in codes.tolist()]


def _replace_codes(
    path: Path,
    features: ColumnStore,
    rest: ColumnStore,
    train: int,
    min_count: int,
    given: dict[str, RowMap] | None,
) -> dict[str, RowMap]:
    """Puts rows in the place of codes; vocabularies by the first `train` lines, unless given."""
    given = given or {}
    counts = {name: DistinctCounts() for name in CATEGORIES}
    for start, block, present in _with_presence(features, rest, f"{path.name}: counting values"):
        for name in CATEGORIES:
            # For a given vocabulary all values matter, wherever they stand.
            counted = slice(None) if name in given else slice(max(train - start, 0))
            counts[name].add(block[name][counted].view(np.uint32)[present[name][counted]])
    row_maps, rows = admit(counts, _texts, min_count, given)
    for start, block, present in _with_presence(features, rest, f"{path.name}: finding rows"):
        found = {name: rows[name](block[name].view(np.uint32)) for name in CATEGORIES}
        features.replace(
            start, {name: np.where(present[name], found[name], np.int32(0)) for name in CATEGORIES}
        )
    return row_maps


def _with_presence(features: ColumnStore, rest: ColumnStore, title: str) -> Any:
    """(first row, columns, which values are there) of consecutive blocks."""
    for start, block in watched_blocks(features, title):
        codes = {name: np.ascontiguousarray(block[name]) for name in CATEGORIES}
        missing = rest.read(start, len(codes["c1"]))["missing"]
        there = {name: missing & np.int32(1 << i) == 0 for i, name in enumerate(CATEGORIES)}
        yield start, codes, there


def _schema(row_maps: dict[str, RowMap]) -> Schema:
    return Schema(
        tables=tuple(Table(name=name, rows=row_maps[name].rows, dim=DIM) for name in CATEGORIES),
        fields=(
            *(Field(name=n, role="context", kind="dense", transform="log1p") for n in NUMBERS),
            *(Field(name=name, role="context", value="string") for name in CATEGORIES),
        ),
    )
