"""The kernels in suite `gpu`: on what they are measured, how far they are off, how fast they are.

Parity of every kernel in float32 and bfloat16, forward and gradients, is against plain JAX in
float32 at the highest precision, which the tests hold to float64: by the largest difference, in
units of the dtype's own eps, and by the length of all differences over that of what is expected. Of
a list, its log probabilities are compared.

Times are from bfloat16 inputs, with hidden layers in bfloat16 but for JAX's own forms and for
lists, which compute in float32. Calls are queued, as in training: a time is that of many calls over
their number. Rates are of the work that the op has to do (`Case.cost`); "share of roofline" is of
what the GPU does in the same run, products of bfloat16 matrices and copies. The target of pointer
decoding is ten times the definition, a scan, at 256 requests of 32 lanes.
"""

from collections.abc import Callable
import dataclasses
import functools
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...kernels.dot_attention.cases import Case as Search
from ...kernels.pointer_decode.cases import Case as Lists
from ...kernels.target_attention.cases import Case as Attention
from ..ops import FAR, OPS, units_off
from ..results import Row

REPEATS = 10
SECONDS_PER_REPEAT = 0.02
DEFINITION_BYTES = 8 * 2**30
# What is too far: of the largest difference, in units of eps, as in the tests; and of the length of
# all of them, in those units too. One number may cancel; that a tile of many is lost shows here.
LIMITS = {"units off": 16.0, "relative error": 2.0}

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
    """Workloads that are timed, the most telling first."""
    long, page = {"length": 10_000, "width": 64}, {"batch": 16, "candidates": 100}
    cases: dict[str, dict[str, Any]] = {
        "one candidate, 10,000 events": {"batch": 512, "candidates": 1, **long},
        "100 candidates, 10,000 events": {**page, **long},
        "training, 100 events": {"batch": 1024, "candidates": 4, "length": 100, "width": 64},
        "few users, 51,200 events": {"batch": 4, "candidates": 1, "length": 51_200, "width": 64},
    }
    found = [
        Workload(f"{op}, {name}", op, case(name=name, **sizes))
        for name, sizes in cases.items()
        for op, case in (("target_attention", Attention), ("dot_attention", _search))
    ]
    lists = (
        Lists(name="20 candidates", batch=256, candidates=20, slots=10, lanes=32),
        Lists(name="100 candidates", batch=16, candidates=100, slots=50, lanes=64),
    )
    return found + [Workload(f"pointer_decode, {x.name}", "pointer_decode", x) for x in lists]


def parity_cases() -> list[Workload]:
    """Odd sizes: tiles that are not full, parts of a history, padded widths, an empty history.

    Also histories shorter than a tile, more requests than one launch takes, wide items, no
    intervals, and keys that are NaN where they are masked.
    """
    sizes: dict[str, Any] = {"name": "", "batch": 3, "candidates": 5, "length": 5000, "width": 36}
    short: dict[str, Any] = {"name": "", "batch": 700, "candidates": 40, "length": 9, "width": 64}
    wide: dict[str, Any] = {**sizes, "length": 300, "width": 100}
    attentions = [
        (sizes, "prelu", "none", ""),
        (sizes, "dice", "softmax", ""),
        (sizes, "sigmoid", "softmax", ""),
        (sizes, "relu", "none", ""),
        (short, "prelu", "softmax", ", many short histories"),
        (wide, "prelu", "none", ", wide"),
    ]
    found = [
        Workload(
            f"target_attention, {activation}, {normalize}{what}, parity",
            "target_attention",
            Attention(**case),
            (("activation", activation), ("normalize", normalize)),
        )
        for case, activation, normalize, what in attentions
    ]
    for case, what in (
        (_search(**sizes), ""),
        (_search(**short), ", many short histories"),
        (Search(**wide, heads=2, intervals=0, interval_width=0), ", wide, no intervals"),
    ):
        found.append(Workload(f"dot_attention{what}, parity", "dot_attention", case))
    lists: dict[str, Any] = {"name": "", "batch": 5, "candidates": 20, "slots": 10, "lanes": 9}
    for context in ("softmax", "raw"):
        case = Lists(**lists, width=36, units=20)
        found.append(
            Workload(
                f"pointer_decode, {context}, parity",
                "pointer_decode",
                case,
                (("context", context),),
            )
        )
    return found


def parity(workload: Workload, implementation: str) -> list[Row]:
    """Error of a kernel, in units of each dtype."""
    case, options = workload.case, dict(workload.options)
    op, rows = OPS[workload.op], []
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
            value, gradients = differentiated(workload, op.plain)(*exactly)
        with jax.default_matmul_precision(precision):
            got, to_inputs = differentiated(workload, implementation)(*op.spoilt(inputs))
            kernel = op.api.IMPLEMENTATIONS[implementation].kernel
            plain = kernel and kernel.unsupported_backward(*inputs, **options)
        row = functools.partial(Row.of, workload.name, label)
        rows.append(row("units off", [units_off(got, value, eps)]))
        rows.append(row("relative error", [relative_error(got, value, eps)]))
        if not plain:  # Else they are plain JAX's own.
            for metric, measure in (("units off", units_off), ("relative error", relative_error)):
                worst = worst_leaf(measure, to_inputs, gradients, eps)
                rows.append(row(f"gradients, {metric}", [worst]))
    return rows


def too_far(row: Row) -> bool:
    """True if a row is of parity, and says that a kernel is wrong."""
    limit = LIMITS.get(row.metric.removeprefix("gradients, "))
    return limit is not None and not row.value <= limit


def differentiated(workload: Workload, implementation: str | None) -> Callable[..., Any]:
    """The result, and gradients of sum_i cos(i) out_i for all floating inputs; None for others."""
    call = workload.call(implementation)

    def total(floating, others):
        merged = jax.tree.map(
            lambda x, y: y if x is None else x, floating, others, is_leaf=lambda x: x is None
        )
        out = OPS[workload.op].shown(call(*merged))
        angle = jnp.arange(out.size, dtype=jnp.float32).reshape(out.shape)
        return jnp.sum(out.astype(jnp.float32) * jnp.cos(angle)), out

    @jax.jit
    def f(*inputs):
        floating = jax.tree.map(lambda x: x if _is_floating(x) else None, inputs)
        others = jax.tree.map(lambda x: None if _is_floating(x) else x, inputs)
        gradients, out = jax.grad(total, has_aux=True)(floating, others)
        return out, gradients

    return f


def relative_error(actual: Any, expected: Any, eps: float, floor: float = 0.0) -> float:
    """|actual - expected| / |expected|, of vectors, in units of `eps`; NaN is FAR."""
    actual, expected = (np.asarray(x, np.float64) for x in (actual, expected))
    scale = max(float(np.linalg.norm(expected)), floor * expected.size**0.5) or 1.0
    off = float(np.linalg.norm(actual - expected)) / scale / eps
    return off if off < FAR else FAR


def worst_leaf(measure: Callable[..., float], actual: Any, expected: Any, eps: float) -> float:
    """The largest error of whole trees, leaf by leaf.

    Weights are held to a tenth of their largest gradient at least: a single bias may cancel.
    """
    query, keys, *rest = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    floor = max((float(np.max(np.abs(x), initial=0.0)) for _, x in rest), default=0.0) / 10
    return max(
        measure(*query, eps), measure(*keys, eps), *(measure(*x, eps, floor) for x in rest), 0.0
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
    """Peak of the GPU: FLOP/s and bytes/s, medians."""

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


def roofline_rows() -> list[Row]:
    """Rows of the roofline, of which shares are given."""
    roof = roofline()
    return [
        Row.of("this machine", "bfloat16 product", "TFLOP/s", [roof.flops / 1e12]),
        Row.of("this machine", "copy", "GB/s", [roof.bytes / 1e9]),
    ]


def timed(workload: Workload) -> list[Row]:
    """Rows of the kernel, of plain JAX, and of the definition."""
    methods = dict.fromkeys(("triton", OPS[workload.op].plain, "reference"))
    found = times(workload, tuple(methods))
    return [row for method in found for row in rates(workload, method, found[method], roofline())]
