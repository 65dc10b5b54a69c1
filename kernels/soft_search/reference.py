"""The definition of soft search: read this first.

Shapes: `B` requests, `C` candidates, `L` history length, `A` width of a vector, `K` results.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Found(NamedTuple):
    """The best behaviours of each candidate, best first.

    Where the mask is False there were no more to find: index 0, score -inf.
    """

    indices: Int[Array, "B C K"]
    mask: Bool[Array, "B C K"]
    scores: Float[Array, "B C K"]


def soft_search(
    keys: Float[Array, "B L A"],
    queries: Float[Array, "B C A"],
    mask: Bool[Array, "B L"],
    *,
    k: int,
) -> Found:
    """See `api.soft_search`. Builds all of (B, C, L)."""
    keys, queries = jax.lax.stop_gradient((keys, queries))
    # `top_k` takes the lower index of equals: newest first, so that recency breaks ties.
    keys, mask = keys[:, ::-1].astype(jnp.float32), mask[:, None, ::-1]
    exact = jax.lax.Precision.HIGHEST
    scores = jnp.einsum("bca,bla->bcl", queries.astype(jnp.float32), keys, precision=exact)
    # To `top_k`, -0 is less than 0. A masked score is less than any that is real.
    scores = jnp.where(scores == 0, 0, scores)
    scores = jnp.where(mask, scores, -jnp.inf)
    length = keys.shape[1]
    if not isinstance(length, int) or length < k:  # A length may be symbolic.
        scores = jnp.pad(scores, [(0, 0), (0, 0), (0, k)], constant_values=-jnp.inf)
    scores, places = jax.lax.top_k(scores, k)
    found = scores != -jnp.inf  # NaN counts as found: a broken key should be seen, not dropped.
    return Found(jnp.where(found, length - 1 - places, 0), found, scores)
