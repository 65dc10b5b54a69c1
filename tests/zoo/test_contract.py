"""What every model of the zoo promises (see `recjax.zoo.contract`).

A new model is tested by standing in `MODELS`. `VARIANTS` adds options under which a model must
keep the same promises.
"""

import functools
from pathlib import Path

from flax import nnx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax.train import tables
from recjax.train.data.batches.deduplicate import deduplicate
from recjax.train.settings import Settings
from recjax.train.step import initial_state, make_step, parallel_step, shard
from recjax.zoo import MODELS
from recjax.zoo.features import Field, Schema, Table, example_batch

# Few tables, each read by several fields: every table costs compile time. Their sizes are steps of
# `padded_size`, so that pulled tables can be as large as whole ones, and compile once.
SCHEMA = Schema(
    tables=(
        Table(name="item", rows=56, dim=8),
        Table(name="category", rows=20, dim=4),
        Table(name="small", rows=12, dim=3),
    ),
    fields=(
        Field(name="segment", role="user", table="small"),
        Field(name="hour", role="context", table="small"),
        Field(name="temperature", role="context", kind="dense"),
        Field(name="item", role="history"),
        Field(name="category", role="history"),
        Field(name="tag", role="history", kind="bag", width=3, table="category"),
        Field(name="behavior", role="history", table="small"),
        Field(name="item", role="candidate"),
        Field(name="category", role="candidate"),
        Field(name="tag", role="candidate", kind="bag", width=3, table="category"),
        Field(name="position", role="candidate", table="small"),
        Field(name="image", role="candidate", kind="dense", width=3),
    ),
    tasks=("click", "conversion"),
)
FOR_LOSSES = {
    "label", "weight", "history_negative", "sampled", "sampled_log_q", "candidate_log_q",
}  # fmt: skip

VARIANTS = {
    "mlr": {"structured": {"pieces": 3, "structured": True, "pooling": "mean"}},
    "mlp": {
        "dice": {"activation": "dice"},
        "mean": {"pooling": "mean", "product": True},
    },
    "din": {
        "softmax": {"normalize": "softmax", "product": True},
        "dice": {"attention_activation": "dice", "activation": "dice"},
        "sigmoid": {"attention_activation": "sigmoid", "attention_units": (6,)},
    },
    "dien": {
        "gru": {"evolution": "gru", "attention": "bilinear", "product": True},
        "release": {
            "evolution": "augru_release",
            "attn_scale": "sigmoid",
            "attention_activation": "dice",
            "auxiliary_weight": 0.0,
        },
    },
    "mimn": {
        "none": {"mur": "none", "key_memory": False, "induction_units": 0},
        "release": {"mur": "release", "induction_slots": 2, "auxiliary_weight": 0.5},
    },
    "sim": {
        "default": {"short_length": 2, "top_k": 2},  # short enough for histories of 6
        "hard": {"search": "hard", "short_length": 2, "product": True, "interval_dim": 0},
    },
    "dcn": {
        "mixture": {"cross": "mixture", "gate": "softmax", "structure": "stacked", "rank": 3},
    },
    "mind": {
        "pow": {"attention": "pow", "interests": 2},
        "cosine": {"nearest_draws": True, "agreement": "cosine", "agreement_scale": 10.0},
    },
    "esmm": {"mmoe": {"mode": "mmoe", "tower_units": (12, 6), "experts": 2}},
}
# Other options than the defaults keep the promises too.
CASES = [
    pytest.param(
        (name, options),
        id=f"{name}-{variant}",
        # One process, so that no program is compiled twice.
        marks=[pytest.mark.xdist_group(f"{name}-{variant}")]
        + ([] if variant == "default" else [pytest.mark.variant]),
    )
    for name in MODELS
    for variant, options in {"default": {}, **VARIANTS.get(name, {})}.items()
]


@pytest.fixture(params=CASES, scope="module")
def case(request):
    """(module, config, variables): tables scaled up so that every path carries signal."""
    name, options = request.param
    model = MODELS[name]
    config = model.Config(schema=SCHEMA, **options)
    variables = model.init(jax.random.key(0), config)
    variables["tables"] = jax.tree.map(_with_signal, variables["tables"])
    yield model, config, variables
    _apply.cache_clear()
    _gradient.cache_clear()
    # Thousands of compiled programs in one process run into its limit of memory maps, 65,530.
    if memory_maps() > 20_000:
        jax.clear_caches()


def memory_maps():
    """Of this process, where the system says; elsewhere as if there were too many."""
    try:
        return Path("/proc/self/maps").read_bytes().count(b"\n")
    except OSError:
        return np.inf


def _with_signal(table):
    """Tables scaled up; linear models start from zeros, which say nothing."""
    if table.any():
        return 40.0 * table
    rng = np.random.default_rng(5)
    return jnp.asarray(rng.normal(size=table.shape), jnp.float32).at[0].set(0.0)


def batch_of(case, **sizes):
    """A batch with what the model of `case` requires."""
    model, config, _ = case
    needs = model.requirements(config)
    roles = {
        "history_negatives": needs.history_negatives != "none",
        "retrieved": min(needs.retrieved, 4),
        "sampled": min(needs.sampled, 6),
    }
    return example_batch(SCHEMA, **{"batch": 4, "history": 6, "candidates": 3, **roles, **sizes})


def served(batch):
    return {role: value for role, value in batch.items() if role not in FOR_LOSSES}


def scores(case, batch):
    model, config, variables = case
    return np.asarray(_apply(model, config)(variables, served(batch)).logit)


def terms_of(case, batch):
    model, config, variables = case
    return jax.eval_shape(lambda v: model.loss(v, config, batch, key=jax.random.key(0)), variables)[
        1
    ].terms


@functools.cache
def _apply(model, config):
    return jax.jit(lambda variables, batch: model.apply(variables, config, batch))


@functools.cache
def _gradient(model, config):
    def loss(tables, params, rest, batch):
        variables = {**rest, "tables": tables, "params": params}
        return model.loss(variables, config, batch, key=jax.random.key(7))[0]

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


def gradients(case, batch, tables=None):
    """The loss and its gradients for tables and parameters, as NumPy's: what is then done with
    them, one shape after the other, is not compiled."""
    model, config, variables = case
    tables = variables["tables"] if tables is None else tables
    found = _gradient(model, config)(tables, variables["params"], variables, batch)
    return jax.tree.map(np.asarray, found)


def finite(tree):
    return all(np.isfinite(x).all() for x in jax.tree.leaves(tree))


def close(actual, expected, tolerance=1e-6):
    """Leaf by leaf, against the largest value of the leaf."""
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, e = np.asarray(a), np.asarray(e)
        assert a.shape == e.shape
        limit = tolerance * max(1.0, np.max(np.abs(e), initial=0.0))
        assert np.max(np.abs(a - e), initial=0.0) <= limit


def test_config_is_a_static_argument(case):
    model, config, _ = case
    assert hash(config) == hash(model.Config(**vars(config)))
    with pytest.raises(TypeError):
        model.Config(schema=SCHEMA, no_such_option=1)


def test_init_is_a_function_of_the_key(case):
    model, config, _ = case
    one, same, other = (model.init(jax.random.key(k), config) for k in (1, 1, 2))
    one, same, other = jax.tree.map(np.asarray, (one, same, other))
    assert jax.tree.all(jax.tree.map(np.array_equal, one, same))
    if one["tables"]["item"].any():  # linear models start from zeros
        assert not np.array_equal(one["tables"]["item"], other["tables"]["item"])
    assert set(one["tables"]) == {table.name for table in SCHEMA.tables}


def test_pulled_rows_equal_whole_tables(case):
    _, _, variables = case
    batch = batch_of(case)
    value, (whole, params) = gradients(case, batch)

    pulled, renamed = pull_names(batch)
    small = tables.pull(variables["tables"], pulled.rows)
    small_value, (rows, small_params) = gradients(case, renamed, small)

    close(small_value, value)
    close(small_params, params)
    for name, gradient in whole.items():
        ids, touched = pulled.rows[name], pulled.touched[name]
        close(rows[name][touched], gradient[ids[touched]])
        untouched = np.setdiff1d(np.arange(len(gradient)), ids[touched])
        assert not gradient[untouched].any()


def pull_names(batch):
    """The batch with its ids renamed, field by field."""
    places = id_places(batch)
    ids = {table.name: [] for table in SCHEMA.tables}
    for role, name, table in places:
        ids[table].append(batch[role][name])
    sizes = {table.name: table.rows for table in SCHEMA.tables}
    pulled, renamed = deduplicate(ids, sizes, quantum=2, at_least=sizes)
    result = {k: dict(v) if isinstance(v, dict) else v for k, v in batch.items()}
    for role, name, table in places:
        result[role][name] = renamed[table].pop(0)
    return pulled, result


def id_places(batch):
    """(role, field, table) of everything in the batch that is an id."""
    roles = {
        **{role: SCHEMA.role(role) for role in ("user", "context", "history", "candidate")},
        "retrieved": SCHEMA.role("history"),
        "history_negative": SCHEMA.item_fields,
        "sampled": SCHEMA.item_fields,
    }
    return [
        (role, field.name, field.table_name)
        for role, fields in roles.items()
        for field in fields
        if role in batch and field.kind != "dense"
    ]


def test_candidates_at_once_equal_one_by_one(case):
    batch = batch_of(case)
    together = scores(case, batch)
    for c in range(3):
        alone = {
            **batch,
            "candidate": {k: v[:, c : c + 1] for k, v in batch["candidate"].items()},
            "candidate_mask": batch["candidate_mask"][:, c : c + 1],
        }
        if "group" in batch:
            alone["group"] = batch["group"][:, c : c + 1]
        close(scores(case, alone)[:, 0], together[:, c])


def test_requests_do_not_see_their_batch_mates(case):
    batch = batch_of(case)
    together = scores(case, batch)
    for b in range(4):
        alone = jax.tree.map(lambda x, b=b: x[b : b + 1], served(batch))
        close(scores(case, alone)[0], together[b])


def test_padding_side_extra_padding_and_holes_do_not_matter(case):
    batch = batch_of(case)
    expected = scores(case, batch)
    lengths = batch["history_mask"].sum(axis=1)
    places = {
        "left": lambda n: np.arange(6 - n, 6),
        "extra": lambda n: np.arange(n),
        "holes": lambda n: 2 * np.arange(n) + 1,
    }
    for name, place in places.items():
        width = {"left": 6, "extra": 13, "holes": 13}[name]
        close(scores(case, moved(batch, lengths, place, width)), expected)


def moved(batch, lengths, place, width):
    """The same histories elsewhere in a wider array; junk ids in the masked slots."""
    rng = np.random.default_rng(3)
    result = dict(batch)
    to = [place(n) for n in lengths]

    def scatter(value, junk):
        out = junk.astype(value.dtype)
        for b, n in enumerate(lengths):
            out[b, to[b]] = value[b, :n]
        return out

    shape = (len(lengths), width)
    result["history"] = {
        name: scatter(value, rng.integers(1, 5, shape + value.shape[2:]))
        for name, value in batch["history"].items()
    }
    result["history_mask"] = scatter(batch["history_mask"], np.zeros(shape, bool))
    result["history_age"] = scatter(batch["history_age"], np.zeros(shape, int))
    return result


@pytest.mark.parametrize("length", [0, 1])
def test_degenerate_histories(case, length):
    batch = batch_of(case, history=length)
    batch["history_mask"][:] = True
    assert np.isfinite(scores(case, batch)).all()
    assert finite(gradients(case, batch))
    if length == 0:
        masked = batch_of(case)
        masked["history_mask"][:] = False
        rest = {k: v for k, v in batch.items() if not k.startswith("history")}
        close(scores(case, {**masked, **rest}), scores(case, batch))


def test_all_masked_history_has_finite_gradients(case):
    batch = batch_of(case)
    batch["history_mask"][:] = False
    assert finite(gradients(case, batch))


def test_masked_candidates_do_not_count(case):
    batch = batch_of(case)
    batch["candidate_mask"][:, 1] = False
    expected = gradients(case, batch)
    for label in batch["label"].values():
        label[:, 1] = 1 - label[:, 1]
    batch["candidate"]["item"] = batch["candidate"]["item"].copy()
    batch["candidate"]["item"][:, 1] = 17
    changed = gradients(case, batch)
    close(changed[0], expected[0])
    close(changed[1][1], expected[1][1])
    nothing = {**batch, "candidate_mask": np.zeros_like(batch["candidate_mask"])}
    value, _ = gradients(case, nothing)
    assert np.isfinite(value)
    if len(terms_of(case, batch)) == 1:  # other terms speak of histories
        assert value == 0


def test_weights_scale_examples(case):
    """Weight 2 on every example changes nothing; on one example it is that example twice, here in
    the place of another of weight 0."""
    batch = batch_of(case)
    ones = np.ones_like(batch["label"]["click"])
    expected, _ = gradients(case, batch)
    weighted = lambda weight: {**batch, "weight": dict.fromkeys(SCHEMA.tasks, weight)}
    close(gradients(case, weighted(2 * ones))[0], expected)
    # Dice counts rows; terms beside the click loss speak of histories.
    if len(terms_of(case, batch)) == 1 and "dice" not in str(vars(case[1])):
        heavy = ones.copy()
        heavy[0], heavy[3] = 2, 0
        shared = {k: v for k, v in batch.items() if k.startswith("sampled")}
        twice = jax.tree.map(lambda x: x[[0, 1, 2, 0]], batch) | shared
        close(gradients(case, weighted(heavy))[0], gradients(case, twice)[0])


def test_unseen_ids_are_scored_by_row_one(case):
    batch = batch_of(case)
    batch["candidate"]["item"] = np.ones_like(batch["candidate"]["item"])
    assert np.isfinite(scores(case, batch)).all()
    _, (rows, _) = gradients(case, batch)
    assert rows["item"][1].any()


def test_ids_are_names_not_numbers(case):
    """Renumbering the rows of every table, together with the ids, changes nothing."""
    model, config, variables = case
    batch = batch_of(case)
    rng = np.random.default_rng(0)
    new = {t.name: np.concatenate([[0, 1], 2 + rng.permutation(t.rows - 2)]) for t in SCHEMA.tables}
    moved_tables = {n: t[np.argsort(new[n])] for n, t in variables["tables"].items()}
    renamed = {k: dict(v) if isinstance(v, dict) else v for k, v in batch.items()}
    for role, name, table in id_places(batch):
        renamed[role][name] = new[table][batch[role][name]].astype(np.int32)
    shuffled = (model, config, {**variables, "tables": moved_tables})
    close(scores(shuffled, renamed), scores(case, batch))


def test_jit_equals_eager(case):
    model, config, variables = case
    batch = batch_of(case)
    close(model.apply(variables, config, batch).logit, scores(case, batch))


def test_every_parameter_is_trained(case):
    """A parameter without a gradient is dead weight, or a bug."""
    batches = [batch_of(case, seed=seed) for seed in range(1, 17)]
    every = [gradients(case, batch)[1][1] for batch in batches]
    trained = jax.tree.map(lambda *found: any(x.any() for x in found), *every)
    for path, gets_one in jax.tree.flatten_with_path(trained)[0]:
        assert gets_one, f"{jax.tree_util.keystr(path)} gets no gradient"


def test_exports_with_a_symbolic_batch(case):
    model, config, variables = case
    batch = served(batch_of(case, batch=4))
    size = jax.export.symbolic_shape("b")[0]
    spec = jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype), batch)
    serve = jax.jit(lambda v, b: model.apply(v, config, b).logit)
    held = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), variables)
    exported = jax.export.export(serve, platforms=["cpu", "cuda", "tpu"])(held, spec)
    loaded = jax.export.deserialize(exported.serialize())
    for rows in (4, 1):
        part = jax.tree.map(lambda x, rows=rows: x[:rows], batch)
        close(loaded.call(variables, part), scores(case, part))


def test_wraps_as_nnx(case):
    """The model's one module with a `config`, as NNX sees it: same parameters, same scores."""
    model, config, variables = case
    (module,) = [
        value
        for value in vars(model).values()
        if isinstance(value, type)
        and issubclass(value, nn.Module)
        and "config" in value.__dataclass_fields__
    ]
    batch = served(batch_of(case))
    wrapped = nnx.bridge.lazy_init(nnx.bridge.ToNNX(module(config), rngs=nnx.Rngs(0)), batch)

    def copy(into, values):
        for name, value in values.items():
            held = into[name] if isinstance(into, dict) else getattr(into, name)
            copy(held, value) if isinstance(value, dict) else held.set_value(value)

    for collection in variables.values():
        copy(wrapped, collection)
    close(wrapped(batch).logit, scores(case, batch))


def test_pmap_equals_jit(case):
    """Five steps on one device and on four; SGD, as Adam would turn rounding into steps where a
    gradient is as small as its epsilon."""
    model, config, variables = case
    devices = jax.local_device_count()
    if devices < 4:
        pytest.skip("needs four (simulated) devices")
    rates = {"table_learning_rate": 0.3, "learning_rate": 0.03, "schedule": "constant"}
    settings = Settings(table_optimizer="sgd", optimizer="sgd", **rates)
    single = initial_state(model, config, settings, {})._replace(tables=variables["tables"])
    copies = jax.tree.map(lambda x: np.stack([x] * devices), single)
    step = jax.jit(make_step(model, config, settings, total_steps=100))
    spread = parallel_step(model, config, settings, total_steps=100)
    for seed in range(5):
        pulled, batch = pull_names(batch_of(case, batch=4 * devices, seed=seed))
        single, terms = step(single, batch, pulled)
        copies, all_terms = spread(copies, shard(batch, devices), pulled)
        close(np.asarray(all_terms["loss"])[0], terms["loss"], 1e-5)
    copies = jax.tree.map(np.asarray, copies)
    for leaf in jax.tree.leaves(copies):
        assert (leaf == leaf[:1]).all()
    first = jax.tree.map(lambda x: x[0], copies)
    close((first.tables, first.params), (single.tables, single.params), 1e-5)
    close(first.batch_stats, single.batch_stats, 1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_what_a_batch_lacks_is_named(name):
    """Of the roles and fields that the model reads: some read an item's identity alone."""
    model = MODELS[name]
    config = model.Config(schema=SCHEMA)
    variables = jax.eval_shape(lambda key: model.init(key, config), jax.random.key(0))
    score = lambda batch: jax.eval_shape(lambda v: model.apply(v, config, batch).logit, variables)
    batch = batch_of((model, config, None))
    score(batch)
    for role in ("candidate", "history"):
        mask = f"{role}_mask"
        with pytest.raises(ValueError, match=f"must hold '{mask}'"):
            score({key: value for key, value in batch.items() if key != mask})
        with pytest.raises(ValueError, match=rf"batch\['{role}'\] must hold 'item'"):
            score({**batch, role: {}})
        other = {**batch[role], "item": batch[role]["item"][:, 1:]}
        with pytest.raises(ValueError, match=rf"batch\['{role}'\]\['item'\] must have shape"):
            score({**batch, role: other})
        other = {**batch[role], "item": batch[role]["item"].astype(np.float32)}
        with pytest.raises(ValueError, match=r"\['item'\] must hold whole numbers"):
            score({**batch, role: other})


@pytest.mark.parametrize("name", MODELS)
def test_what_a_loss_lacks_is_named(name):
    model = MODELS[name]
    config = model.Config(schema=SCHEMA)
    variables = jax.eval_shape(lambda key: model.init(key, config), jax.random.key(0))

    def loss(batch):
        value = lambda v: model.loss(v, config, batch, key=jax.random.key(0))[0]
        return jax.eval_shape(value, variables)

    batch = batch_of((model, config, None))
    loss(batch)
    for role in ("label", "history_negative", "sampled"):
        if role in batch:
            with pytest.raises(ValueError, match=rf"loss needs batch\['{role}'\]"):
                loss({key: value for key, value in batch.items() if key != role})
