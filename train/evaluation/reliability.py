r"""Predicted beside observed shares of positives: calibration errors and reliability diagrams.

Shapes: `N` examples, `B` bins of equal weight that hold any.
"""

import math
from typing import NamedTuple

import numpy as np

from .checked import Label, Score, starts_of, weights_of

_SHARES = 50


class Reliability(NamedTuple):
    """Bins in order of the predicted probability.

    Attributes:
      predicted, observed: (B,) weighted means of predictions and labels.
      mass: (B,) share of the weight.
      deviation: (B,) standard deviation of `observed`, were every prediction true and the examples
        independent of each other.
      spread: (50,) share of the weight by prediction, in steps of 1/50.
    """

    predicted: np.ndarray
    observed: np.ndarray
    mass: np.ndarray
    deviation: np.ndarray
    spread: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error: sum_b mass_b |predicted_b - observed_b|."""
        if not len(self.mass):
            return math.nan
        return float(np.sum(self.mass * np.abs(self.predicted - self.observed)))

    @property
    def noise(self) -> float:
        """`error` of true predictions on average: sum_b mass_b deviation_b sqrt(2 / pi)."""
        if not len(self.mass):
            return math.nan
        return float(np.sum(self.mass * self.deviation) * math.sqrt(2.0 / math.pi))


def reliability(
    probability: Score, label: Label, weight: Score | None = None, *, bins: int = 20
) -> Reliability:
    r"""Predictions in `bins` of equal weight.

    Bin b holds the predictions whose mid-rank lies in [b, b + 1) / `bins` of the total weight;
    equal predictions share their mid-rank, hence their bin. No bins if empty or if a p is NaN.
    """
    if bins < 1:
        raise ValueError(f"calibration_error: bins must be >= 1, got {bins}.")
    p, y = np.asarray(probability, np.float64), np.asarray(label, np.float64)
    weight = weights_of(weight, p)
    total = np.sum(weight)
    if not total > 0.0 or np.isnan(p).any():
        nothing = np.zeros(0)
        return Reliability(nothing, nothing, nothing, nothing, np.zeros(_SHARES))
    order = np.argsort(p)
    run = starts_of(np.diff(p[order]) != 0.0)
    mass = np.add.reduceat(weight[order], run)
    middle = np.cumsum(mass) - 0.5 * mass
    bin_of = np.minimum((middle / total * bins).astype(np.int64), bins - 1)

    def summed(each: np.ndarray) -> np.ndarray:
        return np.bincount(bin_of, np.add.reduceat(each[order], run), minlength=bins)

    held = summed(weight)
    some = held > 0
    held = held[some]
    return Reliability(
        predicted=summed(weight * p)[some] / held,
        observed=summed(weight * y)[some] / held,
        mass=held / total,
        deviation=np.sqrt(summed(weight**2 * p * (1.0 - p))[some]) / held,
        spread=np.histogram(p, _SHARES, (0.0, 1.0), weights=weight)[0] / total,
    )
