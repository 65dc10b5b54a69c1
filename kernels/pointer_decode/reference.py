"""The definition of pointer decoding: read this first. One scan over the slots.

Shapes: `R` requests, `S` lanes, `N` candidates, `M` slots, `H` width of the state, `A` width of a
head, `h` heads, `G` = 3H.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._mask import normalized

Context = Literal["softmax", "raw"]


class Request(NamedTuple):
    """What a request brings to every slot, projected once.

    Attributes:
      state: the state before the first slot.
      keys: of each candidate, for each head.
      context: what attending to a candidate adds to the gates, by head.
      rows: what having chosen it for the slot before adds to the gates.
    """

    state: Float[Array, "R H"]
    keys: Float[Array, "R h N A"]
    context: Float[Array, "R h N G"]
    rows: Float[Array, "R N G"]


class Weights(NamedTuple):
    """The decoder. Columns of `recurrent` and `bias` are blocks of H: [update, reset, new]."""

    query: Float[Array, "h H A"]
    query_bias: Float[Array, "h A"]
    score: Float[Array, "h A"]
    recurrent: Float[Array, "H G"]
    bias: Float[Array, " G"]


class Decoded(NamedTuple):
    """One list per lane. Where a request has fewer candidates than slots: -1, and 0."""

    order: Int[Array, "R S M"]
    log_probability: Float[Array, "R S M"]


def pointer_decode(
    request: Request,
    weights: Weights,
    mask: Bool[Array, "R N"],
    direction: Request | None,
    steps: Float[Array, " S"],
    gumbel: Float[Array, "R S M N"] | None,
    *,
    slots: int,
    temperature: float,
    context: Context,
) -> Decoded:
    """See `api.pointer_decode`."""
    lanes = _lanes(_real(request, mask), direction and _real(direction, mask), steps)
    free = jnp.broadcast_to(mask[:, None], (mask.shape[0], steps.shape[0], mask.shape[1]))
    noise = None if gumbel is None else jnp.moveaxis(gumbel.astype(jnp.float32), 2, 0)

    def choose(scores, noise):
        noisy = scores if noise is None else scores + noise
        return jnp.argmax(jnp.where(jnp.isfinite(scores), noisy, -jnp.inf), axis=-1)

    return _decode(lanes, _float32(weights), free, noise, choose, slots, temperature, context)


def pointer_log_probability(
    request: Request,
    weights: Weights,
    mask: Bool[Array, "R N"],
    order: Int[Array, "R S M"],
    *,
    temperature: float,
    context: Context,
) -> Float[Array, "R S M"]:
    """See `api.pointer_log_probability`."""
    lanes = _lanes(_real(request, mask), None, jnp.zeros(order.shape[1]))
    free = jnp.broadcast_to(mask[:, None], (*order.shape[:2], mask.shape[1]))
    given = jnp.moveaxis(order, 2, 0)
    choose = lambda scores, given: given
    found = _decode(
        lanes, _float32(weights), free, given, choose, order.shape[2], temperature, context
    )
    return found.log_probability


def _real(request, mask):
    """The request without what masked candidates hold, NaN included."""
    keep = lambda x, mask: jnp.where(mask, x, 0)
    return Request(
        request.state,
        keep(request.keys, mask[:, None, :, None]),
        keep(request.context, mask[:, None, :, None]),
        keep(request.rows, mask[:, :, None]),
    )


def _float32(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def _lanes(request, direction, steps):
    """The request as each lane sees it: request + step * direction, with an axis S after R."""

    def along(x, d=None):
        x = x.astype(jnp.float32)[:, None]
        if d is None:
            return jnp.broadcast_to(x, (x.shape[0], steps.shape[0], *x.shape[2:]))
        step = steps.astype(jnp.float32).reshape(1, -1, *(1,) * (x.ndim - 2))
        return x + step * d.astype(jnp.float32)[:, None]

    if direction is None:
        return jax.tree.map(along, request)
    return jax.tree.map(along, request, direction)


def _decode(lanes, weights, free, extra, choose, slots, temperature, context):
    lead, real = free.shape[:2], free[:, :, None]  # Attention also sees what was chosen.

    def body(carry, now):
        hidden, gates, free = carry
        hidden = _gru(hidden, gates, weights)
        query = jnp.einsum("rsh,fha->rsfa", hidden, weights.query) + weights.query_bias[None, None]
        # (R, S, h, N): how each head likes each candidate.
        score = jnp.tanh(lanes.keys + query[:, :, :, None])
        score = (score * weights.score[None, None, :, None]).sum(axis=-1)
        scaled = jnp.where(free, score.mean(axis=2) / temperature, -jnp.inf)
        some = free.any(axis=-1)
        chosen = jnp.where(some, choose(scaled, now), -1)
        picked = jax.nn.one_hot(chosen, free.shape[-1], dtype=bool)
        total = jax.nn.logsumexp(jnp.where(some[..., None], scaled, 0.0), axis=-1)
        mine = jnp.where(picked, scaled, 0.0).sum(axis=-1)
        log_probability = jnp.where(chosen >= 0, mine - total, 0.0)

        weight = normalized(score, real, "softmax" if context == "softmax" else "none")
        gates = jnp.einsum("rsfn,rsfng->rsg", weight, lanes.context)
        gates += jnp.where(picked[..., None], lanes.rows, 0.0).sum(axis=2)
        return (hidden, gates, free & ~picked), (chosen.astype(jnp.int32), log_probability)

    start = (lanes.state, jnp.zeros((*lead, lanes.rows.shape[-1])), free)
    _, (order, logp) = jax.lax.scan(body, start, extra, length=slots)
    return Decoded(jnp.moveaxis(order, 0, 2), jnp.moveaxis(logp, 0, 2))


def _gru(hidden, gates, weights):
    """(1 - u) h + u tanh(x_n + r * (h U_n)), with u and r of x + h U."""
    x = jnp.split(gates + weights.bias[None, None], 3, axis=-1)
    h = jnp.split(hidden @ weights.recurrent, 3, axis=-1)
    update, reset = (jax.nn.sigmoid(a + b) for a, b in zip(x[:2], h[:2], strict=True))
    return (1 - update) * hidden + update * jnp.tanh(x[2] + reset * h[2])
