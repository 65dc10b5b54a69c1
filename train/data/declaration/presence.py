"""Whether the columns that a declaration names are there."""

import difflib
from pathlib import Path

import pyarrow as pa
import pyarrow.compute

from ..errors import DataError
from .columns import Column, Columns

_REQUIRED = ("user_id", "item_id")


def check_names(path: Path, names: list[str]) -> None:
    """Raises DataError for a column without a name, or two of one name."""
    found = ", ".join(names)
    for name in sorted(set(names)):
        if names.count(name) > 1:
            raise DataError(f"{path}: column {name!r} appears twice; found {found}.")
        if name == "context_":
            raise DataError(f"{path}: column {name!r} must be renamed: it names no field.")


def present(path: Path, table: pa.Table, columns: Columns, notes: list[str]) -> list[Column]:
    """The declared columns; those that the file lacks are named, those it adds are said."""
    names = table.column_names
    missing = [c.name for c in columns if c.role != "ignored" and c.name not in names]
    if missing:
        listed = ", ".join(repr(name) for name in missing)
        are = "columns" if len(missing) > 1 else "column"
        raise DataError(f"{path}: declared {are} {listed} missing; found {', '.join(names)}.")
    more = [name for name in names if columns.get(name) is None]
    if more:
        notes.append(f"not declared, left out: {', '.join(more)}")
    ignored = [Column(name=name, role="ignored", why="not declared") for name in more]
    return [*(c for c in columns if c.name in names), *ignored]


def missing(path: Path, role: str, table: pa.Table) -> str:
    """The message for a table without a column of a role that it needs."""
    names = table.column_names
    near = difflib.get_close_matches(role, [n for n in names if n not in _REQUIRED], 1, 0.5)
    hint = f" Is it {near[0]!r}?" if near else ""
    return (
        f"{path}: column {role!r} is missing; found {', '.join(names)}.{hint} Rename it, or "
        "declare the columns (--columns FILE)."
    )
