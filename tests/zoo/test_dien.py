"""DIEN against its equations, written out in NumPy float64."""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from recjax.zoo import dien
from recjax.zoo.contract import Requirements
from recjax.zoo.features import Field, Schema, Table, example_batch
from testing import assert_close

SCHEMA = Schema(
    tables=(Table(name="item", rows=30, dim=3), Table(name="kind", rows=5, dim=2)),
    fields=(
        Field(name="kind", role="user"),
        Field(name="item", role="history"),
        Field(name="kind", role="history"),
        Field(name="item", role="candidate"),
        Field(name="price", role="candidate", kind="dense"),
    ),
)
SMALL = {"attention_units": (6, 4), "auxiliary_units": (6, 4), "tower_units": (5,)}


def batch_of(seed=4):
    """A batch with a hole, a full history and an empty one."""
    batch = example_batch(SCHEMA, batch=3, history=5, candidates=2, seed=seed)
    rng = np.random.default_rng(seed)
    batch["history_mask"] = np.array([[1, 1, 0, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], bool)
    ids = lambda rows: rng.integers(1, rows, (3, 5)).astype(np.int32)
    batch["history"] = {"item": ids(30), "kind": ids(5)}
    batch["history_negative"] = {"item": ids(30)}
    return batch


BATCH = batch_of()
SERVED = {k: v for k, v in BATCH.items() if k not in ("label", "weight", "history_negative")}


def variables_of(config):
    """Initial variables, every number moved away from its special start (zeros, equal slopes)."""
    fresh = dien.init(jax.random.key(0), config)
    rng = np.random.default_rng(1)
    noisy = jax.tree.map(
        lambda x: x + rng.normal(0, 0.3, x.shape).astype(np.float32),
        {"tables": fresh["tables"], "params": fresh["params"]},
    )
    return {**fresh, **noisy}


@functools.partial(jax.jit, static_argnums=1)
def logits(variables, config, batch):
    return dien.apply(variables, config, batch).logit


@functools.partial(jax.jit, static_argnums=1)
def loss_of(variables, config, batch):
    return dien.loss(variables, config, batch, key=jax.random.key(3))


# The model in float64, one request and candidate at a time.


def in_float64(variables):
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)
    for table in exact["tables"].values():
        table[0] = 0
    return exact["tables"], exact["params"]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def leaky(x, alpha):
    return np.maximum(x, 0) + alpha * np.minimum(x, 0)


def dense(params, x):
    return x @ params["kernel"] + params.get("bias", 0)


def gru_step(params, x, h, names=("u", "r", "n")):
    cut = lambda w: dict(zip(names, np.split(w, len(names), axis=-1), strict=True))
    w, u, b = (cut(params[name]) for name in ("input", "recurrent", "bias"))
    gate = {g: sigmoid(x @ w[g] + h @ u[g] + b[g]) for g in names[:-1]}
    return gate.get("u"), np.tanh(x @ w["n"] + gate["r"] * (h @ u["n"]) + b["n"])


def gru_states(params, xs):
    states, h = [], np.zeros(params["recurrent"].shape[0])
    for x in xs:
        u, new = gru_step(params, x, h)
        h = (1 - u) * h + u * new
        states.append(h)
    return np.array(states).reshape(len(xs), len(h))


def exact_attention(params, query, states, config):
    scores = []
    if config.attention == "mlp":
        projected = leaky(dense(params["query"]["dense"], query), params["query"]["alpha"])
    else:
        projected = dense(params["query"], query)
    for h in states:
        if config.attention == "bilinear":
            scores.append(h @ projected)
            continue
        unit = params["attention"]
        z = np.concatenate([projected, h, projected - h, projected * h])
        for i in range(2):
            z = leaky(z @ unit[f"kernel_{i}"] + unit[f"bias_{i}"], unit[f"alpha_{i}"])
        scores.append((z @ unit["out_kernel"])[0] + unit.get("out_bias", 0))
    scores = np.array(scores)
    if config.attn_scale == "sigmoid":
        return sigmoid(scores)
    share = np.exp(scores) / np.exp(scores).sum()
    return share * len(scores) if config.attn_scale == "softmax_length" else share


def exact_evolution(params, query, interests, config):
    cell = params["evolution"]
    if config.evolution == "gru":
        states = gru_states(cell, interests)
        return exact_attention(params, query, states, config) @ states
    h = np.zeros(interests.shape[1])
    for a, x in zip(exact_attention(params, query, interests, config), interests, strict=True):
        if config.evolution == "agru":
            _, new = gru_step(cell, x, h, ("r", "n"))
            take = a
        elif config.evolution == "aigru":
            take, new = gru_step(cell, a * x, h)
        else:
            u, new = gru_step(cell, x, h)
            take = a * u if config.evolution == "augru" else 1 - (1 - a) * (1 - u)
        h = (1 - take) * h + take * new
    return h


def exact_request(variables, b):
    """Behaviours that are real, in order, and their interests."""
    tables, params = in_float64(variables)
    real = BATCH["history_mask"][b]
    ids = {name: value[b][real] for name, value in BATCH["history"].items()}
    items = tables["item"][ids["item"]]
    behaviours = np.concatenate([items, tables["kind"][ids["kind"]]], axis=1)
    negatives = tables["item"][BATCH["history_negative"]["item"][b][real]]
    return items, negatives, behaviours, gru_states(params["extractor"], behaviours)


def exact_logits(variables, config):
    tables, params = in_float64(variables)
    result = np.zeros((3, 2))
    for b, c in np.ndindex(3, 2):
        items, _, behaviours, interests = exact_request(variables, b)
        query = tables["item"][BATCH["candidate"]["item"][b, c]]
        evolved = np.zeros(interests.shape[1])
        if len(items):
            evolved = exact_evolution(params, query, interests, config)
        user = tables["kind"][BATCH["user"]["kind"][b]]
        parts = [user, query, [BATCH["candidate"]["price"][b, c]]]
        if config.product:
            count = max(len(behaviours), 1) if config.pooling == "mean" else 1
            pooled = behaviours.sum(axis=0) / count
            parts += [pooled, evolved, query * pooled[:3]]
        else:
            parts += [evolved]
        x = dense(params["tower"]["dense_0"], np.concatenate(parts))
        x = leaky(x, params["tower"]["prelu_0"])
        result[b, c] = dense(params["tower"]["logit"], x)[0]
    return result


def exact_auxiliary(variables):
    """The mean over all pairs of neighbours, holes closed."""
    net = in_float64(variables)[1]["next_behaviour"]

    def score(h, e):
        x = np.concatenate([h, e])
        for i in range(2):
            x = sigmoid(dense(net[f"dense_{i}"], x))
        return sigmoid(dense(net["logit"], x)[0])

    terms = []
    for b in range(3):
        items, negatives, _, interests = exact_request(variables, b)
        for t in range(len(items) - 1):
            yes = score(interests[t], items[t + 1])
            no = score(interests[t], negatives[t + 1])
            terms.append(-np.log(yes) - np.log(1 - no))
    assert len(terms) == (3 - 1) + (5 - 1)
    return np.mean(terms)


VARIANTS = [
    {},
    {"hidden_units": 4, "product": True},
    {"evolution": "augru_release", "attention": "bilinear", "attn_scale": "softmax_length"},
    {"evolution": "agru", "attn_scale": "sigmoid", "product": True, "pooling": "mean"},
    {"evolution": "aigru", "attention": "bilinear", "attn_scale": "sigmoid"},
    {"evolution": "gru", "attention": "bilinear"},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_dien_is_its_equations(options):
    config = dien.Config(schema=SCHEMA, **SMALL, **options)
    variables = variables_of(config)
    # A chain of two recurrences of five steps, attention, and a tower.
    assert_close(logits(variables, config, SERVED), exact_logits(variables, config), ulps=64)


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_the_loss_is_the_click_loss_and_the_auxiliary_loss(weight):
    config = dien.Config(schema=SCHEMA, auxiliary_weight=weight, **SMALL)
    variables = variables_of(config)
    total, aux = loss_of(variables, config, BATCH)
    p = sigmoid(exact_logits(variables, config))
    y = BATCH["label"]["click"]
    bce = -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p))
    auxiliary = exact_auxiliary(variables)
    assert_close(aux.terms, {"bce": np.float64(bce), "auxiliary": auxiliary}, ulps=32)
    assert_close(total, np.float64(bce + weight * auxiliary), ulps=32)


def test_no_auxiliary_loss_no_negatives():
    config = dien.Config(schema=SCHEMA, auxiliary_weight=0.0, **SMALL)
    assert dien.requirements(config) == Requirements()
    variables = variables_of(config)
    assert "next_behaviour" not in variables["params"]
    batch = {k: v for k, v in BATCH.items() if k != "history_negative"}
    total, aux = loss_of(variables, config, batch)
    assert set(aux.terms) == {"bce"} and total == aux.terms["bce"]
    for kind in ("uniform", "log_popularity"):
        needs = dien.requirements(dien.Config(schema=SCHEMA, auxiliary_negatives=kind))
        assert needs == Requirements(history_negatives=kind)


def test_negatives_are_dropped_like_the_events():
    """Otherwise an event could be told from a negative by its zeros."""
    batch = batch_of()
    batch["history_negative"] = {"item": np.arange(15, 30, dtype=np.int32).reshape(3, 5)}
    for role in ("history", "candidate"):
        batch[role] = {**batch[role], "item": batch[role]["item"] % 14 + 1}

    def gradient(rate):
        config = dien.Config(schema=SCHEMA, embedding_dropout=rate, **SMALL)
        variables = variables_of(config)

        def loss(tables):
            return loss_of({**variables, "tables": tables}, config, batch)[0]

        # Rows that are negatives of the second to fifth event of the full history.
        return np.asarray(jax.grad(loss)(variables["tables"])["item"][21:25])

    assert (gradient(0.0) != 0).all()
    assert 0.2 < (gradient(0.5) == 0).mean() < 0.8


def test_the_order_of_the_history_matters():
    config = dien.Config(schema=SCHEMA, **SMALL)
    variables = variables_of(config)
    flipped = {
        **SERVED,
        "history": {name: value[:, ::-1] for name, value in SERVED["history"].items()},
        "history_mask": SERVED["history_mask"][:, ::-1],
    }
    one, other = (np.asarray(logits(variables, config, batch)) for batch in (SERVED, flipped))
    assert (np.abs(one - other)[:2] > 1e-4).all()
    assert np.array_equal(one[2], other[2])


@pytest.mark.parametrize("evolution", ["augru", "agru", "augru_release"])
def test_without_attention_there_is_no_history(evolution):
    """With a = 0 the last state is the first, h'_0 = 0; not so in the released form."""
    config = dien.Config(schema=SCHEMA, evolution=evolution, attn_scale="sigmoid", **SMALL)
    variables = variables_of(config)
    variables["params"]["attention"]["out_bias"] = np.float32(-1e4)
    nobody = {**SERVED, "history_mask": np.zeros((3, 5), bool)}
    one, other = (np.asarray(logits(variables, config, batch)) for batch in (SERVED, nobody))
    assert np.array_equal(one[:2], other[:2]) == (evolution != "augru_release")


def test_scales_of_attention():
    score = jnp.array([[[0.25, 0.75, 0.0], [0.5, -0.5, 0.0]]])
    mask = jnp.array([[True, True, False]])
    at = lambda scale: np.asarray(dien.scaled(score, mask, scale), np.float64)[0, 0]
    assert at("softmax").tolist() == [0.25, 0.75, 0.0]
    assert at("softmax_length").tolist() == [2 * 0.25, 2 * 0.75, 0.0]
    np.testing.assert_allclose(
        at("sigmoid"), [1 / (1 + np.exp(-0.25)), 1 / (1 + np.exp(-0.75)), 0], rtol=1e-6
    )


def test_the_parameter_tree_is_stable():
    """Checkpoints depend on these names: changing them is a breaking change."""
    config = dien.Config(schema=SCHEMA, **SMALL)
    params = jax.tree.map(jnp.shape, dien.init(jax.random.key(0), config)["params"])
    layer = lambda rows, units: {"kernel": (rows, units), "bias": (units,)}
    assert params == {
        "extractor": {"input": (5, 15), "recurrent": (5, 15), "bias": (15,)},
        "evolution": {"input": (5, 15), "recurrent": (5, 15), "bias": (15,)},
        "query": {"dense": layer(3, 5), "alpha": (5,)},
        "attention": {
            "kernel_0": (20, 6),
            "bias_0": (6,),
            "alpha_0": (6,),
            "kernel_1": (6, 4),
            "bias_1": (4,),
            "alpha_1": (4,),
            "out_kernel": (4, 1),
        },
        "next_behaviour": {
            "dense_0": layer(5 + 3, 6),
            "dense_1": layer(6, 4),
            "logit": layer(4, 1),
        },
        "tower": {"dense_0": layer(11, 5), "prelu_0": (5,), "logit": layer(5, 1)},
    }
    agru = dien.init(jax.random.key(0), dien.Config(schema=SCHEMA, evolution="agru", **SMALL))
    assert agru["params"]["evolution"]["input"].shape == (5, 10)  # no update gate


def test_gates_start_by_remembering():
    config = dien.Config(schema=SCHEMA, **SMALL)
    bias = dien.init(jax.random.key(0), config)["params"]["extractor"]["bias"]
    assert bias.tolist() == 5 * [-1.0] + 5 * [1.0] + 5 * [0.0]


@pytest.mark.parametrize(
    "options, said",
    [
        ({"attention_units": ()}, "attention_units must name at least one layer"),
        ({"auxiliary_units": ()}, "auxiliary_units must name at least one layer"),
        ({"hidden_units": 0}, "hidden_units must be >= 1, got 0"),
        ({"auxiliary_weight": -1.0}, "auxiliary_weight must be >= 0, got -1.0"),
        # Behind these stand the type checks of the tests; users meet our own messages.
        ({"evolution": "lstm"}, "'lstm'"),
        ({"attn_scale": "none"}, "'none'"),
        ({"auxiliary_negatives": "popular"}, "'popular'"),
    ],
)
def test_config_rejects_nonsense(options, said):
    with pytest.raises((ValueError, jaxtyping.TypeCheckError), match=said):
        dien.Config(schema=SCHEMA, **options)


def test_config_needs_an_item():
    apart = Schema(
        tables=SCHEMA.tables,
        fields=(Field(name="item", role="history"), Field(name="kind", role="candidate")),
    )
    with pytest.raises(ValueError, match="must have a field of history and candidate, got none"):
        dien.Config(schema=apart)
