"""Random batches of a schema's shape, for initialising and testing models."""

from typing import Any

import numpy as np

from .schema import Field, Role, Schema


def example_batch(
    schema: Schema,
    *,
    batch: int = 2,
    history: int = 3,
    candidates: int = 2,
    seed: int = 0,
    labels: bool = True,
) -> dict[str, Any]:
    """A valid batch of random ids and numbers, histories of random lengths (padded right).

    Ids lie in [1, rows) of their tables. For whole tables; see `zoo.contract` for the layout.
    """
    rng = np.random.default_rng(seed)
    lead: dict[Role, tuple[int, ...]] = {
        "user": (batch,),
        "context": (batch,),
        "history": (batch, history),
        "candidate": (batch, candidates),
    }

    def draw(field: Field) -> np.ndarray:
        shape = lead[field.role] + field.trailing
        if field.kind == "dense":
            return rng.normal(size=shape).astype(np.float32)
        rows = schema.table(field.table_name).rows
        return rng.integers(1, rows, shape).astype(np.int32)

    lengths = rng.integers(0, history + 1, batch) if history else np.zeros(batch, int)
    mask = np.arange(history)[None] < lengths[:, None]
    result: dict[str, Any] = {
        role: {field.name: draw(field) for field in schema.role(role)} for role in lead
    }
    for name, value in result["history"].items():
        result["history"][name] = np.where(
            mask.reshape(mask.shape + (1,) * (value.ndim - 2)), value, 0
        )
    age = np.sort(rng.integers(0, 10**6, (batch, history)), axis=1)[:, ::-1]
    result["history_mask"] = mask
    result["history_age"] = np.where(mask, age, 0).astype(np.int32)
    result["candidate_mask"] = np.ones((batch, candidates), bool)
    if labels:
        draw_label = lambda: rng.integers(0, 2, (batch, candidates)).astype(np.float32)
        result["label"] = {task: draw_label() for task in schema.tasks}
    return result
