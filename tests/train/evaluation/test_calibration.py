"""Calibration: the best of all slopes and intercepts, never another order, none that does harm."""

import numpy as np
import pytest

from recjax.train.evaluation import calibration
from recjax.train.evaluation.calibration import (
    FEWEST,
    Calibration,
    choose_calibration,
    fit_calibration,
    shift_of,
)


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


def bent_scores(low, high, *, knot=-1, size=6000, seed=0):
    """Scores, labels, and what drew them: odds that rise by `low` first, by `high` at the end."""
    random = np.random.default_rng(seed)
    logit = 3 * random.normal(size=size) - 1
    hinge = np.log1p(np.exp(logit - knot))
    probability = 1 / (1 + np.exp(-(low * (logit - knot - hinge) + high * hinge)))
    return logit, (random.random(size) < probability).astype(float), probability


@pytest.mark.parametrize("knot", [-1, -3, 1])
@pytest.mark.parametrize(("low", "high"), [(0.2, 1.2), (1.2, 0.2)])
def test_two_slopes_are_found(low, high, knot):
    logit, label, probability = bent_scores(low, high, knot=knot)
    fitted = fit_calibration(logit, label, bent=True)
    assert fitted.slope == pytest.approx(low, abs=0.4)
    assert fitted.slope + fitted.bend == pytest.approx(high, abs=0.4)
    assert fitted.knot == pytest.approx(knot, abs=1.2)
    straight = fit_calibration(logit, label)
    off = [np.abs(1 / (1 + np.exp(-one(logit))) - probability).mean() for one in (straight, fitted)]
    assert off[1] < 0.015 < 0.025 < off[0]
    assert log_loss(fitted(logit), label) < log_loss(straight(logit), label) - 0.005
    assert choose_calibration(logit, label) == fitted


def test_a_bend_does_not_depend_on_the_unit_of_scores_and_weights_count_repeats():
    logit, label, _ = bent_scores(0.2, 1.2, size=900)
    fitted = fit_calibration(logit, label, bent=True)
    for scale in (1e-6, 1e6):
        again = fit_calibration(scale * logit + scale, label, bent=True)
        np.testing.assert_allclose(again(scale * logit + scale), fitted(logit), rtol=1e-5)
    times = np.where(logit > 0, 5, 1)
    repeated = fit_calibration(np.repeat(logit, times), np.repeat(label, times), bent=True)
    weighed = fit_calibration(logit, label, times, bent=True)
    np.testing.assert_allclose(repeated, weighed, rtol=1e-6)


@pytest.mark.parametrize(("low", "high"), [(-0.5, 1.0), (1.0, -0.5), (-1.0, -1.0)])
def test_a_bend_keeps_the_order(low, high):
    logit, label, _ = bent_scores(low, high)
    fitted = fit_calibration(logit, label, bent=True)
    assert (np.diff(fitted(np.sort(logit))) > 0).all()
    # What is held at its bound does not spoil the rest.
    assert log_loss(fitted(logit), label) <= log_loss(fit_calibration(logit, label)(logit), label)


def test_scores_of_few_values_are_not_bent():
    logit, label = np.repeat([0.0, 0.0, 0.0, 1.0], 50), np.arange(200) % 3 == 0
    assert fit_calibration(logit, label, bent=True) == fit_calibration(logit, label)


def test_scores_that_are_right_are_left_as_they_are():
    kept = [choose_calibration(*scores(1, 0, size=400, seed=seed)) for seed in range(40)]
    assert sum(one == Calibration() for one in kept) > 20
    assert sum(one.bend != 0 for one in kept) < 10
    loud = choose_calibration(*scores(0.3, -1, size=400))
    assert loud == fit_calibration(*scores(0.3, -1, size=400))


def test_what_is_straight_is_seldom_bent():
    chosen = [choose_calibration(*scores(0.3, -1, size=400, seed=seed)) for seed in range(60)]
    assert sum(one.bend != 0 for one in chosen) <= 8


def test_a_bend_alone_may_help():
    logit, label, _ = bent_scores(0.5, 1.5)
    logit = fit_calibration(logit, label)(logit)  # No straight line does better.
    assert choose_calibration(logit, label) == fit_calibration(logit, label, bent=True)


def test_what_helps_only_the_users_it_was_fitted_on_is_not_kept():
    """Scores say who it is, and nothing of what others like."""
    kept = {"by user": 0, "by example": 0}
    user = np.repeat(np.arange(30), 100)
    for seed in range(20):
        random = np.random.default_rng(seed)
        logit = 0.05 * random.normal(size=30)[user]
        share = random.permutation(np.where(np.arange(30) % 2, 0.8, 0.2))
        label = (random.random(3000) < share[user]).astype(float)
        kept["by user"] += choose_calibration(logit, label, group=user) != Calibration()
        kept["by example"] += choose_calibration(logit, label) != Calibration()
    assert kept["by user"] <= 6 and kept["by example"] >= 14


def test_too_few_examples_say_nothing():
    logit, label = scores(0.1, -2, size=4000)
    order = np.concatenate([np.flatnonzero(label > 0)[:FEWEST], np.flatnonzero(label == 0)])
    assert choose_calibration(logit[order], label[order]) != Calibration()
    assert choose_calibration(logit[order[1:]], label[order[1:]]) == Calibration()
    assert choose_calibration(-logit[order[1:]], 1 - label[order[1:]]) == Calibration()
    # Weight 0 is absence.
    weight = np.ones(len(order))
    weight[0] = 0
    assert choose_calibration(logit[order], label[order], weight) == Calibration()
    assert choose_calibration(np.array([]), np.array([])) == Calibration()


def test_examples_of_one_user_alone_are_held_out_one_by_one():
    logit, label = scores(0.3, -1, size=500)
    assert choose_calibration(logit, label, group=np.zeros(500)) == fit_calibration(logit, label)


def test_a_prior_undoes_the_sampling_of_negatives():
    """Labels drawn with 1 % positives; of the negatives one in 20 is kept."""
    random = np.random.default_rng(0)
    logit = random.normal(size=1_000_000) - 5.0
    label = (random.random(len(logit)) < 1 / (1 + np.exp(-logit))).astype(float)
    kept = (label > 0) | (random.random(len(logit)) < 1 / 20)
    fitted = fit_calibration(logit[kept], label[kept])
    served = fitted._replace(shift=shift_of(label.mean(), label[kept]))
    assert served.intercept == pytest.approx(np.log(20), abs=0.12)
    np.testing.assert_array_equal(served(logit), fitted(logit))  # Metrics know no prior.
    predicted = 1 / (1 + np.exp(-served.served(logit)))
    assert predicted.mean() == pytest.approx(label.mean(), rel=0.03)
    assert log_loss(served.served(logit), label) < log_loss(fitted(logit), label) - 0.05


def test_a_shift_is_relative_to_the_weighted_share():
    label, weight = np.array([1.0, 0.0, 0.0]), np.array([3.0, 1.0, 4.0])
    assert shift_of(0.1, label, weight) == pytest.approx(np.log(0.1 / 0.9) - np.log(3 / 5))
    assert shift_of(1 / 3, label) == pytest.approx(0, abs=1e-12)
    assert shift_of(0.1, label[1:]) is None and shift_of(0.1, label[:1]) is None


@pytest.mark.parametrize("bent", [False, True])
def test_many_examples_are_merged_with_their_like(bent, monkeypatch):
    """Two thousand points say what forty thousand examples do."""
    logit, label, _ = bent_scores(0.2, 1.2 if bent else 0.2, size=40_000)
    weight = np.random.default_rng(0).integers(0, 3, len(logit)).astype(float)
    whole = fit_calibration(logit, label, weight, bent=bent)
    monkeypatch.setattr(calibration, "_POINTS", 2000)
    counted, genuine = [], calibration.fit_calibration

    def counting(points, *rest, **options):
        counted.append(len(points))
        return genuine(points, *rest, **options)

    monkeypatch.setattr(calibration, "fit_calibration", counting)
    merged = choose_calibration(logit, label, weight)
    assert max(counted) <= 2000
    assert bool(merged.bend) == bent
    np.testing.assert_allclose(merged(logit), whole(logit), atol=0.02)
