"""Lines `label field:feature:value ...` and `label index:value ...`, as arrays, block by block."""

from collections.abc import Iterator
from pathlib import Path
import reprlib
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute

from ..errors import DataError
from ..files.lines import BadRows, read_blocks

pc: Any = pyarrow.compute  # its functions are made when it is imported

Form = Literal["libffm", "libsvm"]
MAX_ID = 2**31 - 1
_BLOCK_BYTES = 4 * 2**20
_NUMBER = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
_FEATURE = {"libffm": rf"^\d{{1,10}}:\d{{1,10}}:{_NUMBER}$", "libsvm": rf"^\d{{1,10}}:{_NUMBER}$"}
_WRITTEN = {"libffm": "field:feature:value", "libsvm": "index:value"}
_LABELS = {"0": 0, "1": 1, "-1": -1}


class Block(NamedTuple):
    """`R` lines and the `E` features on them, in order.

    `label` (R,) int8: -1, 0 or 1, as written. `line` (R,) int64, from 1. `row` (E,) int32, the line
    of each feature, ascending; `field` (E,) int32, of libsvm 0; `feature` (E,) int32; `value` (E,)
    float32, not 0.
    """

    label: np.ndarray
    line: np.ndarray
    row: np.ndarray
    field: np.ndarray
    feature: np.ndarray
    value: np.ndarray


def read(path: Path, form: Form, bad: BadRows) -> Iterator[Block]:
    """The good lines of a file; `bad` is told of the others.

    Features are parted by spaces or tabs; what follows a # is a comment.

    Raises:
      DataError: no such file, a damaged or an empty one, a bad line if `bad` stops there, or labels
        of which some are 0 and some -1.
    """
    seen: set[int] = set()
    # One column: a letter that stands in no such line separates nothing.
    blocks = read_blocks(
        path,
        {"text": pa.string()},
        bad=bad,
        separator="\x1f",
        numbered=True,
        block_bytes=_BLOCK_BYTES,
    )
    for batch in blocks:
        block = _parsed(path, form, batch["text"], batch["line"].to_numpy(), bad)
        seen |= set(np.unique(block.label).tolist())
        if {0, -1} <= seen:
            raise DataError(f"{path}: labels are 0 and -1; one of them must stand for no.")
        if len(block.label):
            yield block


def _parsed(path: Path, form: Form, text: Any, line: np.ndarray, bad: BadRows) -> Block:
    text = pc.replace_substring_regex(text, "#.*$", "")
    full = pc.not_equal(pc.utf8_trim_whitespace(text), "")
    text, line = text.filter(full), line[full.to_numpy(zero_copy_only=False)]
    words = pc.ascii_split_whitespace(pc.ascii_trim_whitespace(text))
    size = words.value_lengths().to_numpy()
    start = np.cumsum(size) - size
    words = words.flatten()
    label, broken = _labels(words.take(pa.array(start)))
    is_feature = np.ones(len(words), bool)
    is_feature[start] = False
    features = words.filter(pa.array(is_feature))
    row = np.repeat(np.arange(len(size), dtype=np.int32), size - 1)
    fine = pc.match_substring_regex(features, _FEATURE[form]).to_numpy(zero_copy_only=False)
    for at in np.flatnonzero(~fine):
        broken.setdefault(int(row[at]), _reason(form, features[at].as_py()))
    parts = pc.split_pattern(features.filter(pa.array(fine)), ":").flatten()
    row, width = row[fine], _FEATURE_PARTS[form]
    numbers = [parts.take(pa.array(np.arange(at, len(parts), width))) for at in range(width)]
    ids = [number.cast(pa.int64()).to_numpy() for number in numbers[:-1]]
    # Arrow reads no number with a plus.
    value = pc.replace_substring_regex(numbers[-1], r"^\+", "").cast(pa.float64()).to_numpy()
    value = value.astype(np.float32) if np.all(np.abs(value) < 3e38) else _narrow(value)
    for wrong, what in (
        *((each > MAX_ID, f"must be <= {MAX_ID}") for each in ids),
        (~np.isfinite(value), "must fit in float32"),
    ):
        for at in np.flatnonzero(wrong):
            broken.setdefault(int(row[at]), f"a number of a feature {what}")
    kept = np.ones(len(size), bool)
    kept[list(broken)] = False
    for at in sorted(broken):
        bad.add(path, int(line[at]), broken[at])
    of_kept = kept[row] & (value != 0)
    place = np.cumsum(kept, dtype=np.int32) - 1
    columns = [each[of_kept].astype(np.int32) for each in ids]
    return Block(
        label=label[kept],
        line=line[kept],
        row=place[row[of_kept]],
        field=columns[0] if form == "libffm" else np.zeros(len(columns[0]), np.int32),
        feature=columns[-1],
        value=value[of_kept],
    )


_FEATURE_PARTS = {"libffm": 3, "libsvm": 2}


def _narrow(value: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return value.astype(np.float32)


def _labels(words: Any) -> tuple[np.ndarray, dict[int, str]]:
    """int8 labels, and {row: reason} of those that are none."""
    coded = words.dictionary_encode()
    values, reasons = [], {}
    for code, word in enumerate(coded.dictionary.to_pylist()):
        whole, _, fraction = word.removeprefix("+").partition(".")
        if whole in _LABELS and not fraction.strip("0"):
            values.append(_LABELS[whole])
        else:
            values.append(0)
            reasons[code] = f"the label must be 0 or 1 (or -1 or 1), got {reprlib.repr(word)}"
    codes = coded.indices.to_numpy()
    broken = np.flatnonzero(np.isin(codes, list(reasons)))
    return np.array(values, np.int8)[codes], {int(at): reasons[codes[at]] for at in broken}


def _reason(form: Form, word: str) -> str:
    if word.startswith("qid:"):
        return f"holds the id of a query ({reprlib.repr(word)}); lists to be ranked are not read"
    return f"a feature must be {_WRITTEN[form]}, got {reprlib.repr(word)}"
