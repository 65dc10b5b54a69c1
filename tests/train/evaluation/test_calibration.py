"""Platt scaling: the best of all slopes and intercepts, and never another order."""

import numpy as np
import pytest

from recjax.train.evaluation.calibration import Calibration, fit_calibration


def log_loss(logit, label, weight=None):
    weight = np.ones(len(logit)) if weight is None else weight
    each = np.logaddexp(0, logit) - label * logit
    return float(np.sum(weight * each) / np.sum(weight))


def scores(slope, intercept, *, size=4000, seed=0, scale=1.0, shift=0.0):
    """Scores, and labels of probability sigmoid(slope * score + intercept)."""
    random = np.random.default_rng(seed)
    logit = scale * random.normal(size=size) + shift
    probability = 1 / (1 + np.exp(-(slope * logit + intercept)))
    return logit, (random.random(size) < probability).astype(float)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("slope", "intercept", "scale", "shift"),
    [(1, 0, 1, 0), (0.2, -1, 5, 0), (3, 2, 0.3, -1), (0.01, -7, 100, 700), (1, -4, 1, 0)],
)
def test_it_equals_a_grid_search(slope, intercept, scale, shift, seed):
    logit, label = scores(slope, intercept, scale=scale, shift=shift, seed=seed)
    weight = np.random.default_rng(seed).uniform(0.5, 2, len(logit))
    fitted = fit_calibration(logit, label, weight)
    found = log_loss(fitted(logit), label, weight)
    # A grid over the standardised score, fine around what the labels were drawn with.
    mean, deviation = logit.mean(), logit.std()
    z = (logit - mean) / deviation
    a, b = slope * deviation, intercept + slope * mean
    best = min(
        log_loss(x * z + y, label, weight)
        for x in a + np.linspace(-0.3, 0.3, 25)
        for y in b + np.linspace(-0.3, 0.3, 25)
    )
    # The prior of one example costs less than 1e-4 of so many.
    assert found <= best + 1e-4
    assert found <= log_loss(logit, label, weight) + 1e-4
    assert fitted.slope == pytest.approx(slope, abs=6 / np.sqrt(len(logit)) / deviation)


def test_a_score_that_says_nothing_gets_almost_no_slope():
    """The truth of noise: log-loss log 2, whatever the model believed."""
    random = np.random.default_rng(0)
    logit, label = 8 * random.normal(size=2000), np.arange(2000) % 2
    assert log_loss(logit, label) > 2
    fitted = fit_calibration(logit, label)
    assert abs(log_loss(fitted(logit), label) - np.log(2)) < 0.002
    few = fit_calibration(logit[:6], label[:6])
    assert 0 < few.slope < fit_calibration(logit[:6] * 0.1, label[:6]).slope


@pytest.mark.parametrize("slope", [-2.0, 0.0, 1e-9, 1.0, 50.0])
def test_the_order_stays(slope):
    logit, label = scores(slope, 0.3, size=500)
    fitted = fit_calibration(logit, label)
    assert fitted.slope > 0
    assert (np.diff(fitted(np.sort(logit))) > 0).all()


def test_scores_that_separate_the_classes_stay_finite():
    logit = np.concatenate([np.linspace(-2, -1, 50), np.linspace(1, 2, 50)])
    fitted = fit_calibration(logit, (logit > 0).astype(float))
    assert np.isfinite(fitted).all() and fitted.slope > 1
    assert log_loss(fitted(logit), (logit > 0).astype(float)) < 0.05
    for scale in (1e-6, 1e6):
        again = fit_calibration(scale * logit, (logit > 0).astype(float))
        np.testing.assert_allclose(again(scale * logit), fitted(logit), rtol=1e-6)


def test_labels_may_be_shares_and_weights_count_repeats():
    logit, label = scores(1, 0, size=300)
    doubled = fit_calibration(np.tile(logit, 2), np.tile(label, 2))
    weighed = fit_calibration(logit, label, np.full(300, 2.0))
    np.testing.assert_allclose(doubled, weighed, rtol=1e-6)
    both = fit_calibration(np.tile(logit, 2), np.concatenate([label, 1 - label]))
    halves = fit_calibration(logit, np.full(300, 0.5), np.full(300, 2.0))
    np.testing.assert_allclose(both, halves, atol=1e-6)


def test_where_there_is_nothing_to_learn_from_it_is_the_identity():
    for logit, label in ([], []), ([1.0, 2.0], [1, 1]), ([1.0, 2.0], [0, 0]):
        assert fit_calibration(np.array(logit), np.array(label)) == Calibration(1.0, 0.0)
    assert fit_calibration(np.ones(4), np.array([0, 1, 0, 1]), np.zeros(4)) == Calibration()
    np.testing.assert_array_equal(Calibration()(np.arange(3.0)), np.arange(3.0))


def test_scores_that_are_all_alike_give_the_share_of_positives():
    fitted = fit_calibration(np.full(100, 3.0), np.arange(100) < 20)
    np.testing.assert_allclose(fitted(np.array([3.0])), np.log(20 / 80), rtol=1e-6)
