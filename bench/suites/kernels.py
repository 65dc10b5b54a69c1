"""Suite `kernels`: every op, in every implementation that runs here, and what the machine can do.

The roofline is measured in the same run: the rate of a large float32 product, and that of a copy
too large for any cache. The share of it is what `Case.cost()` would take there, over what the op
took. "units off" is the error against float64 NumPy in units of float32, on one request of the
case and, in ops that take candidates one by one, at most four of them. Implementations alternate.
"""

import dataclasses
import functools
from pathlib import Path
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..cases import choose
from ..ops import OPS, Op
from ..results import Row
from ..timing import in_turns

METRICS = ["ms", "GFLOP/s", "GB/s", "share of roofline", "units off"]
REPEATS = 5
# What the definition of an op may write down; beyond it is left out.
DEFINITION_BYTES = 2**30


@dataclasses.dataclass(frozen=True)
class Workload:
    """A case of an op; `name` is what tables call it."""

    name: str
    op: Op
    case: Any


def workloads() -> list[Workload]:
    """Every case that is made to be timed."""
    return [
        Workload(f"{name}, {case.name}", op, case)
        for name, op in OPS.items()
        for case in op.cases.CASES
        if case.bench
    ]


def run(only: list[str] | None = None) -> list[Row]:
    """Cases by name, all of them by default."""
    roof = roofline()
    rows = [
        Row.of("this machine", "float32 product", "GFLOP/s", [x / 1e9 for x in roof.flops]),
        Row.of("this machine", "copy", "GB/s", [x / 1e9 for x in roof.bytes]),
    ]
    chosen = choose(workloads(), only)
    for i, workload in enumerate(chosen):
        print(f"{i + 1} of {len(chosen)}: {workload.name}", flush=True)
        rows += _measure(workload, roof)
    return rows


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Peak of this machine, several times measured: FLOP/s and bytes/s."""

    flops: list[float]
    bytes: list[float]


def roofline() -> Roofline:
    """Of a product of 2048 x 2048 float32 matrices, and of a copy of 256 MB."""
    matrix = jnp.ones((2048, 2048))
    long = jnp.zeros(2**26)
    product, copy = jax.jit(lambda x: x @ x), jax.jit(lambda x: x + 1)
    products = in_turns([functools.partial(product, matrix)], REPEATS)[0]
    copies = in_turns([functools.partial(copy, long)], REPEATS)[0]
    return Roofline([2 * 2048**3 / t for t in products], [8 * 2**26 / t for t in copies])


def draw(rows: list[Row], path: Path) -> None:
    """Every method under the roofline, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = {(row.case, row.method, row.metric): row.value for row in rows}
    top = found["this machine", "float32 product", "GFLOP/s"]
    slope = found["this machine", "copy", "GB/s"]
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    intensities = np.geomspace(0.1, 10_000, 200)
    axes.plot(intensities, np.minimum(top, slope * intensities), "k-", label="this machine")
    styles = dict(zip(_methods(rows), "osD^v", strict=False))
    for (case, method, metric), rate in found.items():
        if metric == "GFLOP/s" and method in styles:
            at = rate / found[case, method, "GB/s"]
            axes.plot(at, rate, styles[method], color=f"C{list(styles).index(method)}")
            if method == next(iter(styles)):
                axes.annotate(
                    case, (at, rate), fontsize=6, xytext=(4, 0), textcoords="offset points"
                )
    for i, (method, style) in enumerate(styles.items()):
        axes.plot([], [], style, color=f"C{i}", label=method)
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte", ylabel="GFLOP/s")
    axes.legend()
    aside = path.with_name("partial-" + path.name)
    figure.savefig(aside, dpi=120)
    aside.rename(path)


def _methods(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(row.method for row in rows if row.metric == "ms"))


def _measure(workload: Workload, roof: Roofline) -> list[Row]:
    op, case = workload.op, workload.case
    inputs = case.inputs()
    cost = case.cost()
    ideal = max(
        cost.flops / statistics.median(roof.flops), cost.bytes / statistics.median(roof.bytes)
    )
    few = op.part(inputs, case)
    names, calls, errors = [], [], []
    for name in op.api.IMPLEMENTATIONS:
        if name == "reference" and op.largest(case) > DEFINITION_BYTES:
            continue
        f = jax.jit(op.call(case, name))
        try:
            out = f(*few)
        except (NotImplementedError, ValueError) as e:
            print(f"  {name}: left out, {str(e).splitlines()[0]}")
            continue
        names.append(name)
        calls.append(functools.partial(f, *inputs))
        errors.append(op.units_off(case, few, out, float(np.finfo("float32").eps)))
    rows = []
    for name, seconds, error in zip(names, in_turns(calls, REPEATS), errors, strict=True):
        row = functools.partial(Row.of, workload.name, name)
        rows += [
            row("ms", [1e3 * t for t in seconds], "ms"),
            row("GFLOP/s", [cost.flops / t / 1e9 for t in seconds]),
            row("GB/s", [cost.bytes / t / 1e9 for t in seconds]),
            row("share of roofline", [ideal / t for t in seconds]),
            row("units off", [error]),
        ]
    return rows
