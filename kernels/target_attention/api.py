"""Public entry points."""

import typing
from typing import Literal

from jaxtyping import Array, Bool, Float

from .. import _dispatch
from .._check import check_array, check_axes
from . import chunked, pallas_tpu, reference, statistics, triton
from .reference import Activation, Normalize, Weights

# In order of preference. The reference comes last: it can always run, and never wins.
IMPLEMENTATIONS = {
    "triton": _dispatch.Implementation(triton.target_attention, triton.unsupported, triton.KERNEL),
    "pallas_tpu": _dispatch.Implementation(
        pallas_tpu.target_attention, pallas_tpu.unsupported, pallas_tpu.KERNEL
    ),
    "chunked": _dispatch.Implementation(chunked.target_attention),
    "reference": _dispatch.Implementation(reference.target_attention),
}
SCORES_IMPLEMENTATIONS = {
    "chunked": _dispatch.Implementation(chunked.attention_scores),
    "reference": _dispatch.Implementation(reference.attention_scores),
}

DTYPES = ("float32", "bfloat16")


def target_attention(
    query: Float[Array, "B C D"],
    keys: Float[Array, "B L D"],
    mask: Bool[Array, "B L"],
    weights: Weights,
    *,
    activation: Activation,
    normalize: Normalize,
    implementation: Literal["triton", "pallas_tpu", "chunked", "reference"] | None = None,
) -> Float[Array, "B C D"]:
    r"""DIN's activation unit and pooling, for C candidates that share one history.

    Every candidate q scores every behaviour k_t with a small network and takes the weighted sum:

        z_t = [q, k_t, q - k_t, q * k_t]                                       (4 D)
        s_t = out_kernel . f(... f(z_t W_1 + b_1) W_2 + b_2 ...) + out_bias
        out = sum_t a_t k_t,   a_t = mask_t s_t                    normalize = "none"
                               a_t = mask_t softmax_t(s)_t         normalize = "softmax"

    added up in float32 whatever the input dtype; kernels multiply in the dtype of the keys. Matrix
    products follow `jax.default_matmul_precision`. A row without behaviours (all masked, or L = 0)
    gives zeros. What masked keys hold, NaN included, reaches neither the output nor a gradient, and
    their own gradient is zero.

    Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", KDD 2018,
    https://arxiv.org/abs/1706.06978. Differs from the paper: its unit takes q, k and their product
    "out product"; q - k is from the authors' code. Differs from the authors' code: masked after the
    softmax as well, so that a user without history has no interest rather than a mean of padding.

    Args:
      query: the candidates.
      keys: the behaviours, which are also the values.
      mask: True where a behaviour is real; padding on either side, and holes, are fine.
      weights: the activation unit; see `Weights`.
      activation: after each hidden layer. "dice" takes its statistics from the weights; in
        training they are those of `moments`.
      normalize: the paper's is "none", which keeps the intensity of an interest; "softmax" is
        the authors' code.
      implementation: None picks the best one for these arguments; a name forces it, and raises
        if it cannot run.

    Returns:
      What each candidate finds in the history, in the dtype of `keys`.

    Examples:
      >>> import jax
      >>> from recjax.kernels.target_attention import Layer, Weights, target_attention
      >>> key = jax.random.key(0)
      >>> candidates = jax.random.normal(key, (2, 5, 8))      # 2 requests of 5 candidates
      >>> history = jax.random.normal(key, (2, 50, 8))        # 50 events each
      >>> mask = history[..., 0] > -1                         # some of them padding
      >>> hidden = Layer(jax.random.normal(key, (4 * 8, 16)), jax.numpy.zeros(16))
      >>> weights = Weights((hidden,), jax.random.normal(key, (16,)))
      >>> options = dict(activation="relu", normalize="softmax")
      >>> target_attention(candidates, history, mask, weights, **options).shape
      (2, 5, 8)
    """
    _check(query, keys, mask, weights, activation, normalize)
    return _dispatch.dispatch(
        IMPLEMENTATIONS,
        implementation,
        query,
        keys,
        mask,
        weights,
        activation=activation,
        normalize=normalize,
    )


def attention_scores(
    query: Float[Array, "B C D"],
    keys: Float[Array, "B L D"],
    mask: Bool[Array, "B L"],
    weights: Weights,
    *,
    activation: Activation,
    normalize: Normalize,
    implementation: Literal["chunked", "reference"] | None = None,
) -> Float[Array, "B C L"]:
    """The weights a_t with which `target_attention` pools; 0 where masked, float32.

    For models that do something else with them (DIEN). Arguments as in `target_attention`.
    """
    _check(query, keys, mask, weights, activation, normalize)
    return _dispatch.dispatch(
        SCORES_IMPLEMENTATIONS,
        implementation,
        query,
        keys,
        mask,
        weights,
        activation=activation,
        normalize=normalize,
    )


def moments(
    query: Float[Array, "B C D"],
    keys: Float[Array, "B L D"],
    mask: Bool[Array, "B L"],
    candidate_mask: Bool[Array, "B C"],
    weights: Weights,
    *,
    activation: Activation = "dice",
    axis_name: str | None = None,
    stats_include_padding: bool = False,
) -> tuple[tuple[Float[Array, " H"], Float[Array, " H"]], ...]:
    """Mean and biased variance of each hidden layer's pre-activation, for Dice in training.

    Over all (candidate, behaviour) pairs where both are real; layer by layer, as a Dice layer's
    result depends on its own statistics. Differentiable, so that

        statistics = moments(query, keys, mask, candidate_mask, weights)
        layers = (x._replace(mean=m, variance=v) for x, (m, v) in zip(weights.layers, statistics))
        target_attention(..., weights._replace(layers=tuple(layers)), activation="dice", ...)

    is Dice with batch statistics, gradients included. Without any pair: zeros.

    Args:
      query: the candidates.
      keys: the behaviours.
      mask: True where a behaviour is real.
      candidate_mask: True where a candidate is real.
      weights: the activation unit; statistics in it are not read by Dice.
      activation: between the layers.
      axis_name: of a pmap, to take the statistics over all its devices.
      stats_include_padding: count masked behaviours too, as zero keys, for parity with libraries
        that do. Masked candidates never count.

    Returns:
      (mean, variance) per hidden layer, float32.
    """
    if activation == "dice":
        given = tuple(x._replace(mean=x.bias, variance=x.bias) for x in weights.layers)
    else:
        given = weights.layers
    _check(query, keys, mask, weights._replace(layers=given), activation, "none")
    check_array("candidate_mask", candidate_mask, query.shape[:2], ("bool",))
    return statistics.moments(
        query,
        keys,
        mask,
        candidate_mask,
        weights,
        activation=activation,
        axis_name=axis_name,
        stats_include_padding=stats_include_padding,
    )


def _check(query, keys, mask, weights, activation, normalize):
    """Refuses what no implementation could make sense of."""
    for name, value, kind in (
        ("activation", activation, Activation),
        ("normalize", normalize, Normalize),
    ):
        if value not in typing.get_args(kind):
            raise ValueError(f"{name} must be one of {typing.get_args(kind)}, got {value!r}.")
    for name, array in (("query", query), ("keys", keys)):
        check_axes(name, array, 3)
    batch, _, width = query.shape
    check_array("query", query, query.shape, DTYPES)
    check_array("keys", keys, (batch, keys.shape[1], width), (str(query.dtype),))
    check_array("mask", mask, (batch, keys.shape[1]), ("bool",))
    if not weights.layers:
        raise ValueError("weights.layers must hold at least one layer, got none.")
    needed = {"prelu": ("alpha",), "dice": ("alpha", "mean", "variance")}.get(activation, ())
    rows = 4 * width
    for i, layer in enumerate(weights.layers):
        name = f"weights.layers[{i}]"
        units = layer.bias.shape[-1] if layer.bias.shape else 1
        check_array(f"{name}.kernel", layer.kernel, (rows, units), DTYPES)
        for field in ("bias", "alpha", "mean", "variance"):
            value = getattr(layer, field)
            if value is not None:
                check_array(f"{name}.{field}", value, (units,), DTYPES)
            elif field in needed:
                raise ValueError(f"{name}.{field} is needed by {activation!r}, got None.")
        rows = units
    check_array("weights.out_kernel", weights.out_kernel, (rows,), DTYPES)
    if weights.out_bias is not None:
        check_array("weights.out_bias", weights.out_bias, (), DTYPES)
