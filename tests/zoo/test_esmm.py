"""ESMM against its equations, written out in NumPy float64; the losses of its comparisons."""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from recjax.zoo import esmm
from recjax.zoo.features import Field, Schema, Table, example_batch
from testing import assert_close

SCHEMA = Schema(
    tables=(Table(name="item", rows=30, dim=4), Table(name="user_kind", rows=5, dim=3)),
    fields=(
        Field(name="user_kind", role="user"),
        Field(name="item", role="history"),
        Field(name="item", role="candidate"),
        Field(name="price", role="candidate", kind="dense"),
    ),
    tasks=("click", "order"),
)
BATCH = example_batch(SCHEMA, batch=4, history=5, candidates=3, seed=4)
BATCH["candidate_mask"][1, 2] = False
BATCH["weight"] = {
    task: np.random.default_rng(i).uniform(0.5, 2, (4, 3)).astype(np.float32)
    for i, task in enumerate(SCHEMA.tasks)
}
MODES = ("esmm", "click_only", "shared_bottom", "mmoe")
EXTREMES = np.array([-60.0, -30.0, -1.0, 0.0, 2.0, 30.0, 60.0])


def config_of(mode="esmm", **options):
    return esmm.Config(schema=SCHEMA, mode=mode, tower_units=(6, 5), experts=3, **options)


@functools.cache
def variables_of(config):
    """Numbers of the shapes of `init`, none of them at its special start."""
    shapes = jax.eval_shape(lambda: esmm.init(jax.random.key(0), config))
    rng = np.random.default_rng(1)
    draw = lambda x: jnp.asarray(rng.normal(0, 0.5, x.shape), jnp.float32)
    return jax.tree.map(draw, shapes)


@functools.cache
def differentiate(config):
    def loss(variables, batch):
        return esmm.loss(variables, config, batch, key=jax.random.key(0))

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


# --- the same again in float64 -----------------------------------------------------------------


def exact_layers(params, x, start, stop):
    for i in range(start, stop):
        layer = params[f"dense_{i - start}"]
        x = np.maximum(x @ layer["kernel"] + layer["bias"], 0)
    return x


def exact_logits(variables, config):
    """a and b of every impression."""
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)
    item, kinds, params = exact["tables"]["item"], exact["tables"]["user_kind"], exact["params"]
    item[0] = 0
    units = len(config.tower_units)
    result = np.zeros((2, 4, 3))
    for b, c in np.ndindex(4, 3):
        keys = item[BATCH["history"]["item"][b][BATCH["history_mask"][b]]]
        pooled = keys.sum(axis=0)
        if config.pooling == "mean":
            pooled = pooled / max(len(keys), 1)
        query = item[BATCH["candidate"]["item"][b, c]]
        user, price = kinds[BATCH["user"]["user_kind"][b]], BATCH["candidate"]["price"][b, c]
        x = np.concatenate([user, query, [price], pooled, *([query * pooled] * config.product)])
        for t, task in enumerate(("click", "conversion")):
            h, shared = x, 0
            if config.mode == "shared_bottom":
                h, shared = exact_layers(params["bottom"], x, 0, units - 1), units - 1
            if config.mode == "mmoe":
                gate = np.exp(x @ params[f"{task}_gate"]["kernel"])
                gate, shared = gate / gate.sum(), units - 1
                h = sum(
                    gate[e] * exact_layers(params[f"expert_{e}"], x, 0, units - 1) for e in range(3)
                )
            h = exact_layers(params[task], h, shared, units)
            out = params[task]["logit"]
            result[t, b, c] = (h @ out["kernel"] + out["bias"])[0]
    return result


def exact_logs(a, b):
    """log p and log(1 - p) of p = sigmoid(a) sigmoid(b)."""
    log_p = -np.logaddexp(0, -a) - np.logaddexp(0, -b)
    small, large = np.minimum(log_p, -0.5), np.maximum(log_p, -0.5)
    return log_p, np.where(log_p < -0.5, np.log1p(-np.exp(small)), np.log(-np.expm1(large)))


def exact_terms(variables, config):
    a, b = exact_logits(variables, config)
    real, weight = BATCH["candidate_mask"], BATCH["weight"]
    y, z = (BATCH["label"][task].astype(np.float64) for task in SCHEMA.tasks)

    def mean(label, log_p, log_not_p, weight):
        each = -label * log_p - (1 - label) * log_not_p
        return (weight * each)[real].sum() / weight[real].sum()

    logs = lambda logit: (-np.logaddexp(0, -logit), -np.logaddexp(0, logit))
    terms = {"ctr": mean(y, *logs(a), weight["click"])}
    if config.mode == "esmm":
        terms["ctcvr"] = mean(y * z, *exact_logs(a, b), weight["order"])
    else:
        terms["cvr"] = mean(z, *logs(b), y * weight["order"])
    return terms


@pytest.mark.parametrize(
    "config",
    [*map(config_of, MODES), config_of(product=True, pooling="mean")],
    ids=[*MODES, "esmm, product of means"],
)
def test_scores_and_losses_are_the_equations(config):
    variables = variables_of(config)
    a, b = exact_logits(variables, config)
    log_p, log_not_p = exact_logs(a, b)
    output = jax.jit(lambda v: esmm.apply(v, config, BATCH))(variables)
    assert output.tasks.keys() == {"click", "order"}
    assert_close(output.tasks["click"], a, ulps=16)  # a chain of four products
    assert_close(output.tasks["order"], log_p - log_not_p, ulps=16)
    np.testing.assert_array_equal(output.logit, output.tasks["order"])
    log_cvr = -np.logaddexp(0, -b)
    logs = {"click": log_p - log_cvr, "order_given_click": log_cvr, "order": log_p}
    assert output.log_probabilities is not None
    assert output.log_probabilities.keys() == logs.keys()
    for name, exact in logs.items():
        assert_close(output.log_probabilities[name], exact, ulps=16)

    (value, aux), _ = differentiate(config)(variables, BATCH)
    terms = exact_terms(variables, config)
    assert aux.terms.keys() == terms.keys()
    for name, exact in terms.items():
        assert_close(aux.terms[name], exact, ulps=16)
    assert_close(value, sum(terms.values()), ulps=16)


def test_a_product_of_probabilities_at_the_ends_of_float32():
    """In float32 a sigmoid is 1 from 17 on: at 60 neither log(1 - p) nor a slope could be had."""
    a, b = (x.ravel() for x in np.meshgrid(EXTREMES, EXTREMES))
    joint = jax.jit(lambda a, b: esmm.joint_logit(a[None], b[None])[0])
    got = joint(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))
    log_p, log_not_p = exact_logs(a, b)
    np.testing.assert_allclose(got, log_p - log_not_p, rtol=1e-6, atol=1e-6)
    # And the loss of either label, with its slopes: -dlog p / da = -sigmoid(-a).
    for label, exact in ((1.0, -log_p), (0.0, -log_not_p)):

        def loss(a, b, sign=2 * label - 1):
            return jax.nn.softplus(-sign * joint(a, b))

        a32, b32 = (jnp.asarray(x, jnp.float32) for x in (a, b))
        np.testing.assert_allclose(loss(a32, b32), exact, rtol=1e-5, atol=1e-37)
        slope = jax.grad(lambda a, b, f=loss: f(a, b).sum())(a32, b32)
        p, down = np.exp(log_p), np.exp(-np.logaddexp(0, a))
        expected = -down if label else down * p / -np.expm1(log_p)
        np.testing.assert_allclose(slope, expected, rtol=1e-5, atol=1e-37)


def test_entire_space_means_that_unclicked_impressions_train_the_conversion_tower():
    nothing_clicked = {**BATCH, "label": {**BATCH["label"], "click": np.zeros((4, 3), np.float32)}}
    for mode in MODES:
        config = config_of(mode)
        (_, aux), gradient = differentiate(config)(variables_of(config), nothing_clicked)
        moves = [np.abs(g).max() > 0 for g in jax.tree.leaves(gradient["params"]["conversion"])]
        assert all(moves) if mode == "esmm" else not any(moves)
        if mode != "esmm":
            assert aux.terms["cvr"] == 0


def test_a_conversion_without_a_click_does_not_count():
    """The label is y * z, whatever the column says."""
    clean = {**BATCH, "label": {**BATCH["label"]}}
    clean["label"]["order"] = BATCH["label"]["click"] * BATCH["label"]["order"]
    assert (clean["label"]["order"] != BATCH["label"]["order"]).any()
    for mode in MODES:
        step, variables = differentiate(config_of(mode)), variables_of(config_of(mode))
        assert step(variables, clean)[0][0] == step(variables, BATCH)[0][0]
    # Nobody knows what an item without a click would have led to: a log may say so.
    label = BATCH["label"]
    unknown = {**label, "order": np.where(label["click"] > 0, label["order"], np.nan)}
    for mode in MODES:
        step, variables = differentiate(config_of(mode)), variables_of(config_of(mode))
        assert step(variables, {**BATCH, "label": unknown})[0][0] == step(variables, BATCH)[0][0]


def test_stopped_gradients_leave_the_click_tower_to_its_own_loss():
    free, stopped = config_of(), config_of(stop_click_gradient=True)
    variables = variables_of(free)
    (value, aux), through = differentiate(free)(variables, BATCH)
    (same, _), held = differentiate(stopped)(variables, BATCH)
    assert same == value
    click_alone = {**BATCH, "weight": {**BATCH["weight"], "order": np.zeros((4, 3), np.float32)}}
    (ctr, _), alone = differentiate(free)(variables, click_alone)
    assert ctr == aux.terms["ctr"]
    close = functools.partial(
        jax.tree.map, functools.partial(np.testing.assert_allclose, rtol=1e-5)
    )
    close(held["params"]["click"], alone["params"]["click"])
    close(held["params"]["conversion"], through["params"]["conversion"])
    assert not np.allclose(
        through["params"]["click"]["logit"]["bias"], alone["params"]["click"]["logit"]["bias"]
    )


def test_what_the_modes_share():
    shapes = {
        mode: jax.tree.map(jnp.shape, variables_of(config_of(mode)))["params"] for mode in MODES
    }
    layer = lambda i, o: {"kernel": (i, o), "bias": (o,)}
    whole = {"dense_0": layer(12, 6), "dense_1": layer(6, 5), "logit": layer(5, 1)}
    head = {"dense_0": layer(6, 5), "logit": layer(5, 1)}
    bottom, gate = {"dense_0": layer(12, 6)}, {"kernel": (12, 3)}
    towers = {"click": whole, "conversion": whole}
    heads = {"click": head, "conversion": head}
    assert shapes["esmm"] == shapes["click_only"] == towers
    assert shapes["shared_bottom"] == {"bottom": bottom, **heads}
    experts = {f"expert_{i}": bottom for i in range(3)}
    assert shapes["mmoe"] == {
        **experts, "click_gate": gate, "conversion_gate": gate, **heads
    }  # fmt: skip


@pytest.mark.parametrize(
    "options, said",
    [
        (
            {"schema": Schema(tables=SCHEMA.tables, fields=SCHEMA.fields)},
            r"ESMM needs two tasks in Config.schema: click, conversion; got \('click',\)",
        ),
        ({"mode": "mmoe", "tower_units": (5,)}, r"two layers or more in mode 'mmoe'.*got \(5,\)"),
        (
            {"mode": "click_only", "stop_click_gradient": True},
            "needs mode 'esmm', got 'click_only'",
        ),
        ({"mode": "unbiased"}, "'unbiased'"),
        ({"experts": 0}, "experts must be >= 1, got 0"),
    ],
)
def test_config_rejects_nonsense(options, said):
    with pytest.raises((ValueError, jaxtyping.TypeCheckError), match=said):
        esmm.Config(**{"schema": SCHEMA, **options})
