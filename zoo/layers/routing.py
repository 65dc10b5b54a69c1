r"""Dynamic routing of behaviours to interests, the heart of MIND.

Li et al., "Multi-Interest Network with Dynamic Routing for Recommendation at Tmall", CIKM 2019,
section 3.3 and Algorithm 1, https://arxiv.org/abs/1904.08030. With x_i = S e_i, for a few rounds:

    w_i = softmax_j(b_ij)      u_j = squash(sum_i w_ij x_i)      b_ij <- b_ij + scale * u_j . x_i
    squash(z) = |z|^2 / (1 + |z|^2) * z / |z|

The paper's scale is 1. Between short vectors its agreements u_j . x_i are lost in the starting
logits, and events that have much in common (all of them clicks, say) draw all interests the same
way: the interests are then random parts of the history. Routing by "cosine" takes the events
relative to their user's mean and with length 1, until the last round, so that the directions in
which they differ decide. What an interest is made of stays the same.
Shapes: `B` requests, `L` events, `K` interests, `D` width.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from ...kernels.target_attention import MASKED
from ..embeddings import pool

Agreement = Literal["inner", "cosine"]


def routing_logits(length: int, interests: int, std: float, seed: int) -> Float[np.ndarray, "L K"]:
    """b before the first round, for histories that end with the newest event; never trained.

    The t-th newest event has the same logits in every history, at every call, for ever:
    RandomState's stream is frozen by NumPy's policy, and a shorter draw begins a longer one.
    """
    newest_first = np.random.RandomState(seed).normal(0.0, std, (length, interests))
    return newest_first[::-1].astype(np.float32)


def interest_mask(count: Int[Array, " B"], interests: int) -> Bool[Array, "B K"]:
    """The first max(1, min(K, floor(log2 n))) interests of users with n events."""
    j = np.arange(interests)
    # In whole numbers: log2(8) may come out below 3.
    least = 2 ** np.minimum(j + 1, 30)  # More events than that, nobody has.
    return (j == 0)[None] | (count[:, None] >= least[None]) & (j < 30)[None]


def squash(z: Float[Array, "*lead D"]) -> Float[Array, "*lead D"]:
    """|z|^2 / (1 + |z|^2) * z / |z|: the direction of z with a length below 1; 0 at 0."""
    square = jnp.sum(jnp.square(z), axis=-1, keepdims=True)
    return z * jnp.sqrt(square + 1e-9) / (1.0 + square)


def route(
    events: Float[Array, "B L D"],
    mask: Bool[Array, "B L"],
    exists: Bool[Array, "B K"],
    start: Float[Array, "L K"],
    rounds: int,
    agreement: Agreement = "inner",
    scale: float = 1.0,
) -> Float[Array, "B K D"]:
    """The interests that behaviours x_i fall into, b starting from `start`.

    Only the last round is differentiated, and its weights are constants. An interest that does
    not exist gets nothing.
    """
    # A mask on the logits would not do: the softmax runs over interests, not over events.
    events = jnp.where(mask[..., None], events, 0.0)
    constant = jax.lax.stop_gradient(events)
    if agreement == "cosine":
        constant = _directions(constant, mask)

    def interests(logits, events):
        weight = nn.softmax(jnp.where(exists[:, None], logits, MASKED), axis=-1)
        return squash(jnp.einsum("blk,bld->bkd", weight, events))

    logits = jnp.broadcast_to(start, (mask.shape[0], *start.shape))
    for _ in range(rounds - 1):
        agreed = jnp.einsum("bkd,bld->blk", interests(logits, constant), constant)
        logits = logits + scale * agreed
    return interests(logits, events)


def _directions(events: Float[Array, "B L D"], mask: Bool[Array, "B L"]) -> Float[Array, "B L D"]:
    """The events relative to the mean of the real ones, of length 1; 0 where there is no event."""
    apart = jnp.where(mask[..., None], events - pool(events, mask, "mean")[:, None], 0.0)
    length = jnp.sqrt(jnp.sum(jnp.square(apart), axis=-1, keepdims=True))
    return apart / jnp.maximum(length, 1e-6)
