"""The Triton kernels of dot attention in Triton's interpreter, against float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from aot import interpreter
from exact_dot_attention import exact, exact_gradients, float64
from recjax.kernels.dot_attention import triton as gpu
from recjax.kernels.dot_attention import triton_kernels
from recjax.kernels.dot_attention.cases import Case
from testing import assert_close

# Candidates, length, width, heads, intervals, their width; then queries, tile, parts.
CASES = [
    ((1, 1, 8, 1, 0, 0), (16, 16, 1)),
    ((3, 40, 8, 2, 5, 3), (16, 16, 2)),
    ((20, 70, 20, 1, 0, 0), (16, 32, 3)),
    ((9, 100, 64, 2, 32, 8), (32, 64, 1)),
]


@pytest.fixture
def launches(monkeypatch):
    """Arrays may be tampered with on their way."""
    tamper, interpreted = {}, interpreter.launcher(triton_kernels)

    def launch(name, grid, arrays, **rest):
        return interpreted(name, grid, tamper.get("arrays", tuple)(arrays), **rest)

    monkeypatch.setattr(gpu, "_launch", launch)
    return tamper


def inputs(sizes, dtype=jnp.float32):
    """Arguments, with NaN where masked; the same in float64; a cotangent."""
    candidates, length, width, heads, intervals, interval_width = sizes
    case = Case(
        name="",
        batch=3,
        candidates=candidates,
        length=length,
        width=width,
        heads=heads,
        intervals=intervals,
        interval_width=interval_width,
    )
    query, keys, mask, *more = case.inputs(dtype)
    exactly = float64(query, keys, mask, *more)
    g = jnp.asarray(np.random.default_rng(1).normal(size=query.shape), query.dtype)
    return (query, jnp.where(mask[..., None], keys, jnp.nan), mask, *more), exactly, g


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("sizes", "cut"), CASES)
def test_forward_and_backward(launches, sizes, cut, dtype):
    args, exactly, g = inputs(sizes, dtype)
    queries, tile, parts = cut
    config = gpu.Config(queries=queries, tile=tile, warps=4, parts=parts)
    out, kept = gpu.forward(*args, config=config)
    assert_close(out, exact(*exactly))
    got = gpu.backward(*args, kept, g, config=config)
    assert len(got) == len(args)
    # Gradients through a softmax are differences of near-equal terms: 16 units.
    expected = exact_gradients(*exactly, np.asarray(g, np.float64))
    assert_close(got[:2], expected[:2], ulps=16)
    if len(got) == 5 and dtype == jnp.float32:
        assert_close(got[4], expected[2], ulps=16)
    elif len(got) == 5:  # A float32 table, but the gradients that come to it were bfloat16.
        assert_close(got[4].astype(dtype), expected[2], ulps=16)


def nothing_masked(arrays):
    keys, mask, *rest = arrays
    return jnp.nan_to_num(keys, nan=7.0), jnp.ones_like(mask), *rest


def scale_off(arrays):
    keys, mask, ends, interval, asked, said = arrays
    return keys, mask, ends, interval, asked * (1 + 1e-5), said


def rounded(arrays):
    return tuple(
        x.astype(jnp.bfloat16).astype(x.dtype) if x.dtype == jnp.float32 else x for x in arrays
    )


def another_block(arrays):
    keys, *rest = arrays
    return jnp.roll(keys, 16, axis=1), *rest


def no_intervals(arrays):
    *rest, said = arrays
    return *rest, jnp.zeros_like(said)


@pytest.mark.parametrize(
    "mutation", [nothing_masked, scale_off, rounded, another_block, no_intervals]
)
def test_mistakes_are_noticed(launches, mutation):
    args, exactly, _ = inputs((3, 40, 8, 2, 5, 3))
    config = gpu.Config(queries=16, tile=16, warps=4, parts=1)
    assert_close(gpu.forward(*args, config=config)[0], exact(*exactly))
    launches["arrays"] = mutation
    with pytest.raises(AssertionError, match="off by"):
        assert_close(gpu.forward(*args, config=config)[0], exact(*exactly))
