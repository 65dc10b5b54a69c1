"""Ids of training batches are positions in the rows that they pull: whole tables are refused."""

import jax
import pytest

from recjax.train import tables
from recjax.train.data.batches.pipeline import TrainingBatches
from recjax.train.data.sources import open_source
from recjax.zoo import MODELS
from recjax.zoo.features import require_rows
from recjax.zoo.rerank import RERANKERS

ALL = {**MODELS, **RERANKERS}


@pytest.fixture(scope="module")
def data():
    return {name: open_source(name) for name in ("market:tiny", "slates:cascade")}


@pytest.mark.parametrize("name", ALL)
def test_whole_tables_are_refused(data, name):
    module = ALL[name]
    dataset = data["slates:cascade" if module.KIND == "evaluator" else "market:tiny"]
    config = module.Config(schema=dataset.schema)
    batches = TrainingBatches(
        dataset, batch_size=64, history=5, requirements=module.requirements(config)
    )
    batch, pulled = next(iter(batches.epoch(0)))
    variables = jax.eval_shape(lambda key: module.init(key, config), jax.random.key(0))
    loss = lambda variables: module.loss(variables, config, batch, key=jax.random.key(1))[0]
    own = {**variables, "tables": jax.eval_shape(tables.pull, variables["tables"], pulled.rows)}
    assert jax.eval_shape(loss, own).shape == ()
    with pytest.raises(ValueError, match="positions in a pulled table .* take an evaluation batch"):
        jax.eval_shape(loss, variables)
    with pytest.raises(ValueError, match="positions among the rows that it pulls"):
        require_rows(dataset.schema, batch)
