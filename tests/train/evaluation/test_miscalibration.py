"""Warnings: of what is off by more than chance, and of nothing else."""

import numpy as np
import pytest

from recjax.train.evaluation import metrics
from recjax.train.evaluation.miscalibration import (
    miscalibrated,
    no_better_than_chance,
    warning_of,
)


def block(odds, probability, *, seed=0, segment=None):
    random = np.random.default_rng(seed)
    label = (random.random(len(odds)) < probability).astype(float)
    segments = None if segment is None else {"scene": segment}
    return metrics.evaluate(odds[:, None], label[:, None], segments=segments)


def odds_of(share, size):
    return np.full(size, np.log(share) - np.log1p(-share))


@pytest.mark.parametrize("size", [60, 600, 6000])
def test_true_predictions_are_not_warned_of(size):
    for seed in range(30):
        odds = np.random.default_rng(seed).normal(size=size) - 1
        segment = np.arange(size) % 5
        true = 1 / (1 + np.exp(-odds))
        assert miscalibrated(block(odds, true, seed=seed, segment=segment)) == []


def test_a_large_error_is_said_where_chance_cannot_explain_it():
    odds = np.random.default_rng(0).normal(size=20_000) * 2
    loud = block(odds, 1 / (1 + np.exp(-odds / 2)))
    (line,) = miscalibrated(loud)
    error, noise = loud["calibration_error"], loud["calibration_noise"]
    assert line == f"calibration_error is {error:.3f}, where chance makes {noise:.3f}"
    few = block(odds[:60], 1 / (1 + np.exp(-odds[:60] / 1.2)))
    assert few["calibration_error"] > 0.03 and miscalibrated(few) == []
    for beyond in (False, True):
        just = {**loud, "calibration_error": 0.029 + 0.002 * beyond + 1.5 * noise}
        assert bool(miscalibrated(just)) == beyond


@pytest.mark.parametrize("ratio", [0.5, 2.0])
def test_a_segment_that_is_off_is_said_with_its_task(ratio):
    size = 20_000
    segment = np.where(np.arange(size) < size // 2, "home", "search")
    share = np.where(segment == "home", 0.02 / ratio, 0.02)
    found = block(odds_of(0.02, size), share, segment=segment)
    (line,) = miscalibrated({"click": found, "buy": {**found, "by": {}}})
    measured = found["by"]["scene"]["home"]["calibration"]
    assert line == f"click: scene = home predicts {measured:.2f} times its positives"


@pytest.mark.parametrize(
    ("calibration", "positives", "said"),
    [
        # log 1.2 = .182, and 3 / sqrt(400) = .15.
        (1.38, 400, False),
        (1.41, 400, True),
        (1 / 1.38, 400, False),
        (1 / 1.41, 400, True),
        (1.19, 10**8, False),
        (9.0, 19, False),
        (9.0, 20, True),
        (None, 20, False),
        (0.0, 20, True),
    ],
)
def test_how_far_a_segment_may_be_off(calibration, positives, said):
    part = {"calibration": calibration, "positives": positives}
    whole = {"requests": 5, "calibration_error": None, "by": {"scene": {"home": part}}}
    assert bool(miscalibrated(whole)) == said


def test_a_warning_is_one_line():
    assert warning_of(["a"]) == "warning: probabilities are off: a"
    assert warning_of(["a", "b", "c"]).endswith("off: a, and 2 more, see metrics.json")


@pytest.mark.parametrize(
    ("auc", "said"), [(0.40, True), (0.5, True), (0.517, True), (0.525, False), (None, False)]
)
def test_an_auc_of_noise_is_no_better_than_chance(auc, said):
    # Of 2,000 positives and as many negatives the standard error is .0091.
    one = {"auc": auc, "examples": 4000, "positives": 2000, "requests": 10}
    assert len(no_better_than_chance(one)) == said
    several = {"click": one, "buy": {**one, "auc": 0.9}}
    assert [line[:12] for line in no_better_than_chance(several)] == ["AUC of click"] * said
    assert no_better_than_chance({"recall@50": 0.1, "requests": 5}) == []
    assert no_better_than_chance({**one, "positives": 0}) == []
