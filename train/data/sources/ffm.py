"""`libffm:FILE` and `libsvm:FILE`: labelled lines of features by number, for click models.

    label field:feature:value ...      libffm (https://github.com/ycjuan/libffm)
    label index:value ...              libsvm, svmlight (https://www.csie.ntu.edu.tw/~cjlin/libsvm)

Labels are 0 and 1, or -1 and 1, which reads as 0 and 1. Every line is one request with one
candidate, without user or item, as in `criteo`: all features stand in the role "context", and GAUC
is AUC.

A feature of the value 0 is one that is not there.

libffm: field 7 is the field `f7`. It is an id; a bag where some line holds it more than once; and a
number (dense, standardised by what training sees, 0 on lines without it) where it has one feature
whose values are not all 1. A field of several features with such values has no form here.

libsvm: an index whose values are all 1 is an id in the bag `index`; another one, say 7, is the
number `i7`, as above. At most `MAX_NUMBERS` are read so: of more, features are words weighted by
a statistic, which no field can hold.

Ids that training sees fewer than 10 times read row 1. Split by the order of lines as in `criteo`:
eight tenths train, the next validates, the last tests. A bag keeps the first `MAX_BAG` ids of a
line; what it leaves out is counted.

Files are read once, block by block, into columns on disk (see `store`).
"""

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ....zoo.features import DistinctCounts, Field, RowMap, Schema, Table
from ....zoo.features.transforms import fitted, function
from ..coded import admit, watched_blocks
from ..dataset import Dataset
from ..errors import DataError
from ..files.lines import BadRows, OnBadRow
from ..labelled import nobody, requests_of
from ..store import ColumnStore, ColumnType
from .ffm_lines import Form, read

MIN_COUNT = 10
MAX_NUMBERS = 256
MAX_BAG = 256
DIM = 16
_MIN_LINES = 10
_STANDARD = "zscore | clip(-5, 5)"
_INDEX = "index"
_FEATURE = ("row", "field", "feature", "value")


def load_libffm(path: str | Path, **options: Any) -> Dataset:
    """Reads a file of libffm lines; options and errors as of `load`."""
    return load(path, "libffm", **options)


def load_libsvm(path: str | Path, **options: Any) -> Dataset:
    """Reads a file of libsvm lines; options and errors as of `load`."""
    return load(path, "libsvm", **options)


def load(
    path: str | Path,
    form: Form,
    *,
    min_count: int = MIN_COUNT,
    on_bad_row: OnBadRow = "stop",
    row_maps: dict[str, RowMap] | None = None,
    transforms: dict[str, str] | None = None,
    schema: Schema | None = None,
) -> Dataset:
    """Reads the file, plain or compressed.

    Args:
      path: the file.
      form: "libffm" or "libsvm".
      min_count: how often training must see an id for a row of its own.
      on_bad_row: "stop" at the first line that cannot be read, naming it; or "skip" such lines and
        count them in `facts`.
      row_maps, transforms: of an earlier run.
      schema: of an earlier run: its fields are read as they are there, and no others.

    Raises:
      DataError: no such file, a damaged one, a bad line, fewer than 10 good ones, or features with
        values that no field can hold.
    """
    path, bad = Path(path), BadRows(on_bad_row)
    lines, entries, spans, facts = _stored(path, form, bad)
    if len(lines) < _MIN_LINES:
        raise DataError(f"{path}: holds {len(lines)} lines that can be read, needs {_MIN_LINES}.")
    ends = [0, len(lines) * 8 // 10, len(lines) * 9 // 10, len(lines)]
    if schema is None:
        fields = _fields(path, form, entries, spans, lines)
    else:
        fields = {_key(field.name): field for field in schema.fields}
    features, left_out = _features(path, fields, form, entries, spans, lines)
    del entries
    row_maps = _replace_codes(path, features, fields, ends[1], min_count, row_maps or {})
    done = _replace_numbers(features, fields, ends[1], transforms or {})
    told, context = lines.columns(), features.columns()
    splits = [slice(a, b) for a, b in zip(ends[:-1], ends[1:], strict=True)]
    train, validation, test = (
        requests_of(context, told["label"], told["line"], split) for split in splits
    )
    return Dataset(
        name=f"{form}:{path.name}",
        schema=Schema(
            tables=tuple(Table(name=n, rows=row_maps[n].rows, dim=DIM) for n in row_maps),
            fields=tuple(done),
        ),
        row_maps=row_maps,
        log=nobody(),
        train=train,
        validation=validation,
        test=test,
        facts={
            "lines": len(lines),
            "positive labels per line": round(float(told["label"].mean(dtype=np.float64)), 4),
            **facts,
            **left_out,
            **bad.facts(),
        },
    )


class _Span(NamedTuple):
    """A block of lines and of the features on them: where they start, and how many they are."""

    line: int
    lines: int
    entry: int
    entries: int


def _stored(
    path: Path, form: Form, bad: BadRows
) -> tuple[ColumnStore, ColumnStore, list[_Span], dict[str, Any]]:
    """Lines and features on disk, which of them belong together, and what to say of the labels."""
    lines = ColumnStore({"label": ColumnType(np.float32, (1,)), "line": ColumnType(np.int64)})
    entries = ColumnStore(
        {name: ColumnType(np.float32 if name == "value" else np.int32) for name in _FEATURE}
    )
    spans: list[_Span] = []
    is_signed = False
    for block in read(path, form, bad):
        spans.append(_Span(len(lines), len(block.label), len(entries), len(block.row)))
        is_signed |= bool((block.label < 0).any())
        positive = (block.label > 0).astype(np.float32)
        lines.append({"label": positive[:, None], "line": block.line})
        entries.append({name: getattr(block, name) for name in _FEATURE})
    return lines, entries, spans, {"labels": "-1 and 1, read as 0 and 1"} if is_signed else {}


def _key(name: str) -> int:
    """What a field is known by among the features: its number; -1 is the bag of libsvm."""
    return -1 if name == _INDEX else int(name[1:])


def _fields(
    path: Path, form: Form, entries: ColumnStore, spans: list[_Span], lines: ColumnStore
) -> dict[int, Field]:
    """The fields by their keys: kinds and widths are what the file holds."""
    numbers = _numbers(path, form, entries, spans, lines)
    most: Counter[int] = Counter()
    for span in spans:
        block = entries.read(span.entry, span.entries)
        # Sorted by key, and by line within one.
        both = np.sort((_keys(block, form, numbers) + 1 << 31) + block["row"])
        first = np.flatnonzero(np.diff(both, prepend=-1))
        count, key = np.diff(first, append=len(both)), (both[first] >> 31) - 1
        starts = np.flatnonzero(np.diff(key, prepend=-2))
        here = np.maximum.reduceat(count, starts) if len(starts) else count
        for one, size in zip(key[starts].tolist(), here.tolist(), strict=True):
            most[one] = max(most[one], size)
    fields = {}
    for key in sorted(most):
        name = _INDEX if key < 0 else f"{'f' if form == 'libffm' else 'i'}{key}"
        if key in numbers:
            fields[key] = Field(name=name, role="context", kind="dense", transform=_STANDARD)
        elif most[key] > 1 or key < 0:
            width = min(most[key], MAX_BAG)
            fields[key] = Field(name=name, role="context", kind="bag", width=width)
        else:
            fields[key] = Field(name=name, role="context")
    if not fields:
        raise DataError(f"{path}: its lines hold no features.")
    return fields


def _numbers(
    path: Path, form: Form, entries: ColumnStore, spans: list[_Span], lines: ColumnStore
) -> set[int]:
    """Fields of libffm, or indices of libsvm, whose values are not all 1."""
    what = "field" if form == "libffm" else "feature"
    numbers: dict[int, str] = {}
    only: dict[int, int] = {}
    several: set[int] = set()
    for span in spans:
        block = entries.read(span.entry, span.entries)
        odd = np.flatnonzero(block["value"] != 1)
        found, first = np.unique(block[what][odd], return_index=True)
        for key, at in zip(found.tolist(), odd[first].tolist(), strict=True):
            if key not in numbers:
                line = lines.read(span.line + int(block["row"][at]), 1)["line"][0]
                written = f"{block['feature'][at]}:{block['value'][at]:g}"
                written = f"{key}:{written}" if form == "libffm" else written
                numbers[key] = f"line {line}: {written}"
        if form == "libffm":
            order = np.argsort(block["field"], kind="stable")
            field, feature = block["field"][order], block["feature"][order]
            starts = np.flatnonzero(np.diff(field, prepend=-1))
            low = np.minimum.reduceat(feature, starts).tolist() if len(starts) else []
            high = np.maximum.reduceat(feature, starts).tolist() if len(starts) else []
            for key, a, b in zip(field[starts].tolist(), low, high, strict=True):
                if a != b or only.setdefault(key, a) != a:
                    several.add(key)
        if form == "libsvm" and len(numbers) > MAX_NUMBERS:
            raise DataError(
                f"{path}: more than {MAX_NUMBERS} indices have values that are not 1 "
                f"({next(iter(numbers.values()))}); ids must have the value 1."
            )
    for key in sorted(several & numbers.keys()):
        raise DataError(
            f"{path}: field {key} has several features with values that are not 1 "
            f"({numbers[key]}); ids must have the value 1, and a number a field of its own."
        )
    return set(numbers)


def _keys(block: dict[str, np.ndarray], form: Form, numbers: set[int]) -> np.ndarray:
    """The key of the field that each feature belongs to."""
    if form == "libffm":
        return block["field"].astype(np.int64)
    is_number = np.isin(block["feature"], np.array(sorted(numbers), np.int64))
    return np.where(is_number, block["feature"].astype(np.int64), -1)


def _features(
    path: Path,
    fields: dict[int, Field],
    form: Form,
    entries: ColumnStore,
    spans: list[_Span],
    lines: ColumnStore,
) -> tuple[ColumnStore, dict[str, Any]]:
    """A column for each field: ids as int32 numbers, -1 for none; and what was left out."""
    store = ColumnStore(
        {
            field.name: ColumnType(
                np.float32 if field.kind == "dense" else np.int32,
                (field.width,) if field.width else (),
            )
            for field in fields.values()
        }
    )
    numbers = {key for key, field in fields.items() if field.kind == "dense"}
    known = np.array(sorted(fields), np.int64)
    unknown, cut = 0, Counter[str]()
    for span in spans:
        block = entries.read(span.entry, span.entries)
        key = _keys(block, form, numbers)
        is_known = np.isin(key, known)
        unknown += int(np.count_nonzero(~is_known))
        odd = is_known & (block["value"] != 1) & ~np.isin(key, np.array(sorted(numbers), np.int64))
        for at in np.flatnonzero(odd)[:1]:
            line = lines.read(span.line + int(block["row"][at]), 1)["line"][0]
            name = fields[int(key[at])].name
            raise DataError(
                f"{path}: line {line}: feature {block['feature'][at]} has the value "
                f"{block['value'][at]:g}, must have 1: field {name!r} is one of ids in that run."
            )
        order = np.argsort(key, kind="stable")
        starts = np.searchsorted(key[order], known)
        ends = np.searchsorted(key[order], known, side="right")
        columns = {}
        for one, start, end in zip(known.tolist(), starts, ends, strict=True):
            field, at = fields[one], order[start:end]
            columns[field.name], lost = _column(field, span.lines, block, at)
            if lost:
                cut[field.name] += lost
        store.append(columns)
    facts: dict[str, Any] = {}
    if unknown:
        facts["features of unknown fields"] = unknown
    if cut:
        shown = ", ".join(f"{name}: {n}" for name, n in sorted(cut.items()))
        facts["features beyond the width of their field"] = shown
    return store, facts


def _column(
    field: Field, rows: int, block: dict[str, np.ndarray], at: np.ndarray
) -> tuple[np.ndarray, int]:
    """The field on each of `rows` lines, by the features `at`; and how many had no room."""
    row = block["row"][at]
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    fits = rank < (field.width or 1)
    lost = int(np.count_nonzero(~fits))
    if field.kind == "dense":
        column = np.zeros(rows, np.float32)
        column[row[fits]] = block["value"][at[fits]]
        return column, lost
    column = np.full((rows, field.width or 1), -1, np.int32)
    column[row[fits], rank[fits]] = block["feature"][at[fits]]
    return column if field.kind == "bag" else column[:, 0], lost


def _replace_codes(
    path: Path,
    features: ColumnStore,
    fields: dict[int, Field],
    train: int,
    min_count: int,
    given: dict[str, RowMap],
) -> dict[str, RowMap]:
    """Puts rows in the place of ids; vocabularies by the first `train` lines, unless given."""
    names = [field.name for field in fields.values() if field.kind != "dense"]
    counts = {name: DistinctCounts() for name in names}
    for start, block in watched_blocks(features, f"{path.name}: counting values"):
        for name in names:
            # For a given vocabulary all values matter, wherever they stand.
            counted = slice(None) if name in given else slice(max(train - start, 0))
            ids = block[name][counted]
            counts[name].add(ids[ids >= 0])
    row_maps, rows = admit(counts, lambda codes: codes, min_count, given)
    for start, block in watched_blocks(features, f"{path.name}: finding rows") if names else ():
        found = {n: np.where(block[n] >= 0, rows[n](block[n]), np.int32(0)) for n in names}
        features.replace(start, found)
    return row_maps


def _replace_numbers(
    features: ColumnStore, fields: dict[int, Field], train: int, given: dict[str, str]
) -> list[Field]:
    """Puts transformed numbers in the place of others; the fields with what they have learnt."""
    done = dict(fields)
    columns = features.columns()
    for key, field in fields.items():
        if field.kind == "dense":
            text = given.get(f"context.{field.name}", field.transform)
            text = fitted(text, columns[field.name][:train].copy())
            done[key] = Field(name=field.name, role="context", kind="dense", transform=text)
    numbers = {f.name: function(f.transform) for f in done.values() if f.kind == "dense"}
    del columns
    for start, block in features.blocks() if numbers else ():
        changed = {n: change(block[n]).astype(np.float32) for n, change in numbers.items()}
        features.replace(start, changed)
    return list(done.values())
