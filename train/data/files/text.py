"""Text in memory: what it is encoded in, and what files that are no tables look like."""

from pathlib import Path
import re

import numpy as np
import pyarrow as pa

from ..errors import DataError
from .archives import to_arrow

_BOM = b"\xef\xbb\xbf"
# UTF-32 first: its mark starts as that of UTF-16 does.
_WIDE = {
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
_SAVE = "save it as CSV, JSON Lines or Parquet"
_OTHERS = {
    b"%PDF": f"a PDF document; {_SAVE}",
    b"SQLite format 3": f"an SQLite database; {_SAVE}",
    b"\x89HDF": f"an HDF5 file; {_SAVE}",
    b"\x93NUMPY": f"a NumPy array; {_SAVE}",
    b"\xd0\xcf\x11\xe0": f"an old Excel or Office document; {_SAVE}",
    b"ORC": f"an ORC file; {_SAVE}",
    b"Obj\x01": f"an Avro file; {_SAVE}",
    b"PARE": "an encrypted Parquet file; decrypt it first",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself; run `git lfs pull`",
    **{b"\x80" + bytes([v]): f"a Python pickle, which is never read; {_SAVE}" for v in range(2, 6)},
}
_HTML = re.compile(rb"\s*<(!doctype|html|\?xml|head|body)", re.IGNORECASE)
_LIBFFM = re.compile(rb"[+-]?\d+(\.\d+)?([ \t]+\w+:\w+:[^\s:]+)+\s*")
_LIBSVM = re.compile(rb"[+-]?\d+(\.\d+)?([ \t]+\w+:[^\s:,;|]+)+\s*")


def require_table(path: Path, head: bytes) -> None:
    """Raises DataError if a file that begins so is known to be something else than a table."""
    line = head.split(b"\n", 1)[0]
    for magic, what in _OTHERS.items():
        if head.startswith(magic) and (not magic.isalpha() or b"\0" in head):
            raise DataError(f"{path}: {what}.")
    if _HTML.match(head):
        raise DataError(f"{path}: a web page (HTML or XML), not a table; download the file itself.")
    for kind, form in (("libffm", _LIBFFM), ("libsvm", _LIBSVM)):
        if form.fullmatch(line):
            raise DataError(f"{path}: a file of {kind} lines, not a table: use {kind}:{path}.")


def as_utf8(path: Path, content: pa.Buffer, notes: list[str]) -> pa.Buffer:
    """The text in UTF-8 without a mark in front, its lines ended by LF or CRLF.

    Raises:
      DataError: it is in UTF-16 that is broken or has no mark, or is no text.
    """
    head = content.slice(0, min(len(content), 2**16)).to_pybytes()
    for mark, encoding in _WIDE.items():
        if head.startswith(mark):
            try:
                text = content.to_pybytes().decode(encoding)
            except UnicodeDecodeError as error:
                name = encoding.upper()
                reason = f"broken {name}: {error.reason} at byte {error.start}"
                raise DataError(f"{path}: cannot be read as a table: {reason}.") from error
            notes.append(f"text in {encoding.upper()}")
            content = to_arrow(text.removeprefix("\ufeff").encode())
            break
    else:
        if b"\0" in head:
            raise DataError(
                f"{path}: cannot be read as a table: it holds zero bytes, so it is no text (or "
                "UTF-16 without a mark in front); convert it to UTF-8."
            )
        if head.startswith(_BOM):
            content = content.slice(len(_BOM))
    letters = np.frombuffer(content, np.uint8)
    if len(letters) and not (letters == 10).any() and (letters == 13).any():
        # As old Macs end lines.
        notes.append("lines end in CR")
        content = to_arrow(np.where(letters == 13, np.uint8(10), letters).tobytes())
    return content
