"""DIN and its base model against their equations, written out in NumPy float64."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from recjax.zoo import din, mlp
from recjax.zoo.features import Field, Schema, Table, example_batch
from recjax.zoo.layers.losses import click_loss
from recjax.zoo.layers.tower import Dice, dice, masked_moments, prelu
from testing import assert_close

SCHEMA = Schema(
    tables=(Table(name="item", rows=30, dim=4), Table(name="user_kind", rows=5, dim=3)),
    fields=(
        Field(name="user_kind", role="user"),
        Field(name="item", role="history"),
        Field(name="item", role="candidate"),
        Field(name="price", role="candidate", kind="dense"),
    ),
)
BATCH = example_batch(SCHEMA, batch=3, history=5, candidates=2, seed=4)


def variables_of(model, config):
    """Initial variables, every number moved away from its special start (zeros, equal slopes)."""
    fresh = model.init(jax.random.key(0), config)
    rng = np.random.default_rng(1)
    noisy = jax.tree.map(
        lambda x: x + rng.normal(0, 0.3, x.shape).astype(np.float32),
        {"tables": fresh["tables"], "params": fresh["params"]},
    )
    return {**fresh, **noisy}


def in_float64(variables):
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)
    item = exact["tables"]["item"]
    item[0] = 0
    return exact, item


def leaky(x, alpha):
    return np.maximum(x, 0) + alpha * np.minimum(x, 0)


def exact_tower(params, x, units):
    for i in range(units):
        x = x @ params[f"dense_{i}"]["kernel"] + params[f"dense_{i}"]["bias"]
        x = leaky(x, params[f"prelu_{i}"])
    return (x @ params["logit"]["kernel"] + params["logit"]["bias"])[0]


def exact_score(score, variables, config):
    """Every logit by `score(user, query, price, keys)`, keys being the real behaviours alone."""
    _, item = in_float64(variables)
    kinds = np.asarray(variables["tables"]["user_kind"], np.float64)
    logits = np.zeros((3, 2))
    for b in range(3):
        keys = item[BATCH["history"]["item"][b][BATCH["history_mask"][b]]]
        for c in range(2):
            query = item[BATCH["candidate"]["item"][b, c]]
            user = kinds[BATCH["user"]["user_kind"][b]]
            logits[b, c] = score(user, query, BATCH["candidate"]["price"][b, c], keys)
    return logits


@pytest.mark.parametrize("pooling", ["sum", "mean"])
@pytest.mark.parametrize("product", [False, True])
def test_mlp_is_its_equation(pooling, product):
    config = mlp.Config(schema=SCHEMA, tower_units=(6, 5), pooling=pooling, product=product)
    variables = variables_of(mlp, config)
    params, _ = in_float64(variables)

    def score(user, query, price, keys):
        pooled = keys.sum(axis=0) / (max(len(keys), 1) if pooling == "mean" else 1)
        parts = [user, query, [price], pooled, *([query * pooled] if product else [])]
        return exact_tower(params["params"]["tower"], np.concatenate(parts), 2)

    got = mlp.apply(variables, config, BATCH).logit
    assert_close(got, exact_score(score, variables, config), ulps=16)  # a chain of four products


@pytest.mark.parametrize("normalize", ["none", "softmax"])
def test_din_is_its_equation(normalize):
    config = din.Config(
        schema=SCHEMA, attention_units=(7, 6), tower_units=(6, 5), normalize=normalize, product=True
    )
    variables = variables_of(din, config)
    params, _ = in_float64(variables)
    unit = params["params"]["attention"]
    seen = []

    def score(user, query, price, keys):
        weights = []
        for key in keys:
            z = np.concatenate([query, key, query - key, query * key])
            for i in range(2):
                z = leaky(z @ unit[f"kernel_{i}"] + unit[f"bias_{i}"], unit[f"alpha_{i}"])
            weights.append((z @ unit["out_kernel"])[0] + unit.get("out_bias", 0))
        weights = np.array(weights)
        if normalize == "softmax" and len(weights):
            weights = np.exp(weights - weights.max())
            weights = weights / weights.sum()
        seen.append(weights)
        interest = weights @ keys if len(weights) else np.zeros(4)
        parts = [user, query, [price], interest, query * interest]
        return exact_tower(params["params"]["tower"], np.concatenate(parts), 2)

    got = din.apply(variables, config, BATCH).logit
    assert_close(got, exact_score(score, variables, config), ulps=32)  # a chain of seven products

    mask = np.broadcast_to(BATCH["history_mask"][:, None], (3, 2, 5))
    weights = np.asarray(din.attention(variables, config, BATCH))
    assert_close(weights[mask], np.concatenate(seen), ulps=32)
    assert not weights[~mask].any()


def test_the_parameter_trees_are_stable():
    """Checkpoints depend on these names: changing them is a breaking change."""
    config = din.Config(schema=SCHEMA, attention_units=(7,), tower_units=(6,))
    assert jax.tree.map(jnp.shape, din.init(jax.random.key(0), config)) == {
        "tables": {"item": (30, 4), "user_kind": (5, 3)},
        "params": {
            "attention": {
                "kernel_0": (16, 7),
                "bias_0": (7,),
                "alpha_0": (7,),
                "out_kernel": (7, 1),
                "out_bias": (),
            },
            "tower": {
                "dense_0": {"kernel": (12, 6), "bias": (6,)},
                "prelu_0": (6,),
                "logit": {"kernel": (6, 1), "bias": (1,)},
            },
        },
        "batch_stats": {},
    }
    softmax = din.init(jax.random.key(0), din.Config(schema=SCHEMA, normalize="softmax"))
    assert "out_bias" not in softmax["params"]["attention"]  # its gradient would be zero


def test_the_order_of_the_history_does_not_matter():
    config = din.Config(schema=SCHEMA)
    variables = variables_of(din, config)
    flipped = {
        **BATCH,
        "history": {"item": BATCH["history"]["item"][:, ::-1]},
        "history_mask": BATCH["history_mask"][:, ::-1],
    }
    got = np.asarray(din.apply(variables, config, flipped).logit, np.float64)
    assert_close(din.apply(variables, config, BATCH).logit, got, ulps=8)


def test_without_softmax_the_intensity_of_interest_counts():
    """Twice the same history doubles the interest, unless it is normalised (section 4.3)."""
    twice = {
        **BATCH,
        "history": {"item": np.tile(BATCH["history"]["item"], (1, 2))},
        "history_mask": np.tile(BATCH["history_mask"], (1, 2)),
    }
    heard = BATCH["history_mask"].any(axis=1)
    assert heard.any()
    for normalize, same in (("none", False), ("softmax", True)):
        config = din.Config(schema=SCHEMA, normalize=normalize)
        variables = variables_of(din, config)
        one, two = (din.apply(variables, config, batch).logit for batch in (BATCH, twice))
        assert np.allclose(one[heard], two[heard], atol=1e-5) == same


def test_click_loss_is_the_weighted_mean_of_the_real_candidates():
    batch = {
        "candidate_mask": np.array([[True, True], [True, False]]),
        "label": {"click": np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)},
        "weight": {"click": np.array([[3.0, 1.0], [1.0, 9.0]], np.float32)},
    }
    logit = jnp.array([[0.5, -1.0], [2.0, 100.0]])
    softplus = lambda x: np.log1p(np.exp(x))
    expected = (3 * softplus(-0.5) + softplus(-1.0) + softplus(2.0)) / (3 + 1 + 1)
    assert_close(click_loss(logit, batch, "click"), np.float64(expected))
    # One logit, not a two-way softmax averaged over both classes: that would be half of this.
    del batch["weight"]
    expected = (softplus(-0.5) + softplus(-1.0) + softplus(2.0)) / 3
    assert_close(click_loss(logit, batch, "click"), np.float64(expected))


def test_prelu_and_dice_are_their_equations():
    x = np.array([[-2.0, 1.0], [3.0, -0.5]], np.float32)
    alpha = np.array([0.25, 0.1], np.float32)
    expected = np.array([[-0.5, 1.0], [3.0, -0.05]])
    assert_close(prelu(jnp.asarray(x), jnp.asarray(alpha)), expected)
    mean, variance = np.array([0.5, 0.25]), np.array([6.25, 0.5625])
    p = 1 / (1 + np.exp(-(x - mean) / np.sqrt(variance + 1e-8)))
    arguments = (jnp.asarray(v, jnp.float32) for v in (x, alpha, mean, variance))
    assert_close(dice(*arguments), p * x + (1 - p) * alpha * x)


def test_dice_counts_real_entries_only():
    x = np.array([[[1.0], [3.0], [1e6]]], np.float32)
    mask = np.array([[True, True, False]])
    mean, variance = masked_moments(jnp.asarray(x), jnp.asarray(mask))
    assert (mean, variance) == (2.0, 1.0)  # (1 + 3) / 2 and ((1 - 2)^2 + (3 - 2)^2) / 2
    nothing = masked_moments(jnp.asarray(x), jnp.zeros((1, 3), bool))
    assert nothing == (0.0, 0.0)


def test_dice_uses_the_batch_in_training_and_averages_afterwards():
    layer, mask = Dice(), jnp.ones((1, 2), bool)
    x = jnp.array([[[1.0], [3.0]]])
    variables = layer.init(jax.random.key(0), x, mask, False)
    variables["params"]["alpha"] = jnp.array([0.5])
    trained, updated = layer.apply(variables, x, mask, True, mutable=["batch_stats"])
    running = updated["batch_stats"]["running"]
    np.testing.assert_allclose(running["mean"], 0.01 * 2.0, rtol=1e-5)
    np.testing.assert_allclose(running["variance"], 0.99 * 1.0 + 0.01 * 1.0, rtol=1e-6)
    sigmoid = lambda z: 1 / (1 + np.exp(-z))
    p = sigmoid(1.0)  # (3 - 2) / 1
    np.testing.assert_allclose(trained[0, 1, 0], p * 3 + (1 - p) * 0.5 * 3, rtol=1e-5)
    p = sigmoid(3.0)  # (3 - 0) / 1: the averages have not moved in `variables`
    served = layer.apply(variables, x, mask, False)
    np.testing.assert_allclose(served[0, 1, 0], p * 3 + (1 - p) * 0.5 * 3, rtol=1e-5)
    alone = layer.apply(variables, x[:, 1:], mask[:, 1:], False)
    assert alone[0, 0, 0] == served[0, 1, 0]  # a prediction does not depend on its batch mates


def test_a_constant_channel_has_finite_gradients():
    layer, mask = Dice(), jnp.ones((2, 3), bool)
    variables = layer.init(jax.random.key(0), jnp.ones((2, 3, 1)), mask, False)
    score = lambda x: layer.apply(variables, x, mask, True, mutable=["batch_stats"])[0].sum()
    assert jnp.isfinite(jax.grad(score)(jnp.full((2, 3, 1), 7.0))).all()


def test_init_needs_no_memory():
    huge = SCHEMA.with_rows({"item": 2_000_000_000})
    config = din.Config(schema=huge)
    shapes = jax.eval_shape(lambda key: din.init(key, config), jax.random.key(0))
    assert shapes["tables"]["item"].shape == (2_000_000_000, 4)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"attention_units": ()}, "attention_units must name at least one layer"),
        ({"attention_units": (8, 0)}, r"attention_units must be >= 1, got \(8, 0\)"),
        # Behind these two stand the type checks of the tests; users meet our own messages.
        ({"normalize": "max"}, "'max'"),
        ({"activation": "gelu"}, "'gelu'"),
        ({"embedding_dropout": 1.0}, r"embedding_dropout must be in \[0, 1\), got 1.0"),
    ],
)
def test_config_rejects_nonsense(options, said):
    with pytest.raises((ValueError, jaxtyping.TypeCheckError), match=said):
        din.Config(schema=SCHEMA, **options)
