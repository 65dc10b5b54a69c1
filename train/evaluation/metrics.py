r"""How good are the scores? Metrics of ranking and calibration, in NumPy and float64.

Equal scores get no benefit of their order in the input: `auc` and `gauc` count a tied pair as one
half, the list metrics take the expectation over all orders of the tied candidates. A model that
scores everything alike thus gets what chance gets, wherever the positives stand in the file.

What is undefined (AUC of one class, the mean over no requests, a NaN score) is NaN here, and None
in what `evaluate` returns, because JSON has no NaN.

Shapes: `N` examples; `R` requests of `C` candidates, `mask` True where a candidate is real.
Labels are 0/1 (or bool) unless said otherwise; weights are >= 0, and None means all 1.
"""

from collections.abc import Mapping
import math
from typing import Any, NamedTuple

from jaxtyping import Bool, Real, Shaped
import numpy as np

from .segments import Segments

_Score = Real[np.ndarray, " N"]
_Label = Shaped[np.ndarray, " N"]
_Scores = Real[np.ndarray, "R C"]
_Labels = Shaped[np.ndarray, "R C"]
_Mask = Bool[np.ndarray, "R C"]


def sigmoid(logit: Real[np.ndarray, "..."]) -> np.ndarray:
    """1 / (1 + exp(-logit)) without overflow."""
    x = np.asarray(logit, np.float64)
    small = np.exp(-np.abs(x))
    return np.where(x >= 0.0, 1.0, small) / (1.0 + small)


def auc(score: _Score, label: _Label, weight: _Score | None = None) -> float:
    r"""Area under the ROC curve: how often a positive outranks a negative, ties counting half.

        sum_{i in P, j in N} w_i w_j ([s_i > s_j] + [s_i = s_j] / 2) / (sum_P w_i * sum_N w_j)

    NaN if a class is absent (or has no weight), or if a score is NaN.
    """
    return _weighted_auc(_pairs(score, label), _weights(weight, score))


def gauc(score: _Score, label: _Label, group: _Label, weight: _Score | None = None) -> float:
    r"""Grouped AUC: the mean over groups (users), weighted by their examples.

        sum_u n_u AUC_u / sum_u n_u,        n_u = sum of u's weights

    over the groups that have both classes; NaN if there is none, or if a score is NaN.
    """
    score, positive = np.asarray(score, np.float64), _binary(label)
    weight = _weights(weight, score)
    if np.isnan(score).any() or not len(score):
        return math.nan
    _, group = np.unique(group, return_inverse=True)
    order = np.lexsort((score, group))
    score, group = score[order], group[order]
    up, down = (weight * positive)[order], (weight * ~positive)[order]
    # A run is the examples of one group with one score; a group is a row of runs.
    run = _starts((group[1:] != group[:-1]) | (score[1:] != score[:-1]))
    up, down = np.add.reduceat(up, run), np.add.reduceat(down, run)
    user = _starts(np.diff(group[run]) != 0)
    ups, downs = np.add.reduceat(up, user), np.add.reduceat(down, user)
    before = np.cumsum(down) - down
    below = before - np.repeat(before[user], np.diff(np.append(user, len(run))))
    won = np.add.reduceat(up * (below + 0.5 * down), user)
    both = (ups > 0.0) & (downs > 0.0)
    size, pairs = (ups + downs)[both], (ups * downs)[both]
    return _ratio(np.sum(size * won[both] / pairs), np.sum(size))


def logloss(probability: _Score, label: _Label, weight: _Score | None = None) -> float:
    r"""Cross-entropy in nats: -sum w (y log p + (1 - y) log(1 - p)) / sum w.

    Nothing is clipped: a certain and wrong prediction costs infinity. From logits, use
    `logloss_from_logit`, which saturates nowhere. Labels may lie between 0 and 1. NaN if empty.
    """
    p, y = np.asarray(probability, np.float64), np.asarray(label, np.float64)
    weight = _weights(weight, p)
    with np.errstate(divide="ignore"):
        loss = _cross_entropy(-np.log(p), -np.log1p(-p), y)
    return _ratio(np.sum(weight * loss), np.sum(weight))


def logloss_from_logit(logit: _Score, label: _Label, weight: _Score | None = None) -> float:
    """`logloss` of `sigmoid(logit)`, exact where the sigmoid rounds to 0 or 1.

    With softplus(x) = log(1 + exp(x)): sum w (y softplus(-x) + (1 - y) softplus(x)) / sum w.
    """
    x, y = np.asarray(logit, np.float64), np.asarray(label, np.float64)
    weight = _weights(weight, x)
    rest = np.log1p(np.exp(-np.abs(x)))
    loss = _cross_entropy(np.maximum(-x, 0.0) + rest, np.maximum(x, 0.0) + rest, y)
    return _ratio(np.sum(weight * loss), np.sum(weight))


def calibration(probability: _Score, label: _Label, weight: _Score | None = None) -> float:
    """Predicted over observed positives, sum w p / sum w y; 1 is right, NaN without positives."""
    p, y = np.asarray(probability, np.float64), np.asarray(label, np.float64)
    weight = _weights(weight, p)
    return _ratio(np.sum(weight * p), np.sum(weight * y))


def calibration_error(
    probability: _Score, label: _Label, weight: _Score | None = None, *, bins: int = 20
) -> float:
    r"""Expected calibration error over bins of equal mass.

        sum_b (W_b / W) |mean_b(p) - mean_b(y)|

    Bin b holds the predictions whose mid-rank lies in [b, b + 1) / `bins` of the total weight;
    equal predictions share their mid-rank, hence their bin. NaN if empty or if a p is NaN.
    """
    if bins < 1:
        raise ValueError(f"calibration_error: bins must be >= 1, got {bins}.")
    p, y = np.asarray(probability, np.float64), np.asarray(label, np.float64)
    weight = _weights(weight, p)
    total = np.sum(weight)
    if not total > 0.0 or np.isnan(p).any():
        return math.nan
    order = np.argsort(p)
    run = _starts(np.diff(p[order]) != 0.0)
    mass = np.add.reduceat(weight[order], run)
    gap = np.add.reduceat((weight * (p - y))[order], run)
    middle = np.cumsum(mass) - 0.5 * mass
    bin_of = np.minimum((middle / total * bins).astype(np.int64), bins - 1)
    return float(np.sum(np.abs(np.bincount(bin_of, gap, minlength=bins))) / total)


def ndcg_at_k(
    score: _Scores,
    label: _Labels,
    mask: _Mask | None = None,
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
    score, label, mask = _lists(score, label, mask, k)
    gain = np.exp2(label) - 1.0
    actual = np.sum(gain * _expected(score, mask, discount), axis=1)
    if relevant is None:
        ideal = np.sum(gain * _expected(label, mask, discount), axis=1)
    else:
        best = np.concatenate([[0.0], np.cumsum(discount(np.arange(1.0, k + 1.0)))])
        ideal = best[np.minimum(relevant, k).astype(np.int64)]
    return _mean_ratio(actual, ideal, score, mask)


def recall_at_k(
    score: _Scores,
    label: _Labels,
    mask: _Mask | None = None,
    *,
    k: int,
    relevant: Shaped[np.ndarray, " R"] | None = None,
) -> float:
    r"""Share of a request's positives among its first k, mean over requests that have any.

        mean_r  (positives of r with rank <= k) / (positives of r)

    In retrieval, `relevant` is the number of relevant items that exist, found or not.
    """
    score, label, mask = _lists(score, label, mask, k)
    found = np.sum(label * _expected(score, mask, lambda rank: rank <= k), axis=1)
    return _mean_ratio(found, label.sum(axis=1) if relevant is None else relevant, score, mask)


def top_click_hit(score: _Scores, click: _Labels, mask: _Mask | None = None, *, k: int) -> float:
    r"""Share of all clicks that fall on the first k positions: how little a user has to scroll.

        sum_r (clicks of r with rank <= k) / sum_r (clicks of r)

    Every click weighs the same, so requests with many clicks weigh more; `recall_at_k` weighs
    requests alike. Clicks are counts >= 0. NaN without clicks.
    """
    score, click, mask = _lists(score, click, mask, k)
    hit = np.sum(click * _expected(score, mask, lambda rank: rank <= k))
    return math.nan if np.isnan(score[mask]).any() else _ratio(hit, np.sum(click))


def cr_hit(score: _Scores, conversion: _Labels, mask: _Mask | None = None, *, k: int) -> float:
    r"""Share of all conversions that fall on the first k positions.

        sum_r (conversions of r with rank <= k) / sum_r (conversions of r)

    `top_click_hit`, with conversions (orders, bookings) in place of clicks.
    """
    return top_click_hit(score, conversion, mask, k=k)


def evaluate(
    logit: _Scores,
    label: _Labels,
    mask: _Mask | None = None,
    weight: _Scores | None = None,
    user: Shaped[np.ndarray, " R"] | None = None,
    segments: Mapping[str, Shaped[np.ndarray, " R ..."]] | None = None,
    *,
    k: int = 10,
) -> dict[str, Any]:
    """All metrics of one task, overall and by segment, ready for JSON.

    Args:
      logit: scores before the sigmoid.
      label: 0/1.
      mask: which candidates are real.
      weight: of each candidate, in `auc`, `gauc`, `logloss` and the calibrations. A candidate of
        weight 0 is left out everywhere, and the list metrics know no other use of weights.
      user: whose request it is; the groups of `gauc`, which is None without it.
      segments: per name, the segment of each request (R,) or of each candidate (R, C): the scene,
        the kind of user, ...
      k: list metrics look at the first k.

    Returns:
      "examples", "positives", "requests" (those with a candidate), "auc", "gauc", "logloss",
      "calibration", "calibration_error", "ndcg@k", and, with segments,
      "by": {name: {segment as text: the same metrics}}, of the `segments.MOST` largest; where there
      are more, "left out of by": {name: {"segments": how many, "examples": of them}}. What is
      undefined is None; so is "ndcg@k" where no request has two candidates to put in order.
    """
    mask = np.ones(logit.shape, bool) if mask is None else mask
    if weight is not None:
        mask = mask & (weight > 0.0)
    metrics = _metrics(logit, label, mask, weight, user, k)
    if segments:
        metrics["by"], cut = {}, {}
        for name, value in segments.items():
            parts = Segments(value, mask)
            pick = lambda array, part: None if array is None else array[part.rows]
            metrics["by"][name] = {
                part.label: _metrics(
                    logit[part.rows],
                    label[part.rows],
                    part.mask,
                    pick(weight, part),
                    pick(user, part),
                    k,
                )
                for part in parts
            }
            if parts.left_out:
                cut[name] = parts.left_out
        if cut:
            metrics["left out of by"] = cut
    return metrics


def paired_bootstrap(
    score_a: _Score,
    score_b: _Score,
    label: _Label,
    group: _Label | None = None,
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
    a, b = _pairs(score_a, label), _pairs(score_b, label)
    ones = np.ones(len(label))
    difference = _weighted_auc(a, ones) - _weighted_auc(b, ones)
    if math.isnan(difference):
        return math.nan, math.nan, math.nan
    member = None if group is None else np.unique(group, return_inverse=True)[1]
    count = len(label) if member is None else int(member.max()) + 1
    random = np.random.default_rng(seed)
    differences = np.empty(samples)
    for sample in range(samples):
        drawn = np.bincount(random.integers(0, count, count), minlength=count).astype(np.float64)
        weight = drawn if member is None else drawn[member]
        differences[sample] = _weighted_auc(a, weight) - _weighted_auc(b, weight)
    differences = differences[~np.isnan(differences)]
    if not len(differences):
        return difference, math.nan, math.nan
    low, high = np.quantile(differences, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0])
    return difference, float(low), float(high)


class _Pairs(NamedTuple):
    """What AUC needs of scores and labels, whatever the weights."""

    positive: np.ndarray  # indices of the positives, by score
    negative: np.ndarray  # indices of the negatives, by score
    below: np.ndarray  # per positive: how many negatives score less
    up_to: np.ndarray  # per positive: how many negatives score less or the same


def _pairs(score: np.ndarray, label: np.ndarray) -> _Pairs | None:
    score, positive = np.asarray(score, np.float64), _binary(label)
    if np.isnan(score).any():
        return None
    up, down = np.flatnonzero(positive), np.flatnonzero(~positive)
    up, down = up[np.argsort(score[up])], down[np.argsort(score[down])]
    below, up_to = (np.searchsorted(score[down], score[up], side) for side in ("left", "right"))
    return _Pairs(up, down, below, up_to)


def _weighted_auc(pairs: _Pairs | None, weight: np.ndarray) -> float:
    if pairs is None:
        return math.nan
    down = np.zeros(len(pairs.negative) + 1)
    np.cumsum(weight[pairs.negative], out=down[1:])
    up = weight[pairs.positive]
    won = np.sum(up * (down[pairs.below] + down[pairs.up_to])) / 2.0
    return _ratio(won, np.sum(up) * down[-1])


def _metrics(
    logit: np.ndarray,
    label: np.ndarray,
    mask: np.ndarray,
    weight: np.ndarray | None,
    user: np.ndarray | None,
    k: int,
) -> dict[str, Any]:
    rows = np.flatnonzero(mask.any(axis=1))
    logit, label, mask = logit[rows], label[rows], mask[rows]
    x, y = logit[mask].astype(np.float64), label[mask].astype(np.float64)
    w = None if weight is None else weight[rows][mask].astype(np.float64)
    p = sigmoid(x)
    metrics: dict[str, Any] = {
        "examples": int(x.size),
        "positives": int(np.sum(y)),
        "requests": int(rows.size),
        "auc": auc(x, y, w),
        "gauc": math.nan,
        "logloss": logloss_from_logit(x, y, w),
        "calibration": calibration(p, y, w),
        "calibration_error": calibration_error(p, y, w),
        f"ndcg@{k}": math.nan,
    }
    if user is not None:
        metrics["gauc"] = gauc(x, y, np.broadcast_to(user[rows][:, None], mask.shape)[mask], w)
    lists = mask.sum(axis=1) > 1
    if lists.any():
        metrics[f"ndcg@{k}"] = ndcg_at_k(logit[lists], label[lists], mask[lists], k=k)
    return {
        name: value if isinstance(value, int) or math.isfinite(value) else None
        for name, value in metrics.items()
    }


def _cross_entropy(yes: np.ndarray, no: np.ndarray, label: np.ndarray) -> np.ndarray:
    """What a label costs, given the costs of 1 and 0. An infinite cost times 0 is 0."""
    with np.errstate(invalid="ignore"):
        cost = np.where(label > 0.0, label * yes, 0.0)
        return cost + np.where(label < 1.0, (1.0 - label) * no, 0.0)


def _lists(
    score: np.ndarray, label: np.ndarray, mask: np.ndarray | None, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Float64 scores, float64 labels that are 0 where masked, and the mask."""
    if k < 1:
        raise ValueError(f"k must be >= 1, got {k}.")
    mask = np.ones(score.shape, bool) if mask is None else mask
    return score.astype(np.float64), np.where(mask, label, 0).astype(np.float64), mask


def _expected(score: np.ndarray, mask: np.ndarray, value: Any) -> np.ndarray:
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


def _mean_ratio(
    actual: np.ndarray, ideal: np.ndarray, score: np.ndarray, mask: np.ndarray
) -> float:
    """Mean of actual / ideal over the requests whose ideal is not 0."""
    if np.isnan(score[mask]).any():
        return math.nan
    some = ideal > 0
    return _ratio(np.sum(actual[some] / ideal[some]), np.sum(some))


def _binary(label: np.ndarray) -> np.ndarray:
    positive = label == 1
    wrong = ~(positive | (label == 0))
    if wrong.any():
        raise ValueError(f"label must be 0 or 1, got {label[wrong][0]}.")
    return positive


def _weights(weight: np.ndarray | None, like: np.ndarray) -> np.ndarray:
    if weight is None:
        return np.ones(len(like))
    weight = np.asarray(weight, np.float64)
    if not (weight >= 0.0).all():
        raise ValueError(f"weight must be >= 0, got {weight[~(weight >= 0.0)][0]}.")
    return weight


def _starts(changes: np.ndarray) -> np.ndarray:
    """Indices where runs begin, given where an element differs from the one before it."""
    return np.concatenate([[0], np.flatnonzero(changes) + 1])


def _ratio(part: Any, whole: Any) -> float:
    return float(part) / float(whole) if whole > 0 else math.nan
