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

from .._blocks import blocked
from .._mask import normalized
from .reference import Activation, Layer, Normalize, Weights, activate, as_float32

PIECE = 128  # Rows that are summed in one go.


@dataclasses.dataclass(frozen=True)
class Config:
    """How much is computed at a time: performance only, never semantics."""

    requests: int
    candidates: int


# On CPUs, 400 scores x 80 units are 128 kB: the few arrays of a block stay in a core's L2, and XLA
# runs its loops and products on one thread. From about 800 on it splits them between threads, and
# on two cores the hand-overs cost as much processor time as the work itself. An accelerator wants
# work for all its processors at once: 80 MB.
SCORES = 400
SCORES_OF_ACCELERATORS = 2**18


def heuristic(candidates: int, length: int, scores: int = SCORES) -> Config:
    """A decent config without measuring: about so many scores at a time."""
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
    return _attend(mode, config, query, keys, mask, as_float32(weights))


class _Mode(NamedTuple):
    """What is computed; `pooled` says whether the scores are an end in themselves."""

    activation: Activation
    normalize: Normalize
    pooled: bool


def _sizes(query: Array, keys: Array) -> tuple[int, int, int] | None:
    """Requests, candidates, length; None if exported with a symbolic one: there is one block."""
    sizes = (query.shape[0], query.shape[1], keys.shape[1])
    return sizes if all(isinstance(size, int) for size in sizes) else None


def _in_blocks(f: Callable, config: Config | None, query: Array, keys: Array, *rest):
    """`f(config, query, keys, ...)`, in blocks for the platform unless a config is given."""
    args = (query, keys, *rest)
    sizes = _sizes(query, keys)
    if sizes is None:
        return f(None, *args)
    requests, candidates, length = sizes
    small = heuristic(candidates, length)
    if config or (requests <= small.requests and candidates <= small.candidates):
        return f(config or small, *args)
    large = functools.partial(f, heuristic(candidates, length, SCORES_OF_ACCELERATORS))
    return jax.lax.platform_dependent(*args, cpu=functools.partial(f, small), default=large)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(mode, config, query, keys, mask, weights):
    return _in_blocks(functools.partial(_values, mode), config, query, keys, mask, weights)


def _values(mode, config, query, keys, mask, weights):
    def block(query, keys, mask):
        keys = jnp.where(mask[..., None], keys, 0).astype(jnp.float32)

        def part(query):
            score = _forward(query.astype(jnp.float32), keys, weights, mode.activation)[-1]
            attention = _normalized(score, mask, mode.normalize)
            if not mode.pooled:
                return (), attention
            return (), _contract(attention.transpose(0, 2, 1), keys).astype(query.dtype)

        return blocked(part, (query,), config and config.candidates, axis=1)

    return blocked(block, (query, keys, mask), config and config.requests, axis=0)[1]


def _attend_forward(mode, config, *args):
    return _attend(mode, config, *args), args


def _attend_backward(mode, config, args, gradient):
    return _in_blocks(functools.partial(_gradients, mode), config, *args, gradient)


def _gradients(mode, config, query, keys, mask, weights, gradient):
    def block(query, keys, mask, gradient):
        known = jnp.where(mask[..., None], keys, 0).astype(jnp.float32)

        def part(query, gradient):
            q, g = query.astype(jnp.float32), gradient.astype(jnp.float32)
            to_query, *sums = _backward(q, known, mask, weights, g, mode)
            return tuple(sums), to_query.astype(query.dtype)

        (to_keys, to_weights), to_query = blocked(
            part, (query, gradient), config and config.candidates, axis=1
        )
        return to_weights, (to_query, to_keys.astype(keys.dtype))

    to_weights, (to_query, to_keys) = blocked(
        block, (query, keys, mask, gradient), config and config.requests, axis=0
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
    sizes = _sizes(query, keys)
    # Told apart where it is traced: a derivative of `platform_dependent` would keep both branches.
    scores = SCORES if jax.default_backend() == "cpu" else SCORES_OF_ACCELERATORS
    config = sizes and heuristic(*sizes[1:], scores)
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
        return blocked(part, arrays, config and config.candidates, axis=1, merge=_merged)

    arrays = (query, candidate_mask, keys, mask, counted)
    return blocked(block, arrays, config and config.requests, axis=0, merge=_merged)[0]


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


def _contract(a: Float[Array, "*lead N I"], b: Float[Array, "*lead N H"]) -> Array:
    """sum_n a_n b_n^T. Long sums in pieces: in one go, rounding errors would grow with length."""
    pieces = a.shape[-2] // PIECE if isinstance(a.shape[-2], int) else 0
    if not pieces:
        return jnp.swapaxes(a, -1, -2) @ b
    cut = pieces * PIECE

    def split(x):
        return x[..., :cut, :].reshape(*x.shape[:-2], pieces, PIECE, x.shape[-1])

    whole = jnp.sum(jnp.swapaxes(split(a), -1, -2) @ split(b), axis=-3)
    return whole + jnp.swapaxes(a[..., cut:, :], -1, -2) @ b[..., cut:, :]


def _total(x: Float[Array, "*lead N H"]) -> Float[Array, "*lead H"]:
    """sum_n x_n, likewise."""
    return _contract(jnp.ones((*x.shape[:-1], 1), x.dtype), x)[..., 0, :]


def factors(kernel: Float[Array, "I H"]) -> tuple[Float[Array, "D H"], ...]:
    """The parts of the first kernel that meet q, k and q * k."""
    to_q, to_k, to_difference, to_product = jnp.split(kernel, 4)
    return to_q + to_difference, to_k - to_difference, to_product


def _first_layer(query: Float[Array, "B C D"], keys: Float[Array, "B L D"], layer: Layer):
    """`M_q` of all candidates (B, D, C H), and the layer before its activation (B L C, H)."""
    (requests, candidates, width), length = query.shape, keys.shape[1]
    from_q, from_k, from_product = factors(layer.kernel)
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
    out_bias = None if weights.out_bias is None else _total(g_score[:, None])[0]
    out_kernel = _contract(g_score[:, None], hidden[-1])[0]
    g = g_score[:, None] * weights.out_kernel[None]  # With respect to the current hidden layer.

    def through_activation(i, g):
        rest = weights.layers[i]._replace(kernel=None, bias=None)
        rest = jax.tree.map(lambda x: jnp.broadcast_to(x, inputs[i].shape), rest)
        f = lambda x, rest: activate(x, rest, mode.activation)
        g, to_rest = jax.vjp(f, inputs[i], rest)[1](g)
        return g, jax.tree.map(_total, to_rest)

    to_layers = []
    for i in reversed(range(1, len(weights.layers))):
        g, to_rest = through_activation(i, g)
        to_layers.append(to_rest._replace(kernel=_contract(hidden[i - 1], g), bias=_total(g)))
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
    from_q, _, from_product = factors(layer.kernel)
    g = g.reshape(requests, length, candidates * units)
    to_keys = jnp.einsum("blx,bdx->bld", g, mixed)
    to_mixed = _contract(keys, g).reshape(requests, width, candidates, units)
    to_own = _total(g).reshape(requests, candidates, units)
    to_query = jnp.einsum("bch,dh->bcd", to_own, from_q)
    to_query = to_query + jnp.einsum("bdch,dh->bcd", to_mixed, from_product)
    to_from_q = jnp.einsum("bcd,bch->dh", query, to_own)
    to_from_k = jnp.sum(to_mixed, axis=(0, 2))
    to_from_product = jnp.einsum("bcd,bdch->dh", query, to_mixed)
    kernel = jnp.concatenate([to_from_q, to_from_k, to_from_q - to_from_k, to_from_product])
    return to_query, to_keys, kernel, jnp.sum(to_own, axis=(0, 1))
