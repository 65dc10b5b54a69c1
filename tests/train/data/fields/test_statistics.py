import dataclasses

import numpy as np
import pytest

from logs import hand_made
from recjax.train.data import interactions
from recjax.train.data.batches.pipeline import TrainingBatches
from recjax.train.data.errors import DataError
from recjax.train.data.event_log import EventLog, Requests
from recjax.train.data.fields.crosses import with_crosses
from recjax.train.data.fields.statistics import Statistic, Statistics, log_users, with_statistics
from recjax.train.data.market import source as market
from recjax.train.data.protocol import Protocol
from recjax.zoo.features import KnownRows, signatures

BEHAVIORS = ["click", "cart", "buy"]
ROW_MAPS = {"behavior": KnownRows.of(signatures("behavior", BEHAVIORS))}
DAY = 86_400
TEXTS = [
    "count(item)",
    "count(user*category; cart)",
    "count(user; 2d)",
    "count(category; buy; 36h)",
    "ratio(item; buy/click)",
    "ratio(user*item; cart/click; 3d)",
    "decayed(item; 12h)",
    "decayed(user*category; click; 1d)",
    "since(user*category; buy)",
    "since(item)",
]


def random_log(seed=0, users=7, items=5, events=200):
    """Many events share a second; some items have no category."""
    rng = np.random.default_rng(seed)
    owner = np.sort(rng.integers(0, users, events))
    time = rng.integers(0, 60, events) * (DAY // 8)
    order = np.lexsort((time, owner))
    behavior = np.array(BEHAVIORS)[rng.integers(0, 3, events)]
    return EventLog(
        offsets=np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=users))]),
        item=rng.integers(0, items, events).astype(np.int32),
        time=time[order],
        event={"behavior": ROW_MAPS["behavior"](signatures("behavior", list(behavior)))},
        items={"item": np.arange(2, 2 + items), "category": np.array([2, 3, 2, 0, 3], np.int32)},
        users={},
    )


def random_requests(log, count=40, seed=1):
    rng = np.random.default_rng(seed)
    user = rng.integers(0, log.num_users, count)
    return Requests(
        user=user.astype(np.int32),
        cut=np.zeros(count, int),
        time=rng.integers(-1, 62, count) * (DAY // 8),
        candidate=rng.integers(-1, log.num_items, (count, 3)).astype(np.int32),
        label={"click": np.zeros((count, 3), np.float32)},
    )


def by_hand(text, log, user, item, time):
    """One statistic of one request and candidate, event by event; before its transform."""
    statistic = Statistic.parse(text)
    category = log.items["category"]
    if "category" in statistic.key and category[item] == 0:
        return None
    times = {name: [] for name in statistic.behaviors or ["any"]}
    for whose, what, when, row in zip(
        log_users(log), log.item, log.time, log.event["behavior"], strict=True
    ):
        same = {
            "user": whose == user,
            "item": what == item,
            "category": category[what] == category[item],
        }
        if when >= time or not all(same[part] for part in statistic.key):
            continue
        for name in times:
            if name == "any" or row == ROW_MAPS["behavior"](signatures("behavior", [name]))[0]:
                times[name].append(when)
    ages = [[time - t for t in found] for found in times.values()]
    if statistic.operation != "decayed" and statistic.seconds:
        ages = [[age for age in found if age <= statistic.seconds] for found in ages]
    match statistic.operation:
        case "count":
            return len(ages[0])
        case "ratio":
            return (len(ages[0]) + 1) / (len(ages[1]) + 2)
        case "decayed":
            return sum(2 ** (-age / statistic.seconds) for age in ages[0])
        case "since":
            return min(ages[0]) / DAY if ages[0] else -1
    raise AssertionError(statistic)


@pytest.mark.parametrize("text", TEXTS)
def test_what_happened_before_counted_event_by_event(text):
    log = random_log()
    requests = random_requests(log)
    added = Statistics([text], log, ROW_MAPS).add(requests)
    signed_log = lambda x: np.sign(x) * np.log1p(abs(x))
    change = signed_log if Statistic.parse(text).field.transform == "log1p" else lambda x: x
    if text.startswith("count(user;"):
        column, items = added.context[text], np.zeros((len(requests), 1), int)
        column = column[:, None]
    else:
        column, items = added.shown[text], requests.candidate
    assert column.dtype == np.float32 and column.shape == items.shape
    distinct = set()
    for (row, place), item in np.ndenumerate(items):
        expected = None
        if item >= 0:
            expected = by_hand(text, log, requests.user[row], item, requests.time[row])
        expected = 0.0 if expected is None else change(expected)
        np.testing.assert_allclose(column[row, place], expected, rtol=1e-6, atol=1e-7)
        distinct.add(round(float(expected), 5))
    assert len(distinct) > 3  # the case says something


def test_no_statistic_changes_when_the_future_does():
    log, texts = random_log(), TEXTS
    requests = random_requests(log)
    now = np.median(log.time)
    requests = dataclasses.replace(requests, time=np.full_like(requests.time, now))
    before = Statistics(texts, log, ROW_MAPS).add(requests)
    rng = np.random.default_rng(3)
    future = log.time >= now
    shuffled = lambda column: np.where(future, rng.permutation(column), column)
    other = dataclasses.replace(
        log, item=shuffled(log.item), event={"behavior": shuffled(log.event["behavior"])}
    )
    assert future.any() and np.any(other.item != log.item)
    after = Statistics(texts, other, ROW_MAPS).add(requests)
    for name in (*before.shown, *before.context):
        mine = before.shown.get(name, before.context.get(name))
        np.testing.assert_array_equal(mine, after.shown.get(name, after.context.get(name)))
    # It would change, could one ask for a moment later.
    later = dataclasses.replace(requests, time=requests.time + 30 * DAY)
    (mine, changed) = (
        Statistics(texts, x, ROW_MAPS).add(later).shown["count(item)"] for x in (log, other)
    )
    assert np.any(mine != changed)


def test_a_purchase_changes_the_decision_state():
    time = np.array([0, 1, 3, 5]) * DAY
    log = EventLog(
        offsets=np.array([0, 4]),
        item=np.array([0, 0, 0, 1], np.int32),
        time=time,
        event={
            "behavior": ROW_MAPS["behavior"](
                signatures("behavior", ["click", "cart", "buy", "click"])
            )
        },
        items={"item": np.array([2, 3]), "category": np.array([2, 2])},
        users={},
    )
    texts = [f"count(user*category; {name})" for name in BEHAVIORS] + ["since(user*category; buy)"]
    requests = Requests(
        user=np.zeros(3, np.int32),
        cut=np.array([2, 3, 4]),
        time=np.array([2.5 * DAY, 3 * DAY, 6 * DAY]).astype(int),
        candidate=np.ones((3, 1), np.int32),
        label={},
    )
    shown = Statistics(texts, log, ROW_MAPS).add(requests).shown
    state = np.concatenate([shown[text] for text in texts], axis=1)
    counts = np.log1p([[1, 1, 0], [1, 1, 0], [2, 1, 1]])  # bought at day 3: not yet at that moment
    np.testing.assert_allclose(state[:, :3], counts, rtol=1e-6)
    np.testing.assert_allclose(state[:, 3], [-np.log(2), -np.log(2), np.log1p(3)], rtol=1e-6)


def test_training_negatives_get_theirs_when_they_are_drawn():
    dataset = interactions.build("hand", hand_made(), protocol=Protocol(max_train_per_user=9))
    texts = ["count(item)", "count(user)", "count(user*category)"]
    dataset = with_statistics(dataset, texts)
    dataset = with_crosses(dataset, ["history.item*candidate.item"], rows=100, history=2)
    assert [field.role for field in dataset.schema.fields[-4:]] == [
        "candidate",
        "context",
        "candidate",
        "candidate",
    ]
    batches = TrainingBatches(dataset, batch_size=8, history=5, negatives=2)
    for step in batches.epoch(0):
        batch = step.batch
        real = batch["candidate_mask"]
        # Of a user's own past there are as many events as the history holds, if none is at the
        # very moment of the request.
        own = np.expm1(batch["context"]["count(user)"])[real.any(axis=1)]
        assert np.all(own <= batch["history_mask"].sum(axis=1)[real.any(axis=1)] + 1e-5)
        count = np.expm1(batch["candidate"]["count(item)"])
        assert count.shape == real.shape == (2, 3)
        assert batch["candidate"]["history.item*candidate.item"].shape == (2, 3, 2)
    assert dataset.test.shown["count(item)"].shape == dataset.test.candidate.shape


def test_page_logs_are_complete_from_the_start():
    dataset = with_statistics(market.load("tiny"), ["count(item; 1d)", "ratio(item; cart/click)"])
    assert dataset.train.shown["count(item; 1d)"].shape == dataset.train.candidate.shape
    assert dataset.train.shown["count(item; 1d)"].max() > 0
    assert with_statistics(dataset, []) is dataset


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sum(item)", r"must be one of count\(...\), decayed"),
        ("count", "must be one of"),
        ("count()", "must be one of"),
        ("count(item; ; 7d)", "a key, one behaviour and one duration at most"),
        ("count(item; buy; cart)", "a key, one behaviour and one duration at most"),
        ("count(item; 1d; 2d)", "a key, one behaviour and one duration at most"),
        ("count(item*)", "a key, one behaviour and one duration at most"),
        ("count(item*item)", "a part of the key stands twice"),
        ("ratio(item; buy)", "ratio takes 2 behaviours, got 1"),
        ("decayed(item)", "decayed takes 1 durations, got 0"),
        ("since(item; 3d)", "since takes 0 durations, got 1"),
        ("count(item; 0d)", "a duration must be > 0"),
        ("count(item; 99999999999999d)", "a duration must be > 0 and < 2"),
        ("ratio(item; buy / buy)", "a behaviour stands twice"),
    ],
)
def test_bad_texts(text, message):
    with pytest.raises(ValueError, match=message):
        Statistic.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("count(shop)", "key 'shop' is not one of user, item, category"),
        ("count(item; sell)", "'sell' is no behaviour of this log's events, nor a duration"),
        ("count(item; 7w)", "'7w' is no behaviour"),
    ],
)
def test_what_the_log_does_not_have(text, message):
    with pytest.raises(DataError, match=message):
        Statistics([text], random_log(), ROW_MAPS)


def test_logs_without_a_clock_or_behaviours():
    log = dataclasses.replace(random_log(), has_clock=False, event={})
    with pytest.raises(DataError, match="no clock"):
        Statistics(["count(item; 1d)"], log, ROW_MAPS)
    with pytest.raises(DataError, match="no clock"):
        Statistics(["since(item)"], log, ROW_MAPS)
    with pytest.raises(DataError, match="have no behaviour"):
        Statistics(["count(item; buy)"], log, ROW_MAPS)
    empty = dataclasses.replace(log, offsets=np.zeros(2, int), item=log.item[:0], time=log.time[:0])
    with pytest.raises(DataError, match=r"Statistic 'count\(item\)': this log has no events"):
        Statistics(["count(item)"], empty, ROW_MAPS)
    with pytest.raises(ValueError, match=r"one stands twice in count\(item\), count\(item\)"):
        with_statistics(market.load("tiny"), ["count(item)", "count( item )"])


def test_what_is_unseen_is_not_one_value():
    log = random_log()
    unseen = dataclasses.replace(log, items={**log.items, "category": np.array([2, 1, 2, 1, 3])})
    requests = random_requests(log)
    shown = Statistics(["count(category)"], unseen, ROW_MAPS).add(requests).shown
    of_unseen = np.isin(requests.candidate, [1, 3])
    assert np.all(shown["count(category)"][of_unseen] == 0)
    assert np.any(shown["count(category)"][~of_unseen] > 0)


def test_a_behaviour_that_did_not_happen_counts_zero():
    log = random_log()
    buy = ROW_MAPS["behavior"](signatures("behavior", ["buy"]))[0]
    click = ROW_MAPS["behavior"](signatures("behavior", ["click"]))[0]
    behavior = np.where(log.event["behavior"] == buy, click, log.event["behavior"])
    log = dataclasses.replace(log, event={"behavior": behavior})
    shown = Statistics(["count(item; buy)"], log, ROW_MAPS).add(random_requests(log)).shown
    assert not shown["count(item; buy)"].any()
    assert Statistics(["count(item)"], log, ROW_MAPS).fields[0].name == "count(item)"


def test_texts_read_back():
    for text in TEXTS:
        assert str(Statistic.parse(text)) == text
    assert str(Statistic.parse(" count( item*user ;7d; buy ) ")) == "count(item*user; buy; 7d)"
