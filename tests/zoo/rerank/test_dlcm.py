"""DLCM against its equations, written out in NumPy float64."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest

from listwise import ODD_SCHEMA, clicked_lists, fitted, flat, moved, odd_ones_out, worse_padding
from recjax.zoo.features import Schema
from recjax.zoo.rerank import dlcm
from reranking import SCHEMA, drawn
from testing import assert_close

CONFIG = dlcm.Config(schema=SCHEMA, expansion_units=(5, 3), units=4, heads=2)
BATCH = clicked_lists()


@functools.cache
def variables(config=CONFIG):
    return drawn(jax.eval_shape(lambda: dlcm.init(jax.random.key(0), config)))


@functools.cache
def _scores(config):
    return jax.jit(lambda v, batch: dlcm.apply(v, config, batch).logit)


def scores(batch, config=CONFIG):
    return np.asarray(_scores(config)(variables(config), batch))


@jax.jit
def _graded(v, batch):
    of = lambda v: dlcm.loss(v, CONFIG, batch, key=jax.random.key(0))
    return jax.value_and_grad(of, has_aux=True)(v)


def graded(batch):
    return _graded(variables(), batch)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def elu(x):
    return np.where(x > 0, x, np.expm1(x))


def exact(b, config=CONFIG):
    """Logits of the real candidates of request b."""
    v = jax.tree.map(lambda x: np.asarray(x, np.float64), variables(config))
    p, item, kind = v["params"], v["tables"]["item"], v["tables"]["kind"]
    item[0] = kind[0] = 0
    g, state, outputs = p["recurrence"], np.zeros(4), {}
    order = np.flatnonzero(BATCH["candidate_mask"][b])
    for n in order[::-1]:
        price = [BATCH["candidate"]["price"][b, n]]
        parts = [kind[BATCH["user"]["kind"][b]], item[BATCH["candidate"]["item"][b, n]], price]
        x = z = np.concatenate(parts)
        for i in range(len(config.expansion_units)):
            z = elu(z @ p[f"expansion_{i}"]["kernel"] + p[f"expansion_{i}"]["bias"])
        if config.expansion_units:
            x = np.concatenate([x, z])
        x, h = x @ g["input"] + g["bias"], state @ g["recurrent"]
        u, r = sigmoid(x[:4] + h[:4]), sigmoid(x[4:8] + h[4:8])
        state = (1 - u) * state + u * np.tanh(x[8:] + r * h[8:])
        outputs[n] = state
    w, bias = p["context"]["kernel"], p["context"]["bias"]
    heads = [np.tanh(state @ w[:, k] + bias[k]) for k in range(2)]
    return np.array([sum(p["vote"][k] * outputs[n] @ heads[k] for k in range(2)) for n in order])


@pytest.mark.parametrize("expansion_units", [(5, 3), ()])
def test_it_is_its_equations(expansion_units):
    config = dataclasses.replace(CONFIG, expansion_units=expansion_units)
    got = scores(BATCH, config)
    for b in range(4):
        real = BATCH["candidate_mask"][b]
        assert_close(got[b, real], exact(b, config), ulps=16)  # six steps of a GRU


def test_first_task_is_what_it_scores():
    output = jax.eval_shape(lambda v: dlcm.apply(v, CONFIG, BATCH), variables())
    assert list(output.tasks) == ["click"]


def test_loss_is_the_softmax_over_what_was_shown():
    (value, aux), _ = graded(BATCH)
    log_share = lambda logit: logit - np.log(np.exp(logit).sum())
    # Of request 0 the last candidate was not shown; request 1 has holes before its candidate 4.
    first, second = log_share(exact(0)[:5]), log_share(exact(1))
    expected = -((1.0 * first[1] + 0.5 * first[3]) / 1.5 + second[3]) / 2
    assert_close(value, expected, ulps=16)
    assert_close(aux.terms["attention_rank"], float(value), ulps=0)


def test_grades_are_weighed_by_their_exponentials():
    label = np.array([[2, 0, 1], [0, 0, 0], [-1, 1, 1]], np.float32)
    mask = np.ones((3, 3), bool)
    batch = {"candidate_mask": mask, "label": {"click": label}}
    got = dlcm.label_attention(dlcm.shown(batch, "click"))
    first = [np.e**2 / (np.e**2 + np.e), 0, np.e / (np.e**2 + np.e)]
    assert_close(got, np.array([first, [0, 0, 0], [0, 0.5, 0.5]]))


def test_padding_does_not_matter():
    real = BATCH["candidate_mask"]
    assert_close(scores(worse_padding(BATCH, extra=3))[:, :6][real], scores(BATCH)[real])


def test_padding_does_not_reach_a_gradient():
    (value, _), gradient = graded(worse_padding(BATCH))
    (expected, _), expected_gradient = graded(BATCH)
    assert_close(value, float(expected))
    assert_close(flat(gradient), np.asarray(flat(expected_gradient)), ulps=16)  # cancel in softmax


def test_the_upstream_order_matters():
    rows = [1, 0, 2, 3, 4, 5]
    assert np.abs(scores(moved(BATCH, rows)) - scores(BATCH)[:, rows])[0].max() > 1e-3


def test_every_candidate_sees_every_other():
    for n in range(6):
        other = {**BATCH, "candidate": {k: x.copy() for k, x in BATCH["candidate"].items()}}
        other["candidate"]["price"][0, n] += 1
        assert (np.abs(scores(other) - scores(BATCH))[0] > 1e-6).all()


def test_gradients_are_finite_whatever_is_missing():
    nothing = {**BATCH, "candidate_mask": np.zeros((4, 6), bool)}
    no_click = {**BATCH, "label": {task: np.zeros((4, 6), np.float32) for task in SCHEMA.tasks}}
    for batch in (nothing, no_click):
        (value, _), gradient = graded(batch)
        assert value == 0
        assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient))


def test_every_parameter_learns():
    _, gradient = graded(BATCH)
    assert all(np.abs(leaf).max() > 1e-6 for leaf in jax.tree.leaves(gradient))


def test_dropout_is_for_training():
    config = dataclasses.replace(CONFIG, embedding_dropout=0.5)
    value = jax.jit(lambda key: dlcm.loss(variables(), config, BATCH, key=key)[0])
    assert abs(value(jax.random.key(0)) - value(jax.random.key(1))) > 1e-3
    np.testing.assert_array_equal(scores(BATCH, config), scores(BATCH))


def test_it_learns_what_no_candidate_says_alone():
    batch = odd_ones_out()
    kind, click = batch["candidate"]["kind"], batch["label"]["click"]
    for place, k in itertools.product(range(4), np.unique(kind)):
        assert click[kind[:, place] == k, place].mean() == 1 / 4
    config = dlcm.Config(schema=ODD_SCHEMA, expansion_units=(16, 8), units=32, heads=2)
    output, losses = fitted(dlcm, config, batch, steps=300)
    assert losses[-1] < 0.1 * np.log(4)
    np.testing.assert_array_equal(output.logit.argmax(axis=1), click.argmax(axis=1))


@pytest.mark.parametrize(
    "options, said",
    [
        ({"units": 0}, "units must be >= 1, got 0"),
        ({"heads": 0}, "heads must be >= 1, got 0"),
        ({"expansion_units": (4, 0)}, r"expansion_units must be >= 1, got \(4, 0\)"),
        ({"embedding_dropout": -0.1}, r"embedding_dropout must be in \[0, 1\), got -0.1"),
        ({"schema": Schema(tables=(), fields=())}, "schema must have a field"),
    ],
)
def test_config_rejects_nonsense(options, said):
    with pytest.raises(ValueError, match=said):
        dlcm.Config(**{"schema": SCHEMA, **options})


def test_a_batch_without_the_label_is_refused():
    batch = {**BATCH, "label": {"purchase": BATCH["label"]["purchase"]}}
    with pytest.raises(ValueError, match=r"needs batch\['label'\]\['click'\], got purchase"):
        jax.eval_shape(lambda v: dlcm.loss(v, CONFIG, batch, key=jax.random.key(0)), variables())
