"""What a column is, guessed from its values: never the outcome of an event as an item's feature."""

import numpy as np
import pyarrow as pa
import pytest

from logs import shop_columns
from recjax.train.data.declaration.guess import Events, guess, kind_of, named
from recjax.train.data.declaration.table import codes

COLUMNS = shop_columns()
SIZE = len(COLUMNS["user_id"])
USER, ITEM, TIME = (np.asarray(COLUMNS[name]) for name in ("user_id", "item_id", "timestamp"))
RANDOM = np.random.default_rng(1)


def guessed(columns, **options):
    table = pa.table({name: pa.array(values) for name, values in columns.items()})
    user, _ = codes(table["user_id"].combine_chunks())
    item, _ = codes(table["item_id"].combine_chunks())
    time = columns.get("timestamp", np.arange(len(user)))
    return guess(table, Events(user, item, np.asarray(time)), named(table), **options)


def one(name, values, columns=COLUMNS, **options):
    base = {key: columns[key] for key in ("user_id", "item_id", "timestamp") if key in columns}
    return guessed({**base, name: values}, **options).get(name)


def test_the_columns_of_a_shop():
    columns = guessed(COLUMNS)
    found = {c.name: (c.role, c.per, c.kind, c.value) for c in columns if c.role != "ignored"}
    assert found == {
        "user_id": ("user_id", None, "id", "int"),
        "item_id": ("item_id", None, "id", "int"),
        "timestamp": ("time", None, "id", "string"),
        "behavior": ("behavior", None, "id", "string"),
        "brand": ("item", "item", "id", "string"),
        "genres": ("item", "item", "bag", "string"),
        "city": ("user", "user", "id", "int"),
        "price": ("item", "event", "number", "string"),
        "home": ("user", "event", "id", "string"),
    }
    assert [c.name for c in columns] == list(COLUMNS)
    why = {c.name: c.why for c in columns}
    assert why["user_id"] == why["behavior"] == "name"
    assert "one value per item" in why["brand"] and "pairs of events agree" in why["brand"]
    assert "one value per user" in why["city"]
    assert "like the item's last value: read as of the event" in why["price"]
    assert "like the user's last value: read as of the event" in why["home"]
    assert "may be its outcome: declare it" in why["stars"]
    assert why["bought_on"] == "looks like a time; if it is a feature declare it"


# Every item is bought once, and every buyer is seen a few times: any column has one value per item.
COLD = {
    "user_id": np.repeat(np.arange(150), 4),
    "item_id": RANDOM.permutation(600),
    "timestamp": 1_600_000_000 + 60 * np.arange(600),
}
COLD_USER = COLD["user_id"]
TELLTALES = {
    "session": [f"s{u}" for u in COLD_USER],
    "session with two visits": [f"s{u}-{k // 2 % 2}" for k, u in enumerate(COLD_USER)],
    "visit number": np.arange(600) // 2,
    "city": [f"city {u % 40}" for u in COLD_USER],
    "age": 20.5 + COLD_USER % 50,
    "outcome": RANDOM.integers(0, 2, 600),
    "stars": RANDOM.integers(1, 6, 600),
    "dwell": RANDOM.normal(size=600),
    "order id": RANDOM.permutation(600),
    "words": [["a", "b"][: 1 + k % 2] for k in RANDOM.permutation(600)],
    "gaze": RANDOM.normal(size=(600, 2)).tolist(),
    "bought on": [f"2020-09-{1 + k // 30:02}" for k in range(600)],
    "day": 20200901 + np.arange(600) // 30,
    "created": 1_600_000_000 + 60 * np.arange(600),
    "updated_at": 1_600_000_000_000 + 60_000 * np.arange(600),
}


@pytest.mark.parametrize("name", TELLTALES)
def test_what_an_item_cannot_have_is_no_feature_of_it(name):
    column = one(name, TELLTALES[name], COLD)
    assert column.role in ("ignored", "user")
    assert (column.role == "user") == (name in ("city", "age"))
    assert column.why


def test_a_session_of_each_user_says_no_more_than_the_user():
    column = one("session", TELLTALES["session"], COLD)
    assert column.why == "has one value per user: no more than user_id says"
    visit = one("session", COLUMNS["session"])
    assert visit.role == "ignored" and "may be its outcome" in visit.why


def test_even_the_item_s_own_columns_need_support():
    """In a log of items that are met once, nobody can tell a brand from a buyer's city."""
    column = one("brand", [f"brand {i % 9}" for i in COLD["item_id"]], COLD)
    assert column.role == "ignored"
    assert column.why.startswith(
        "has one value per item, but only 0 pairs of events of one item by"
    )
    assert column.why.endswith("different users show that it is the item's: declare it, if it is")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.2, 1.0])
def test_one_item_in_two_cities_is_enough_to_tell(share):
    """Some items are met twice, by buyers of other cities."""
    item = COLD["item_id"].copy()
    again = RANDOM.choice(np.arange(300, 600), int(share * 300), replace=False)
    item[again] = item[again - 300]
    city = [f"city {u % 3}" for u in COLD_USER]
    column = one("place", city, {**COLD, "item_id": item})
    assert column.role == "user"
    brand = [f"brand {i % 9}" for i in item]
    column = one("brand", brand, {**COLD, "item_id": item})
    assert column.role == ("item" if share > 0.01 else "ignored")


def test_agreement_by_chance_is_no_evidence():
    """A flag that is nearly always 0 agrees anyway."""
    item = COLD["item_id"].copy()
    item[300:320] = item[:20]
    flag = np.zeros(600, int)
    flag[[100, 200]] = 1
    column = one("returned", flag, {**COLD, "item_id": item})
    assert column.role == "ignored"


ITEM_VALUES = {
    "int": ITEM % 13,
    "whole floats": (ITEM % 13).astype(float),
    "text": [f"x{i % 13}" for i in ITEM],
    "flag": ITEM % 2,
    "truth": ITEM % 2 == 1,
    "with gaps": [None if k % 3 else int(i % 13) for k, i in enumerate(ITEM)],
    "unique": [f"title of {i}" for i in ITEM],
    "fraction": ITEM % 13 + 0.5,
    "vector": [[i % 3 + 0.5, 1.0] for i in ITEM],
    "list": [[int(i) % 3, 7] for i in ITEM],
    "a|b": [f"g{i % 5}|g{i % 3}" for i in ITEM],
    "[1, 2]": [f"[{i % 5}, {i % 3}]" for i in ITEM],
}
KINDS = {
    "int": ("id", "int", None, None),
    "whole floats": ("id", "int", None, None),
    "text": ("id", "string", None, None),
    "flag": ("id", "int", None, None),
    "truth": ("id", "bool", None, None),
    "with gaps": ("id", "int", None, None),
    "unique": ("id", "string", None, None),
    "fraction": ("number", "string", None, None),
    "vector": ("vector", "string", 2, None),
    "list": ("bag", "int", 2, None),
    "a|b": ("bag", "string", 2, "|"),
    "[1, 2]": ("bag", "int", 2, "[]"),
}


@pytest.mark.parametrize("name", ITEM_VALUES)
def test_kinds_of_columns(name):
    column = one("extra", ITEM_VALUES[name])
    assert (column.role, column.per) == ("item", "item")
    assert (column.kind, column.value, column.width, column.separator) == KINDS[name]
    assert ("nearly unique" in column.why) == (name == "unique")


def test_what_a_column_cannot_be():
    for values, why in (
        (pa.nulls(SIZE, pa.string()), "is empty"),
        (["x"] * SIZE, "has one value only"),
        ([{"a": 1}] * SIZE, "is of type struct"),
        ([b"\x00"] * SIZE, "is of type binary"),
        ([[[1]]] * SIZE, "holds lists of list"),
        ([[0.5], [0.5, 1]] * (SIZE // 2), "holds lists of numbers of different lengths"),
    ):
        column = one("odd", values)
        assert column.role == "ignored" and column.why.startswith(why), column


def test_time_under_another_name_is_said():
    without = {key: COLUMNS[key] for key in ("user_id", "item_id")}
    column = one("created_at", TIME, without)
    assert (column.role, column.why) == (
        "ignored",
        "looks like a time; if it is the clock: rename it to timestamp, or declare it",
    )
    # Numbers of that size under a name that says nothing of time may be anything else.
    assert one("zipped", 1_600_000_000 + ITEM).role == "item"


def test_slow_changes_need_a_clock_and_are_told_from_noise():
    price = COLUMNS["price"]
    assert one("price", price).per == "event"
    assert one("price", price, has_clock=False).role == "ignored"
    assert one("price", RANDOM.permutation(price)).role == "ignored"
    # The user's last value needs no clock that others share.
    assert one("home", COLUMNS["home"], has_clock=False).per == "event"
    # A mood that is the user's own each time, shared by nobody else, is an id of the user.
    mood = [f"{u} {d}" for u, d in zip(USER, (TIME - TIME[0]) // (15 * 86_400), strict=True)]
    assert one("mood", mood).role == "ignored"


def test_a_bad_value_does_not_make_a_column_an_item_s():
    brand = list(COLUMNS["brand"])
    brand[7] = "another"
    column = one("brand", brand)
    assert (column.role, column.per) == ("item", "event")


def test_the_order_of_rows_does_not_matter():
    order = RANDOM.permutation(SIZE)
    shuffled = {name: [values[i] for i in order] for name, values in COLUMNS.items()}
    whys = lambda columns: [(c, c.why) for c in columns]
    assert whys(guessed(shuffled)) == whys(guessed(COLUMNS))


def test_names_that_say_what_they_are():
    table = pa.table(
        {
            "category_id": [1, 1],
            "context_hour": [7, 8],
            "context_odd": [{"a": 1}] * 2,
            "rating": [3, 4],
            "behavior": ["x", "y"],
        }
    )
    found = {c.name: (c.role, c.kind, c.value) for c in named(table)}
    assert found == {
        "category_id": ("item", "id", "int"),
        "context_hour": ("context", "id", "int"),
        "context_odd": ("ignored", "id", "string"),
        "rating": ("rating", "number", "string"),
        "behavior": ("behavior", "id", "string"),
    }
    assert kind_of(pa.array(["a|b", "c|d"])) == {"kind": "id", "value": "string"}
