r"""Probabilities that can be trusted: scores are scaled by what validation shows of them.

    log-odds = slope * x + intercept + bend * s((x - knot) / width) * width,    s(z) = log(1 + e^z)

A model that is selected by its order (AUC) is usually too sure of itself: its log-loss can be worse
than a coin's. With `bend` 0 this is Platt, "Probabilistic outputs for support vector machines",
1999; without his smoothing of labels. Differs from it in that the slope has a prior of a few
examples at 0, so that a score that says nothing gets none. The bend is for scores that say more on
one side than on the other, as where many positives have no match in the history: one slope for low
scores, another for high ones, as in Kull et al., "Beta calibration", 2017. Their knot is where the
model says 1/2, which few models' scores reach; ours is the quantile of scores that fits best. Both
slopes are > 0: the order stays. Whether to bend, or to leave scores as they are, is what held-out
users say.

What serves with them is in `zoo.calibration`.
"""

from collections.abc import Iterable

import numpy as np

from ...zoo.calibration import Calibration as Calibration
from ...zoo.calibration import Calibrations as Calibrations
from ...zoo.calibration import hinge, sigmoid

_STEPS = 100
# Of standardised scores. A slope of 0 would make all candidates tie.
_FLATTEST = 1e-4
_KNOTS = (0.2, 0.35, 0.5, 0.65, 0.8)  # Quantiles of scores.
# Of the distance of the quartiles: how far from the knot one slope has given way to the other.
_WIDTH = 0.25
_FOLDS = 5
# More examples than this are merged with those of like scores.
_POINTS = 20_000
# With less of either class, what is fitted is noise.
FEWEST = 20


def choose_calibration(
    logit: np.ndarray,
    label: np.ndarray,
    weight: np.ndarray | None = None,
    group: np.ndarray | None = None,
) -> Calibration:
    """The calibration of the least log-loss on held-out examples: none, a straight or a bent one.

    Args:
      logit: (N,) scores.
      label: (N,) in [0, 1].
      weight: (N,) >= 0; 1 by default.
      group: (N,) whose example it is: one's examples are held out together, unless they are all
        of a few; each its own by default.

    Returns:
      The identity where that is as good, and where there are fewer than `FEWEST` positives or
      negatives. A bent one only where it is better than a straight one by more than the standard
      error of what groups gain.
    """
    x, y = np.asarray(logit, np.float64), np.asarray(label, np.float64)
    w = np.ones(len(x)) if weight is None else np.asarray(weight, np.float64)
    real = w > 0
    if min(float(y[real].sum()), float((1 - y[real]).sum())) < FEWEST:
        return Calibration()
    _, code = np.unique(np.arange(len(x)) if group is None else group, return_inverse=True)
    if code.max() + 1 < _FOLDS:
        code = np.arange(len(x))
    fold = np.random.default_rng(0).permutation(code.max() + 1)[code] % _FOLDS
    scored = {False: np.empty(len(x)), True: np.empty(len(x))}
    for one in range(_FOLDS):
        out = fold == one
        points = _merged(x[~out], y[~out], w[~out])
        for bent, held_out in scored.items():
            held_out[out] = fit_calibration(*points, bent=bent)(x[out])
    lost = {bent: w * _losses(held_out, y) for bent, held_out in scored.items()}
    gain = np.bincount(code, lost[False] - lost[True])
    bent = bool(gain.sum() > np.sqrt(np.sum((gain - gain.mean()) ** 2)))
    if not lost[bent].sum() < np.sum(w * _losses(x, y)):
        return Calibration()
    return fit_calibration(*_merged(x, y, w), bent=bent)


def fit_calibration(
    logit: np.ndarray,
    label: np.ndarray,
    weight: np.ndarray | None = None,
    *,
    prior: float = 1.0,
    bent: bool = False,
) -> Calibration:
    """Fits slope and intercept, and the bend, by Newton's method.

    Args:
      logit: (N,) scores.
      label: (N,) in [0, 1].
      weight: (N,) >= 0; 1 by default.
      prior: how many examples of standardised logits the prior of slope 0 is worth, > 0.
      bent: fit a slope of low scores and one of high scores.

    Returns:
      The identity where there is nothing to learn from: no examples, or one class only.
    """
    x, y = np.asarray(logit, np.float64), np.asarray(label, np.float64)
    w = np.ones(len(x)) if weight is None else np.asarray(weight, np.float64)
    total, positive = float(w.sum()), float((w * y).sum())
    if not 0 < positive < total:
        return Calibration()
    mean = float((w * x).sum() / total)
    scale = float(np.sqrt((w * (x - mean) ** 2).sum() / total)) or 1.0
    z = (x - mean) / scale
    if not bent:
        slopes, intercept = _slopes([z], y, w, prior)
        return Calibration(slopes[0] / scale, intercept - slopes[0] / scale * mean)
    lower, upper = _quantiles(z, w, (0.25, 0.75))
    width = _WIDTH * (upper - lower)
    if not width > 0:
        return fit_calibration(x, y, w, prior=prior)
    best, least = Calibration(), np.inf
    for knot in _quantiles(z, w, _KNOTS):
        high = hinge(z, knot, width)
        (low_slope, high_slope), intercept = _slopes([z - high, high], y, w, prior)
        found = Calibration(
            slope=low_slope / scale,
            intercept=intercept - low_slope / scale * mean,
            bend=(high_slope - low_slope) / scale,
            knot=mean + scale * knot,
            width=width * scale,
        )
        loss = float(np.sum(w * _losses(found(x), y)))
        if loss < least:
            best, least = found, loss
    return best


def shift_of(
    positive_rate: float, label: np.ndarray, weight: np.ndarray | None = None
) -> float | None:
    r"""What log-odds gain where `positive_rate` of the examples are positive, not those labels.

        logit(positive_rate) - logit(sum w y / sum w)

    Right where negatives were sampled uniformly at random: then positives and negatives each look
    as they do where the model serves, and only their numbers differ. King and Zeng, "Logistic
    regression in rare events data", 2001, section 4.1, "prior correction". None where a class is
    absent.
    """
    y = np.asarray(label, np.float64)
    w = np.ones(len(y)) if weight is None else np.asarray(weight, np.float64)
    total, positive = float(w.sum()), float((w * y).sum())
    if not 0 < positive < total:
        return None
    here = np.log(positive) - np.log(total - positive)
    return float(np.log(positive_rate) - np.log1p(-positive_rate) - here)


def _quantiles(x: np.ndarray, weight: np.ndarray, shares: tuple[float, ...]) -> list[float]:
    """The least x that at least such a share of the weight does not exceed."""
    order = np.argsort(x)
    passed = np.cumsum(weight[order])
    at = np.searchsorted(passed, np.array(shares) * passed[-1])
    return [float(one) for one in x[order][at]]


def _merged(
    x: np.ndarray, label: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, labels and weights of at most `_POINTS` examples that stand for all."""
    if len(x) <= _POINTS:
        return x, label, weight
    order = np.argsort(x)
    start = np.arange(_POINTS) * len(x) // _POINTS
    total, score, positive = (
        np.add.reduceat(each[order], start) for each in (weight, weight * x, weight * label)
    )
    some = total > 0
    return score[some] / total[some], positive[some] / total[some], total[some]


def _losses(score: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Cross-entropies of log-odds."""
    return np.maximum(score, 0) - label * score + np.log1p(np.exp(-np.abs(score)))


def _slopes(
    columns: Iterable[np.ndarray], label: np.ndarray, weight: np.ndarray, prior: float
) -> tuple[list[float], float]:
    """Slopes of the columns, each at least `_FLATTEST`, and the intercept, of the least loss."""
    columns = list(columns)
    free, slopes = list(range(len(columns))), [_FLATTEST] * len(columns)
    while True:
        found, intercept = _newton([columns[k] for k in free], label, weight, prior)
        flat = [k for k, slope in zip(free, found, strict=True) if slope < _FLATTEST]
        if not flat:
            for k, slope in zip(free, found, strict=True):
                slopes[k] = float(slope)
            return slopes, intercept
        # The loss is convex: what wants to fall is held at its bound.
        free = [k for k in free if k not in flat]


def _newton(
    columns: list[np.ndarray], label: np.ndarray, weight: np.ndarray, prior: float
) -> tuple[np.ndarray, float]:
    """Coefficients of a logistic regression, and its intercept."""
    table = np.stack([*columns, np.ones(len(label))], axis=1)
    total, positive = float(weight.sum()), float((weight * label).sum())
    at = np.zeros(len(columns) + 1)
    at[-1] = np.log(positive) - np.log(total - positive)
    pull = np.diag([prior] * len(columns) + [0.0])
    previous = np.inf
    for _ in range(_STEPS):
        score = table @ at
        loss = float(np.sum(weight * _losses(score, label)) + at @ pull @ at / 2)
        if previous - loss < 1e-10 * total:
            break
        previous = loss
        p = sigmoid(score)
        h = np.maximum(weight * p * (1 - p), 1e-12)
        gradient = table.T @ (weight * (p - label)) + pull @ at
        step = np.linalg.solve((table * h[:, None]).T @ table + pull, gradient)
        # Far from the optimum a whole step may go too far.
        at = at - step * min(1.0, 5.0 / max(float(np.abs(step).max()), 1e-12))
    return at[:-1], float(at[-1])
