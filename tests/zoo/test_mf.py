"""Matrix factorisation against its equation, written out in NumPy float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax.zoo import mf
from recjax.zoo.features import Field, Schema, Table, example_batch
from testing import assert_close

SCHEMA = Schema(
    tables=(Table(name="item", rows=20, dim=4), Table(name="category", rows=5, dim=4)),
    fields=(
        Field(name="item", role="history"),
        Field(name="category", role="history"),
        Field(name="item", role="candidate"),
        Field(name="category", role="candidate"),
    ),
)
BATCH = example_batch(SCHEMA, batch=4, history=5, candidates=2, sampled=6, seed=3)
BATCH["history_mask"] = np.arange(5) < np.array([[0], [1], [4], [5]])
BATCH["sampled"]["item"][:2] = BATCH["candidate"]["item"][3, 1]
BATCH["label"]["click"][:] = [[1, 1], [0, 1], [1, 0], [1, 1]]


def model(**options):
    config = mf.Config(schema=SCHEMA, dim=3, sampled=6, **options)
    variables = mf.init(jax.random.key(0), config)
    variables["tables"] = jax.tree.map(lambda table: 60 * table, variables["tables"])
    table = np.asarray(variables["tables"]["item"], np.float64)
    return config, variables, table[:, :3], table[:, 3:6], table[:, 6]


def exact_user(p, r, alpha):
    items = BATCH["history"]["item"][r][BATCH["history_mask"][r]]
    return p[items].sum(axis=0) / max(len(items), 1) ** alpha


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_scores_are_their_equation(alpha):
    config, variables, p, q, b = model(alpha=alpha)
    expected = np.zeros((4, 2))
    for r in range(4):
        for c, i in enumerate(BATCH["candidate"]["item"][r]):
            expected[r, c] = exact_user(p, r, alpha) @ q[i] + b[i]
    assert_close(mf.apply(variables, config, BATCH).logit, expected, ulps=8)


def test_the_loss_is_its_equation():
    config, variables, p, q, b = model()
    losses = []
    for r in range(4):
        user = exact_user(p, r, 0.5)
        for c, i in enumerate(BATCH["candidate"]["item"][r]):
            logits = [user @ q[i] + b[i] - BATCH["candidate_log_q"][r, c]]
            for s, j in enumerate(BATCH["sampled"]["item"]):
                if j != i:
                    logits.append(user @ q[j] + b[j] - BATCH["sampled_log_q"][s])
            if BATCH["label"]["click"][r, c]:
                losses.append(np.log(np.sum(np.exp(logits))) - logits[0])
    value, aux = mf.loss(variables, config, BATCH, key=jax.random.key(0))
    assert_close(value, np.float64(np.mean(losses)), ulps=8)
    assert aux.terms == {"sampled_softmax": value}


def test_a_user_without_history_gets_the_biases():
    config, variables, _, _, b = model()
    logit = mf.apply(variables, config, BATCH).logit
    assert_close(logit[0], b[BATCH["candidate"]["item"][0]])


def test_tables_hold_three_parts_and_there_is_nothing_else():
    """Checkpoints depend on these names: changing them is a breaking change."""
    config = mf.Config(schema=SCHEMA, dim=3)
    assert jax.tree.map(jnp.shape, mf.init(jax.random.key(0), config)) == {
        "tables": {"item": (20, 7), "category": (5, 7)},
        "params": {},
        "batch_stats": {},
    }


@pytest.mark.parametrize(
    "options, said",
    [
        ({"dim": 0}, "Config.dim must be >= 1, got 0"),
        ({"alpha": 1.5}, r"Config.alpha must be in \[0, 1\], got 1.5"),
    ],
)
def test_config_rejects_nonsense(options, said):
    with pytest.raises(ValueError, match=said):
        mf.Config(schema=SCHEMA, **options)
