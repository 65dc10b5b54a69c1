"""The activation unit in plain JAX, with its first layer factored; forward, and backward by hand.

With the first kernel split by rows into W_q, W_k, W_d, W_p (for q, k, q - k, q * k), the first
layer factors,

    [q, k, q - k, q * k] W = q (W_q + W_d) + k M_q,    M_q = (W_k - W_d) + diag(q) W_p,

so a request needs one product of its keys (L, D) with the M_q of all its candidates side by side
(D, C H), and nothing wider than H per (candidate, behaviour) exists.

Letters in einsums: b requests, c candidates, l behaviours, d width, h units, x = (c, h) together;
`N` = (b, l, c) together.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .reference import Activation, Layer, Weights, activate

PIECE = 128  # Rows that are summed in one go.


def contract(a: Float[Array, "*lead N I"], b: Float[Array, "*lead N H"]) -> Array:
    """sum_n a_n b_n^T. Long sums in pieces: in one go, rounding errors would grow with length."""
    rows = a.shape[-2]
    if not isinstance(rows, int) or rows < PIECE:
        return jnp.swapaxes(a, -1, -2) @ b
    # A remainder copies everything: better pieces that come out even, if they are not too small.
    even = [n for n in range(PIECE // 2, PIECE + 1) if rows % n == 0]
    piece = max(even, default=PIECE)
    cut = rows // piece * piece

    def split(x):
        return x[..., :cut, :].reshape(*x.shape[:-2], cut // piece, piece, x.shape[-1])

    whole = jnp.sum(jnp.swapaxes(split(a), -1, -2) @ split(b), axis=-3)
    if cut == rows:
        return whole
    return whole + jnp.swapaxes(a[..., cut:, :], -1, -2) @ b[..., cut:, :]


def total(x: Float[Array, "*lead N H"]) -> Float[Array, "*lead H"]:
    """sum_n x_n, likewise."""
    return contract(jnp.ones((*x.shape[:-1], 1), x.dtype), x)[..., 0, :]


def factors(kernel: Float[Array, "I H"]) -> tuple[Float[Array, "D H"], ...]:
    """The parts of the first kernel that meet q, k and q * k."""
    to_q, to_k, to_difference, to_product = jnp.split(kernel, 4)
    return to_q + to_difference, to_k - to_difference, to_product


def first_layer(query: Float[Array, "B C D"], keys: Float[Array, "B L D"], layer: Layer):
    """`M_q` of all candidates (B, D, C H), and the layer before its activation (B L C, H)."""
    (requests, candidates, width), length = query.shape, keys.shape[1]
    from_q, from_k, from_product = factors(layer.kernel)
    units = from_q.shape[1]
    mixed = from_k[None, :, None] + jnp.einsum("bcd,dh->bdch", query, from_product)
    mixed = mixed.reshape(requests, width, candidates * units)
    own = jnp.einsum("bcd,dh->bch", query, from_q) + layer.bias[None, None]
    x = jnp.einsum("bld,bdx->blx", keys, mixed) + own.reshape(requests, 1, candidates * units)
    return mixed, x.reshape(requests * length * candidates, units)


class Layers(NamedTuple):
    """Values of the forward pass that the backward pass needs again."""

    mixed: Float[Array, "B D X"]  # M_q of all candidates
    inputs: list[Float[Array, "N _"]]  # every layer before its activation,
    hidden: list[Float[Array, "N _"]]  # and after
    score: Float[Array, "B L C"]


def forward(
    query: Float[Array, "B C D"],
    keys: Float[Array, "B L D"],
    weights: Weights,
    activation: Activation,
) -> Layers:
    """All layers of the unit; see `Layers`."""
    mixed, x = first_layer(query, keys, weights.layers[0])
    inputs, hidden = [x], [activate(x, weights.layers[0], activation)]
    for layer in weights.layers[1:]:
        inputs.append(hidden[-1] @ layer.kernel + layer.bias[None])
        hidden.append(activate(inputs[-1], layer, activation))
    score = hidden[-1] @ weights.out_kernel
    if weights.out_bias is not None:
        score = score + weights.out_bias
    return Layers(
        mixed, inputs, hidden, score.reshape(keys.shape[0], keys.shape[1], query.shape[1])
    )


def backward(
    activation: Activation,
    query: Float[Array, "B C D"],
    keys: Float[Array, "B L D"],
    weights: Weights,
    layers: Layers,
    g_score: Float[Array, " N"],
) -> tuple[Float[Array, "B C D"], Float[Array, "B L D"], Weights]:
    """Gradients with respect to query, keys and weights, given that of the scores.

    By hand, because the sums over the batch run several times faster as matrix products than
    as the reductions that autodiff makes of the broadcasts.
    """
    mixed, inputs, hidden, _ = layers
    out_bias = None if weights.out_bias is None else total(g_score[:, None])[0]
    out_kernel = contract(g_score[:, None], hidden[-1])[0]
    g = g_score[:, None] * weights.out_kernel[None]  # With respect to the current hidden layer.

    def through_activation(i, g):
        rest = weights.layers[i]._replace(kernel=None, bias=None)
        rest = jax.tree.map(lambda x: jnp.broadcast_to(x, inputs[i].shape), rest)
        f = lambda x, rest: activate(x, rest, activation)
        g, to_rest = jax.vjp(f, inputs[i], rest)[1](g)
        return g, jax.tree.map(total, to_rest)

    to_layers = []
    for i in reversed(range(1, len(weights.layers))):
        g, to_rest = through_activation(i, g)
        to_layers.append(to_rest._replace(kernel=contract(hidden[i - 1], g), bias=total(g)))
        g = g @ weights.layers[i].kernel.T
    g, to_rest = through_activation(0, g)
    to_query, to_keys, kernel, bias = _first_layer_backward(
        query, keys, mixed, weights.layers[0], g
    )
    to_layers.append(to_rest._replace(kernel=kernel, bias=bias))
    return to_query, to_keys, Weights(tuple(reversed(to_layers)), out_kernel, out_bias)


def _first_layer_backward(
    query: Float[Array, "B C D"],
    keys: Float[Array, "B L D"],
    mixed: Float[Array, "B D X"],
    layer: Layer,
    g: Float[Array, "N H"],
) -> tuple[Float[Array, "B C D"], Float[Array, "B L D"], Float[Array, "4*D H"], Float[Array, " H"]]:
    """Gradients with respect to query, keys, kernel and bias."""
    (requests, candidates, width), length, units = query.shape, keys.shape[1], g.shape[1]
    from_q, _, from_product = factors(layer.kernel)
    g = g.reshape(requests, length, candidates * units)
    to_keys = jnp.einsum("blx,bdx->bld", g, mixed)
    to_mixed = contract(keys, g).reshape(requests, width, candidates, units)
    to_own = total(g).reshape(requests, candidates, units)
    to_query = jnp.einsum("bch,dh->bcd", to_own, from_q)
    to_query = to_query + jnp.einsum("bdch,dh->bcd", to_mixed, from_product)
    to_from_q = jnp.einsum("bcd,bch->dh", query, to_own)
    to_from_k = jnp.sum(to_mixed, axis=(0, 2))
    to_from_product = jnp.einsum("bcd,bdch->dh", query, to_mixed)
    kernel = jnp.concatenate([to_from_q, to_from_k, to_from_q - to_from_k, to_from_product])
    return to_query, to_keys, kernel, jnp.sum(to_own, axis=(0, 1))
