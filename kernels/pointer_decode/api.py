"""Public entry points."""

import math
import typing
from typing import Literal

import jax
from jaxtyping import Array, Bool, Float, Int, UInt32

from .. import _dispatch
from .._check import check_array, check_axes, check_dtype
from . import pallas_tpu, reference, triton
from .noise import STRIDE
from .reference import Context, Decoded, Direction, Request, Weights
from .rules import Rules

# In order of preference.
IMPLEMENTATIONS = {
    "triton": _dispatch.Implementation(triton.pointer_decode, triton.unsupported, triton.KERNEL),
    "pallas_tpu": _dispatch.Implementation(
        pallas_tpu.pointer_decode, pallas_tpu.unsupported, pallas_tpu.KERNEL
    ),
    "reference": _dispatch.Implementation(reference.pointer_decode),
}

DTYPES = ("float32", "bfloat16")


def pointer_decode(
    request: Request,
    weights: Weights,
    mask: Bool[Array, "R N"],
    *,
    slots: int,
    direction: Direction | None = None,
    steps: Float[Array, " S"] | None = None,
    noise: Float[Array, "R S M N"] | UInt32[Array, " R"] | None = None,
    rules: Rules | None = None,
    temperature: float = 1.0,
    context: Context = "softmax",
    implementation: Literal["triton", "pallas_tpu", "reference"] | None = None,
) -> Decoded:
    r"""One list of `slots` candidates for every request and lane, chosen one by one.

    Lane s of a request decodes from request + steps[s] * direction, with weights + steps[s] *
    direction of the weights. With h the state, g what the slot before adds to the gates (0 at the
    first), c_n, k_n and p_n a candidate's context, key and row, and f running over heads:

        [u, r, n] = g + b, h U       u, r = sigmoid(g + b + h U)    h <- (1 - u) h + u tanh(n)
                                     n = g_n + b_n + r * (h U_n)
        score_f(i) = v_f . tanh(k_fi + h W_f + b_f)       logit(i) = mean_f score_f(i) / temperature
        chosen = argmax of logit + noise over those not yet chosen, and allowed by the rules
        g = p_chosen + sum_f sum_i w_f(i) c_fi            w = softmax of score_f, or score_f ("raw")

    in float32 whatever the input dtype. Without `noise` decoding is greedy; with standard Gumbel
    noise it draws from the softmax. Equal scores are decided for the lowest index. Masked
    candidates are never chosen and weigh nothing; where none is left, or allowed, a slot holds -1.
    The choice carries no gradient, its log probability does.

    The generator of Wang et al., "Do Not Wait: Learning Re-Ranking Model Without User
    Feedback At Serving Time in E-Commerce" (LAST), https://arxiv.org/abs/2406.14004, after the
    pointer network of CMR, https://arxiv.org/abs/2306.05118, with linear maps of a candidate
    multiplied in advance.
    Differs from the authors' code: the softmax runs over what can still be chosen; padding weighs
    nothing; the reset gate stands behind the product, as in the other models of the zoo.

    Args:
      request: what is the same at every slot.
      weights: of the decoder.
      mask: True where a candidate is real.
      slots: M, the length of the lists.
      direction: what a step of 1 adds; None means that all lanes start from `request`.
      steps: one per lane; None means a single lane with step 0.
      noise: for every lane, slot and candidate, or one seed per request, from which it is made
        on the way (see `noise`); None means greedy.
      rules: of the lists, see `rules`.
      temperature: of the softmax.
      context: whether attention to candidates is normalised.
      implementation: None picks the best one for these arguments; a name forces it, and raises
        if it cannot run.

    Returns:
      `Decoded(order, log_probability)`, each (R, S, M): int32 indices of candidates, float32.
    """
    size, count = _check(request, weights, mask, rules, temperature, context)
    if slots < 1:
        raise ValueError(f"slots must be >= 1, got {slots}.")
    if steps is None:
        steps = jax.numpy.zeros(1, "float32")
    check_axes("steps", steps, 1)
    if direction is not None:
        for name, mine, its in zip(Request._fields, request, direction.request, strict=True):
            check_array(f"direction.request.{name}", its, mine.shape, DTYPES)
        if direction.weights is not None:
            _check_weights("direction.weights", direction.weights, request, (size,))
    if noise is not None and len(noise.shape) == 1:
        check_array("noise", noise, (size,), ("uint32",))
        if count > STRIDE:
            raise ValueError(f"noise from seeds needs at most {STRIDE} candidates, got {count}.")
    elif noise is not None:
        check_array("noise", noise, (size, steps.shape[0], slots, count), DTYPES)
    return _dispatch.dispatch(
        IMPLEMENTATIONS,
        implementation,
        request,
        weights,
        mask,
        direction,
        steps,
        noise,
        rules,
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
    rules: Rules | None = None,
    temperature: float = 1.0,
    context: Context = "softmax",
) -> Float[Array, "R S M"]:
    """The log probability of every choice of given lists, as `pointer_decode` would see it.

    Where a list holds -1 it is 0, and the slots behind see nothing chosen there; a candidate that
    is masked, was chosen before or breaks a rule has -inf. Differentiable by `request` and
    `weights`.
    """
    size, _ = _check(request, weights, mask, rules, temperature, context)
    check_axes("order", order, 3)
    check_array("order", order, (size, *order.shape[1:]), ("int32",))
    return reference.pointer_log_probability(
        request, weights, mask, order, rules, temperature=temperature, context=context
    )


def _check(request, weights, mask, rules, temperature, context):
    """Refuses what no implementation could make sense of; the number of requests and candidates."""
    if context not in typing.get_args(Context):
        raise ValueError(f"context must be one of {typing.get_args(Context)}, got {context!r}.")
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be > 0 and finite, got {temperature}.")
    check_axes("request.keys", request.keys, 4)
    check_axes("request.state", request.state, 2)
    size, heads, count, width = request.keys.shape
    units = request.state.shape[1]
    if 0 in (heads, count, width, units):
        raise ValueError(
            "request.keys and request.state must have no empty axis but R, got shapes "
            f"{tuple(request.keys.shape)} and {tuple(request.state.shape)}."
        )
    check_array("request.state", request.state, (size, units), DTYPES)
    check_dtype("request.keys", request.keys, DTYPES)
    check_array("request.context", request.context, (size, heads, count, 3 * units), DTYPES)
    check_array("request.rows", request.rows, (size, count, 3 * units), DTYPES)
    own = len(weights.bias.shape) == 2
    _check_weights("weights", weights, request, (size,) if own else ())
    check_array("mask", mask, (size, count), ("bool",))
    for i, scatter in enumerate(rules.scatters if rules else ()):
        check_array(f"rules.scatters[{i}].same", scatter.same, (size, count, count), ("bool",))
    for i, quota in enumerate(rules.quotas if rules else ()):
        check_array(f"rules.quotas[{i}].member", quota.member, (size, count), ("bool",))
    return size, count


def _check_weights(name, weights, request, lead):
    _, heads, _, width = request.keys.shape
    units = request.state.shape[1]
    check_array(f"{name}.query", weights.query, (*lead, heads, units, width), DTYPES)
    check_array(f"{name}.query_bias", weights.query_bias, (*lead, heads, width), DTYPES)
    check_array(f"{name}.score", weights.score, (*lead, heads, width), DTYPES)
    check_array(f"{name}.recurrent", weights.recurrent, (*lead, units, 3 * units), DTYPES)
    check_array(f"{name}.bias", weights.bias, (*lead, 3 * units), DTYPES)
