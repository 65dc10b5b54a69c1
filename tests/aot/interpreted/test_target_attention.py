"""The Triton kernels of target attention in Triton's interpreter, against float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aot import interpreter
from exact_attention import backpropagated, exact, float64
from recjax.kernels.target_attention import triton as gpu
from recjax.kernels.target_attention import triton_kernels
from recjax.kernels.target_attention.cases import Case
from testing import assert_close

# Candidates, length, width, units, activation, normalize; then tile, parts, requests at a time.
CASES = [
    ((1, 1, 8, (20, 10), "sigmoid", "none"), (16, 1, 9)),
    ((2, 40, 8, (20, 10), "relu", "none"), (16, 2, 9)),
    ((3, 100, 20, (80, 40), "dice", "softmax"), (64, 1, 2)),
    ((3, 50, 8, (20, 10), "prelu", "softmax"), (16, 3, 9)),
    ((1, 70, 64, (16, 3), "sigmoid", "softmax"), (32, 2, 1)),
]


@pytest.fixture
def launches(monkeypatch):
    """Arrays may be tampered with on their way, by name of kernel."""
    tamper, interpreted = {}, interpreter.launcher(triton_kernels)

    def launch(name, grid, arrays, **rest):
        return interpreted(name, grid, tamper.get("arrays", tuple)(arrays), **rest)

    monkeypatch.setattr(gpu, "_launch", launch)
    return tamper


def inputs(sizes, dtype=jnp.float32):
    """Arguments, with NaN where masked; the same in float64; a cotangent; options."""
    candidates, length, width, units, activation, normalize = sizes
    case = Case(name="", batch=3, candidates=candidates, length=length, width=width, units=units)
    query, keys, mask, weights = case.inputs(dtype)
    unused = {"prelu": ("mean", "variance"), "dice": ()}.get(
        activation, ("alpha", "mean", "variance")
    )
    layers = tuple(x._replace(**dict.fromkeys(unused)) for x in weights.layers)
    bias = weights.out_bias if normalize == "none" else None
    weights = weights._replace(layers=layers, out_bias=bias)
    exactly = float64(query, keys, mask, weights)
    g = jnp.asarray(np.random.default_rng(1).normal(size=query.shape), dtype)
    keys = jnp.where(mask[..., None], keys, jnp.nan)
    options = {"activation": activation, "normalize": normalize}
    return (query, keys, mask, weights), exactly, g, options


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("sizes", "cut"), CASES)
def test_forward_and_backward(launches, sizes, cut, dtype):
    args, exactly, g, options = inputs(sizes, dtype)
    tile, parts, requests = cut
    config = gpu.Config(tile=tile, warps=4, parts=parts, requests=requests)
    out, kept = gpu.forward(*args, **options, config=config)
    assert_close(out, exact(*exactly, *options.values()))
    got = gpu.backward(*args, kept, g, **options, config=config)
    expected = backpropagated(*exactly, np.asarray(g, np.float64), *options.values())
    # Differences of near-equal terms: in a softmax, and in sums over all pairs, of both signs.
    assert_close(got[:2], expected[:2], ulps=4 if options["normalize"] == "none" else 16)
    assert got[2] is None
    assert jax.tree.structure(got[3]) == jax.tree.structure(expected[2])
    # Weights are float32, but the hidden layers that they meet had the dtype of the keys.
    flat = lambda tree: jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(tree)])
    expected = np.concatenate([np.ravel(x) for x in jax.tree.leaves(expected[2])])
    assert_close(flat(got[3]).astype(dtype), expected, ulps=16)


def nothing_masked(arrays):
    keys, mask, *rest = arrays
    return jnp.nan_to_num(keys, nan=7.0), jnp.ones_like(mask), *rest


def scale_off(arrays):
    return tuple(x * (1 + 1e-5) if i == 9 else x for i, x in enumerate(arrays))


def rounded(arrays):
    return tuple(
        x.astype(jnp.bfloat16).astype(x.dtype) if x.dtype == jnp.float32 else x for x in arrays
    )


def another_block(arrays):
    keys, *rest = arrays
    return jnp.roll(keys, 16, axis=1), *rest


@pytest.mark.parametrize("mutation", [nothing_masked, scale_off, rounded, another_block])
def test_mistakes_are_noticed(launches, mutation):
    args, exactly, _, options = inputs((2, 40, 8, (20, 10), "relu", "none"))
    run = functools.partial(
        gpu.forward, *args, **options, config=gpu.Config(tile=16, warps=4, parts=1, requests=9)
    )
    expected = exact(*exactly, *options.values())
    assert_close(run()[0], expected)
    launches["arrays"] = mutation
    with pytest.raises(AssertionError, match="off by"):
        assert_close(run()[0], expected)
