"""Fields that shops need: mixed pages, sets as targets, triggers, scenes, segments, vectors."""

import dataclasses

import jax
import numpy as np
import pytest

from recjax.train.data.batches.assembly import Hide, pulled_batch, whole_batch
from recjax.train.data.event_log import EventLog, Requests
from recjax.zoo import MODELS, mf
from recjax.zoo.features import Field, KnownRows, Schema, Table, encode, signatures
from recjax.zoo.rerank import evaluator

TABLES = ("item", "item_type", "shop", "author", "scene", "segment")
SCHEMA = Schema(
    tables=tuple(Table(name=name, rows=50, dim=8) for name in TABLES),
    fields=(
        Field(name="segment", role="user", value="string", missing="unseen"),
        Field(name="scene", role="context", value="string", missing="unseen"),
        Field(name="trigger", role="context", table="item"),
        *(
            Field(name=name, role=role)
            for role in ("history", "candidate")
            for name in ("item", "item_type", "shop", "author")
        ),
        *(
            Field(name="picture", role=role, kind="dense", width=3, transform="clip(-9, 9)")
            for role in ("history", "candidate")
        ),
    ),
)


def known(name, values):
    return KnownRows.of(signatures(name, values))


ROW_MAPS = {
    "item": known("item", np.arange(20)),
    "item_type": known("item_type", np.arange(3)),
    "shop": known("shop", np.arange(5)),
    "author": known("author", np.arange(5)),
    "scene": known("scene", ["home", "cart"]),
    "segment": known("segment", ["new", "loyal"]),
}
# Goods have a shop, articles an author, live shows both; only goods have a picture.
GOODS = {"item": 3, "item_type": 0, "shop": 1, "picture": [0.5, -1.0, 99.0]}
ARTICLE = {"item": 8, "item_type": 1, "author": 2}
SHOW = {"item": 11, "item_type": 2, "shop": 4, "author": 0}
REQUEST = {
    "context": {"time": 100, "scene": "home", "trigger": 3},
    "user": {"segment": "loyal", "history": [{"time": 1, **GOODS}, {"time": 2, **SHOW}]},
    "items": [GOODS, ARTICLE, SHOW],
}


def row(name, value):
    return int(ROW_MAPS[name](signatures(name, [value]))[0])


def batch_of(*requests):
    return encode(list(requests), SCHEMA, ROW_MAPS, history=5)


def scores(model, batch, schema=SCHEMA, **options):
    config = MODELS[model].Config(schema=schema, **options)
    return np.asarray(MODELS[model].apply(variables(model, config), config, batch).logit)


def variables(model, config):
    fresh = MODELS[model].init(jax.random.key(0), config)
    # Far from zero, or no id would matter.
    return {**fresh, "tables": jax.tree.map(lambda table: 50 * table, fresh["tables"])}


@pytest.mark.parametrize("model", ["mlr", "mlp", "dcn", "din"])
def test_three_types_of_items_on_one_page(model):
    batch = batch_of(REQUEST)
    assert batch["candidate"]["shop"].tolist() == [[row("shop", 1), 0, row("shop", 4)]]
    assert batch["candidate"]["author"].tolist() == [[0, row("author", 2), row("author", 0)]]
    np.testing.assert_array_equal(
        batch["candidate"]["picture"], [[[0.5, -1, 9], [0, 0, 0], [0, 0, 0]]]
    )
    logit = scores(model, batch)
    assert logit.shape == (1, 3) and len(set(logit[0].tolist())) == 3
    other = batch_of({**REQUEST, "items": [{**GOODS, "item_type": 1}, ARTICLE, SHOW]})
    assert scores(model, other)[0, 0] != logit[0, 0]


def test_a_mixed_page_is_judged_by_all_that_its_items_have():
    config = evaluator.Config(schema=SCHEMA, slots=3)
    fresh = evaluator.init(jax.random.key(0), config)
    fresh = {**fresh, "tables": jax.tree.map(lambda table: 50 * table, fresh["tables"])}

    def judged(*items, variables=fresh):
        batch = batch_of({**REQUEST, "items": list(items)})
        return np.asarray(evaluator.apply(variables, config, batch).logit)[0]

    logit = judged(GOODS, ARTICLE, SHOW)
    assert logit.shape == (3,) and np.isfinite(logit).all()
    # An article behind a show is judged otherwise than an article before it.
    assert judged(GOODS, SHOW, ARTICLE)[2] != logit[1]
    others = {"item": 4, "item_type": 1, "shop": 2, "author": 3, "picture": [0.5, -1.0, 2.0]}
    for name, value in others.items():
        apart = np.abs(judged({**GOODS, name: value}, ARTICLE, SHOW) - logit)
        assert apart[0] > 1e-3, f"nothing depends on {name}"
    for name in fresh["tables"]:
        without = {**fresh["tables"], name: 0 * fresh["tables"][name]}
        apart = np.abs(judged(GOODS, ARTICLE, SHOW, variables={**fresh, "tables": without}) - logit)
        assert apart.max() > 1e-3, f"nothing depends on table {name}"


def test_a_trigger_item_may_be_there_or_not():
    with_none = {**REQUEST, "context": {"time": 100, "scene": "home"}}
    another = {**REQUEST, "context": {"time": 100, "scene": "home", "trigger": 8}}
    batch = batch_of(REQUEST, another, with_none)
    # The trigger is looked up in the table of items, by the vocabulary of items.
    assert batch["context"]["trigger"].tolist() == [row("item", 3), row("item", 8), 0]
    logit = scores("mlp", batch)
    assert len({tuple(row) for row in logit.tolist()}) == 3


def test_who_is_not_logged_in_falls_back_to_a_row_that_learns():
    unknown = {"context": {"time": 100}, "user": {"history": []}, "items": [GOODS]}
    never_seen = {**unknown, "user": {"segment": "churning", "history": []}}
    batch = batch_of(REQUEST, unknown, never_seen)
    assert batch["user"]["segment"].tolist() == [row("segment", "loyal"), 1, 1]
    assert batch["context"]["scene"].tolist() == [row("scene", "home"), 1, 1]
    assert np.isfinite(scores("din", batch)[1:, 0]).all()
    # Training hides a share of users, and fills in those that are missing.
    log = EventLog(
        offsets=np.array([0, 0, 0]),
        item=np.zeros(0, np.int32),
        time=np.zeros(0, np.int64),
        event={},
        items={"item": np.array([5], np.int32)},
        users={"segment": np.array([7, 0], np.int32)},
    )
    requests = Requests(
        user=np.arange(1000, dtype=np.int32) % 2,
        cut=np.zeros(1000, int),
        time=np.zeros(1000, int),
        candidate=np.zeros((1000, 1), np.int32),
        label={"click": np.zeros((1000, 1), np.float32)},
    )
    segment, item = SCHEMA.fields[0], SCHEMA.find("candidate", "item")
    schema = dataclasses.replace(SCHEMA, fields=(segment, item))
    shown = whole_batch(schema, log, requests, history=1)["user"]["segment"]
    assert shown.tolist() == [7, 1] * 500
    step = pulled_batch(schema, log, requests, history=1, hide=Hide(0.2, (0, 0, 0)))
    rows = step.pulled.rows["segment"][step.batch["user"]["segment"]]
    assert set(rows[1::2].tolist()) == {1}
    assert 60 < (rows[::2] == 1).sum() < 140  # a fifth of 500
    padding = dataclasses.replace(segment, missing="padding")
    plain = dataclasses.replace(SCHEMA, fields=(padding, item))
    assert whole_batch(plain, log, requests, history=1)["user"]["segment"].tolist() == [7, 0] * 500


def test_an_item_without_a_shop_may_read_as_unseen_in_every_role():
    fields = tuple(Field(name="shop", role=r, missing="unseen") for r in ("history", "candidate"))
    schema = dataclasses.replace(SCHEMA, fields=fields)
    log = EventLog(
        offsets=np.array([0, 2]),
        item=np.array([0, 1], np.int32),
        time=np.array([1, 2]),
        event={},
        items={"shop": np.array([row("shop", 1), 0], np.int32)},
        users={},
    )
    requests = Requests(
        user=np.zeros(1, np.int32),
        cut=np.array([2]),
        time=np.array([3]),
        candidate=np.array([[1, 0, -1]], np.int32),
        label={},
    )
    logged = whole_batch(schema, log, requests, history=8)
    past = [{"time": 1, "shop": 1}, {"time": 2, "shop": None}]
    record = {
        "context": {"time": 3},
        "user": {"history": past},
        "items": [{"shop": None}, {"shop": 1}],
    }
    live = encode([record], schema, ROW_MAPS, history=8)
    assert live["candidate"]["shop"].tolist() == [[1, row("shop", 1)]]
    assert logged["candidate"]["shop"].tolist() == [[1, row("shop", 1), 0]]
    assert live["history"]["shop"].tolist() == [[row("shop", 1), 1]]
    assert logged["history"]["shop"][:, :2].tolist() == [[row("shop", 1), 1]]
    assert not logged["history"]["shop"][:, 2:].any()
    with pytest.raises(ValueError, match="must be the same there"):
        dataclasses.replace(SCHEMA, fields=(Field(name="shop", role="history"), fields[1]))


SET = dataclasses.replace(
    SCHEMA,
    fields=(
        Field(name="item", role="history"),
        Field(name="item", role="candidate", kind="bag", width=4),
        Field(name="shop", role="candidate"),
    ),
)


def set_batch(*targets):
    request = {
        "context": {"time": 9},
        "user": {"history": [{"time": 1, "item": 3}, {"time": 2, "item": 8}]},
        "items": [{"item": list(target), "shop": 1} for target in targets],
    }
    return encode([request], SET, ROW_MAPS, history=5)


def test_a_target_may_be_a_set_of_items():
    """An advertised shop or collection (a banner) is the sum of its items."""
    batch = set_batch([3], [3, 8], [8, 3], [], [3, 8, 11, 15, 19])
    assert batch["candidate"]["item"].shape == (1, 5, 4)
    logit = scores("din", batch, SET)[0]
    assert np.isfinite(logit).all()
    np.testing.assert_allclose(logit[1], logit[2], rtol=1e-6)
    assert len({round(x, 6) for x in logit.tolist()}) == 4
    # A set of one item is that item.
    single = dataclasses.replace(
        SET, fields=(SET.fields[0], Field(name="item", role="candidate"), SET.fields[2])
    )
    first = {"item": batch["candidate"]["item"][..., 0], "shop": batch["candidate"]["shop"]}
    plain = {**batch, "candidate": first}
    np.testing.assert_allclose(scores("din", plain, single)[0, 0], logit[0], rtol=1e-6)


@pytest.mark.parametrize("model", ["dien", "mimn", "sim", "mlp"])
def test_sets_are_ranked_by_the_models_of_histories(model):
    options = {"search": "soft"} if model == "sim" else {}
    logit = scores(model, set_batch([3], [3, 8], [11]), SET, **options)[0]
    assert np.isfinite(logit).all() and len(set(logit.tolist())) == 3


def test_sets_are_not_retrieved_and_have_one_table():
    with pytest.raises(ValueError, match="finds single items, but candidate.item is a set"):
        mf.init(jax.random.key(0), mf.Config(schema=SET))
    with pytest.raises(ValueError, match="a bag of such ids"):
        other = dataclasses.replace(SET.fields[1], table="shop")
        dataclasses.replace(SET, fields=(SET.fields[0], other))
