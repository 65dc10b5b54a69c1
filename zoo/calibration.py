r"""Calibrated probabilities of a task, from the logits that a model gives.

    log-odds = slope * x + intercept + bend * s((x - knot) / width) * width,    s(z) = log(1 + e^z)

Nothing but NumPy: what serves needs no more. How they are fitted: `train.evaluation.calibration`.
"""

from typing import NamedTuple, TypeAlias

import numpy as np


class Calibration(NamedTuple):
    """The numbers of the formula; `shift` is what `Settings.positive_rate` adds when serving."""

    slope: float = 1.0
    intercept: float = 0.0
    bend: float = 0.0
    knot: float = 0.0
    width: float = 1.0
    shift: float = 0.0

    def __call__(self, logit: np.ndarray) -> np.ndarray:
        """Calibrated log-odds among examples like those of validation, of the logits' shape."""
        x = np.asarray(logit, np.float64)
        bent = self.bend * hinge(x, self.knot, self.width) if self.bend else 0.0
        return x * self.slope + self.intercept + bent

    def served(self, logit: np.ndarray) -> np.ndarray:
        """Calibrated log-odds where the model serves: those above, and the shift."""
        return self(logit) + self.shift

    def probability(self, logit: np.ndarray) -> np.ndarray:
        """Probabilities where the model serves, of the logits' shape."""
        return sigmoid(self.served(logit))


Calibrations: TypeAlias = dict[str, Calibration]  # By the name of the logit.


def sigmoid(logit: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-logit)) without overflow."""
    x = np.asarray(logit, np.float64)
    small = np.exp(-np.abs(x))
    return np.where(x >= 0.0, 1.0, small) / (1.0 + small)


def hinge(x: np.ndarray, knot: float, width: float) -> np.ndarray:
    """max(x - knot, 0) with its corner rounded."""
    return np.logaddexp(0.0, (x - knot) / width) * width
