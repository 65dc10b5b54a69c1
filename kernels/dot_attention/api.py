"""Public entry point."""

from typing import Literal

from jaxtyping import Array, Bool, Float, Int

from .. import _dispatch
from .._check import check_array, check_axes
from . import chunked, pallas_tpu, reference, triton

# In order of preference. The reference comes last: it can always run, and never wins.
IMPLEMENTATIONS = {
    "triton": _dispatch.Implementation(triton.dot_attention, triton.unsupported, triton.KERNEL),
    "pallas_tpu": _dispatch.Implementation(
        pallas_tpu.dot_attention, pallas_tpu.unsupported, pallas_tpu.KERNEL
    ),
    "chunked": _dispatch.Implementation(chunked.dot_attention),
    "reference": _dispatch.Implementation(reference.dot_attention),
}

DTYPES = ("float32", "bfloat16")


def dot_attention(
    query: Float[Array, "B Q Z"],
    keys: Float[Array, "B L E"],
    mask: Bool[Array, "B L"],
    interval: Int[Array, "B L"] | None = None,
    table: Float[Array, "I T"] | None = None,
    *,
    implementation: Literal["triton", "pallas_tpu", "chunked", "reference"] | None = None,
) -> Float[Array, "B Q Z"]:
    r"""Attention of each query over a history, by inner products with behaviours and their ages.

        z_t = [k_t, table[interval_t]]                     Z = E, or E + T with a table
        out = sum_t a_t z_t,   a_t = mask_t softmax_t(query . z_t)

    added up in float32 whatever the input dtype; kernels multiply in the dtype of the keys. Matrix
    products follow `jax.default_matmul_precision`. A row without behaviours gives zeros. What
    masked keys hold, NaN included, reaches neither the output nor a gradient, and their own
    gradient is zero.

    Multi-head attention is this with one query per candidate and head: head i asks with
    `W_b,i^T W_a,i q`, so that no key is ever projected and the heads share each key. Values stay
    z_t; what projects them comes after the sum.

    Pi et al., "Search-based User Interest Modeling with Lifelong Sequential Behavior Data for
    Click-Through Rate Prediction", CIKM 2020, section 3.3, https://arxiv.org/abs/2006.05639.

    Args:
      query: the candidates' heads; not scaled.
      keys: the behaviours, which are also the values.
      mask: True where a behaviour is real; padding on either side, and holes, are fine.
      interval: row of the table for each behaviour; zeros stand for a row that there is not.
      table: embeddings of time intervals. Both or neither.
      implementation: None picks the best one for these arguments; a name forces it, and raises
        if it cannot run.

    Returns:
      What each query finds, in the dtype of `keys`.

    Examples:
      >>> import jax.numpy as jnp
      >>> from recjax.kernels.dot_attention import dot_attention
      >>> keys = jnp.eye(3)[None]                             # one request, three behaviours
      >>> mask = jnp.array([[True, True, False]])
      >>> dot_attention(10 * jnp.eye(3)[None, :1], keys, mask).round(3)
      Array([[[1., 0., 0.]]], dtype=float32)
    """
    _check(query, keys, mask, interval, table)
    more = () if interval is None else (interval, table)
    return _dispatch.dispatch(IMPLEMENTATIONS, implementation, query, keys, mask, *more)


def _check(query, keys, mask, interval, table):
    """Refuses what no implementation could make sense of."""
    if (interval is None) != (table is None):
        raise ValueError("interval and table must be given both, or neither.")
    for name, array, axes in (("query", query, 3), ("keys", keys, 3), ("table", table, 2)):
        if array is not None:
            check_axes(name, array, axes)
    (batch, length, width), queries = keys.shape, query.shape[1]
    wide = width if table is None else width + table.shape[1]
    for name, array, shape, dtypes in (
        ("keys", keys, keys.shape, DTYPES),
        ("query", query, (batch, queries, wide), (str(keys.dtype),)),
        ("mask", mask, (batch, length), ("bool",)),
        ("interval", interval, (batch, length), ("int32",)),
        ("table", table, () if table is None else table.shape, DTYPES),
    ):
        if array is not None:
            check_array(name, array, shape, dtypes)
    if table is not None and not table.shape[0]:
        raise ValueError("table must have a row at least, got none.")
