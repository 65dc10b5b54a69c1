"""Whole models in suite `gpu`: a training step of DIN at a published size, and what LAST takes.

The step is that of DIN's run on Amazon Electronics in BARS (https://openbenchmark.github.io/BARS),
which FuxiCTR trains at 2,623 examples/s on a V100: one labelled candidate per example, 100 events,
items and categories of 64 numbers each. The hidden layers of its activation unit are too large for
the kernel; plain JAX multiplies them.
"""

from collections.abc import Iterator
import itertools
import time
from typing import Any

import jax

from ...train.settings import Settings
from ...train.step import initial_state, make_step
from ...zoo import din
from ...zoo.features import RESERVED_ROWS
from ..reranking import cost
from ..results import Row
from ..workload import batches, step_times, synthetic

ITEMS = 63_001
SIZES = {"attention_units": (512, 256), "tower_units": (1024, 512, 256)}
SETTINGS = Settings(batch_size=1024, history=100)
STEPS = 20
READY = 8  # Batches that the step alone goes round.


def din_training(name: str, *, sizes: dict[str, Any] = SIZES, items: int = ITEMS) -> list[Row]:
    """Examples per second, from the event log on as `recjax train` has it, and the step alone."""
    data = synthetic(items + RESERVED_ROWS, SETTINGS.history, candidates=1, items=items, dim=64)
    config = din.Config(schema=data.schema, **sizes)
    taken = {
        "din": step_times(
            din, config, SETTINGS, data, initial_state(din, config, SETTINGS, {}), STEPS
        ),
        "din, the step alone": list(_step_alone(config, data)),
    }
    rows = []
    for method, seconds in taken.items():
        speed = [SETTINGS.batch_size / t for t in seconds]
        rows += [
            Row.of(name, method, "ms per step", [1e3 * t for t in seconds], "ms"),
            Row.of(name, method, "examples/s", speed, "1/s"),
        ]
    return rows


def last_latency(name: str, *, requests: int) -> list[Row]:
    """Median and 99th percentile of re-ranking so many requests at once, against S."""
    methods = cost.parallel()
    return cost.latencies(name, cost.seconds(methods, requests), requests)


def _step_alone(config: din.Config, data: Any) -> Iterator[float]:
    """Seconds per step on batches that are there already, after a round to compile."""
    step = jax.jit(make_step(din, config, SETTINGS, total_steps=10**6), donate_argnums=0)
    found = itertools.islice(batches(din, config, SETTINGS, data), READY)
    ready = [jax.device_put(batch) for batch in found]
    state = initial_state(din, config, SETTINGS, {})
    for turn in range(1 + STEPS):
        started = time.perf_counter()
        for batch, pulled in ready:
            state, _ = step(state, batch, pulled)
        jax.block_until_ready(state)
        if turn:
            yield (time.perf_counter() - started) / len(ready)
