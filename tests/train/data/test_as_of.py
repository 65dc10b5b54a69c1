"""Values as of a moment: what an item or a user was like strictly before it."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from recjax.train.data import interactions
from recjax.train.data.batches.assembly import whole_batch
from recjax.train.data.batches.pipeline import TrainingBatches
from recjax.train.data.errors import DataError
from recjax.train.data.fields.encoding import Attribute
from recjax.train.data.raw_interactions import Interactions

RANDOM = np.random.default_rng(0)
USERS, ITEMS, EVENTS = 30, 25, 500


def raw(**options):
    """Prices and cities are numbers of their own in every event; seconds hold several events."""
    user, item = RANDOM.integers(0, USERS, EVENTS), RANDOM.integers(0, ITEMS, EVENTS)
    time = RANDOM.integers(0, 400, EVENTS)
    price = 1.0 + np.arange(EVENTS)
    return Interactions(
        user=user,
        item=item,
        time=time,
        item_ids=pa.array(np.arange(ITEMS)),
        items=(Attribute(name="number", values=pa.array(np.arange(float(ITEMS)))),),
        changing_items=(Attribute(name="price", values=pa.array(price)),),
        changing_users=(
            Attribute(name="city", values=pa.array(np.arange(EVENTS) + 5000)),
            Attribute(name="mood", values=pa.array(price + 0.5)),
        ),
        context=(Attribute(name="at", values=pa.array(time.astype(float))),),
        **options,
    )


RAW = raw()
DATASET = interactions.build("as of", RAW)


def newest(mask):
    """The rows of the newest second of these, in file order; none if there are none."""
    rows = np.flatnonzero(mask)
    return rows[RAW.time[rows] == RAW.time[rows].max()] if len(rows) else rows


def expected_prices(item, time):
    """What the candidate may cost: any of the last second before the request's, else nothing."""
    rows = newest((RAW.item == item) & (RAW.time < time))
    return set((1.0 + rows).tolist()) or {0.0}


def test_a_candidate_has_the_last_price_before_its_request():
    for part in ("validation", "test"):
        requests = getattr(DATASET, part)
        batch = whole_batch(DATASET.schema, DATASET.log, requests, history=9)
        price, number = batch["candidate"]["price"], batch["candidate"]["number"].astype(int)
        assert price.shape == requests.candidate.shape
        for r in range(len(requests)):
            for c in range(2):
                assert price[r, c] in expected_prices(number[r, c], requests.time[r])


def test_drawn_negatives_have_theirs_too():
    checked = {0.0: 0, 1.0: 0}
    for step in TrainingBatches(DATASET, batch_size=64, history=9, negatives=3).epoch(0):
        batch = step.batch
        price, number = batch["candidate"]["price"], batch["candidate"]["number"].astype(int)
        for r, c in zip(*np.nonzero(batch["candidate_mask"]), strict=True):
            assert price[r, c] in expected_prices(number[r, c], batch["context"]["at"][r])
            checked[float(batch["label"]["click"][r, c])] += price[r, c] > 0
    assert checked[0.0] > 500 and checked[1.0] > 200


def test_a_past_event_has_its_own_price():
    log = DATASET.log
    order = np.lexsort((RAW.time, RAW.user))
    kept = np.isin(RAW.user[order], np.flatnonzero(np.bincount(RAW.user) >= 3))
    np.testing.assert_array_equal(log.event["price"], 1.0 + order[kept])
    requests = DATASET.test
    batch = whole_batch(DATASET.schema, log, requests, history=4)
    for r in range(len(requests)):
        end = log.offsets[requests.user[r]] + requests.cut[r]
        own = log.event["price"][max(end - 4, log.offsets[requests.user[r]]) : end]
        assert batch["history"]["price"][r][batch["history_mask"][r]].tolist() == own.tolist()


def test_a_price_is_never_that_of_the_target_s_own_event():
    requests = DATASET.test
    batch = whole_batch(DATASET.schema, DATASET.log, requests, history=4)
    own = DATASET.log.event["price"][DATASET.log.offsets[requests.user + 1] - 1]
    assert not (batch["candidate"]["price"] == own[:, None]).any()


def test_what_nobody_has_seen_yet_is_missing():
    number = Attribute(name="price", values=pa.array([7.0, 8.0, 9.0] * 2 + [5.0] * 3))
    small = Interactions(
        user=np.repeat([0, 1, 2], 3),
        item=np.array([0, 1, 2, 2, 3, 4, 5, 3, 1]),
        time=np.array([10, 20, 30, 11, 21, 31, 12, 22, 32]),
        item_ids=pa.array(np.arange(7)),
        changing_items=(number,),
    )
    dataset = interactions.build("first", small)
    shown = dataset.test.shown["price"]
    item = dataset.test.candidate
    assert shown[item == 6].tolist() == [0.0] * (item == 6).sum()
    own = dataset.test.label["click"] == 1
    # Item 2 at 30: seen at 11, for 7. Item 4 at 31: never before. Item 1 at 32: at 20, for 8.
    assert shown[own].tolist() == [7.0, 0.0, 8.0]


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_a_user_s_city_is_that_of_the_last_earlier_second(part):
    requests = getattr(DATASET, part)
    users = np.unique(RAW.user)[np.bincount(RAW.user)[np.unique(RAW.user)] >= 3]
    moods = requests.context["mood"]
    for r in range(len(requests)):
        rows = newest((RAW.user == users[requests.user[r]]) & (RAW.time < requests.time[r]))
        assert moods[r] in (set((1.5 + rows).tolist()) or {0.0})
        # Of one second the row that stands last in the file.
        assert not len(rows) or moods[r] == 1.5 + rows[-1]
    city = requests.context["city"]
    assert ((city == 0) == (moods == 0)).all()
    assert (city == 0).any() == (part == "train")


def test_an_id_that_changes_is_read_alike():
    colors = pa.array([f"color {k % 4}" for k in range(EVENTS)])
    more = (*RAW.changing_items, Attribute(name="color", values=colors))
    dataset = interactions.build("colors", dataclasses.replace(RAW, changing_items=more))
    requests = dataset.test
    price, color = requests.shown["price"], requests.shown["color"]
    row_of = {
        k: int(dataset.log.event["color"][dataset.log.event["price"] == 1.0 + k][0])
        for k in range(4)
    }
    known = price > 0
    expected = [row_of[int(p - 1) % 4] for p in price[known]]
    assert color[known].tolist() == expected
    assert (color[~known] == 0).all()


def test_values_that_change_need_a_clock():
    with pytest.raises(DataError, match="'price' is read as of the event, which needs a clock"):
        interactions.build("order", raw(has_clock=False))
