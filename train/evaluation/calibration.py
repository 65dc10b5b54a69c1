r"""Probabilities that can be trusted: Platt scaling, fitted on validation.

    p = sigmoid(slope * logit + intercept),        slope > 0

A model that is selected by its order (AUC) is usually too sure of itself: its log-loss can be worse
than a coin's. Two numbers mend that and leave the order as it is. Platt, "Probabilistic outputs for
support vector machines", 1999; without his smoothing of labels. Differs from it in that the slope
has a prior of a few examples at 0, so that a score that says nothing gets none, and is never
negative, so that the order stays.
"""

from typing import NamedTuple, TypeAlias

import numpy as np

_STEPS = 100
# A slope of 0 would make all candidates tie.
_FLATTEST = 1e-4


class Calibration(NamedTuple):
    """`slope` > 0 and `intercept` of calibrated log-odds."""

    slope: float = 1.0
    intercept: float = 0.0

    def __call__(self, logit: np.ndarray) -> np.ndarray:
        """Calibrated log-odds, of the logits' shape."""
        return np.asarray(logit, np.float64) * self.slope + self.intercept


Calibrations: TypeAlias = dict[str, Calibration]  # By the name of the logit.


def fit_calibration(
    logit: np.ndarray,
    label: np.ndarray,
    weight: np.ndarray | None = None,
    *,
    prior: float = 1.0,
) -> Calibration:
    """Fits slope and intercept by Newton's method.

    Args:
      logit: (N,) scores.
      label: (N,) in [0, 1].
      weight: (N,) >= 0; 1 by default.
      prior: how many examples of standardised logits the prior of slope 0 is worth, > 0.

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
    a, b = 0.0, float(np.log(positive) - np.log(total - positive))
    previous = np.inf
    for _ in range(_STEPS):
        score = a * z + b
        small = np.exp(-np.abs(score))
        loss = np.sum(w * (np.maximum(score, 0) - y * score + np.log1p(small))) + prior * a * a / 2
        if previous - loss < 1e-10 * total:
            break
        previous = loss
        p = np.where(score >= 0, 1.0, small) / (1.0 + small)
        g, h = w * (p - y), np.maximum(w * p * (1 - p), 1e-12)
        gradient = np.array([np.sum(g * z) + prior * a, np.sum(g)])
        hessian = np.array([[np.sum(h * z * z) + prior, np.sum(h * z)], [np.sum(h * z), np.sum(h)]])
        step = np.linalg.solve(hessian, gradient)
        # Far from the optimum a whole step may go too far.
        step *= min(1.0, 5.0 / max(float(np.abs(step).max()), 1e-12))
        a, b = a - float(step[0]), b - float(step[1])
    slope = max(a / scale, _FLATTEST / scale)
    intercept = b - slope * mean
    return Calibration(float(slope), float(intercept))
