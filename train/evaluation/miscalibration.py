"""What is wrong with probabilities, in words; nothing where chance could explain it."""

from collections.abc import Iterator
import math
from typing import Any

_ERROR = 0.03  # Of `calibration_error`.
_RATIO = 1.2  # Of predicted to observed positives, in a segment.
_DEVIATIONS = 3.0
_FEWEST = 20  # Positives.


def miscalibrated(block: dict[str, Any]) -> list[str]:
    """A line per fault of calibrated probabilities, given what `scoring.evaluate` says of them.

    A `calibration_error` above .03 and what chance makes of true predictions, or a segment that
    predicts 20 % too much or too little, and three standard errors more.
    """
    if "requests" in block:
        return list(_faults(block, ""))
    return [line for task, one in block.items() for line in _faults(one, f"{task}: ")]


def _faults(block: dict[str, Any], whose: str) -> Iterator[str]:
    error, noise = block.get("calibration_error"), block.get("calibration_noise")
    if error is not None and noise is not None and error > _ERROR + noise:
        yield f"{whose}calibration_error is {error:.3f}, by chance it were {noise:.3f}"
    for name, parts in block.get("by", {}).items():
        for label, one in parts.items():
            ratio, positives = one["calibration"], one["positives"]
            if not ratio or positives < _FEWEST:
                continue
            if abs(math.log(ratio)) > math.log(_RATIO) + _DEVIATIONS / math.sqrt(positives):
                yield f"{whose}{name} = {label} predicts {ratio:.2f} times its positives"
