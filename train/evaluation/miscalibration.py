"""What is wrong with probabilities, in words; nothing where chance could explain it."""

from collections.abc import Iterator
import math
from typing import Any

_ERROR = 0.03  # Of `calibration_error`.
# What chance makes varies by a sixth of itself, as there are 20 bins: three deviations more.
_NOISES = 1.5
_RATIO = 1.2  # Of predicted to observed positives, in a segment.
_DEVIATIONS = 3.0
_FEWEST = 20  # Positives.


def miscalibrated(block: dict[str, Any]) -> list[str]:
    """A line per fault of calibrated probabilities, given what `scoring.evaluate` says of them.

    A `calibration_error` above .03, or a segment that predicts 20 % too much or too little; both
    beyond what chance makes of true predictions, and three standard deviations more.
    """
    if "requests" in block:
        return list(_faults(block, ""))
    return [line for task, one in block.items() for line in _faults(one, f"{task}: ")]


def no_better_than_chance(block: dict[str, Any]) -> list[str]:
    """A line per task whose AUC is within two standard errors of what noise would have."""
    if "requests" not in block:
        named = [(f"of {task} ", one) for task, one in block.items() if isinstance(one, dict)]
    else:
        named = [("", block)]
    found = []
    for whose, one in named:
        auc, positive = one.get("auc"), one.get("positives", 0)
        negative = one.get("examples", 0) - positive
        if auc is None or min(positive, negative) < 1:
            continue
        error = math.sqrt((positive + negative + 1) / (12 * positive * negative))
        if auc < 0.5 + 2 * error:
            found.append(
                f"AUC {whose}on validation is {auc:.3f}, no better than chance: train longer "
                "(epochs, patience, learning_rate), or see what the data hold (recjax inspect)"
            )
    return found


def warning_of(faults: list[str]) -> str:
    """One line, given at least one."""
    more = f", and {len(faults) - 1} more, see metrics.json" if len(faults) > 1 else ""
    return f"warning: probabilities are off: {faults[0]}{more}"


def _faults(block: dict[str, Any], whose: str) -> Iterator[str]:
    error, noise = block.get("calibration_error"), block.get("calibration_noise")
    if error is not None and noise is not None and error > _ERROR + _NOISES * noise:
        yield f"{whose}calibration_error is {error:.3f}, where chance makes {noise:.3f}"
    for name, parts in block.get("by", {}).items():
        for label, one in parts.items():
            ratio, positives = one["calibration"], one["positives"]
            if ratio is None or positives < _FEWEST:
                continue
            limit = math.log(_RATIO) + _DEVIATIONS / math.sqrt(positives)
            if ratio == 0 or abs(math.log(ratio)) > limit:
                yield f"{whose}{name} = {label} predicts {ratio:.2f} times its positives"
