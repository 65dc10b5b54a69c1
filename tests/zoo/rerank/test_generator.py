"""The generator against the authors' form of its equations, in NumPy float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax.zoo.features import Field
from recjax.zoo.rerank import generator, rewards
from reranking import CONFIG, SCHEMA, generator_of, requests
from testing import assert_close

BATCH = requests()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def split_into_two_maps(params, rng):
    """The authors' z = [x, ctx] W_in + b_in, and gates z W_g + b_g, of the same product.

    A square invertible W_g of width 3H: W_in is what is left.
    """
    gates = rng.normal(0, 1, (params["bias"].shape[0],) * 2) + 4 * np.eye(params["bias"].shape[0])
    left = np.linalg.inv(gates)
    maps = np.concatenate([params["row"]["kernel"], *params["context"]]) @ left
    b_in = rng.normal(0, 1, len(gates))
    return maps, b_in, gates, params["bias"] - b_in @ gates


def exact_slate(b, slots, attention):
    """One slate, the decoder's input being merged before the gates, as in the authors' code."""
    v = jax.tree.map(lambda x: np.asarray(x, np.float64), generator_of().variables)
    p, item, kind = v["params"], v["tables"]["item"], v["tables"]["kind"]
    item[0] = kind[0] = 0
    real = np.flatnonzero(BATCH["candidate_mask"][b])
    rows = np.stack(
        [
            np.concatenate(
                [
                    kind[BATCH["user"]["kind"][b]],
                    item[BATCH["candidate"]["item"][b, n]],
                    [BATCH["candidate"]["price"][b, n]],
                ]
            )
            for n in real
        ]
    )
    e = np.maximum(rows @ p["encoder"]["common"]["kernel"] + p["encoder"]["common"]["bias"], 0)
    h = np.maximum(e.sum(axis=0) @ p["start"]["common"]["kernel"] + p["start"]["common"]["bias"], 0)
    w_in, b_in, w_g, b_g = split_into_two_maps(p, np.random.default_rng(0))
    x, contexts, free = np.zeros(rows.shape[1]), [np.zeros(e.shape[1])] * 2, set(range(len(real)))
    order, logp = [], []
    for _ in range(slots):
        z = np.concatenate([x, *contexts]) @ w_in + b_in
        gates, state = z @ w_g + b_g, h @ p["recurrent"]
        u, r = sigmoid(gates[:4] + state[:4]), sigmoid(gates[4:8] + state[4:8])
        h = (1 - u) * h + u * np.tanh(gates[8:] + r * state[8:])
        scores = [
            np.tanh(e @ p["key"][f] + h @ p["query"][f] + p["query_bias"][f]) @ p["score"][f]
            for f in range(2)
        ]
        mean = np.mean(scores, axis=0)
        left = sorted(free)
        chosen = max(left, key=lambda n: mean[n])
        logp.append(mean[chosen] - np.log(np.exp(mean[left]).sum()))
        order.append(real[chosen])
        free.discard(chosen)
        x = rows[chosen]
        weigh = lambda s: np.exp(s) / np.exp(s).sum() if attention == "softmax" else s
        contexts = [weigh(s) @ e for s in scores]
    return order, logp


@pytest.mark.parametrize("attention", ["softmax", "raw"])
def test_one_map_is_the_authors_two(attention):
    """Linear after linear: the merge and the gates are one product."""
    given = generator_of()
    config = generator.Config(
        schema=SCHEMA,
        slots=3,
        encoder_units=6,
        hidden_units=4,
        heads=2,
        head_units=5,
        attention=attention,
    )
    slate = jax.jit(lambda v, b: generator.apply(v, config, b))(given.variables, BATCH)
    for b in range(4):
        order, logp = exact_slate(b, 3, attention)
        assert slate.order[b].tolist() == order
        assert_close(slate.log_probability[b], np.array(logp), ulps=64)


def test_slates_are_choices_without_repetition():
    slate = generator.apply(generator_of().variables, CONFIG, BATCH)
    for b, row in enumerate(slate.order.tolist()):
        assert len(set(row)) == 3 and BATCH["candidate_mask"][b, row].all()


def test_rewards_go_back_to_earlier_choices():
    rng = np.random.default_rng(0)
    advantage = rng.normal(size=(4, 5)).astype(np.float32)
    for discount in (0.0, 0.3, 1.0):
        expected = np.zeros((4, 5))
        for t in range(5):
            for k in range(t, 5):
                expected[:, t] += discount ** (k - t) * advantage[:, k]
        assert_close(rewards.reward_to_go(jnp.asarray(advantage), discount), expected)


def with_slate(order, advantage):
    slate = {"order": np.array(order, np.int32), "advantage": np.array(advantage, np.float32)}
    return {**BATCH, "slate": slate}


def test_the_loss_is_its_equation():
    config, variables = CONFIG, generator_of().variables
    order = [[0, 1, 2], [0, 2, -1], [5, 4, 3], [-1, -1, -1]]
    advantage = [[1.0, -2.0, 3.0], [1.0, 1.0, 9.0], [0.0, 0.0, 0.0], [5.0, 5.0, 5.0]]
    loss = lambda v, b: generator.loss(v, config, b, key=jax.random.key(0))[0]
    value = jax.jit(loss)(variables, with_slate(order, advantage))
    encoded = generator.encode(variables, config, BATCH)
    logp = generator.log_probability(
        variables, config, encoded, jnp.array(order, jnp.int32)[:, None]
    )[:, 0]
    credit = rewards.reward_to_go(jnp.array([[1.0, -2, 3], [1, 1, 0], [0, 0, 0]]), 0.3)
    # Three requests have a slate; an empty slot earns nothing, whatever the batch says.
    assert_close(value, float(-(credit * logp[:3]).sum() / 3), ulps=16)


def test_a_step_down_the_loss_makes_good_choices_likelier():
    variables = generator_of().variables
    batch = with_slate([[0, 1, 2], [0, 2, 3], [5, 4, 3], [2, 1, 0]], [[1.0] * 3] * 4)
    loss = lambda v: generator.loss(v, CONFIG, batch, key=jax.random.key(0))[0]
    gradient = jax.jit(jax.grad(loss))(variables)
    assert all(jnp.abs(x).max() > 0 for x in jax.tree.leaves(gradient["params"]))
    moved = jax.tree.map(lambda x, g: x - 1e-3 * g, variables, gradient)
    assert loss(moved) < loss(variables)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"slots": 0}, "slots must be >= 1, got 0"),
        ({"discount": 1.5}, r"discount must be in \[0, 1\], got 1.5"),
        ({"scatter": ("item",)}, "reads FIELD:NUMBER:NUMBER, got 'item'"),
        (
            {"scatter": ("price:2:1",)},
            "needs a candidate field of kind id, a single one, got 'price'",
        ),
        ({"scatter": ("item:2:2",)}, "1 <= MOST < WINDOW <= slots, got 'item:2:2'"),
        ({"quota": ("item:1:2",)}, "field of kind dense, a single one, got 'item'"),
        ({"quota": ("price:3:2",)}, "LEAST <= MOST <= slots, got 'price:3:2'"),
    ],
)
def test_config_rejects_nonsense(options, said):
    with pytest.raises(ValueError, match=said):
        generator.Config(schema=SCHEMA, **options)


def test_constraints_hold_in_every_slate():
    config = dataclasses.replace(CONFIG, scatter=("item:2:1",), quota=("price:1:2",))
    batch = requests(batch=4, candidates=8, seed=5)
    batch["candidate"]["item"] = np.array([[3, 3, 3, 4, 4, 5, 6, 7]] * 4, np.int32)
    batch["candidate"]["price"] = np.array([[1, 1, 1, -1, -1, -1, 0, 0]] * 4, np.float32)
    made = generator_of(config)
    encoded = generator.encode(made.variables, config, batch)
    seeds = jnp.arange(4, dtype=jnp.uint32)
    steps = jnp.zeros(40)
    order = np.asarray(
        generator.decode(made.variables, config, encoded, steps=steps, noise=seeds).order
    )
    rows = np.arange(4)[:, None, None]
    item, price = batch["candidate"]["item"][rows, order], batch["candidate"]["price"][rows, order]
    assert (order >= 0).all()
    assert (item[..., 1:] != item[..., :-1]).all()
    assert ((price > 0).sum(axis=-1) >= 1).all() and ((price > 0).sum(axis=-1) <= 2).all()


def test_unseen_kinds_are_alike_to_none():
    """Ten new categories are ten, though all of them share the row of the unseen."""
    config = dataclasses.replace(CONFIG, scatter=("item:3:1",))
    batch = requests(batch=1, candidates=4)
    batch["candidate"]["item"][:] = [[1, 1, 1, 5]]
    made = generator_of(config)
    assert (np.asarray(generator.apply(made.variables, config, batch).order) >= 0).all()


def test_a_quota_counts_by_one_number():
    vector = Field(name="signals", role="candidate", kind="dense", width=2)
    schema = dataclasses.replace(SCHEMA, fields=(*SCHEMA.fields, vector))
    with pytest.raises(ValueError, match="quota needs a candidate field of kind dense, a single"):
        generator.Config(schema=schema, quota=("signals:1:2",))


PREFERRED = dataclasses.replace(CONFIG, preferences=("clicks", "freshness"))


def blended(variables, weights):
    """The plain generator that a pair of preferences makes."""
    params = jax.tree.map(np.asarray, variables["params"])
    plain = dict(params)
    w = np.asarray(weights, np.float32)
    for name in ("encoder", "start"):
        common, own = params[name]["common"], params[name]["own"]
        kernel = common["kernel"] + np.einsum("k,dku->du", w, own["kernel"])
        plain[name] = {"common": {"kernel": kernel, "bias": common["bias"] + w @ own["bias"]}}
    plain["query"] = params["query"] + np.einsum("k,khuw->huw", w, plain.pop("preferred_query"))
    return {**variables, "params": jax.tree.map(jnp.asarray, plain)}


def test_preferences_blend_weights():
    made = generator_of(PREFERRED)
    weights = np.array([[1, 0], [0.3, 0.7], [0.5, 0.5], [0, 1]], np.float32)
    slate = generator.apply(made.variables, PREFERRED, {**BATCH, "preference": weights})
    for b in range(4):
        one = generator.apply(blended(made.variables, weights[b]), CONFIG, BATCH)
        np.testing.assert_array_equal(slate.order[b], one.order[b])
        assert_close(slate.log_probability[b], np.asarray(one.log_probability[b]), ulps=32)


def test_preferences_have_to_come():
    made = generator_of(PREFERRED)
    with pytest.raises(ValueError, match=r"needs preference \(B, 2\), the weights of clicks"):
        generator.apply(made.variables, PREFERRED, BATCH)
    wrong = {**BATCH, "preference": np.ones((4, 3), np.float32)}
    with pytest.raises(ValueError, match=r"preference must have shape \(B, 2\), got \(4, 3\)"):
        generator.apply(made.variables, PREFERRED, wrong)


def test_dropout_is_for_training_only():
    config = dataclasses.replace(CONFIG, embedding_dropout=0.5)
    batch = with_slate([[0, 1, 2], [0, 2, 3], [5, 4, 3], [2, 1, 0]], [[1.0] * 3] * 4)
    v = generator_of().variables
    loss = lambda key: generator.loss(v, config, batch, key=jax.random.key(key))[0]
    assert loss(0) == loss(0) != loss(1)
    one, other = (generator.apply(v, c, BATCH).log_probability for c in (CONFIG, config))
    np.testing.assert_array_equal(one, other)
