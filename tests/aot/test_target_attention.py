"""Target attention compiled for an H100 and for a TPU v5e: registers, memory, and no surprises."""

import functools

import jax
import jax.numpy as jnp
import pytest

from aot.devices import compiled, temporary
from aot.registers import assert_fits, kernels_launched
from recjax.kernels.target_attention import pallas_tpu, target_attention, triton_kernels
from recjax.kernels.target_attention import triton as gpu
from recjax.kernels.target_attention.cases import Case

MODES = [("prelu", "none"), ("prelu", "softmax"), ("sigmoid", "none"), ("dice", "softmax")]


def abstract(batch, candidates, length, width, dtype, units=(80, 40)):
    """Shapes only: the arrays would not fit here."""
    case = Case(name="", batch=1, candidates=1, length=1, width=width, units=units)
    weights = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), case.inputs()[3])
    return (
        jax.ShapeDtypeStruct((batch, candidates, width), dtype),
        jax.ShapeDtypeStruct((batch, length, width), dtype),
        jax.ShapeDtypeStruct((batch, length), bool),
        weights,
    )


@pytest.mark.parametrize("mode", MODES, ids=" ".join)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("candidates", [1, 100])
def test_kernels_fit(monkeypatch, tmp_path, candidates, width, dtype, mode):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    args = abstract(64, candidates, 1024, width, dtype)
    options = dict(zip(("activation", "normalize"), mode, strict=True))

    def both(*args):
        result, kept = gpu.forward(*args, **options)
        if gpu.unsupported_backward(*args, **options):
            return result
        return gpu.backward(*args, kept, result, **options)

    found = kernels_launched(monkeypatch, gpu, both, args)
    left_out = dtype == "float32" and (width > 64 or "dice" in mode)
    assert len(found) == (1 if left_out else 4)
    assert_fits(triton_kernels, found)


def attend(*args):
    return target_attention(*args, activation="prelu", normalize="none")


def attend_and_differentiate(query, keys, mask, weights, **options):
    def total(query, keys, weights):
        options_ = {"activation": "prelu", "normalize": "none", **options}
        return jnp.sum(target_attention(query, keys, mask, weights, **options_), dtype=jnp.float32)

    return jax.value_and_grad(total, (0, 1, 2))(query, keys, weights)


LONG = abstract(1024, 1, 51_200, 64, jnp.bfloat16)
MANY = abstract(16, 100, 51_200, 64, jnp.bfloat16)


@pytest.mark.parametrize(
    ("f", "args", "limit"),
    [
        (attend, LONG, 64),
        (attend, MANY, 64),
        (attend_and_differentiate, LONG, 256),
        (functools.partial(attend_and_differentiate, implementation="chunked"), LONG, 600),
    ],
    ids=["long", "many candidates", "long with gradients", "chunked with gradients"],
)
def test_memory_on_an_h100(f, args, limit):
    """The plain definition needs 86 GB for the first of these shapes."""
    executable = compiled("cuda", f, *args)
    assert temporary(executable) <= limit
    chunked = isinstance(f, functools.partial)
    assert ("triton_kernel_call" in executable.as_text()) is not chunked


@pytest.mark.parametrize("mode", MODES, ids=" ".join)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_memory_on_a_tpu(mode, dtype):
    """The plain definition needs 48 GB."""
    options = dict(zip(("activation", "normalize"), mode, strict=True))
    f = functools.partial(target_attention, **options)
    executable = compiled("tpu", f, *abstract(64, 96, 8192, 128, dtype))
    assert temporary(executable) <= 16
    assert "tpu_custom_call" in executable.as_text()


def test_odd_shapes_on_a_tpu():
    f = functools.partial(pallas_tpu.target_attention, activation="dice", normalize="softmax")
    for shape in ((3, 1, 1, 20), (2, 3, 100, 64), (2, 13, 1000, 36)):
        compiled("tpu", f, *abstract(*shape, jnp.float32, units=(36, 20)))


def test_many_requests_on_a_tpu():
    """Where their keys end must fit into scalar memory, a megabyte."""
    executable = compiled("tpu", attend, *abstract(2**16, 1, 128, 64, jnp.bfloat16))
    assert "tpu_custom_call" in executable.as_text()
    executable = compiled("tpu", attend, *abstract(2**16 + 1, 1, 128, 64, jnp.bfloat16))
    assert "tpu_custom_call" not in executable.as_text()


@pytest.mark.parametrize("precision", ["high", "highest"])
def test_every_precision_on_a_tpu(precision):
    with jax.default_matmul_precision(precision):
        compiled("tpu", attend, *abstract(2, 3, 200, 64, jnp.float32))
