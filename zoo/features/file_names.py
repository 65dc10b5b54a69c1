"""Names of files after tables and columns, which may have any name in any script.

Letters, digits and `_.-~` stay; any other character is percent-encoded, up to twelve letters each.
A name that would be too long for a file system, or whose capitals one might not tell from small
letters, is cut and ends with a digest of the whole: `item` stays, `Item` becomes `Item=c3f8...`.
"""

import hashlib
from pathlib import Path
from urllib.parse import quote

_LONGEST = 120
"""Letters of a file's name before it is cut; file systems allow 255 bytes."""
_DIGEST = 16
_ENDING = ".npy"


def file_of(folder: Path, name: str, *, before: str = "") -> Path:
    """The array file of `name` in `folder`; `before` is the beginning of the file's name.

    Earlier versions cut nothing: a file that stands there under the whole name is the one.
    """
    path = folder / f"{before}{_short(name)}{_ENDING}"
    whole = f"{before}{quote(name, safe='')}{_ENDING}"
    # Not `exists`: to a file system that knows no case, `Item.npy` exists where `item.npy` does.
    if path.name != whole and folder.is_dir() and whole in (p.name for p in folder.iterdir()):
        return folder / whole
    return path


def _short(name: str) -> str:
    quoted = quote(name, safe="")
    capitals = any("A" <= letter <= "Z" for letter in name)
    if len(quoted) <= _LONGEST and not capitals:
        return quoted
    # quote() leaves no "=", so that no other name reads like this one.
    return f"{quoted[:_LONGEST]}={hashlib.sha256(name.encode()).hexdigest()[:_DIGEST]}"
