"""Pointer decoding compiled for an H100 and for a TPU v5e: registers, memory, and no surprises."""

import functools

import jax
import jax.numpy as jnp
import pytest

from aot.devices import compiled, temporary
from aot.registers import SHARED, assert_fits, kernels_launched, used
from recjax.kernels.pointer_decode import pallas_tpu, pointer_decode, triton_kernels
from recjax.kernels.pointer_decode import triton as gpu
from recjax.kernels.pointer_decode.cases import Case

OPTIONS = {"slots": 10, "temperature": 0.7, "context": "softmax"}
# Requests, lanes, candidates, width, units.
MANY, PAGE = (256, 33, 20, 200, 32), (64, 17, 20, 64, 32)


def abstract(sizes, dtype, noise="seeded"):
    """Shapes only: the arrays would not fit here. Without noise, without a direction too."""
    requests, lanes, candidates, width, units = sizes
    case = Case(
        name="",
        batch=1,
        candidates=candidates,
        slots=10,
        lanes=lanes,
        width=width,
        units=units,
    )
    like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
    of_requests = lambda x: jax.ShapeDtypeStruct((requests, *x.shape[1:]), x.dtype)
    request, weights, mask, direction, steps, given = case.inputs(dtype)
    if noise == "seeded":
        given = jnp.zeros(1, jnp.uint32)
    elif noise == "none":
        direction = given = None
    many = jax.tree.map(of_requests, (request, mask, direction, given))
    return many[0], jax.tree.map(like, weights), *many[1:3], like(steps), many[3]


def decode(request, weights, mask, direction, steps, noise, **options):
    return pointer_decode(
        request, weights, mask, direction=direction, steps=steps, noise=noise, **OPTIONS, **options
    )


def launched(monkeypatch, tmp_path, args, **options):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    run = functools.partial(gpu.pointer_decode, rules=None, **{**OPTIONS, **options})
    found = kernels_launched(monkeypatch, gpu, run, args)
    assert len(found) == 1
    return found


@pytest.mark.parametrize("context", ["softmax", "raw"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("sizes", [MANY, PAGE, (4, 1, 20, 64, 16), (4, 64, 128, 256, 128)])
def test_the_kernel_fits(monkeypatch, tmp_path, sizes, dtype, context):
    args = abstract(sizes, dtype)
    assert_fits(triton_kernels, launched(monkeypatch, tmp_path, args, context=context))


@pytest.mark.parametrize("noise", ["given", "none"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("sizes", [MANY, PAGE])
def test_the_kernel_without_seeds(monkeypatch, tmp_path, sizes, dtype, noise):
    """The assembler spills a little, so that one more block fits on a multiprocessor."""
    found = launched(monkeypatch, tmp_path, abstract(sizes, dtype, noise))
    registers, spilled, shared = used(triton_kernels, "decode", *found["decode"])
    assert registers <= 128 and spilled <= 128 and shared <= SHARED


def moved_keys(sizes):
    """MiB of the keys of every lane, which the definition writes down."""
    requests, lanes, candidates, width, _ = sizes
    return 4 * requests * lanes * candidates * width / 2**20


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("sizes", [MANY, PAGE])
def test_memory_on_an_h100(sizes, dtype):
    executable = compiled("cuda", decode, *abstract(sizes, dtype))
    assert "triton_kernel_call" in executable.as_text()
    assert temporary(executable) < moved_keys(sizes) / 10


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("sizes", [MANY, PAGE])
def test_memory_on_a_tpu(sizes, dtype):
    """Keys are turned, which fills up 20 candidates to 128."""
    executable = compiled("tpu", decode, *abstract(sizes, dtype))
    assert "tpu_custom_call" in executable.as_text()
    assert temporary(executable) < moved_keys(sizes)


@pytest.mark.parametrize("noise", ["given", "seeded", "none"])
def test_odd_shapes_on_a_tpu(noise):
    run = functools.partial(pallas_tpu.pointer_decode, rules=None, **OPTIONS)
    for sizes in ((3, 1, 1, 4, 2), (2, 9, 5, 24, 7), (2, 17, 128, 200, 128), (2, 8, 33, 512, 16)):
        for dtype in ("float32", "bfloat16"):
            compiled("tpu", run, *abstract(sizes, dtype, noise))
