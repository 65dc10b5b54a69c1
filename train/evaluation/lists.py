"""Metrics of lists: what stands in the first k places of each request."""

import math
from typing import Any

from jaxtyping import Shaped
import numpy as np

from .checked import Labels, Mask, Scores, ratio


def ndcg_at_k(
    score: Scores,
    label: Labels,
    mask: Mask | None = None,
    *,
    k: int,
    relevant: Shaped[np.ndarray, " R"] | None = None,
) -> float:
    r"""Normalised discounted cumulative gain of the first k, mean over requests.

        DCG = sum_{rank <= k} (2^label - 1) / log2(1 + rank),    NDCG = DCG / max over orders of DCG

    Labels are grades >= 0. Requests without a positive label are left out. In retrieval, where
    only what was found is scored, `relevant` is the number of relevant items that exist: the best
    order then has min(relevant, k) gains of 1, and a request that found none of them counts as 0.
    """
    discount = lambda rank: np.where(rank <= k, 1.0 / np.log2(1.0 + rank), 0.0)
    score, label, mask = as_lists(score, label, mask, k)
    gain = np.exp2(label) - 1.0
    actual = np.sum(gain * expected(score, mask, discount), axis=1)
    if relevant is None:
        ideal = np.sum(gain * expected(label, mask, discount), axis=1)
    else:
        best = np.concatenate([[0.0], np.cumsum(discount(np.arange(1.0, k + 1.0)))])
        ideal = best[np.minimum(relevant, k).astype(np.int64)]
    return mean_ratio(actual, ideal, score, mask)


def recall_at_k(
    score: Scores,
    label: Labels,
    mask: Mask | None = None,
    *,
    k: int,
    relevant: Shaped[np.ndarray, " R"] | None = None,
) -> float:
    r"""Share of a request's positives among its first k, mean over requests that have any.

        mean_r  (positives of r with rank <= k) / (positives of r)

    In retrieval, `relevant` is the number of relevant items that exist, found or not.
    """
    score, label, mask = as_lists(score, label, mask, k)
    found = np.sum(label * expected(score, mask, lambda rank: rank <= k), axis=1)
    return mean_ratio(found, label.sum(axis=1) if relevant is None else relevant, score, mask)


def top_click_hit(score: Scores, click: Labels, mask: Mask | None = None, *, k: int) -> float:
    r"""Share of all clicks that fall on the first k positions: how little a user has to scroll.

        sum_r (clicks of r with rank <= k) / sum_r (clicks of r)

    Every click weighs the same, so requests with many clicks weigh more; `recall_at_k` weighs
    requests alike. Clicks are counts >= 0. NaN without clicks.
    """
    score, click, mask = as_lists(score, click, mask, k)
    hit = np.sum(click * expected(score, mask, lambda rank: rank <= k))
    return math.nan if np.isnan(score[mask]).any() else ratio(hit, np.sum(click))


def cr_hit(score: Scores, conversion: Labels, mask: Mask | None = None, *, k: int) -> float:
    r"""Share of all conversions that fall on the first k positions.

        sum_r (conversions of r with rank <= k) / sum_r (conversions of r)

    `top_click_hit`, with conversions (orders, bookings) in place of clicks.
    """
    return top_click_hit(score, conversion, mask, k=k)


def as_lists(
    score: np.ndarray, label: np.ndarray, mask: np.ndarray | None, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Float64 scores, float64 labels that are 0 where masked, and the mask."""
    if k < 1:
        raise ValueError(f"k must be >= 1, got {k}.")
    mask = np.ones(score.shape, bool) if mask is None else mask
    return score.astype(np.float64), np.where(mask, label, 0).astype(np.float64), mask


def expected(score: np.ndarray, mask: np.ndarray, value: Any) -> np.ndarray:
    """Per candidate, `value(rank)` averaged over all orders of the candidates that tie with it.

    Ranks count from 1, best first. Masked candidates rank behind all others.
    """
    order = np.lexsort((-score, ~mask), axis=1)
    score, behind = (np.take_along_axis(array, order, axis=1) for array in (score, ~mask))
    first = np.ones(score.shape, bool)
    first[:, 1:] = (score[:, 1:] != score[:, :-1]) | (behind[:, 1:] != behind[:, :-1])
    run = np.flatnonzero(first)
    values = np.broadcast_to(value(np.arange(1.0, score.shape[1] + 1.0)), score.shape)
    size = np.diff(np.append(run, score.size))
    if score.size:
        mean = np.add.reduceat(values.reshape(-1).astype(np.float64), run) / size
        values = np.repeat(mean, size).reshape(score.shape)
    result = np.empty(score.shape)
    np.put_along_axis(result, order, values, axis=1)
    return result


def mean_ratio(actual: np.ndarray, ideal: np.ndarray, score: np.ndarray, mask: np.ndarray) -> float:
    """Mean of actual / ideal over the requests whose ideal is not 0."""
    if np.isnan(score[mask]).any():
        return math.nan
    some = ideal > 0
    return ratio(np.sum(actual[some] / ideal[some]), np.sum(some))
