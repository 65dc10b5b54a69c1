"""The rules of retrieval against loops, one request and one item at a time."""

import numpy as np
import pytest

from logs import hand_made_dataset, random_dataset
from recjax.train.evaluation.baselines import evaluate_popularity, evaluate_tags
from recjax.train.evaluation.retrieval import Judged, Top, measure


def tags_of(column, item):
    return {int(tag) for tag in np.atleast_1d(column[item]) if tag != 0}


def exact_tags(dataset, history, tag):
    log, judged = dataset.log, Judged.of(dataset, dataset.test)
    column, order = log.items[tag], []
    for r, user in enumerate(judged.requests.user):
        past = log.item[log.offsets[user] :][: judged.requests.cut[r]].tolist()
        score = []
        for item in range(log.num_items):
            total = 0.0
            for name in tags_of(column, item):
                events = sum(name in tags_of(column, seen) for seen in past[-history:])
                sharing = [i for i in range(log.num_items) if name in tags_of(column, i)]
                sold = sum(judged.popularity[i] for i in sharing)
                total += events * judged.popularity[item] / max(sold, 1)
            score.append(total)
        offered = [i for i in range(log.num_items) if i not in set(past) - {*judged.relevant[r]}]
        found = sorted(offered, key=lambda i, score=score: (-np.float32(score[i]), i))[:50]
        order.append(found + [-1] * (50 - len(found)))
    order = np.array(order)
    return measure(Top(order, np.where(order >= 0, -np.arange(50.0), -np.inf)), judged, tag)


@pytest.mark.parametrize("history", [3, 50])
def test_tags_are_their_definition(history):
    dataset = random_dataset(users=30, items=90, seed=3)
    got = evaluate_tags(dataset, dataset.test, history=history)
    assert got == exact_tags(dataset, history, "category")
    assert got != evaluate_popularity(dataset, dataset.test)


def test_an_item_may_have_several_tags():
    dataset = hand_made_dataset()
    got = evaluate_tags(dataset, dataset.test, history=4, tag="tags")
    assert got == exact_tags(dataset, 4, "tags")


def test_tags_must_be_ids():
    dataset = hand_made_dataset()
    for name in ("price", "brand"):
        with pytest.raises(ValueError, match=f"items have no ids '{name}'; they have"):
            evaluate_tags(dataset, dataset.test, history=4, tag=name)


def test_nothing_relevant_is_an_error():
    dataset = hand_made_dataset()
    nobody = dataset.test.take(slice(0, 0))
    for judge in (
        lambda: evaluate_tags(dataset, nobody, history=4),
        lambda: evaluate_popularity(dataset, nobody),
    ):
        with pytest.raises(ValueError, match="of 0 requests of 'hand-made' none has a candidate"):
            judge()
