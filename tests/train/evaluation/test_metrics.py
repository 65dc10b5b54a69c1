import json
import math
import time

import numpy as np
import pytest

from recjax.train.evaluation.bootstrap import paired_bootstrap
from recjax.train.evaluation.lists import cr_hit, ndcg_at_k, recall_at_k, top_click_hit
from recjax.train.evaluation.metrics import (
    auc,
    calibration,
    calibration_error,
    calibration_loss,
    calibration_noise,
    evaluate,
    gauc,
    logloss,
    logloss_from_logit,
    sigmoid,
)

EMPTY = np.zeros(0)


def pairs_auc(score, label, weight):
    """The definition, pair by pair."""
    won = whole = 0.0
    for i in np.flatnonzero(label):
        for j in np.flatnonzero(label == 0):
            pair = weight[i] * weight[j]
            whole += pair
            won += pair * ((score[i] > score[j]) + 0.5 * (score[i] == score[j]))
    return won / whole if whole else math.nan


def sample(seed, size=60, values=12):
    """Scores with ties, labels, weights (some 0), groups of uneven size."""
    random = np.random.default_rng(seed)
    score = random.integers(0, values, size) / 4.0
    label = (random.random(size) < 0.4).astype(np.float32)
    weight = random.integers(0, 4, size).astype(np.float64)
    group = random.integers(0, 9, size) ** 2
    return score, label, weight, group


# auc


def test_auc_by_hand():
    score, label = np.array([0.1, 0.4, 0.4, 0.8]), np.array([0, 1, 0, 1])
    # Pairs (0.4, 0.1), (0.4, 0.4), (0.8, 0.1), (0.8, 0.4): won, tied, won, won.
    assert auc(score, label) == (1 + 0.5 + 1 + 1) / 4
    weight = np.array([1.0, 2.0, 3.0, 5.0])
    assert auc(score, label, weight) == (2 * 1 + 0.5 * 2 * 3 + 5 * 1 + 5 * 3) / ((2 + 5) * (1 + 3))


@pytest.mark.parametrize("seed", range(10))
def test_auc_is_the_share_of_pairs_won(seed):
    score, label, weight, _ = sample(seed)
    assert auc(score, label) == pytest.approx(pairs_auc(score, label, np.ones(60)), abs=1e-14)
    assert auc(score, label, weight) == pytest.approx(pairs_auc(score, label, weight), abs=1e-14)


def test_auc_invariances():
    score, label, weight, _ = sample(3)
    value, order = auc(score, label, weight), np.random.default_rng(0).permutation(60)
    assert auc(np.exp(score), label, weight) == value
    assert auc(score.astype(np.float32), label.astype(bool), weight) == value
    assert auc(score[order], label[order], weight[order]) == pytest.approx(value, abs=1e-14)
    assert auc(-score, label, weight) == pytest.approx(1 - value, abs=1e-14)
    assert auc(score, 1 - label, weight) == pytest.approx(1 - value, abs=1e-14)
    twice = np.repeat(np.arange(60), weight.astype(int))
    assert auc(score[twice], label[twice]) == pytest.approx(value, abs=1e-14)
    assert auc(np.zeros(60), label) == 0.5


def test_auc_where_undefined():
    score = np.array([0.3, 0.2])
    assert math.isnan(auc(EMPTY, EMPTY))
    assert math.isnan(auc(score, np.zeros(2))) and math.isnan(auc(score, np.ones(2)))
    assert math.isnan(auc(score, np.array([0, 1]), np.array([1.0, 0.0])))
    assert math.isnan(auc(np.array([math.nan, 0.2]), np.array([0, 1])))
    assert auc(np.array([-math.inf, math.inf]), np.array([0, 1])) == 1.0


def test_labels_and_weights_are_checked():
    score = np.array([0.3, 0.2])
    with pytest.raises(ValueError, match="label must be 0 or 1, got 0.5"):
        auc(score, np.array([0.5, 1.0]))
    with pytest.raises(ValueError, match="weight must be >= 0, got -1.0"):
        auc(score, np.array([0, 1]), np.array([1.0, -1.0]))


# gauc


def test_gauc_by_hand():
    score = np.array([0.9, 0.1, 0.5, 0.2, 0.3, 0.3, 0.7, 0.6])
    label = np.array([1, 0, 0, 1, 0, 1, 1, 1])
    user = np.array(["a", "a", "b", "b", "b", "b", "c", "c"])
    # b's positives .2 and .3 against .5 and .3: lost, lost, lost, tied. c has one class only.
    assert gauc(score, label, user) == (2 * 1.0 + 4 * (0.5 / 4)) / (2 + 4)


@pytest.mark.parametrize("seed", range(10))
def test_gauc_is_the_weighted_mean_of_the_users_auc(seed):
    score, label, weight, user = sample(seed)
    for w in (None, weight):
        ones = np.ones(60) if w is None else w
        total = mean = 0.0
        for u in np.unique(user):
            value = pairs_auc(score[user == u], label[user == u], ones[user == u])
            if not math.isnan(value):
                total += ones[user == u].sum()
                mean += ones[user == u].sum() * value
        assert gauc(score, label, user, w) == pytest.approx(mean / total, abs=1e-14)


def test_gauc_ignores_what_is_constant_within_a_user():
    score, label, _, user = sample(1)
    assert gauc(score + 8.0 * user, label, user) == gauc(score, label, user)
    one = np.zeros(60, int)
    assert gauc(score, label, one) == pytest.approx(auc(score, label), abs=1e-14)


def test_gauc_where_undefined():
    score, users = np.array([0.3, 0.2]), np.array([7, 8])
    assert math.isnan(gauc(EMPTY, EMPTY, EMPTY))
    assert math.isnan(gauc(score, np.array([0, 1]), users))
    assert math.isnan(gauc(np.array([math.nan, 0.2]), np.array([0, 1]), np.array([7, 7])))


# logloss and calibration


def test_logloss_by_hand():
    p, y = np.array([0.9, 0.2, 0.5]), np.array([1, 0, 1])
    assert logloss(p, y) == pytest.approx(
        -(math.log(0.9) + math.log(0.8) + math.log(0.5)) / 3, abs=1e-15
    )
    weight = np.array([1.0, 3.0, 0.0])
    assert logloss(p, y, weight) == pytest.approx(-(math.log(0.9) + 3 * math.log(0.8)) / 4)
    soft = -(0.3 * math.log(0.25) + 0.7 * math.log(0.75))
    assert logloss(np.array([0.25]), np.array([0.3])) == pytest.approx(soft)


def test_logloss_of_certainty():
    assert logloss(np.array([1.0, 0.0]), np.array([1, 0])) == 0.0
    assert logloss(np.array([1.0, 0.0]), np.array([1, 1])) == math.inf
    infinite = np.array([math.inf, -math.inf])
    assert logloss_from_logit(infinite, np.array([1, 0])) == 0.0
    assert logloss_from_logit(infinite, np.array([1, 1])) == math.inf
    assert math.isnan(logloss(EMPTY, EMPTY)) and math.isnan(logloss_from_logit(EMPTY, EMPTY))


def test_logloss_from_logit_is_exact_where_the_sigmoid_is_not():
    logit, label, weight, _ = sample(2)
    expected = logloss(sigmoid(logit), label, weight)
    assert logloss_from_logit(logit, label, weight) == pytest.approx(expected, abs=1e-14)
    assert logloss_from_logit(np.array([1000.0]), np.array([0])) == 1000.0
    assert logloss_from_logit(np.array([-1000.0]), np.array([0])) == 0.0
    small = logloss_from_logit(np.array([40.0]), np.array([1]))
    assert small == pytest.approx(math.exp(-40), rel=1e-12)


def test_sigmoid():
    np.testing.assert_array_equal(sigmoid(np.array([-1e4, 0.0, 1e4])), [0.0, 0.5, 1.0])
    assert sigmoid(np.array([-40.0]))[0] == pytest.approx(math.exp(-40), rel=1e-12)


def test_calibration_by_hand():
    p, y = np.array([0.5, 0.2, 0.8]), np.array([1, 0, 1])
    assert calibration(p, y) == pytest.approx((0.5 + 0.2 + 0.8) / 2)
    assert calibration(p, y, np.array([1.0, 5.0, 0.0])) == pytest.approx((0.5 + 5 * 0.2) / 1)
    assert math.isnan(calibration(p, np.zeros(3))) and math.isnan(calibration(EMPTY, EMPTY))


def test_calibration_error_by_hand():
    p, y = np.array([0.8, 0.1, 0.6, 0.3]), np.array([1, 0, 0, 1])
    low, high = abs((0.1 + 0.3) / 2 - 1 / 2), abs((0.6 + 0.8) / 2 - 1 / 2)
    assert calibration_error(p, y, bins=2) == pytest.approx((2 * low + 2 * high) / 4)
    assert calibration_error(p, y, bins=1) == pytest.approx(abs(0.45 - 0.5))
    assert calibration_error(p, y, bins=4) == pytest.approx((0.2 + 0.1 + 0.6 + 0.7) / 4)
    weight = np.array([3.0, 1.0, 1.0, 1.0])  # the first alone is the upper half
    low = abs((0.1 + 0.6 + 0.3) / 3 - 1 / 3)
    assert calibration_error(p, y, weight, bins=2) == pytest.approx((3 * low + 3 * 0.2) / 6)


def test_calibration_error_keeps_equal_predictions_together():
    y = np.array([1, 1, 0, 0])
    assert calibration_error(np.full(4, 0.5), y, bins=2) == 0.0
    p = np.array([0.5, 0.5, 0.5, 0.1])
    order = np.array([2, 0, 3, 1])
    assert calibration_error(p, y, bins=4) == calibration_error(p[order], y[order], bins=4)


@pytest.mark.parametrize("weighted", [False, True])
def test_calibration_noise_is_the_error_of_true_predictions(weighted):
    random = np.random.default_rng(0)
    p = random.beta(1, 4, 3000)
    weight = random.uniform(0.5, 4, len(p)) if weighted else None
    errors = [
        calibration_error(p, (random.random(len(p)) < p).astype(float), weight) for _ in range(300)
    ]
    noise = calibration_noise(p, np.zeros(len(p)), weight)
    assert noise == pytest.approx(np.mean(errors), rel=0.03)
    assert math.isnan(calibration_noise(EMPTY, EMPTY))


def test_calibration_error_where_undefined():
    assert math.isnan(calibration_error(EMPTY, EMPTY))
    assert math.isnan(calibration_error(np.array([math.nan]), np.array([1])))
    with pytest.raises(ValueError, match="bins must be >= 1, got 0"):
        calibration_error(np.array([0.5]), np.array([1]), bins=0)


# lists


def test_ndcg_by_hand():
    score = np.array([[0.9, 0.8, 0.1, 0.5]])
    label = np.array([[0, 1, 1, 0]])  # ranks 1, 2, 4, 3
    log2 = math.log2
    best = 1 / log2(2) + 1 / log2(3)
    assert ndcg_at_k(score, label, k=4) == pytest.approx((1 / log2(3) + 1 / log2(5)) / best)
    assert ndcg_at_k(score, label, k=3) == pytest.approx((1 / log2(3)) / best)
    assert ndcg_at_k(score, label, k=1) == 0.0
    grades = np.array([[0, 2, 3, 0]])
    assert ndcg_at_k(score, grades, k=4) == pytest.approx(
        (3 / log2(3) + 7 / log2(5)) / (7 / log2(2) + 3 / log2(3))
    )


def test_list_metrics_average_over_requests():
    score = np.array([[0.9, 0.1, 0.5], [0.9, 0.1, 0.5], [0.9, 0.1, 0.5]])
    label = np.array([[0, 1, 1], [1, 0, 0], [0, 0, 0]])  # the last has no positive
    assert recall_at_k(score, label, k=2) == (1 / 2 + 1 / 1) / 2
    assert top_click_hit(score, label, k=2) == (1 + 1) / (2 + 1)
    assert ndcg_at_k(score, label, k=1) == (0 + 1) / 2
    counts = np.array([[0, 4, 1], [5, 0, 0], [0, 0, 0]])  # orders may be several
    assert cr_hit(score, counts, k=2) == (1 + 5) / (5 + 5)


def test_tied_candidates_share_their_ranks():
    label = np.array([[1, 0, 0, 0]])
    score = np.array([[0.5, 0.5, 0.5, 0.9]])  # the positive has rank 2, 3 or 4
    assert recall_at_k(score, label, k=2) == pytest.approx(1 / 3)
    assert recall_at_k(score, label, k=1) == 0.0 and recall_at_k(score, label, k=4) == 1.0
    assert top_click_hit(score, label, k=3) == pytest.approx(2 / 3)
    assert ndcg_at_k(score, label, k=3) == pytest.approx((1 / math.log2(3) + 1 / math.log2(4)) / 3)


@pytest.mark.parametrize("metric", [ndcg_at_k, recall_at_k, top_click_hit, cr_hit])
def test_list_metrics_are_properties_of_the_set(metric):
    random = np.random.default_rng(0)
    score = random.integers(0, 5, (20, 8)).astype(np.float32)
    label = (random.random((20, 8)) < 0.3).astype(np.int32)
    mask = random.random((20, 8)) < 0.8
    value = metric(score, label, mask, k=3)
    assert 0.0 < value < 1.0
    order = random.permutation(8)
    other = metric(score[:, order], label[:, order], mask[:, order], k=3)
    assert other == pytest.approx(value, abs=1e-14)
    # What is masked does not matter, nor does more of it.
    garbage = np.where(mask, score, math.nan).astype(np.float32)
    assert metric(garbage, np.where(mask, label, 7), mask, k=3) == value
    wide = lambda array, fill: np.pad(array, ((0, 2), (0, 5)), constant_values=fill)
    padded = metric(wide(score, 9.0), wide(label, 1), wide(mask, False), k=3)
    assert padded == pytest.approx(value, abs=1e-14)


def test_a_real_candidate_ranks_before_a_masked_one():
    score, mask = np.array([[-math.inf, 3.0, 2.0]]), np.array([[True, False, True]])
    assert recall_at_k(score, np.array([[1, 0, 0]]), mask, k=2) == 1.0
    assert recall_at_k(score, np.array([[1, 0, 0]]), mask, k=1) == 0.0
    tied = np.array([[2.0, 2.0, 3.0]])
    assert recall_at_k(tied, np.array([[1, 0, 0]]), mask, k=2) == 1.0


def test_retrieval_counts_what_was_not_found():
    score = np.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    found = np.array([[0, 1, 0], [0, 0, 0], [0, 0, 0]])
    relevant = np.array([4, 1, 0])  # the last request asks for nothing
    assert recall_at_k(score, found, k=3, relevant=relevant) == (1 / 4 + 0 / 1) / 2
    log2 = math.log2
    best = 1 / log2(2) + 1 / log2(3) + 1 / log2(4)
    value = ndcg_at_k(score, found, k=3, relevant=relevant)
    assert value == pytest.approx((1 / log2(3) / best + 0) / 2)


@pytest.mark.parametrize("metric", [ndcg_at_k, recall_at_k, top_click_hit, cr_hit])
def test_list_metrics_where_undefined(metric):
    nothing = np.zeros((0, 3))
    assert math.isnan(metric(nothing, nothing, k=1))
    assert math.isnan(metric(np.ones((2, 3)), np.zeros((2, 3)), k=1))
    assert math.isnan(metric(np.array([[math.nan, 1.0]]), np.array([[1, 0]]), k=1))
    with pytest.raises(ValueError, match="k must be >= 1, got 0"):
        metric(np.ones((2, 3)), np.ones((2, 3)), k=0)


# evaluate


def requests(seed=0):
    random = np.random.default_rng(seed)
    logit = random.normal(size=(30, 4)).astype(np.float32)
    label = (random.random((30, 4)) < sigmoid(logit)).astype(np.int32)
    mask = random.random((30, 4)) < 0.8
    user = random.integers(0, 8, 30)
    return logit, label, mask, user


def test_calibration_loss_is_what_the_best_slope_and_intercept_save():
    random = np.random.default_rng(0)
    logit = random.normal(size=20_000)
    label = (random.random(20_000) < sigmoid(logit)).astype(float)
    assert calibration_loss(logit, label) == pytest.approx(0, abs=1e-4)
    loud = 3 * logit + 1
    saved = logloss_from_logit(loud, label) - logloss_from_logit(logit, label)
    assert calibration_loss(loud, label) == pytest.approx(saved, abs=2e-4)
    assert saved > 0.2


def test_calibration_loss_where_undefined():
    assert math.isnan(calibration_loss(EMPTY, EMPTY))
    assert math.isnan(calibration_loss(np.array([math.inf]), np.array([1])))
    assert calibration_loss(np.array([1.0, 2.0]), np.array([1, 1])) == 0.0


def test_evaluate_holds_every_metric():
    logit, label, mask, user = requests()
    users = np.repeat(user[:, None], 4, axis=1)[mask]
    lists = mask.sum(axis=1) > 1
    x, y = logit[mask].astype(np.float64), label[mask]
    assert evaluate(logit, np.where(mask, label, -5), mask, user=user, k=2) == {
        "examples": mask.sum(),
        "positives": y.sum(),
        "requests": mask.any(axis=1).sum(),
        "auc": auc(x, y),
        "gauc": gauc(x, y, users),
        "logloss": logloss_from_logit(x, y),
        "calibration": calibration(sigmoid(x), y),
        "calibration_error": calibration_error(sigmoid(x), y),
        "calibration_noise": calibration_noise(sigmoid(x), y),
        "calibration_loss": calibration_loss(x, y),
        "ndcg@2": ndcg_at_k(logit[lists], label[lists], mask[lists], k=2),
    }


def test_evaluate_by_segment_is_evaluate_of_the_segment():
    logit, label, mask, user = requests()
    scene = np.array(["home", "search"])[np.arange(30) % 2]
    kind = np.arange(120).reshape(30, 4) % 3
    result = evaluate(logit, label, mask, user=user, segments={"scene": scene, "kind": kind})
    assert set(result["by"]) == {"scene", "kind"}
    assert set(result["by"]["scene"]) == {"home", "search"}
    assert set(result["by"]["kind"]) == {"0", "1", "2"}
    home = scene == "home"
    assert result["by"]["scene"]["home"] == evaluate(
        logit[home], label[home], mask[home], user=user[home]
    )
    assert result["by"]["kind"]["1"] == evaluate(logit, label, mask & (kind == 1), user=user)
    for segments in result["by"].values():
        assert sum(s["examples"] for s in segments.values()) == result["examples"]


def test_evaluate_tells_the_largest_segments_apart_and_counts_the_others(monkeypatch):
    monkeypatch.setattr("recjax.train.evaluation.segments.MOST", 2)
    logit, label, mask, user = requests()
    scene = np.array(["a", "b", "c", "d", "d", "c"])[np.arange(30) % 6]  # c, d: 10 requests each
    result = evaluate(logit, label, np.ones_like(mask), user=user, segments={"scene": scene})
    assert list(result["by"]["scene"]) == ["c", "d"]
    assert result["left out of by"] == {"scene": {"segments": 2, "examples": 2 * 5 * 4}}
    texts = evaluate(
        logit, label, np.ones_like(mask), user=user, segments={"scene": scene.astype(object)}
    )
    assert texts == result
    few = evaluate(logit, label, mask, segments={"scene": scene < "c"})
    assert "left out of by" not in few and set(few["by"]["scene"]) == {"False", "True"}


def test_cost_follows_the_examples_not_the_segments():
    """200,000 segments of one request each: as one segment but for sorting."""
    rng = np.random.default_rng(0)
    size = 200_000
    logit = rng.normal(size=(size, 2)).astype(np.float32)
    label = np.tile([1.0, 0.0], (size, 1))
    segment = rng.permutation(size)
    started = time.process_time()
    for value in (segment, np.char.add("kind ", segment.astype("U")).astype(object)):
        result = evaluate(logit, label, segments={"kind": value})
        assert len(result["by"]["kind"]) == 100
        assert result["left out of by"]["kind"] == {
            "segments": size - 100,
            "examples": 2 * (size - 100),
        }
        assert len(json.dumps(result)) < 100_000
    assert time.process_time() - started < 20  # one pass over all per segment takes minutes


def test_evaluate_weights():
    logit, label, mask, user = requests()
    weight = np.where(np.arange(120).reshape(30, 4) % 2, 3.0, 0.0)
    chosen = mask & (weight > 0)
    weighted = evaluate(logit, label, mask, weight, user)
    alone = evaluate(logit, label, chosen, user=user)
    assert weighted == pytest.approx(alone, abs=1e-12)  # equal weights change nothing
    uneven = np.where(label == 1, 3.0, 1.0)
    w = uneven[mask]
    result = evaluate(logit, label, mask, uneven, user)
    assert result["logloss"] == logloss_from_logit(logit[mask].astype(float), label[mask], w)
    assert result["calibration"] == calibration(sigmoid(logit[mask]), label[mask], w)


def test_evaluate_says_none_where_undefined():
    logit, label, mask, user = requests()
    single = evaluate(logit[:, :1], label[:, :1])
    assert single["gauc"] is None and single["ndcg@10"] is None and single["auc"] is not None
    undefined = {
        "auc": evaluate(logit, np.zeros_like(label), mask, user=user),
        "gauc": evaluate(np.full_like(logit, math.nan), label, mask, user=user),
        "calibration": evaluate(logit, label, mask & False, user=user, segments={"scene": user}),
        "logloss": evaluate(np.full_like(logit, math.inf), label, mask, user=user),
    }
    for name, result in undefined.items():
        assert result[name] is None
        json.dumps(result, allow_nan=False)


# paired_bootstrap


def test_bootstrap_of_a_better_model():
    random = np.random.default_rng(0)
    label = (random.random(2000) < 0.5).astype(np.int32)
    good, bad = (label + scale * random.normal(size=2000) for scale in (1.0, 2.0))
    difference, low, high = paired_bootstrap(good, bad, label, samples=200)
    assert difference == pytest.approx(auc(good, label) - auc(bad, label), abs=1e-14)
    assert 0.0 < low < difference < high < 0.3
    assert paired_bootstrap(good, bad, label, samples=200) == (difference, low, high)
    other = paired_bootstrap(good, bad, label, samples=200, seed=1)
    assert other[0] == difference and other[1:] != (low, high)
    narrow = paired_bootstrap(good, bad, label, samples=200, confidence=0.5)
    assert low < narrow[1] < difference < narrow[2] < high
    backward = paired_bootstrap(bad, good, label, samples=200)
    assert backward == pytest.approx((-difference, -high, -low), abs=1e-12)


def test_bootstrap_of_equal_models_is_zero():
    score, label, _, group = sample(0)
    assert paired_bootstrap(score, np.exp(score), label, group, samples=50) == (0.0, 0.0, 0.0)


def test_bootstrap_draws_groups_whole():
    """Ten copies of every example carry no more evidence than one."""
    random = np.random.default_rng(1)
    label = (random.random(300) < 0.5).astype(np.int32)
    a, b = label + random.normal(size=300), label + 2 * random.normal(size=300)
    once = paired_bootstrap(a, b, label, samples=300)
    ten = np.repeat(np.arange(300), 10)
    grouped = paired_bootstrap(a[ten], b[ten], label[ten], ten, samples=300)
    assert grouped == pytest.approx(once, abs=1e-12)
    naive = paired_bootstrap(a[ten], b[ten], label[ten], samples=300)
    assert naive[2] - naive[1] < 0.5 * (once[2] - once[1])


def test_bootstrap_against_resampled_data():
    score, label, _, group = sample(4)
    other = np.random.default_rng(9).normal(size=60)
    members = [np.flatnonzero(group == g) for g in np.unique(group)]
    random, differences = np.random.default_rng(5), []
    for _ in range(40):
        drawn = random.integers(0, len(members), len(members))
        rows = np.concatenate([members[g] for g in drawn])
        differences.append(auc(score[rows], label[rows]) - auc(other[rows], label[rows]))
    _, low, high = paired_bootstrap(score, other, label, group, samples=40, seed=5)
    assert (low, high) == pytest.approx(tuple(np.quantile(differences, [0.025, 0.975])), abs=1e-12)


def test_bootstrap_where_undefined():
    score, label = np.array([0.1, 0.2]), np.array([1, 1])
    assert all(math.isnan(x) for x in paired_bootstrap(score, score, label, samples=3))
    assert all(math.isnan(x) for x in paired_bootstrap(EMPTY, EMPTY, EMPTY, samples=3))
    with pytest.raises(ValueError, match="samples must be >= 1, got 0"):
        paired_bootstrap(score, score, label, samples=0)
    with pytest.raises(ValueError, match=r"confidence must be in \(0, 1\), got 95"):
        paired_bootstrap(score, score, label, confidence=95.0)
