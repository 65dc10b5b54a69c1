"""Adds crosses of fields to a data set."""

from collections.abc import Sequence
import dataclasses

from ....zoo.features import Field, HashedRows, Table
from ..dataset import Dataset
from .encoding import ITEM_DIM


def with_crosses(
    dataset: Dataset, texts: Sequence[str], *, rows: int = 2**16, history: int = 10
) -> Dataset:
    """The data set with a field for every cross of `texts`, e.g. "user.city*candidate.category".

    Args:
      dataset: which has the fields that are crossed.
      texts: `role.name` of id fields, joined by `*`; see `zoo.features.cross`.
      rows: hashed rows of each cross's table.
      history: newest events that a part of the history stands for.

    Raises:
      ValueError: a text that names no such fields.
    """
    schema, row_maps = dataset.schema, dict(dataset.row_maps)
    for text in texts:
        parts = tuple(part.strip() for part in text.split("*"))
        name, roles = "*".join(parts), [part.partition(".")[0] for part in parts]
        with_history = "history" in roles
        if len(parts) < 2 or not all(role and dot and at for role, dot, at in map(_parted, parts)):
            known = [f"{f.role}.{f.name}" for f in dataset.schema.fields if f.kind != "dense"]
            raise ValueError(
                f"crosses: {text!r} must join two or more fields by '*', each ROLE.NAME; there are "
                f"{', '.join(known)}."
            )
        if name in {table.name for table in schema.tables}:
            raise ValueError(f"crosses: {name!r} stands twice, or is the name of a column.")
        field = Field(
            name=name,
            role="candidate" if "candidate" in roles else "context",
            kind="bag" if with_history else "id",
            width=history if with_history else None,
            cross=parts,
        )
        schema = dataclasses.replace(
            schema,
            tables=(*schema.tables, Table(name=name, rows=rows, dim=ITEM_DIM)),
            fields=(*schema.fields, field),
        )
        row_maps[name] = HashedRows(rows)
    return dataclasses.replace(dataset, schema=schema, row_maps=row_maps)


def _parted(part: str) -> tuple[str, str, str]:
    return part.partition(".")
