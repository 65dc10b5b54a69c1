"""What retrieval models share, and what all of them promise beyond `test_contract.py`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from recjax.train.evaluation.retrieval import top_items
from recjax.zoo import MODELS
from recjax.zoo.features import Field, Schema, Table, example_batch
from recjax.zoo.layers.retrieval import (
    identity_field,
    left_out_draws,
    mean_over_positives,
    nearest_interest,
    newest,
    sampled_softmax_loss,
)
from testing import assert_close

SCHEMA = Schema(
    tables=(Table(name="item", rows=42, dim=3), Table(name="other", rows=6, dim=2)),
    fields=(
        Field(name="price", role="history", kind="dense"),
        Field(name="item", role="history"),
        Field(name="price", role="candidate", kind="dense"),
        Field(name="item", role="candidate"),
        Field(name="position", role="candidate", table="other"),
        Field(name="age", role="user", table="other"),
    ),
)
RETRIEVAL = [name for name, model in MODELS.items() if model.KIND == "retrieval"]


def batch_of_scores(**changes):
    return {
        "candidate_mask": np.array([[True, True], [True, False]]),
        "label": {"click": np.array([[1.0, 0.0], [1.0, 1.0]], np.float32)},
        "candidate_log_q": np.log(np.array([[0.5, 0.1], [2.0, 1.0]], np.float32)),
        "sampled_log_q": np.log(np.array([3.0, 0.25, 0.5], np.float32)),
        **changes,
    }


POSITIVE = jnp.array([[1.0, 5.0], [-0.5, 7.0]])
NEGATIVE = jnp.array([[[0.5, -1.0, 2.0]] * 2, [[0.0, 1.5, -2.0]] * 2])
HIT = jnp.array([[[False, False, True]] * 2, [[False, False, False]] * 2])


def test_sampled_softmax_is_its_equation():
    first = np.exp(1.0) / 0.5
    first = -np.log(first / (first + np.exp(0.5) / 3 + np.exp(-1.0) / 0.25))  # the third is a hit
    second = np.exp(-0.5) / 2
    noise = np.exp(0.0) / 3 + np.exp(1.5) / 0.25 + np.exp(-2.0) / 0.5
    second = -np.log(second / (second + noise))
    loss = lambda batch: sampled_softmax_loss(POSITIVE, NEGATIVE, HIT, batch, "click")
    assert_close(loss(batch_of_scores()), np.float64((first + second) / 2))
    weight = {"click": np.array([[3.0, 9.0], [0.5, 9.0]], np.float32)}
    weighted = (3 * first + 0.5 * second) / 3.5
    assert_close(loss(batch_of_scores(weight=weight)), np.float64(weighted))
    nothing = batch_of_scores(label={"click": np.zeros((2, 2), np.float32)})
    assert loss(nothing) == 0


def test_the_same_shift_of_both_log_counts_changes_nothing():
    """log Q of candidates and draws must mean the same, or neither."""
    loss = lambda batch: sampled_softmax_loss(POSITIVE, NEGATIVE, HIT, batch, "click")
    batch = batch_of_scores()
    shifted = {name: batch[name] + np.float32(2) for name in ("candidate_log_q", "sampled_log_q")}
    assert_close(loss({**batch, **shifted}), np.float64(loss(batch)))
    one = {"sampled_log_q": shifted["sampled_log_q"]}
    assert abs(loss({**batch, **one}) - loss(batch)) > 0.1


def test_without_a_single_true_negative_the_loss_is_zero_and_its_gradient_finite():
    hit = jnp.ones_like(HIT)
    loss = lambda p, n: sampled_softmax_loss(p, n, hit, batch_of_scores(), "click")
    value, gradient = jax.value_and_grad(loss, argnums=(0, 1))(POSITIVE, NEGATIVE)
    assert value == 0
    assert not any(np.asarray(g).any() for g in gradient)


def test_masked_candidates_may_hold_anything():
    batch = batch_of_scores()
    batch["candidate_log_q"][1, 1] = -np.inf
    loss = lambda p, n: sampled_softmax_loss(p, n, HIT, batch, "click")
    junk = POSITIVE.at[1, 1].set(jnp.nan), NEGATIVE.at[1, 1].set(jnp.inf)
    value, gradient = jax.value_and_grad(loss, argnums=(0, 1))(*junk)
    assert_close(value, np.float64(loss(POSITIVE, NEGATIVE)))
    assert all(np.isfinite(g).all() for g in gradient)


def test_sampled_softmax_estimates_the_full_softmax():
    """Over many draws from a skewed Q the corrected gradient is the full softmax's."""
    rng = np.random.default_rng(0)
    score, q = rng.normal(size=6), np.array([0.4, 0.25, 0.15, 0.1, 0.06, 0.04])
    draws, size = rng.choice(6, size=200_000, p=q), 200_000
    batch = {
        "candidate_mask": np.ones((1, 1), bool),
        "label": {"click": np.ones((1, 1), np.float32)},
        "candidate_log_q": np.zeros((1, 1), np.float32),
        "sampled_log_q": np.log(size * q[draws]).astype(np.float32),
    }
    hit = jnp.asarray(draws == 2)[None, None]
    got = sampled_softmax_loss(
        jnp.full((1, 1), score[2], jnp.float32),
        jnp.asarray(score[draws], jnp.float32)[None, None],
        hit,
        batch,
        "click",
    )
    full = np.log(np.exp(score).sum()) - score[2]
    assert abs(float(got) - full) < 0.01  # the candidate counts once, unshifted, as Q = 1 there


def test_means_over_positives_count_what_they_sum():
    batch = batch_of_scores()
    each, count = jnp.array([[6.0, 1.0], [4.0, 1.0]]), jnp.array([[3.0, 1.0], [2.0, 1.0]])
    assert mean_over_positives(each, batch, "click") == (6 + 4) / 2
    assert mean_over_positives(each, batch, "click", count=count) == (6 + 4) / (3 + 2)


def test_means_are_over_the_positives_of_all_devices():
    if jax.local_device_count() < 2:
        pytest.skip("needs two (simulated) devices")
    batch = batch_of_scores(label={"click": np.array([[1.0, 1.0], [1.0, 1.0]], np.float32)})
    each = jnp.array([[6.0, 1.0], [4.0, 9.0]])
    mean = jax.pmap(lambda e, b: mean_over_positives(e, b, "click", axis_name="i"), axis_name="i")
    names = ("candidate_mask", "label")
    shards = jax.tree.map(lambda x: x[:, None], {name: batch[name] for name in names})
    assert_close(mean(each[:, None], shards), np.full(2, (6 + 1 + 4) / 3))


def test_hits_compare_the_first_id_of_items():
    assert identity_field(SCHEMA).name == "item"  # price is not an id
    batch = {
        "candidate": {"item": jnp.array([[7, 8], [9, 7]]), "price": jnp.zeros((2, 2))},
        "sampled": {"item": jnp.array([7, 5, 7]), "price": jnp.zeros(3)},
    }
    yes, no = [True, False, True], [False] * 3
    assert left_out_draws(SCHEMA, batch).tolist() == [[yes, no], [no, yes]]
    fields = tuple(f for f in SCHEMA.fields if f.name != "item")
    with pytest.raises(ValueError, match=r"needs an id field .* got \['price'\]"):
        identity_field(Schema(tables=SCHEMA.tables, fields=fields))


def test_a_window_holds_the_newest_events():
    mask = jnp.array([[True, False, True, True], [False, True, False, False]])
    assert newest(mask, 2).tolist() == [[False, False, True, True], [False, True, False, False]]
    assert (newest(mask, 0) == mask).all()
    assert newest(mask[:, :0], 2).shape == (2, 0)


def test_only_real_interests_score():
    users, items = jnp.array([[[1.0, 0.0], [5.0, 5.0]]]), jnp.array([[[2.0, 3.0], [-1.0, 0.0]]])
    assert nearest_interest(users, jnp.array([[True, False]]), items).tolist() == [[2.0, -1.0]]
    assert nearest_interest(users, jnp.array([[True, True]]), items).tolist() == [[25.0, -1.0]]


@functools.cache
def small(name):
    model = MODELS[name]
    config = model.Config(schema=SCHEMA, dim=8, sampled=5)
    return model, config, jax.jit(lambda key: model.init(key, config))(jax.random.key(0))


@pytest.mark.parametrize("name", RETRIEVAL)
def test_vectors_give_the_logit_and_need_no_candidates(name):
    model, config, variables = small(name)
    variables = jax.tree.map(lambda x: 30 * x, variables)
    batch = example_batch(SCHEMA, batch=4, history=5, candidates=3, seed=2)
    batch["history_mask"][0] = False
    role = ("user", "context", "history", "history_mask", "history_age")
    user_vectors = jax.jit(model.user_vectors, static_argnums=1)
    users, mask = user_vectors(variables, config, {key: batch[key] for key in role})
    assert users.ndim == 3 and mask.shape == users.shape[:2]
    assert np.asarray(mask).any(axis=1).all() and np.isfinite(users).all()
    items = {f.name: batch["candidate"][f.name].reshape(-1) for f in SCHEMA.item_fields}
    vectors = jax.jit(model.item_vectors, static_argnums=1)(variables, config, items)
    assert vectors.shape == (12, users.shape[2])
    dots = np.einsum("bkd,bcd->bck", users, vectors.reshape(4, 3, -1))
    expected = np.where(np.asarray(mask)[:, None], dots, -np.inf).max(axis=-1)
    logit = jax.jit(model.apply, static_argnums=1)(variables, config, batch).logit
    np.testing.assert_allclose(logit, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", RETRIEVAL)
def test_recall_rises(name):
    """Four groups of ten items; who had some of a group gets the rest of it."""
    model, config, variables = small(name)
    rng = np.random.default_rng(0)

    def drawn(size):
        group = rng.integers(0, 4, size)
        member = np.argsort(rng.random((size, 10)), axis=1)[:, :7]
        return (2 + 10 * group[:, None] + member).astype(np.int32)

    def batch_of(items):
        size, draws = len(items), rng.integers(2, 42, 32).astype(np.int32)
        dense = lambda ids: np.zeros(ids.shape, np.float32)
        role = lambda ids: {"item": ids, "price": dense(ids)}
        return {
            "user": {"age": np.ones(size, np.int32)},
            "context": {},
            "history": role(items[:, :6]),
            "history_mask": np.ones((size, 6), bool),
            "candidate": {**role(items[:, 6:]), "position": np.ones((size, 1), np.int32)},
            "candidate_mask": np.ones((size, 1), bool),
            "label": {"click": np.ones((size, 1), np.float32)},
            "sampled": role(draws),
            "sampled_log_q": np.full(32, np.log(32 / 40), np.float32),
            "candidate_log_q": np.full((size, 1), np.log(32 / 40), np.float32),
        }

    optimizer = optax.adam(0.05)

    @jax.jit
    def step(variables, state, batch):
        loss = lambda v: model.loss(v, config, batch, key=jax.random.key(0))[0]
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(jax.grad(loss)(variables), state)
        return optax.apply_updates(variables, updates), state

    items = np.arange(2, 42, dtype=np.int32)
    catalogue = {"item": items, "price": np.zeros(40, np.float32)}
    test = batch_of(drawn(64))

    @jax.jit
    def vectors_of(variables):
        users, mask = model.user_vectors(variables, config, test)
        return users, mask, model.item_vectors(variables, config, catalogue)

    def recall(variables):
        users, mask, vectors = vectors_of(variables)
        top = top_items(users, mask, vectors, 4, exclude=test["history"]["item"] - 2)
        return (top.item == test["candidate"]["item"] - 2).any(axis=1).mean()

    before, state = recall(variables), optimizer.init(variables)
    for _ in range(150):
        variables, state = step(variables, state, batch_of(drawn(64)))
    assert before < 0.4  # by chance 4 / 34
    assert recall(variables) > 0.9
