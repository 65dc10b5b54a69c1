import dataclasses

import jax
import numpy as np
import pyarrow as pa
import pytest

from logs import AGES, CATEGORIES, EVENTS, ITEM_IDS, ORDERED, PRICES, TAGS, hand_made_dataset
from recjax.train.data.batches.assembly import whole_batch
from recjax.zoo.features import (
    Field,
    HashedRows,
    Schema,
    Table,
    encode,
    record_type,
    signatures,
)

ITEMS = Field(name="item", role="candidate"), Field(name="item", role="history")
SCHEMA = Schema(
    tables=tuple(Table(name=name, rows=9, dim=2) for name in ("item", "city", "tags")),
    fields=(
        *ITEMS,
        Field(name="city", role="user", value="string"),
        Field(name="hour", role="context", kind="dense", transform="log1p"),
        Field(name="tags", role="candidate", kind="bag", width=2, value="string"),
        Field(name="vector", role="history", kind="dense", width=2),
    ),
)


class InOrder:
    """A row map that gives `values` the rows 2, 3, ..."""

    def __init__(self, table, values):
        self._row = {value: 2 + i for i, value in enumerate(signatures(table, values).tolist())}
        self.rows = 2 + len(values)

    def __call__(self, signatures):
        return np.array([self._row.get(value, 1) for value in signatures.tolist()], np.int32)


ROW_MAPS = {
    "item": InOrder("item", [101, 102, 103, 104]),
    "city": InOrder("city", ["Rome", "Oslo"]),
    "tags": InOrder("tags", ["x", "y", "z"]),
}
event = lambda item, time, vector: {"item": item, "time": time, "vector": vector}
RECORDS = [
    {
        "context": {"time": 1000, "hour": 1.0},
        "user": {
            "city": "Oslo",
            "history": [
                event(104, 700, [1.0, 2.0]),
                event(101, 800, [3.0, 4.0]),
                event(999, 900, [5.0, 6.0]),
            ],
        },
        "items": [{"item": 103, "tags": ["z", "new", "x"]}],
    },
    {
        "context": {"time": 2000, "hour": 3.0},
        "user": {"city": None, "history": []},
        "items": [
            {"item": 101, "tags": []},
            {"item": 102, "tags": ["y"]},
            {"item": 888, "tags": None},
        ],
    },
    {
        "context": {"time": 3000},
        "user": {"history": [event(None, 2999, None), event(102, None, [7.0, None])]},
        "items": None,
    },
    {
        "context": {"time": 50, "hour": float("nan")},
        "user": {"city": "Bonn", "history": [event(103, 60, [8.0, 9.0])]},
        "items": [{"item": None}, {"tags": ["x", None]}],
    },
]
LOG2, LOG4 = np.log(np.float32([2, 4]))
FOREVER = 2**31 - 1
EXPECTED = {
    "user": {"city": [3, 0, 0, 1]},
    "context": {"hour": [LOG2, LOG4, 0, 0]},
    "history": {
        "item": [[2, 1], [0, 0], [0, 3], [4, 0]],
        "vector": [
            [[3, 4], [5, 6]],
            [[0, 0], [0, 0]],
            [[0, 0], [7, 0]],
            [[8, 9], [0, 0]],
        ],
    },
    "candidate": {
        "item": [[4, 0, 0], [2, 3, 1], [0, 0, 0], [0, 0, 0]],
        "tags": [
            [[4, 1], [0, 0], [0, 0]],
            [[0, 0], [3, 0], [0, 0]],
            [[0, 0], [0, 0], [0, 0]],
            [[0, 0], [2, 0], [0, 0]],
        ],
    },
    "history_mask": [[True, True], [False, False], [True, True], [True, False]],
    # An event that has no time is as old as can be; one from the future is new.
    "history_age": [[200, 100], [0, 0], [1, 3000], [0, 0]],
    "candidate_mask": [[True, False, False], [True] * 3, [False] * 3, [True, True, False]],
}
DTYPES = {"vector": np.float32, "hour": np.float32, "history_mask": bool, "candidate_mask": bool}


def assert_equal(actual, expected):
    leaves = lambda tree: {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(
            tree, is_leaf=lambda x: isinstance(x, list)
        )
    }
    actual, expected = leaves(actual), leaves(expected)
    assert actual.keys() == expected.keys()
    for path, value in expected.items():
        name = path.split("'")[-2]
        assert actual[path].dtype == DTYPES.get(name, np.int32), path
        np.testing.assert_allclose(actual[path], value, rtol=1e-6, err_msg=path)


def tables():
    """The records in every form that Arrow may deliver them in."""
    whole = pa.Table.from_pylist(RECORDS, schema=record_type(SCHEMA))
    more = pa.concat_tables([whole.slice(2), whole, whole.slice(1)])
    plain = pa.Table.from_pylist(RECORDS)
    lists = plain.column("user").combine_chunks().field("history")
    user = pa.StructArray.from_arrays(
        [
            plain.column("user").combine_chunks().field("city").dictionary_encode(),
            lists.cast(pa.large_list(lists.type.value_type)),
        ],
        names=["city", "history"],
    )
    return {
        "one chunk": whole,
        "a slice": more.combine_chunks().slice(1, 6).slice(1, 4),
        "chunks": pa.concat_tables([whole.slice(0, 1), whole.slice(1, 2), whole.slice(3)]),
        "other types": plain.set_column(plain.column_names.index("user"), "user", user),
    }


@pytest.mark.parametrize("form", ["dicts", *tables()])
def test_batch_equals_the_one_by_hand(form):
    records = RECORDS if form == "dicts" else tables()[form]
    assert_equal(encode(records, SCHEMA, ROW_MAPS, history=2), EXPECTED)


def test_history_keeps_the_newest():
    for history, items in ((1, [[1]]), (2, [[2, 1]]), (3, [[5, 2, 1]]), (9, [[5, 2, 1]])):
        batch = encode(RECORDS[:1], SCHEMA, ROW_MAPS, history=history)
        assert batch["history"]["item"].tolist() == items
    with pytest.raises(ValueError, match="history must be >= 1, got 0"):
        encode(RECORDS, SCHEMA, ROW_MAPS, history=0)


def test_no_request_and_no_event():
    assert encode([], SCHEMA, ROW_MAPS, history=5)["candidate"]["tags"].shape == (0, 1, 2)
    empty = [{"context": {"time": 1}, "user": {"history": []}, "items": []}] * 2
    schema = dataclasses.replace(SCHEMA, fields=ITEMS)
    # Arrow infers "null" for what is always absent.
    for records in (empty, pa.Table.from_pylist(empty)):
        batch = encode(records, schema, ROW_MAPS, history=5)
        assert batch["history"]["item"].tolist() == [[0], [0]]
        assert batch["candidate_mask"].tolist() == [[False], [False]]


def one(schema, request, rows=None):
    row_maps = rows or {table.name: HashedRows(100) for table in schema.tables}
    return encode(pa.Table.from_pylist([request]), schema, row_maps, history=5)


def simple(value="int"):
    fields = tuple(dataclasses.replace(field, value=value) for field in ITEMS)
    return Schema(tables=(Table(name="item", rows=100, dim=2),), fields=fields)


def request(item, time=5):
    past = [{"item": item, "time": time}]
    return {"context": {"time": time}, "user": {"history": past}, "items": [{"item": item}]}


@pytest.mark.parametrize("value", ["int", "string"])
def test_a_file_of_numbers_and_a_service_of_texts_agree(value):
    (batch, other) = (one(simple(value), request(item)) for item in (7, "7"))
    assert batch["candidate"]["item"] == other["candidate"]["item"] > 1
    assert batch["history"]["item"] == other["history"]["item"] == batch["candidate"]["item"]


def test_two_fields_may_read_one_raw_value():
    coarse = Field(name="coarse", role="candidate", raw="item")
    schema = Schema(
        tables=(Table(name="item", rows=1000, dim=2), Table(name="coarse", rows=5, dim=2)),
        fields=(*ITEMS, coarse),
    )
    rows = {"item": HashedRows(1000), "coarse": HashedRows(5)}
    batch = encode([request(7)], schema, rows, history=5)
    assert batch["candidate"]["item"] == rows["item"](signatures("item", [7]))
    assert batch["candidate"]["coarse"] == rows["coarse"](signatures("coarse", [7]))


def test_times_of_other_types():
    seconds = np.array([1_700_000_000], "datetime64[s]").item()
    moment = one(simple(), request(7, time=seconds))
    assert moment["history_age"].tolist() == [[0]]
    early = pa.Table.from_pylist([request(7, time=seconds)])
    context = pa.array([{"time": 1_700_000_060}])
    later = early.set_column(early.column_names.index("context"), "context", context)
    batch = encode(later, simple(), {"item": HashedRows(100)}, history=5)
    assert batch["history_age"].tolist() == [[60]]


def test_numbers_may_be_large_integers():
    schema = Schema(tables=(), fields=(Field(name="views", role="user", kind="dense"),))
    record = {"context": {"time": 0}, "user": {"views": 2**24 + 1, "history": []}, "items": []}
    for records in ([record], pa.Table.from_pylist([record])):
        views = encode(records, schema, {}, history=5)["user"]["views"]
        assert views.dtype == np.float32 and views.tolist() == [2.0**24]


def test_the_precision_of_a_raw_number_does_not_matter():
    price = Field(name="price", role="user", kind="dense", transform="log1p")
    schema = Schema(tables=(), fields=(price,))
    values = np.random.default_rng(0).normal(size=1000)
    batches = []
    for kind in (pa.float32(), pa.float64()):
        user = pa.array([{"price": value, "history": []} for value in values])
        user = pa.StructArray.from_arrays(
            [user.field("price").cast(kind), user.field("history")], ["price", "history"]
        )
        context, items = pa.array([{"time": 0}] * 1000), pa.array([[]] * 1000)
        records = pa.table({"context": context, "user": user, "items": items})
        batches.append(encode(records, schema, {}, history=5)["user"]["price"])
    np.testing.assert_array_equal(*batches)


REFUSED = {
    "a fractional id": (request(7.5), "candidate.item|history.item"),
    "a word for a number": (request("seven"), "cannot be read as id"),
    "no time": ({**request(7), "context": {"now": 3}}, "lacks context.time"),
    "a word for a time": (request(7, time="noon"), "cannot be read as whole seconds"),
    "no history": ({**request(7), "user": {"age": 3}}, "lacks user.history"),
    "no items": ({"context": {"time": 3}, "user": {"history": []}}, "one column 'items'"),
    "another field": ({**request(7), "items": [{"id": 7}]}, "lacks candidate.item"),
    "items of numbers": ({**request(7), "items": [7]}, "candidate must hold structs"),
    "items no list": ({**request(7), "items": {"item": 7}}, "items must be a list"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_named(case):
    record, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        one(simple(), record)


@pytest.mark.parametrize(
    "records",
    [[request("seven")], [request(2**70)], [7], [{**request(7), "items": 7}]],
    ids=["text", "huge", "no dict", "no list"],
)
def test_dicts_that_do_not_fit_are_refused(records):
    with pytest.raises(
        ValueError,
        match="A request does not fit the schema|A request record must be a dict, got int|"
        "user.history.item must be a whole number, as in training, got 'seven'.",
    ):
        encode(records, simple(), {"item": HashedRows(100)}, history=5)


def with_key(level, key):
    """A good request with one more key at a level."""
    record = request(7)
    places = {
        "": record,
        "context": record["context"],
        "user": record["user"],
        "user.history": record["user"]["history"][0],
        "items": record["items"][0],
    }
    places[level][key] = 3
    return record


@pytest.mark.parametrize("form", [list, pa.Table.from_pylist])
@pytest.mark.parametrize(
    "level, key, meant",
    [
        ("", "itmes", "nearest: 'items'"),
        ("context", "timestamp", "nearest: 'time'"),
        ("context", "weekday", "known: 'time'"),
        ("context", "tim", "nearest: 'time'"),
        ("user", "histroy", "nearest: 'history'"),
        ("user.history", "itemm", "nearest: 'item'"),
        ("items", "Item", "nearest: 'item'"),
    ],
)
def test_unknown_keys_are_refused_unless_asked_for(form, level, key, meant):
    rows = {"item": HashedRows(100)}
    # In the last of the dicts; Arrow takes its columns from the first.
    records = [request(7), with_key(level, key)]
    records = records if form is list else form(records[::-1])
    name = f"{level}.{key}" if level else key
    with pytest.raises(ValueError, match=f"keys that the schema lacks: '{name}' .{meant}"):
        encode(records, simple(), rows, history=5)
    batch = encode(records, simple(), rows, history=5, unknown="ignore")
    expected = encode([request(7), request(7)], simple(), rows, history=5)
    jax.tree.map(np.testing.assert_array_equal, batch, expected)
    with pytest.raises(ValueError, match="unknown must be 'error' or 'ignore', got 'warn'"):
        encode(records, simple(), rows, history=5, unknown="warn")


def test_a_raw_name_is_told_from_the_batchs():
    schema = dataclasses.replace(
        simple(), fields=tuple(dataclasses.replace(field, raw="item_id") for field in ITEMS)
    )
    record = {"context": {"time": 5}, "user": {"history": []}, "items": [{"item": 7}]}
    with pytest.raises(ValueError, match="'items.item' .nearest: 'item_id'"):
        encode([record], schema, {"item": HashedRows(100)}, history=5)


def test_many_unknown_keys_are_counted():
    record = request(7)
    record["items"][0] |= {f"field {i}": i for i in range(9)}
    with pytest.raises(ValueError, match="'items.field 4' .*and 4 more;"):
        encode([record], simple(), {"item": HashedRows(100)}, history=5)


@pytest.mark.parametrize(
    "records",
    [
        [],
        pa.Table.from_pylist([]),
        pa.Table.from_pylist([], schema=record_type(simple())),
        pa.Table.from_batches([], schema=record_type(simple())),
        pa.Table.from_pylist([request(7)]).slice(0, 0),
    ],
    ids=["dicts", "no columns", "no rows", "no chunks", "sliced"],
)
def test_no_records_are_a_batch_of_none(records):
    batch = encode(records, simple(), {"item": HashedRows(100)}, history=5)
    assert batch["candidate"]["item"].shape == batch["candidate_mask"].shape == (0, 1)
    assert batch["history"]["item"].shape == batch["history_age"].shape == (0, 1)


@pytest.mark.parametrize("items", [[], None])
def test_no_candidates_are_a_mask_of_none(items):
    requests = [{**request(7), "items": items}, request(8)]
    for records in (requests, pa.Table.from_pylist(requests)):
        batch = encode(records, simple(), {"item": HashedRows(100)}, history=5)
        assert batch["candidate_mask"].tolist() == [[False], [True]]
        assert batch["candidate"]["item"][0].tolist() == [0]


def test_a_candidate_without_an_id_is_real():
    """Its other fields speak for it; its id reads the padding row, which is all zeros."""
    for item in ({"item": None}, {}, None):
        batch = encode(
            [{**request(7), "items": [item]}], simple(), {"item": HashedRows(100)}, history=5
        )
        assert batch["candidate_mask"].tolist() == [[True]]
        assert batch["candidate"]["item"].tolist() == [[0]]


def logged_requests(users, targets):
    """What a service would have logged for `targets` (event position, shown items) of each user."""
    times = {(user, item): time for user, item, time, _ in EVENTS}
    behaviors = {(user, item): behavior for user, item, _, behavior in EVENTS}

    def shown(item):
        if item < 0:
            return {}
        raw = {"item": ITEM_IDS[item], "category": CATEGORIES[item]}
        return raw | {"tags": TAGS[item], "price": PRICES[item]}

    def past(user, item):
        key = (user, item)
        return shown(item) | {"time": times[key], "behavior": behaviors[key]}

    return [
        {
            "context": {"time": times[user, ORDERED[user][position]]},
            "user": {
                "age": AGES[user],
                "history": [past(user, item) for item in ORDERED[user][:position]],
            },
            "items": [shown(item) for item in items],
        }
        for user, (position, items) in zip(users, targets, strict=True)
    ]


@pytest.mark.parametrize("part", ["train", "validation", "test"])
@pytest.mark.parametrize("history", [2, 3])
def test_training_and_serving_see_the_same_batch(part, history):
    dataset = hand_made_dataset()
    requests = getattr(dataset, part)
    expected = whole_batch(dataset.schema, dataset.log, requests, history=history)
    del expected["label"]
    published = np.array(sorted(ORDERED))[requests.user]
    targets = list(zip(requests.cut.tolist(), requests.candidate.tolist(), strict=True))
    records = logged_requests(published.tolist(), targets)
    arrow = pa.Table.from_pylist(records, schema=record_type(dataset.schema))
    for form in (records, tuple(records), arrow):
        actual = encode(form, dataset.schema, dataset.row_maps, history=history)
        jax.tree.map(np.testing.assert_array_equal, actual, expected)
        assert jax.tree.map(lambda x: x.dtype, actual) == jax.tree.map(lambda x: x.dtype, expected)


def test_only_lists_of_dicts_and_tables_are_records():
    for strange, kind in (({}, "dict"), (None, "NoneType"), ("a", "str"), (iter([]), "iterator")):
        with pytest.raises(ValueError, match=f"a list of dicts or an Arrow table, got .*{kind}"):
            encode(strange, simple(), {"item": HashedRows(100)}, history=5)
    with pytest.raises(ValueError, match="must be a dict, got NoneType"):
        encode([None], simple(), {"item": HashedRows(100)}, history=5)


@pytest.mark.parametrize("value", [3.5, float("nan"), float("inf")])
def test_ids_with_a_fraction_are_refused(value):
    read = lambda item: encode([request(item)], simple(), {"item": HashedRows(100)}, history=5)
    with pytest.raises(ValueError, match=f"must be a whole number, got {value}"):
        read(value)
    np.testing.assert_array_equal(read(3.0)["candidate"]["item"], read(3)["candidate"]["item"])
