"""Checks of batches against a schema, before anything is traced."""

from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.core
import numpy as np

from ..batch import PARTS
from .schema import ROLES, Field, Role, Schema

# Parts that hold the fields of a role under another name; items have those of both.
_LIKE: dict[str, Role] = {
    name: cast(Role, "candidate" if part.holds == "item" else part.holds)
    for name, part in PARTS.items()
    if part.holds not in (name, "task", "table", "")
}
_AXES = {
    name: f"({', '.join(part.axes)}{',' * (len(part.axes) == 1)})" for name, part in PARTS.items()
}


def require_batch(schema: Schema, batch: dict[str, Any], roles: Sequence[Role] = ROLES) -> None:
    """Raises ValueError unless the batch holds every field of these roles, in shape and kind.

    Shapes: `B` requests, `C` candidates (those of `candidate_mask`), `L` events (`history_mask`).
    """
    lead: dict[str, tuple[Any, ...]] = {}
    for role in ("candidate", "history"):
        if role not in roles:
            continue
        mask = f"{role}_mask"
        if mask not in batch:
            raise ValueError(f"batch must hold {mask!r}, got {', '.join(batch) or 'nothing'}.")
        lead[role] = tuple(np.shape(batch[mask]))
        if len(lead[role]) != 2:
            raise ValueError(f"batch[{mask!r}] must have 2 axes, got shape {lead[role]}.")
    size = next(iter(lead.values()))[:1] if lead else None
    for role in roles:
        given = batch.get(role, {})
        for field in schema.role(role):
            if field.name not in given:
                raise ValueError(
                    f"batch[{role!r}] must hold {field.name!r}, which the schema has there; "
                    f"got {', '.join(given) or 'nothing'}."
                )
            shape = lead.get(role, size)
            _require_array(f"batch[{role!r}][{field.name!r}]", field, given[field.name], shape)
    for role, shape in lead.items():
        if shape[:1] != size:
            raise ValueError(
                f"batch[{role + '_mask'!r}] must have {size[0] if size else 0} requests, "
                f"got shape {shape}."
            )


def _require_array(name: str, field: Field, value: Any, lead: tuple[Any, ...] | None) -> None:
    shape = tuple(np.shape(value))
    if lead is not None and shape != (*lead, *field.trailing):
        raise ValueError(
            f"{name} must have shape {(*lead, *field.trailing)}, {_AXES[field.role]} of the "
            f"masks{' and its width' if field.trailing else ''}, got {shape}."
        )
    kind = (value.dtype if hasattr(value, "dtype") else np.asarray(value).dtype).kind
    if field.kind != "dense" and kind not in "iu":
        raise ValueError(f"{name} must hold whole numbers, rows of a table, got dtype {kind!r}.")


def require_rows(schema: Schema, batch: dict[str, Any], roles: Sequence[Role] = ROLES) -> None:
    """Raises ValueError if an id or a bag of a whole-table batch is no row of its table.

    So are those of a batch of training, which are positions among the rows that it pulls. What is
    being traced cannot be looked at, and what the batch lacks is not asked for.
    """
    if "pulled" in batch:
        raise ValueError(
            "The ids of this batch are positions among the rows that it pulls, not rows of whole "
            "tables: take an evaluation batch."
        )
    fields_of: dict[str, Role] = {role: role for role in roles}
    fields_of |= {role: like for role, like in _LIKE.items() if like in roles}
    for role, like in fields_of.items():
        for field in schema.role(like):
            value = batch.get(role, {}).get(field.name)
            if field.kind == "dense" or value is None or isinstance(value, jax.core.Tracer):
                continue
            rows, value = schema.table(field.table_name).rows, np.asarray(value)
            if value.size and not (0 <= value.min() and value.max() < rows):
                wrong = value[(value < 0) | (value >= rows)][0]
                raise ValueError(
                    f"batch[{role!r}][{field.name!r}] must hold rows of table "
                    f"{field.table_name!r}, 0 <= row < {rows}, got {wrong}."
                )
