r"""Metrics of ranking and calibration, in NumPy and float64.

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
from typing import Any

from jaxtyping import Shaped
import numpy as np

from ...zoo.calibration import sigmoid as sigmoid
from .bootstrap import pairs_of, weighted_auc
from .calibration import fit_calibration
from .checked import Label, Labels, Mask, Score, Scores, binary, ratio, starts_of, weights_of
from .lists import ndcg_at_k
from .reliability import reliability
from .segments import Segments


def auc(score: Score, label: Label, weight: Score | None = None) -> float:
    r"""Area under the ROC curve: how often a positive outranks a negative, ties counting half.

        sum_{i in P, j in N} w_i w_j ([s_i > s_j] + [s_i = s_j] / 2) / (sum_P w_i * sum_N w_j)

    NaN if a class is absent (or has no weight), or if a score is NaN.

    Examples:
      >>> import numpy as np
      >>> from recjax.train.evaluation.metrics import auc
      >>> auc(np.array([0.9, 0.4, 0.4, 0.1]), np.array([1, 1, 0, 0]))
      0.875
    """
    return weighted_auc(pairs_of(score, label), weights_of(weight, score))


def gauc(score: Score, label: Label, group: Label, weight: Score | None = None) -> float:
    r"""Grouped AUC: the mean over groups (users), weighted by their examples.

        sum_u n_u AUC_u / sum_u n_u,        n_u = sum of u's weights

    over the groups that have both classes; NaN if there is none, or if a score is NaN.
    """
    score, positive = np.asarray(score, np.float64), binary(label)
    weight = weights_of(weight, score)
    if np.isnan(score).any() or not len(score):
        return math.nan
    _, group = np.unique(group, return_inverse=True)
    order = np.lexsort((score, group))
    score, group = score[order], group[order]
    up, down = (weight * positive)[order], (weight * ~positive)[order]
    # A run is the examples of one group with one score; a group is a row of runs.
    run = starts_of((group[1:] != group[:-1]) | (score[1:] != score[:-1]))
    up, down = np.add.reduceat(up, run), np.add.reduceat(down, run)
    user = starts_of(np.diff(group[run]) != 0)
    ups, downs = np.add.reduceat(up, user), np.add.reduceat(down, user)
    before = np.cumsum(down) - down
    below = before - np.repeat(before[user], np.diff(np.append(user, len(run))))
    won = np.add.reduceat(up * (below + 0.5 * down), user)
    both = (ups > 0.0) & (downs > 0.0)
    size, pairs = (ups + downs)[both], (ups * downs)[both]
    return ratio(np.sum(size * won[both] / pairs), np.sum(size))


def logloss(probability: Score, label: Label, weight: Score | None = None) -> float:
    r"""Cross-entropy in nats: -sum w (y log p + (1 - y) log(1 - p)) / sum w.

    Nothing is clipped: a certain and wrong prediction costs infinity. From logits, use
    `logloss_from_logit`, which saturates nowhere. Labels may lie between 0 and 1. NaN if empty.
    """
    p, y = np.asarray(probability, np.float64), np.asarray(label, np.float64)
    weight = weights_of(weight, p)
    with np.errstate(divide="ignore"):
        loss = _cross_entropy(-np.log(p), -np.log1p(-p), y)
    return ratio(np.sum(weight * loss), np.sum(weight))


def logloss_from_logit(logit: Score, label: Label, weight: Score | None = None) -> float:
    """`logloss` of `sigmoid(logit)`, exact where the sigmoid rounds to 0 or 1.

    With softplus(x) = log(1 + exp(x)): sum w (y softplus(-x) + (1 - y) softplus(x)) / sum w.
    """
    x, y = np.asarray(logit, np.float64), np.asarray(label, np.float64)
    weight = weights_of(weight, x)
    rest = np.log1p(np.exp(-np.abs(x)))
    loss = _cross_entropy(np.maximum(-x, 0.0) + rest, np.maximum(x, 0.0) + rest, y)
    return ratio(np.sum(weight * loss), np.sum(weight))


def calibration(probability: Score, label: Label, weight: Score | None = None) -> float:
    """Predicted over observed positives, sum w p / sum w y; 1 is right, NaN without positives."""
    p, y = np.asarray(probability, np.float64), np.asarray(label, np.float64)
    weight = weights_of(weight, p)
    return ratio(np.sum(weight * p), np.sum(weight * y))


def calibration_error(
    probability: Score, label: Label, weight: Score | None = None, *, bins: int = 20
) -> float:
    r"""Expected calibration error over bins of equal mass.

        sum_b (W_b / W) |mean_b(p) - mean_b(y)|

    Bin b holds the predictions whose mid-rank lies in [b, b + 1) / `bins` of the total weight;
    equal predictions share their mid-rank, hence their bin. NaN if empty or if a p is NaN.
    """
    return reliability(probability, label, weight, bins=bins).error


def calibration_noise(
    probability: Score, label: Label, weight: Score | None = None, *, bins: int = 20
) -> float:
    """The `calibration_error` that true predictions of so many examples have on average.

    A bin's share of positives is off by chance, by 0.8 sqrt(p (1 - p) / n) of n examples. An error
    of this size says nothing against the predictions. NaN if empty or if a p is NaN.
    """
    return reliability(probability, label, weight, bins=bins).noise


def calibration_loss(logit: Score, label: Label, weight: Score | None = None) -> float:
    """Log-loss that the Platt scaling fitted on these very labels would save, in nats; >= 0.

    What a calibration fitted elsewhere leaves on the table. NaN if empty.
    """
    x = np.asarray(logit, np.float64)
    weight = weights_of(weight, x)
    if not np.isfinite(x).all() or not weight.sum() > 0.0:
        return math.nan
    weight = weight / weight.mean()  # The prior is to be worth nothing, whatever their scale.
    best = fit_calibration(x, label, weight, prior=1e-6)(x)
    saved = logloss_from_logit(x, label, weight) - logloss_from_logit(best, label, weight)
    return max(0.0, saved)


def evaluate(
    logit: Scores,
    label: Labels,
    mask: Mask | None = None,
    weight: Scores | None = None,
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
      "calibration", "calibration_error", "calibration_noise" (the error that true predictions
      have by chance), "calibration_loss" (the log-loss that the Platt scaling fitted on these very
      labels would save), "ndcg@k", and, with segments,
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
    bins = reliability(p, y, w)
    metrics: dict[str, Any] = {
        "examples": int(x.size),
        "positives": int(np.sum(y)),
        "requests": int(rows.size),
        "auc": auc(x, y, w),
        "gauc": math.nan,
        "logloss": logloss_from_logit(x, y, w),
        "calibration": calibration(p, y, w),
        "calibration_error": bins.error,
        "calibration_noise": bins.noise,
        "calibration_loss": calibration_loss(x, y, w),
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
    """Cost of a label, given the costs of 1 and 0. An infinite cost times 0 is 0."""
    with np.errstate(invalid="ignore"):
        cost = np.where(label > 0.0, label * yes, 0.0)
        return cost + np.where(label < 1.0, (1.0 - label) * no, 0.0)
