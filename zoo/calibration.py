"""Calibrated probabilities of a task, from the logits that a model gives."""

from typing import NamedTuple, TypeAlias

import numpy as np


class Calibration(NamedTuple):
    """`slope` > 0 and `intercept` of calibrated log-odds."""

    slope: float = 1.0
    intercept: float = 0.0

    def __call__(self, logit: np.ndarray) -> np.ndarray:
        """Calibrated log-odds, of the logits' shape."""
        return np.asarray(logit, np.float64) * self.slope + self.intercept

    def probability(self, logit: np.ndarray) -> np.ndarray:
        """Calibrated probabilities, of the logits' shape."""
        x = self(logit)
        small = np.exp(-np.abs(x))
        return np.where(x >= 0.0, 1.0, small) / (1.0 + small)


Calibrations: TypeAlias = dict[str, Calibration]  # By the name of the logit.
