"""Confidence of a difference of two AUCs: a paired bootstrap over users."""

import math
from typing import NamedTuple

import numpy as np

from .checked import Label, Score, binary, ratio


def paired_bootstrap(
    score_a: Score,
    score_b: Score,
    label: Label,
    group: Label | None = None,
    *,
    samples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[float, float, float]:
    """AUC(a) - AUC(b) and its percentile interval, both models seeing the same resamples.

    Groups (users) are drawn with replacement, because the examples of one user are not
    independent; without `group`, examples are. Drawing a group twice doubles the weight of its
    examples, so the scores are sorted once and a sample costs two passes over the data. Samples
    that lack a class are left out; (NaN, NaN, NaN) if there are only such.

    Returns:
      difference on the data as it is, then the low and high end of the interval.
    """
    if samples < 1:
        raise ValueError(f"paired_bootstrap: samples must be >= 1, got {samples}.")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"paired_bootstrap: confidence must be in (0, 1), got {confidence}.")
    a, b = pairs_of(score_a, label), pairs_of(score_b, label)
    ones = np.ones(len(label))
    difference = weighted_auc(a, ones) - weighted_auc(b, ones)
    if math.isnan(difference):
        return math.nan, math.nan, math.nan
    member = None if group is None else np.unique(group, return_inverse=True)[1]
    count = len(label) if member is None else int(member.max()) + 1
    random = np.random.default_rng(seed)
    differences = np.empty(samples)
    for sample in range(samples):
        drawn = np.bincount(random.integers(0, count, count), minlength=count).astype(np.float64)
        weight = drawn if member is None else drawn[member]
        differences[sample] = weighted_auc(a, weight) - weighted_auc(b, weight)
    differences = differences[~np.isnan(differences)]
    if not len(differences):
        return difference, math.nan, math.nan
    low, high = np.quantile(differences, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0])
    return difference, float(low), float(high)


class Pairs(NamedTuple):
    """Ranks of scores and labels, from which AUC follows for any weights."""

    positive: np.ndarray  # indices of the positives, by score
    negative: np.ndarray  # indices of the negatives, by score
    below: np.ndarray  # per positive: how many negatives score less
    up_to: np.ndarray  # per positive: how many negatives score less or the same


def pairs_of(score: np.ndarray, label: np.ndarray) -> Pairs | None:
    """The examples in the order of their scores; None where a score is NaN."""
    score, positive = np.asarray(score, np.float64), binary(label)
    if np.isnan(score).any():
        return None
    up, down = np.flatnonzero(positive), np.flatnonzero(~positive)
    up, down = up[np.argsort(score[up])], down[np.argsort(score[down])]
    below, up_to = (np.searchsorted(score[down], score[up], side) for side in ("left", "right"))
    return Pairs(up, down, below, up_to)


def weighted_auc(pairs: Pairs | None, weight: np.ndarray) -> float:
    """AUC of the examples with these weights, ties counted as one half."""
    if pairs is None:
        return math.nan
    down = np.zeros(len(pairs.negative) + 1)
    np.cumsum(weight[pairs.negative], out=down[1:])
    up = weight[pairs.positive]
    won = np.sum(up * (down[pairs.below] + down[pairs.up_to])) / 2.0
    return ratio(won, np.sum(up) * down[-1])
