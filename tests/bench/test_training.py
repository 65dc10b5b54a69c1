"""Suite `training`: what both sides are timed on."""

import jax
import numpy as np
import pytest

from recjax.bench.suites import training
from recjax.bench.workload import batches, synthetic
from recjax.train.settings import Settings
from recjax.train.step import initial_state, make_step
from recjax.zoo import MODELS, din
from recjax.zoo.features import RESERVED_ROWS

SETTINGS = Settings(batch_size=12, history=5)


def workload(rows):
    data = synthetic(rows, SETTINGS.history, 3, items=rows)
    return data, din, din.Config(schema=data.schema, attention_units=(4,), tower_units=(4,))


def test_names_are_distinct():
    names = [case.name for case in training.CASES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("case", training.CASES, ids=lambda case: case.name)
def test_a_case_names_models_and_whole_requests(case):
    for method in case.methods:
        name = method.removeprefix("deepctr-torch ").removesuffix(", relu")
        name = name.removesuffix(" on 2 devices")
        assert name.partition(" at ")[0] in MODELS
    assert case.batch_size % case.candidates == 0


@pytest.mark.parametrize("rows", [50, 5_000])
def test_a_log_names_every_item(rows):
    log = synthetic(rows, 5, items=rows).log
    named = log.items["item"][log.item]
    assert np.array_equal(np.unique(named), np.arange(RESERVED_ROWS, rows))
    few = synthetic(rows, 5, items=20).log
    assert len(np.unique(few.items["item"][few.item])) == 20


def test_tables_are_updated_in_place():
    """A step gives its state's buffers away, and needs no more memory for a larger table."""

    def memory(rows):
        data, model, config = workload(rows)
        state = initial_state(model, config, SETTINGS, {})
        step = jax.jit(make_step(model, config, SETTINGS, total_steps=10), donate_argnums=0)
        batch, pulled = next(iter(batches(model, config, SETTINGS, data)))
        analysis = step.lower(state, batch, pulled).compile().memory_analysis()
        held = sum(x.nbytes for x in jax.tree.leaves((state.tables, state.table_state)))
        return analysis.alias_size_in_bytes, analysis.temp_size_in_bytes, held

    # Beyond 4096 rows a batch pulls what it names.
    (_, small, _), (aliased, large, held) = memory(5_000), memory(100_000)
    assert aliased >= held
    assert large == small
