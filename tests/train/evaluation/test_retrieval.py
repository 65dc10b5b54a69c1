"""Exact retrieval against sorting in NumPy, and its metrics against arithmetic."""

import dataclasses
import json
import math
import tracemalloc
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from logs import ORDERED, hand_made_dataset, random_dataset
from recjax.train.data.event_log import EventLog, Requests
from recjax.train.evaluation import retrieval
from recjax.train.evaluation.baselines import evaluate_popularity
from recjax.train.evaluation.retrieval import (
    Judged,
    Top,
    categories_covered,
    coverage,
    evaluate_retrieval,
    hits,
    measure,
    recall_by_popularity,
    top_items,
)
from recjax.train.evaluation.scoring import predict
from recjax.zoo import mind, mlp
from recjax.zoo.contract import Requirements

NONE = -1


def sorted_items(users, mask, items, k, exclude, valid):
    """The definition, one user at a time; a stable sort breaks ties by item."""
    found = np.full((len(users), k), NONE)
    for r in range(len(users)):
        if not mask[r].any():
            continue
        score = (users[r][mask[r]] @ items.T).max(axis=0)
        allowed = valid & ~np.isin(np.arange(len(items)), exclude[r])
        order = np.argsort(-score, kind="stable")
        order = order[allowed[order]][:k]
        found[r, : len(order)] = order
    return found


@pytest.mark.parametrize("user_block, item_block", [(256, 16384), (4, 7), (3, 1)])
def test_top_items_are_the_sorted_ones(user_block, item_block):
    rng = np.random.default_rng(0)
    # Small whole numbers: many ties, and no rounding.
    users = rng.integers(-2, 3, (10, 3, 2)).astype(np.float32)
    items = rng.integers(-2, 3, (23, 2)).astype(np.float32)
    mask = rng.random((10, 3)) < 0.7
    mask[4] = False
    exclude = rng.integers(-1, 23, (10, 4)).astype(np.int32)
    valid = rng.random(23) < 0.9
    options = dict(exclude=exclude, valid=valid, user_block=user_block, item_block=item_block)
    for k in (1, 5, 23, 30):
        top = top_items(users, mask, items, k, **options)
        expected = sorted_items(users, mask, items, k, exclude, valid)
        np.testing.assert_array_equal(top.item, expected)
        assert ((top.item == NONE) == np.isneginf(top.score)).all()
        real = np.where(mask[:, None], np.einsum("rkd,nd->rnk", users, items), -np.inf).max(-1)
        taken = np.take_along_axis(real, np.maximum(top.item, 0), axis=1)
        np.testing.assert_array_equal(top.score, np.where(top.item >= 0, taken, -np.inf))
    assert (expected[4] == NONE).all()


def test_an_item_that_several_interests_find_comes_once():
    users = np.array([[[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]], np.float32)
    items = np.array([[1.0, 0.0], [0.0, 1.5], [0.9, 0.9]], np.float32)
    top = top_items(users, np.ones((1, 3), bool), items, 5)
    assert top.item.tolist() == [[0, 2, 1, NONE, NONE]]
    np.testing.assert_allclose(top.score[0, :3], [2.0, 1.8, 1.5], rtol=1e-6)


def test_nothing_to_search_and_nobody_to_search_for():
    users, mask = np.ones((2, 1, 3), np.float32), np.ones((2, 1), bool)
    assert top_items(users, mask, np.zeros((0, 3), np.float32), 2).item.tolist() == [[NONE] * 2] * 2
    assert top_items(users[:0], mask[:0], np.ones((4, 3), np.float32), 2).item.shape == (0, 2)
    with pytest.raises(ValueError, match="k must be >= 1, got 0"):
        top_items(users, mask, np.ones((4, 3), np.float32), 0)


def test_memory_is_a_block_of_scores():
    """The compiled search holds no array of all users or all items by score."""
    shape = lambda *s, dtype=jnp.float32: jax.ShapeDtypeStruct(s, dtype)
    compiled = retrieval._search.lower(
        shape(8, 2, 4), shape(8, 2, dtype=bool), shape(8, 3, dtype=jnp.int32),
        shape(1000, 64, 4), shape(1000, 64, dtype=bool), 5,
    ).compile()  # fmt: skip
    scores_of_all = 8 * 1000 * 64 * 4
    assert compiled.memory_analysis().temp_size_in_bytes < scores_of_all / 10


def judged(relevant, popularity, **items):
    requests = types.SimpleNamespace(__len__=lambda: len(relevant))
    return Judged(requests, np.array(relevant), np.array(popularity), items)  # pyright: ignore


def plain_measure(item, *rest):
    item = np.array(item)
    score = np.where(item >= 0, -np.arange(item.shape[1], dtype=np.float32), -np.inf)
    return measure(Top(item.astype(np.int32), score.astype(np.float32)), *rest)


def test_metrics_are_their_arithmetic():
    item = np.full((2, 50), NONE)
    item[0, :4] = [5, 3, 0, 1]
    item[1, :30] = np.arange(10, 40)
    relevant = [[3, 1, 9], [35, NONE, NONE]]  # 9 is missed; 35 stands at rank 26
    truth = judged(relevant, [1] * 40, category=np.array([2, 2, 3, 3, 4] * 8))
    got = plain_measure(item, truth)
    assert got["requests"] == 2
    assert got["recall@20"] == pytest.approx((2 / 3 + 0) / 2)
    assert got["recall@50"] == pytest.approx((2 / 3 + 1) / 2)
    best = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    first = (1 / math.log2(3) + 1 / math.log2(5)) / best
    assert got["ndcg@50"] == pytest.approx((first + 1 / math.log2(27)) / 2)
    assert got["coverage@50"] == pytest.approx((4 + 30) / 40)
    assert got["categories@50"] == pytest.approx((2 + 3) / 2)  # of 5, 3, 0, 1: 2, 3, 2, 2
    json.dumps(got, allow_nan=False)
    assert "categories@50" not in plain_measure(item, truth, "brand")


def test_a_score_that_is_no_number_is_no_result():
    item = np.zeros((1, 50), np.int32)
    top = Top(item, np.full((1, 50), np.nan, np.float32))
    got = measure(top, judged([[0]], [1]))
    assert got["recall@50"] is None and got["ndcg@50"] is None


def test_recall_by_popularity_splits_positives_in_thirds():
    popularity = np.array([1, 6, 3, 1, 1, 0, 4, 2])  # 18: item 1 | 6, 2 (4 + 3) | the rest
    relevant = np.array([[1, 6], [1, 5], [2, NONE], [3, NONE]])
    item = np.array([[1, 0], [7, 5], [6, 4], [NONE, NONE]])
    got = recall_by_popularity(item, relevant, popularity)
    assert got == {"head": 1 / 2, "middle": 0 / 2, "tail": 1 / 2}
    nothing = recall_by_popularity(item[:1, :0], relevant[:1, :1], popularity)
    assert nothing["head"] == 0.0 and math.isnan(nothing["tail"])


def test_small_metrics():
    item = np.array([[0, 2, NONE], [2, 1, NONE]])
    assert hits(item, np.array([[2, NONE], [0, NONE]])).tolist() == [
        [False, True, False],
        [False, False, False],
    ]
    assert coverage(item, 6) == 3 / 6
    assert categories_covered(item, np.array([4, 7, 4])) == (1 + 2) / 2
    assert categories_covered(item, np.array([0, 7, 4])) == (1 + 2) / 2  # 0: no category


class Oracle:
    """A retrieval model that scores items by their row and knows nothing of users."""

    KIND = "retrieval"
    Config = None
    init = apply = loss = lambda *arguments: None

    def requirements(self, config):
        return Requirements(sampled=4)

    def user_vectors(self, variables, config, batch):
        assert "candidate" not in batch and "label" not in batch and "sampled" not in batch
        size = batch["history_mask"].shape[0]
        return jnp.full((size, 1, 1), -1.0), jnp.ones((size, 1), bool)

    def item_vectors(self, variables, config, items):
        return items["item"].astype(jnp.float32)[:, None]


def test_evaluation_ranks_what_the_user_does_not_have():
    dataset = hand_made_dataset()
    requests = dataset.validation
    truth = Judged.of(dataset, requests)
    users = {u: ORDERED[int(key)] for u, key in enumerate((0, 1, 3))}
    assert truth.relevant[:, 0].tolist() == [users[int(u)][-2] for u in requests.user]
    assert (truth.relevant[:, 1:] == NONE).all()

    class Hashable(types.SimpleNamespace):
        __hash__ = object.__hash__

    config, model = Hashable(schema=dataset.schema), Oracle()
    log = dataset.log
    items = retrieval._item_vectors(model, config, {}, log)
    vectors, mask = retrieval._user_vectors(model, config, {}, log, truth.requests, 5)
    top = retrieval.retrieve(dataset, truth, vectors, mask, items)
    order = np.argsort(log.items["item"], kind="stable")
    for r, user in enumerate(truth.requests.user):
        had = set(users[int(user)][:-2])
        expected = [i for i in order if i not in had]
        assert top.item[r][top.item[r] >= 0].tolist() == expected
    got = evaluate_retrieval(model, config, {}, dataset, requests, history=5)
    assert got["requests"] == len(requests) and got["recall@20"] == 1.0  # nine items in all


def test_a_repeated_purchase_is_offered_again():
    dataset = random_dataset(items=40)
    repeated = [
        r
        for r, (u, cut) in enumerate(zip(dataset.test.user, dataset.test.cut, strict=True))
        if dataset.log.item[dataset.log.offsets[u] + cut]
        in dataset.log.item[dataset.log.offsets[u] : dataset.log.offsets[u] + cut]
    ]
    assert repeated
    got = evaluate_popularity(dataset, dataset.test.take(np.array(repeated)))
    assert got["recall@50"] == 1.0


def test_requests_without_anything_relevant_are_left_out():
    dataset = hand_made_dataset()
    some = dataset.validation
    label = {"click": some.label["click"].copy()}
    label["click"][0] = 0
    fewer = retrieval.Judged.of(dataset, type(some)(**{**vars(some), "label": label}))
    assert len(fewer.requests) == len(some) - 1
    assert (fewer.requests.user == some.user[1:]).all()


def test_popularity_counts_the_positives_of_training():
    dataset = hand_made_dataset()
    truth = Judged.of(dataset, dataset.test)
    counts = np.zeros(9, int)
    for items in ORDERED.values():
        counts[items[:-2]] += 1
    assert truth.popularity.tolist() == counts.tolist()


def test_a_model_of_the_zoo_is_evaluated():
    dataset = random_dataset(users=20, items=30)
    config = mind.Config(schema=dataset.schema, dim=4, sampled=5)
    variables = mind.init(jax.random.key(0), config)
    got = evaluate_retrieval(mind, config, variables, dataset, dataset.test, history=8)
    assert got["requests"] == 20 and 0 < got["coverage@50"] <= 1
    assert got == evaluate_retrieval(mind, config, variables, dataset, dataset.test, history=8)
    assert set(got) == set(evaluate_popularity(dataset, dataset.test))


def log_of(events):
    """A log of {user: items in order}."""
    lengths = [len(items) for items in events]
    item = np.concatenate(events).astype(np.int32)
    return EventLog(
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        item=item,
        time=np.arange(len(item), dtype=np.int64),
        event={},
        items={"item": np.arange(2, 2 + item.max() + 1, dtype=np.int32)},
        users={},
    )


def requests_of(user, cut, candidate):
    candidate = np.asarray(candidate, np.int32)
    return Requests(
        user=np.asarray(user, np.int32),
        cut=np.asarray(cut, np.int64),
        time=np.zeros(len(user), np.int64),
        candidate=candidate,
        label={"click": (candidate >= 0).astype(np.float32)},
    )


@pytest.mark.parametrize("narrowest, held, sorted_events", [(64, 2**20, 2**22), (1, 8, 5)])
def test_pasts_of_any_length_are_left_out(monkeypatch, narrowest, held, sorted_events):
    """Whatever the blocks: items before the cut, none after it, but for relevant ones."""
    monkeypatch.setattr(retrieval, "_NARROWEST", narrowest)
    monkeypatch.setattr(retrieval, "_EXCLUDED", held)
    monkeypatch.setattr(retrieval, "_SORTED_EVENTS", sorted_events)
    rng = np.random.default_rng(0)
    log = log_of([rng.integers(0, 30, size) for size in (1, 3, 100, 7, 2, 40, 12)])
    user = rng.integers(0, 7, 25)
    cut = (rng.random(25) * (log.lengths()[user] + 1)).astype(int)
    relevant = rng.integers(-1, 30, (25, 3))
    dataset = dataclasses.replace(hand_made_dataset(), log=log)
    truth = Judged(requests_of(user, cut, relevant), relevant, np.ones(30, int), log.items)
    items = rng.normal(size=(log.num_items, 2)).astype(np.float32)
    users, mask = rng.normal(size=(25, 1, 2)).astype(np.float32), np.ones((25, 1), bool)
    top = retrieval.retrieve(dataset, truth, users, mask, items)
    for r in range(25):
        past = log.item[log.offsets[user[r]] : log.offsets[user[r]] + cut[r]]
        had = np.setdiff1d(past, relevant[r])
        order = np.argsort(-(items @ users[r, 0]), kind="stable")
        expected = [i for i in order if i not in had][:50]
        assert top.item[r][top.item[r] >= 0].tolist() == expected, r


def test_memory_does_not_follow_the_longest_past():
    """One account of 600,000 plays, with 300 requests of its own, beside 600 users of ten."""
    rng = np.random.default_rng(0)
    log = log_of([rng.integers(0, 2000, 600_000), *rng.integers(0, 2000, (600, 10))])
    user = np.concatenate([np.zeros(300, int), np.arange(1, 601)])
    cut = np.where(user == 0, 599_000 + np.arange(900), 9)
    relevant = log.item[log.offsets[user] + cut][:, None]
    dataset = dataclasses.replace(hand_made_dataset(), log=log)
    truth = Judged(requests_of(user, cut, relevant), relevant, np.ones(2000, int), log.items)
    items = rng.normal(size=(log.num_items, 8)).astype(np.float32)
    users, mask = rng.normal(size=(900, 1, 8)).astype(np.float32), np.ones((900, 1), bool)
    tracemalloc.start()
    top = retrieval.retrieve(dataset, truth, users, mask, items)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 200 * 2**20
    # Who has had everything is offered what is relevant, and nothing else.
    assert (top.item[user == 0, 0] == relevant[user == 0, 0]).all()
    assert (top.item[user == 0, 1:] == NONE).all()
    assert (top.item[user > 0] != NONE).all()


@pytest.mark.parametrize("wrong", [-1, 1000])
def test_ids_outside_a_table_are_never_scored(wrong):
    dataset = hand_made_dataset()
    item = dataset.log.items["item"].copy()
    item[int(dataset.test.candidate[0, 0])] = wrong
    log = dataclasses.replace(dataset.log, items={**dataset.log.items, "item": item})
    changed = dataclasses.replace(dataset, log=log)
    said = f"must hold rows of table 'item', 0 <= row < [0-9]+, got {wrong}"
    for module, judge in ((mlp, predict), (mind, evaluate_retrieval)):
        config = module.Config(schema=dataset.schema)
        with pytest.raises(ValueError, match=said):
            judge(module, config, {}, changed, dataset.test, history=5)
