import dataclasses

import numpy as np
import pytest

from logs import hand_made_dataset, random_dataset
from recjax.train.data.batches.assembly import Hide, pulled_batch, whole_batch
from recjax.train.data.batches.pipeline import TrainingBatches, evaluation_batches, fitting_batch
from recjax.train.data.batches.requests import fill_up, with_negatives
from recjax.train.data.batches.windows import bucket
from recjax.zoo.features import Field, Table

DATASET = random_dataset()
ROLES = ("user", "context", "history", "candidate")


def batches_of(dataset=DATASET, **options):
    defaults = dict(batch_size=40, history=6, negatives=3, seed=1)
    return TrainingBatches(dataset, **defaults | options)


def unpulled(step, schema=DATASET.schema):
    """The batch with the table's own row ids again."""
    batch = dict(step.batch)
    sizes = {name: len(rows) for name, rows in step.pulled.rows.items()}
    assert {name: x.shape for name, x in batch.pop("pulled").items()} == {
        name: (size, 0) for name, size in sizes.items()
    }
    for role in ROLES:
        batch[role] = {
            field.name: batch[role][field.name]
            if field.kind == "dense"
            else step.pulled.rows[field.table_name][batch[role][field.name]]
            for field in schema.role(role)
        }
    return batch


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, dict):
            assert_same(actual[name], value)
        else:
            np.testing.assert_array_equal(actual[name], value, err_msg=name)
            assert actual[name].dtype == value.dtype


def naive_batch(dataset, requests, history, length):
    """The batch, value by value; every field is an item's, an event's or a user's."""
    log, size, width = dataset.log, len(requests), requests.candidate.shape[1]
    batch = {role: {} for role in ROLES}
    mask = np.zeros((size, length), bool)
    age = np.zeros((size, length), np.int32)
    for field in dataset.schema.fields:
        columns = log.users if field.role == "user" else log.items | log.event
        column = columns[field.name]
        shape = {"user": (size,), "history": (size, length), "candidate": (size, width)}[field.role]
        value = np.zeros(shape + column.shape[1:], column.dtype)
        for r in range(size):
            start = log.offsets[requests.user[r]]
            past = range(start, start + requests.cut[r])[-history:]
            if field.role == "user":
                value[r] = column[requests.user[r]]
            elif field.role == "candidate":
                for c, item in enumerate(requests.candidate[r]):
                    if item >= 0:
                        value[r, c] = column[item]
            for place, event in enumerate(past if field.role == "history" else []):
                value[r, place] = column[event if field.name in log.event else log.item[event]]
                mask[r, place] = True
                age[r, place] = requests.time[r] - log.time[event]
        batch[field.role][field.name] = value
    return batch | {
        "history_mask": mask,
        "history_age": age,
        "candidate_mask": requests.candidate >= 0,
        "label": requests.label,
    }


@pytest.mark.parametrize("dataset", [DATASET, hand_made_dataset()], ids=["random", "hand-made"])
@pytest.mark.parametrize("history", [1, 2, 5])
def test_whole_batch_equals_a_naive_loop(dataset, history):
    for requests in (dataset.train, dataset.test):
        actual = whole_batch(dataset.schema, dataset.log, requests, history=history)
        assert_same(actual, naive_batch(dataset, requests, history, history))


def test_windows_of_the_hand_made_log():
    dataset = hand_made_dataset()
    batch = whole_batch(dataset.schema, dataset.log, dataset.test, history=3)
    item = dataset.log.items["item"]
    # User 0: items 2, 1, 4 of 0, 3, 2, 1, 4. User 1: all of 0, 3, 4. User 3: 8, 0, 2.
    assert batch["history"]["item"].tolist() == [
        [item[2], item[1], item[4]],
        [item[0], item[3], item[4]],
        [item[8], item[0], item[2]],
    ]
    assert batch["history_mask"].tolist() == [[True] * 3] * 3
    assert batch["history_age"].tolist() == [[89_980, 89_980, 10_000], [39, 20, 5], [3, 2, 1]]


def test_bucket_lengths():
    lengths = {longest: bucket(longest, 50) for longest in (0, 7, 8, 13, 14, 25, 26, 50)}
    assert lengths == {0: 7, 7: 7, 8: 13, 13: 13, 14: 25, 25: 25, 26: 50, 50: 50}
    assert [bucket(longest, 64) for longest in (0, 8, 9, 16, 17, 32, 33)] == [
        8,
        8,
        16,
        16,
        32,
        32,
        64,
    ]
    assert [bucket(0, history) for history in (1, 8, 9)] == [1, 8, 5]


def test_windows_are_cut_to_a_bucket():
    dataset = DATASET
    for newest, length in ((3, 5), (5, 5), (6, 10), (10, 10), (11, 20)):
        some = dataset.train.take(np.flatnonzero(dataset.train.cut <= newest))
        batch = whole_batch(dataset.schema, dataset.log, some, history=20)
        assert batch["history_mask"].shape[1] == length
        assert_same(batch, naive_batch(dataset, some, 20, length))


def test_pulled_batch_renamed_is_the_whole_batch():
    for requests in (DATASET.train, DATASET.test):
        step = pulled_batch(DATASET.schema, DATASET.log, requests, history=6)
        expected = whole_batch(DATASET.schema, DATASET.log, requests, history=6)
        assert_same(unpulled(step), expected)


def test_touched_are_the_rows_of_real_slots():
    requests = fill_up(DATASET.train.take(slice(5, 9)), 8)
    step = pulled_batch(DATASET.schema, DATASET.log, requests, history=6)
    batch = whole_batch(DATASET.schema, DATASET.log, requests, history=6)
    for table in DATASET.schema.tables:
        named = [
            batch[field.role][field.name].ravel()
            for field in DATASET.schema.fields
            if field.kind != "dense" and field.table_name == table.name
        ]
        expected = np.setdiff1d(np.concatenate(named), [0])
        rows, touched = step.pulled.rows[table.name], step.pulled.touched[table.name]
        assert rows[touched].tolist() == expected.tolist()
        assert rows[:2].tolist() == [0, 1]


def test_unseen_row_is_touched_only_where_named():
    dataset = hand_made_dataset()
    for part, unseen in (("train", False), ("test", True)):
        step = pulled_batch(dataset.schema, dataset.log, getattr(dataset, part), history=1)
        assert step.pulled.touched["item"][1] == unseen


def test_every_request_once_per_epoch():
    batches = batches_of()
    train, steps = DATASET.train, list(batches.epoch(0))
    assert len(steps) == len(batches) == -(-len(train) // 10)
    assert all(step.batch["candidate_mask"].shape == (10, 4) for step in steps)
    seen = []
    for step in steps:
        batch = unpulled(step)
        real = batch["candidate_mask"].all(axis=1)
        assert np.array_equal(batch["candidate_mask"].any(axis=1), real)
        assert not batch["history_mask"][~real].any()
        label = batch["label"]["click"]
        assert np.all(label.sum(axis=1) == 1)
        positive = np.argmax(label, axis=1)
        item = batch["candidate"]["item"][np.arange(10), positive]
        price = batch["candidate"]["price"][np.arange(10), positive]
        newest = batch["history_mask"].sum(axis=1)
        seen += list(zip(item[real], price[real], newest[real], strict=True))
    own = train.candidate[:, 0]
    columns = DATASET.log.items
    expected = zip(
        columns["item"][own], columns["price"][own], np.minimum(train.cut, 6), strict=True
    )
    assert sorted(seen) == sorted(expected)
    assert len(train) % 10 != 0  # so the last batch was filled up


def test_epochs_resume_anywhere():
    batches = batches_of(unseen_share=0.2)
    steps = list(batches.epoch(3))
    for start in (0, 1, len(steps) - 1, len(steps)):
        tail = list(batches_of(unseen_share=0.2).epoch(3, start))
        assert len(tail) == len(steps) - start
        for actual, expected in zip(tail, steps[start:], strict=True):
            assert_same(actual.batch, expected.batch)
            assert_same(actual.pulled._asdict(), expected.pulled._asdict())


def items_of(batches, epoch):
    return np.concatenate([unpulled(step)["candidate"]["item"] for step in batches.epoch(epoch)])


def test_seeds_and_epochs_differ():
    first = items_of(batches_of(), 0)
    assert np.array_equal(first, items_of(batches_of(), 0))
    assert not np.array_equal(first, items_of(batches_of(), 1))
    assert not np.array_equal(first, items_of(batches_of(seed=2), 0))


def prices_of(user, epoch):
    """Prices of a user's negatives: unlike rows, they identify an item that training never saw."""
    prices = []
    age = DATASET.log.users["age"][user]
    for step in batches_of().epoch(epoch):
        batch = unpulled(step)
        mine = (batch["user"]["age"] == age) & batch["candidate_mask"].all(axis=1)
        prices.append(batch["candidate"]["price"][mine][batch["label"]["click"][mine] == 0])
    return np.concatenate(prices)


def test_negatives_are_untouched_and_redrawn():
    ages = DATASET.log.users["age"]
    user = next(u for u in range(40) if (ages == ages[u]).sum() == 1)
    start, end = DATASET.log.offsets[user : user + 2]
    touched = DATASET.log.items["price"][DATASET.log.item[start:end]]
    once, again = prices_of(user, 0), prices_of(user, 1)
    assert len(once) == len(again) == 3 * (DATASET.train.user == user).sum()
    assert not np.isin(once, touched).any() and not np.isin(again, touched).any()
    assert sorted(once) != sorted(again)


def test_the_positive_weighs_as_much_as_its_negatives():
    for step in batches_of(negatives=4, batch_size=50).epoch(0):
        label, weight = step.batch["label"]["click"], step.batch["weight"]["click"]
        assert np.array_equal(weight, np.where(label == 1, 4.0, 1.0))
        assert weight.dtype == label.dtype == np.float32


def test_candidates_are_shuffled():
    dataset = random_dataset(users=2000)
    requests = dataset.train.take(slice(0, 8000))
    negative = np.full((8000, 3), -1, np.int32)
    mixed = with_negatives(requests, negative, 1, 2, np.arange(8000))
    assert np.array_equal(mixed.candidate.max(axis=1), requests.candidate[:, 0])
    assert np.array_equal(mixed.candidate >= 0, mixed.label["click"] == 1)
    # 2000 in each of 4 places; the standard deviation is 39.
    assert np.abs(mixed.label["click"].sum(axis=0) - 2000).max() < 5 * 39


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_unseen_share_hides_distinct_items(share):
    dataset = random_dataset(items=3000, users=400)
    schema, log, requests = dataset.schema, dataset.log, dataset.train
    hide = Hide(share, (1, 2, 3))
    shown = whole_batch(schema, log, requests, history=6)
    hidden = unpulled(pulled_batch(schema, log, requests, history=6, hide=hide), schema)
    for name in ("item", "category"):
        for role in ("history", "candidate"):
            before, after = shown[role][name], hidden[role][name]
            changed = before != after
            assert np.all(after[changed] == 1)
            assert np.all(before[changed] > 1)
    rows = np.concatenate([shown[role]["item"].ravel() for role in ("history", "candidate")])
    now = np.concatenate([hidden[role]["item"].ravel() for role in ("history", "candidate")])
    known = np.unique(rows[rows > 1])
    gone = np.unique(rows[(rows > 1) & (now == 1)])
    # An item is hidden everywhere in the batch or nowhere.
    assert np.intersect1d(gone, now).tolist() == []
    deviation = (share * (1 - share) / len(known)) ** 0.5
    assert abs(len(gone) / len(known) - share) < 5 * deviation
    # Other tables are drawn by themselves, and users and events never.
    gone_category = shown["candidate"]["category"] != hidden["candidate"]["category"]
    gone_item = shown["candidate"]["item"] != hidden["candidate"]["item"]
    assert gone_category.any() and (gone_category != gone_item).any()
    assert_same(hidden["user"], shown["user"])
    assert_same({"b": hidden["history"]["behavior"]}, {"b": shown["history"]["behavior"]})


def test_nothing_is_hidden_by_default():
    requests = DATASET.test
    step = pulled_batch(DATASET.schema, DATASET.log, requests, history=6, hide=Hide())
    assert_same(unpulled(step), whole_batch(DATASET.schema, DATASET.log, requests, history=6))


@pytest.mark.parametrize(("multiple_of", "requests"), [(1, 10), (4, 12), (5, 10), (16, 16)])
def test_requests_per_batch(multiple_of, requests):
    batches = batches_of(multiple_of=multiple_of)
    assert batches.requests_per_batch == requests
    assert next(batches.epoch(0)).batch["candidate_mask"].shape == (requests, 4)


def test_without_a_clock_there_are_no_ages():
    dataset = random_dataset(has_clock=False)
    batch = whole_batch(dataset.schema, dataset.log, dataset.test, history=6)
    assert "history_age" not in batch
    assert "history_age" not in next(batches_of(dataset).epoch(0)).batch


def test_ages_fit_in_32_bits():
    requests = dataclasses.replace(DATASET.test, time=DATASET.test.time + 2**40)
    batch = whole_batch(DATASET.schema, DATASET.log, requests, history=6)
    assert np.all(batch["history_age"][batch["history_mask"]] == 2**31 - 1)
    assert np.all(batch["history_age"][~batch["history_mask"]] == 0)


def test_shown_and_context_columns():
    schema = dataclasses.replace(
        DATASET.schema,
        tables=(*DATASET.schema.tables, Table(name="position", rows=9, dim=2)),
        fields=(
            *DATASET.schema.fields,
            Field(name="position", role="candidate"),
            Field(name="hour", role="context", kind="dense"),
        ),
    )
    test = DATASET.test.take(slice(0, 2))
    requests = dataclasses.replace(
        test,
        candidate=np.where([[True, True], [True, False]], test.candidate, np.int32(-1)),
        # `price` hides the items' own.
        shown={
            "position": np.array([[2, 3], [4, 5]], np.int32),
            "price": np.array([[0.5, 0.25], [0.75, 9.0]], np.float32),
        },
        context={"hour": np.array([3.0, 4.0], np.float32)},
    )
    step = pulled_batch(schema, DATASET.log, requests, history=6)
    for batch in (
        whole_batch(schema, DATASET.log, requests, history=6),
        unpulled(step, schema),
    ):
        assert batch["candidate"]["position"].tolist() == [[2, 3], [4, 0]]
        assert batch["candidate"]["price"].tolist() == [[0.5, 0.25], [0.75, 0.0]]
        assert batch["context"]["hour"].tolist() == [3.0, 4.0]
        assert np.any(batch["history"]["price"] != 0)


def test_evaluation_batches_in_order():
    batches = list(
        evaluation_batches(DATASET.schema, DATASET.log, DATASET.test, batch_size=14, history=6)
    )
    assert [batch["candidate_mask"].shape for batch in batches] == [(7, 2)] * 6
    assert sum(batch["candidate_mask"].sum() for batch in batches) == 80
    whole = whole_batch(DATASET.schema, DATASET.log, DATASET.test, history=6)
    item = np.concatenate([batch["candidate"]["item"] for batch in batches])
    np.testing.assert_array_equal(item[:40], whole["candidate"]["item"])
    assert not batches[-1]["candidate_mask"][5:].any()
    assert not batches[-1]["history_mask"][5:].any()


def test_a_short_log_comes_in_small_batches():
    sizes = [
        fitting_batch(n) for n in (1, 524_287, 524_288, 1_048_576, 2_097_151, 2_097_152, 10**9)
    ]
    assert sizes == [256, 256, 512, 1024, 1024, 2048, 2048]
    assert batches_of(batch_size=None).requests_per_batch == 256 // 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(batch_size=0), "batch_size must be >= 1, got 0"),
        (dict(history=0), "history must be >= 1, got 0"),
        (dict(negatives=0), "negatives must be >= 1 for random, got 0"),
        (dict(unseen_share=1.0), "unseen_share must be in .0, 1., got 1.0"),
        (dict(unseen_share=-0.1), "unseen_share must be in"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        batches_of(**options)
