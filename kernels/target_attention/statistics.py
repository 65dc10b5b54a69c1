"""Mean and variance of the activation unit's layers, a block at a time. For Dice in training."""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._axes import all_vary, varying
from .._blocks import blocked
from . import chunked
from .reference import Activation, Layer, Weights, activate, as_float32
from .unit import first_layer


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
    args = (query, keys, mask, candidate_mask, as_float32(weights))
    query, keys, mask, candidate_mask, weights = all_vary(args, varying(args))
    sizes = chunked.known_sizes(query, keys)
    # Told apart where it is traced: a derivative of `platform_dependent` would keep both branches.
    scores = chunked.SCORES if jax.default_backend() == "cpu" else chunked.SCORES_OF_ACCELERATORS
    config = sizes and chunked.heuristic(*sizes[1:], scores)
    counted = jnp.ones_like(mask) if stats_include_padding else mask
    known: tuple[Layer, ...] = ()  # The layers below, with their statistics.
    statistics = []
    for layer in weights.layers:
        layers = (*known, layer)
        of_blocks = functools.partial(_of_blocks, layers, activation, config)
        own = of_blocks(query, keys, mask, counted, candidate_mask)
        mean, variance = _over_devices(own, axis_name)
        statistics.append((mean, variance))
        if activation == "dice":
            layer = layer._replace(mean=mean, variance=variance)
        known = (*known, layer)
    return tuple(statistics)


def _of_blocks(layers, activation, config, query, keys, mask, counted, candidate_mask):
    """Of the last layer's pre-activation, on this device."""

    def block(query, candidate_mask, keys, mask, counted):
        keys = jnp.where(mask[..., None], keys, 0).astype(jnp.float32)

        @jax.checkpoint
        def of_some(query, candidate_mask, keys, counted):
            x = first_layer(query, keys, layers[0])[1]
            for below, layer in itertools.pairwise(layers):
                x = activate(x, below, activation) @ layer.kernel + layer.bias[None]
            real = (counted[:, :, None] & candidate_mask[:, None]).reshape(-1, 1)
            number = jnp.sum(real, dtype=jnp.float32)
            mean = jnp.sum(jnp.where(real, x, 0), axis=0) / jnp.maximum(number, 1)
            spread = jnp.sum(jnp.where(real, jnp.square(x - mean[None]), 0), axis=0)
            return _Moments(number, mean, spread), ()

        def part(query, candidate_mask):
            query = jnp.where(candidate_mask[..., None], query, 0).astype(jnp.float32)
            given = functools.partial(of_some, query, candidate_mask)
            most = config and config.behaviours
            return blocked(given, (keys, counted), most, axis=1, merge=_merged)

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
