"""Public entry points."""

import math
import typing
from typing import Literal

import jax
from jaxtyping import Array, Bool, Float, Int

from .. import _dispatch
from . import reference
from .reference import Context, Decoded, Request, Weights

IMPLEMENTATIONS = {"reference": _dispatch.Implementation(reference.pointer_decode)}

DTYPES = ("float32", "bfloat16")


def pointer_decode(
    request: Request,
    weights: Weights,
    mask: Bool[Array, "R N"],
    *,
    slots: int,
    direction: Request | None = None,
    steps: Float[Array, " S"] | None = None,
    gumbel: Float[Array, "R S M N"] | None = None,
    temperature: float = 1.0,
    context: Context = "softmax",
    implementation: Literal["reference"] | None = None,
) -> Decoded:
    r"""One list of `slots` candidates for every request and lane, chosen one by one.

    Lane s of a request decodes from request + steps[s] * direction. With h the state, g what the
    slot before adds to the gates (0 at the first), c_n, k_n and p_n a candidate's context, key and
    row, and f running over heads:

        [u, r, n] = g + b, h U       u, r = sigmoid(g + b + h U)    h <- (1 - u) h + u tanh(n)
                                     n = g_n + b_n + r * (h U_n)
        score_f(i) = v_f . tanh(k_fi + h W_f + b_f)       logit(i) = mean_f score_f(i) / temperature
        chosen = argmax of logit + gumbel over those not yet chosen
        g = p_chosen + sum_f sum_i w_f(i) c_fi            w = softmax of score_f, or score_f ("raw")

    in float32 whatever the input dtype. Without `gumbel` decoding is greedy; with standard Gumbel
    noise it draws from the softmax. Equal scores are decided for the lowest index. Masked
    candidates are never chosen and weigh nothing; once none is left, a slot holds -1. The choice
    carries no gradient, its log probability does.

    The generator of Wang et al., "Enhancing Re-ranking with Local Adaptation at Serving Time"
    (LAST), https://arxiv.org/abs/2406.14004, after the pointer network of CMR,
    https://arxiv.org/abs/2306.05118, with linear maps of a candidate multiplied in advance.
    Differs from the authors' code: the softmax runs over what can still be chosen; padding weighs
    nothing; the reset gate stands behind the product, as in the other models of the zoo.

    Args:
      request: what is the same at every slot.
      weights: of the decoder.
      mask: True where a candidate is real.
      slots: M, the length of the lists.
      direction: what a step of 1 adds; None means that all lanes start from `request`.
      steps: one per lane; None means a single lane with step 0.
      gumbel: noise for every lane, slot and candidate; None means greedy.
      temperature: of the softmax.
      context: whether attention to candidates is normalised.
      implementation: None picks the best one for these arguments; a name forces it, and raises
        if it cannot run.

    Returns:
      `Decoded(order, log_probability)`, each (R, S, M): int32 indices of candidates, float32.
    """
    size, count = _check(request, weights, mask, temperature, context)
    if slots < 1:
        raise ValueError(f"slots must be >= 1, got {slots}.")
    if steps is None:
        steps = jax.numpy.zeros(1)
    if len(steps.shape) != 1:
        raise ValueError(f"steps must have 1 axis, got shape {tuple(steps.shape)}.")
    if direction is not None:
        for name, mine, its in zip(Request._fields, request, direction, strict=True):
            _check_array(f"direction.{name}", its, mine.shape, DTYPES)
    if gumbel is not None:
        shape = (size, steps.shape[0], slots, count)
        _check_array("gumbel", gumbel, shape, DTYPES)
    return _dispatch.dispatch(
        IMPLEMENTATIONS,
        implementation,
        request,
        weights,
        mask,
        direction,
        steps,
        gumbel,
        slots=slots,
        temperature=temperature,
        context=context,
    )


def pointer_log_probability(
    request: Request,
    weights: Weights,
    mask: Bool[Array, "R N"],
    order: Int[Array, "R S M"],
    *,
    temperature: float = 1.0,
    context: Context = "softmax",
) -> Float[Array, "R S M"]:
    """The log probability of every choice of given lists, as `pointer_decode` would see it.

    Where a list holds -1 it is 0, and the slots behind see nothing chosen there; a candidate that
    is masked, or was chosen before, has -inf. Differentiable by `request` and `weights`.
    """
    size, _ = _check(request, weights, mask, temperature, context)
    if len(order.shape) != 3 or order.shape[0] != size:
        raise ValueError(f"order must have shape ({size}, S, M), got {tuple(order.shape)}.")
    if str(order.dtype) != "int32":
        raise ValueError(f"order must be int32, got {order.dtype}.")
    return reference.pointer_log_probability(
        request, weights, mask, order, temperature=temperature, context=context
    )


def _check(request, weights, mask, temperature, context):
    """Refuses what no implementation could make sense of; the number of requests and candidates."""
    if context not in typing.get_args(Context):
        raise ValueError(f"context must be one of {typing.get_args(Context)}, got {context!r}.")
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be > 0 and finite, got {temperature}.")
    for name, array, axes in (
        ("request.keys", request.keys, 4),
        ("weights.recurrent", weights.recurrent, 2),
        ("mask", mask, 2),
    ):
        if len(array.shape) != axes:
            raise ValueError(f"{name} must have {axes} axes, got shape {tuple(array.shape)}.")
    size, heads, count, width = request.keys.shape
    units = weights.recurrent.shape[0]
    if 0 in (heads, count, width, units):
        raise ValueError(
            "request.keys and weights.recurrent must have no empty axis but R, got shapes "
            f"{tuple(request.keys.shape)} and {tuple(weights.recurrent.shape)}."
        )
    _check_array("request.state", request.state, (size, units), DTYPES)
    _check_array("request.keys", request.keys, request.keys.shape, DTYPES)
    _check_array("request.context", request.context, (size, heads, count, 3 * units), DTYPES)
    _check_array("request.rows", request.rows, (size, count, 3 * units), DTYPES)
    _check_array("weights.query", weights.query, (heads, units, width), DTYPES)
    _check_array("weights.query_bias", weights.query_bias, (heads, width), DTYPES)
    _check_array("weights.score", weights.score, (heads, width), DTYPES)
    _check_array("weights.recurrent", weights.recurrent, (units, 3 * units), DTYPES)
    _check_array("weights.bias", weights.bias, (3 * units,), DTYPES)
    _check_array("mask", mask, (size, count), ("bool",))
    return size, count


def _check_array(name, array, shape, dtypes):
    if tuple(array.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(array.shape)}.")
    if str(array.dtype) not in dtypes:
        raise ValueError(f"{name} must be {' or '.join(dtypes)}, got {array.dtype}.")
