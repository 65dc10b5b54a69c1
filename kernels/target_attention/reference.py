"""The definition of target attention: read this first. Slow, obvious, differentiable.

Shapes: `B` requests, `C` candidates, `L` history length, `D` width, `H` units of a hidden layer.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._mask import Normalize as Normalize
from .._mask import normalized

Activation = Literal["prelu", "sigmoid", "relu", "dice"]
DICE_EPSILON = 1e-8


class Layer(NamedTuple):
    """One hidden layer. What its activation does not use is None.

    The first kernel is (4 D, H); its rows belong to [q, k, q - k, q * k], in this order.
    """

    kernel: Float[Array, "I H"]
    bias: Float[Array, " H"]
    alpha: Float[Array, " H"] | None = None  # PReLU and Dice: the slope below zero
    mean: Float[Array, " H"] | None = None  # Dice: statistics of the pre-activation
    variance: Float[Array, " H"] | None = None


class Weights(NamedTuple):
    """The activation unit: hidden layers, then one score.

    Under softmax the score's bias cancels, so its gradient is zero: leave it out.
    """

    layers: tuple[Layer, ...]
    out_kernel: Float[Array, " H"]
    out_bias: Float[Array, ""] | None = None


def target_attention(
    query: Float[Array, "B C D"],
    keys: Float[Array, "B L D"],
    mask: Bool[Array, "B L"],
    weights: Weights,
    *,
    activation: Activation,
    normalize: Normalize,
) -> Float[Array, "B C D"]:
    """See `api.target_attention`."""
    scores = attention_scores(
        query, keys, mask, weights, activation=activation, normalize=normalize
    )
    values = jnp.where(mask[..., None], keys, 0).astype(jnp.float32)
    return jnp.einsum("bcl,bld->bcd", scores, values).astype(keys.dtype)


def attention_scores(
    query: Float[Array, "B C D"],
    keys: Float[Array, "B L D"],
    mask: Bool[Array, "B L"],
    weights: Weights,
    *,
    activation: Activation,
    normalize: Normalize,
) -> Float[Array, "B C L"]:
    """See `api.attention_scores`. Builds all of (B, C, L, 4 D)."""
    weights = as_float32(weights)
    # Masked keys may hold anything, NaN included, and must not reach a gradient either.
    keys = jnp.where(mask[..., None], keys, 0).astype(jnp.float32)
    shape = (query.shape[0], query.shape[1], keys.shape[1], query.shape[2])
    q = jnp.broadcast_to(query.astype(jnp.float32)[:, :, None], shape)
    k = jnp.broadcast_to(keys[:, None], shape)
    hidden = jnp.concatenate([q, k, q - k, q * k], axis=-1)
    for layer in weights.layers:
        product = hidden @ layer.kernel
        hidden = activate(product + jnp.broadcast_to(layer.bias, product.shape), layer, activation)
    score = hidden @ weights.out_kernel
    if weights.out_bias is not None:
        score = score + weights.out_bias
    return normalized(score, jnp.broadcast_to(mask[:, None], score.shape), normalize)


def activate(
    x: Float[Array, "... H"], layer: Layer, activation: Activation
) -> Float[Array, "... H"]:
    """The activation after a hidden layer.

    PReLU: `max(0, x) + alpha min(0, x)`. Dice: `p x + (1 - p) alpha x`, where
    `p = sigmoid((x - mean) / sqrt(variance + 1e-8))`.
    """
    if activation == "sigmoid":
        return jax.nn.sigmoid(x)
    if activation == "relu":
        return jax.nn.relu(x)
    assert layer.alpha is not None
    below = jnp.broadcast_to(layer.alpha, x.shape) * x
    if activation == "prelu":
        return jnp.where(x > 0, x, below)
    assert layer.mean is not None and layer.variance is not None
    scale = jax.lax.rsqrt(layer.variance + DICE_EPSILON)
    centred = x - jnp.broadcast_to(layer.mean, x.shape)
    p = jax.nn.sigmoid(centred * jnp.broadcast_to(scale, x.shape))
    return p * x + (1 - p) * below


def as_float32(weights: Weights) -> Weights:
    """The same weights in float32, in which every implementation computes."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), weights)
