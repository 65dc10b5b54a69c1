"""Dot attention compiled for an H100 and for a TPU v5e: registers, memory, and no surprises."""

import jax
import jax.numpy as jnp
import pytest

from aot.devices import compiled, temporary
from aot.registers import assert_fits, kernels_launched
from recjax.kernels.dot_attention import dot_attention, pallas_tpu, triton_kernels
from recjax.kernels.dot_attention import triton as gpu


def abstract(batch, queries, length, width, dtype, intervals=32, interval_width=16):
    """Shapes only: the arrays would not fit here."""
    like = jax.ShapeDtypeStruct
    args = (
        like((batch, queries, width + (interval_width if intervals else 0)), dtype),
        like((batch, length, width), dtype),
        like((batch, length), bool),
    )
    if not intervals:
        return args
    table = like((intervals, interval_width), jnp.float32)
    return *args, like((batch, length), jnp.int32), table


@pytest.mark.parametrize("intervals", [0, 32])
@pytest.mark.parametrize("precision", ["bfloat16", "float32", "float32, highest"])
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("queries", [2, 20, 200])
def test_kernels_fit(monkeypatch, tmp_path, queries, width, precision, intervals):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    dtype, _, exactness = precision.partition(", ")
    args = abstract(64, queries, 1024, width, dtype, intervals)

    def both(*args):
        result, kept = gpu.forward(*args)
        if gpu.unsupported_backward(*args):
            return result
        return gpu.backward(*args, kept, result)

    with jax.default_matmul_precision(exactness or None):
        found = kernels_launched(monkeypatch, gpu, both, args)
    left_out = exactness and width > 64
    assert len(found) == (1 if left_out else 3)
    assert_fits(triton_kernels, found)


def attend_and_differentiate(query, keys, mask, interval, table):
    def total(query, keys, table):
        found = dot_attention(query, keys, mask, interval, table)
        return jnp.sum(found, dtype=jnp.float32)

    return jax.value_and_grad(total, (0, 1, 2))(query, keys, table)


LONG = abstract(1024, 2, 51_200, 64, jnp.bfloat16)
MANY = abstract(16, 200, 51_200, 64, jnp.bfloat16)


@pytest.mark.parametrize("args", [LONG, MANY], ids=["long", "many candidates"])
@pytest.mark.parametrize("f", [dot_attention, attend_and_differentiate])
def test_memory_on_an_h100(f, args):
    """The scores alone would be 400 MB and 650 MB."""
    executable = compiled("cuda", f, *args)
    assert temporary(executable) <= 64
    assert "triton_kernel_call" in executable.as_text()


@pytest.mark.parametrize("intervals", [0, 32])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_memory_on_a_tpu(dtype, intervals):
    """Besides what each behaviour's interval becomes, nothing is as long as a history."""
    executable = compiled("tpu", dot_attention, *abstract(64, 192, 8192, 128, dtype, intervals))
    assert temporary(executable) <= 16
    assert "tpu_custom_call" in executable.as_text()


def test_odd_shapes_on_a_tpu():
    for shape in ((3, 1, 1, 20), (2, 3, 100, 64), (2, 13, 1000, 36), (2, 300, 1000, 36)):
        compiled("tpu", pallas_tpu.dot_attention, *abstract(*shape, jnp.float32, 5, 3))


def test_many_requests_on_a_tpu():
    """Where their keys end must fit into scalar memory, a megabyte."""
    executable = compiled("tpu", dot_attention, *abstract(2**16, 1, 128, 64, jnp.bfloat16, 5, 3))
    assert "tpu_custom_call" in executable.as_text()
    executable = compiled(
        "tpu", dot_attention, *abstract(2**16 + 1, 1, 128, 64, jnp.bfloat16, 5, 3)
    )
    assert "tpu_custom_call" not in executable.as_text()


@pytest.mark.parametrize("precision", ["high", "highest"])
def test_every_precision_on_a_tpu(precision):
    with jax.default_matmul_precision(precision):
        compiled("tpu", dot_attention, *abstract(2, 3, 200, 64, jnp.float32, 5, 3))
