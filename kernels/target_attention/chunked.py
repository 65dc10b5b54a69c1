"""Target attention in plain JAX, a block of requests at a time: the path for CPUs.

With the first kernel split by rows into W_q, W_k, W_d, W_p (for q, k, q - k, q * k), the first
layer factors,

    [q, k, q - k, q * k] W = q (W_q + W_d) + k M_q,    M_q = (W_k - W_d) + diag(q) W_p,

so a request needs one product of its keys (L, D) with the M_q of all its candidates side by side
(D, C H), and nothing wider than H per (candidate, behaviour) exists. Only the inputs are kept for
the backward pass, which computes each block again: temporary memory does not grow with the batch.
Reverse mode only; `reference` also has forward mode.

Letters in einsums: b requests, c candidates, l behaviours, d width, h units, x = (c, h) together.
"""

from collections.abc import Callable
import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from .reference import Activation, Layer, Normalize, Weights, activate, as_float32, normalized


@dataclasses.dataclass(frozen=True)
class Config:
    """How much is computed at a time: performance only, never semantics."""

    requests: int
    candidates: int


def heuristic(candidates: int, length: int) -> Config:
    """A decent config without measuring."""
    scores = 6400
    requests = max(1, scores // max(1, candidates * length))
    return Config(requests, max(1, min(candidates, scores // max(1, length))))


def target_attention(
    query: Float[Array, "B C D"],
    keys: Float[Array, "B L D"],
    mask: Bool[Array, "B L"],
    weights: Weights,
    *,
    activation: Activation,
    normalize: Normalize,
    config: Config | None = None,
) -> Float[Array, "B C D"]:
    """See `api.target_attention`. `config` overrides the heuristic."""
    batch, candidates, length = *query.shape[:2], keys.shape[1]
    if not all(isinstance(size, int) for size in (batch, candidates, length)):
        config = None  # Exported with a symbolic size: blocks cannot be counted, so there is one.
    elif config is None:
        config = heuristic(candidates, length)
    return _attend(activation, normalize, config, query, keys, mask, as_float32(weights))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attend(activation, normalize, config, query, keys, mask, weights):
    def block(query, keys, mask):
        keys = jnp.where(mask[..., None], keys, 0).astype(jnp.float32)

        def part(query):
            score = _forward(query.astype(jnp.float32), keys, weights, activation)[-1]
            attention = _normalized(score, mask, normalize)
            return (), jnp.einsum("bcl,bld->bcd", attention, keys).astype(query.dtype)

        return _blocked(part, (query,), config and config.candidates, axis=1)

    return _blocked(block, (query, keys, mask), config and config.requests, axis=0)[1]


def _attend_forward(activation, normalize, config, *args):
    return _attend(activation, normalize, config, *args), args


def _attend_backward(activation, normalize, config, args, gradient):
    weights = args[-1]

    def block(query, keys, mask, gradient):
        known = jnp.where(mask[..., None], keys, 0).astype(jnp.float32)

        def part(query, gradient):
            q, g = query.astype(jnp.float32), gradient.astype(jnp.float32)
            to_query, *sums = _backward(q, known, mask, weights, g, activation, normalize)
            return tuple(sums), to_query.astype(query.dtype)

        (to_keys, to_weights), to_query = _blocked(
            part, (query, gradient), config and config.candidates, axis=1
        )
        to_keys = jnp.where(mask[..., None], to_keys, 0).astype(keys.dtype)
        return to_weights, (to_query, to_keys)

    to_weights, (to_query, to_keys) = _blocked(
        block, (*args[:-1], gradient), config and config.requests, axis=0
    )
    return to_query, to_keys, None, to_weights


_attend.defvjp(_attend_forward, _attend_backward)


def _blocked(f: Callable, arrays: PyTree[Array], size: int | None, *, axis: int):
    """Calls `f(*arrays) -> (summed, stacked)` on slices of at most `size` along `axis`.

    The first results are added up, the second put side by side. No size: one call.
    """
    total = arrays[0].shape[axis]
    if size is None or total <= size:
        return f(*arrays)
    count = -(-total // size)
    size = -(-total // count)  # Even blocks: the least padding.

    def split(x):
        pad = [(0, count * size - total if i == axis else 0) for i in range(x.ndim)]
        shape = (*x.shape[:axis], count, size, *x.shape[axis + 1 :])
        return jnp.moveaxis(jnp.pad(x, pad).reshape(shape), axis, 0)

    def join(x):
        x = jnp.moveaxis(x, 0, axis)
        x = x.reshape(*x.shape[:axis], count * size, *x.shape[axis + 2 :])
        return jax.lax.slice_in_dim(x, 0, total, axis=axis)

    def step(sums, block):
        summed, stacked = f(*block)
        return jax.tree.map(jnp.add, sums, summed), stacked

    blocks = jax.tree.map(split, arrays)
    shapes = jax.eval_shape(f, *jax.tree.map(lambda x: x[0], blocks))[0]
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    sums, stacked = jax.lax.scan(step, zeros, blocks)
    return sums, jax.tree.map(join, stacked)


def _factors(kernel: Float[Array, "4*D H"]) -> tuple[Float[Array, "D H"], ...]:
    """The parts of the first kernel that meet q, k and q * k."""
    to_q, to_k, to_difference, to_product = jnp.split(kernel, 4)
    return to_q + to_difference, to_k - to_difference, to_product


def _forward(
    query: Float[Array, "B C D"],
    keys: Float[Array, "B L D"],
    weights: Weights,
    activation: Activation,
):
    """`M_q` (B, D, C H), each layer's input to its activation and result (B L C, H), the scores."""
    requests, candidates, width = query.shape
    length, units = keys.shape[1], weights.out_kernel.shape[0]
    first = weights.layers[0]
    from_q, from_k, from_product = _factors(first.kernel)
    units = from_q.shape[1]
    mixed = jnp.einsum("bcd,dh->bdch", query, from_product) + from_k[None, :, None]
    mixed = mixed.reshape(requests, width, candidates * units)
    own = jnp.einsum("bcd,dh->bch", query, from_q) + first.bias[None, None]
    x = jnp.einsum("bld,bdx->blx", keys, mixed)
    x = x + own.reshape(requests, 1, candidates * units)
    x = x.reshape(requests * length * candidates, units)
    inputs, hidden = [x], [activate(x, first, activation)]
    for layer in weights.layers[1:]:
        x = hidden[-1] @ layer.kernel + layer.bias[None]
        inputs.append(x)
        hidden.append(activate(x, layer, activation))
    score = hidden[-1] @ weights.out_kernel
    if weights.out_bias is not None:
        score = score + weights.out_bias
    return mixed, inputs, hidden, score.reshape(requests, length, candidates)


def _normalized(
    score: Float[Array, "B L C"], mask: Bool[Array, "B L"], normalize: Normalize
) -> Float[Array, "B C L"]:
    score = score.transpose(0, 2, 1)
    return normalized(score, jnp.broadcast_to(mask[:, None], score.shape), normalize)


def _backward(
    query: Float[Array, "B C D"],
    keys: Float[Array, "B L D"],
    mask: Bool[Array, "B L"],
    weights: Weights,
    gradient: Float[Array, "B C D"],
    activation: Activation,
    normalize: Normalize,
) -> tuple[Float[Array, "B C D"], Float[Array, "B L D"], Weights]:
    """Gradients with respect to query, keys and weights, everything computed again.

    By hand, because the sums over the batch run several times faster as matrix products than
    as the reductions that autodiff makes of the broadcasts.
    """
    mixed, inputs, hidden, score = _forward(query, keys, weights, activation)
    attention, to_score = jax.vjp(lambda s: _normalized(s, mask, normalize), score)
    to_keys = jnp.einsum("bcl,bcd->bld", attention, gradient)
    (g_score,) = to_score(jnp.einsum("bcd,bld->bcl", gradient, keys))
    g_score = g_score.reshape(-1)
    out_bias = None if weights.out_bias is None else jnp.sum(g_score)
    out_kernel = g_score @ hidden[-1]
    g = g_score[:, None] * weights.out_kernel[None]  # With respect to the current hidden layer.
    layers = []
    for i in reversed(range(len(weights.layers))):
        layer = weights.layers[i]
        parameters = layer._replace(kernel=None, bias=None)
        g, parameters = jax.vjp(lambda x, p: activate(x, p, activation), inputs[i], parameters)[1](g)
        if i > 0:
            layers.append(parameters._replace(kernel=hidden[i - 1].T @ g, bias=jnp.sum(g, axis=0)))
            g = g @ layer.kernel.T

    from_q, from_k, from_product = _factors(weights.layers[0].kernel)
    (requests, candidates, width), length, units = query.shape, keys.shape[1], from_q.shape[1]
    g = g.reshape(requests, length, candidates * units)
    to_keys = to_keys + jnp.einsum("blx,bdx->bld", g, mixed)
    to_mixed = jnp.einsum("bld,blx->bdx", keys, g).reshape(requests, width, candidates, units)
    to_own = jnp.sum(g, axis=1).reshape(requests, candidates, units)
    to_query = jnp.einsum("bch,dh->bcd", to_own, from_q)
    to_query = to_query + jnp.einsum("bdch,dh->bcd", to_mixed, from_product)
    to_from_q = jnp.einsum("bcd,bch->dh", query, to_own)
    to_from_k = jnp.sum(to_mixed, axis=(0, 2))
    to_from_product = jnp.einsum("bcd,bdch->dh", query, to_mixed)
    kernel = jnp.concatenate([to_from_q, to_from_k, to_from_q - to_from_k, to_from_product])
    layers.append(parameters._replace(kernel=kernel, bias=jnp.sum(to_own, axis=(0, 1))))
    return to_query, to_keys, Weights(tuple(reversed(layers)), out_kernel, out_bias)
