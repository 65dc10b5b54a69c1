"""Logistic regression against its sum, and what FTRL makes of it."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from recjax.train import checkpoints
from recjax.train.data.batches.deduplicate import Pulled
from recjax.train.settings import Settings
from recjax.train.step import initial_state, make_step
from recjax.zoo import lr
from recjax.zoo.features import Field, Schema, Table, example_batch
from testing import assert_close

SCHEMA = Schema(
    tables=(Table(name="item", rows=30, dim=8), Table(name="small", rows=5, dim=3)),
    fields=(
        Field(name="kind", role="user", table="small"),
        Field(name="hour", role="context", table="small"),
        Field(name="heat", role="context", kind="dense"),
        Field(name="item", role="history"),
        Field(name="dwell", role="history", kind="dense"),
        Field(name="item", role="candidate"),
        Field(name="tags", role="candidate", kind="bag", width=2, table="small"),
        Field(name="image", role="candidate", kind="dense", width=3),
    ),
)
BATCH = example_batch(SCHEMA, batch=4, history=5, candidates=3, seed=4)


def variables_of(config):
    """Numbers of the shapes of `init`, which are zeros."""
    fresh = lr.init(jax.random.key(0), config)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(fresh))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), fresh)


def exact_terms(variables, pooling):
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)
    item, small = (exact["tables"][name][:, 0] for name in ("item", "small"))
    item[0] = small[0] = 0
    kernel = exact["params"]["linear"]
    mask = BATCH["history_mask"]
    share = 1 / np.maximum(mask.sum(axis=1), 1) if pooling == "mean" else np.ones(4)
    per_request = {
        "user.kind": small[BATCH["user"]["kind"]],
        "context.hour": small[BATCH["context"]["hour"]],
        "context.heat": BATCH["context"]["heat"] * kernel["context_heat"][0, 0],
        "history.item": share * (mask * item[BATCH["history"]["item"]]).sum(axis=1),
        "history.dwell": share
        * (mask * BATCH["history"]["dwell"]).sum(axis=1)
        * kernel["history_dwell"][0, 0],
    }
    return {
        **{name: np.repeat(term[:, None], 3, axis=1) for name, term in per_request.items()},
        "candidate.item": item[BATCH["candidate"]["item"]],
        "candidate.tags": small[BATCH["candidate"]["tags"]].sum(axis=2),
        "candidate.image": (BATCH["candidate"]["image"] @ kernel["candidate_image"])[..., 0],
        "bias": np.full((4, 3), exact["params"]["bias"][0]),
    }


@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_a_score_is_the_sum_of_what_its_fields_contribute(pooling):
    config = lr.Config(schema=SCHEMA, pooling=pooling)
    variables = variables_of(config)
    expected = exact_terms(variables, pooling)
    assert_close(lr.apply(variables, config, BATCH).logit, sum(expected.values()))
    parts = lr.contributions(variables, config, BATCH)
    assert parts.keys() == expected.keys()
    for name, term in expected.items():
        assert_close(parts[name], term)


def test_the_parameter_tree_is_stable():
    shapes = jax.tree.map(jnp.shape, lr.init(jax.random.key(0), lr.Config(schema=SCHEMA)))
    assert shapes == {
        "tables": {"item": (30, 1), "small": (5, 1)},
        "params": {
            "bias": (1,),
            "linear": {
                "context_heat": (1, 1),
                "history_dwell": (1, 1),
                "candidate_image": (3, 1),
            },
        },
        "batch_stats": {},
    }


def test_config_rejects_nonsense():
    with pytest.raises((ValueError, jaxtyping.TypeCheckError), match="'max'"):
        lr.Config(schema=SCHEMA, pooling="max")


# --- trained with FTRL: half of the items have a weight in truth, the other half has none --------

ITEMS = Schema(
    tables=(Table(name="item", rows=42, dim=1),),
    fields=(Field(name="item", role="history"), Field(name="item", role="candidate")),
)
CONFIG = lr.Config(schema=ITEMS)
TRUTH = np.where(np.arange(42) % 2, 0.0, np.where(np.arange(42) % 4, 1.5, -1.5)).astype(np.float32)
WHOLE = Pulled({"item": np.arange(42, dtype=np.int32)}, {"item": np.arange(42) > 1})


def impressions(seed):
    batch = example_batch(ITEMS, batch=256, history=0, candidates=4, seed=seed)
    rng = np.random.default_rng(seed)
    item = rng.integers(2, 42, (256, 4)).astype(np.int32)
    clicked = rng.random((256, 4)) < 1 / (1 + np.exp(-TRUTH[item]))
    return {
        **batch,
        "candidate": {"item": item},
        "label": {"click": clicked.astype(np.float32)},
    }


def stepper(l1, schedule="constant"):
    rate = {"table_learning_rate": 10.0, "schedule": schedule}
    settings = Settings(table_optimizer="ftrl", l1=l1, **rate)
    step = jax.jit(make_step(lr, CONFIG, settings, total_steps=60))
    return initial_state(lr, CONFIG, settings, {}), step


def trained(l1, schedule="constant"):
    state, step = stepper(l1, schedule)
    for seed in range(60):
        state, _ = step(state, impressions(seed), WHOLE)
    return np.asarray(state.tables["item"])[2:, 0]


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_ftrl_recovers_signs_and_zeros(schedule):
    truth = TRUTH[2:]
    free, sparse, nothing = (trained(l1, schedule) for l1 in (0.0, 0.03, 1.0))
    assert (np.sign(free) == np.sign(truth))[truth != 0].all() and np.abs(free - truth).max() < 0.6
    assert free.all() and not nothing.any()
    assert (sparse[truth == 0] == 0).mean() > 0.8 > 0.1 > (sparse[truth != 0] == 0).mean()


def test_trained_day_by_day_equals_trained_at_once(tmp_path):
    """FTRL's state is in the checkpoint; without it the rates and the zeros would start anew."""
    state, step = stepper(0.03)
    for seed in range(6):
        if seed == 3:
            checkpoints.save(tmp_path / "day", 3, state, {})
        state, _ = step(state, impressions(seed), WHOLE)
    _, resumed, _ = checkpoints.restore(tmp_path / "day", stepper(0.03)[0])
    for seed in range(3, 6):
        resumed, _ = step(resumed, impressions(seed), WHOLE)
    jax.tree.map(np.testing.assert_array_equal, resumed, state)
    assert state.table_state["item"]["z"].any() and state.table_state["item"]["n"].any()
