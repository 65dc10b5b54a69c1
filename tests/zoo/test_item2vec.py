"""Item2vec against its equations, written out in NumPy float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax.zoo import item2vec
from recjax.zoo.features import Field, Schema, Table, example_batch
from testing import assert_close

SCHEMA = Schema(
    tables=(Table(name="item", rows=20, dim=4),),
    fields=(Field(name="item", role="history"), Field(name="item", role="candidate")),
)
BATCH = example_batch(SCHEMA, batch=4, history=5, candidates=2, sampled=6, seed=3)
BATCH["history_mask"] = np.arange(5) < np.array([[0], [1], [4], [5]])
BATCH["history"]["item"][BATCH["history"]["item"] == 0] = 5  # real by the mask above
BATCH["history"]["item"][2, :2] = 7
BATCH["sampled"]["item"][:2] = 7  # an accidental hit with two events of a request
BATCH["label"]["click"][:] = [[1, 1], [0, 1], [1, 0], [1, 1]]
BATCH["weight"] = {"click": np.array([[1, 1], [1, 2], [3, 1], [1, 0.5]], np.float32)}


def model(**options):
    config = item2vec.Config(schema=SCHEMA, dim=3, sampled=6, **options)
    variables = item2vec.init(jax.random.key(0), config)
    variables["tables"] = jax.tree.map(lambda table: 80 * table, variables["tables"])
    table = np.asarray(variables["tables"]["item"], np.float64)
    return config, variables, table[:, :3], table[:, 3:]


@pytest.mark.parametrize("window, noise_weight", [(0, 15), (2, 3)])
def test_the_loss_is_its_equation(window, noise_weight):
    config, variables, u, v = model(window=window, noise_weight=noise_weight)
    log_sigmoid = lambda x: -np.log1p(np.exp(-x))
    pairs = noise = count = 0.0
    for r in range(4):
        events = BATCH["history"]["item"][r][BATCH["history_mask"][r]]
        events = events[-window:] if window else events
        for c, i in enumerate(BATCH["candidate"]["item"][r]):
            weight = BATCH["label"]["click"][r, c] * BATCH["weight"]["click"][r, c]
            for j in events:
                count += weight
                pairs -= weight * log_sigmoid(u[i] @ v[j])
                draws = [n for n in BATCH["sampled"]["item"] if n != j]
                noise -= weight * sum(log_sigmoid(-u[i] @ v[n]) for n in draws) / 6
    value, aux = item2vec.loss(variables, config, BATCH, key=jax.random.key(0))
    assert_close(aux.terms["pairs"], np.float64(pairs / count), ulps=8)
    assert_close(aux.terms["noise"], np.float64(noise_weight * noise / count), ulps=8)
    assert_close(value, np.float64((pairs + noise_weight * noise) / count), ulps=8)


def test_users_and_items_meet_by_cosine():
    config, variables, u, _ = model()
    expected = np.zeros((4, 2))
    for r in range(1, 4):
        user = u[BATCH["history"]["item"][r][BATCH["history_mask"][r]]].mean(axis=0)
        for c, i in enumerate(BATCH["candidate"]["item"][r]):
            expected[r, c] = user @ u[i] / np.linalg.norm(user) / np.linalg.norm(u[i])
    assert_close(item2vec.apply(variables, config, BATCH).logit, expected, ulps=8)
    users, _ = item2vec.user_vectors(variables, config, BATCH)
    np.testing.assert_allclose(np.linalg.norm(users[1:, 0], axis=-1), 1.0, rtol=1e-6)
    assert not np.asarray(users[0]).any()  # no history, no direction


def test_a_vector_of_zeros_has_a_finite_slope():
    assert jnp.isfinite(jax.jacobian(item2vec.unit)(jnp.zeros(3))).all()


def test_the_output_vectors_are_no_part_of_serving():
    config, variables, _, _ = model()
    changed = {**variables, "tables": {"item": variables["tables"]["item"].at[:, 3:].add(1.0)}}
    logit = lambda v: item2vec.apply(v, config, BATCH).logit
    assert (logit(changed) == logit(variables)).all()


def test_tables_hold_two_parts_and_there_is_nothing_else():
    """Checkpoints depend on these names: changing them is a breaking change."""
    config = item2vec.Config(schema=SCHEMA, dim=3)
    assert jax.tree.map(jnp.shape, item2vec.init(jax.random.key(0), config)) == {
        "tables": {"item": (20, 6)},
        "params": {},
        "batch_stats": {},
    }


@pytest.mark.parametrize(
    "options, said",
    [
        ({"noise_weight": 0}, "Config.noise_weight must be >= 1, got 0"),
        ({"window": -1}, "Config.window must be >= 0, got -1"),
    ],
)
def test_config_rejects_nonsense(options, said):
    with pytest.raises(ValueError, match=said):
        item2vec.Config(schema=SCHEMA, **options)
