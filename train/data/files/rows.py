"""Delimited text as columns of text: what cannot be read as a row is known by its line.

All of a clean file goes through Arrow's parser at once. Where that fails, or where a row might not
be a line, parts of the file do, and only in the part that fails Python looks at every line.
"""

import csv
from itertools import islice
import reprlib

import numpy as np
import pyarrow as pa
import pyarrow.csv

from .arrow_buffers import reader_of
from .table import BadRow

NULLS = ("", "nan", "NaN")
_PART_BYTES = 2**20
_LINES_OF_A_ROW = 1000
_LF, _CR, _QUOTE = b"\n"[0], b"\r"[0], b'"'[0]


def read_rows(
    text: pa.Buffer, names: list[str], separator: str, first_line: int
) -> tuple[pa.Table, np.ndarray, list[BadRow]]:
    """All rows of `text`, which has no header: the table, the line of each row, and bad rows.

    Values may stand in double quotes, and then hold separators, doubled quotes and line ends.
    Blank lines are passed over; `first_line` is the number of the first.
    """
    parser = _Parser(names, separator)
    whole = parser.at_once(text, first_line)
    if whole is not None:
        return *whole, []
    tables, lines, bad = [parser.schema.empty_table()], [np.zeros(0, np.int64)], []
    letters = np.frombuffer(text, np.uint8)
    ends = np.append(np.flatnonzero(letters == _LF) + 1, len(letters))
    quotes = np.searchsorted(np.flatnonzero(letters == _QUOTE), ends)
    line = start = 0
    while start < len(letters):
        stop = _end_of_part(start, ends, quotes)
        read = parser.at_once(text.slice(start, stop - start), first_line + line)
        if read is None:
            # A row may go on behind the part.
            further = int(ends[np.searchsorted(ends, min(stop + _PART_BYTES, len(letters)))])
            content = text.slice(start, further - start).to_pybytes()
            *read, broken, size = parser.line_by_line(content, first_line + line, stop - start)
            bad += broken
            stop = start + size
        tables.append(read[0])
        lines.append(read[1])
        line, start = int(np.searchsorted(ends, stop)) + 1, stop
    return pa.concat_tables(tables), np.concatenate(lines), bad


def split(line: str, separator: str) -> list[str]:
    """The values of one line."""
    try:
        return next(csv.reader([line], delimiter=separator), [])
    except csv.Error:
        return [line]


class _Parser:
    def __init__(self, names: list[str], separator: str):
        self.schema = pa.schema([(name, pa.string()) for name in names])
        self._names, self._separator = names, separator
        # One thread; what it holds is Arrow's own, and so are no functions of Python's among it.
        self._read = pyarrow.csv.ReadOptions(
            use_threads=False, column_names=names, block_size=2**22
        )
        self._parse = pyarrow.csv.ParseOptions(delimiter=separator)
        self._convert = pyarrow.csv.ConvertOptions(
            column_types=self.schema, strings_can_be_null=True, null_values=list(NULLS)
        )

    def at_once(self, text: pa.Buffer, first: int) -> tuple[pa.Table, np.ndarray] | None:
        """The rows and their lines; None if a line may be bad, or not be one row."""
        letters = np.frombuffer(text, np.uint8)
        ends = np.flatnonzero(letters == _LF)
        if len(letters) and letters[-1] != _LF:
            ends = np.append(ends, len(letters))
        returns = np.flatnonzero(letters == _CR)
        # Arrow ends a line at a lone CR.
        if len(returns) and (
            returns[-1] + 1 == len(letters) or not (letters[returns + 1] == _LF).all()
        ):
            return None
        quotes = np.flatnonzero(letters == _QUOTE)
        if len(quotes) and (np.searchsorted(quotes, ends) % 2).any():
            return None
        starts = np.append(0, ends[:-1] + 1) if len(ends) else ends
        size = ends - starts
        blank = size == 0
        blank[size == 1] = letters[starts[size == 1]] == _CR
        lines = first + np.flatnonzero(~blank)
        if not len(lines):
            return self.schema.empty_table(), lines
        try:
            table = pyarrow.csv.read_csv(
                reader_of(text),
                read_options=self._read,
                parse_options=self._parse,
                convert_options=self._convert,
            )
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return None
        return (table, lines) if table.num_rows == len(lines) else None

    def line_by_line(
        self, text: bytes, first: int, size: int
    ) -> tuple[pa.Table, np.ndarray, list[BadRow], int]:
        """The rows that start in the first `size` bytes, and where the last of them ends."""
        rows: list[list[str | None]] = []
        numbers: list[int] = []
        bad: list[BadRow] = []
        lines = text.split(b"\n")
        at = done = 0
        while done < size:
            used = 1
            if lines[at].strip():
                try:
                    row, used = self._row(lines, at)
                    rows.append([None if value in NULLS else value for value in row])
                    numbers.append(first + at)
                except _BadLine as error:
                    bad.append(BadRow(first + at, str(error)))
            done += sum(len(line) + 1 for line in lines[at : at + used])
            at += used
        columns = zip(*rows, strict=True) if rows else [[] for _ in self._names]
        arrays = [pa.array(column, pa.string()) for column in columns]
        table = pa.table(arrays, schema=self.schema)
        return table, np.array(numbers, np.int64), bad, min(done, len(text))

    def _row(self, lines: list[bytes], at: int) -> tuple[list[str], int]:
        """The values of the row that starts at a line, and how many lines it takes."""
        text = _decoded(lines[at])
        width = len(self._names)
        values, is_open = text.split(self._separator), False
        if '"' in text:
            try:
                # A value that is still in quotes goes on in the next line, here an empty one.
                reader = csv.reader([text, ""], delimiter=self._separator)
                values = next(reader)
                is_open = reader.line_num > 1
            except csv.Error as error:
                raise _BadLine(f"cannot be split into values: {error}") from None
        if is_open:
            values = split(text, self._separator)
            longer = self._row_of_lines(lines, at)
            if longer is not None:
                return longer
        if len(values) != width:
            seen = "" if len(values) > 1 else f": {reprlib.repr(text)}"
            seen = " (a quote is not closed)" if is_open else seen
            raise _BadLine(f"has {len(values)} values, expected {width}{seen}")
        if is_open:
            raise _BadLine("has a quote that is not closed")
        return values, 1

    def _row_of_lines(self, lines: list[bytes], at: int) -> tuple[list[str], int] | None:
        """The same for a row of several lines; None if it is none."""
        try:
            ahead = (_decoded(line) + "\n" for line in islice(lines, at, at + _LINES_OF_A_ROW))
            reader = csv.reader(ahead, delimiter=self._separator, strict=True)
            values, used = next(reader), reader.line_num
        except (csv.Error, _BadLine):
            return None
        return (values, used) if len(values) == len(self._names) else None


class _BadLine(Exception):
    """Why a line cannot be used."""


def _decoded(line: bytes) -> str:
    try:
        return line.rstrip(b"\r").decode()
    except UnicodeDecodeError as error:
        around = line[max(0, error.start - 8) : error.start + 8]
        raise _BadLine(
            f"is not UTF-8 text ({around!r}); if the file is in Latin-1, convert it: "
            "iconv -f latin1 -t utf-8"
        ) from None


def _end_of_part(start: int, ends: np.ndarray, quotes: np.ndarray) -> int:
    """Where a part that starts there ends: with a line, and not within quotes if that can be told.

    `ends` of all lines; `quotes` before each.
    """
    first = int(np.searchsorted(ends, start))
    before = int(quotes[first]) if ends[first] == start else 0
    at = int(np.searchsorted(ends, min(start + _PART_BYTES, ends[-1])))
    near = quotes[at : int(np.searchsorted(ends, start + 2 * _PART_BYTES)) + 1]
    closed = np.flatnonzero((near - before) % 2 == 0)
    return int(ends[at + (int(closed[0]) if len(closed) else 0)])
