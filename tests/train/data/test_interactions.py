import dataclasses

from logs import ITEM_IDS, hand_made, hand_made_dataset, random_dataset
import numpy as np
import pyarrow as pa
import pytest

from recjax.train.data import interactions
from recjax.train.data.errors import DataError
from recjax.train.data.interactions import Attribute
from recjax.zoo.features import HashedRows, signatures

PARTS = ("train", "validation", "test")


def rows(dataset, table, *values):
    return dataset.row_maps[table](signatures(table, list(values))).tolist()


def positives(requests):
    return requests.candidate[requests.label["click"] == 1]


def test_events_by_user_and_time_then_file_order():
    log = hand_made_dataset().log
    # Users 0, 1 and 3; user 0 met items 2 and 1 in the same second, 2 first in the file.
    assert log.offsets.tolist() == [0, 6, 10, 13]
    assert log.item.tolist() == [0, 3, 2, 1, 4, 5, 0, 3, 4, 5, 0, 2, 1]
    assert log.time.tolist() == [10, 15, 20, 20, 80_000, 90_000, 11, 30, 45, 50, 7, 8, 9]


def test_targets_of_every_part():
    dataset = hand_made_dataset()
    train, validation, test = (getattr(dataset, part) for part in PARTS)
    assert train.user.tolist() == [0, 0, 0, 0, 1, 1, 2]
    assert train.cut.tolist() == [0, 1, 2, 3, 0, 1, 0]
    assert train.candidate.tolist() == [[0], [3], [2], [1], [0], [3], [0]]
    assert train.time.tolist() == [10, 15, 20, 20, 11, 30, 7]
    assert train.label["click"].tolist() == [[1.0]] * 7
    assert dataset.samples_negatives
    assert validation.user.tolist() == test.user.tolist() == [0, 1, 2]
    assert validation.cut.tolist() == [4, 2, 1]
    assert positives(validation).tolist() == [4, 4, 2]
    assert validation.time.tolist() == [80_000, 45, 8]
    assert test.cut.tolist() == [5, 3, 2]
    assert positives(test).tolist() == [5, 5, 1]
    assert test.time.tolist() == [90_000, 50, 9]


def test_users_with_too_few_events_are_dropped_and_counted():
    dataset = hand_made_dataset()
    assert dataset.facts == {
        "users": 3,
        "items": 6,
        "events": 13,
        "users dropped (fewer than 3 events)": 1,
    }
    # The age of user 3, not of user 2.
    assert dataset.log.users["age"].tolist() == rows(dataset, "age", 25, 40, 33)


@pytest.mark.parametrize("newest", [1, 2, 20])
def test_max_train_per_user_keeps_the_newest(newest):
    cuts = {1: [3, 1, 0], 2: [2, 3, 0, 1, 0], 20: [0, 1, 2, 3, 0, 1, 0]}
    dataset = hand_made_dataset(max_train_per_user=newest)
    assert dataset.train.cut.tolist() == cuts[newest]
    # What is no target is still known: it stands in histories.
    assert rows(dataset, "item", *ITEM_IDS[:4]) != [1] * 4
    assert dataset.row_maps["item"].rows == 2 + 4


def test_max_train_per_user_must_be_positive():
    with pytest.raises(ValueError, match="max_train_per_user must be >= 1, got 0"):
        hand_made_dataset(max_train_per_user=0)


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
    once, again = random_dataset(), random_dataset(max_train_per_user=3)
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
    known = rows(dataset, "item", 101, 102, 103, 104)
    assert sorted(known) == [2, 3, 4, 5]
    assert rows(dataset, "item", 105, 106, 107, 108, 999) == [1] * 5
    assert dataset.log.items["item"].tolist() == [*known, 1, 1, 1, 1]
    # Categories of known items: a, b and none; "b" also names the unknown 106.
    a, b = rows(dataset, "category", "a", "b")
    assert sorted([a, b]) == [2, 3]
    assert rows(dataset, "category", "c", "d") == [1, 1]
    assert dataset.log.items["category"].tolist() == [a, b, a, 0, 1, b, 1, a]
    # "cart" was only ever a validation target.
    click, buy = rows(dataset, "behavior", "click", "buy")
    assert rows(dataset, "behavior", "cart") == [1]
    assert dataset.log.event["behavior"].tolist() == (
        [click, click, buy, click, 1, buy, click, click, 1, click, click, click, click]
    )
    assert rows(dataset, "age", 60) == [1]  # the dropped user


def test_bags_and_numbers():
    dataset = hand_made_dataset()
    x, y = rows(dataset, "tags", "x", "y")
    assert sorted([x, y]) == [2, 3] and rows(dataset, "tags", "z", "w") == [1, 1]
    assert dataset.log.items["tags"].tolist() == (
        [[x, 0, 0], [x, y, 0], [0, 0, 0], [0, 0, 0], [1, x, y], [x, 0, 0], [1, 0, 0], [y, 0, 0]]
    )
    price = dataset.log.items["price"]
    assert price.dtype == np.float32
    expected = np.log1p([1.25, 3.1, 0, 0.1, 8.0, 16777217.3, 0, 2.0])
    np.testing.assert_allclose(price, expected, rtol=3e-7)


def test_the_schema():
    schema = hand_made_dataset().schema
    assert {table.name: (table.rows, table.dim) for table in schema.tables} == {
        "item": (6, 16),
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
    raw = hand_made(item_ids=pa.array([104, 103, 102, 101, 900, 901, 902, 903]))
    given = {"item": first.row_maps["item"], "behavior": HashedRows(50)}
    second = interactions.build("second", raw, row_maps=given)
    assert second.log.items["item"].tolist() == [
        *rows(first, "item", 104, 103, 102, 101),
        1,
        1,
        1,
        1,
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


def test_no_negative_left():
    raw = hand_made(item_ids=pa.array(ITEM_IDS[:6]), items=())
    with pytest.raises(DataError, match="full: user 0 of the log touched all 6 items"):
        interactions.build("full", raw)


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
    # Two of the events are of user 2, who leaves; user 3 has the last three, newest first.
    raw = hand_made()
    missing = [None] * 12
    attributes = (
        Attribute(name="count", values=pa.array([*missing, 5, 6, 7])),
        Attribute(name="weight", values=pa.array([*missing, 0.5, 1.5, 2.5])),
        Attribute(name="words", values=pa.array([*missing, ["a"], None, ["a", "b"]])),
    )
    dataset = interactions.build("kinds", dataclasses.replace(raw, events=attributes))
    event = dataset.log.event
    # Training sees the oldest alone: 7, and a and b.
    assert event["count"].tolist() == [0] * 10 + [2, 1, 1]
    assert event["weight"].tolist() == [0] * 10 + [2.5, 1.5, 0.5]
    a, b = rows(dataset, "words", "a", "b")
    assert sorted([a, b]) == [2, 3]
    assert event["words"].tolist() == [[0, 0]] * 10 + [[a, b], [0, 0], [a, 0]]
