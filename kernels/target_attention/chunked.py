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
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .reference import Activation, Layer, Normalize, Weights, activate, as_float32, normalized


@dataclasses.dataclass(frozen=True)
class Config:
    """How much is computed at a time: performance only, never semantics."""

    requests: int
    candidates: int


def heuristic(candidates: int, length: int) -> Config:
    """A decent config without measuring."""
    # 400 scores x 80 units are 128 kB: the few arrays of a block stay in a core's L2, and XLA runs
    # its loops and products on one thread. From about 800 on it splits them between threads, and
    # on two cores the hand-overs cost as much processor time as the work itself.
    scores = 400
    requests = max(1, scores // max(1, candidates * length))
    return Config(requests, max(1, scores // max(1, length)))


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
    mode = _Mode(activation, normalize, True)
    config = _config(config, query, keys)
    return _attend(mode, config, query, keys, mask, as_float32(weights))


def attention_scores(
    query: Float[Array, "B C D"],
    keys: Float[Array, "B L D"],
    mask: Bool[Array, "B L"],
    weights: Weights,
    *,
    activation: Activation,
    normalize: Normalize,
    config: Config | None = None,
) -> Float[Array, "B C L"]:
    """See `api.attention_scores`. `config` overrides the heuristic."""
    mode = _Mode(activation, normalize, False)
    config = _config(config, query, keys)
    return _attend(mode, config, query, keys, mask, as_float32(weights))


class _Mode(NamedTuple):
    """What is computed; `pooled` says whether the scores are an end in themselves."""

    activation: Activation
    normalize: Normalize
    pooled: bool


def _config(given: Config | None, query: Array, keys: Array) -> Config | None:
    sizes = (*query.shape[:2], keys.shape[1])
    if not all(isinstance(size, int) for size in sizes):
        return None  # Exported with a symbolic size: blocks cannot be counted, so there is one.
    return given or heuristic(*sizes[1:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(mode, config, query, keys, mask, weights):
    def block(query, keys, mask):
        keys = jnp.where(mask[..., None], keys, 0).astype(jnp.float32)

        def part(query):
            score = _forward(query.astype(jnp.float32), keys, weights, mode.activation)[-1]
            attention = _normalized(score, mask, mode.normalize)
            if not mode.pooled:
                return (), attention
            return (), jnp.einsum("bcl,bld->bcd", attention, keys).astype(query.dtype)

        return _blocked(part, (query,), config and config.candidates, axis=1)

    return _blocked(block, (query, keys, mask), config and config.requests, axis=0)[1]


def _attend_forward(mode, config, *args):
    return _attend(mode, config, *args), args


def _attend_backward(mode, config, args, gradient):
    weights = args[-1]

    def block(query, keys, mask, gradient):
        known = jnp.where(mask[..., None], keys, 0).astype(jnp.float32)

        def part(query, gradient):
            q, g = query.astype(jnp.float32), gradient.astype(jnp.float32)
            to_query, *sums = _backward(q, known, mask, weights, g, mode)
            return tuple(sums), to_query.astype(query.dtype)

        (to_keys, to_weights), to_query = _blocked(
            part, (query, gradient), config and config.candidates, axis=1
        )
        return to_weights, (to_query, to_keys.astype(keys.dtype))

    to_weights, (to_query, to_keys) = _blocked(
        block, (*args[:-1], gradient), config and config.requests, axis=0
    )
    return to_query, to_keys, None, to_weights


_attend.defvjp(_attend_forward, _attend_backward)


class _Moments(NamedTuple):
    """Of some pre-activations: how many, their mean, the sum of squared distances from it."""

    number: Float[Array, ""]
    mean: Float[Array, " H"]
    spread: Float[Array, " H"]


def moments(
    query: Float[Array, "B C D"],
    keys: Float[Array, "B L D"],
    mask: Bool[Array, "B L"],
    candidate_mask: Bool[Array, "B C"],
    weights: Weights,
    *,
    activation: Activation,
    axis_name: str | None,
    stats_include_padding: bool,
) -> tuple[tuple[Float[Array, " H"], Float[Array, " H"]], ...]:
    """See `api.moments`."""
    weights = as_float32(weights)
    config = _config(None, query, keys)
    counted = jnp.ones_like(mask) if stats_include_padding else mask
    known: tuple[Layer, ...] = ()  # The layers below, with their statistics.
    statistics = []
    for layer in weights.layers:
        layers = (*known, layer)
        of_blocks = functools.partial(_moments_of_blocks, layers, activation, config)
        own = of_blocks(query, keys, mask, counted, candidate_mask)
        mean, variance = _over_devices(own, axis_name)
        statistics.append((mean, variance))
        if activation == "dice":
            layer = layer._replace(mean=mean, variance=variance)
        known = (*known, layer)
    return tuple(statistics)


def _moments_of_blocks(layers, activation, config, query, keys, mask, counted, candidate_mask):
    """Of the last layer's pre-activation, on this device."""

    def block(query, candidate_mask, keys, mask, counted):
        keys = jnp.where(mask[..., None], keys, 0).astype(jnp.float32)

        @jax.checkpoint
        def part(query, candidate_mask):
            query = jnp.where(candidate_mask[..., None], query, 0).astype(jnp.float32)
            x = _first_layer(query, keys, layers[0])[1]
            for below, layer in itertools.pairwise(layers):
                x = activate(x, below, activation) @ layer.kernel + layer.bias[None]
            real = (counted[:, :, None] & candidate_mask[:, None]).reshape(-1, 1)
            number = jnp.sum(real, dtype=jnp.float32)
            mean = jnp.sum(jnp.where(real, x, 0), axis=0) / jnp.maximum(number, 1)
            spread = jnp.sum(jnp.where(real, jnp.square(x - mean[None]), 0), axis=0)
            return _Moments(number, mean, spread), ()

        arrays = (query, candidate_mask)
        return _blocked(part, arrays, config and config.candidates, axis=1, merge=_merged)

    arrays = (query, candidate_mask, keys, mask, counted)
    return _blocked(block, arrays, config and config.requests, axis=0, merge=_merged)[0]


def _merged(a: _Moments, b: _Moments) -> _Moments:
    """Of two sets together (Chan, Golub, LeVeque 1979). E[x^2] - E[x]^2 would cancel."""
    number = a.number + b.number
    share = b.number / jnp.maximum(number, 1)
    apart = b.mean - a.mean
    spread = a.spread + b.spread + jnp.square(apart) * (a.number * share)
    return _Moments(number, a.mean + apart * share, spread)


def _over_devices(
    own: _Moments, axis_name: str | None
) -> tuple[Float[Array, " H"], Float[Array, " H"]]:
    """Mean and variance over all devices."""
    total = lambda x: x if axis_name is None else jax.lax.psum(x, axis_name)
    number = jnp.maximum(total(own.number), 1)
    mean = total(own.number * own.mean) / number
    spread = total(own.spread + own.number * jnp.square(own.mean - mean))
    return mean, spread / number


def _blocked(
    f: Callable,
    arrays: tuple[Array, ...],
    size: int | None,
    *,
    axis: int,
    merge: Callable | None = None,
):
    """Calls `f(*arrays) -> (merged, stacked)` on slices of at most `size` along `axis`.

    The first results are merged (added, by default), starting from zeros; the second are put
    side by side. Slices that do not come out even are padded with zeros. No size: one call.
    """
    total = arrays[0].shape[axis]
    if size is None or total <= size:
        return f(*arrays)
    least = -(-total // size)
    # Padding copies everything: better up to twice the blocks, if they come out even.
    count = min(range(least, 2 * least + 1), key=lambda n: -(-total // n) * n - total)
    size = -(-total // count)

    def split(x):
        pad = [(0, count * size - total if i == axis else 0) for i in range(x.ndim)]
        shape = (*x.shape[:axis], count, size, *x.shape[axis + 1 :])
        return jnp.moveaxis(jnp.pad(x, pad).reshape(shape), axis, 0)

    def join(x):
        x = jnp.moveaxis(x, 0, axis)
        x = x.reshape(*x.shape[:axis], count * size, *x.shape[axis + 2 :])
        return jax.lax.slice_in_dim(x, 0, total, axis=axis)

    def step(merged, block):
        more, stacked = f(*block)
        return (merge or _added)(merged, more), stacked

    blocks = tuple(split(x) for x in arrays)
    shapes = jax.eval_shape(f, *(x[0] for x in blocks))[0]
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    merged, stacked = jax.lax.scan(step, zeros, blocks)
    return merged, jax.tree.map(join, stacked)


def _added(a, b):
    return jax.tree.map(jnp.add, a, b)


def _factors(kernel: Float[Array, "I H"]) -> tuple[Float[Array, "D H"], ...]:
    """The parts of the first kernel that meet q, k and q * k."""
    to_q, to_k, to_difference, to_product = jnp.split(kernel, 4)
    return to_q + to_difference, to_k - to_difference, to_product


def _first_layer(query: Float[Array, "B C D"], keys: Float[Array, "B L D"], layer: Layer):
    """`M_q` of all candidates (B, D, C H), and the layer before its activation (B L C, H)."""
    (requests, candidates, width), length = query.shape, keys.shape[1]
    from_q, from_k, from_product = _factors(layer.kernel)
    units = from_q.shape[1]
    mixed = from_k[None, :, None] + jnp.einsum("bcd,dh->bdch", query, from_product)
    mixed = mixed.reshape(requests, width, candidates * units)
    own = jnp.einsum("bcd,dh->bch", query, from_q) + layer.bias[None, None]
    x = jnp.einsum("bld,bdx->blx", keys, mixed) + own.reshape(requests, 1, candidates * units)
    return mixed, x.reshape(requests * length * candidates, units)


def _forward(
    query: Float[Array, "B C D"],
    keys: Float[Array, "B L D"],
    weights: Weights,
    activation: Activation,
):
    """`M_q`, every layer before and after its activation (B L C, H), the scores (B, L, C)."""
    mixed, x = _first_layer(query, keys, weights.layers[0])
    inputs, hidden = [x], [activate(x, weights.layers[0], activation)]
    for layer in weights.layers[1:]:
        inputs.append(hidden[-1] @ layer.kernel + layer.bias[None])
        hidden.append(activate(inputs[-1], layer, activation))
    score = hidden[-1] @ weights.out_kernel
    if weights.out_bias is not None:
        score = score + weights.out_bias
    return mixed, inputs, hidden, score.reshape(keys.shape[0], keys.shape[1], query.shape[1])


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
    gradient: Float[Array, "B C V"],
    mode: _Mode,
) -> tuple[Float[Array, "B C D"], Float[Array, "B L D"], Weights]:
    """Gradients with respect to query, keys and weights, everything computed again.

    By hand, because the sums over the batch run several times faster as matrix products than
    as the reductions that autodiff makes of the broadcasts.
    """
    mixed, inputs, hidden, score = _forward(query, keys, weights, mode.activation)
    attention, to_score = jax.vjp(lambda s: _normalized(s, mask, mode.normalize), score)
    to_keys = 0.0
    if mode.pooled:
        to_keys = jnp.einsum("bcl,bcd->bld", attention, gradient)
        gradient = jnp.einsum("bcd,bld->bcl", gradient, keys)
    (g_score,) = to_score(gradient)
    g_score = g_score.reshape(-1)
    out_bias = None if weights.out_bias is None else jnp.sum(g_score)
    out_kernel = g_score @ hidden[-1]
    g = g_score[:, None] * weights.out_kernel[None]  # With respect to the current hidden layer.

    def through_activation(i, g):
        rest = weights.layers[i]._replace(kernel=None, bias=None)
        return jax.vjp(lambda x, rest: activate(x, rest, mode.activation), inputs[i], rest)[1](g)

    to_layers = []
    for i in reversed(range(1, len(weights.layers))):
        g, to_rest = through_activation(i, g)
        to_layers.append(to_rest._replace(kernel=hidden[i - 1].T @ g, bias=jnp.sum(g, axis=0)))
        g = g @ weights.layers[i].kernel.T
    g, to_rest = through_activation(0, g)
    to_query, to_keys_too, kernel, bias = _first_layer_backward(
        query, keys, mixed, weights.layers[0], g
    )
    to_layers.append(to_rest._replace(kernel=kernel, bias=bias))
    to_weights = Weights(tuple(reversed(to_layers)), out_kernel, out_bias)
    return to_query, to_keys + to_keys_too, to_weights


def _first_layer_backward(
    query: Float[Array, "B C D"],
    keys: Float[Array, "B L D"],
    mixed: Float[Array, "B D X"],
    layer: Layer,
    g: Float[Array, "N H"],
) -> tuple[Float[Array, "B C D"], Float[Array, "B L D"], Float[Array, "4*D H"], Float[Array, " H"]]:
    """Gradients with respect to query, keys, kernel and bias."""
    (requests, candidates, width), length, units = query.shape, keys.shape[1], g.shape[1]
    from_q, _, from_product = _factors(layer.kernel)
    g = g.reshape(requests, length, candidates * units)
    to_keys = jnp.einsum("blx,bdx->bld", g, mixed)
    to_mixed = jnp.einsum("bld,blx->bdx", keys, g).reshape(requests, width, candidates, units)
    to_own = jnp.sum(g, axis=1).reshape(requests, candidates, units)
    to_query = jnp.einsum("bch,dh->bcd", to_own, from_q)
    to_query = to_query + jnp.einsum("bdch,dh->bcd", to_mixed, from_product)
    to_from_q = jnp.einsum("bcd,bch->dh", query, to_own)
    to_from_k = jnp.sum(to_mixed, axis=(0, 2))
    to_from_product = jnp.einsum("bcd,bdch->dh", query, to_mixed)
    kernel = jnp.concatenate([to_from_q, to_from_k, to_from_q - to_from_k, to_from_product])
    return to_query, to_keys, kernel, jnp.sum(to_own, axis=(0, 1))
