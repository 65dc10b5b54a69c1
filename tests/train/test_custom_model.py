"""A model defined outside the package trains, resumes and exports like those of the zoo."""

import shutil

import jax
import numpy as np
import pytest

from own_model import DOT, Config
from recjax.train import checkpoints
from recjax.train.data.batches.assembly import whole_batch
from recjax.train.data.sources import open_source
from recjax.train.loop import fit
from recjax.train.settings import Settings
from recjax.zoo.contract import Model

SETTINGS = Settings(epochs=2, batch_size=512, history=16)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    data = open_source("market:tiny")
    model, config = DOT, Config(schema=data.schema)
    folder = tmp_path_factory.mktemp("dot") / "run"
    return model, config, data, folder, fit(model, config, data, SETTINGS, folder, quiet=True)


def test_it_is_a_model(trained):
    assert isinstance(trained[0], Model)


def test_it_trains_and_learns_something(trained):
    *_, results = trained
    assert results["model"] == "dot"
    assert results["validation"]["auc"] > 0.52


def test_it_resumes(trained, tmp_path):
    model, config, data, _, results = trained
    folder = tmp_path / "run"
    fit(model, config, data, SETTINGS, folder, quiet=True)
    # As an interrupt before the last checkpoint would have left it.
    last = folder / "checkpoints" / "last"
    whole = checkpoints.newest_note(last)
    shutil.rmtree(last / str(checkpoints.steps(last)[0]))
    (folder / "metrics.json").unlink()
    assert checkpoints.newest_note(last) != whole
    again = fit(model, config, data, SETTINGS, folder, resume=True, quiet=True)
    assert again["test"] == results["test"]
    assert checkpoints.newest_note(last)["history"] == whole["history"]  # Losses and AUCs.


def test_it_exports(trained):
    model, config, data, folder, _ = trained
    like = jax.eval_shape(lambda: model.init(jax.random.key(0), config))
    _, variables, _ = checkpoints.restore(folder / "checkpoints" / "best", like)
    batch = whole_batch(data.schema, data.log, data.test.take(slice(0, 4)), history=16)
    batch = {k: v for k, v in batch.items() if k not in ("label", "weight")}
    serve = jax.jit(lambda v, b: model.apply(v, config, b).logit)
    loaded = jax.export.deserialize(jax.export.export(serve)(variables, batch).serialize())
    np.testing.assert_array_equal(loaded.call(variables, batch), serve(variables, batch))
