"""SIM against its equations, written out in NumPy float64."""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from recjax.zoo import sim
from recjax.zoo.features import Field, Schema, Table, example_batch
from recjax.zoo.layers import exact_search
from testing import assert_close

SCHEMA = Schema(
    tables=(
        Table(name="item", rows=30, dim=4),
        Table(name="category", rows=9, dim=2),
        Table(name="behavior", rows=5, dim=3),
    ),
    fields=(
        Field(name="item", role="history"),
        Field(name="behavior", role="history"),
        Field(name="category", role="history"),
        Field(name="category", role="candidate"),
        Field(name="price", role="candidate", kind="dense"),
        Field(name="item", role="candidate"),
    ),
)
D, E, LENGTH, SHORT = 6, 9, 9, 2
SIZES = {
    "short_length": SHORT, "search_dim": 3, "heads": 2, "head_dim": 3, "interval_dim": 2,
    "attention_units": (4,), "tower_units": (5,),
}  # fmt: skip


def config_of(**options):
    return sim.Config(schema=SCHEMA, **{**SIZES, **options})


# Few, and used again and again: each costs seconds of compilation.
CONFIGS = {
    "soft": config_of(top_k=2, alpha=0.5, beta=2.0),
    "all": config_of(top_k=50, product=True, project_value=True, heads=3, interval_dim=0),
    "hard": config_of(search="hard", product=True, alpha=9.0, beta=0.5),
}


def batch_of(config, batch=4, seed=8):
    """Histories of 8, 2, 9 and 7 events, with holes where there is room."""
    found = sim.requirements(config).retrieved
    made = example_batch(SCHEMA, batch=batch, history=LENGTH, seed=seed, retrieved=found)
    rng = np.random.default_rng(seed)
    mask = rng.permuted(np.arange(LENGTH) < np.array([[8], [2], [9], [7]]), axis=1)[:batch]
    drawn = lambda rows: rng.integers(1, rows, (batch, LENGTH)).astype(np.int32)
    made["history"] = {"item": drawn(30), "category": drawn(9), "behavior": drawn(5)}
    age = -np.sort(-rng.integers(0, 10**7, (batch, LENGTH)), axis=1)
    return {**made, "history_mask": mask, "history_age": age.astype(np.int32)}


def variables_of(config):
    """Of the shapes of `init`, all random."""
    shapes = jax.eval_shape(lambda: sim.init(jax.random.key(0), config))
    rng = np.random.default_rng(1)
    draw = lambda x: jnp.asarray(rng.normal(0, 0.4, x.shape), x.dtype)
    return jax.tree.map(draw, shapes)


@functools.cache
def compiled(config):
    """(scores, total, terms) of (variables, batch); the loss needs no key without subsampling."""

    def run(variables, batch):
        served = {key: value for key, value in batch.items() if key != "label"}
        total, aux = sim.loss(variables, config, batch, key=jax.random.key(0))
        return sim.apply(variables, config, served).logit, total, aux.terms

    return jax.jit(run)


def in_float64(variables):
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)
    for table in exact["tables"].values():
        table[0] = 0
    return exact["tables"], exact["params"]


def leaky(x, alpha):
    return np.maximum(x, 0) + alpha * np.minimum(x, 0)


def exact_tower(params, x):
    x = leaky(x @ params["dense_0"]["kernel"] + params["dense_0"]["bias"], params["prelu_0"])
    return (x @ params["logit"]["kernel"] + params["logit"]["bias"])[0]


def exact_short(unit, query, keys):
    """DIN without softmax; the query has no behavior."""
    interest, q = np.zeros(E), np.concatenate([query, np.zeros(3)])
    for k in keys:
        z = np.concatenate([q, k, q - k, q * k])
        h = leaky(z @ unit["kernel_0"] + unit["bias_0"], unit["alpha_0"])
        interest += (h @ unit["out_kernel"] + unit["out_bias"]) * k
    return interest


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def exact_heads(unit, config, query, keys, ages):
    """The heads, zeros for no event."""
    z = keys
    if config.interval_dim:
        bucket = np.minimum(np.floor(np.log2(1 + ages / 3600)), 31).astype(int)
        z = np.concatenate([keys, unit["intervals"][bucket]], axis=1)
    heads = []
    for i in range(config.heads):
        scores = (z @ unit[f"w_b_{i}"]) @ (query @ unit[f"w_a_{i}"])
        head = softmax(scores) @ z if len(z) else np.zeros(z.shape[1])
        heads.append(head @ unit[f"w_v_{i}"] if config.project_value else head)
    return heads


def exact(variables, config, batch):
    """(logit, logit of soft search), each (B, C)."""
    tables, params = in_float64(variables)
    logits = np.zeros((2, *batch["candidate_mask"].shape))
    look_up = lambda ids, at: np.concatenate(
        [tables[name][ids[name][at]] for name in ("category", "item", "behavior") if name in ids],
        axis=-1,
    )
    for b, c in np.ndindex(logits.shape[1:]):
        query, price = look_up(batch["candidate"], (b, c)), batch["candidate"]["price"][b, c]
        real = np.flatnonzero(batch["history_mask"][b])
        short, older = real[len(real) - min(SHORT, len(real)) :], real[: max(len(real) - SHORT, 0)]
        keys, ages = look_up(batch["history"], (b, older)), batch["history_age"][b, older]
        r = np.zeros(0)
        if config.search == "soft":
            r = (keys @ params["w_b"]) @ (query @ params["w_a"])
            best = sorted(range(len(r)), key=lambda i: (-r[i], -i))[: config.top_k]
            found, found_ages = keys[best], ages[best]
        else:
            g = batch["group"][b, c]
            at = np.flatnonzero(batch["retrieved_mask"][b, g]) if g >= 0 else []
            found = np.array([look_up(batch["retrieved"], (b, g, i)) for i in at]).reshape(-1, E)
            found_ages = np.array([batch["retrieved_age"][b, g, i] for i in at])
        heads = exact_heads(params["exact"], config, query, found, found_ages)
        v = exact_short(params["attention"], query, look_up(batch["history"], (b, short)))
        parts = [query, [price], v, *heads, [float(len(found) == 0)]]
        if config.product:
            if not config.project_value:
                parts += [query * head[:D] for head in heads]
            parts += [query * v[:D]]
        logits[0, b, c] = exact_tower(params["tower"], np.concatenate(parts))
        if config.search == "soft":
            u = r @ keys
            parts = [query, [price], u, *([query * u[:D]] if config.product else [])]
            logits[1, b, c] = exact_tower(params["search_tower"], np.concatenate(parts))
    return logits


def exact_bce(logit, batch):
    return np.mean(np.log1p(np.exp(logit)) - batch["label"]["click"] * logit)


@pytest.mark.parametrize("name", CONFIGS)
def test_scores_and_every_term_are_their_equations(name):
    """With K >= L soft search finds all ("all"): exact search is then attention over all."""
    config = CONFIGS[name]
    variables, batch = variables_of(config), batch_of(config)
    logit, search_logit = exact(variables, config, batch)
    got, total, terms = compiled(config)(variables, batch)
    assert_close(got, logit, ulps=32)  # a chain of some eight products
    expected = {"bce": exact_bce(logit, batch)}
    if config.search == "soft":
        expected["search"] = exact_bce(search_logit, batch)
    assert terms.keys() == expected.keys()
    assert_close(terms, expected, ulps=32)
    parts = {"bce": config.beta, "search": config.alpha}
    assert_close(total, np.float64(sum(parts[name] * e for name, e in expected.items())), ulps=32)


def test_padding_never_beats_negative_scores():
    """Padding scores 0, and every event less: public code lost events to it."""
    config = CONFIGS["soft"]
    variables, batch = variables_of(config), batch_of(config)
    params = variables["params"]
    variables["tables"] = jax.tree.map(jnp.abs, variables["tables"])
    params["w_a"], params["w_b"] = jnp.abs(params["w_a"]), -jnp.abs(params["w_b"])
    logit, _ = exact(variables, config, batch)
    assert_close(compiled(config)(variables, batch)[0], logit, ulps=32)


def test_hard_search_is_a_filter():
    """A candidate sees its own group alone, and -1 sees nothing."""
    config = CONFIGS["hard"]
    variables, batch = variables_of(config), batch_of(config)
    batch["retrieved_mask"][:] = True
    batch["group"] = np.tile(np.array([[0, 1]], np.int32), (4, 1))
    apply = lambda variables, batch: np.asarray(compiled(config)(variables, batch)[0])
    expected = apply(variables, batch)

    other = np.arange(2) != 0
    changed = {**batch, "retrieved": {k: v.copy() for k, v in batch["retrieved"].items()}}
    changed["retrieved"]["item"][:, other] = 1 + changed["retrieved"]["item"][:, other] % 29
    got = apply(variables, changed)
    assert np.array_equal(got[:, 0], expected[:, 0])
    assert np.abs(got[:, 1] - expected[:, 1]).min() > 1e-6

    nothing = apply(variables, {**batch, "group": np.full((4, 2), -1, np.int32)})
    emptied = {**batch, "retrieved_mask": np.zeros_like(batch["retrieved_mask"])}
    assert np.array_equal(nothing, apply(variables, emptied))
    assert np.abs(nothing - expected).min() > 1e-6
    # Nor does it look at the events between the newest and the groups.
    older = {**batch, "history_mask": batch["history_mask"].copy()}
    older["history_mask"][0, np.flatnonzero(older["history_mask"][0])[:6]] = False
    assert np.array_equal(apply(variables, older), expected)


def test_what_learns_from_which_term():
    """W_a and W_b learn from the search's own term alone: there is no gradient through indices."""
    config = CONFIGS["soft"]
    variables, batch = variables_of(config), batch_of(config)

    def terms(params):
        held = {**variables, "params": params}
        return sim.loss(held, config, batch, key=jax.random.key(0))[1].terms

    gradients = jax.jit(jax.jacrev(terms))(variables["params"])
    some = lambda tree: any(x.any() for x in jax.tree.leaves(tree))
    learns = {
        term: {part for part, tree in gradient.items() if some(tree)}
        for term, gradient in gradients.items()
    }
    assert learns == {
        "bce": {"attention", "exact", "tower"},
        "search": {"w_a", "w_b", "search_tower"},
    }


def test_both_searches_start_as_similarity():
    """Keys are projected as queries are, but for what only a behaviour has."""
    config = config_of()
    params = sim.init(jax.random.key(0), config)["params"]
    pairs = [(params["w_a"], params["w_b"])]
    pairs += [(params["exact"][f"w_a_{i}"], params["exact"][f"w_b_{i}"]) for i in range(2)]
    for query_kernel, key_kernel in pairs:
        np.testing.assert_array_equal(key_kernel[:D], query_kernel)
        assert jnp.abs(key_kernel[D:]).min() > 0


def test_subsampling_takes_real_events_at_random():
    """One of 6 older events: the search's term is one of 6 values, and each of them turns up."""
    config = config_of(subsample=1, alpha=2.0)
    batch = batch_of(config, batch=1)
    variables = variables_of(config)
    older = np.flatnonzero(batch["history_mask"][0])[:6]
    expected = []
    for event in older:
        mask = batch["history_mask"].copy()
        mask[0, older[older != event]] = False
        alone = exact(variables, config, {**batch, "history_mask": mask})[1]
        expected.append(exact_bce(alone, batch))
    keys = jax.random.split(jax.random.key(0), 60)
    loss = lambda key: sim.loss(variables, config, batch, key=key)
    total, aux = jax.jit(jax.vmap(loss))(keys)
    gap = np.abs(np.asarray(aux.terms["search"])[:, None] - np.array(expected))
    assert (gap.min(axis=1) < 1e-5).all()
    assert set(gap.argmin(axis=1)) == set(range(6))
    assert np.ptp(aux.terms["bce"]) == 0.0  # the model itself searches in all of them
    assert_close(total, np.asarray(aux.terms["bce"] + 2.0 * aux.terms["search"], np.float64))


def test_intervals():
    hour = 3600
    age = [-5, 0, hour - 1, hour, 3 * hour - 1, 3 * hour, 7 * hour - 1, 7 * hour, 2**31 - 1]
    assert exact_search.interval(jnp.array(age)).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 19]


def test_a_source_without_a_clock():
    """The same as intervals that mean nothing."""
    config = CONFIGS["soft"]
    variables, batch = variables_of(config), batch_of(config)
    timeless = {key: value for key, value in batch.items() if key != "history_age"}
    scores = compiled(config)(variables, timeless)[0]
    assert np.abs(scores - compiled(config)(variables, batch)[0]).max() > 1e-4
    unit = variables["params"]["exact"]
    unit["intervals"] = jnp.zeros_like(unit["intervals"])
    assert_close(scores, np.asarray(compiled(config)(variables, batch)[0]))


def test_the_history_is_split_by_recency():
    batch = {
        "history": {"item": jnp.array([[5, 6, 7, 8, 9, 4], [1, 2, 3, 4, 5, 6]])},
        "history_mask": jnp.array([[True, False, True, True, False, True], [False] * 5 + [True]]),
        "history_age": jnp.array([[60, 50, 40, 30, 20, 10]] * 2),
    }
    newest, older = sim.split(batch, 2)
    kept = lambda events, key: [
        np.asarray(v)[np.asarray(m)].tolist()
        for v, m in zip(events[key] if key != "item" else events["history"]["item"],
                        events["history_mask"], strict=True)
    ]  # fmt: skip
    assert (kept(newest, "item"), kept(older, "item")) == ([[8, 4], [6]], [[5, 7], []])
    assert (kept(newest, "history_age"), kept(older, "history_age")) == (
        [[30, 10], [10]],
        [[60, 40], []],
    )
    newest, older = sim.split(batch, 50)  # longer than the history
    assert kept(newest, "item") == [[5, 7, 8, 4], [6]]
    assert not older["history_mask"].any()


def test_relevance_pooling_never_scores_every_pair():
    rng = np.random.default_rng(0)
    sizes = ((2, 50, 3), (2, 40, 3), (2, 40, 5))
    arrays = [jnp.asarray(rng.normal(size=size), "float32") for size in sizes]
    q, k, v = (np.asarray(x, np.float64) for x in arrays)
    expected = np.einsum("bcl,ble->bce", np.einsum("bca,bla->bcl", q, k), v)
    assert_close(sim.relevance_pooling(*arrays), expected)
    equations = jax.make_jaxpr(sim.relevance_pooling)(*arrays).eqns
    assert max(x.aval.size for eqn in equations for x in eqn.outvars) < 2 * 50 * 40


def test_the_parameter_tree_is_stable():
    """Checkpoints depend on these names: changing them is a breaking change."""
    shapes = lambda **options: jax.tree.map(jnp.shape, variables_of(config_of(**options))["params"])
    tower = lambda width: {
        "dense_0": {"kernel": (width, 5), "bias": (5,)},
        "prelu_0": (5,),
        "logit": {"kernel": (5, 1), "bias": (1,)},
    }
    Z = E + 2
    common = {
        "attention": {
            "kernel_0": (4 * E, 4),
            "bias_0": (4,),
            "alpha_0": (4,),
            "out_kernel": (4, 1),
            "out_bias": (),
        },
        "exact": {
            "intervals": (32, 2),
            **{f"w_a_{i}": (D, 3) for i in range(2)},
            **{f"w_b_{i}": (Z, 3) for i in range(2)},
        },
        "tower": tower(D + 1 + E + 2 * Z + 1),
    }
    assert shapes(search="hard") == common
    soft = {"w_a": (D, 3), "w_b": (E, 3), "search_tower": tower(D + 1 + E)}
    assert shapes() == {**common, **soft}


def test_requirements():
    assert sim.requirements(config_of(top_k=7)).retrieved == 0
    needs = sim.requirements(config_of(search="hard", top_k=7, group_by="brand"))
    assert (needs.retrieved, needs.group_by) == (7, "brand")


@pytest.mark.parametrize(
    "options, said",
    [
        ({"search": "both"}, "'both'"),
        ({"top_k": 0}, "top_k must be >= 1, got 0"),
        ({"short_length": 0}, "short_length must be >= 1, got 0"),
        ({"alpha": 0.0}, "alpha must be > 0, got 0.0"),
        ({"subsample": -1}, "subsample must be >= 0, got -1"),
        ({"attention_units": ()}, "attention_units must name at least one layer"),
        ({"schema": Schema(tables=(), fields=())}, "must have a field of history and candidate"),
    ],
)
def test_config_rejects_nonsense(options, said):
    with pytest.raises((ValueError, jaxtyping.TypeCheckError), match=said):
        config_of(**options) if "schema" not in options else sim.Config(**options)
