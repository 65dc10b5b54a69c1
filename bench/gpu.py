"""Suite `gpu`: the kernels on the GPU at hand. Are they right, and how fast are they?

Parity first: every kernel in float32 and bfloat16 against float64 (units of the dtype's own eps),
its gradients against plain JAX in float32 at the highest precision. Then times, forward and with
gradients: the kernel, the chunked form and the definition in JAX, the same in PyTorch, eager and
compiled, where that is installed. Rates are of the work that the op has to do (`Case.cost`);
"share of roofline" is of what the GPU does in the same run, products of bfloat16 matrices and
copies. What `docs/gpu.md` predicts is to be held against this.

Needs what a machine with JAX has, and jax-triton. Ends within eight minutes: what does not fit in
is left out, and said so.
"""

from collections.abc import Callable
import dataclasses
import functools
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..kernels.dot_attention.cases import Case as Search
from ..kernels.target_attention.cases import Case as Attention
from .compare import choose
from .ops import OPS, Op, part, units_off
from .results import Row

METRICS = [
    "ms",
    "ms with gradients",
    "GB/s",
    "TFLOP/s",
    "share of roofline",
    "units off",
    "gradients, units off",
]
REPEATS = 10
BUDGET_S = 420  # From the start: what is begun after this has no time left.
PEERS_S = 150
DEFINITION_BYTES = 16 * 2**30
# Of a dtype's eps, as in the tests: a softmax cancels.
LIMIT = 16

_search = functools.partial(Search, heads=2, intervals=32, interval_width=16)


@dataclasses.dataclass(frozen=True)
class Workload:
    """A case of an op; `name` is what tables call it."""

    name: str
    op: str
    case: Any


def workloads() -> list[Workload]:
    """What is timed, the most telling first."""
    long, page = {"length": 10_000, "width": 64}, {"batch": 16, "candidates": 100}
    cases: dict[str, dict[str, Any]] = {
        "one candidate, 10,000 events": {"batch": 512, "candidates": 1, **long},
        "100 candidates, 10,000 events": {**page, **long},
        "training, 100 events": {"batch": 1024, "candidates": 4, "length": 100, "width": 64},
        "few users, 51,200 events": {"batch": 4, "candidates": 1, "length": 51_200, "width": 64},
    }
    found = []
    for name, sizes in cases.items():
        for op, case in (("target_attention", Attention), ("dot_attention", _search)):
            found.append(Workload(f"{op}, {name}", op, case(name=name, **sizes)))
    return found


def parity_cases() -> list[Workload]:
    """Odd sizes: tiles that are not full, parts of a history, padded widths."""
    sizes: dict[str, Any] = {"batch": 3, "candidates": 5, "length": 1000, "width": 36}
    return [
        Workload("target_attention, parity", "target_attention", Attention(name="", **sizes)),
        Workload("dot_attention, parity", "dot_attention", _search(name="", **sizes)),
    ]


def run(only: list[str] | None = None) -> list[Row]:
    """Parity of all kernels, then the workloads by name, all of them by default.

    Raises:
      ValueError: there is no GPU.
    """
    chosen = choose(workloads(), only)
    started = time.perf_counter()
    # Before JAX takes the memory.
    peers = _peers([workload.name for workload in chosen])
    if jax.default_backend() != "gpu":
        raise ValueError(f"Suite 'gpu' needs a GPU; JAX sees {jax.default_backend()}.")
    rows = []
    for workload in parity_cases():
        print(workload.name, flush=True)
        rows += parity(workload, "triton")
    roof = roofline()
    rows += [
        Row.of("this machine", "bfloat16 product", "TFLOP/s", [roof.flops / 1e12]),
        Row.of("this machine", "copy", "GB/s", [roof.bytes / 1e9]),
    ]
    for i, workload in enumerate(chosen):
        if time.perf_counter() - started > BUDGET_S:
            print(f"out of time: {'; '.join(x.name for x in chosen[i:])} left out")
            break
        print(f"{i + 1} of {len(chosen)}: {workload.name}", flush=True)
        seconds = times(workload, ("triton", "chunked", "reference"))
        for method, taken in {**seconds, **peers.get(workload.name, {})}.items():
            rows += rates(workload, method, taken, roof)
    return rows


def parity(workload: Workload, implementation: str) -> list[Row]:
    """How far a kernel is off, in units of each dtype; says so where that is too far."""
    op, case = OPS[workload.op], workload.case
    rows = []
    for label, dtype, precision in (
        ("float32", jnp.float32, "highest"),
        ("float32 by TF32", jnp.float32, None),
        ("bfloat16", jnp.bfloat16, None),
    ):
        inputs = case.inputs(dtype)
        # What a product of TF32 keeps: ten bits.
        eps = 2.0**-10 if label.endswith("TF32") else float(jnp.finfo(dtype).eps)
        with jax.default_matmul_precision(precision):
            few = part(inputs, case)
            off = op.units_off(case, few, jax.jit(op.call(case, implementation))(*few), eps)
            got = gradients(op, case, implementation)(*inputs)
        with jax.default_matmul_precision("highest"):
            exactly = jax.tree.map(_single, inputs)
            expected = gradients(op, case, "chunked")(*exactly)
        worst = max(
            units_off(*pair, eps) for pair in zip(_blocks(got), _blocks(expected), strict=True)
        )
        if not max(off, worst) <= LIMIT:
            print(f"  {label}: OFF by {off:.1f}, gradients by {worst:.1f} (limit {LIMIT})")
        rows += [
            Row.of(workload.name, label, "units off", [off]),
            Row.of(workload.name, label, "gradients, units off", [worst]),
        ]
    return rows


def gradients(op: Op, case: Any, implementation: str | None) -> Callable[..., Any]:
    """Of sum_i cos(i) out_i, with respect to all floating inputs; None for the others."""
    call = op.call(case, implementation)

    def total(floating, others):
        merged = jax.tree.map(
            lambda x, y: y if x is None else x, floating, others, is_leaf=lambda x: x is None
        )
        out = call(*merged).astype(jnp.float32)
        return jnp.sum(out * jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape))

    @jax.jit
    def differentiate(*inputs):
        floating = jax.tree.map(lambda x: x if _is_floating(x) else None, inputs)
        others = jax.tree.map(lambda x: None if _is_floating(x) else x, inputs)
        return jax.grad(total)(floating, others)

    return differentiate


def _blocks(found: tuple) -> list[np.ndarray]:
    """Of query, of keys, of all weights: the sums of a single bias may happen to cancel."""
    query, keys, *rest = found
    flat = [np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(rest)]
    return [np.asarray(query), np.asarray(keys), np.concatenate(flat)]


def _is_floating(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


def _single(x):
    return x.astype(jnp.float32) if _is_floating(x) else x


def times(workload: Workload, methods: tuple[str, ...]) -> dict[str, dict[str, list[float]]]:
    """Seconds of calls by method: forward, and "with gradients"; without what cannot run."""
    op, case = OPS[workload.op], workload.case
    inputs = case.inputs(jnp.bfloat16)
    found = {}
    for method in methods:
        if method == "reference" and _written_down(case) > DEFINITION_BYTES:
            continue
        calls = {
            "forward": jax.jit(op.call(case, method)),
            "with gradients": gradients(op, case, method),
        }
        found[method] = {}
        for name, f in calls.items():
            try:
                found[method][name] = _seconds(functools.partial(f, *inputs))
            except (NotImplementedError, ValueError, jax.errors.JaxRuntimeError) as e:
                print(f"  {method}, {name}: left out, {str(e).splitlines()[0][:200]}")
    return found


def rates(
    workload: Workload, method: str, taken: dict[str, list[float]], roof: "Roofline"
) -> list[Row]:
    """Rows of a method: milliseconds, and what the forward pass does per second."""
    row = functools.partial(Row.of, workload.name, method)
    rows = []
    if seconds := taken.get("forward"):
        cost = workload.case.cost(itemsize=2)
        ideal = max(cost.flops / roof.flops, cost.bytes / roof.bytes)
        rows += [
            row("ms", [1e3 * t for t in seconds], "ms"),
            row("GB/s", [cost.bytes / t / 1e9 for t in seconds]),
            row("TFLOP/s", [cost.flops / t / 1e12 for t in seconds]),
            row("share of roofline", [ideal / t for t in seconds]),
        ]
    if seconds := taken.get("with gradients"):
        rows.append(row("ms with gradients", [1e3 * t for t in seconds], "ms"))
    return rows


@dataclasses.dataclass(frozen=True)
class Roofline:
    """What the GPU does: FLOP/s and bytes/s, medians."""

    flops: float
    bytes: float


def roofline(side: int = 8192, numbers: int = 2**29) -> Roofline:
    """Of a product of square bfloat16 matrices, and of a copy of as many bfloat16 numbers."""
    matrix, long = jnp.ones((side, side), jnp.bfloat16), jnp.zeros(numbers, jnp.bfloat16)
    product, copy = jax.jit(lambda x: x @ x), jax.jit(lambda x: x + 1)
    flops = 2 * side**3 / statistics.median(_seconds(functools.partial(product, matrix)))
    return Roofline(flops, 4 * numbers / statistics.median(_seconds(functools.partial(copy, long))))


def _seconds(f: Callable[[], Any]) -> list[float]:
    """Of several calls, after two that compile and warm up."""
    for _ in range(2):
        jax.block_until_ready(f())
    taken = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(f())
        taken.append(time.perf_counter() - start)
    return taken


def _written_down(case: Any) -> int:
    """Bytes of the largest array of the definition: all pairs, four vectors each, in float32."""
    return 16 * case.batch * case.candidates * case.length * case.width


def _peers(names: list[str]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Seconds of PyTorch by workload and method, from a process of its own; empty without it."""
    if importlib.util.find_spec("torch") is None:
        return {}
    print("PyTorch, in a process of its own", flush=True)
    command = [sys.executable, "-m", f"{__package__}.torch_peer", json.dumps(names), str(PEERS_S)]
    # That process makes its inputs with JAX, and wants the GPU for itself.
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        print(f"  left out: it ended with {done.returncode}")
        return {}
    return json.loads(done.stdout.splitlines()[-1])


def main_inputs(workload: Workload) -> tuple[np.ndarray, ...]:
    """The leaves of a workload's inputs as NumPy arrays, float32 where they are floating."""
    return tuple(np.asarray(_single(x)) for x in jax.tree.leaves(workload.case.inputs()))
