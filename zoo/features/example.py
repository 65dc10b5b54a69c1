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
    history_negatives: bool = False,
    retrieved: int = 0,
    sampled: int = 0,
    preferences: int = 0,
) -> dict[str, Any]:
    """A valid batch of random ids and numbers, histories of random lengths (padded right).

    Ids lie in [1, rows) of their tables. For whole tables; see `zoo.contract` for the layout.
    The last four are what a model's requirements ask for; `retrieved` comes in two groups.
    """
    rng = np.random.default_rng(seed)
    lead: dict[Role, tuple[int, ...]] = {
        "user": (batch,),
        "context": (batch,),
        "history": (batch, history),
        "candidate": (batch, candidates),
    }

    def draw(field: Field, lead: tuple[int, ...]) -> np.ndarray:
        shape = lead + field.trailing
        if field.kind == "dense":
            return rng.normal(size=shape).astype(np.float32)
        rows = schema.table(field.table_name).rows
        return rng.integers(1, rows, shape).astype(np.int32)

    lengths = rng.integers(0, history + 1, batch) if history else np.zeros(batch, int)
    mask = np.arange(history)[None] < lengths[:, None]
    result: dict[str, Any] = {
        role: {field.name: draw(field, shape) for field in schema.role(role)}
        for role, shape in lead.items()
    }
    result["history"] = _masked(result["history"], mask)
    age = np.sort(rng.integers(0, 10**6, (batch, history)), axis=1)[:, ::-1]
    result["history_mask"] = mask
    result["history_age"] = np.where(mask, age, 0).astype(np.int32)
    result["candidate_mask"] = np.ones((batch, candidates), bool)
    if labels:
        draw_label = lambda: rng.integers(0, 2, (batch, candidates)).astype(np.float32)
        result["label"] = {task: draw_label() for task in schema.tasks}
    if history_negatives:
        drawn = {field.name: draw(field, lead["history"]) for field in schema.item_fields}
        result["history_negative"] = _masked(drawn, mask)
    if retrieved:
        shape = (batch, 2, retrieved)
        found = np.arange(retrieved) < rng.integers(0, retrieved + 1, shape[:2])[..., None]
        drawn = {field.name: draw(field, shape) for field in schema.role("history")}
        age = np.sort(rng.integers(0, 10**8, shape), axis=2)[..., ::-1]
        result["retrieved"] = _masked(drawn, found)
        result["retrieved_mask"] = found
        result["retrieved_age"] = np.where(found, age, 0).astype(np.int32)
        result["group"] = rng.integers(-1, 2, (batch, candidates)).astype(np.int32)
    if sampled:
        result["sampled"] = {field.name: draw(field, (sampled,)) for field in schema.item_fields}
        result["sampled_log_q"] = rng.normal(size=sampled).astype(np.float32) - 3
        result["candidate_log_q"] = rng.normal(size=(batch, candidates)).astype(np.float32) - 3
    if preferences:
        drawn = rng.dirichlet(np.ones(preferences), batch)
        result["preference"] = drawn.astype(np.float32)
    return result


def _masked(fields: dict[str, np.ndarray], mask: np.ndarray) -> dict[str, np.ndarray]:
    """Zeros in every slot that is not real."""
    shape = lambda value: mask.shape + (1,) * (value.ndim - mask.ndim)
    zero = lambda value: np.where(mask.reshape(shape(value)), value, np.zeros((), value.dtype))
    return {name: zero(value) for name, value in fields.items()}
