"""Target attention in plain JAX, a block of requests at a time: the path for CPUs.

Only the inputs are kept for the backward pass, which computes each block again. Long histories come
in parts: what has the whole length is scores. So temporary memory grows neither with the batch nor
with the hidden layers of a history. Reverse mode only; `reference` also has forward mode.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._blocks import blocked
from .._dispatch import matmul_precision
from .._mask import normalized
from . import unit
from .reference import Activation, Normalize, Weights, as_float32
from .unit import contract


@dataclasses.dataclass(frozen=True)
class Config:
    """Block sizes: they change speed and memory and never the result.

    Attributes:
      requests: at a time.
      candidates: of each of them.
      behaviours: of each of them; None means all.
    """

    requests: int
    candidates: int
    behaviours: int | None = None


# On CPUs, 1600 scores x 80 units are 512 kB: a layer and its gradient stay about a core's L2. With
# fewer, a block's many small operations cost more than their arithmetic; from twice as many on, its
# arrays no longer fit. An accelerator wants work for all its processors at once: 80 MB.
SCORES = 1600
SCORES_OF_ACCELERATORS = 2**18
# Of one history more than that at a time: parts cost a sweep for the scores and another back.
BEHAVIOURS = 2048


def heuristic(candidates: int, length: int, scores: int = SCORES) -> Config:
    """A decent config without measuring: about so many scores at a time."""
    requests = max(1, scores // max(1, candidates * length))
    return Config(requests, max(1, scores // max(1, length)), max(scores, BEHAVIOURS))


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
    mode = _Mode(activation, normalize, True, matmul_precision())
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
    mode = _Mode(activation, normalize, False, matmul_precision())
    return _attend(mode, config, query, keys, mask, as_float32(weights))


class _Mode(NamedTuple):
    """The formula, and the order of computation.

    Attributes:
      activation, normalize: of the op.
      pooled: False where the scores are an end in themselves.
      precision: of matrix products, as it was in force when the op was called: the derivative is
        traced later.
    """

    activation: Activation
    normalize: Normalize
    pooled: bool
    precision: str | None


def known_sizes(query: Array, keys: Array) -> tuple[int, int, int] | None:
    """Requests, candidates, length; None if exported with a symbolic one: there is one block."""
    sizes = (query.shape[0], query.shape[1], keys.shape[1])
    return sizes if all(isinstance(size, int) for size in sizes) else None


def _in_blocks(f: Callable, config: Config | None, query: Array, keys: Array, *rest):
    """`f(config, query, keys, ...)`, in blocks for the platform unless a config is given."""
    args = (query, keys, *rest)
    sizes = known_sizes(query, keys)
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
            score = _scores(mode, config, query.astype(jnp.float32), keys, weights)
            attention = _normalized(score, mask, mode.normalize)
            if not mode.pooled:
                return (), attention
            return (), contract(attention.transpose(0, 2, 1), keys).astype(query.dtype)

        return blocked(part, (query,), config and config.candidates, axis=1)

    return blocked(block, (query, keys, mask), config and config.requests, axis=0)[1]


def _attend_forward(mode, config, *args):
    return _attend(mode, config, *args), args


def _attend_backward(mode, config, args, gradient):
    with jax.default_matmul_precision(mode.precision):
        return _in_blocks(functools.partial(_gradients, mode), config, *args, gradient)


def _gradients(mode, config, query, keys, mask, weights, gradient):
    def block(query, keys, mask, gradient):
        known = jnp.where(mask[..., None], keys, 0).astype(jnp.float32)

        def part(query, gradient):
            q, g = query.astype(jnp.float32), gradient.astype(jnp.float32)
            to_query, *sums = _backward(mode, config, q, known, mask, weights, g)
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


def _normalized(
    score: Float[Array, "B L C"], mask: Bool[Array, "B L"], normalize: Normalize
) -> Float[Array, "B C L"]:
    score = score.transpose(0, 2, 1)
    return normalized(score, jnp.broadcast_to(mask[:, None], score.shape), normalize)


def _scores(
    mode: _Mode,
    config: Config | None,
    query: Float[Array, "B C D"],
    keys: Float[Array, "B L D"],
    weights: Weights,
) -> Float[Array, "B L C"]:
    """The scores alone, of some behaviours at a time."""
    of_some = lambda keys: ((), unit.forward(query, keys, weights, mode.activation).score)
    return blocked(of_some, (keys,), config and config.behaviours, axis=1)[1]


def _backward(
    mode: _Mode,
    config: Config | None,
    query: Float[Array, "B C D"],
    keys: Float[Array, "B L D"],
    mask: Bool[Array, "B L"],
    weights: Weights,
    gradient: Float[Array, "B C V"],
) -> tuple[Float[Array, "B C D"], Float[Array, "B L D"], Weights]:
    """Gradients with respect to query, keys and weights, everything computed again."""
    most = config and config.behaviours
    known = None
    if most is None or keys.shape[1] <= most:
        known = unit.forward(query, keys, weights, mode.activation)
    score = known.score if known else _scores(mode, config, query, keys, weights)
    attention, to_score = jax.vjp(lambda s: _normalized(s, mask, mode.normalize), score)
    to_keys = 0.0
    if mode.pooled:
        to_keys = jnp.einsum("bcl,bcd->bld", attention, gradient)
        gradient = jnp.einsum("bcd,bld->bcl", gradient, keys)
    (g_score,) = to_score(gradient)

    def of_some(keys, g_score):
        layers = known or unit.forward(query, keys, weights, mode.activation)
        to_query, to_keys, to_weights = unit.backward(
            mode.activation, query, keys, weights, layers, g_score.reshape(-1)
        )
        return (to_query, to_weights), to_keys

    (to_query, to_weights), to_keys_too = blocked(of_some, (keys, g_score), most, axis=1)
    return to_query, to_keys + to_keys_too, to_weights
