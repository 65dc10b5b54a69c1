"""The evaluator against its equations, written out in NumPy float64."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax.zoo.features import Field, Schema, Table, example_batch
from recjax.zoo.rerank import evaluator
from testing import assert_close

SCHEMA = Schema(
    tables=(Table(name="item", rows=30, dim=4), Table(name="kind", rows=5, dim=3)),
    fields=(
        Field(name="kind", role="user"),
        Field(name="item", role="candidate"),
        Field(name="price", role="candidate", kind="dense"),
    ),
    tasks=("click", "purchase"),
)
CONFIG = evaluator.Config(
    schema=SCHEMA,
    slots=5,
    units=6,
    heads=2,
    head_dim=3,
    gru_units=4,
    pair_units=3,
    window=2,
    tower_units=(7, 5),
)
BATCH = example_batch(SCHEMA, batch=3, history=1, candidates=5, seed=2)
BATCH["candidate_mask"][1, 3:] = False
ORDER = jnp.array(
    [[[4, 0, 2], [1, 2, 3]], [[2, 1, 0], [0, -1, 1]], [[3, 4, 0], [-1, -1, -1]]], jnp.int32
)


@functools.cache
def variables():
    """Numbers of the shapes of `init`, none of them at its special start."""
    shapes = jax.eval_shape(lambda: evaluator.init(jax.random.key(0), CONFIG))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.5, x.shape), jnp.float32), shapes)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def normalised(x, p):
    """Layer normalisation over the last axis, per head where there are heads."""
    centred = x - x.mean(axis=-1, keepdims=True)
    return (
        centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]
    )


def exact(batch, order):
    """Logits of one slate of request b, a list of candidates without empty slots."""
    v = jax.tree.map(lambda x: np.asarray(x, np.float64), variables())
    p, item, kind = v["params"], v["tables"]["item"], v["tables"]["kind"]
    item[0] = kind[0] = 0
    b, chosen = batch, order
    rows = np.stack(
        [
            np.concatenate(
                [
                    kind[BATCH["user"]["kind"][b]],
                    item[BATCH["candidate"]["item"][b, n]],
                    [BATCH["candidate"]["price"][b, n]],
                ]
            )
            for n in chosen
        ]
    )
    dense = lambda x, name: x @ p[name]["kernel"] + p[name].get("bias", 0)
    e = np.maximum(normalised(dense(rows, "encoder"), p["encoder_norm"]), 0)
    heads = lambda name: np.einsum("me,ehd->mhd", e, p[name]["kernel"])
    q, k = normalised(heads("query"), p["query_norm"]), normalised(heads("key"), p["key_norm"])
    value, slots = heads("value"), len(chosen)
    attended = np.zeros((slots, 2, 3))
    for t in range(slots):
        for h in range(2):
            score = np.array(
                [q[t, h] @ k[s, h] / 3**0.5 + p["distance"][h, t - s + 4] for s in range(slots)]
            )
            weight = np.exp(score) / np.exp(score).sum()
            attended[t, h] = weight @ value[:, h]
    g, state = p["recurrence"], np.zeros(4)
    states = []
    for x in e:
        x, h = x @ g["input"] + g["bias"], state @ g["recurrent"]
        u, r = sigmoid(x[:4] + h[:4]), sigmoid(x[4:8] + h[4:8])
        state = (1 - u) * state + u * np.tanh(x[8:] + r * h[8:])
        states.append(state)
    pair = dense(e, "pair")
    near = [
        [pair[t] @ pair[t + d] if 0 <= t + d < slots else 0.0 for d in (-2, -1, 1, 2)]
        for t in range(slots)
    ]
    x = np.concatenate([e, attended.reshape(slots, -1), np.array(states), np.array(near)], axis=1)
    x = np.maximum(dense(x, "tower_0") + p["place"][:slots], 0)
    return dense(np.maximum(dense(x, "tower_1"), 0), "logit")


@functools.cache
def judged():
    run = jax.jit(
        lambda v, batch, order: evaluator.judge(
            v, CONFIG, evaluator.encode(v, CONFIG, batch), order
        )
    )
    return run


def test_it_is_its_equations():
    got = judged()(variables(), BATCH, ORDER)
    assert got.shape == (3, 2, 3, 2)
    for b, s in ((0, 0), (0, 1), (1, 0), (2, 0)):
        assert_close(got[b, s], exact(b, np.asarray(ORDER)[b, s]), ulps=64)  # seven layers deep
    assert jnp.isfinite(got).all()


def test_candidates_in_slot_order_are_a_slate():
    output = jax.jit(lambda v, b: evaluator.apply(v, CONFIG, b))(variables(), BATCH)
    assert_close(output.tasks["click"][0], exact(0, range(5))[:, 0], ulps=64)
    assert_close(output.tasks["purchase"][1, :3], exact(1, range(3))[:, 1], ulps=64)
    np.testing.assert_array_equal(output.logit, output.tasks["click"])


def test_empty_slots_are_not_seen():
    """A slate with empty slots at its end is the shorter slate."""
    short = judged()(variables(), BATCH, ORDER[:, :, :2])
    order = jnp.concatenate([ORDER[:, :, :2], jnp.full((3, 2, 1), -1, jnp.int32)], axis=2)
    assert_close(judged()(variables(), BATCH, order)[0, :, :2], np.asarray(short[0]))


def test_every_slot_sees_the_whole_slate():
    """And the first its follower: contrast works in both directions."""
    base = judged()(variables(), BATCH, jnp.array([[[0, 1, 2]]] * 3, jnp.int32))[0, 0]
    for slot in range(3):
        order = [0, 1, 2]
        order[slot] = 3
        other = judged()(variables(), BATCH, jnp.array([[order]] * 3, jnp.int32))[0, 0]
        assert (jnp.abs(other - base).max(axis=1) > 1e-6).all()


def test_the_order_matters_and_nothing_else_of_it():
    two = judged()(variables(), BATCH, jnp.array([[[0, 1, 2], [2, 1, 0]]] * 3, jnp.int32))
    assert jnp.abs(two[:, 0] - two[:, 1, ::-1]).max() > 1e-3
    rows = jnp.array([[3, 1, 4, 0, 2]] * 3)
    moved = {
        **BATCH,
        "candidate": {
            name: np.take_along_axis(x, np.asarray(rows), 1)
            for name, x in BATCH["candidate"].items()
        },
        "candidate_mask": np.take_along_axis(BATCH["candidate_mask"], np.asarray(rows), 1),
    }
    # The same items in the same slots, under other indices.
    places = jnp.array([[[3, 1, 4]]] * 3, jnp.int32)
    same = judged()(variables(), moved, places)[:, 0]
    assert_close(same, np.asarray(two[:, 0]))


def test_every_term_is_in_the_loss_and_every_parameter_learns():
    loss = lambda v, batch: evaluator.loss(v, CONFIG, batch, key=jax.random.key(0))
    (value, aux), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables(), BATCH)
    logits = np.stack(list(evaluator.apply(variables(), CONFIG, BATCH).tasks.values()))
    labels = np.stack([BATCH["label"][task] for task in SCHEMA.tasks])
    each = np.logaddexp(0, logits) - labels * logits
    mask = BATCH["candidate_mask"]
    assert_close(aux.terms["click"], (each[0] * mask).sum() / mask.sum(), ulps=16)
    assert_close(aux.terms["purchase"], (each[1] * mask).sum() / mask.sum(), ulps=16)
    assert_close(value, float(aux.terms["click"] + aux.terms["purchase"]))
    assert all(jnp.abs(x).max() > 0 for x in jax.tree.leaves(gradient["params"]))


@pytest.mark.parametrize(
    "options, said",
    [
        ({"tower_units": ()}, "tower_units must name at least one layer"),
        ({"slots": 0}, "slots must be >= 1, got 0"),
        ({"window": 0}, "window must be >= 1, got 0"),
    ],
)
def test_config_rejects_nonsense(options, said):
    with pytest.raises(ValueError, match=said):
        evaluator.Config(schema=SCHEMA, **options)


def test_slates_that_are_too_long_are_refused():
    config = evaluator.Config(schema=SCHEMA, slots=2)
    v = jax.eval_shape(lambda: evaluator.init(jax.random.key(0), config))
    with pytest.raises(ValueError, match="at most 2 slots, got 5"):
        jax.eval_shape(lambda v: evaluator.apply(v, config, BATCH), v)


def test_dropout_is_for_training_only():
    config = dataclasses.replace(CONFIG, embedding_dropout=0.5)
    batch = example_batch(SCHEMA, batch=3, history=1, candidates=5, seed=2)
    loss = lambda key: evaluator.loss(variables(), config, batch, key=jax.random.key(key))[0]
    assert loss(0) == loss(0) != loss(1)
    one, other = (evaluator.apply(variables(), c, BATCH).logit for c in (CONFIG, config))
    np.testing.assert_array_equal(one, other)
