"""PRM against its equations, written out in NumPy float64."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from listwise import ODD_SCHEMA, clicked_lists, fitted, flat, moved, odd_ones_out, worse_padding
from recjax.zoo.features import Schema
from recjax.zoo.rerank import prm
from reranking import SCHEMA, drawn
from testing import assert_close

CONFIG = prm.Config(
    schema=SCHEMA, units=6, heads=2, blocks=1, feed_units=5, positions=4, dropout=0.0
)
PLACELESS = dataclasses.replace(CONFIG, positions=0)
BATCH = clicked_lists()


@functools.cache
def variables(config=CONFIG):
    return drawn(jax.eval_shape(lambda: prm.init(jax.random.key(0), config)))


@functools.cache
def _scores(config):
    return jax.jit(lambda v, batch: prm.apply(v, config, batch).logit)


def scores(batch, config=CONFIG):
    return np.asarray(_scores(config)(variables(config), batch))


@functools.cache
def _graded(config):
    of = lambda v, batch: prm.loss(v, config, batch, key=jax.random.key(0))
    return jax.jit(jax.value_and_grad(of, has_aux=True))


def graded(batch, config=CONFIG):
    return _graded(config)(variables(config), batch)


def normalised(x, p):
    centred = x - x.mean(axis=-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6)
    return centred / deviation * p["scale"] + p["bias"]


def exact(b, config=CONFIG):
    """Logits of the real candidates of request b."""
    v = jax.tree.map(lambda x: np.asarray(x, np.float64), variables(config))
    p, item, kind = v["params"], v["tables"]["item"], v["tables"]["kind"]
    item[0] = kind[0] = 0
    dense = lambda x, p: x @ p["kernel"] + p["bias"]
    rows = []
    for place, n in enumerate(np.flatnonzero(BATCH["candidate_mask"][b])):
        price = [BATCH["candidate"]["price"][b, n]]
        parts = [kind[BATCH["user"]["kind"][b]], item[BATCH["candidate"]["item"][b, n]], price]
        rows.append(np.concatenate(parts) + p["place"][min(place, 3)])
    x = dense(np.stack(rows), p["input"])
    for i in range(config.blocks):
        block = p[f"block_{i}"]
        attention = block["attention"]
        found = np.zeros_like(x)
        for h in range(2):
            q, k, value = (
                x @ attention[part]["kernel"][:, h] for part in ("query", "key", "value")
            )
            weight = np.exp(q @ k.T / 3**0.5)
            weight /= weight.sum(axis=1, keepdims=True)
            found += weight @ value @ attention["out"]["kernel"][h]
        x = normalised(x + found, block["attention_norm"])
        fed = dense(np.maximum(dense(x, block["feed_0"]), 0), block["feed_1"])
        x = normalised(x + fed, block["feed_norm"])
    return dense(x, p["logit"])[:, 0]


def test_it_is_its_equations():
    config = dataclasses.replace(CONFIG, blocks=2)
    got = scores(BATCH, config)
    for b in range(4):
        real = BATCH["candidate_mask"][b]
        assert_close(got[b, real], exact(b, config), ulps=64)  # ten layers deep


def test_first_task_is_what_it_scores():
    output = jax.eval_shape(lambda v: prm.apply(v, CONFIG, BATCH), variables())
    assert list(output.tasks) == ["click"]


def test_loss_is_the_softmax_over_what_was_shown():
    (value, aux), _ = graded(BATCH)
    log_share = lambda logit: logit - np.log(np.exp(logit).sum())
    # Of request 0 the last candidate was not shown; request 1 has holes before its candidate 4.
    first, second = log_share(exact(0)[:5]), log_share(exact(1))
    expected = -(1.0 * first[1] + 0.5 * first[3] + 1.0 * second[3]) / (1.0 + 0.5 + 1.0)
    assert_close(value, expected, ulps=16)
    assert_close(aux.terms["softmax"], float(value), ulps=0)


def test_pointwise_loss_is_the_cross_entropy_of_what_was_shown():
    config = dataclasses.replace(CONFIG, objective="pointwise")
    (value, aux), _ = graded(BATCH, config)
    total = mass = 0.0
    for b in range(4):
        real = BATCH["candidate_mask"][b]
        label, weight = (BATCH[role]["click"][b, real] for role in ("label", "weight"))
        total += (weight * (np.logaddexp(0, exact(b)) - label * exact(b))).sum()
        mass += weight.sum()
    assert_close(value, total / mass, ulps=16)
    assert list(aux.terms) == ["bce"]


def test_without_weights_all_were_shown():
    bare = {role: value for role, value in BATCH.items() if role != "weight"}
    ones = {**BATCH, "weight": {"click": np.ones((4, 6), np.float32)}}
    loss = jax.jit(lambda batch: prm.loss(variables(), CONFIG, batch, key=jax.random.key(0))[0])
    assert_close(loss(bare), float(graded(ones)[0][0]))
    assert abs(loss(bare) - graded(BATCH)[0][0]) > 1e-3


def test_padding_does_not_matter():
    real = BATCH["candidate_mask"]
    assert_close(scores(worse_padding(BATCH, extra=3))[:, :6][real], scores(BATCH)[real])


@pytest.mark.parametrize("objective", ["softmax", "pointwise"])
def test_padding_does_not_reach_a_gradient(objective):
    config = dataclasses.replace(CONFIG, objective=objective)
    (value, _), gradient = graded(worse_padding(BATCH), config)
    (expected, _), expected_gradient = graded(BATCH, config)
    assert_close(value, float(expected))
    assert_close(flat(gradient), np.asarray(flat(expected_gradient)), ulps=16)  # cancel in softmax


def test_order_matters_by_position_alone():
    rows = [3, 0, 5, 1, 4, 2]
    assert_close(scores(moved(BATCH, rows), PLACELESS), scores(BATCH, PLACELESS)[:, rows], ulps=16)
    assert np.abs(scores(moved(BATCH, rows)) - scores(BATCH)[:, rows])[0].max() > 1e-2


def test_every_candidate_sees_every_other():
    for n in range(6):
        other = {**BATCH, "candidate": {k: x.copy() for k, x in BATCH["candidate"].items()}}
        other["candidate"]["price"][0, n] += 1
        assert (np.abs(scores(other) - scores(BATCH))[0] > 1e-5).all()


def test_gradients_are_finite_whatever_is_missing():
    nothing = {**BATCH, "candidate_mask": np.zeros((4, 6), bool)}
    no_click = {**BATCH, "label": {"click": np.zeros((4, 6), np.float32)}}
    for batch in (nothing, no_click):
        (value, _), gradient = graded(batch)
        assert value == 0
        assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient))


def test_every_parameter_learns():
    """Pointwise, as a softmax does not see what is added to all scores."""
    _, gradient = graded(BATCH, dataclasses.replace(CONFIG, objective="pointwise"))
    assert all(np.abs(leaf).max() > 1e-6 for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("name", ["dropout", "embedding_dropout"])
def test_dropout_is_for_training(name):
    config = dataclasses.replace(CONFIG, **{name: 0.5})
    value = jax.jit(lambda key: prm.loss(variables(), config, BATCH, key=key)[0])
    assert abs(value(jax.random.key(0)) - value(jax.random.key(1))) > 1e-3
    np.testing.assert_array_equal(scores(BATCH, config), scores(BATCH))


def test_it_learns_what_no_candidate_says_alone():
    batch = odd_ones_out()
    kind, click = batch["candidate"]["kind"], batch["label"]["click"]
    for place, k in itertools.product(range(4), np.unique(kind)):
        assert click[kind[:, place] == k, place].mean() == 1 / 4
    config = prm.Config(
        schema=ODD_SCHEMA, units=16, heads=2, blocks=1, feed_units=16, positions=4, dropout=0.0
    )
    output, losses = fitted(prm, config, batch, steps=200)
    assert losses[-1] < 0.1 * np.log(4)
    np.testing.assert_array_equal(output.logit.argmax(axis=1), click.argmax(axis=1))


@pytest.mark.parametrize(
    "options, said",
    [
        ({"units": 0}, "units must be >= 1, got 0"),
        ({"units": 10, "heads": 4}, "units must be a multiple of heads, got 10 and 4"),
        ({"blocks": 0}, "blocks must be >= 1, got 0"),
        ({"positions": -1}, "positions must be >= 0, got -1"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"schema": Schema(tables=(), fields=())}, "schema must have a field"),
    ],
)
def test_config_rejects_nonsense(options, said):
    with pytest.raises(ValueError, match=said):
        prm.Config(**{"schema": SCHEMA, **options})


def test_labels_of_another_shape_are_refused():
    batch = {**BATCH, "label": {"click": np.zeros((4, 5), np.float32)}}
    with pytest.raises(ValueError, match=r"label 'click' must have shape \(4, 6\), got \(4, 5\)"):
        jax.eval_shape(lambda v: prm.loss(v, CONFIG, batch, key=jax.random.key(0)), variables())


def test_it_exports_with_symbolic_sizes():
    sizes = jax.export.symbolic_shape("b, n")
    roles = ("user", "context", "history", "history_mask", "candidate", "candidate_mask")
    batch = {role: BATCH[role] for role in roles}

    def spec(role, x):
        lead = sizes if role.startswith("candidate") else sizes[:1] + x.shape[1:2]
        return jax.ShapeDtypeStruct(lead, x.dtype)

    specs = {
        role: jax.tree.map(functools.partial(spec, role), value) for role, value in batch.items()
    }
    held = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), variables())
    exported = jax.export.export(_scores(CONFIG))(held, specs)
    assert_close(exported.call(variables(), batch), scores(BATCH))
    assert jnp.isfinite(exported.call(variables(), jax.tree.map(lambda x: x[:1], batch))).all()
