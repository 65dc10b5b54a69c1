"""Every model of the zoo from names to an artifact: train, evaluate, export, reload."""

import math

import numpy as np
import pytest

from recjax.export import stablehlo
from recjax.train import launch
from recjax.train.data.batches.pipeline import evaluation_batches
from recjax.train.data.sources import open_source
from recjax.train.settings import Settings
from recjax.zoo import MODELS

SETTINGS = {"steps": 3, "batch_size": 128, "history": 8}
SMALL = {
    "tower_units": "8",
    "attention_units": "4",
    "auxiliary_units": "4",
    "hidden": "6",
    "cross_layers": "1",
}


@pytest.fixture(scope="module")
def data():
    return open_source("market:tiny")


@pytest.mark.parametrize("name", MODELS)
def test_no_option_hides_a_setting(name):
    options = MODELS[name].Config.__dataclass_fields__.keys()
    assert not options & Settings.__dataclass_fields__.keys(), "--set would not reach the setting"


@pytest.mark.parametrize("name", MODELS)
def test_trains_evaluates_and_exports(name, data, tmp_path):
    known = MODELS[name].Config.__dataclass_fields__
    small = [f"{key}={value}" for key, value in SMALL.items() if key in known]
    folder, results = launch.train(
        name,
        data="market:tiny",
        out=tmp_path / "run",
        options={**SETTINGS, **launch.options_of(small)},
        quiet=True,
    )
    assert results["train"]["examples"] > 0
    again = launch.evaluate_run(folder)["test"]
    assert figures(again) == figures(results["test"])
    assert all(math.isfinite(value) for value in figures(again))

    stablehlo.export_run(folder, tmp_path / "artifact")
    artifact = stablehlo.load(tmp_path / "artifact")
    run = launch.load_run(folder)
    (batch, *_) = evaluation_batches(
        data.schema,
        data.log,
        data.test.take(slice(0, 4)),
        batch_size=64,
        history=8,
        requirements=run.module.requirements(run.config),
    )
    expected = np.asarray(run.module.apply(run.variables, run.config, batch).logit)
    np.testing.assert_allclose(artifact.score(batch), expected, atol=1e-5)


def figures(test):
    if "recall@50" in test:
        return [test["recall@50"], test["ndcg@50"]]
    blocks = [test] if "auc" in test else test.values()
    return [block[name] for block in blocks for name in ("auc", "logloss")]
