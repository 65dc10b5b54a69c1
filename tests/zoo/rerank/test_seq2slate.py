"""Seq2Slate against its equations, written out in NumPy float64."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from listwise import ODD_SCHEMA, clicked_lists, fitted, flat, moved, odd_ones_out, worse_padding
from recjax.zoo.features import Schema
from recjax.zoo.rerank import seq2slate
from recjax.zoo.rerank.listwise import Shown
from reranking import SCHEMA, drawn
from testing import assert_close

# Request 1 has four candidates: one slot stays empty.
CONFIG = seq2slate.Config(schema=SCHEMA, slots=5, units=4, pointer_units=3)
BATCH = clicked_lists()
CLICKS = BATCH["label"]["click"] * BATCH["weight"]["click"]


@functools.cache
def variables():
    shapes = jax.eval_shape(lambda: seq2slate.init(jax.random.key(0), CONFIG))
    return drawn(shapes, seed=3, scale=0.7)


@functools.cache
def _slate(config):
    return jax.jit(lambda v, batch: seq2slate.apply(v, config, batch))


def slate(batch, config=CONFIG):
    return _slate(config)(variables(), batch)


@functools.cache
def _graded(config):
    of = lambda v, batch: seq2slate.loss(v, config, batch, key=jax.random.key(0))
    return jax.jit(jax.value_and_grad(of, has_aux=True))


def graded(batch, config=CONFIG):
    return _graded(config)(variables(), batch)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm(memory, gates):
    take, keep, new, show = np.split(gates, 4)
    memory = sigmoid(keep + 1) * memory + sigmoid(take) * np.tanh(new)
    return memory, sigmoid(show) * np.tanh(memory)


def exact(b, left, wish=()):
    """Choices, and before each of them the log probability of all that is left, {candidate: it}."""
    v = jax.tree.map(lambda x: np.asarray(x, np.float64), variables())
    p, item, kind = v["params"], v["tables"]["item"], v["tables"]["kind"]
    item[0] = kind[0] = 0
    dense = lambda name, x: x @ p[name]["kernel"] + p[name].get("bias", 0)
    memory = hidden = np.zeros(4)
    rows, keys = {}, {}
    for n in np.flatnonzero(BATCH["candidate_mask"][b]):
        price = [BATCH["candidate"]["price"][b, n]]
        parts = [kind[BATCH["user"]["kind"][b]], item[BATCH["candidate"]["item"][b, n]], price]
        rows[n] = np.concatenate(parts)
        memory, hidden = lstm(memory, dense("encoder", rows[n]) + hidden @ p["encoder_recurrent"])
        keys[n] = dense("key", hidden)
    gates, left, order, shares = p["first"], set(left), [], []
    while left:
        memory, hidden = lstm(memory, gates + hidden @ p["decoder_recurrent"])
        score = {n: np.tanh(keys[n] + hidden @ p["query"]) @ p["score"] for n in left}
        total = np.log(sum(np.exp(s) for s in score.values()))
        shares.append({n: s - total for n, s in score.items()})
        order.append(max(left & set(wish) or left, key=score.get))
        gates = dense("decoder", rows[order[-1]])
        left = left - {order[-1]}
    return order, shares


def real(b):
    return np.flatnonzero(BATCH["candidate_mask"][b])


def test_it_is_its_equations():
    got = slate(BATCH)
    for b in range(4):
        order, shares = exact(b, real(b))
        count = min(5, len(order))
        np.testing.assert_array_equal(got.order[b], [*order, -1][:5])
        expected = np.array([shares[t][order[t]] for t in range(count)])
        assert_close(got.log_probability[b, :count], expected, ulps=16)  # ten steps of LSTMs
        assert (got.log_probability[b, count:] == 0).all()


@pytest.mark.parametrize("forcing", ["own", "clicks"])
def test_loss_wants_the_clicks_that_are_left(forcing):
    (value, aux), _ = graded(BATCH, dataclasses.replace(CONFIG, forcing=forcing))
    expected = 0.0
    # Of request 0 the last candidate was not shown, of request 3 none was; 2 has no click.
    for b, shown in ((0, range(5)), (1, real(1))):
        order, shares = exact(b, shown, np.flatnonzero(CLICKS[b]) if forcing == "clicks" else ())
        for t, share in enumerate(shares):
            wanted = {n: CLICKS[b, n] for n in share}
            if total := sum(wanted.values()):
                entropy = -sum(wanted[n] / total * share[n] for n in share)
                expected += entropy / np.log2(t + 2)
        assert sorted(order) == sorted(shown)
    assert_close(value, expected / 2, ulps=16)
    assert_close(aux.terms["cross_entropy"], float(value), ulps=0)


def test_forcing_changes_the_path():
    first = exact(0, range(5))[0]
    assert first != exact(0, range(5), np.flatnonzero(CLICKS[0]))[0]


def test_cross_entropy_by_hand():
    half, third = np.log(1 / 2), np.log(1 / 3)
    left = jnp.array([[[True, True, True], [False, True, True], [False, False, True]]] * 2)
    share = jnp.where(left, jnp.array([third, half, 0.0], jnp.float32)[None, :, None], 0.0)
    steps = seq2slate.Steps(jnp.array([[0, 1, 2]] * 2, jnp.int32), left, share)
    label = jnp.array([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    saw = Shown(jnp.ones((2, 3), bool), label, jnp.ones((2, 3)))
    each, clicked = seq2slate.slate_cross_entropy(steps, saw)
    # The second slot weighs 1 / log2(3); the third finds no click left.
    assert_close(each, np.array([np.log(3) + np.log(2) / np.log2(3), 0.0]))
    np.testing.assert_array_equal(clicked, [True, False])


def test_padding_does_not_matter():
    got, expected = slate(worse_padding(BATCH, extra=3)), slate(BATCH)
    np.testing.assert_array_equal(got.order, expected.order)
    assert_close(got.log_probability, np.asarray(expected.log_probability))


def test_padding_does_not_reach_a_gradient():
    (value, _), gradient = graded(worse_padding(BATCH))
    (expected, _), expected_gradient = graded(BATCH)
    assert_close(value, float(expected))
    assert_close(flat(gradient), np.asarray(flat(expected_gradient)), ulps=16)  # cancel in softmax


def test_more_slots_than_candidates_stay_empty():
    config = dataclasses.replace(CONFIG, slots=8)
    got, short = slate(BATCH, config), slate(BATCH)
    np.testing.assert_array_equal(got.order[:, :5], short.order)
    assert (got.order[:, 6:] == -1).all() and (got.order[1, 4:] == -1).all()
    assert sorted(got.order[0, :6].tolist()) == [0, 1, 2, 3, 4, 5]


def test_the_upstream_order_matters():
    rows = [1, 0, 2, 3, 4, 5]
    got = slate(moved(BATCH, rows)).log_probability
    assert np.abs(got - slate(BATCH).log_probability)[0].max() > 1e-4


def test_gradients_are_finite_whatever_is_missing():
    nothing = {**BATCH, "candidate_mask": np.zeros((4, 6), bool)}
    no_click = {**BATCH, "label": {task: np.zeros((4, 6), np.float32) for task in SCHEMA.tasks}}
    for batch in (nothing, no_click):
        (value, _), gradient = graded(batch)
        assert value == 0
        assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient))
    assert (slate(nothing).order == -1).all()


def test_every_parameter_learns():
    _, gradient = graded(BATCH)
    assert all(np.abs(leaf).max() > 1e-6 for leaf in jax.tree.leaves(gradient))


def test_dropout_is_for_training():
    config = dataclasses.replace(CONFIG, embedding_dropout=0.5)
    value = jax.jit(lambda key: seq2slate.loss(variables(), config, BATCH, key=key)[0])
    assert abs(value(jax.random.key(0)) - value(jax.random.key(1))) > 1e-3
    np.testing.assert_array_equal(slate(BATCH, config).order, slate(BATCH).order)


def test_it_learns_what_no_candidate_says_alone():
    batch = odd_ones_out()
    config = seq2slate.Config(schema=ODD_SCHEMA, slots=2, units=32, pointer_units=16)
    found, losses = fitted(seq2slate, config, batch, steps=300)
    assert losses[-1] < 0.1 * np.log(4)
    np.testing.assert_array_equal(found.order[:, 0], batch["label"]["click"].argmax(axis=1))


@pytest.mark.parametrize(
    "options, said",
    [
        ({"slots": 0}, "slots must be >= 1, got 0"),
        ({"units": 0}, "units must be >= 1, got 0"),
        ({"pointer_units": -2}, "pointer_units must be >= 1, got -2"),
        ({"embedding_dropout": 1.0}, r"embedding_dropout must be in \[0, 1\), got 1.0"),
        ({"schema": Schema(tables=(), fields=())}, "schema must have a field"),
    ],
)
def test_config_rejects_nonsense(options, said):
    with pytest.raises(ValueError, match=said):
        seq2slate.Config(**{"schema": SCHEMA, **options})
