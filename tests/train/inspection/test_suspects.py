"""A candidate's column that knows the answer is named; a clean log has none."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from logs import random_dataset, shop_columns
from recjax.train.data import interactions, market
from recjax.train.data.fields.encoding import Attribute
from recjax.train.data.raw_interactions import Interactions
from recjax.train.inspection.suspects import suspects
from recjax.zoo.features import Field

SHOP = shop_columns(users=150, items=300, events=3000)
USER, ITEM = SHOP["user_id"] - 1000, SHOP["item_id"] - 5000
RANDOM = np.random.default_rng(0)


def dataset_of(items=(), user=USER, item=ITEM, size=300, **options):
    raw = Interactions(
        user=user,
        item=item,
        time=np.arange(len(user)) + 10**9,
        item_ids=pa.array(np.arange(size)),
        items=tuple(Attribute(name=name, values=pa.array(values)) for name, values in items),
        **options,
    )
    return interactions.build("log", raw)


def test_a_clean_log_is_silent():
    brand = ("brand", [f"b{k % 9}" for k in range(300)])
    price = ("price", RANDOM.normal(size=300))
    gaps = ("size", [None if k % 3 else k % 5 for k in range(300)])
    bag = ("tags", [["x", "y"][: k % 3] for k in range(300)])
    assert suspects(dataset_of([brand, price, gaps, bag])) == []
    assert suspects(random_dataset(users=100)) == []
    assert suspects(market.load("tiny")) == []


# A thousand items are bought, once each, and many more by nobody.
CATALOGUE = 40_000
COLD_ITEM = RANDOM.permutation(1000)
COLD_USER = np.repeat(np.arange(200), 5)
CITY = COLD_USER % 40


def of_items(values, missing=None):
    """An attribute of all items: of those that are bought what the event says."""
    column = [missing] * CATALOGUE
    for item, value in zip(COLD_ITEM.tolist(), values, strict=True):
        column[item] = value
    return column


@pytest.mark.parametrize(
    ("values", "missing", "how"),
    [
        ([f"city {c}" for c in CITY], None, "its value"),
        ([f"city {c}" for c in CITY], "nowhere", "its value"),
        (RANDOM.normal(5, 1, 1000).tolist(), -5.0, "its value"),
        ((-RANDOM.normal(5, 1, 1000)).tolist(), 5.0, "its value"),
    ],
)
def test_a_column_that_only_bought_items_have(values, missing, how):
    dataset = dataset_of(
        [("city", of_items(values, missing))], user=COLD_USER, item=COLD_ITEM, size=CATALOGUE
    )
    (found,) = suspects(dataset)
    assert found.startswith(f"candidate.city alone predicts the label ({how}: AUC ")
    assert "--set leave_out=city trains without it" in found
    assert suspects(dataset.without(["city"])) == []


def test_the_buyer_s_own_city_stands_in_the_history():
    """Items that nobody bought have a city too, but no one's own."""
    cities = of_items([f"city {c}" for c in CITY])
    cities = [value or f"city {k % 40}" for k, value in enumerate(cities)]
    dataset = dataset_of([("city", cities)], user=COLD_USER, item=COLD_ITEM, size=CATALOGUE)
    (found,) = suspects(dataset)
    assert "(whether it stood in the history: AUC 0.9" in found


def test_rare_values_are_judged_on_other_requests_than_they_were_counted_on():
    """Of values that hardly any two candidates share, each knows its own label."""
    item = np.random.default_rng(1).permutation(10_000)
    titles = [f"t{k // 2}" for k in range(10_000)]
    user = np.repeat(np.arange(200), 50)
    assert suspects(dataset_of([("title", titles)], user=user, item=item, size=10_000)) == []


def test_a_second_id_is_named():
    dataset = dataset_of([("title", [f"t{k}" for k in range(300)])])
    (found,) = suspects(dataset)
    assert found == (
        "candidate.title has a value of its own for nearly every item: it says no more than the "
        "item's id"
    )
    assert suspects(dataset_of([("title", [f"t{k // 2}" for k in range(300)])])) == []


def test_an_outcome_shown_beside_candidates():
    """Of any source, hand-made ones too."""
    dataset = random_dataset(users=100)
    label = dataset.validation.label["click"]
    noise = RANDOM.normal(size=label.shape)
    for strength, found in ((0.3, False), (6.0, True)):
        shown = {"dwell": (strength * label + noise).astype(np.float32)}
        schema = dataclasses.replace(
            dataset.schema,
            fields=(*dataset.schema.fields, Field(name="dwell", role="candidate", kind="dense")),
        )
        validation = dataclasses.replace(dataset.validation, shown=shown)
        planted = dataclasses.replace(dataset, schema=schema, validation=validation)
        assert bool(suspects(planted)) == found
