import functools
import itertools

import jax
from jax import export
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
import jaxtyping
import numpy as np
import pytest

from exact_attention import (
    backpropagated,
    exact,
    exact_activation,
    exact_gradients,
    exact_scores,
    float64,
)
from recjax.kernels import _dispatch
from recjax.kernels.target_attention import (
    api,
    attention_scores,
    chunked,
    moments,
    pallas_tpu,
    target_attention,
)
from recjax.kernels.target_attention.cases import CASES, Case
from testing import assert_close

SMALL = {case.name: case for case in CASES if not case.bench}
RAGGED = SMALL["ragged"]
ACTIVATIONS = ("prelu", "sigmoid", "relu", "dice")
NORMALIZE = ("none", "softmax")
MODES = list(itertools.product(ACTIVATIONS, NORMALIZE))
FEW_MODES = [("prelu", "none"), ("dice", "softmax")]

# In blocks that divide neither 5 requests nor 3 candidates nor 7 behaviours: all are padded.
UNEVEN = chunked.Config(requests=4, candidates=2, behaviours=5)
PLAIN = [name for name, entry in api.IMPLEMENTATIONS.items() if entry.kernel is None]
VERSIONS = {name: api.IMPLEMENTATIONS[name].fn for name in PLAIN}
VERSIONS["chosen"] = target_attention
VERSIONS["uneven"] = functools.partial(chunked.target_attention, config=UNEVEN)


@pytest.fixture(params=VERSIONS)
def attend(request):
    return VERSIONS[request.param]


def pooled_scores(query, keys, mask, weights, **options):
    """Target attention from the scores, which have a backward pass of their own."""
    scores = chunked.attention_scores(query, keys, mask, weights, config=UNEVEN, **options)
    return jnp.einsum("bcl,bld->bcd", scores, jnp.where(mask[..., None], keys, 0))


def clear_of_kinks(args, activation):
    """Float32 may take the other branch of ReLU and PReLU where a sum is within rounding of 0."""
    query, keys, _, weights = args
    smallest = np.inf
    for c in range(query.shape[1]):
        q = np.broadcast_to(query[:, c : c + 1], keys.shape)
        h = np.concatenate([q, keys, q - keys, q * keys], axis=-1)
        for layer in weights.layers:
            x = h @ layer.kernel + layer.bias
            smallest = min(smallest, np.min(np.abs(x), initial=np.inf))
            h = exact_activation(x, layer, activation)
    return smallest > 5e-6


def used(weights, activation, normalize):
    """Without what these modes do not use."""
    unused = {"prelu": ("mean", "variance"), "dice": ()}.get(
        activation, ("alpha", "mean", "variance")
    )
    layers = tuple(x._replace(**dict.fromkeys(unused)) for x in weights.layers)
    out_bias = weights.out_bias if normalize == "none" else None
    return weights._replace(layers=layers, out_bias=out_bias)


@functools.cache
def gradient_case(name, activation, normalize, dtype=jnp.float32):
    """Arguments, a random cotangent, and what the gradients must be."""
    for seed in itertools.count():
        query, keys, mask, weights = SMALL[name].inputs(dtype, seed)
        weights = used(weights, activation, normalize)
        args = float64(query, keys, mask, weights)
        if activation in ("sigmoid", "dice") or clear_of_kinks(args, activation):
            break
    g = jnp.asarray(np.random.default_rng(1).normal(size=query.shape), dtype)
    return (
        (query, keys, mask, weights),
        g,
        exact_gradients(*args, np.asarray(g, np.float64), activation, normalize),
    )


@functools.cache
def jit(attend, activation, normalize):
    return jax.jit(functools.partial(attend, activation=activation, normalize=normalize))


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def value_and_gradients(attend, args, g, activation, normalize):
    """The output, and the gradients of sum(out * g) with respect to query, keys and weights."""
    query, keys, mask, weights = args
    f = lambda q, k, w: attend(q, k, mask, w, activation=activation, normalize=normalize)
    out, pull = jax.vjp(f, query, keys, weights)
    return out, pull(g.astype(out.dtype))


def flat(weights):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(weights)])


def assert_gradients_close(actual, expected, normalize):
    """The weights' on one scale: the sums of a bias or a slope may happen to cancel."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    # Gradients are sums over pairs of both signs, through a softmax differences of near-equal terms
    # besides. How much of them cancelled shows in the last bits, which differ between processors:
    # without a softmax 1 to 5 units were seen, so 4 would ask for luck.
    assert_close(actual[:2], expected[:2], ulps=8 if normalize == "none" else 16)
    assert_close(flat(actual[2]), flat(expected[2]), ulps=16)


# Every mode once; then other shapes, and blocks that are padded, in two modes.
RUNS = [(version, "ragged", *mode) for version in PLAIN for mode in MODES]
RUNS += [("uneven", "ragged", *mode) for mode in FEW_MODES]
RUNS += [("chunked", "long", *mode) for mode in FEW_MODES]
RUNS += [
    (version, case, *mode)
    for version in PLAIN
    for case in ("one_behaviour", "no_history", "three_layers")
    for mode in FEW_MODES
]
RUNS += [(version, "ragged", *mode) for version in ("chosen", "scores") for mode in FEW_MODES]


@pytest.mark.parametrize(("version", "case", "activation", "normalize"), RUNS)
def test_values_and_gradients_match_definition(version, case, activation, normalize):
    args, g, expected = gradient_case(case, activation, normalize)
    attend = pooled_scores if version == "scores" else VERSIONS[version]
    out, gradients = value_and_gradients(attend, args, g, activation, normalize)
    assert_close(out, exact(*float64(*args), activation, normalize))
    assert_gradients_close(gradients, expected, normalize)


@pytest.mark.parametrize(("activation", "normalize"), MODES)
def test_the_definition_differentiated_twice(activation, normalize):
    (query, keys, mask, weights), g, expected = gradient_case("ragged", activation, normalize)
    args = float64(query, keys, mask, weights)
    got = backpropagated(*args, np.asarray(g, np.float64), activation, normalize)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13), got, expected
    )


# No kinks: among so many sums some lie within rounding of zero, where PReLU has two gradients.
@pytest.mark.parametrize(("activation", "normalize"), [("sigmoid", "none"), ("dice", "softmax")])
@pytest.mark.parametrize("candidates", [1, 3, 100])
@pytest.mark.parametrize("length", [0, 1, 7, 100, 1000, 4097])
def test_any_length(length, candidates, activation, normalize):
    batch = 4 if length < 1000 else 2
    case = Case(name="", batch=batch, candidates=candidates, length=length, width=4, units=(6, 4))
    query, keys, mask, weights = case.inputs()
    args = query, keys, mask, used(weights, activation, normalize)
    g = jnp.asarray(np.random.default_rng(1).normal(size=query.shape), "float32")
    out, gradients = value_and_gradients(target_attention, args, g, activation, normalize)
    exactly = float64(*args)
    assert_close(out, exact(*exactly, activation, normalize))
    expected = backpropagated(*exactly, np.asarray(g, np.float64), activation, normalize)
    # The weights' are sums over all pairs, of both signs, and cancel: 16 units, as in a softmax.
    assert_close(gradients[:2], expected[:2], ulps=4 if normalize == "none" else 16)
    assert_close(flat(gradients[2]), flat(expected[2]), ulps=16)


@pytest.mark.parametrize(("activation", "normalize"), MODES)
def test_bfloat16_computes_in_float32(attend, activation, normalize):
    args = RAGGED.inputs(jnp.bfloat16)
    out = jit(attend, activation, normalize)(*args)
    assert out.dtype == jnp.bfloat16
    # One rounding at the end: half a unit. Sums in bfloat16 would be off by several.
    assert_close(out, exact(*float64(*args), activation, normalize), ulps=0.51)


def test_bfloat16_gradients(attend):
    args, g, expected = gradient_case("ragged", "prelu", "softmax", jnp.bfloat16)
    _, gradients = value_and_gradients(attend, args, g, "prelu", "softmax")
    assert gradients[0].dtype == gradients[1].dtype == jnp.bfloat16
    assert_gradients_close(gradients, expected, "softmax")


@pytest.mark.parametrize("normalize", NORMALIZE)
@pytest.mark.parametrize("version", api.SCORES_IMPLEMENTATIONS)
def test_scores_match_definition_and_are_what_pools(version, normalize):
    query, keys, mask, weights = RAGGED.inputs()
    args = (query, keys, mask, weights)
    given = functools.partial(attention_scores, implementation=version)
    scores = jit(given, "dice", normalize)(*args)
    assert_close(scores, exact_scores(*float64(*args), "dice", normalize))
    pooled = jnp.einsum("bcl,bld->bcd", scores, keys)
    assert_close(jit(target_attention, "dice", normalize)(*args), pooled)


@pytest.mark.parametrize("normalize", NORMALIZE)
def test_padding_and_its_side_do_not_matter(attend, normalize):
    query, keys, mask, weights = RAGGED.inputs()
    attend = jit(attend, "prelu", normalize)
    rows = np.asarray(keys), np.asarray(mask)
    expected = attend(query, keys, mask, weights)
    for before, after in ((0, 4), (4, 0), (2, 2)):
        wide = np.pad(rows[0], ((0, 0), (before, after), (0, 0)), constant_values=3.0)
        real = np.pad(rows[1], ((0, 0), (before, after)))
        assert_close(attend(query, jnp.asarray(wide), jnp.asarray(real), weights), expected)
    # Holes closed: the real behaviours first, the order kept.
    order = np.argsort(~rows[1], axis=1, kind="stable")
    packed = np.take_along_axis(rows[0], order[..., None], axis=1)
    real = np.take_along_axis(rows[1], order, axis=1)
    assert not np.array_equal(real, rows[1])
    assert_close(attend(query, jnp.asarray(packed), jnp.asarray(real), weights), expected)


@pytest.mark.parametrize("normalize", NORMALIZE)
@pytest.mark.parametrize("poison", [1e9, np.nan, np.inf])
def test_what_masked_keys_hold_goes_nowhere(attend, poison, normalize):
    (query, keys, mask, weights), g, _ = gradient_case("ragged", "prelu", normalize)
    poisoned = jnp.where(mask[..., None], keys, poison)
    clean = value_and_gradients(attend, (query, keys, mask, weights), g, "prelu", normalize)
    got = value_and_gradients(attend, (query, poisoned, mask, weights), g, "prelu", normalize)
    assert all(map(np.array_equal, jax.tree.leaves(got), jax.tree.leaves(clean)))
    assert not np.asarray(got[1][1])[~np.asarray(mask)].any()


@pytest.mark.parametrize("normalize", NORMALIZE)
def test_empty_histories_give_zeros_and_finite_gradients(attend, normalize):
    query, keys, mask, weights = RAGGED.inputs()
    args = (query, keys, jnp.zeros_like(mask), weights)
    out, gradients = value_and_gradients(attend, args, jnp.ones(query.shape), "dice", normalize)
    assert not out.any()
    assert all(not leaf.any() for leaf in jax.tree.leaves(gradients))  # NaN is true


@pytest.mark.parametrize("normalize", NORMALIZE)
def test_candidates_at_once_equal_one_by_one(attend, normalize):
    query, keys, mask, weights = RAGGED.inputs()
    attend = jit(attend, "sigmoid", normalize)
    at_once = attend(query, keys, mask, weights)
    for c in range(query.shape[1]):
        assert_close(attend(query[:, c : c + 1], keys, mask, weights), at_once[:, c : c + 1])


def test_vmap_equals_a_loop(attend):
    args, g, _ = gradient_case("ragged", "prelu", "softmax")
    query, keys, mask, weights = args
    stacked = [jnp.stack([x, x[::-1]]) for x in (query, keys, mask)]
    f = lambda q, k, m: value_and_gradients(attend, (q, k, m, weights), g, "prelu", "softmax")
    batched = jax.vmap(f)(*stacked)
    for i in range(2):
        assert_close(jax.tree.map(lambda x, i=i: x[i], batched), f(*(x[i] for x in stacked)))


def test_pmap_equals_jit(attend):
    case = Case(name="pmap", batch=4, candidates=3, length=7, width=3, units=(5, 4))
    query, keys, mask, weights = case.inputs()
    g = jnp.ones(query.shape)
    expected = value_and_gradients(attend, (query, keys, mask, weights), g, "prelu", "none")

    def local(query, keys, mask, weights):
        args = (query, keys, mask, weights)
        out, (*own, shared) = value_and_gradients(attend, args, g[:2], "prelu", "none")
        return out, (*own, jax.lax.psum(shared, "devices"))

    split = lambda x: x.reshape(2, 2, *x.shape[1:])
    f = jax.pmap(local, axis_name="devices", in_axes=(0, 0, 0, None), devices=jax.devices()[:2])
    out, (to_query, to_keys, to_weights) = f(split(query), split(keys), split(mask), weights)
    join = lambda x: np.asarray(x).reshape(-1, *x.shape[2:])
    got = jax.tree.map(jnp.asarray, (join(out), (join(to_query), join(to_keys))))
    assert_close(got, (expected[0], expected[1][:2]))
    assert_close(jax.tree.map(lambda x: x[0], to_weights), expected[1][2])


@pytest.mark.parametrize("activation", ["prelu", "dice"])
def test_shard_map_equals_jit(activation, monkeypatch):
    monkeypatch.setattr(chunked, "heuristic", lambda *sizes: chunked.Config(1, 2, 5))
    case = Case(name="", batch=4, candidates=3, length=7, width=3, units=(5, 4))
    query, keys, mask, weights = case.inputs()
    real = jnp.ones(query.shape[:2], bool)

    def total(query, keys, weights, mask, axis_name=None):
        if activation == "dice":
            given = moments(query, keys, mask, real[: len(query)], weights, axis_name=axis_name)
            weights = with_statistics(weights, given)
        options = {"activation": activation, "normalize": "softmax"}
        own = jnp.sum(jnp.square(target_attention(query, keys, mask, weights, **options)))
        return own if axis_name is None else jax.lax.psum(own, axis_name)

    mesh = Mesh(np.array(jax.devices()[:2]), ("devices",))
    over, whole = PartitionSpec("devices"), PartitionSpec()
    mapped = jax.shard_map(
        functools.partial(total, axis_name="devices"),
        mesh=mesh,
        in_specs=(over, over, whole, over),
        out_specs=whole,
    )
    args = (query, keys, weights, mask)
    value, gradients = jax.jit(jax.value_and_grad(mapped, (0, 1, 2)))(*args)
    expected, by_jit = jax.jit(jax.value_and_grad(total, (0, 1, 2)))(*args)
    assert_close(value, expected)
    assert_close(gradients[:2], by_jit[:2], ulps=16)
    assert_close(flat(gradients[2]), flat(by_jit[2]), ulps=16)


def test_export_with_a_symbolic_batch(attend):
    (query, keys, mask, weights), g, _ = gradient_case("ragged", "prelu", "softmax")
    f = jax.jit(
        lambda q, k, m, g: value_and_gradients(attend, (q, k, m, weights), g, "prelu", "softmax")
    )
    batch = export.symbolic_shape("batch")[0]
    arrays = (query, keys, mask, g)
    shapes = [jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype) for x in arrays]
    exported = export.export(f)(*shapes)
    for size in (1, 4):
        part = [x[:size] for x in arrays]
        assert_close(exported.call(*part), f(*part))


@pytest.mark.parametrize("activation", ["prelu", "dice"])
def test_memory_of_a_step_does_not_grow_with_the_batch(activation):
    def loss(query, keys, weights, mask):
        if activation == "dice":
            real = jnp.ones(query.shape[:2], bool)
            weights = with_statistics(weights, moments(query, keys, mask, real, weights))
        attend = chunked.target_attention
        out = attend(query, keys, mask, weights, activation=activation, normalize="none")
        return jnp.sum(jnp.square(out))

    def temporary(batch):
        case = Case(name="memory", batch=batch, candidates=2, length=20, width=8, units=(16, 8))
        query, keys, mask, weights = case.inputs()
        f = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
        analysis = f.lower(query, keys, weights, mask).compile().memory_analysis()
        return analysis.temp_size_in_bytes, keys.nbytes

    (small, small_keys), (large, large_keys) = temporary(40), temporary(400)
    # Copies of the inputs may grow. Each hidden layer is 4 times the keys, the concatenation 8.
    copies = {"prelu": 1, "dice": 6}[activation]  # Dice: five sweeps over the keys.
    assert large - small < copies * (large_keys - small_keys)


def test_memory_of_a_step_holds_no_hidden_layer_of_a_long_history():
    def temporary(length):
        case = Case(name="", batch=1, candidates=1, length=length, width=4, units=(64, 32))
        query, keys, mask, weights = case.inputs()
        options = {"activation": "prelu", "normalize": "softmax"}
        loss = lambda q, k, w: jnp.sum(chunked.target_attention(q, k, mask, w, **options))
        f = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
        return f.lower(query, keys, weights).compile().memory_analysis().temp_size_in_bytes

    # What grows is copies of the keys, and scores.
    assert temporary(40_000) - temporary(10_000) < 30_000 * 4 * 64


# Statistics.


def exact_moments(query, keys, mask, candidate_mask, weights, activation, padding=False):
    """Over the real pairs, gathered into one list."""
    keys = np.where(mask[..., None], keys, 0)
    counted = np.ones_like(mask) if padding else mask
    rows = []
    for b, c, t in np.ndindex(len(query), query.shape[1], keys.shape[1]):
        if candidate_mask[b, c] and counted[b, t]:
            q, k = query[b, c], keys[b, t]
            rows.append(np.concatenate([q, k, q - k, q * k]))
    h, statistics = np.array(rows), []
    for layer in weights.layers:
        x = h @ layer.kernel + layer.bias
        mean, variance = x.mean(axis=0), x.var(axis=0)
        statistics.append((mean, variance))
        h = exact_activation(x, layer._replace(mean=mean, variance=variance), activation)
    return tuple(statistics)


CANDIDATES = np.array([[1, 1, 0], [1, 0, 1], [1, 1, 1], [0, 0, 0], [1, 1, 1]], bool)
# A block of 19 requests takes them all; blocks of 4 x 2 leave padding on both axes.
CONFIGS = {"default": None, "uneven": UNEVEN}


@pytest.fixture(params=CONFIGS)
def blocks(request, monkeypatch):
    if CONFIGS[request.param] is not None:
        monkeypatch.setattr(chunked, "heuristic", lambda *sizes: CONFIGS[request.param])


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("activation", ["dice", "prelu"])
def test_moments_match_definition(blocks, activation, padding):
    query, keys, mask, weights = RAGGED.inputs()
    poisoned = jnp.where(mask[..., None], keys, np.nan)
    absent = jnp.where(CANDIDATES[..., None], query, np.nan)
    f = functools.partial(moments, activation=activation, stats_include_padding=padding)
    got = jax.jit(f)(absent, poisoned, mask, jnp.asarray(CANDIDATES), weights)
    args = float64(query, keys, mask, weights)
    assert_close(got, exact_moments(*args[:3], CANDIDATES, args[3], activation, padding))


def test_moments_do_not_cancel(blocks):
    """A mean of 1000 deviations: E[x^2] - E[x]^2 would lose the variance."""
    query, keys, mask, weights = RAGGED.inputs()
    far = weights.layers[0]._replace(bias=jnp.full(5, 1000.0))
    weights = weights._replace(layers=(far,), out_kernel=jnp.ones(5))
    f = jax.jit(functools.partial(moments))  # A new function: jit remembers by function.
    ((_, variance),) = f(query, keys, mask, jnp.asarray(CANDIDATES), weights)
    args = float64(query, keys, mask, weights)
    ((_, expected),) = exact_moments(*args[:3], CANDIDATES, args[3], "dice")
    # Each value near 1000 is itself rounded by 3e-5: 1e-4 is what is left of the variance.
    assert np.max(np.abs(variance - expected) / expected) < 1e-4


def naive_moments(query, keys, mask, candidate_mask, weights):
    """Dice's statistics from the whole concatenation, for its gradient."""
    query = jnp.where(candidate_mask[..., None], query, 0)
    keys = jnp.where(mask[..., None], keys, 0)
    real = (candidate_mask[:, :, None] & mask[:, None])[..., None]
    q, k = jnp.broadcast_arrays(query[:, :, None], keys[:, None])
    h, statistics = jnp.concatenate([q, k, q - k, q * k], axis=-1), []
    for layer in weights.layers:
        x = h @ layer.kernel + layer.bias[None, None, None]
        mean = jnp.sum(x * real, axis=(0, 1, 2)) / jnp.sum(real)
        apart = x - mean[None, None, None]
        variance = jnp.sum(jnp.square(apart) * real, axis=(0, 1, 2)) / jnp.sum(real)
        p = jax.nn.sigmoid(apart / jnp.sqrt(variance + 1e-8)[None, None, None])
        h = p * x + (1 - p) * layer.alpha[None, None, None] * x
        statistics.append((mean, variance))
    return tuple(statistics)


def with_statistics(weights, statistics):
    layers = zip(weights.layers, statistics, strict=True)
    layers = tuple(x._replace(mean=m, variance=v) for x, (m, v) in layers)
    return weights._replace(layers=layers)


def dice_loss(f, attend, query, keys, weights, mask, g):
    """Dice with batch statistics: the moments, then the op."""
    real = jnp.asarray(CANDIDATES)
    absent = jnp.where(real[..., None], query, jnp.nan)
    statistics = f(absent, jnp.where(mask[..., None], keys, jnp.nan), mask, real, weights)
    weights = with_statistics(weights, statistics)
    out = attend(query, keys, mask, weights, activation="dice", normalize="none")
    return jnp.sum(out * g)


def test_gradient_through_batch_statistics(blocks):
    query, keys, mask, weights = RAGGED.inputs()
    layers = tuple(x._replace(mean=None, variance=None) for x in weights.layers)
    weights = weights._replace(layers=layers)
    g = jnp.cos(jnp.arange(query.size, dtype=jnp.float32)).reshape(query.shape)
    loss = lambda f, attend: functools.partial(dice_loss, f, attend, mask=mask, g=g)
    grad = lambda f, attend: jax.jit(jax.grad(loss(f, attend), argnums=(0, 1, 2)))
    got = grad(moments, chunked.target_attention)(query, keys, weights)
    with jax.numpy_dtype_promotion("standard"), jax.enable_x64(True):
        arrays = float64(query, keys, mask, weights)
        to64 = functools.partial(jax.tree.map, jnp.asarray)
        args = to64((arrays[0], arrays[1], arrays[3]))
        naive = lambda q, k, m, w, **options: naive_attention(q, k, m, w)
        expected = grad(naive_moments, naive)(*args)
        expected = jax.tree.map(np.asarray, expected)
    # Centring subtracts near-equal sums: 16 units.
    assert_close(got, expected, ulps=16)


def naive_attention(query, keys, mask, weights):
    q, k = jnp.broadcast_arrays(query[:, :, None], keys[:, None])
    h = jnp.concatenate([q, k, q - k, q * k], axis=-1)
    for layer in weights.layers:
        row = lambda x: x[None, None, None]
        x = h @ layer.kernel + row(layer.bias)
        p = jax.nn.sigmoid((x - row(layer.mean)) / jnp.sqrt(row(layer.variance) + 1e-8))
        h = p * x + (1 - p) * row(layer.alpha) * x
    score = (h @ weights.out_kernel + weights.out_bias) * mask[:, None]
    return jnp.einsum("bcl,bld->bcd", score, keys)


def test_moments_over_devices():
    case = Case(name="pmap", batch=4, candidates=3, length=7, width=3, units=(5, 4))
    query, keys, mask, weights = case.inputs()
    real = jnp.asarray(CANDIDATES[:4])
    split = lambda x: x.reshape(2, 2, *x.shape[1:])
    f = functools.partial(moments, axis_name="devices")
    devices = jax.devices()[:2]
    f = jax.pmap(f, axis_name="devices", in_axes=(0, 0, 0, 0, None), devices=devices)
    got = f(split(query), split(keys), split(mask), split(real), weights)
    expected = jax.jit(moments)(query, keys, mask, real, weights)
    for device in range(2):
        assert_close(jax.tree.map(lambda x, d=device: x[d], got), expected)


def test_moments_without_any_pair_are_zero(blocks):
    query, keys, mask, weights = RAGGED.inputs()
    nobody = jnp.zeros(CANDIDATES.shape, bool)

    def total(query):
        statistics = jax.tree.leaves(moments(query, keys, mask, nobody, weights))
        return sum(jnp.sum(x) for x in statistics), statistics

    (_, statistics), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(query)
    assert not any(leaf.any() for leaf in [*statistics, gradient])  # NaN is true


# What is refused.


@pytest.fixture
def unchecked_types():
    """In tests jaxtyping would refuse these calls first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "tanh"}, r"activation must be one of .*, got 'tanh'"),
        ({"normalize": "l1"}, r"normalize must be one of .*, got 'l1'"),
        ({"implementation": "cuda"}, r"implementation must be None or one of .*, got 'cuda'"),
        ({"query": np.zeros((5, 3), "f")}, r"query must have 3 axes, got shape \(5, 3\)"),
        (
            {"keys": np.zeros((5, 7, 4), "f")},
            r"keys must have shape \(5, 7, 3\), got \(5, 7, 4\)",
        ),
        ({"keys": np.zeros((5, 7, 3), "f2")}, "keys must be float32, got float16"),
        ({"query": np.zeros((5, 3, 3), "i4")}, "query must be float32 or bfloat16, got int32"),
        ({"mask": np.zeros((5, 7), "f")}, "mask must be bool, got float32"),
        ({"mask": np.zeros((7, 5), bool)}, r"mask must have shape \(5, 7\), got \(7, 5\)"),
        ({"layers": ()}, "weights.layers must hold at least one layer, got none"),
        (
            {"first": {"kernel": np.zeros((6, 5), "f")}},
            r"weights.layers\[0\].kernel must have shape \(12, 5\), got \(6, 5\)",
        ),
        ({"first": {"alpha": None}}, r"weights.layers\[0\].alpha is needed by 'prelu', got None"),
        (
            {"out_kernel": np.zeros(5, "f")},
            r"weights.out_kernel must have shape \(4,\), got \(5,\)",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_refusals_name_argument_rule_and_value(unchecked_types, change, message):
    query, keys, mask, weights = RAGGED.inputs()
    if "first" in change:
        first = weights.layers[0]._replace(**change.pop("first"))
        weights = weights._replace(layers=(first, *weights.layers[1:]))
    for field in ("layers", "out_kernel"):
        if field in change:
            weights = weights._replace(**{field: change.pop(field)})
    arguments = {"query": query, "keys": keys, "mask": mask, "weights": weights}
    arguments |= {"activation": "prelu", "normalize": "none"} | change
    with pytest.raises(ValueError, match=message):
        target_attention(**arguments)


def test_moments_check_their_arguments(unchecked_types):
    query, keys, mask, weights = RAGGED.inputs()
    with pytest.raises(ValueError, match=r"candidate_mask must have shape \(5, 3\), got \(5, 7\)"):
        moments(query, keys, mask, mask, weights)


def test_a_forced_implementation_never_falls_back():
    never = _dispatch.Implementation(lambda x: x, lambda x: "needs a Hopper GPU")
    table = {"fast": never, "plain": _dispatch.Implementation(lambda x: x + 1)}
    assert _dispatch.dispatch(table, None, 1) == 2
    assert _dispatch.dispatch(table, "plain", 1) == 2
    with pytest.raises(NotImplementedError, match="fast: needs a Hopper GPU"):
        _dispatch.dispatch(table, "fast", 1)
    with pytest.raises(NotImplementedError, match="fast: needs a Hopper GPU"):
        _dispatch.dispatch({"fast": never}, None, 1)


def test_implementation_is_forced_by_name():
    *args, weights = RAGGED.inputs()
    options = {"activation": "prelu", "normalize": "none"}
    for name in PLAIN:
        got = target_attention(*args, weights, **options, implementation=name)
        assert np.array_equal(got, api.IMPLEMENTATIONS[name].fn(*args, weights, **options))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="there, it may run")
def test_a_forced_kernel_never_falls_back():
    options = {"activation": "prelu", "normalize": "none", "implementation": "triton"}
    *args, weights = RAGGED.inputs()
    with pytest.raises(NotImplementedError, match="triton"):  # Not installed, or no GPU.
        target_attention(*args, weights, **options)
    with pytest.raises(ValueError, match="interpret mode"):  # There is no TPU to run it on.
        target_attention(*args, weights, **{**options, "implementation": "pallas_tpu"})


# The kernel for TPUs, interpreted: memory starts as NaN, and races are found.


ON_TPUS = [("float32", 300, 10, *mode) for mode in MODES]
ON_TPUS += [("float32", 7, 1, *mode) for mode in FEW_MODES]
ON_TPUS += [("bfloat16", 300, 10, *mode) for mode in FEW_MODES]


@pytest.mark.parametrize(("dtype", "length", "candidates", "activation", "normalize"), ON_TPUS)
def test_the_kernel_for_tpus(dtype, length, candidates, activation, normalize):
    case = Case(name="", batch=3, candidates=candidates, length=length, width=5, units=(6, 4))
    query, keys, mask, weights = case.inputs(dtype)
    poisoned = jnp.where(mask[..., None], keys, np.nan)
    interpreter = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
    out = pallas_tpu.target_attention(
        query,
        poisoned,
        mask,
        weights,
        activation=activation,
        normalize=normalize,
        config=pallas_tpu.Config(tile=128, candidates=min(candidates, 8)),
        interpret=interpreter,
    )
    assert_close(out, exact(*float64(query, keys, mask, weights), activation, normalize))


@pytest.mark.parametrize("implementation", ["chunked", "reference"])
def test_a_precision_asked_for_around_the_call_holds_for_its_derivative(implementation):
    query, keys, mask, weights = SMALL["ragged"].inputs()

    def total(query):
        options = {"activation": "prelu", "normalize": "softmax"}
        return target_attention(
            query, keys, mask, weights, **options, implementation=implementation
        ).sum()

    def inside(query):
        with jax.default_matmul_precision("highest"):
            return total(query)

    products = lambda text: (text.count("dot_general"), text.count("Precision.HIGHEST"))
    found = products(str(jax.make_jaxpr(jax.grad(inside))(query)))
    with jax.default_matmul_precision("highest"):
        assert found == products(str(jax.make_jaxpr(jax.grad(total))(query)))
