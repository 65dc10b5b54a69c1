"""The definition of dot attention: read this first. Slow, obvious, differentiable.

Shapes: `B` requests, `Q` queries, `L` history length, `E` width of a key, `I` rows of the table of
time intervals, `Z` = `E` + the table's width.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._mask import normalized


def dot_attention(
    query: Float[Array, "B Q Z"],
    keys: Float[Array, "B L E"],
    mask: Bool[Array, "B L"],
    interval: Int[Array, "B L"] | None = None,
    table: Float[Array, "I T"] | None = None,
) -> Float[Array, "B Q Z"]:
    """See `api.dot_attention`."""
    # Masked keys may hold anything, NaN included, and must not reach a gradient either.
    z = jnp.where(mask[..., None], keys, 0).astype(jnp.float32)
    if interval is not None and table is not None:
        chosen = jax.nn.one_hot(jnp.where(mask, interval, -1), table.shape[0])
        z = jnp.concatenate([z, chosen @ table.astype(jnp.float32)], axis=-1)
    score = jnp.einsum("bqz,blz->bql", query.astype(jnp.float32), z)
    attention = normalized(score, jnp.broadcast_to(mask[:, None], score.shape), "softmax")
    return jnp.einsum("bql,blz->bqz", attention, z).astype(keys.dtype)
