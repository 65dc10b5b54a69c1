"""The definition of pointer decoding: read this first. One scan over the slots.

Shapes: `R` requests, `S` lanes, `N` candidates, `M` slots, `H` width of the state, `A` width of a
head, `h` heads, `G` = 3H.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from .._axes import all_vary, varying
from .._mask import normalized
from .rules import Rules
from .turn import Left, drawn, fill, given

Context = Literal["softmax", "raw"]


class Request(NamedTuple):
    """A request's part in every slot, projected once.

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
    """The decoder's, of all requests or, with one more axis R in front, of each.

    Columns of `recurrent` and `bias` are blocks of H: [update, reset, new].
    """

    query: Float[Array, "*R h H A"]
    query_bias: Float[Array, "*R h A"]
    score: Float[Array, "*R h A"]
    recurrent: Float[Array, "*R H G"]
    bias: Float[Array, "*R G"]


class Direction(NamedTuple):
    """The change of a request, and of its weights (with axis R) unless None, per step of 1."""

    request: Request
    weights: Weights | None = None


class Decoded(NamedTuple):
    """One list per lane. Where a request has fewer candidates than slots: -1, and 0."""

    order: Int[Array, "R S M"]
    log_probability: Float[Array, "R S M"]


def pointer_decode(
    request: Request,
    weights: Weights,
    mask: Bool[Array, "R N"],
    direction: Direction | None,
    steps: Float[Array, " S"],
    noise: Float[Array, "R S M N"] | UInt32[Array, " R"] | None,
    rules: Rules | None,
    *,
    slots: int,
    temperature: float,
    context: Context,
) -> Decoded:
    """See `api.pointer_decode`."""
    lanes = _Lanes.of(request, weights, mask, direction, steps)
    return _decode(lanes, mask, rules, drawn(noise, slots), slots, temperature, context)


def pointer_log_probability(
    request: Request,
    weights: Weights,
    mask: Bool[Array, "R N"],
    order: Int[Array, "R S M"],
    rules: Rules | None,
    *,
    temperature: float,
    context: Context,
) -> Float[Array, "R S M"]:
    """See `api.pointer_log_probability`."""
    lanes = _Lanes.of(request, weights, mask, None, jnp.zeros(order.shape[1]))
    found = _decode(lanes, mask, rules, given(order), order.shape[2], temperature, context)
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


class _Lanes(NamedTuple):
    """Inputs of each lane: request + step * direction, with an axis S after R.

    The weights of lanes are never written down: x (W + s D) = x W + s (x D).
    """

    request: Request
    weights: Weights
    added: Weights | None
    steps: Float[Array, "S 1"]

    @classmethod
    def of(cls, request, weights, mask, direction, steps):
        steps = steps.astype(jnp.float32)[:, None]

        def along(x, d=None):
            x = x.astype(jnp.float32)[:, None]
            if d is None:
                return jnp.broadcast_to(x, (x.shape[0], steps.shape[0], *x.shape[2:]))
            return x + steps.reshape(1, -1, *(1,) * (x.ndim - 2)) * d.astype(jnp.float32)[:, None]

        request = _real(request, mask)
        whole = weights.bias.ndim == 1
        float32 = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)
        weights = float32(weights)
        if whole:
            weights = jax.tree.map(lambda x: x[None], weights)
        if direction is None:
            return cls(jax.tree.map(along, request), weights, None, steps)
        lanes = jax.tree.map(along, request, _real(direction.request, mask))
        return cls(lanes, weights, float32(direction.weights), steps)

    def times(self, x: Float[Array, "R S H"], name: str) -> Float[Array, "R S W"]:
        """x W of each lane; a W of several heads stands side by side."""

        def product(weights):
            w = getattr(weights, name)
            w = jnp.moveaxis(w, 1, 2).reshape(*w.shape[:1], x.shape[-1], -1) if w.ndim > 3 else w
            return x @ w

        return product(self.weights) + (
            self.steps[None] * product(self.added) if self.added else 0.0
        )

    def vector(self, name: str) -> Float[Array, "r S *w"]:
        """b of each lane, for one row of requests where all have the same."""
        b = getattr(self.weights, name)[:, None]
        if self.added is None:
            return b
        d = getattr(self.added, name)[:, None]
        return b + self.steps.reshape(1, -1, *(1,) * (d.ndim - 2)) * d


def _decode(lanes, mask, rules, choose, slots, temperature, context):
    lead = lanes.request.rows.shape[:2]
    heads = lanes.weights.score.shape[1]
    query_bias, score_of = lanes.vector("query_bias"), lanes.vector("score")
    bias = lanes.vector("bias")

    def body(carry, slot):
        hidden, gates, left = carry
        hidden = _gru(hidden, gates + bias, lanes.times(hidden, "recurrent"))
        query = lanes.times(hidden, "query").reshape(*lead, heads, -1) + query_bias
        # (R, S, h, N): how each head likes each candidate.
        score = jnp.tanh(lanes.request.keys + query[:, :, :, None])
        score = (score * score_of[:, :, :, None]).sum(axis=-1)
        turn = fill(score.mean(axis=2) / temperature, left, slot, rules, choose)
        # Attention sees what was chosen too.
        weight = normalized(score, real, "softmax" if context == "softmax" else "none")
        gates = jnp.einsum("rsfn,rsfng->rsg", weight, lanes.request.context)
        gates += jnp.where(turn.picked[..., None], lanes.request.rows, 0.0).sum(axis=2)
        return (hidden, gates, turn.left), turn.log_probability

    start = jnp.zeros((*lead, lanes.request.rows.shape[-1]), jnp.float32)
    left = Left.all_of(mask, lead[1], slots)
    real = left.free[:, :, None]
    carry = all_vary((lanes.request.state, start, left), varying((lanes, mask)))
    (_, _, left), logp = jax.lax.scan(body, carry, jnp.arange(slots))
    return Decoded(left.order, jnp.moveaxis(logp, 0, 2))


def _gru(hidden, x, h):
    """(1 - u) h + u tanh(x_n + r * (h U_n)), with u and r of x + h U."""
    x, h = jnp.split(x, 3, axis=-1), jnp.split(h, 3, axis=-1)
    update, reset = (jax.nn.sigmoid(a + b) for a, b in zip(x[:2], h[:2], strict=True))
    return (1 - update) * hidden + update * jnp.tanh(x[2] + reset * h[2])
