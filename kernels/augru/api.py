"""Public entry points."""

import typing
from typing import Literal

from jaxtyping import Array, Bool, Float

from .. import _dispatch
from .._check import check_array, check_axes
from . import reference
from .reference import Cell, Weights

IMPLEMENTATIONS = {"reference": _dispatch.Implementation(reference.augru)}
GRU_IMPLEMENTATIONS = {"reference": _dispatch.Implementation(reference.gru)}

DTYPES = ("float32", "bfloat16")


def augru(
    states: Float[Array, "B L X"],
    attention: Float[Array, "B C L"],
    mask: Bool[Array, "B L"],
    weights: Weights,
    *,
    cell: Cell = "augru",
    implementation: Literal["reference"] | None = None,
) -> Float[Array, "B C H"]:
    r"""The last state of a GRU that C candidates steer over one sequence, each by its attention.

    With x_t the sequence, a_t the attention, h_0 = 0, and * elementwise:

        u = sigmoid(x_t W_u + h U_u + b_u)                    update
        r = sigmoid(x_t W_r + h U_r + b_r)                    reset
        n = tanh(x_t W_n + r * (h U_n) + b_n)                 new
        h <- (1 - v) * h + v * n

        v = a_t u                           cell = "augru"
        v = 1 - (1 - a_t) (1 - u)           cell = "augru_release"
        v = a_t                             cell = "agru"
        v = u, and a_t x_t instead of x_t   cell = "aigru"

    in float32 whatever the input dtype. Masked steps leave the state alone; what they hold, NaN
    included, reaches neither the output nor a gradient. Without any step the state stays 0. What
    a step needs of x_t alone is computed once per request, and nothing of size (B, C, L, H) is
    made in a forward pass; for the backward pass the states are kept.

    Zhou et al., "Deep Interest Evolution Network for Click-Through Rate Prediction", AAAI 2019,
    https://arxiv.org/abs/1809.03672, section 4.3. "augru_release" is what the authors' code
    computes: there the update gate says how much to keep, and (1 - a_t) scales that. It never
    ignores a step: a_t = 0 takes u of the new state instead of none.

    Args:
      states: the sequence, oldest step first.
      attention: what each candidate gives to each step.
      mask: True where a step is real; padding on either side, and holes, are fine.
      weights: of the cell; see `Weights`.
      cell: where the attention enters.
      implementation: None picks the best one for these arguments; a name forces it, and raises
        if it cannot run.

    Returns:
      The state after the last real step, for each candidate, in the dtype of `states`.

    Examples:
      >>> import jax.numpy as jnp
      >>> from recjax.kernels.augru import Weights, augru
      >>> weights = Weights(jnp.ones((2, 9)), jnp.ones((3, 9)), jnp.zeros(9))
      >>> mask = jnp.ones((1, 4), bool)
      >>> no_attention = jnp.zeros((1, 1, 4))                 # for one candidate
      >>> augru(jnp.ones((1, 4, 2)), no_attention, mask, weights)
      Array([[[0., 0., 0.]]], dtype=float32)
    """
    if cell not in typing.get_args(Cell):
        raise ValueError(f"cell must be one of {typing.get_args(Cell)}, got {cell!r}.")
    _check("states", states, mask, weights, blocks=2 if cell == "agru" else 3)
    check_axes("attention", attention, 3)
    shape = (states.shape[0], attention.shape[1], states.shape[1])
    check_array("attention", attention, shape, DTYPES)
    return _dispatch.dispatch(
        IMPLEMENTATIONS, implementation, states, attention, mask, weights, cell=cell
    )


def gru(
    inputs: Float[Array, "B L X"],
    mask: Bool[Array, "B L"],
    weights: Weights,
    *,
    implementation: Literal["reference"] | None = None,
) -> Float[Array, "B L H"]:
    """Every state of a plain GRU: `augru` with a_t = 1. A masked step repeats the state before it.

    DIEN's interest extractor (section 4.2). Arguments, dtypes and masks as in `augru`.
    """
    _check("inputs", inputs, mask, weights, blocks=3)
    return _dispatch.dispatch(GRU_IMPLEMENTATIONS, implementation, inputs, mask, weights)


def _check(name, inputs, mask, weights, *, blocks):
    """Refuses what no implementation could make sense of."""
    check_axes(name, inputs, 3)
    check_axes("weights.recurrent", weights.recurrent, 2)
    width = weights.recurrent.shape[0]
    check_array(name, inputs, inputs.shape, DTYPES)
    check_array("mask", mask, inputs.shape[:2], ("bool",))
    check_array("weights.input", weights.input, (inputs.shape[2], blocks * width), DTYPES)
    check_array("weights.recurrent", weights.recurrent, (width, blocks * width), DTYPES)
    check_array("weights.bias", weights.bias, (blocks * width,), DTYPES)
