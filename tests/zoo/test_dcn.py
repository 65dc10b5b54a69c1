"""Cross networks against their equations, written out in NumPy float64."""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from recjax.zoo import dcn
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
)
BATCH = example_batch(SCHEMA, batch=3, history=5, candidates=2, seed=4)
G = {
    "identity": lambda x: x,
    "tanh": np.tanh,
    "hard_tanh": lambda x: np.minimum(np.maximum(x, -1), 1),
}
SMALL = {"tower_units": (6, 5), "rank": 3, "experts": 2, "cross_layers": 3}


def variables_of(config):
    """Numbers of the shapes of `init`, none of them at its special start."""
    shapes = jax.eval_shape(lambda: dcn.init(jax.random.key(0), config))
    rng = np.random.default_rng(1)
    draw = lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), jnp.float32)
    return jax.tree.map(draw, shapes)


def exact_cross(params, config, x0):
    x = x0
    for i in range(config.cross_layers):
        b = params[f"b_{i}"]
        if config.cross == "v1":  # as the paper writes it: an outer product
            x = np.outer(x0, x) @ params[f"w_{i}"][:, 0] + b + x
        elif config.cross == "full":
            x = x0 * (params[f"w_{i}"] @ x + b) + x
        elif config.cross == "low_rank":
            x = x0 * (params[f"u_{i}"] @ (params[f"v_{i}"].T @ x) + b) + x
        else:
            gate = np.ones(config.experts)
            if config.gate != "const":
                name = f"gate_{i}" if config.gate_per_layer else "gate"
                gate = np.exp(x @ params[name])
                gate = gate / (gate.sum() if config.gate == "softmax" else 1 + gate)
            g, total = G[config.g], x
            for k in range(config.experts):
                u, c, v = (params[f"{name}_{i}"][k] for name in "ucv")
                total = total + gate[k] * x0 * (u @ g(c @ g(v.T @ x)) + b)
            x = total
    return x


def exact_layers(params, x, units):
    for i in range(units):
        layer = params[f"dense_{i}"]
        x = np.maximum(x @ layer["kernel"] + layer["bias"], 0)
    return x


def exact_logits(variables, config):
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)
    item, kinds, params = exact["tables"]["item"], exact["tables"]["user_kind"], exact["params"]
    item[0] = 0
    logits = np.zeros((3, 2))
    for b, c in np.ndindex(3, 2):
        keys = item[BATCH["history"]["item"][b][BATCH["history_mask"][b]]]
        pooled = keys.sum(axis=0) / (max(len(keys), 1) if config.pooling == "mean" else 1)
        query = item[BATCH["candidate"]["item"][b, c]]
        user, price = kinds[BATCH["user"]["user_kind"][b]], BATCH["candidate"]["price"][b, c]
        x = np.concatenate([user, query, [price], pooled, *([query * pooled] * config.product)])
        crossed, units = exact_cross(params["cross"], config, x), len(config.tower_units)
        if config.structure == "stacked":
            x, out = exact_layers(params["tower"], crossed, units), params["tower"]["logit"]
        else:
            x = np.concatenate([crossed, exact_layers(params["deep"], x, units)])
            out = params["logit"]
        logits[b, c] = (x @ out["kernel"] + out["bias"])[0]
    return logits


@pytest.mark.parametrize(
    "options",
    [
        {"cross": "v1"},
        {"cross": "v1", "structure": "stacked", "product": True, "pooling": "mean"},
        {"cross": "full"},
        {"cross": "full", "structure": "stacked", "tower_units": ()},
        {"cross": "low_rank", "structure": "stacked"},
        {"cross": "mixture"},
        {"cross": "mixture", "gate": "softmax", "g": "tanh"},
        {"cross": "mixture", "gate": "sigmoid", "g": "identity", "gate_per_layer": True},
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
def test_dcn_is_its_equation(options):
    config = dcn.Config(schema=SCHEMA, **{**SMALL, **options})
    variables = variables_of(config)
    expected = exact_logits(variables, config)
    score = jax.jit(lambda v, b: dcn.apply(v, config, b).logit)
    # Cubes of sums, then a chain of three products.
    assert_close(score(variables, BATCH), expected, ulps=64)


def test_a_batch_of_one_request_and_one_candidate():
    """Nothing is squeezed away, not even one expert of rank one."""
    config = dcn.Config(schema=SCHEMA, **{**SMALL, "cross": "mixture", "experts": 1, "rank": 1})
    variables = variables_of(config)
    one = jax.tree.map(lambda x: x[:1], BATCH)
    one |= jax.tree.map(lambda x: x[:, :1], {k: one[k] for k in ("candidate", "candidate_mask")})
    got = jax.jit(lambda v: dcn.apply(v, config, one).logit)(variables)
    assert_close(got, exact_logits(variables, config)[:1, :1], ulps=64)


def test_what_the_layers_hold():
    def cross(**options):
        config = dcn.Config(schema=SCHEMA, **{**SMALL, "cross_layers": 2, **options})
        shapes = jax.eval_shape(lambda: dcn.init(jax.random.key(0), config))["params"]["cross"]
        return jax.tree.map(lambda x: x.shape, shapes)

    both = lambda **shapes: {f"{name}_{i}": s for name, s in shapes.items() for i in (0, 1)}
    # 2 I numbers a layer, never I^2, in the first version; I = 3 + 4 + 1 + 4.
    assert cross() == both(w=(12, 1), b=(12,))
    assert cross(cross="full") == both(w=(12, 12), b=(12,))
    assert cross(cross="low_rank") == both(u=(12, 3), v=(12, 3), b=(12,))
    experts = both(u=(2, 12, 3), v=(2, 12, 3), c=(2, 3, 3), b=(12,))
    assert cross(cross="mixture") == experts
    assert cross(cross="mixture", gate="softmax") == {**experts, "gate": (12, 2)}
    own = cross(cross="mixture", gate="softmax", gate_per_layer=True)
    assert own == {**experts, **both(gate=(12, 2))}


def random(*shape, seed):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_second_version_with_equal_rows_is_the_first():
    """W = 1 w^T and b = 0."""
    x0, x, w = random(2, 3, 7, seed=0), random(2, 3, 7, seed=1), random(7, seed=2)
    zero, ones = jnp.zeros(7), jnp.ones((7, 1))
    first = np.asarray(dcn.cross_v1(x0, x, w, zero), np.float64)
    assert_close(dcn.cross_full(x0, x, ones @ w[None], zero), first)
    assert_close(dcn.cross_low_rank(x0, x, ones, w[:, None], zero), first)


def test_low_rank_is_full_rank_with_a_product_and_one_linear_expert():
    x0, x, b = random(2, 3, 7, seed=0), random(2, 3, 7, seed=1), random(7, seed=2)
    u, v, c = random(7, 2, seed=3), random(7, 2, seed=4), jnp.eye(2)[None]
    full = np.asarray(dcn.cross_full(x0, x, u @ v.T, b), np.float64)
    assert_close(dcn.cross_low_rank(x0, x, u, v, b), full, ulps=8)
    one = jnp.ones((2, 3, 1))
    mixed = dcn.cross_mixture(x0, x, one, u[None], c, v[None], b, "identity")
    assert_close(mixed, full, ulps=8)


@pytest.mark.parametrize("cross", ["v1", "full", "low_rank"])
def test_l_layers_make_a_polynomial_of_degree_l_plus_one(cross):
    """Along t x_0 the (l + 2)-th differences vanish, the (l + 1)-th do not."""
    config = dcn.Config(schema=SCHEMA, **{**SMALL, "cross": cross})
    network, x0 = dcn.CrossNetwork(config), random(1, 1, 6, seed=5)
    params = network.init(jax.random.key(0), x0)
    t = jnp.arange(6.0)[:, None, None]
    values = np.asarray(network.apply(params, t * x0), np.float64)[:, 0]
    scale = np.abs(values).max()
    assert np.abs(np.diff(values, 4, axis=0)).max() > 1e-3 * scale
    assert np.abs(np.diff(values, 5, axis=0)).max() < 1e-5 * scale


def test_a_cross_layer_learns_a_product_that_no_sum_can_hold():
    """y = sign(x_1 x_2): one cross layer and a linear logit, against a linear logit."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(1, 512, 4)), jnp.float32)
    sign = jnp.sign(x[..., 0] * x[..., 1])

    def margin(parameters, layers):
        w, b, out = parameters
        crossed = dcn.cross_full(x, x, w, b) if layers else x
        return sign * (crossed @ out)

    @functools.partial(jax.jit, static_argnums=0)
    def accuracy(layers):
        start = (random(4, 4, seed=1) * 0.1, jnp.zeros(4), random(4, seed=2) * 0.1)
        loss = lambda p: jax.nn.softplus(-margin(p, layers)).mean()
        descend = lambda _, p: jax.tree.map(lambda v, g: v - 0.5 * g, p, jax.grad(loss)(p))
        trained = jax.lax.fori_loop(0, 150, descend, start)
        return (margin(trained, layers) > 0.0).mean()

    assert accuracy(1) > 0.95 and accuracy(0) < 0.6


@pytest.mark.parametrize(
    "options, said",
    [
        ({"tower_units": ()}, "tower_units must name a layer where structure is 'parallel'"),
        ({"cross_layers": 0}, "cross_layers must be >= 1, got 0"),
        ({"cross": "matrix"}, "'matrix'"),
        ({"gate": "top1"}, "'top1'"),
        ({"g": "relu"}, "'relu'"),
    ],
)
def test_config_rejects_nonsense(options, said):
    with pytest.raises((ValueError, jaxtyping.TypeCheckError), match=said):
        dcn.Config(schema=SCHEMA, **options)
