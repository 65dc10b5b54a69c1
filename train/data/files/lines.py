"""Delimited text of any size, read block by block: what is held is one block, never the file.

A block of whole lines goes through Arrow's parser at once. Where that fails, the block is halved
until what fails is small, and only there each line is looked at by itself, to tell which is bad
and why. So a clean file is read at Arrow's speed, and every bad line is known by its number.
"""

from collections.abc import Collection, Iterator, Mapping
import csv
from pathlib import Path
import re
import reprlib
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv

from ...progress import Progress
from ..errors import DataError
from . import READ_ERRORS, one_line, open_counted, size_of
from .arrow_buffers import reader_of

pc: Any = pyarrow.compute  # its functions are made when it is imported
OnBadRow = Literal["stop", "skip"]

BLOCK_BYTES = 32 * 2**20
_LINE_BY_LINE_BYTES = 2**16
_PROGRESS_FROM_BYTES = 100 * 10**6
_BOM = b"\xef\xbb\xbf"
# Stands in for separators of several letters: Arrow knows only single ones.
_UNIT_SEPARATOR = "\x1f"
_WHOLE = re.compile(r"-?[0-9]+")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


class BadRows:
    """Policy for rows that cannot be used: stop at the first, or skip and count them.

    Attributes:
      count: how many rows were skipped.
      first: the first of them, its file, line and reason; "" before there is one.
    """

    def __init__(self, on_bad_row: OnBadRow = "stop"):
        self._on_bad_row = on_bad_row
        self.count, self.first = 0, ""

    def add(self, path: Path, line: int, reason: str) -> None:
        """Line `line` (the file's first is 1) cannot be used. Raises DataError unless skipping."""
        if self._on_bad_row == "stop":
            hint = "--on-bad-row skip passes over it"
            if line == 1:  # Of another kind of file, each line is bad.
                hint = "is the file of this source's layout, without a header?"
            raise DataError(f"{path}: line {line}: {reason} ({hint}).")
        self.count += 1
        self.first = self.first or f"{path.name}: line {line}: {reason}"

    def facts(self) -> dict[str, Any]:
        """For `Dataset.facts`; empty where nothing was skipped."""
        if not self.count:
            return {}
        return {"rows skipped": self.count, "first row skipped": self.first}


def read_blocks(
    path: str | Path,
    columns: Mapping[str, pa.DataType],
    *,
    bad: BadRows,
    separator: str = ",",
    header: bool = False,
    quoted: bool = False,
    encoding: str = "utf-8",
    optional: Collection[str] = (),
    choices: Mapping[str, Collection[str]] | None = None,
    numbered: bool = False,
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[pa.RecordBatch]:
    """Reads a text file, plain, compressed or in an archive (see `files.open_bytes`).

    Lines end in LF or CRLF; blank ones are passed over. Spaces around numbers are allowed.

    Args:
      path: the file.
      columns: {name: type} of all its columns in order; integers, floats (finite), strings, or
        strings as an Arrow dictionary.
      bad: told of every row that has another number of values, a value that its column's type
        cannot hold, or no value where one is required, or that is not text.
      separator: between values; more than one letter is fine.
      header: the first line holds the names of `columns`.
      quoted: values may stand in double quotes, within one line; else quotes are letters.
      encoding: "utf-8" or "latin-1".
      optional: columns whose value may be empty, and then is null.
      choices: {column: the only values it may have}.
      numbered: one more column, `line`, holds the int64 number of each row's line, from 1.
      block_bytes: about how much text is held at a time; no line may be longer.

    Yields:
      Batches of at least one row, in the file's order.

    Raises:
      DataError: no such file, one that is empty or holds no good row, a damaged one, another
        header than `columns`, or a bad row if `bad` stops there.
    """
    form = _Form(
        Path(path), dict(columns), separator, quoted, encoding, frozenset(optional), choices or {}
    )
    skipped, rows, wants_header = bad.count, 0, header
    for line, block in _blocks(form.path, block_bytes):
        if wants_header:
            end = block.find(b"\n") + 1 or len(block)
            form.check_header(block[:end])
            line, block, wants_header = line + 1, block[end:], False
        for batch, numbers in form.read(line, block, bad):
            rows += batch.num_rows
            yield batch.append_column("line", pa.array(numbers)) if numbered else batch
    if not rows and bad.count > skipped:
        raise DataError(f"{path}: holds no row that can be read ({bad.first}).")
    if not rows:
        raise DataError(f"{path}: {'holds only a header' if header else 'the file is empty'}.")


def read_lines(path: str | Path, *, block_bytes: int = BLOCK_BYTES) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, without their ends, by number; see `read_blocks`.

    Raises:
      DataError: no such file, one without such lines, or a damaged one.
    """
    some = False
    for first, block in _blocks(Path(path), block_bytes):
        for number, line in enumerate(block.split(b"\n"), start=first):
            if line and not line.isspace():
                some = True
                yield number, line.removesuffix(b"\r")
    if not some:
        raise DataError(f"{path}: the file is empty.")


def _blocks(path: Path, size: int) -> Iterator[tuple[int, bytes]]:
    """Blocks of whole lines, each with the number of its first."""
    total, line, done = size_of(path), 1, 0
    quiet = total < _PROGRESS_FROM_BYTES
    try:
        with (
            open_counted(path) as (file, raw),
            Progress(f"{path.name}, MB", total // 10**6, quiet=quiet) as bar,
        ):
            while block := file.read(size):
                if not block.endswith(b"\n"):
                    block += file.readline(size + 1)
                if len(block) > 2 * size:
                    number = line + block.count(b"\n")
                    raise DataError(f"{path}: line {number} is longer than {size:,} bytes.")
                here = raw.tell() // 10**6
                bar.advance(here - done)
                done = here
                yield line, block.removeprefix(_BOM) if line == 1 else block
                line += block.count(b"\n")
    except READ_ERRORS as error:
        reason = f"cannot be read after line {line - 1}: {one_line(error)}"
        raise DataError(f"{path}: {reason}") from error


class _Form:
    """Form of a file's lines, and how to read them."""

    def __init__(
        self,
        path: Path,
        columns: dict[str, pa.DataType],
        separator: str,
        quoted: bool,
        encoding: str,
        optional: frozenset[str],
        choices: Mapping[str, Collection[str]],
    ):
        for name, type_ in columns.items():
            if not (_is_text(type_) or _is_whole(type_) or pa.types.is_floating(type_)):
                raise NotImplementedError(f"Column {name!r} cannot be of type {type_}.")
        self.path, self.columns, self.optional = path, columns, optional
        self._separator, self._quoted, self._encoding = separator, quoted, encoding
        self._choices = {name: frozenset(values) for name, values in choices.items()}
        self._has_whole = any(_is_whole(type_) for type_ in columns.values())
        self._mark = separator if len(separator) == 1 else _UNIT_SEPARATOR
        self._parse = pyarrow.csv.ParseOptions(
            delimiter=self._mark, quote_char='"' if quoted else False
        )
        self._convert = pyarrow.csv.ConvertOptions(
            column_types=columns, null_values=[""], strings_can_be_null=True
        )
        self._read = pyarrow.csv.ReadOptions(column_names=list(columns), block_size=2**22)

    def check_header(self, line: bytes) -> None:
        text = line.decode(self._encoding, errors="replace").strip("\r\n")
        try:
            found = [name.strip() for name in self._split(text)]
        except csv.Error:
            found = []
        if found != list(self.columns):
            wanted = self._separator.join(self.columns)
            raise DataError(
                f"{self.path}: the first line must be {wanted!r}, got {reprlib.repr(text)}."
            )

    def read(
        self, line: int, block: bytes, bad: BadRows
    ) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
        """Batches of the block's good rows, with the numbers of their lines."""
        batch = self._at_once(block)
        numbers = None if batch is None else _numbers(line, block, batch.num_rows)
        if batch is None or numbers is None:
            half = _middle(block) if len(block) > _LINE_BY_LINE_BYTES else 0
            if half:
                yield from self.read(line, block[:half], bad)
                yield from self.read(line + block.count(b"\n", 0, half), block[half:], bad)
                return
            batch, numbers = self._line_by_line(line, block, bad)
        if batch.num_rows:
            yield batch, numbers

    def _at_once(self, block: bytes) -> pa.RecordBatch | None:
        """All of the block's rows; None if one of them may be bad."""
        # Arrow ends a line at a lone CR, and takes 0x10 for 16: neither is meant here.
        if block.count(b"\r") != block.count(b"\r\n"):
            return None
        if self._has_whole and (b"0x" in block or b"0X" in block):
            return None
        if self._mark != self._separator:
            if self._mark.encode() in block:
                return None
            block = block.replace(self._separator.encode(), self._mark.encode())
        if self._encoding != "utf-8":
            block = block.decode(self._encoding).encode()
        if not block.strip(b"\r\n"):
            return pa.RecordBatch.from_pylist([], pa.schema(list(self.columns.items())))
        try:
            table = pyarrow.csv.read_csv(
                reader_of(block),
                read_options=self._read,
                parse_options=self._parse,
                convert_options=self._convert,
            )
        except pa.ArrowInvalid:
            return None
        for name, type_ in self.columns.items():
            column = table[name]
            if column.null_count and name not in self.optional:
                return None
            if pa.types.is_floating(type_) and not _all(pc.is_finite(column)):
                return None
            if name in self._choices:
                options = pa.array(sorted(self._choices[name]))
                values = [c.dictionary for c in column.chunks] if _is_coded(type_) else [column]
                if not all(_all(pc.is_in(v.drop_null(), options)) for v in values):
                    return None
        return table.combine_chunks().to_batches()[0]

    def _line_by_line(
        self, first: int, block: bytes, bad: BadRows
    ) -> tuple[pa.RecordBatch, np.ndarray]:
        rows: list[list[Any]] = []
        numbers: list[int] = []
        for number, line in enumerate(block.split(b"\n"), start=first):
            line = line.removesuffix(b"\r")
            # Where there is one column, spaces are its value.
            if not line or (len(self.columns) > 1 and not line.strip(b" ")):
                continue
            try:
                rows.append(self._row(line))
                numbers.append(number)
            except _BadValue as error:
                bad.add(self.path, number, str(error))
        arrays = [
            pa.array([row[at] for row in rows], pa.string()).dictionary_encode().cast(type_)
            if _is_coded(type_)
            else pa.array([row[at] for row in rows], type_)
            for at, type_ in enumerate(self.columns.values())
        ]
        batch = pa.RecordBatch.from_arrays(arrays, list(self.columns))
        return batch, np.array(numbers, np.int64)

    def _row(self, line: bytes) -> list[Any]:
        try:
            text = line.decode(self._encoding)
        except UnicodeDecodeError:
            raise _BadValue(f"is not {self._encoding.upper()} text") from None
        try:
            values = self._split(text)
        except csv.Error as error:
            raise _BadValue(f"cannot be split into values: {error}") from None
        if len(values) != len(self.columns):
            raise _BadValue(
                f"has {len(values)} values, expected {len(self.columns)} split by "
                f"{self._separator!r}"
            )
        return [self._value(name, value) for name, value in zip(self.columns, values, strict=True)]

    def _split(self, text: str) -> list[str]:
        if self._quoted:
            return next(csv.reader([text], delimiter=self._separator, strict=True))
        return text.split(self._separator)

    def _value(self, name: str, value: str) -> Any:
        type_ = self.columns[name]
        if not value:
            if name in self.optional:
                return None
            raise _BadValue(f"{name} is missing")
        if name in self._choices and value not in self._choices[name]:
            one_of = ", ".join(sorted(self._choices[name]))
            raise _BadValue(f"{name} must be one of {one_of}, got {reprlib.repr(value)}")
        if _is_text(type_):
            return value
        stripped = value.strip(" \t")
        if _is_whole(type_):
            if not _WHOLE.fullmatch(stripped):
                raise _BadValue(f"{name} must be a whole number, got {reprlib.repr(value)}")
            limits = np.iinfo(type_.to_pandas_dtype())
            # Not int() of just any length: it refuses thousands of digits.
            if len(stripped) < 30 and limits.min <= int(stripped) <= limits.max:
                return int(stripped)
            raise _BadValue(f"{name} must fit in {type_}, got {reprlib.repr(value)}")
        largest = float(np.finfo(type_.to_pandas_dtype()).max)
        if _NUMBER.fullmatch(stripped) and abs(number := float(stripped)) <= largest:
            return number
        raise _BadValue(f"{name} must be a finite number, got {reprlib.repr(value)}")


class _BadValue(Exception):
    """Why a line cannot be used."""


def _middle(block: bytes) -> int:
    """Where a line starts that about halves the block; 0 if it holds but one."""
    half = block.find(b"\n", len(block) // 2) + 1
    if half in (0, len(block)):
        half = block.rfind(b"\n", 0, len(block) // 2) + 1
    return half


def _numbers(first: int, block: bytes, rows: int) -> np.ndarray | None:
    """The numbers of the lines that are not blank; None if there are not `rows` of them.

    Then a value in quotes goes on in the next line.
    """
    lines = block.count(b"\n") + (not block.endswith(b"\n"))
    if lines == rows:
        return np.arange(first, first + rows)
    filled = [number for number, line in enumerate(block.split(b"\n"), first) if line.strip(b"\r")]
    return np.array(filled, np.int64) if len(filled) == rows else None


def _all(mask: Any) -> bool:
    # Nulls do not count.
    return pc.all(mask, min_count=0).as_py()


def _is_whole(type_: pa.DataType) -> bool:
    return pa.types.is_integer(type_)


def _is_coded(type_: pa.DataType) -> bool:
    return type_ == pa.dictionary(pa.int32(), pa.string())


def _is_text(type_: pa.DataType) -> bool:
    return pa.types.is_string(type_) or _is_coded(type_)
