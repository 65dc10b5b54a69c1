"""Suite `gpu`: the kernels on the GPU at hand. Are they right, and how fast are they?

Parity first: every kernel in float32 and bfloat16, forward and gradients, against plain JAX in
float32 at the highest precision, which the tests hold to float64; in units of the dtype's own eps.
Then times, forward and forward with gradients: the kernel, the chunked form and the definition in
JAX, the same in PyTorch, eager and compiled, where that is installed. Calls are queued, as in
training: a time is that of many calls over their number. Rates are of the work that the op has to
do (`Case.cost`); "share of roofline" is of what the GPU does in the same run, products of bfloat16
matrices and copies. What `docs/gpu.md` predicts is to be held against this.

Needs what a machine with JAX has, and jax-triton. Each part runs in a process that may fail or be
ended alone (`python -m recjax.bench.gpu PART ...` prints its rows), and the whole ends within eight
minutes: what has not been measured by then is named.
"""

from collections.abc import Callable, Iterator
import dataclasses
import functools
import importlib.util
import json
import os
import queue
import statistics
import subprocess
import sys
import threading
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..kernels._triton import missing
from ..kernels.dot_attention.cases import Case as Search
from ..kernels.target_attention.cases import Case as Attention
from .compare import choose
from .ops import OPS
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
SECONDS_PER_REPEAT = 0.02
BUDGET_S = 450
PART_S = 90  # No part may take longer.
DEFINITION_BYTES = 8 * 2**30
# Of a dtype's eps, as in the tests: sums of both signs cancel.
LIMIT = 16
FAR = 1e9
PEERS = "torch"
ROWS = "rows: "  # What a part prints before its result.

_search = functools.partial(Search, heads=2, intervals=32, interval_width=16)


@dataclasses.dataclass(frozen=True)
class Workload:
    """A case of an op; `name` is what tables call it, `options` are the op's own."""

    name: str
    op: str
    case: Any
    options: tuple[tuple[str, str], ...] = ()

    def call(self, implementation: str | None) -> Callable[..., Any]:
        """The op as it is measured."""
        op = OPS[self.op]
        return functools.partial(op.call(self.case, implementation), **dict(self.options))


def workloads() -> list[Workload]:
    """What is timed, the most telling first."""
    long, page = {"length": 10_000, "width": 64}, {"batch": 16, "candidates": 100}
    cases: dict[str, dict[str, Any]] = {
        "one candidate, 10,000 events": {"batch": 512, "candidates": 1, **long},
        "100 candidates, 10,000 events": {**page, **long},
        "training, 100 events": {"batch": 1024, "candidates": 4, "length": 100, "width": 64},
        "few users, 51,200 events": {"batch": 4, "candidates": 1, "length": 51_200, "width": 64},
    }
    return [
        Workload(f"{op}, {name}", op, case(name=name, **sizes))
        for name, sizes in cases.items()
        for op, case in (("target_attention", Attention), ("dot_attention", _search))
    ]


def parity_cases() -> list[Workload]:
    """Odd sizes: tiles that are not full, parts of a history, padded widths, an empty history."""
    sizes: dict[str, Any] = {"name": "", "batch": 3, "candidates": 5, "length": 5000, "width": 36}
    found = [
        Workload(
            f"target_attention, {activation}, {normalize}, parity",
            "target_attention",
            Attention(**sizes),
            (("activation", activation), ("normalize", normalize)),
        )
        for activation, normalize in (
            ("prelu", "none"),
            ("dice", "softmax"),
            ("sigmoid", "softmax"),
            ("relu", "none"),
        )
    ]
    found.append(Workload("dot_attention, parity", "dot_attention", _search(**sizes)))
    return found


def run(only: list[str] | None = None) -> list[Row]:
    """Parity of all kernels, then the workloads by name, all of them by default.

    Raises:
      ValueError: there is no GPU, or no jax-triton.
    """
    chosen = choose(workloads(), only)
    # Not here: a process that has used the GPU keeps its memory.
    command = [sys.executable, "-m", f"{__package__}.gpu", "what is missing"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    if reason := json.loads(done.stdout.splitlines()[-1].removeprefix(ROWS)):
        raise ValueError(f"Suite 'gpu' cannot run here: {reason}.")
    parts = ["roofline", *(f"parity of {x.name}" for x in parity_cases())]
    parts += [x.name for x in chosen]
    if importlib.util.find_spec("torch") is not None:
        parts += [f"{PEERS}: {x.name}" for x in chosen]
    rows = []
    for part, found in in_processes(parts, time.monotonic() + BUDGET_S):
        print(part, flush=True)
        rows += [Row(**row) for row in found]
    return rows


def in_processes(parts: list[str], deadline: float) -> Iterator[tuple[str, list[dict]]]:
    """The rows of each part as they come; says which had none, and why.

    One process goes through the parts. If it ends, or takes too long for one, that one is left
    out, and another process goes on behind it.
    """
    left = list(parts)
    while left and time.monotonic() < deadline:
        peers = left[0].startswith(PEERS)
        mine = [part for part in left if part.startswith(PEERS) == peers]
        module = "torch_peer" if peers else "gpu"
        # PyTorch's inputs are made by JAX, which must not take the GPU's memory there.
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"} if peers else None
        command = [sys.executable, "-m", f"{__package__}.{module}", *mine]
        lines: queue.Queue[str | None] = queue.Queue()
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment
        ) as process:
            reader = threading.Thread(target=_read, args=(process.stdout, lines))
            reader.start()
            try:
                for part in mine:
                    left.remove(part)
                    seconds = min(PART_S, deadline - time.monotonic())
                    try:
                        line = lines.get(timeout=max(0.0, seconds))
                    except queue.Empty:
                        print(f"{part}: left out, out of time", flush=True)
                        break
                    if line is None:
                        print(f"{part}: left out, its process ended with {process.wait()}")
                        break
                    yield part, json.loads(line)
            finally:
                process.kill()
                reader.join()
    if left:
        print(f"out of time: {'; '.join(left)} left out", flush=True)


def _read(stream: Any, lines: "queue.Queue[str | None]") -> None:
    """Result lines, then None; other output goes where it would have gone."""
    for line in stream:
        if line.startswith(ROWS):
            lines.put(line.removeprefix(ROWS))
        else:
            print(line, end="", flush=True)
    lines.put(None)


def parity(workload: Workload, implementation: str) -> list[Row]:
    """How far a kernel is off, in units of each dtype; says so where that is too far."""
    case, options = workload.case, dict(workload.options)
    api = OPS[workload.op].api
    rows = []
    for label, dtype, precision in (
        ("float32", jnp.float32, "highest"),
        ("float32 by TF32", jnp.float32, None),
        ("bfloat16", jnp.bfloat16, None),
    ):
        inputs = case.inputs(dtype)
        # What a product of TF32 keeps: ten bits.
        eps = 2.0**-10 if label.endswith("TF32") else float(jnp.finfo(dtype).eps)
        with jax.default_matmul_precision("highest"):
            exactly = jax.tree.map(_single, inputs)
            value, gradients = differentiated(workload, "chunked")(*exactly)
        with jax.default_matmul_precision(precision):
            got, to_inputs = differentiated(workload, implementation)(*inputs)
            kernel = api.IMPLEMENTATIONS[implementation].kernel
            plain = kernel and kernel.unsupported_backward(*inputs, **options)
        off = units_off(got, value, eps)
        rows.append(Row.of(workload.name, label, "units off", [off]))
        worst = max_units_off(to_inputs, gradients, eps)
        if not plain:  # Else they are plain JAX's own.
            rows.append(Row.of(workload.name, label, "gradients, units off", [worst]))
        if not (off <= LIMIT and worst <= LIMIT):
            print(f"  {workload.name}, {label}: OFF by {off:.1f}, gradients by {worst:.1f}")
    return rows


def differentiated(workload: Workload, implementation: str | None) -> Callable[..., Any]:
    """The result, and gradients of sum_i cos(i) out_i for all floating inputs; None for others."""
    call = workload.call(implementation)

    def total(floating, others):
        merged = jax.tree.map(
            lambda x, y: y if x is None else x, floating, others, is_leaf=lambda x: x is None
        )
        out = call(*merged)
        angle = jnp.arange(out.size, dtype=jnp.float32).reshape(out.shape)
        return jnp.sum(out.astype(jnp.float32) * jnp.cos(angle)), out

    @jax.jit
    def f(*inputs):
        floating = jax.tree.map(lambda x: x if _is_floating(x) else None, inputs)
        others = jax.tree.map(lambda x: None if _is_floating(x) else x, inputs)
        gradients, out = jax.grad(total, has_aux=True)(floating, others)
        return out, gradients

    return f


def units_off(actual: Any, expected: Any, eps: float, floor: float = 0.0) -> float:
    """The largest difference in units of `eps` times the largest number expected; NaN is FAR."""
    actual, expected = (np.asarray(x, np.float64) for x in (actual, expected))
    scale = max(float(np.max(np.abs(expected), initial=0.0)), floor) or 1.0
    off = np.abs(actual - expected) / scale / eps
    return float(np.max(np.where(off < FAR, off, FAR), initial=0.0))


def max_units_off(actual: Any, expected: Any, eps: float) -> float:
    """The same of whole trees, leaf by leaf.

    Weights are held to a tenth of their largest gradient at least: a single bias may cancel.
    """
    query, keys, *rest = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    floor = max((float(np.max(np.abs(x), initial=0.0)) for _, x in rest), default=0.0) / 10
    return max(
        units_off(*query, eps), units_off(*keys, eps), *(units_off(*x, eps, floor) for x in rest)
    )


def _is_floating(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


def _single(x):
    return x.astype(jnp.float32) if _is_floating(x) else x


def times(workload: Workload, methods: tuple[str, ...]) -> dict[str, dict[str, list[float]]]:
    """Seconds per call by method: "forward", "with gradients"; without what cannot run."""
    op, case = OPS[workload.op], workload.case
    inputs = case.inputs(jnp.bfloat16)
    found: dict[str, dict[str, list[float]]] = {}
    for method in methods:
        found[method] = {}
        for name, f, copies in (
            ("forward", jax.jit(workload.call(method)), 1),
            ("with gradients", differentiated(workload, method), 4),
        ):
            if method == "reference" and copies * op.largest(case) > DEFINITION_BYTES:
                continue
            try:
                found[method][name] = seconds_per_call(
                    functools.partial(f, *inputs), jax.block_until_ready
                )
            except Exception as e:  # Whatever it is, the others can be measured.
                print(f"  {method}, {name}: left out, {type(e).__name__}: {str(e)[:200]}")
    return found


def seconds_per_call(f: Callable[[], Any], wait: Callable[[Any], Any]) -> list[float]:
    """Of calls that are queued, after two that compile and warm up."""
    wait(f())
    start = time.perf_counter()
    wait(f())
    count = max(1, min(100, int(SECONDS_PER_REPEAT / (time.perf_counter() - start))))
    taken = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(count - 1):
            f()
        wait(f())
        taken.append((time.perf_counter() - start) / count)
    return taken


def rates(
    workload: Workload, method: str, taken: dict[str, list[float]], roof: "Roofline | None"
) -> list[Row]:
    """Rows of a method: milliseconds, and what the forward pass does per second."""
    row = functools.partial(Row.of, workload.name, method)
    rows = []
    if seconds := taken.get("forward"):
        cost = workload.case.cost(itemsize=2)
        rows += [
            row("ms", [1e3 * t for t in seconds], "ms"),
            row("GB/s", [cost.bytes / t / 1e9 for t in seconds]),
            row("TFLOP/s", [cost.flops / t / 1e12 for t in seconds]),
        ]
        if roof:
            ideal = max(cost.flops / roof.flops, cost.bytes / roof.bytes)
            rows.append(row("share of roofline", [ideal / t for t in seconds]))
    if seconds := taken.get("with gradients"):
        rows.append(row("ms with gradients", [1e3 * t for t in seconds], "ms"))
    return rows


@dataclasses.dataclass(frozen=True)
class Roofline:
    """What the GPU does: FLOP/s and bytes/s, medians."""

    flops: float
    bytes: float


@functools.cache
def roofline(side: int = 8192, numbers: int = 2**29) -> Roofline:
    """Of a product of square bfloat16 matrices, and of a copy of as many bfloat16 numbers."""
    # Zeros and ones draw less power, and run faster, than numbers.
    matrix = jax.random.normal(jax.random.key(0), (side, side), jnp.bfloat16)
    long = jnp.zeros(numbers, jnp.bfloat16)
    product, copy = jax.jit(lambda x: x @ x), jax.jit(lambda x: x + 1)
    flops, moved = (
        statistics.median(seconds_per_call(functools.partial(f, x), jax.block_until_ready))
        for f, x in ((product, matrix), (copy, long))
    )
    return Roofline(2 * side**3 / flops, 4 * numbers / moved)


def what_is_missing() -> str | None:
    """Why this machine cannot run the suite."""
    if jax.default_backend() != "gpu":
        return f"it needs a GPU, and JAX sees {jax.default_backend()}"
    return missing()


def rows_of(part: str) -> list[Row]:
    """One part, in this process."""
    if part == "roofline":
        roof = roofline()
        return [
            Row.of("this machine", "bfloat16 product", "TFLOP/s", [roof.flops / 1e12]),
            Row.of("this machine", "copy", "GB/s", [roof.bytes / 1e9]),
        ]
    for workload in parity_cases():
        if part == f"parity of {workload.name}":
            return parity(workload, "triton")
    workload = next(x for x in workloads() if x.name == part)
    found = times(workload, ("triton", "chunked", "reference"))
    return [row for method in found for row in rates(workload, method, found[method], roofline())]


def main(parts: list[str], measure: Callable[[str], list[Row]]) -> None:
    """Prints the rows of each part on a line; a part that fails has none, and says why."""
    for part in parts:
        try:
            rows = [dataclasses.asdict(row) for row in measure(part)]
        except Exception as e:
            print(f"  {part}: {type(e).__name__}: {str(e)[:300]}", flush=True)
            rows = []
        print(ROWS + json.dumps(rows), flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["what is missing"]:
        print(ROWS + json.dumps(what_is_missing()))
    else:
        main(sys.argv[1:], rows_of)
