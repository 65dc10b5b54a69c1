import functools

import jax
from jax import export
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
import jaxtyping
import numpy as np
import pytest

from exact_dot_attention import exact, exact_gradients, float64
from recjax.kernels.dot_attention import api, chunked, dot_attention, pallas_tpu
from recjax.kernels.dot_attention.cases import CASES, Case
from testing import assert_close

SMALL = {case.name: case for case in CASES if not case.bench}
AGED = SMALL["with_intervals"]
# Blocks that divide neither 4 requests nor 6 queries.
UNEVEN = functools.partial(chunked.dot_attention, config=chunked.Config(requests=3, queries=4))
PLAIN = [name for name, entry in api.IMPLEMENTATIONS.items() if entry.kernel is None]
VERSIONS = {name: api.IMPLEMENTATIONS[name].fn for name in PLAIN}
VERSIONS |= {"chosen": dot_attention, "uneven": UNEVEN}


@pytest.fixture(params=VERSIONS)
def attend(request):
    return VERSIONS[request.param]


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradients(attend, args, g):
    """The output, and the gradients of sum(out * g) for query, keys and, if given, the table."""
    query, keys, mask, *more = args
    if not more:
        out, pull = jax.vjp(lambda q, k: attend(q, k, mask), query, keys)
    else:
        interval, table = more
        f = lambda q, k, t: attend(q, k, mask, interval, t)
        out, pull = jax.vjp(f, query, keys, table)
    return out, pull(g.astype(out.dtype))


def cotangent(query):
    return jnp.asarray(np.random.default_rng(1).normal(size=query.shape), query.dtype)


def check(attend, args, ulps=4):
    exactly, g = float64(*args), cotangent(args[0])
    out, gradients = value_and_gradients(attend, args, g)
    assert_close(out, exact(*exactly), ulps=ulps)
    # Gradients through a softmax are differences of near-equal terms: 16 units.
    assert_close(gradients, exact_gradients(*exactly, np.asarray(g, np.float64)), ulps=16)


@pytest.mark.parametrize("case", SMALL)
def test_values_and_gradients_match_definition(attend, case):
    check(attend, SMALL[case].inputs())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("candidates", [1, 3, 100])
@pytest.mark.parametrize("length", [0, 1, 7, 100, 1000, 4097])
def test_any_length(length, candidates, dtype):
    case = Case(
        name="",
        batch=4 if length < 1000 else 2,
        candidates=candidates,
        length=length,
        width=4,
        intervals=6,
        interval_width=3,
    )
    # What a softmax weighs has both signs and, over thousands, cancels: 16 units.
    check(dot_attention, case.inputs(dtype), ulps=4 if length < 1000 else 16)


def test_bfloat16_computes_in_float32(attend):
    args = AGED.inputs(jnp.bfloat16)
    out = attend(*args)
    assert out.dtype == jnp.bfloat16
    # One rounding at the end: half a unit. Sums in bfloat16 would be off by several.
    assert_close(out, exact(*float64(*args)), ulps=0.51)


def test_heads_are_queries(attend):
    """Two heads with projections of their own, against projected keys."""
    rng = np.random.default_rng(0)
    q, k, *of_head = (rng.normal(size=s).astype("f") for s in ((2, 3, 4), (2, 9, 5), *[(4, 6)] * 2))
    w_b = [rng.normal(size=(5, 6)).astype("f") for _ in of_head]
    mask = rng.random((2, 9)) < 0.7
    queries = jnp.stack([(q @ a) @ b.T for a, b in zip(of_head, w_b, strict=True)], axis=2)
    found = attend(queries.reshape(2, 6, 5), jnp.asarray(k), jnp.asarray(mask))
    for i, (a, b) in enumerate(zip(of_head, w_b, strict=True)):
        score = np.einsum("bca,bla->bcl", q @ a, k @ b)
        e = np.exp(score - score.max(axis=-1, keepdims=True)) * mask[:, None]
        expected = np.einsum("bcl,ble->bce", e / e.sum(axis=-1, keepdims=True), k)
        assert np.allclose(found.reshape(2, 3, 2, 5)[:, :, i], expected, atol=1e-5)


def test_an_interval_without_a_row_is_zeros(attend):
    query, keys, mask, interval, table = AGED.inputs()
    for nowhere in (-1, len(table), 1000):
        args = query, keys, mask, interval.at[:, ::3].set(nowhere), table
        assert_close(attend(*args), exact(*float64(*args)))


@pytest.mark.parametrize("poison", [1e9, np.nan, np.inf])
def test_what_masked_keys_hold_goes_nowhere(attend, poison):
    query, keys, mask, interval, table = AGED.inputs()
    g = cotangent(query)
    clean = value_and_gradients(attend, (query, keys, mask, interval, table), g)
    keys = jnp.where(mask[..., None], keys, poison)
    interval = jnp.where(mask, interval, 10**6)
    got = value_and_gradients(attend, (query, keys, mask, interval, table), g)
    assert all(map(np.array_equal, jax.tree.leaves(got), jax.tree.leaves(clean)))
    assert not np.asarray(got[1][1])[~np.asarray(mask)].any()


def test_empty_histories_give_zeros_and_finite_gradients(attend):
    query, keys, mask, *more = AGED.inputs()
    out, gradients = value_and_gradients(
        attend, (query, keys, jnp.zeros_like(mask), *more), jnp.ones(query.shape)
    )
    assert not out.any()
    assert all(not leaf.any() for leaf in gradients)  # NaN is true


def test_padding_and_its_side_do_not_matter(attend):
    query, keys, mask, interval, table = AGED.inputs()
    expected = attend(query, keys, mask, interval, table)
    for sides in ((0, 4), (4, 0), (2, 2)):
        wide = jnp.pad(keys, ((0, 0), sides, (0, 0)), constant_values=3.0)
        real, index = (jnp.pad(x, ((0, 0), sides)) for x in (mask, interval))
        assert_close(attend(query, wide, real, index, table), expected)


def test_vmap_equals_a_loop(attend):
    query, keys, mask, interval, table = AGED.inputs()
    g = cotangent(query)
    stacked = [jnp.stack([x, x[::-1]]) for x in (query, keys, mask, interval)]
    f = lambda q, k, m, i: value_and_gradients(attend, (q, k, m, i, table), g)
    batched = jax.vmap(f)(*stacked)
    for i in range(2):
        assert_close(jax.tree.map(lambda x, i=i: x[i], batched), f(*(x[i] for x in stacked)))


def test_shard_map_equals_jit():
    query, keys, mask, interval, table = AGED.inputs()
    mesh = Mesh(np.array(jax.devices()[:2]), ("devices",))
    over, whole = PartitionSpec("devices"), PartitionSpec()

    def total(query, keys, mask, interval, table):
        own = jnp.sum(jnp.square(dot_attention(query, keys, mask, interval, table)))
        return jax.lax.psum(own, "devices")

    specs = (over, over, over, over, whole)
    mapped = jax.shard_map(total, mesh=mesh, in_specs=specs, out_specs=whole)
    args = (query, keys, mask, interval, table)
    got = jax.jit(jax.value_and_grad(mapped, (0, 1, 4)))(*args)
    plain = lambda *args: jnp.sum(jnp.square(dot_attention(*args)))
    assert_close(got, jax.jit(jax.value_and_grad(plain, (0, 1, 4)))(*args), ulps=16)


def test_export_with_a_symbolic_batch(attend):
    *arrays, table = AGED.inputs()
    f = jax.jit(lambda q, k, m, i: value_and_gradients(attend, (q, k, m, i, table), q))
    batch = export.symbolic_shape("batch")[0]
    shapes = [jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype) for x in arrays]
    exported = export.export(f)(*shapes)
    for size in (1, 4):
        part = [x[:size] for x in arrays]
        assert_close(exported.call(*part), f(*part))


def test_memory_of_a_step_does_not_grow_with_the_batch():
    def temporary(batch):
        case = Case(name="", batch=batch, candidates=4, length=512, width=2)
        query, keys, mask = case.inputs()
        loss = lambda q, k: jnp.sum(jnp.square(chunked.dot_attention(q, k, mask)))
        f = jax.jit(jax.grad(loss, (0, 1)))
        analysis = f.lower(query, keys).compile().memory_analysis()
        return analysis.temp_size_in_bytes, keys.nbytes + mask.nbytes

    (small, small_inputs), (large, large_inputs) = temporary(40), temporary(400)
    scores = 4 * 512 * 4 * (400 - 40)
    # Copies of the inputs, cut into blocks, may grow; scores would be twice as many bytes.
    assert large - small < min(3 * (large_inputs - small_inputs), 2 * scores)


@pytest.fixture
def unchecked_types():
    """In tests jaxtyping would refuse these calls first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"implementation": "cuda"}, "implementation must be None or one of .*, got 'cuda'"),
        ({"query": np.zeros((4, 3), "f")}, r"query must have 3 axes, got shape \(4, 3\)"),
        (
            {"query": np.zeros((4, 6, 3), "f")},
            r"query must have shape \(4, 6, 5\), got \(4, 6, 3\)",
        ),
        ({"query": np.zeros((4, 6, 5), "f2")}, "query must be float32, got float16"),
        ({"keys": np.zeros((4, 40, 3), "i4")}, "keys must be float32 or bfloat16, got int32"),
        ({"mask": np.zeros((4, 40), "f")}, "mask must be bool, got float32"),
        ({"interval": None}, "interval and table must be given both, or neither"),
        ({"interval": np.zeros((4, 40), "i1")}, "interval must be int32, got int8"),
        (
            {"interval": np.zeros((4, 4), "i4")},
            r"interval must have shape \(4, 40\), got \(4, 4\)",
        ),
        ({"table": np.zeros((0, 2), "f")}, "table must have a row at least, got none"),
        ({"table": np.zeros(2, "f")}, r"table must have 2 axes, got shape \(2,\)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_refusals_name_argument_rule_and_value(unchecked_types, change, message):
    names = ("query", "keys", "mask", "interval", "table")
    arguments = dict(zip(names, AGED.inputs(), strict=True)) | change
    with pytest.raises(ValueError, match=message):
        dot_attention(**arguments)


@pytest.mark.parametrize("name", ["F32_F32_F32", "highest", "tensorfloat32"])
def test_any_matrix_precision(name):
    args = AGED.inputs()
    with jax.default_matmul_precision(name):
        assert_close(jax.jit(dot_attention)(*args), exact(*float64(*args)))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="there, it may run")
def test_a_forced_kernel_never_falls_back():
    with pytest.raises(NotImplementedError, match="triton"):  # Not installed, or no GPU.
        dot_attention(*AGED.inputs(), implementation="triton")
    with pytest.raises(ValueError, match="interpret mode"):  # There is no TPU to run it on.
        dot_attention(*AGED.inputs(), implementation="pallas_tpu")


# The kernel for TPUs, interpreted: memory starts as NaN, and races are found.


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("intervals", [0, 5])
@pytest.mark.parametrize(("length", "queries"), [(7, 1), (300, 20)])
def test_the_kernel_for_tpus(length, queries, intervals, dtype):
    wide = 2 if intervals else 0
    case = Case(
        name="",
        batch=3,
        candidates=queries,
        length=length,
        width=5,
        intervals=intervals,
        interval_width=wide,
    )
    query, keys, mask, *more = case.inputs(dtype)
    out = pallas_tpu.dot_attention(
        query,
        jnp.where(mask[..., None], keys, np.nan),
        mask,
        *more,
        config=pallas_tpu.Config(tile=128, queries=min(queries, 8)),
        interpret=pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan"),
    )
    assert_close(out, exact(*float64(query, keys, mask, *more)))
