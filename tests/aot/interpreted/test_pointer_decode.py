"""The Triton kernel of pointer decoding in Triton's interpreter, against the definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aot import interpreter
from recjax.kernels.pointer_decode import reference, triton_kernels
from recjax.kernels.pointer_decode import triton as gpu
from recjax.kernels.pointer_decode.cases import CASES, Case
from testing import assert_close

SMALL = {case.name: case for case in CASES if not case.bench}
# More lanes than a program owns; more rows, columns and candidates than it holds at a time. The
# interpreter goes slot by slot, head by head, candidate by candidate: few of those are enough.
LANES = Case(name="lanes", batch=3, candidates=9, slots=3, lanes=9, width=24, units=16)
WIDE = Case(name="wide", batch=2, candidates=35, slots=2, lanes=3, width=70, units=33, heads=3)


@pytest.fixture(autouse=True)
def launches(monkeypatch):
    """Arrays may be tampered with on their way."""
    tamper, interpreted = {}, interpreter.launcher(triton_kernels)

    def launch(name, grid, arrays, **rest):
        return interpreted(name, grid, tamper.get("arrays", tuple)(arrays), **rest)

    monkeypatch.setattr(gpu, "_launch", launch)
    return tamper


def inputs(case, noise="given", dtype=jnp.float32):
    """Arguments; without a direction, too, where there is no noise."""
    request, weights, mask, direction, steps, given = case.inputs(dtype)
    if noise == "seeded":
        given = jnp.arange(case.batch, dtype=jnp.uint32) + jnp.uint32(2**31)
    elif noise == "none":
        direction, given = None, None
    return request, weights, mask, direction, steps, given, None


def both(case, args, context="softmax"):
    """What the kernel finds, and what the definition does."""
    options = {"slots": case.slots, "temperature": 0.7, "context": context}
    expected = jax.jit(functools.partial(reference.pointer_decode, **options))(*args)
    return gpu.pointer_decode(*args, **options), expected


@pytest.mark.parametrize("context", ["softmax", "raw"])
@pytest.mark.parametrize("noise", ["given", "seeded", "none"])
@pytest.mark.parametrize("case", ["one", "few", "more_slots"])
def test_it_chooses_as_the_definition(case, noise, context):
    got, expected = both(SMALL[case], inputs(SMALL[case], noise), context)
    np.testing.assert_array_equal(got.order, expected.order)
    assert_close(got.log_probability, expected.log_probability, ulps=16)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("case", [LANES, WIDE], ids=lambda case: case.name)
def test_more_than_a_tile_of_everything(case, dtype):
    got, expected = both(case, inputs(case, "seeded", dtype))
    if dtype == jnp.float32:
        np.testing.assert_array_equal(got.order, expected.order)
    assert np.mean(np.asarray(got.order) == np.asarray(expected.order)) >= 0.999
    assert_close(got.log_probability, expected.log_probability, ulps=16)


def test_equal_scores_are_decided_for_the_lowest_index():
    case = SMALL["few"]
    request, weights, mask, _, steps, *_ = inputs(case)
    same = request._replace(keys=jnp.broadcast_to(request.keys[:, :, :1], request.keys.shape))
    mask = jnp.ones_like(mask).at[0, 1].set(False)
    got, expected = both(case, (same, weights, mask, None, steps, None, None))
    np.testing.assert_array_equal(got.order, expected.order)
    np.testing.assert_array_equal(got.order[:, 0], [[0, 2, 3], [0, 1, 2], [0, 1, 2]])


def test_what_masked_candidates_hold_does_not_matter():
    case = SMALL["few"]
    request, weights, mask, direction, *rest = inputs(case)

    def spoilt(x):
        real = mask[:, None, :, None] if x.ndim == 4 else mask[:, :, None]
        return x if x.ndim == 2 else jnp.where(real, x, jnp.nan)

    clean, _ = both(case, (request, weights, mask, direction, *rest))
    worse = jax.tree.map(spoilt, request), weights, mask, jax.tree.map(spoilt, direction)
    got, _ = both(case, (*worse, *rest))
    for a, b in zip(got, clean, strict=True):
        np.testing.assert_array_equal(a, b)


def nothing_masked(arrays):
    return tuple(jnp.ones_like(x) if x.dtype == bool else x for x in arrays)


def rounded(arrays):
    return tuple(
        x.astype(jnp.bfloat16).astype(x.dtype) if x.dtype == jnp.float32 else x for x in arrays
    )


def another_candidate(arrays):
    state, keys, *rest = arrays
    return state, jnp.roll(keys, 1, axis=2), *rest


def another_seed(arrays):
    *rest, seeds = arrays
    return *rest, seeds + jnp.uint32(1)


@pytest.mark.parametrize("mutation", [nothing_masked, rounded, another_candidate, another_seed])
def test_mistakes_are_noticed(launches, mutation):
    launches["arrays"] = mutation
    got, expected = both(SMALL["few"], inputs(SMALL["few"], "seeded"))
    with pytest.raises(AssertionError, match="off by"):
        assert_close(got.log_probability, expected.log_probability, ulps=16)
