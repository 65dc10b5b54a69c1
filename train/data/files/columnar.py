"""Parquet, Feather and Arrow files: columns with types of their own."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.feather
import pyarrow.parquet

from ..errors import DataError
from .archives import one_line
from .arrow_buffers import reader_of
from .index import without_index

pc: Any = pyarrow.compute  # its functions are made when it is imported

MAGIC = {b"PAR1": "parquet", b"ARROW1": "arrow", b"FEA1": "feather", b"\xff\xff\xff\xff": "stream"}


def read_columnar(path: Path, source: Path | pa.Buffer, form: str, notes: list[str]) -> pa.Table:
    """The whole table; `source` is a file on disk or what it holds.

    Raises:
      DataError: it is damaged, names a column twice, or holds no row.
    """
    try:
        file = str(source) if isinstance(source, Path) else reader_of(source)
        if form == "parquet":
            table = pyarrow.parquet.ParquetFile(file).read()
        elif form == "stream":
            content = pa.OSFile(file) if isinstance(file, str) else file
            table = pa.ipc.open_stream(content).read_all()
        else:
            table = pyarrow.feather.read_table(file, memory_map=False)
    except (pa.ArrowException, OSError, UnicodeError, OverflowError) as error:
        raise DataError(f"{path}: cannot be read as a table: {one_line(error)}") from error
    return settled(path, table, notes)


def settled(path: Path, table: pa.Table, notes: list[str]) -> pa.Table:
    """The same table in the types that are read, without an index.

    Raises:
      DataError: see `read_columnar`; `path` stands in messages.
    """
    try:
        # Text is read as it is: broken text would be met only later.
        table.validate(full=True)
        table = plain(table, notes)
    except (pa.ArrowException, UnicodeError, OverflowError) as error:
        raise DataError(f"{path}: cannot be read as a table: {one_line(error)}") from error
    names = table.column_names
    for name in sorted(set(names)):
        if names.count(name) > 1:
            raise DataError(f"{path}: column {name!r} appears twice; found {', '.join(names)}.")
    table = without_index(table, notes)
    if not table.num_rows:
        raise DataError(f"{path}: holds no events.")
    return table


def plain(table: pa.Table, notes: list[str]) -> pa.Table:
    """The same table, whichever of Arrow's types for text and floats its writer chose."""
    columns = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        if isinstance(column.type, pa.BaseExtensionType):
            chunks = [chunk.storage for chunk in column.chunks]
            column = pa.chunked_array(chunks, column.type.storage_type)
        kind = _plain(column.type)
        if _is_bytes(column.type):
            try:
                column = column.cast(pa.string())
                notes.append(f"column {name!r} holds bytes: read as UTF-8 text")
            except pa.ArrowInvalid:
                kind = column.type
        if column.type != kind:
            column = column.cast(kind)
        if pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), pa.scalar(None, pa.float64()), column)
        columns.append(column)
    return pa.table(columns, names=table.column_names)


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) or _is_bytes(kind):
        return pa.string()
    if pa.types.is_floating(kind):
        return pa.float64()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        value = kind.value_type
        return pa.list_(value if pa.types.is_floating(value) else _plain(value))
    return kind


def _is_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return (
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    )
