"""What a slate is worth, component by component."""

import jax.numpy as jnp
import numpy as np
import pytest

from recjax.zoo.rerank import rewards
from reranking import evaluators_of, requests
from testing import assert_close

BATCH = requests()
ORDER = jnp.array([[[0, 1, 2]], [[0, 2, -1]], [[5, 4, 3]], [[2, 2, 1]]], jnp.int32)


def test_diversity_halves_with_every_one_of_a_kind_above():
    batch = {**BATCH, "candidate": {"item": np.array([[7, 7, 7, 8, 8, 9]] * 4, np.int32)}}
    found = rewards.diversity("item")(batch, ORDER)[:, 0]
    gains = [[1, 0.5, 0.25], [1, 0.5, 1], [1, 1, 0.5], [1, 0.5, 0.25]]
    expected = np.array(gains) / np.log2([2, 3, 4])
    real = np.asarray(ORDER[:, 0]) >= 0
    assert_close(np.where(real, found, 0), np.where(real, expected, 0))


def test_a_feature_is_what_it_says():
    found = rewards.feature("price")(BATCH, ORDER)
    price = BATCH["candidate"]["price"]
    assert float(found[2, 0, 0]) == price[2, 5] and float(found[0, 0, 1]) == price[0, 1]


def test_components_are_weighed():
    clicks = rewards.judge_of(evaluators_of(2, worth=(1.0, 0.0)), BATCH)(ORDER)
    buys = rewards.judge_of(evaluators_of(2, worth=(0.0, 1.0)), BATCH)(ORDER)
    price = rewards.feature("price")
    more = evaluators_of(2, worth=(1.0, 0.5, -2.0), more=(price,))
    expected = clicks + 0.5 * buys - 2 * price(BATCH, ORDER)[..., None]
    expected = jnp.where((ORDER >= 0)[..., None], expected, 0.0)
    assert_close(rewards.judge_of(more, BATCH)(ORDER), np.asarray(expected))


def test_preferences_weigh_objectives_request_by_request():
    weights = np.array([[1, 0], [0, 1], [0.5, 0.5], [0.2, 0.8]], np.float32)
    by = evaluators_of(1, worth=((1.0, 0.0), (0.0, 3.0)))
    found = rewards.judge_of(by, {**BATCH, "preference": weights})(ORDER)
    clicks = rewards.judge_of(evaluators_of(1, worth=(1.0, 0.0)), BATCH)(ORDER)
    buys = rewards.judge_of(evaluators_of(1, worth=(0.0, 1.0)), BATCH)(ORDER)
    one, two = (weights[:, i, None, None, None] for i in range(2))
    assert_close(found, np.asarray(one * clicks + 3 * two * buys))


def test_wrong_worth_is_named():
    for worth in ((1.0,), (1.0, 0.0, 0.0), (1.0, 0.0, 1.0, 1.0)):
        with pytest.raises(ValueError, match="worth must have a number for each of click, purchas"):
            rewards.judge_of(evaluators_of(1, worth=worth), BATCH)
    with pytest.raises(ValueError, match=r"needs preference \(4, 2\)"):
        rewards.judge_of(evaluators_of(1, worth=((1.0, 0.0), (0.0, 1.0))), BATCH)
    with pytest.raises(ValueError, match="needs candidate field 'nope', got item, price"):
        rewards.diversity("nope")(BATCH, ORDER)
    with pytest.raises(ValueError, match="must hold at least one, got none"):
        rewards.judge_of(evaluators_of(1)._replace(variables=[]), BATCH)


def test_upstream_passes_over_what_is_masked():
    assert rewards.upstream(BATCH, 3).tolist() == [[0, 1, 2], [0, 2, 3], [0, 1, 2], [0, 1, 2]]
