"""The examples of a data set: raw records that give the very batch of their requests."""

import numpy as np
import pyarrow as pa
import pytest

from logs import hand_made_dataset, random_dataset, shop_columns
import recjax
from recjax.train.data import interactions
from recjax.train.data.batches.assembly import whole_batch
from recjax.train.data.examples import COUNT
from recjax.train.data.fields.encoding import Attribute
from recjax.train.data.raw_interactions import Interactions
from recjax.zoo.features import encode

HISTORY = 9


def batches(data):
    """Of the examples as records, and of the same requests of the log."""
    made = encode(list(data.examples), data.schema, data.row_maps, history=HISTORY)
    if not data.log.has_clock:
        del made["history_age"]
    some = data.test.take(slice(0, len(data.examples)))
    wanted = whole_batch(data.schema, data.log, some, history=HISTORY)
    return made, {name: x for name, x in wanted.items() if name not in ("label", "weight")}


def check(data, *, atol=0.0, count=COUNT):
    assert len(data.examples) == count == min(COUNT, len(data.test))
    made, wanted = batches(data)
    assert made.keys() == wanted.keys()
    for name, value in wanted.items():
        if not isinstance(value, dict):
            equal(name, made[name], value)
            continue
        assert made[name].keys() == value.keys()
        for field, column in value.items():
            near = atol if field == "price" else 0.0
            equal(f"{name}.{field}", made[name][field], column, atol=near)


def equal(name, made, wanted, atol=0.0):
    """Where one is narrower it lacks padding."""
    size = [slice(0, min(pair)) for pair in zip(made.shape, wanted.shape, strict=True)]
    for one in (made, wanted):
        beyond = np.array(one, copy=True)
        beyond[tuple(size)] = 0
        assert not beyond.any(), name
    assert made.dtype == wanted.dtype, name
    np.testing.assert_allclose(made[tuple(size)], wanted[tuple(size)], rtol=0, atol=atol)


def test_attributes_of_items_users_and_events():
    check(hand_made_dataset(), count=3)
    check(random_dataset())


def test_a_log_without_a_clock():
    data = random_dataset(has_clock=False)
    assert "time" not in data.examples[0]["context"]
    check(data)


def test_values_that_change_and_contexts():
    random = np.random.default_rng(1)
    count, items = 400, 25
    user, item = random.integers(0, 30, count), random.integers(0, items, count)
    time = random.integers(0, 300, count)
    price = 1.0 + np.arange(count)
    raw = Interactions(
        user=user,
        item=item,
        time=time,
        item_ids=pa.array([f"i{at}" for at in range(items)]),
        items=(
            Attribute(
                name="tags", values=pa.array([[f"t{at % 3}"] * (at % 4) for at in item[:25]])
            ),
            Attribute(name="number", values=pa.array(np.arange(float(items)))),
        ),
        events=(Attribute(name="behavior", values=pa.array(random.integers(0, 3, count))),),
        changing_items=(Attribute(name="price", values=pa.array(price)),),
        changing_users=(Attribute(name="city", values=pa.array(np.arange(count) + 5000)),),
        context=(Attribute(name="scene", values=pa.array([f"s{t % 3}" for t in time])),),
    )
    check(interactions.build("changing", raw))


def test_a_shop(tmp_path):
    """Read from columns: brands, bags, a price that changes, a user's home that changes."""
    data = recjax.read(shop_columns())
    check(data)
    assert {"price", "brand", "genres"} <= data.examples[0]["items"][0].keys()


def shown(*, count=400, seed=0, users=20):
    random = np.random.default_rng(seed)
    request = np.sort(random.integers(0, count // 4, count))
    item = random.integers(0, 40, count)
    return {
        "user_id": [f"u{u}" for u in request % users],
        "request_id": request,
        "timestamp": 1_600_000_000 + 60 * request,
        "item_id": item,
        "category_id": item % 5,
        "position": np.arange(count) % 7,
        "context_scene": [("home", "search")[at] for at in request % 2],
        "context_score": np.round(random.random(count), 3),
        "label": (random.random(count) < 0.4).astype(np.int64),
    }


def past(*, count=300, seed=3, users=20):
    random = np.random.default_rng(seed)
    item = random.integers(0, 40, count)
    return {
        "user_id": [f"u{u}" for u in random.integers(0, users, count)],
        "timestamp": 1_600_000_000 + random.integers(0, 6000, count),
        "item_id": item,
        "category_id": item % 5,
    }


@pytest.mark.parametrize("tables", [shown, lambda: (shown(), past())], ids=["alone", "history"])
def test_impressions(tables):
    data = recjax.read(tables(), kind="impressions")
    check(data)
    assert {"score", "position"} <= data.examples[0]["items"][0].keys()
    assert "scene" in data.examples[0]["context"]
    assert any(one["user"]["history"] for one in data.examples)


def test_the_market():
    """Its log holds prices that were computed in float32."""
    check(recjax.read("market:tiny"), atol=1e-6)
