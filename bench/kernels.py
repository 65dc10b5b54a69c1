"""Suite `kernels`: every op, in every implementation that runs here, and what the machine can do.

The roofline is measured in the same run: the rate of a large float32 product, and that of a copy
too large for any cache. The share of it is what `Case.cost()` would take there, over what the op
took. "units off" is the error against float64 NumPy in units of float32, on one request and at
most four candidates of the case. Implementations alternate.
"""

from collections.abc import Callable
import dataclasses
import functools
from pathlib import Path
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..kernels import augru, dot_attention, soft_search, target_attention
from ..kernels.augru import cases as augru_cases
from ..kernels.augru.api import IMPLEMENTATIONS as AUGRU
from ..kernels.dot_attention import cases as dot_attention_cases
from ..kernels.dot_attention.api import IMPLEMENTATIONS as DOT_ATTENTION
from ..kernels.soft_search import cases as soft_search_cases
from ..kernels.soft_search.api import IMPLEMENTATIONS as SOFT_SEARCH
from ..kernels.target_attention import cases as target_attention_cases
from ..kernels.target_attention.api import IMPLEMENTATIONS as TARGET_ATTENTION
from .compare import choose
from .results import Row

METRICS = ["ms", "GFLOP/s", "GB/s", "share of roofline", "units off"]
REPEATS = 5
# What the definition of an op may write down; beyond it is left out.
DEFINITION_BYTES = 2**30


@dataclasses.dataclass(frozen=True)
class Op:
    """An op as the suite calls it: `run(*inputs, implementation=...)`, and its definition."""

    run: Callable[..., Any]
    implementations: tuple[str, ...]
    exact: Callable[..., np.ndarray]
    shown: Callable[[Any], jax.Array] = lambda out: out


@dataclasses.dataclass(frozen=True)
class Workload:
    """A case of an op; `name` is what tables call it."""

    name: str
    op: Op
    case: Any


def _exact_attention(query, keys, mask, weights):
    out = np.zeros(query.shape)
    for c in range(query.shape[1]):
        q = np.broadcast_to(query[:, c : c + 1], keys.shape)
        x = np.concatenate([q, keys, q - keys, q * keys], axis=-1)
        for layer in weights.layers:
            x = x @ layer.kernel + layer.bias
            x = np.where(x > 0, x, layer.alpha * x)
        score = (x @ weights.out_kernel + weights.out_bias) * mask
        out[:, c] = np.einsum("bl,bld->bd", score, keys)
    return out


def _exact_dot_attention(query, keys, mask, interval, table):
    z = np.concatenate([keys, table[interval.astype(int)]], axis=-1)
    score = np.where(mask[:, None], np.einsum("bqz,blz->bql", query, z), -np.inf)
    top = np.max(score, axis=-1, keepdims=True)
    weight = np.where(mask[:, None], np.exp(score - np.where(np.isfinite(top), top, 0)), 0)
    mass = np.maximum(np.sum(weight, axis=-1, keepdims=True), 1e-300)
    return np.einsum("bql,blz->bqz", weight / mass, z)


def _exact_search(keys, queries, mask, *, k):
    scores = np.where(mask[:, None], np.einsum("bla,bca->bcl", keys, queries), -np.inf)
    best = -np.sort(-scores, axis=-1)[..., :k]
    return np.where(np.isfinite(best), best, 0)


def _exact_augru(states, attention, mask, weights):
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    h = np.zeros((*attention.shape[:2], weights.recurrent.shape[0]))
    for t in range(states.shape[1]):
        x = (states[:, t] @ weights.input + weights.bias)[:, None]
        x_u, x_r, x_n = np.split(x, 3, axis=-1)
        h_u, h_r, h_n = np.split(h @ weights.recurrent, 3, axis=-1)
        step = attention[:, :, t, None] * sigmoid(x_u + h_u)
        new = np.tanh(x_n + sigmoid(x_r + h_r) * h_n)
        h = np.where(mask[:, t, None, None], (1 - step) * h + step * new, h)
    return h


def workloads() -> list[Workload]:
    """Every case that is made to be timed."""
    attend = functools.partial(target_attention.target_attention, activation="prelu")
    ops = [
        (
            "target_attention",
            lambda case: Op(
                functools.partial(attend, normalize="none"),
                tuple(TARGET_ATTENTION),
                _exact_attention,
            ),
            target_attention_cases.CASES,
        ),
        (
            "dot_attention",
            lambda case: Op(
                dot_attention.dot_attention, tuple(DOT_ATTENTION), _exact_dot_attention
            ),
            dot_attention_cases.CASES,
        ),
        (
            "soft_search",
            lambda case: Op(
                functools.partial(soft_search.soft_search, k=case.k),
                tuple(SOFT_SEARCH),
                functools.partial(_exact_search, k=case.k),
                lambda found: jnp.where(found.mask, found.scores, 0),
            ),
            soft_search_cases.CASES,
        ),
        ("augru", lambda case: Op(augru.augru, tuple(AUGRU), _exact_augru), augru_cases.CASES),
    ]
    return [
        Workload(f"{name}, {case.name}", op(case), case)
        for name, op, cases in ops
        for case in cases
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
    """What this machine can do, several times measured: FLOP/s and bytes/s."""

    flops: list[float]
    bytes: list[float]


def roofline() -> Roofline:
    """Of a product of 2048 x 2048 float32 matrices, and of a copy of 256 MB."""
    matrix = jnp.ones((2048, 2048))
    long = jnp.zeros(2**26)
    product, copy = jax.jit(lambda x: x @ x), jax.jit(lambda x: x + 1)
    flops = [2 * 2048**3 / t for t in _times([functools.partial(product, matrix)])[0]]
    return Roofline(flops, [8 * 2**26 / t for t in _times([functools.partial(copy, long)])[0]])


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


def _times(functions: list[Callable[[], Any]]) -> list[list[float]]:
    """Seconds of several calls each, taken in turns, after one to compile."""
    for f in functions:
        jax.block_until_ready(f())
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(REPEATS):
        for f, taken in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(f())
            taken.append(time.perf_counter() - start)
    return seconds


def _measure(workload: Workload, roof: Roofline) -> list[Row]:
    op, case = workload.op, workload.case
    inputs = case.inputs()
    cost = case.cost()
    ideal = max(
        cost.flops / statistics.median(roof.flops), cost.bytes / statistics.median(roof.bytes)
    )
    part = _part(inputs, case)
    expected = op.exact(*jax.tree.map(_float64, part))
    names, calls, errors = [], [], []
    for name in op.implementations:
        if name == "reference" and _written_down(case) > DEFINITION_BYTES:
            continue
        f = jax.jit(functools.partial(op.run, implementation=name))
        try:
            got = np.asarray(op.shown(f(*part)), np.float64)
        except (NotImplementedError, ValueError) as e:
            print(f"  {name}: left out, {str(e).splitlines()[0]}")
            continue
        scale = np.max(np.abs(expected), initial=0.0) or 1.0
        names.append(name)
        calls.append(functools.partial(f, *inputs))
        errors.append(float(np.max(np.abs(got - expected)) / scale / np.finfo("float32").eps))
    rows = []
    for name, seconds, error in zip(names, _times(calls), errors, strict=True):
        row = functools.partial(Row.of, workload.name, name)
        rows += [
            row("ms", [1e3 * t for t in seconds], "ms"),
            row("GFLOP/s", [cost.flops / t / 1e9 for t in seconds]),
            row("GB/s", [cost.bytes / t / 1e9 for t in seconds]),
            row("share of roofline", [ideal / t for t in seconds]),
            row("units off", [error]),
        ]
    return rows


def _part(inputs, case):
    """One request with at most four candidates; weights stay."""

    def cut(x):
        if getattr(x, "ndim", 0) < 2 or x.shape[0] != case.batch:
            return x
        few = x[:1]
        return few[:, :4] if few.ndim > 2 and few.shape[1] == case.candidates else few

    return tuple(cut(x) for x in inputs)


def _float64(x):
    return np.asarray(x, bool if x.dtype == bool else np.float64)


def _written_down(case) -> int:
    """Bytes of the largest array of the definition: all pairs, four vectors each."""
    return 16 * case.batch * case.candidates * case.length * case.width
