"""Crosses: ids of combinations of values, `A and B`, which an embedding can then remember.

A sum over single slots cannot know that two values go together; a slot of their combinations can
(co-clicked pairs above all). A cross field is computed from the rows of other fields of the
request, never read from a record, by the same code for logged and live requests:

    row = hash(table, rows of the parts)    in the table's buckets (`HashedRows`)

It is padding if a part is, and unseen if a part is: a combination with an unknown says nothing.
A part that is a history field stands for the newest `width` events: a bag of combinations.
"""

from typing import Any

import numpy as np

from .row_map import HashedRows
from .schema import PADDING_ROW, UNSEEN_ROW, Field, Schema
from .signature import combined


def add_crosses(schema: Schema, batch: dict[str, Any]) -> None:
    """Puts every cross field of the schema into a batch that holds all other fields."""
    for field in schema.fields:
        if field.cross:
            parts = [batch[role][name] for role, name in field.parts]
            batch[field.role][field.name] = cross(schema, field, parts, batch["history_mask"])


def cross(
    schema: Schema, field: Field, parts: list[np.ndarray], history_mask: np.ndarray
) -> np.ndarray:
    """Rows of one cross field.

    Args:
      schema: which holds the field and its table.
      field: the cross.
      parts: int32 rows of its parts, in their roles' shapes: (B,), (B, C), (B, L).
      history_mask: (B, L) bool.

    Returns:
      int32 (B,) or (B, C), with one more axis of `field.width` if a part is a history field.
    """
    newest = _newest(history_mask, field.width) if field.width else None
    aligned = []
    for (role, _), part in zip(field.parts, parts, strict=True):
        if role == "history":
            assert newest is not None
            part = np.pad(part, ((0, 0), (0, 1)), constant_values=PADDING_ROW)
            part = np.take_along_axis(part, newest, axis=1)
            part = part[:, None] if field.role == "candidate" else part
        else:
            part = part[:, None] if field.role == "candidate" and part.ndim == 1 else part
            part = part[..., None] if field.width else part
        aligned.append(part)
    aligned = np.broadcast_arrays(*aligned)
    rows = HashedRows(schema.table(field.table_name).rows)(combined(field.table_name, aligned))
    for reserved in (UNSEEN_ROW, PADDING_ROW):
        rows = np.where(np.any(np.equal(aligned, reserved), axis=0), np.int32(reserved), rows)
    return rows


def _newest(mask: np.ndarray, width: int) -> np.ndarray:
    """Positions (B, width) of the newest real events, the newest first; L where there are none."""
    real = np.arange(width) < mask.sum(axis=1)[:, None]
    order = np.argsort(mask, axis=1, stable=True)[:, ::-1][:, :width]
    order = np.pad(order, ((0, 0), (0, width - order.shape[1])))
    return np.where(real, order, mask.shape[1])
