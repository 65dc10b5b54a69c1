"""What every op owes."""

import functools
import importlib
from pathlib import Path
import pkgutil

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
import numpy as np
import pytest

from recjax import kernels
from recjax.bench.ops import OPS as MEASURED
from recjax.kernels.augru import augru
from recjax.kernels.dot_attention import reference
from recjax.kernels.pointer_decode import reference as pointer_decode
from recjax.kernels.soft_search import soft_search
from recjax.kernels.target_attention import chunked
from testing import assert_close

OPS = sorted(m.name for m in pkgutil.iter_modules(kernels.__path__) if m.ispkg)


TESTS = Path(__file__).resolve().parents[1]
# Plain JAX only, so far.
WITHOUT_KERNELS = {"augru", "soft_search"}


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_a_definition_cases_a_test_and_a_bench(op):
    api = importlib.import_module(f"recjax.kernels.{op}.api")
    cases = importlib.import_module(f"recjax.kernels.{op}.cases").CASES
    assert list(api.IMPLEMENTATIONS)[-1] == "reference"
    assert {case.bench for case in cases} == {True, False}
    assert (TESTS / "kernels" / f"test_{op}.py").is_file()
    assert MEASURED[op].api is api


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_kernels_that_are_compiled_and_interpreted(op):
    api = importlib.import_module(f"recjax.kernels.{op}.api")
    found = {entry.kernel.platform for entry in api.IMPLEMENTATIONS.values() if entry.kernel}
    assert found == (set() if op in WITHOUT_KERNELS else {"cuda", "tpu"})
    for folder in ("aot", "aot/interpreted"):
        assert (TESTS / folder / f"test_{op}.py").is_file() == bool(found)


@pytest.mark.parametrize("op", OPS)
def test_shard_map_equals_jit(op):
    cases, measured = importlib.import_module(f"recjax.kernels.{op}.cases"), MEASURED[op]
    sizes = {name: 9 if name == "length" else size for name, size in SIZES[op].items()}
    case = cases.Case(name="", batch=4, candidates=3, width=8, **sizes)
    inputs = case.inputs()
    f = lambda *args: measured.shown(measured.call(case, None)(*args))
    batched = lambda x: x.ndim > 1 and x.shape[0] == case.batch
    specs = jax.tree.map(lambda x: PartitionSpec("i") if batched(x) else PartitionSpec(), inputs)
    mesh = Mesh(np.array(jax.devices()[:2]), ("i",))
    mapped = jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=PartitionSpec("i"))
    # Two results, each of which may be 4 units off the truth, on either side.
    assert_close(jax.jit(mapped)(*inputs), jax.jit(f)(*inputs), ulps=8)


@pytest.mark.parametrize("op", OPS)
def test_meshes_with_explicit_axes_are_refused(op):
    measured = MEASURED[op]
    case = next(case for case in measured.cases.CASES if not case.bench)
    mesh = jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Explicit,))
    inputs = jax.device_put(case.inputs(), jax.sharding.NamedSharding(mesh, PartitionSpec()))
    with jax.set_mesh(mesh), pytest.raises(NotImplementedError, match="explicit axes .*, got i:"):
        jax.jit(measured.call(case, None))(*inputs)


@pytest.mark.parametrize("op", OPS)
def test_numbers_of_64_bits_change_nothing(op):
    """Forward, and gradients of whatever is floating."""
    measured = MEASURED[op]
    case = next(case for case in measured.cases.CASES if not case.bench)
    inputs = case.inputs()

    def score(*args):
        out = measured.shown(measured.call(case, None)(*args))
        return (out.astype(jnp.float32) ** 2).sum(), out

    run = lambda: jax.jit(jax.grad(score, has_aux=True, allow_int=True))(*inputs)
    gradient, out = run()
    with jax.enable_x64(True):
        again, same = run()
    assert same.dtype == out.dtype
    # As above: two results, each within 4 units of the truth.
    assert_close(same, np.asarray(out, np.float64), ulps=8)
    float0 = jax.dtypes.float0
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(gradient), strict=True):
        if b.dtype != float0:
            assert_close(a, np.asarray(b, np.float64), ulps=8)


# In one block.
RUN = {
    "augru": augru,
    "dot_attention": reference.dot_attention,
    "pointer_decode": lambda *args: pointer_decode.pointer_decode(
        *args, rules=None, slots=4, temperature=1.0, context="softmax"
    ),
    "soft_search": soft_search,
    "target_attention": functools.partial(
        chunked.target_attention,
        activation="prelu",
        normalize="none",
        config=chunked.Config(10**6, 10**6),
    ),
}


def analysed(op, case):
    """XLA's own count of floating-point operations; bytes of arguments and results."""
    options = {"k": case.k} if op == "soft_search" else {}
    executable = jax.jit(functools.partial(RUN[op], **options)).lower(*case.inputs()).compile()
    memory = executable.memory_analysis()
    moved = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return executable.cost_analysis()["flops"], moved


SIZES = {
    "augru": {"units": 32, "length": 6},
    "dot_attention": {"heads": 2, "intervals": 8, "interval_width": 4, "length": 200},
    "pointer_decode": {"units": 32, "lanes": 9, "slots": 4},
    "soft_search": {"k": 5, "length": 200},
    "target_attention": {"units": (80, 40), "length": 200},
}


@pytest.mark.parametrize("op", OPS)
def test_cost_is_what_xla_counts(op, monkeypatch):
    # Of a loop, XLA counts one round: so there is none.
    monkeypatch.setattr(jax.lax, "scan", functools.partial(jax.lax.scan, unroll=True))
    cases = importlib.import_module(f"recjax.kernels.{op}.cases")
    case = cases.Case(name="", batch=2, candidates=3, width=32, **SIZES[op])
    flops, moved = analysed(op, case)
    cost = case.cost()
    assert cost.flops == pytest.approx(flops, rel=0.2)
    assert cost.bytes == pytest.approx(moved, rel=0.2)
