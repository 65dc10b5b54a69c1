import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from logs import ITEM_IDS, hand_made, hand_made_dataset, random_dataset
from recjax.train.data import interactions
from recjax.train.data.batches.pipeline import TrainingBatches
from recjax.train.data.draws import NEVER
from recjax.train.data.errors import DataError
from recjax.train.data.interactions import Attribute
from recjax.train.data.protocol import Protocol
from recjax.train.data.raw_interactions import Interactions
from recjax.zoo.features import HashedRows, signatures

PARTS = ("train", "validation", "test")


def rows(dataset, table, *values):
    return dataset.row_maps[table](signatures(table, list(values))).tolist()


def positives(requests):
    return requests.candidate[requests.label["click"] == 1]


def test_events_by_user_and_time_then_file_order():
    log = hand_made_dataset().log
    # Users 0, 1 and 3; user 0 met items 2 and 1 in the same second, 2 first in the file.
    assert log.offsets.tolist() == [0, 6, 10, 14]
    assert log.item.tolist() == [0, 3, 2, 1, 4, 5, 0, 3, 4, 5, 8, 0, 2, 1]
    assert log.time.tolist() == [10, 15, 20, 20, 80_000, 90_000, 11, 30, 45, 50, 6, 7, 8, 9]


def test_targets_of_every_part():
    dataset = hand_made_dataset()
    train, validation, test = (getattr(dataset, part) for part in PARTS)
    assert train.user.tolist() == [0, 0, 0, 0, 1, 1, 2, 2]
    assert train.cut.tolist() == [0, 1, 2, 3, 0, 1, 0, 1]
    assert train.candidate.tolist() == [[0], [3], [2], [1], [0], [3], [8], [0]]
    assert train.time.tolist() == [10, 15, 20, 20, 11, 30, 6, 7]
    assert train.label["click"].tolist() == [[1.0]] * 8
    assert dataset.samples_negatives
    assert validation.user.tolist() == test.user.tolist() == [0, 1, 2]
    assert validation.cut.tolist() == [4, 2, 2]
    assert positives(validation).tolist() == [4, 4, 2]
    assert validation.time.tolist() == [80_000, 45, 8]
    assert test.cut.tolist() == [5, 3, 3]
    assert positives(test).tolist() == [5, 5, 1]
    assert test.time.tolist() == [90_000, 50, 9]


def test_users_with_too_few_events_are_dropped_and_counted():
    dataset = hand_made_dataset()
    assert dataset.facts == {
        "users": 3,
        "items": 7,
        "events": 14,
        "users dropped (fewer than 3 events)": 1,
    }
    # The age of user 3, not of user 2.
    assert dataset.log.users["age"].tolist() == rows(dataset, "age", 25, 40, 33)


@pytest.mark.parametrize("newest", [1, 2, 20])
def test_max_train_per_user_keeps_the_newest(newest):
    cuts = {1: [3, 1, 1], 2: [2, 3, 0, 1, 0, 1], 20: [0, 1, 2, 3, 0, 1, 0, 1]}
    dataset = hand_made_dataset(protocol=Protocol(max_train_per_user=newest))
    assert dataset.train.cut.tolist() == cuts[newest]
    # What is no target is still known: it stands in histories.
    assert rows(dataset, "item", *ITEM_IDS[:4]) != [1] * 4
    assert dataset.row_maps["item"].rows == 2 + 5


def test_max_train_per_user_must_be_positive():
    with pytest.raises(ValueError, match="max_train_per_user must be >= 1, got 0"):
        hand_made_dataset(protocol=Protocol(max_train_per_user=0))


@pytest.mark.parametrize("part", ["validation", "test"])
def test_evaluation_has_one_untouched_item(part):
    dataset = random_dataset()
    requests = getattr(dataset, part)
    assert requests.candidate.shape == (40, 2)
    assert requests.label["click"].sum(axis=1).tolist() == [1.0] * 40
    assert requests.weight == {}
    assert 0 < requests.label["click"][:, 0].sum() < 40  # on either side
    for user, negative in zip(
        requests.user, requests.candidate[requests.label["click"] == 0], strict=True
    ):
        start, end = dataset.log.offsets[user : user + 2]
        assert negative not in dataset.log.item[start:end]


def test_evaluation_depends_on_the_data_alone():
    once, again = random_dataset(), random_dataset(protocol=Protocol(max_train_per_user=3))
    for part in ("validation", "test"):
        one, two = getattr(once, part), getattr(again, part)
        np.testing.assert_array_equal(one.candidate, two.candidate)
        np.testing.assert_array_equal(one.label["click"], two.label["click"])
    assert not np.array_equal(once.validation.candidate, once.test.candidate)
    # Many shifts of the clock are many data sets: their negatives vary.
    negatives = set()
    for shift in range(20):
        raw = hand_made()
        test = interactions.build("shifted", dataclasses.replace(raw, time=raw.time + shift)).test
        negatives.add(tuple(test.candidate[test.label["click"] == 0].tolist()))
    assert len(negatives) > 3


def test_evaluation_negatives_are_uniform():
    test = random_dataset(users=3000, items=60).test
    negative = test.candidate[test.label["click"] == 0]
    counts = np.bincount(negative, minlength=60)
    # 3000 over 60 items: 50 each. Chi-square has mean 59 and standard deviation 11.
    assert abs(((counts - 50) ** 2 / 50).sum() - 59) < 5 * 11


def test_the_vocabulary_is_what_training_sees():
    dataset = hand_made_dataset()
    # Item 105 is only ever a validation target, 106 a test target, 107 and 108 nobody touches.
    known = rows(dataset, "item", 101, 102, 103, 104, 109)
    assert sorted(known) == [2, 3, 4, 5, 6]
    assert rows(dataset, "item", 105, 106, 107, 108, 999) == [1] * 5
    assert dataset.log.items["item"].tolist() == [*known[:4], 1, 1, 1, 1, known[4]]
    # Categories of known items: a, b and none; "b" also names the unknown 106.
    a, b = rows(dataset, "category", "a", "b")
    assert sorted([a, b]) == [2, 3]
    assert rows(dataset, "category", "c", "d") == [1, 1]
    assert dataset.log.items["category"].tolist() == [a, b, a, 0, 1, b, 1, a, a]
    # "cart" was only ever a validation target.
    click, buy = rows(dataset, "behavior", "click", "buy")
    assert rows(dataset, "behavior", "cart") == [1]
    assert dataset.log.event["behavior"].tolist() == (
        [click, click, buy, click, 1, buy, click, click, 1, *[click] * 5]
    )
    assert rows(dataset, "age", 60) == [1]  # the dropped user


def test_bags_and_numbers():
    dataset = hand_made_dataset()
    x, y = rows(dataset, "tags", "x", "y")
    assert sorted([x, y]) == [2, 3] and rows(dataset, "tags", "z", "w") == [1, 1]
    assert dataset.log.items["tags"].tolist() == (
        [[x, 0, 0], [x, y, 0], [0, 0, 0], [0, 0, 0]]
        + [[1, x, y], [x, 0, 0], [1, 0, 0], [y, 0, 0], [y, 0, 0]]
    )
    price = dataset.log.items["price"]
    assert price.dtype == np.float32
    expected = np.log1p([1.25, 3.1, 0, 0.1, 8.0, 16777217.3, 0, 2.0, 4.0])
    np.testing.assert_allclose(price, expected, rtol=3e-7)


def test_the_schema():
    schema = hand_made_dataset().schema
    assert {table.name: (table.rows, table.dim) for table in schema.tables} == {
        "item": (7, 16),
        "category": (4, 16),
        "tags": (4, 16),
        "age": (5, 8),
        "behavior": (4, 4),
    }
    seen = [(field.role, field.name, field.kind, field.value) for field in schema.fields]
    assert seen == [
        ("candidate", "item", "id", "int"),
        ("history", "item", "id", "int"),
        ("candidate", "category", "id", "string"),
        ("history", "category", "id", "string"),
        ("candidate", "tags", "bag", "string"),
        ("history", "tags", "bag", "string"),
        ("candidate", "price", "dense", "int"),
        ("history", "price", "dense", "int"),
        ("user", "age", "id", "int"),
        ("history", "behavior", "id", "string"),
    ]
    assert schema.find("candidate", "tags").width == 3
    assert schema.find("candidate", "price").transform == "log1p"
    assert schema.tasks == ("click",)


def test_given_row_maps_are_used():
    first = hand_made_dataset()
    raw = hand_made(item_ids=pa.array([104, 103, 102, 101, 900, 901, 902, 903, 904]))
    given = {"item": first.row_maps["item"], "behavior": HashedRows(50)}
    second = interactions.build("second", raw, row_maps=given)
    assert second.log.items["item"].tolist() == [
        *rows(first, "item", 104, 103, 102, 101),
        *[1] * 5,
    ]
    assert second.schema.table("behavior").rows == 50
    assert second.row_maps["category"].rows == first.row_maps["category"].rows


def test_items_leave_with_the_users_who_alone_touched_them():
    """Drawn as negatives they would be told by being unknown. Others may have no event."""
    raw = hand_made()
    others = [6 if user == 2 else item for user, item in zip(raw.user, raw.item, strict=True)]
    dataset = interactions.build("tail", dataclasses.replace(raw, item=np.array(others)))
    whole = hand_made_dataset()
    assert dataset.log.num_items == whole.log.num_items - 1 == len(ITEM_IDS) - 1
    kept = [i for i in range(len(ITEM_IDS)) if i != 6]
    assert dataset.log.items["category"].tolist() == whole.log.items["category"][kept].tolist()
    ids = lambda data: data.log.items["item"][data.log.item].tolist()
    assert ids(dataset) == ids(whole)


def test_a_catalogue_may_list_users_without_events():
    ages = Attribute(name="age", values=pa.array([25, 40, 60, 33, 77, 78]), dim=8)
    dataset = interactions.build("more users", hand_made(users=(ages,)))
    assert dataset.log.users["age"].tolist() == rows(dataset, "age", 25, 40, 33)
    assert rows(dataset, "age", 77) == [1]


def test_too_few_events():
    raw = hand_made()
    keep = np.flatnonzero(raw.user == 2)
    few = dataclasses.replace(raw, user=raw.user[keep], item=raw.item[keep], events=())
    with pytest.raises(DataError, match="tiny: every user has fewer than 3 events .2 events of 1"):
        interactions.build("tiny", dataclasses.replace(few, time=raw.time[keep]))


def small(users, items=None, **options):
    """A log of {user: items}, everybody's first event at time 0, the next at 1, ..."""
    user = np.repeat(np.arange(len(users)), [len(own) for own in users])
    item = np.concatenate([np.asarray(own) for own in users])
    time = np.concatenate([np.arange(len(own)) for own in users])
    size = items or int(item.max()) + 1
    ids = pa.array([f"i{k}" for k in range(size)])
    names = pa.array([f"u{k}" for k in range(len(users))])
    return Interactions(user=user, item=item, time=time, item_ids=ids, user_ids=names, **options)


FULL = "users left out (touched every item)"


def test_who_touched_every_item_is_left_out_and_named_by_their_own_id():
    dataset = interactions.build("full", small([[0, 1, 2, 3, 4], [1, 2, 3], [0, 3, 4]]))
    assert dataset.facts[FULL] == "u0"
    assert dataset.log.lengths().tolist() == [3, 3]
    assert dataset.facts["users"] == 2
    # An item that nobody touches can always be drawn.
    dataset = interactions.build("full", small([[0, 1, 2, 3, 4], [1, 2, 3], [0, 3, 4]], items=6))
    assert FULL not in dataset.facts and dataset.facts["users"] == 3
    # Without published ids the number has to do.
    raw = dataclasses.replace(small([[0, 1, 2, 3, 4], [1, 2, 3], [0, 3, 4]]), user_ids=None)
    assert interactions.build("full", raw).facts[FULL] == "0"


def test_who_has_all_that_the_others_leave_is_left_out_too():
    # Without u1, who has everything, nobody touches item 4 any more, and u0 has the rest.
    dataset = interactions.build(
        "full", small([[0, 1, 2, 3], [0, 1, 2, 3, 4], [1, 2, 3], [0, 3, 1]])
    )
    assert dataset.facts[FULL] == "u1, u0"
    assert dataset.log.lengths().tolist() == [3, 3] and dataset.log.num_items == 4


def test_many_who_have_everything_are_counted():
    users = [[0, 1, 2, 3]] * 7 + [[1, 2, 3], [0, 1, 2]]
    facts = interactions.build("full", small(users)).facts
    assert facts[FULL] == "u0, u1, u2, u3, u4 and 2 more"


def test_nobody_left():
    message = r"full: every user touched all items \(u0, u1\): nothing can be drawn to compare"
    with pytest.raises(DataError, match=message):
        interactions.build("full", small([[0, 1, 2], [2, 1, 0]]))


def test_training_targets_without_a_known_item_to_draw_are_left_out_and_counted():
    # Training knows 0 to 2, which is all that u0 has; 3 and 4 are left to compare u0's last with.
    dataset = interactions.build("stuck", small([[0, 1, 2, 0, 1], [0, 3, 4], [2, 4, 3], [1, 2, 3]]))
    fact = "training targets left out (their users touched all that training knows)"
    assert dataset.facts[fact] == 3
    assert dataset.train.user.tolist() == [1, 2, 3]
    assert dataset.test.user.tolist() == [0, 1, 2, 3]
    for epoch in range(3):
        for step in TrainingBatches(dataset, batch_size=8, history=4).epoch(epoch):
            assert step.batch["candidate_mask"].any()


def test_training_draws_only_what_it_knows_by_then():
    """Of the batches themselves: known rows, and items that had appeared."""
    random = np.random.default_rng(0)
    # New items arrive all the time, so that validation and test hold many that training never saw.
    time = np.sort(random.integers(0, 10**6, 4000))
    item = (time // 2500 + random.integers(0, 40, 4000)).astype(int)
    user = random.integers(0, 150, 4000)
    ids = pa.array(np.arange(item.max() + 1))
    raw = Interactions(
        user=user,
        item=item,
        time=time,
        item_ids=ids,
        items=(Attribute(name="number", values=pa.array(np.arange(len(ids)).astype(float))),),
        context=(Attribute(name="at", values=pa.array(time.astype(float))),),
    )
    dataset = interactions.build("cold", raw)
    appeared = dataset.appearances()
    unknown = dataset.log.items["item"] == 1
    np.testing.assert_array_equal(appeared == NEVER, unknown)
    assert unknown.sum() > 3
    # By then there is more than anybody has touched.
    most = dataset.log.lengths().max()
    moment, checked = np.sort(appeared)[most], 0
    options = dict(batch_size=64, history=4, negatives=3, point_in_time=True)
    for step in TrainingBatches(dataset, **options).epoch(0):
        batch = step.batch
        drawn = batch["candidate"]["number"].astype(int)
        negative = (batch["label"]["click"] == 0) & batch["candidate_mask"]
        assert not unknown[drawn[negative]].any()
        at = np.broadcast_to(batch["context"]["at"][:, None], drawn.shape)
        negative &= at >= moment
        assert (appeared[drawn] <= at)[negative].all()
        checked += negative.sum()
    assert checked > 1000


def with_clicks(rows, **options):
    """A log of (user, item, time, behavior) rows, and six items more."""
    user, item, time, behavior = (np.array(x) for x in zip(*rows, strict=True))
    return Interactions(
        user=user,
        item=item,
        time=time,
        item_ids=pa.array(np.arange(item.max() + 7)),
        events=(Attribute(name="behavior", values=pa.array(behavior.tolist())),),
        **options,
    )


REPEATED = [
    (0, 0, 1, "view"),
    (0, 1, 2, "view"),
    (0, 1, 2, "view"),  # a copy
    (0, 1, 2, "buy"),  # the same second and item, another behaviour
    (0, 2, 3, "view"),
    (0, 1, 9, "view"),  # later
    (1, 1, 2, "view"),  # somebody else's
    (1, 2, 5, "view"),
    (1, 3, 6, "view"),
    (0, 1, 2, "view"),  # another copy, elsewhere in the file
]


def test_rows_that_stand_twice_are_one_event():
    dataset = interactions.build("twice", with_clicks(REPEATED))
    assert dataset.facts["duplicate rows dropped"] == 2
    assert dataset.log.item.tolist() == [0, 1, 1, 2, 1, 1, 2, 3]
    buy, view = rows(dataset, "behavior", "buy", "view")
    assert dataset.log.event["behavior"][:5].tolist() == [view, view, buy, view, view]


def test_repeats_are_kept_if_asked_for():
    protocol = Protocol(duplicates="keep")
    dataset = interactions.build("twice", with_clicks(REPEATED), protocol=protocol)
    assert "duplicate rows dropped" not in dataset.facts
    assert dataset.log.item.tolist() == [0, 1, 1, 1, 1, 2, 1, 1, 2, 3]
    dataset.check()


def test_without_a_time_column_the_same_rows_of_a_user_are_copies_wherever_they_stand():
    raw = with_clicks(REPEATED, has_clock=False, has_time=False)
    raw = dataclasses.replace(raw, time=np.arange(len(raw.user)))
    dataset = interactions.build("twice", raw)
    assert dataset.facts["duplicate rows dropped"] == 3
    assert dataset.log.item.tolist() == [0, 1, 1, 2, 1, 2, 3]


@pytest.mark.parametrize(
    ("role", "values", "dropped"),
    [
        ("context", pa.array([*"abccabcabc"]), 1),
        ("context", pa.array([1.0, 0, 0.5, 2, 0, 0, 0, 0, 0, 0.5]), 1),
        ("events", pa.array([[1], [1], [1, 2], [3], [1], [1], [1], [1], [1], [2, 1]]), 0),
        ("changing_items", pa.array([None, None, None, *[1.0] * 6, None]), 2),
        ("changing_users", pa.array([None, "x", None, *["y"] * 6, None]), 1),
    ],
)
def test_copies_agree_in_every_column(role, values, dropped):
    raw = with_clicks(REPEATED)
    more = (*getattr(raw, role), Attribute(name="more", values=values))
    dataset = interactions.build("twice", dataclasses.replace(raw, **{role: more}))
    assert dataset.facts.get("duplicate rows dropped", 0) == dropped


@pytest.mark.parametrize(
    ("ratings", "dropped"),
    [([3] * 10, 2), ([3, 3, 4, *[3] * 7], 1), ([np.nan] * 10, 2)],
    ids=["same", "one differs", "missing"],
)
def test_copies_agree_in_their_rating(ratings, dropped):
    raw = with_clicks(REPEATED, rating=np.array(ratings, float))
    assert interactions.build("rated", raw).facts["duplicate rows dropped"] == dropped


def test_a_history_ends_before_its_own_item_in_the_same_second():
    rows_ = [
        (0, 0, 1, "view"),
        (0, 1, 2, "view"),
        (0, 2, 2, "view"),
        (0, 1, 2, "cart"),
        (0, 3, 3, "view"),
        (0, 1, 4, "view"),
        (1, 0, 1, "view"),
        (1, 4, 2, "view"),
        (1, 5, 3, "view"),
        (2, 6, 1, "view"),  # an item that training knows and the others do not touch
        (2, 4, 2, "view"),
        (2, 5, 3, "view"),
    ]
    dataset = interactions.build("funnel", with_clicks(rows_))
    # Events of user 0 in order: 0, 1, 2, 1, 3, 1. The second 1 is seen behind 0 alone; the last,
    # of a later second, behind all.
    assert dataset.train.cut.tolist() == [0, 1, 2, 1, 0, 0]
    assert dataset.train.candidate[:, 0].tolist() == [0, 1, 2, 1, 0, 6]
    assert dataset.test.cut.tolist() == [5, 2, 2]
    dataset.check()


def test_attributes_of_events_may_come_as_dictionaries():
    raw = hand_made()
    (behavior,) = raw.events
    # With a value that no event has, and one that stands there twice.
    text = behavior.values.to_pylist()
    listed = ["never", "buy", "click", "cart", "click"]
    index = [
        4 if i % 2 and value == "click" else listed.index(value) for i, value in enumerate(text)
    ]
    coded = pa.DictionaryArray.from_arrays(pa.array(index, pa.int8()), listed)
    events = (dataclasses.replace(behavior, values=coded),)
    dataset = interactions.build("coded", dataclasses.replace(raw, events=events))
    plain = hand_made_dataset()
    assert dataset.log.event["behavior"].tolist() == plain.log.event["behavior"].tolist()
    assert dataset.log.event["behavior"].dtype == np.int32
    assert dataset.schema == plain.schema
    assert rows(dataset, "behavior", "never") == [1]


def test_attributes_of_events_of_every_kind():
    # Two of the events are of user 2, who leaves; user 3 has the last four, newest first.
    raw = hand_made()
    missing = [None] * 12
    attributes = (
        Attribute(name="count", values=pa.array([*missing, 5, 6, 7, 8])),
        Attribute(name="weight", values=pa.array([*missing, 0.5, 1.5, 2.5, 3.5])),
        Attribute(name="words", values=pa.array([*missing, ["a"], None, ["a", "b"], ["b"]])),
    )
    dataset = interactions.build("kinds", dataclasses.replace(raw, events=attributes))
    event = dataset.log.event
    # Training sees the oldest two alone: 8 and 7, and a and b.
    seven, eight = rows(dataset, "count", 7, 8)
    assert sorted([seven, eight]) == [2, 3]
    assert event["count"].tolist() == [0] * 10 + [eight, seven, 1, 1]
    assert event["weight"].tolist() == [0] * 10 + [3.5, 2.5, 1.5, 0.5]
    a, b = rows(dataset, "words", "a", "b")
    assert sorted([a, b]) == [2, 3]
    assert event["words"].tolist() == [[0, 0]] * 10 + [[b, 0], [a, b], [0, 0], [a, 0]]
