"""Suite `gpu`: are the kernels right on the GPU at hand, how fast are they, and for what good?

Parity first, then times, forward and forward with gradients: the kernel, the chunked form if there
is one, and the definition in JAX (`bench.gpu.kernels`); then whole models (`bench.gpu.models`);
last the ops in PyTorch, eager and compiled, where that is installed (`bench.peers.torch_peer`).
What `docs/gpu.md` predicts is to be held against this.

Needs JAX, Flax, Optax, jaxtyping and jax-triton; whole models need all that recjax needs, and are
left out without. Each part runs in a process that may fail or be ended alone (`python -m
recjax.bench.suites.gpu PART ...` prints its rows), and the whole ends within eight minutes: what
has not been measured by then is named.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import functools
import importlib.util
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import jax

from ...kernels._triton import missing
from .. import results
from ..cases import choose
from ..gpu import kernels
from ..results import Row

METRICS = [
    "ms",
    "ms with gradients",
    "GB/s",
    "TFLOP/s",
    "share of roofline",
    "p99 ms",
    "requests/s",
    "ms per step",
    "examples/s",
    "units off",
    "relative error",
    "gradients, units off",
    "gradients, relative error",
]
BUDGET_S = 450
PART_S = 90  # No part may take longer.
_TORCH_PEER = f"{results.__package__}.peers.torch_peer"  # PyTorch is not imported here.
PEERS = "torch"
ROWS = "rows: "  # What a part prints before its result.
MISSING = "what is missing"


@dataclasses.dataclass(frozen=True)
class Part:
    """One measurement of the suite."""

    name: str
    run: Callable[[], list[Row]]


def all_parts() -> list[Part]:
    """In the order in which they are measured."""
    found = [Part("roofline", kernels.roofline_rows)]
    for x in kernels.parity_cases():
        found.append(Part(x.name, functools.partial(kernels.parity, x, "triton")))
    for x in kernels.workloads():
        found.append(Part(x.name, functools.partial(kernels.timed, x)))
    models = {
        "DIN's training, BARS's size": ("din_training", {}),
        "LAST's latency, 1 request": ("last_latency", {"requests": 1}),
        "LAST's latency, 64 requests": ("last_latency", {"requests": 64}),
    }
    for name, (function, options) in models.items():
        found.append(Part(name, functools.partial(_of_model, function, name, options)))
    return found


def _of_model(function: str, name: str, options: dict[str, Any]) -> list[Row]:
    from ..gpu import models  # Needs all our libraries, which the other parts do not.

    return getattr(models, function)(name, **options)


def run(only: list[str] | None = None) -> list[Row]:
    """Parts by name, all of them by default: parity of the kernels, then times.

    Without a GPU, or without jax-triton, it names what it leaves out, and why; then there are no
    rows.
    """
    parts = [part.name for part in choose(all_parts(), only)]
    if importlib.util.find_spec("torch") is not None:
        parts += [f"{PEERS}: {x.name}" for x in kernels.workloads() if x.name in parts]
    deadline = time.monotonic() + BUDGET_S
    # Not here: a process that has used the GPU keeps its memory.
    (_, reasons), *_ = [*in_processes([MISSING], deadline), (MISSING, ["JAX cannot be started"])]
    if reasons:
        print("\n".join(f"{part}: left out" for part in parts))
        print(f"\nSuite 'gpu' cannot run here: {reasons[0]}.")
        return []
    rows = []
    for part, found in in_processes(parts, deadline):
        print(part, flush=True)
        rows += [Row(**row) for row in found]
    wanted = {x.name for x in kernels.parity_cases()} & set(parts)
    print(f"\n{verdict(wanted, rows)}", flush=True)
    return rows


def verdict(wanted: set[str], rows: list[Row]) -> str:
    """Summary of parity: the cases that are off, and the wanted ones that are unknown."""
    off = [f"{row.case}, {row.method}, {row.metric}" for row in rows if kernels.too_far(row)]
    unknown = sorted(wanted - {row.case for row in rows})
    said = [f"OFF: {'; '.join(off)}"] if off else []
    said += [f"not measured: {'; '.join(unknown)}"] if unknown else []
    if not wanted:
        said = ["not asked for"]
    return f"parity: {'. '.join(said) or 'all within limits'}"


def in_processes(parts: list[str], deadline: float) -> Iterator[tuple[str, list[dict]]]:
    """The rows of each part as they come; says which had none, and why.

    One process goes through the parts. If it ends, or takes too long for one, that one is left
    out, and another process goes on behind it.
    """
    left = list(parts)
    while left and time.monotonic() < deadline:
        peers = left[0].startswith(PEERS)
        mine = [part for part in left if part.startswith(PEERS) == peers]
        module = _TORCH_PEER if peers else f"{__package__}.gpu"
        # PyTorch's inputs are made by JAX, which must not take the GPU's memory there.
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"} if peers else None
        command = [sys.executable, "-m", module, *mine]
        lines: queue.Queue[str | None] = queue.Queue()
        # A session of its own: compilers that it started end with it, and nobody waits for them.
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
        )
        threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
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
                    print(f"{part}: left out, {_ending(process)}", flush=True)
                    break
                yield part, json.loads(line)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if left:
        print(f"out of time: {'; '.join(left)} left out", flush=True)


def _ending(process: subprocess.Popen) -> str:
    """End of a process that has no more output, in words."""
    try:
        return f"its process ended with {process.wait(timeout=5)}"
    except subprocess.TimeoutExpired:
        return "its process says nothing more and does not end"


def _read(stream: Any, lines: "queue.Queue[str | None]") -> None:
    """Result lines, then None; other output goes where it would have gone."""
    with stream:
        for line in stream:
            if line.startswith(ROWS):
                lines.put(line.removeprefix(ROWS))
            else:
                print(line, end="", flush=True)
    lines.put(None)


def what_is_missing() -> str | None:
    """Why this machine cannot run the suite."""
    if jax.default_backend() != "gpu":
        return f"it needs a GPU, and JAX sees {jax.default_backend()}"
    return missing()


def rows_of(part: str) -> list[Row]:
    """One part, in this process."""
    return next(x for x in all_parts() if x.name == part).run()


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
    if sys.argv[1:] == [MISSING]:
        reason = what_is_missing()
        print(ROWS + json.dumps([reason] if reason else []))
    else:
        main(sys.argv[1:], rows_of)
