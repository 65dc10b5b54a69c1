"""What suite `training` times in DeepCTR-Torch is our own batches."""

import itertools

import numpy as np
import pytest

from recjax.bench.peers import deepctr
from recjax.bench.workload import batches, synthetic
from recjax.train.settings import Settings
from recjax.zoo import MODELS, din

SETTINGS = Settings(batch_size=12, history=5)
DATA = synthetic(500, 5, 3, items=500)


def config_of(name):
    return MODELS[name].Config(schema=DATA.schema, attention_units=(6, 4), tower_units=(5, 4))


@pytest.mark.parametrize("name", ["din", "dien"])
def test_a_row_is_a_candidate_with_its_history(name):
    model, config = MODELS[name], config_of(name)
    batch, pulled = next(batches(model, config, SETTINGS, DATA))
    peer = deepctr.model_of(name, config, batch)
    rows = deepctr.rows(peer, config.schema, batch, pulled)
    of = lambda column: rows[:, slice(*peer.feature_index[column])]
    ids = lambda role, field: pulled.rows[field][batch[role][field]]
    for field in ("item", "category"):
        assert np.array_equal(of(field)[:, 0], ids("candidate", field).reshape(-1))
        assert np.array_equal(of(f"hist_{field}"), np.repeat(ids("history", field), 3, axis=0))
    assert (of("length") == 5).all()
    named = [of(column) for column in peer.feature_index if column.endswith("item")]
    distinct = np.unique(np.concatenate(named, axis=1))
    assert len(distinct) == pulled.touched["item"].sum()


@pytest.mark.parametrize("name", ["din", "dien"])
def test_it_trains(name):
    model, config = MODELS[name], config_of(name)
    ready = itertools.islice(batches(model, config, SETTINGS, DATA), 4)
    times = deepctr.step_times(name, config, ready, 2)
    assert len(times) == 2 and min(times) > 0


def test_its_attention_may_be_cheaper():
    batch, _ = next(batches(din, config_of("din"), SETTINGS, DATA))
    count = lambda *more: sum(
        "dice" in type(layer).__name__.lower()
        for layer in deepctr.model_of("din", config_of("din"), batch, *more).modules()
    )
    assert count() == 2 and count("relu") == 0
