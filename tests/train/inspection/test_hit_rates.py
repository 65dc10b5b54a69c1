import dataclasses
import io

import numpy as np
import pytest
from rich.console import Console

from logs import hand_made
from recjax.train.data import interactions
from recjax.train.data.dataset import Dataset
from recjax.train.data.event_log import EventLog, Requests
from recjax.train.data.protocol import Protocol
from recjax.train.inspection import report
from recjax.train.inspection.drift import drift, ks, psi_of_ids, psi_of_numbers
from recjax.train.inspection.hit_rates import hit_rates
from recjax.train.loop import fit
from recjax.train.settings import Settings
from recjax.zoo import mlp
from recjax.zoo.features import Field, KnownRows, Schema, Table, signatures

TRAIN, TEST = 600, 400


def planted(min_count=1):
    """Labels are noise but for `level`; `sample` is another value in every request."""
    rng = np.random.default_rng(0)
    level = rng.integers(0, 4, TRAIN + TEST)
    click = rng.random(TRAIN + TEST) < 0.5
    sample = signatures("sample", np.arange(TRAIN + TEST))
    row_maps = {
        "sample": KnownRows.of(sample[:TRAIN], min_count=min_count),
        "level": KnownRows.of(signatures("level", np.arange(4))),
    }
    rows = {
        "sample": row_maps["sample"](sample),
        "level": row_maps["level"](signatures("level", level)),
    }
    requests = Requests(
        user=np.zeros(TRAIN + TEST, np.int32),
        cut=np.zeros(TRAIN + TEST, int),
        time=np.arange(TRAIN + TEST),
        candidate=np.zeros((TRAIN + TEST, 1), np.int32),
        label={"click": click[:, None].astype(np.float32)},
        context={**rows, "price": rng.normal(size=TRAIN + TEST).astype(np.float32)},
    )
    tables = tuple(Table(name=name, rows=row_maps[name].rows, dim=8) for name in row_maps)
    fields = tuple(Field(name=name, role="context") for name in row_maps)
    price = Field(name="price", role="context", kind="dense")
    none = np.zeros(0, np.int64)
    return Dataset(
        name="planted",
        schema=Schema(tables=tables, fields=(*fields, price)),
        row_maps=row_maps,
        log=EventLog(
            offsets=np.zeros(2, np.int64),
            item=none.astype(np.int32),
            time=none,
            event={},
            items={"item": np.zeros(1, np.int32)},
            users={},
        ),
        train=requests.take(slice(0, TRAIN)),
        validation=requests.take(slice(TRAIN, TRAIN + TEST // 2)),
        test=requests.take(slice(TRAIN, TRAIN + TEST)),
    )


@pytest.mark.parametrize(("min_count", "memorised"), [(1, True), (2, False)])
def test_an_id_of_samples_is_learnt_by_heart_and_knows_nothing(tmp_path, min_count, memorised):
    """Perfect in training, chance in test; the report names the slot, admission by count mends."""
    data = planted(min_count)
    config = mlp.Config(schema=data.schema)
    settings = Settings(
        epochs=15, batch_size=60, patience=0, unseen_share=0.0, table_learning_rate=0.05
    )
    results = fit(mlp, config, data, settings, tmp_path / "run", quiet=True)
    # Standard error of an AUC of 400: 0.03.
    assert abs(results["test"]["auc"] - 0.5) < 0.09
    named = [rate.name for rate in hit_rates(data) if rate.identifies_samples]
    assert named == (["sample"] if memorised else [])
    learnt = train_auc(tmp_path / "last", data, config, settings)
    assert learnt > 0.99 if memorised else learnt < 0.7


def train_auc(folder, data, config, settings):
    """Of the last step, whatever validation says: it is judged on what it is trained on."""
    same = dataclasses.replace(data, validation=data.train, test=data.train)
    return fit(mlp, config, same, settings, folder, quiet=True)["test"]["auc"]


def test_rates_counted_by_hand():
    dataset = interactions.build("hand", hand_made(), protocol=Protocol(max_train_per_user=9))
    rates = {(rate.role, rate.name): rate for rate in hit_rates(dataset)}
    item = rates["candidate", "item"]
    train = dataset.log.items["item"][dataset.train.candidate].ravel()
    test = dataset.log.items["item"][dataset.test.candidate].ravel()
    counts = np.bincount(train)
    assert item.values == np.count_nonzero(counts)
    assert item.only_once == np.mean(counts[counts > 0] == 1)
    history = dataset.log.item[np.concatenate([np.arange(4), [6, 7], [10, 11]])]
    trained = {*train.tolist(), *dataset.log.items["item"][history].tolist()}
    assert item.hit_rate == np.mean([row > 1 and row in trained for row in test])
    assert 0 < item.hit_rate < 1


def test_what_has_not_moved_and_what_has():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 20_000))
    assert psi_of_numbers(a, b) < 0.01 and ks(a, b) < 0.02
    assert psi_of_numbers(a, b + 1) > 0.5
    # Two normals one deviation apart differ by 2 Phi(1/2) - 1 at most.
    assert ks(a, b + 1) == pytest.approx(0.383, abs=0.02)
    ids = rng.integers(2, 50, 20_000)
    assert psi_of_ids(ids, rng.integers(2, 50, 20_000)) < 0.02
    assert psi_of_ids(ids, np.where(rng.random(20_000) < 0.5, 1, ids)) > 0.5  # half unseen
    assert psi_of_ids(ids, ids[:0]) == psi_of_numbers(a[:0], b) == ks(a[:0], b) == 0


def test_psi_by_hand():
    # Half and half against a quarter and three quarters.
    before, after = np.array([0.0, 1.0] * 8), np.array([0.0, 1.0, 1.0, 1.0] * 4)
    expected = (0.25 - 0.5) * np.log(0.25 / 0.5) + (0.75 - 0.5) * np.log(0.75 / 0.5)
    assert psi_of_numbers(before, after) == pytest.approx(expected)
    ids = lambda x: 2 + x.astype(int)
    assert psi_of_ids(ids(before), ids(after)) == pytest.approx(expected)


def test_an_alarm_names_the_field_that_moved():
    data = planted()
    moved = data.test.context["price"] + 2
    after = dataclasses.replace(data.test, context={**data.test.context, "price": moved})
    rows = {row.name: row for row in drift(data, data.train, after)}
    assert rows["price"].alarm and rows["price"].ks > 0.6
    assert not rows["level"].alarm and rows["level"].ks is None
    assert rows["sample"].alarm  # no value of training comes again


def test_few_requests_raise_no_alarm():
    data = planted()
    few = data.test.take(slice(0, 5))
    rows = {row.name: row for row in drift(data, data.train, few)}
    assert rows["price"].psi > 0.25 and not rows["price"].alarm  # ten bins, five values
    assert rows["price"].noise > 1


def test_the_report_is_printed():
    console = Console(file=io.StringIO(), width=120)
    report.show(planted(), console=console)
    text = console.file.getvalue()
    line = next(line for line in text.splitlines() if "context.sample" in line)
    assert "identifies samples" in line and "100.0%" in line and "0.0%" in line
    assert "600 requests" in text and "PSI" in text
