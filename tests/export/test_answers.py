"""Answers to raw requests: those of the metrics, however many requests and candidates come."""

import copy
import json
import logging
import shutil

import jax
import numpy as np
import pyarrow as pa
import pytest

import recjax
from recjax.export import answers
from recjax.export import artifact as artifacts
from recjax.export.artifact import ArtifactError
from recjax.train import launch
from recjax.train.evaluation import scoring
from recjax.zoo.features import record_type

HISTORY = 8


@pytest.fixture(scope="module")
def data():
    return recjax.read("market:tiny")


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """Of two tasks; served where 1 in 100 is clicked."""
    options = {"steps": 10, "history": HISTORY, "tower_units": 8, "positive_rate": 0.01}
    out = tmp_path_factory.mktemp("answers") / "run"
    return recjax.train("esmm", data, options=options, out=out, quiet=True)


@pytest.fixture(scope="module")
def artifact(run):
    return run.export(run.folder.parent / "artifact", platforms=["cpu"])


@pytest.fixture(scope="module", params=["run", "artifact"])
def model(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def records(data):
    """The examples, with 0 to 9 candidates."""
    found = copy.deepcopy(list(data.examples))
    for count, record in enumerate(found):
        del record["items"][count:]
    return found


def close(some, others):
    """That two predictions, or recommendations, say the same."""
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        if isinstance(one, dict):
            assert one.keys() == other.keys()
            for task in one:
                np.testing.assert_allclose(one[task], other[task], rtol=0, atol=1e-6)
            continue
        assert [best.index for best in one] == [best.index for best in other]
        assert [best.item for best in one] == [best.item for best in other]
        for a, b in zip(one, other, strict=True):
            assert a.score == pytest.approx(b.score, abs=1e-6, nan_ok=True)
            assert a.probabilities == pytest.approx(b.probabilities, abs=1e-6)


def test_probabilities_are_those_of_the_metrics(model, run, data):
    trained = launch.load_run(run.folder)
    some = data.test.take(slice(0, len(data.examples)))
    logits = scoring.predict(
        trained.module, trained.config, trained.variables, data, some, history=HISTORY
    )
    assert trained.calibrations["click"].shift < -1 and len(data.examples) == 10
    found = model.predict(data.examples)
    for row, one in enumerate(found):
        real = some.candidate[row] >= 0
        assert list(one) == ["click", "conversion"]
        for task, probability in one.items():
            how = trained.calibrations[task]
            x = logits[task][row][real].astype(np.float64)
            bent = how.bend * np.logaddexp(0, (x - how.knot) / how.width) * how.width
            expected = 1 / (1 + np.exp(-(how.slope * x + how.intercept + bent + how.shift)))
            np.testing.assert_allclose(probability, expected, rtol=0, atol=1e-6)
            assert probability.dtype == np.float64


def test_the_best_come_first_with_all_that_is_known_of_them(model, data):
    records = list(data.examples)
    logit = np.asarray(model.outputs(model.encode(records))["logit"])
    predicted = model.predict(records)
    for row, best in enumerate(model.recommend(records, k=4)):
        count = len(records[row]["items"])
        assert count > 4
        expected = sorted(range(count), key=lambda at: (-logit[row, at], at))[:4]
        assert [one.index for one in best] == expected
        for one in best:
            assert one.item == records[row]["items"][one.index]
            assert one.score == pytest.approx(float(logit[row, one.index]), abs=1e-6)
            each = {task: values[one.index] for task, values in predicted[row].items()}
            assert one.probabilities == pytest.approx(each, abs=1e-6)


def test_equals_stay_in_order(model, data):
    record = copy.deepcopy(data.examples[0])
    one, other = record["items"][:2]
    record["items"] = [one, other] * 10
    order = [best.index for best in model.recommend([record], k=20)[0]]
    first = order[0]
    assert order == [*range(first, 20, 2), *range(1 - first, 20, 2)]


def test_as_many_as_there_are(model, records):
    assert [len(best) for best in model.recommend(records, k=3)] == [0, 1, 2, *[3] * 7]
    assert [len(best) for best in model.recommend(records)] == list(range(10))
    assert [len(one["click"]) for one in model.predict(records)] == list(range(10))
    for k in (0, -1):
        with pytest.raises(ValueError, match=f"k must be >= 1, got {k}"):
            model.recommend(records, k=k)


def test_nobody_asks(model):
    for nothing in ([], (), pa.table({})):
        assert model.predict(nothing) == [] == model.recommend(nothing)


def test_records_of_any_form(model, records):
    expected, best = model.predict(records), model.recommend(records, k=2)
    table = pa.Table.from_pylist(records, schema=record_type(model.schema))
    (batch,) = table.combine_chunks().to_batches()
    for form in (tuple(records), table, batch):
        close(model.predict(form), expected)
        found = model.recommend(form, k=2)
        assert [[o.index for o in x] for x in found] == [[o.index for o in x] for x in best]
        assert found[5][0].item["item"] == best[5][0].item["item"]
    with pytest.raises(ValueError, match="needs one column 'items'"):
        model.recommend(table.select(["context", "user"]))
    with pytest.raises(ValueError, match="must be a list of dicts or an Arrow table, got gener"):
        model.predict(one for one in records)


def test_unknown_keys(model, records):
    odd = copy.deepcopy(records)
    odd[3]["items"][1]["colour"] = "red"
    for ask in (model.predict, model.recommend):
        with pytest.raises(ValueError, match="colour"):
            ask(odd)
    close(model.predict(odd, unknown="ignore"), model.predict(records))
    kept = model.recommend(odd, k=3, unknown="ignore")[3]
    assert [one.item.get("colour") for one in kept if one.index == 1] == ["red"]


def test_numbers_on_every_rung(model, data):
    """1 to 19 requests of up to 40 candidates: the answers of each alone."""
    items = [item for record in data.examples for item in record["items"]]
    records = [{**data.examples[at % 10], "items": items[at : at + 1 + 2 * at]} for at in range(19)]
    alone = [model.predict([record])[0] for record in records]
    close(model.predict(records), alone)
    close(model.predict(records[8:13]), alone[8:13])
    close(model.recommend(records, k=2), [model.recommend([x], k=2)[0] for x in records])


@pytest.mark.parametrize("at_once, calls", [(1, 10), (27, 4), (2**16, 1)])
def test_many_requests_are_split(model, records, monkeypatch, at_once, calls):
    """9 candidates are the most: 27 are 3 requests."""
    expected, best = model.predict(records), model.recommend(records)
    seen, whole = [], type(model).outputs
    monkeypatch.setattr(answers, "_AT_ONCE", at_once)
    monkeypatch.setattr(type(model), "outputs", lambda self, x: seen.append(x) or whole(self, x))
    close(model.predict(records), expected)
    assert len(seen) == calls
    close(model.recommend(records), best)


def test_the_ladder():
    for smallest in (1, 8):
        sizes = [answers.rung(count, smallest=smallest) for count in range(5000)]
        assert sizes == sorted(sizes)
        for count, size in enumerate(sizes):
            assert size >= max(count, smallest)
            assert answers.rung(size, smallest=smallest) == size
            assert size <= 8 or count <= 8 or size - count < max(8, size / 4)
        for most in (1, 7, 8, 9, 100, 4097):
            steps = list(answers.rungs(most, smallest=smallest))
            assert steps == sorted(set(sizes[: most + 1]) - {0}), most
    assert list(answers.rungs(70)) == [1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64, 80]


@pytest.mark.parametrize("fixed", [{}, {"requests": 3, "candidates": 12}])
def test_nothing_is_compiled_after_warming_up(run, data, tmp_path, caplog, fixed):
    artifact = run.export(tmp_path / "a", platforms=["cpu"], **fixed)
    items = data.examples[0]["items"]
    assert artifact.warm_up(requests=3, candidates=12) is artifact
    program = artifact._programs["apply"].call
    warm = program._cache_size()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        for count in range(1, 4):
            for width in range(13):
                record = {**data.examples[0], "items": (items * 2)[:width]}
                artifact.recommend([record] * count)
        assert not [one for one in caplog.messages if "ompil" in one]
    assert program._cache_size() == warm == (1 if fixed else 6)
    if not fixed:
        artifact.recommend([record] * 5)
        assert program._cache_size() == warm + 1


def test_fixed_sizes_take_any_number_of_requests(run, records, tmp_path):
    artifact = run.export(tmp_path / "a", platforms=["cpu"], requests=4, candidates=9)
    assert artifact.warm_up(requests=40) is artifact
    close(artifact.predict(records), run.predict(records))
    close(artifact.recommend(records, k=2), run.recommend(records, k=2))
    record = {**records[9], "items": records[9]["items"] * 2}
    with pytest.raises(ArtifactError, match="takes at most 9 candidates, got 18"):
        artifact.predict([record])


def test_an_artifact_of_before_has_no_calibration(artifact, run, records, tmp_path):
    shutil.copytree(run.folder.parent / "artifact", tmp_path / "a")
    path = tmp_path / "a" / "manifest.json"
    content = json.loads(path.read_text())
    assert content["calibration"]["click"]["shift"] < -1
    del content["calibration"]
    path.write_text(json.dumps(content))
    old = artifacts.load(tmp_path / "a")
    logits = old.tasks(old.encode(records))
    for row, one in enumerate(old.predict(records)):
        for task, values in one.items():
            x = np.asarray(logits[task])[row, : len(values)].astype(np.float64)
            np.testing.assert_allclose(values, 1 / (1 + np.exp(-x)), rtol=0, atol=1e-6)
