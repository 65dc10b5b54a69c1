"""The definition of the recurrences: read this first. One scan over time, differentiable.

Shapes: `B` requests, `C` candidates, `L` history length, `X` width of an input, `H` of a state,
`G` = H times the number of column blocks.
"""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._axes import all_vary, varying

Cell = Literal["augru", "augru_release", "agru", "aigru"]


class Weights(NamedTuple):
    """A recurrent cell. Columns are blocks of H: [update, reset, new]; "agru" has no update."""

    input: Float[Array, "X G"]
    recurrent: Float[Array, "H G"]
    bias: Float[Array, " G"]


def gru(
    inputs: Float[Array, "B L X"], mask: Bool[Array, "B L"], weights: Weights
) -> Float[Array, "B L H"]:
    """See `api.gru`."""
    everyone = jnp.ones((inputs.shape[0], 1, inputs.shape[1]), jnp.float32)
    # Attention 1 to the update gate is no attention.
    _, states = _scan(inputs, everyone, mask, weights, "augru", keep_all=True)
    return states[:, :, 0].swapaxes(0, 1).astype(inputs.dtype)


def augru(
    states: Float[Array, "B L X"],
    attention: Float[Array, "B C L"],
    mask: Bool[Array, "B L"],
    weights: Weights,
    *,
    cell: Cell,
) -> Float[Array, "B C H"]:
    """See `api.augru`."""
    last, _ = _scan(states, attention, mask, weights, cell, keep_all=False)
    return last.astype(states.dtype)


def _scan(inputs, attention, mask, weights: Weights, cell: Cell, *, keep_all: bool):
    """The last state (B, C, H) and, if asked, those of every step (L, B, C, H); float32."""
    weights = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), weights)
    lead, width = attention.shape[:2], weights.recurrent.shape[0]

    # The backward pass keeps the states alone and computes each step again: that is less memory
    # and, on a CPU, half the time. For the same reasons a step projects its own inputs.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def step(hidden, now):
        x, a, real = now
        # Masked steps may hold anything, NaN included, and must not reach a gradient either.
        x = jnp.where(real[:, None], x, 0).astype(jnp.float32)
        a = jnp.where(real[:, None], a, 0).astype(jnp.float32)
        moved = cell_step(hidden, x, a, weights, cell)
        hidden = jnp.where(real[:, None, None], moved, hidden)
        return hidden, hidden if keep_all else None

    by_time = inputs.swapaxes(0, 1), jnp.moveaxis(attention, 2, 0), mask.T
    start = all_vary(jnp.zeros((*lead, width), jnp.float32), varying(inputs))
    return jax.lax.scan(step, start, by_time)


def cell_step(
    hidden: Float[Array, "B C H"],
    x: Float[Array, "B X"],
    attention: Float[Array, "B C"],
    weights: Weights,
    cell: Cell,
) -> Float[Array, "B C H"]:
    """The next state of each candidate; the input is projected once per request."""
    width, a = hidden.shape[-1], attention[..., None]
    from_input, bias = x @ weights.input, weights.bias[None]
    if cell == "aigru":
        from_input = a * from_input[:, None] + bias[None]
    else:
        from_input = (from_input + bias)[:, None]
    # As one flat product: XLA's CPU backend takes half as long again over a batched one.
    from_state = hidden.reshape(-1, width) @ weights.recurrent
    from_state = from_state.reshape(*hidden.shape[:2], weights.recurrent.shape[1])
    # Split, not sliced: gradients of slices would be padded with zeros and added.
    gates = from_state.shape[-1] - width
    x_gates, x_new = jnp.split(from_input, [gates], axis=-1)
    h_gates, h_new = jnp.split(from_state, [gates], axis=-1)
    *update, reset = jnp.split(jax.nn.sigmoid(x_gates + h_gates), gates // width, axis=-1)
    new = jnp.tanh(x_new + reset * h_new)
    if cell == "agru":
        take = a
    elif cell == "augru":
        take = a * update[0]
    elif cell == "augru_release":
        take = 1 - (1 - a) * (1 - update[0])
    else:
        take = update[0]
    return (1 - take) * hidden + take * new
