r"""Addressing of MIMN's memory: where its heads read and write.

Pi et al., "Practice on Long Sequential User Behavior Modeling for Click-Through Rate Prediction",
KDD 2019, section 4.2, https://arxiv.org/abs/1905.09248, after Graves et al., "Neural Turing
Machines", 2014, section 3.3, https://arxiv.org/abs/1410.5401. `zoo.mimn` has the equations.
Shapes: `B` users, `K` heads or candidates, `D` width of an item, `m` slots, `H` controller, `P`
outputs.
"""

from typing import TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .tower import row

HEAD_LIMIT = 20.0
NORM_EPSILON = 1e-6
USAGE_SCALE = 400.0

Params: TypeAlias = dict[str, Array]


def head_outputs(
    params: Params,
    controller: Float[Array, "*lead H"],
    usage: Float[Array, "*lead m"],
    columns: int | None = None,
) -> Float[Array, "*lead P"]:
    """One linear map of the controller, clipped; of the usage as well with "release"."""
    first = slice(columns)
    outputs = controller @ params["heads_kernel"][:, first]
    outputs += row(params["heads_bias"][first], outputs)
    if "heads_usage" in params:
        outputs += jax.lax.stop_gradient(usage) / USAGE_SCALE @ params["heads_usage"][:, first]
    return jnp.clip(outputs, -HEAD_LIMIT, HEAD_LIMIT)


def addressing(
    params: Params,
    keys: Float[Array, "B K D"],
    strengths: Float[Array, "B K 1"],
    memory: Float[Array, "B m D"],
) -> Float[Array, "B K m"]:
    """softmax_i(strength * similarity(key, M(i))), for K heads or candidates.

    The similarity is the cosine; with `key_memory` the mean of that to M(i) and that to the
    slot's own learned key.
    """
    keys = unit(jnp.tanh(keys))
    similarity = jnp.einsum("bkd,bmd->bkm", keys, unit(memory))
    if "keys" in params:
        similarity = 0.5 * (similarity + keys @ unit(jnp.tanh(params["keys"])).T)
    return nn.softmax(2.0 * (nn.softplus(strengths) + 1.0) * similarity, axis=-1)


def unit(x: Float[Array, "*lead D"]) -> Float[Array, "*lead D"]:
    """x / |x|, with a gradient at 0 too: memories start next to it."""
    return x * jax.lax.rsqrt(jnp.square(x).sum(axis=-1, keepdims=True) + NORM_EPSILON**2)


def transfer(
    params: Params, writing: Float[Array, "B m"], usage: Float[Array, "B m"]
) -> Float[Array, "B m"]:
    """w P with the row-stochastic P of the usage so far: moves weight between slots, loses none."""
    # Every event adds 1 to the usage, so this is g / t.
    share = usage / (1.0 + usage.sum(axis=-1, keepdims=True))
    logits = jnp.einsum("bk,kij->bij", share, params["transfer"])
    logits += params["keep"] * jnp.eye(writing.shape[-1])[None]
    return (writing[..., None] * nn.softmax(logits, axis=-1)).sum(axis=1)


def shift_and_sharpen(
    writing: Float[Array, "B m"], shift: Float[Array, "B 3"], sharpness: Float[Array, "B 1"]
) -> Float[Array, "B m"]:
    """Part of the weight moves to the slots beside it; then w^s / sum w^s."""
    back, stay, on = jnp.split(nn.softmax(shift, axis=-1), 3, axis=-1)
    moved = back * jnp.roll(writing, -1, 1) + stay * writing + on * jnp.roll(writing, 1, 1)
    # The power by its logarithm, which stays finite where a weight is 0.
    return nn.softmax(4.0 * (nn.softplus(sharpness) + 1.0) * jnp.log(moved + 1e-8), axis=-1)
