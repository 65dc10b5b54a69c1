"""Parts common to re-rankers: rows of candidates, and the clicks of lists that were shown.

Shapes: `B` requests, `N` candidates.
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..batch import Batch
from ..embeddings import Embedded, tower_input
from ..layers.losses import label_of


class Shown(NamedTuple):
    """The candidates that a user saw; label and weight are 0 for all others."""

    mask: Bool[Array, "B N"]
    label: Float[Array, "B N"]
    weight: Float[Array, "B N"]


def shown(batch: Batch, task: str) -> Shown:
    """The candidates of weight > 0. What stands in the others does not matter, not even NaN."""
    mask, label = batch["candidate_mask"], label_of(batch, task)
    if label.shape != mask.shape:
        raise ValueError(f"label {task!r} must have shape {mask.shape}, got {label.shape}.")
    weight = batch.get("weight", {}).get(task, jnp.ones_like(label))
    mask = mask & (weight > 0)
    return Shown(mask, jnp.where(mask, label, 0.0), jnp.where(mask, weight, 0.0))


def item_rows(embedded: Embedded, mask: Bool[Array, "B N"]) -> Float[Array, "B N D"]:
    """All that is known of each candidate and of the request; zeros for those that are padding."""
    rows = tower_input(embedded, jnp.zeros((*mask.shape, 0)), product=False)
    return jnp.where(mask[..., None], rows, 0.0)


def log_softmax_over(
    logit: Float[Array, "*lead N"], mask: Bool[Array, "*lead N"]
) -> Float[Array, "*lead N"]:
    """Logarithm of the softmax over what the mask lets through; 0 for all others."""
    kept = jnp.where(mask, logit, jnp.finfo(jnp.float32).min)
    return jnp.where(mask, nn.log_softmax(kept, axis=-1), 0.0)
