"""A small log as text, and how files of it are written and checked."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile

import pyarrow as pa
import pytest

from recjax.train.data.errors import DataError
from recjax.train.data.files import read_table

ROWS = [(f"u{u}", str(i), str(1_600_000_000 + i)) for u in (1, 2) for i in range(4)]
NAMES = ["user_id", "item_id", "timestamp"]
COLUMNS = dict(zip(NAMES, map(list, zip(*ROWS, strict=True)), strict=True))


def as_csv(separator=",", header=True):
    lines = [NAMES, *ROWS] if header else ROWS
    return "".join(separator.join(line) + "\n" for line in lines)


CSV = as_csv()
COMPRESSED = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pa.compress(content, codec="zstd", asbytes=True),
}


def write(tmp_path, content, name="log.csv"):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def zipped(**members):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return content.getvalue()


def tarred(mode, **members):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=mode) as archive:
        for name, text in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return content.getvalue()


def check(raw, notes=()):
    """That a table of text holds ROWS, lines and notes."""
    assert raw.table.to_pydict() == COLUMNS
    assert all(field.type == pa.string() for field in raw.table.schema)
    assert raw.lines.tolist() == list(range(2, 10))
    assert raw.bad == []
    assert raw.notes == list(notes)


def refused(where, *reasons, **options):
    with pytest.raises(DataError) as caught:
        read_table(where, **options)
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and len(message) < 600
    for reason in reasons:
        assert reason in message
    return message
