"""Public entry point."""

from typing import Literal

from jaxtyping import Array, Bool, Float

from .. import _dispatch
from .._check import check_array, check_axes, check_dtype
from . import chunked, reference
from .reference import Found

# In order of preference. The reference comes last: it can always run, and never wins.
IMPLEMENTATIONS = {
    "chunked": _dispatch.Implementation(chunked.soft_search, chunked.unsupported),
    "reference": _dispatch.Implementation(reference.soft_search),
}

DTYPES = ("float32", "bfloat16")


def soft_search(
    keys: Float[Array, "B L A"],
    queries: Float[Array, "B C A"],
    mask: Bool[Array, "B L"],
    *,
    k: int,
    implementation: Literal["chunked", "reference"] | None = None,
) -> Found:
    r"""The k behaviours with the largest inner products, for C candidates that share a history.

        r_i = queries . keys_i        found = the k largest r_i of real behaviours, best first

    Exact, in float32 at the highest matrix precision whatever the input dtype: which behaviours
    are found should not depend on the device. Equal scores are found newest first (largest index).
    With fewer than k real behaviours (k > L included) the rest is masked. What masked keys hold,
    NaN included, is never found. Nothing carries a gradient.

    Pi et al., "Search-based User Interest Modeling with Lifelong Sequential Behavior Data for
    Click-Through Rate Prediction", CIKM 2020, section 3.2, https://arxiv.org/abs/2006.05639.
    Differs from the paper: exact instead of an approximate index. Differs from public code: a
    masked score is -inf, not 0, which would beat the negative scores of real behaviours.

    Args:
      keys: vectors of the behaviours, oldest first.
      queries: vectors of the candidates.
      mask: True where a behaviour is real; padding on either side, and holes, are fine.
      k: how many to find.
      implementation: None picks the best one for these arguments; a name forces it, and raises
        if it cannot run.

    Returns:
      `Found(indices, mask, scores)`, each (B, C, k): int32, bool, float32.

    Examples:
      >>> import jax.numpy as jnp
      >>> from recjax.kernels.soft_search import soft_search
      >>> keys = jnp.array([[[0.0], [3.0], [1.0], [9.0]]])
      >>> mask = jnp.array([[True, True, True, False]])       # the last is padding
      >>> soft_search(keys, jnp.ones((1, 1, 1)), mask, k=2).indices
      Array([[[1, 2]]], dtype=int32)
    """
    _check(keys, queries, mask, k)
    return _dispatch.dispatch(IMPLEMENTATIONS, implementation, keys, queries, mask, k=k)


def _check(keys, queries, mask, k):
    """Refuses what no implementation could make sense of."""
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise ValueError(f"k must be an integer >= 1, got {k!r}.")
    for name, array in (("keys", keys), ("queries", queries)):
        check_axes(name, array, 3)
        check_dtype(name, array, DTYPES)
    batch, length, width = keys.shape
    check_array("queries", queries, (batch, queries.shape[1], width), DTYPES)
    check_array("mask", mask, (batch, length), ("bool",))
