"""Masks of scores, and the range of real keys. Shared by every op in this package."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Normalize = Literal["none", "softmax"]

# Far below any score, and still finite after another is added to it or it is subtracted.
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)


def normalized(
    score: Float[Array, "... L"], mask: Bool[Array, "... L"], normalize: Normalize
) -> Float[Array, "... L"]:
    """Scores to attention weights, over the last axis. An all-masked row gives zeros."""
    if normalize == "softmax":
        score = jax.nn.softmax(jnp.where(mask, score, MASKED), axis=-1)
    return jnp.where(mask, score, 0)


def real_range(mask: Bool[Array, "B L"]) -> Int[Array, "B 2"]:
    """First and one past the last real key of each request; 0, 0 without any."""
    first, last = jnp.argmax(mask, axis=1), mask.shape[1] - jnp.argmax(mask[:, ::-1], axis=1)
    found = jnp.where(mask.any(axis=1)[:, None], jnp.stack([first, last], axis=1), 0)
    return found.astype(jnp.int32)
