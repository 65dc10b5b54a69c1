"""Answers of models that give an order, or need what a record does not hold; runs and artifacts."""

import dataclasses

import numpy as np
import pytest

import recjax
from recjax.zoo import mf, sim
from recjax.zoo.features import Field, Schema, Table
from recjax.zoo.rerank import evaluator, generator
from reranking import CONFIG, JUDGES, SCHEMA, evaluators_of, generator_of
from runs import fresh, saved

ITEMS = [{"item": at % 30, "price": 0.7 * at - 2} for at in range(9)]
# Slates have at most three slots.
RECORDS = [{"context": {}, "user": {"kind": at}, "items": ITEMS[at : 2 * at]} for at in range(4)]
LOG = Schema(
    tables=(Table(name="item", rows=30, dim=4),),
    fields=(Field(name="item", role="candidate"), Field(name="item", role="history")),
    tasks=("click",),
)
EVENTS = [{"time": 5 + at, "item": at} for at in range(6)]
REQUESTS = [
    {"context": {"time": 90}, "user": {"history": EVENTS[:at]}, "items": ITEMS[: 2 * at]}
    for at in range(5)
]
for one in REQUESTS:
    one["items"] = [{"item": item["item"]} for item in one["items"]]


def opened(folder, name, config, variables, **options):
    return recjax.load(saved(folder / name, name, config, variables, **options))


def both(run, out, **options):
    return run, run.export(out, platforms=["cpu"], **options)


def indexes(found):
    return [[best.index for best in one] for one in found]


def test_a_generator_gives_its_slate(tmp_path):
    run = opened(tmp_path, "generator", CONFIG, generator_of().variables)
    assert run.kind == "generator"
    wide = [{**RECORDS[1], "items": ITEMS[:count]} for count in (0, 1, 2, 3, 9)]
    for model in both(run, tmp_path / "a"):
        batch = model.encode(wide)
        order = generator.apply(generator_of().variables, CONFIG, batch).order
        found = model.recommend(wide)
        assert indexes(found) == [[at for at in row if at >= 0] for row in order.tolist()]
        assert [len(best) for best in found] == [0, 1, 2, 3, 3]
        assert indexes(model.recommend(wide, k=2)) == [one[:2] for one in indexes(found)]
        assert all(np.isnan(best.score) and best.probabilities == {} for best in found[4])
        assert [best.item for best in found[4]] == [ITEMS[best.index] for best in found[4]]
        with pytest.raises(ValueError, match="generator gives an order, no probabilities"):
            model.predict(wide)


def test_preferences_that_a_record_lacks_are_even(tmp_path):
    config = dataclasses.replace(CONFIG, preferences=("clicks", "purchases"))
    run = opened(tmp_path, "generator", config, fresh(generator, config))
    judge = opened(tmp_path, "evaluator", JUDGES, evaluators_of().variables[0])
    wide = [{**RECORDS[1], "items": ITEMS}, {**RECORDS[2], "items": ITEMS[3:]}]
    batch = run.encode(wide)
    even = np.full((2, 2), 0.5, np.float32)
    order = generator.apply(run.variables, config, {**batch, "preference": even}).order
    assert indexes(run.recommend(wide)) == order.tolist()
    worth = ((1.0, 0.0), (0.0, 1.0))
    last = run.export(tmp_path / "last", evaluators=[judge], worth=worth, platforms=["cpu"])
    batch = last.encode(wide)
    expected = last.slate({**batch, "preference": even}).tolist()
    assert indexes(last.recommend(wide)) == expected


def test_an_evaluator_judges_as_many_as_its_slots(tmp_path):
    config, slots = JUDGES, JUDGES.slots
    run = opened(tmp_path, "evaluator", config, fresh(evaluator, config))
    records = [{**RECORDS[1], "items": (ITEMS * 2)[:count]} for count in range(slots + 1)]
    logit = evaluator.apply(run.variables, config, run.encode(records)).tasks
    for model in both(run, tmp_path / "a"):
        found = model.predict(records)
        for row, one in enumerate(found):
            for task in SCHEMA.tasks:
                expected = 1 / (1 + np.exp(-np.asarray(logit[task], np.float64)[row, :row]))
                np.testing.assert_allclose(one[task], expected, rtol=0, atol=1e-6)
        with pytest.raises(ValueError, match=f"at most {slots} "):
            model.predict([{**RECORDS[1], "items": ITEMS * 2}])
    model.warm_up()


def test_a_retriever_gives_an_order(tmp_path):
    config = mf.Config(schema=LOG)
    run = opened(tmp_path, "mf", config, fresh(mf, config), history=4)
    logit = np.asarray(mf.apply(run.variables, config, run.encode(REQUESTS)).logit)
    for model in both(run, tmp_path / "a"):
        found = model.recommend(REQUESTS, k=3)
        for row, best in enumerate(found):
            scores = logit[row, : 2 * row]
            assert indexes([best]) == [np.argsort(-scores, kind="stable")[:3].tolist()]
            np.testing.assert_allclose(
                [one.score for one in best], np.sort(scores)[::-1][:3], atol=1e-5
            )
            assert all(one.probabilities == {} for one in best)
        with pytest.raises(ValueError, match="mf gives an order, no probabilities: use recommend"):
            model.predict(REQUESTS)


def test_what_an_index_finds_is_in_no_record(tmp_path):
    config = sim.Config(schema=LOG, search="hard", group_by="item", tower_units=(4,))
    run = opened(tmp_path, "sim", config, fresh(sim, config), history=4)
    for model in both(run, tmp_path / "a"):
        for ask in (model.predict, model.recommend):
            with pytest.raises(ValueError, match="retrieve") as caught:
                ask(REQUESTS)
            assert "\n" not in str(caught.value)
