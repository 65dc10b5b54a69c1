"""Soft search against a sort in NumPy float64."""

import functools

import jax
from jax import export
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from recjax.kernels.soft_search import api, chunked, soft_search
from recjax.kernels.soft_search.cases import CASES
from testing import assert_close

SMALL = {case.name: case for case in CASES if not case.bench}
RAGGED = SMALL["ragged"]
VERSIONS = {name: entry.fn for name, entry in api.IMPLEMENTATIONS.items()}
# Blocks that do not divide 5 requests.
VERSIONS["uneven"] = functools.partial(chunked.soft_search, config=chunked.Config(requests=2))


@pytest.fixture(params=VERSIONS)
def search(request):
    return jax.jit(VERSIONS[request.param], static_argnames="k")


def exact(keys, queries, mask, k):
    """One list per (request, candidate): real behaviours by falling score, then by recency."""
    keys, queries = np.asarray(keys, np.float64), np.asarray(queries, np.float64)
    shape = (*queries.shape[:2], k)
    indices, found, scores = np.zeros(shape, int), np.zeros(shape, bool), np.full(shape, -np.inf)
    for b, c in np.ndindex(shape[:2]):
        ranked = sorted((keys[b, i] @ queries[b, c], i) for i in np.flatnonzero(mask[b]))
        for j, (score, i) in enumerate(ranked[::-1][:k]):
            indices[b, c, j], found[b, c, j], scores[b, c, j] = i, True, score
    return indices, found, scores


def same(found, expected):
    return all(map(np.array_equal, found, expected))


@pytest.mark.parametrize("case", SMALL)
def test_finds_what_a_sort_finds(search, case):
    """Scores are whole numbers, hence exact, and full of ties."""
    keys, queries, mask = SMALL[case].inputs()
    found = search(keys, queries, mask, k=SMALL[case].k)
    assert [x.dtype for x in found] == [jnp.int32, jnp.bool, jnp.float32]
    assert same(found, exact(keys, queries, mask, SMALL[case].k))


def test_ties_are_broken_by_recency(search):
    """Zero and minus zero are a tie too."""
    keys = jnp.array([[[1.0], [0.0], [-0.0], [0.0], [-0.0], [-1.0]]])
    found = search(keys, jnp.ones((1, 1, 1)), jnp.ones((1, 6), bool), k=6)
    assert found.indices.tolist() == [[[0, 4, 3, 2, 1, 5]]]


def test_padding_never_beats_negative_scores(search):
    """Masked keys of zeros, and of anything else."""
    for junk in (0.0, 9.0, np.nan, np.inf):
        keys = jnp.array([[[junk], [-1.0], [junk], [-2.0], [junk]]])
        mask = jnp.array([[False, True, False, True, False]])
        found = search(keys, jnp.ones((1, 1, 1)), mask, k=3)
        assert same(found, ([[[1, 3, 0]]], [[[True, True, False]]], [[[-1.0, -2.0, -np.inf]]]))


def test_a_broken_key_is_seen(search):
    keys = jnp.array([[[1.0], [np.nan], [2.0]]])
    found = search(keys, jnp.ones((1, 1, 1)), jnp.ones((1, 3), bool), k=1)
    assert found.mask.all() and np.isnan(found.scores).all()


def test_random_scores(search):
    rng = np.random.default_rng(0)
    keys, queries = (rng.normal(size=(5, n, 8)).astype("f") for n in (40, 3))
    mask = rng.random((5, 40)) < 0.7
    found, expected = search(keys, queries, mask, k=7), exact(keys, queries, mask, 7)
    assert same(found[:2], expected[:2])
    assert_close(found.scores, expected[2])
    assert same(search(keys, queries, mask, k=7), found)  # the same bits again


def test_bfloat16_computes_in_float32(search):
    """Sums of squares above 256 are no longer whole in bfloat16."""
    rng = np.random.default_rng(0)
    keys, queries = (jnp.asarray(rng.integers(-9, 10, (5, n, 30)), "bfloat16") for n in (40, 3))
    mask = jnp.ones((5, 40), bool)
    assert same(search(keys, queries, mask, k=9), exact(keys, queries, mask, 9))


def test_nothing_carries_a_gradient(search):
    keys, queries, mask = RAGGED.inputs()
    total = lambda a, b: jnp.where((found := search(a, b, mask, k=4)).mask, found.scores, 0).sum()
    gradients = jax.grad(total, argnums=(0, 1))(keys, queries)
    assert not any(x.any() for x in gradients)


def test_export_with_a_symbolic_batch():
    keys, queries, mask = RAGGED.inputs()
    batch = export.symbolic_shape("batch")[0]
    shapes = [jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype) for x in (keys, queries, mask)]
    exported = export.export(jax.jit(lambda *args: tuple(soft_search(*args, k=4))))(*shapes)
    expected = exact(keys, queries, mask, 4)
    for size in (1, 5):
        got = exported.call(keys[:size], queries[:size], mask[:size])
        assert same(got, [x[:size] for x in expected])


def test_export_with_a_symbolic_length():
    keys, queries, mask = RAGGED.inputs()
    length = export.symbolic_shape("length")[0]
    like = lambda x, axis: jax.ShapeDtypeStruct(
        (*x.shape[:axis], length, *x.shape[axis + 1 :]), x.dtype
    )
    shapes = like(keys, 1), jax.ShapeDtypeStruct(queries.shape, queries.dtype), like(mask, 1)
    exported = export.export(jax.jit(lambda *args: tuple(soft_search(*args, k=4))))(*shapes)
    for size in (2, 11):
        got = exported.call(keys[:, :size], queries, mask[:, :size])
        assert same(got, exact(keys[:, :size], queries, mask[:, :size], 4))


def test_memory_does_not_grow_with_the_scores():
    def temporary(batch):
        f = jax.jit(functools.partial(chunked.soft_search, k=4, config=chunked.Config(2)))
        shapes = [(batch, 500, 2), (batch, 8, 2)]
        args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        args.append(jax.ShapeDtypeStruct((batch, 500), jnp.bool))
        return f.lower(*args).compile().memory_analysis().temp_size_in_bytes

    growth = temporary(64) - temporary(16)
    assert growth < 48 * 8 * 500 * 4 / 2  # half of what the scores alone would add


@pytest.fixture
def unchecked_types():
    """In tests jaxtyping would refuse these calls first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k must be an integer >= 1, got 0"),
        ({"k": 2.0}, r"k must be an integer >= 1, got 2\.0"),
        ({"implementation": "ann"}, r"implementation must be None or one of .*, got 'ann'"),
        ({"keys": np.zeros((5, 3), "f")}, r"keys must have 3 axes, got shape \(5, 3\)"),
        ({"keys": np.zeros((5, 11, 3), "i4")}, "keys must be float32 or bfloat16, got int32"),
        (
            {"queries": np.zeros((5, 3, 4), "f")},
            r"queries must have shape \(5, 3, 3\), got \(5, 3, 4\)",
        ),
        ({"mask": np.zeros((5, 3), bool)}, r"mask must have shape \(5, 11\), got \(5, 3\)"),
        ({"mask": np.zeros((5, 11), "f")}, "mask must be bool, got float32"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_refusals_name_argument_rule_and_value(unchecked_types, change, message):
    keys, queries, mask = RAGGED.inputs()
    arguments = {"keys": keys, "queries": queries, "mask": mask, "k": 4} | change
    with pytest.raises(ValueError, match=message):
        soft_search(**arguments)


def test_blocks_need_sizes():
    keys, queries, mask = RAGGED.inputs()
    batch = export.symbolic_shape("batch")[0]
    shapes = [jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype) for x in (keys, queries, mask)]
    forced = jax.jit(functools.partial(soft_search, k=4, implementation="chunked"))
    with pytest.raises(NotImplementedError, match="chunked: blocks need known sizes"):
        export.export(forced)(*shapes)
