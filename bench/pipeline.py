"""Suite `pipeline`: does the cost of a step follow the batch and not the tables?

On a synthetic log: batch assembly alone, the time of whole training steps with tables of 100
thousand to 10 million rows that name the same number of distinct ids, and each run's peak memory
beyond its tables and their optimiser state. Every table size runs in a process of its own.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np

from .. import zoo
from ..train.data.dataset import Dataset
from ..train.data.event_log import EventLog, Requests
from ..train.data.pipeline import TrainingBatches
from ..train.defaults import model_config
from ..train.settings import Settings
from ..train.step import initial_state, make_step
from ..zoo.features import Field, HashedRows, Schema, Table
from .results import Row

METRICS = [
    "examples/s",
    "ms per step",
    "time against the smallest",
    "tables and state",
    "peak beyond them",
]
SIZES = (100_000, 1_000_000, 10_000_000)
MODELS = ("mlp", "din")
REPEATS = 5
STEPS = 20
_BATCH, _HISTORY = 1024, 100
_DISTINCT = 50_000  # items that events name, whatever the size of the table


def run() -> list[Row]:
    """Rows of the suite."""
    rows = [Row.of("batch assembly, history 100", "pipeline", "examples/s", assembly(), "1/s")]
    runs = [(model, size) for size in SIZES for model in MODELS]
    found: dict[tuple[str, int], list[dict[str, float]]] = {key: [] for key in runs}
    for _ in range(REPEATS):
        for model, size in runs:  # interleaved, so that a noisy moment does not fall on one size
            command = [sys.executable, "-m", f"{__package__}.pipeline", model, str(size)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[model, size].append(json.loads(done.stdout.splitlines()[-1]))
    for model, size in runs:
        case, method = f"tables of {size:,} rows", f"{model}'s step"
        of = lambda key, size=size, model=model: [one[key] for one in found[model, size]]
        ratio = [ms / base for ms, base in zip(of("ms"), of("ms", SIZES[0]), strict=True)]
        rows += [
            Row.of(case, method, "ms per step", of("ms"), "ms"),
            Row.of(case, method, "time against the smallest", ratio),
            Row.of(case, method, "tables and state", of("held"), "MiB"),
            Row.of(case, method, "peak beyond them", of("extra"), "MiB"),
        ]
    return rows


def assembly() -> list[float]:
    """Labelled candidates per second, from the log alone, renaming of ids included."""
    data = synthetic(SIZES[1])
    batches = TrainingBatches(data, batch_size=_BATCH, history=_HISTORY)
    speeds = []
    for repeat in range(REPEATS):
        started, examples = time.perf_counter(), 0
        for step, (batch, _) in enumerate(batches.epoch(repeat)):
            examples += int(batch["candidate_mask"].sum())
            if step == 4 * STEPS:
                break
        speeds.append(examples / (time.perf_counter() - started))
    return speeds


def synthetic(rows: int) -> Dataset:
    """A log of long histories over one large table of items and a small one of categories."""
    rng = np.random.default_rng(0)
    users, events, items = 2_000, 200, _DISTINCT
    schema = Schema(
        tables=(Table(name="item", rows=rows, dim=16), Table(name="category", rows=1002, dim=16)),
        fields=tuple(
            Field(name=name, role=role)
            for name in ("item", "category")
            for role in ("candidate", "history")
        ),
    )
    spread = np.linspace(2, rows - 1, items).astype(np.int32)
    log = EventLog(
        offsets=np.arange(users + 1, dtype=np.int64) * events,
        item=rng.integers(0, items, users * events).astype(np.int32),
        time=np.tile(np.arange(events, dtype=np.int64), users),
        event={},
        items={"item": spread, "category": rng.integers(2, 1002, items).astype(np.int32)},
        users={},
        has_clock=False,
    )
    count = 40_000
    user = rng.integers(0, users, count).astype(np.int32)
    requests = Requests(
        user=user,
        cut=np.full(count, _HISTORY, np.int64),
        time=np.full(count, _HISTORY, np.int64),
        candidate=rng.integers(0, items, (count, 4)).astype(np.int32),
        label={"click": rng.integers(0, 2, (count, 4)).astype(np.float32)},
    )
    return Dataset(
        name="synthetic",
        schema=schema,
        row_maps={"item": HashedRows(rows), "category": HashedRows(1002)},
        log=log,
        train=requests,
        validation=requests.take(slice(0, 1)),
        test=requests.take(slice(0, 1)),
    )


def measure(model: str, rows: int) -> dict[str, float]:
    """Median milliseconds per step, and MiB of tables with state, and of the peak beyond them."""
    before = _peak_mib()
    data, settings = synthetic(rows), Settings(batch_size=_BATCH, history=_HISTORY)
    module = zoo.MODELS[model]
    config = model_config(module, data.schema)
    step = jax.jit(make_step(module, config, settings, total_steps=10**6), donate_argnums=0)
    batches = TrainingBatches(data, batch_size=_BATCH, history=_HISTORY)
    state = jax.block_until_ready(initial_state(module, config, settings, {}))
    held = sum(x.nbytes for x in jax.tree.leaves((state.tables, state.table_state))) / 2**20
    times: list[float] = []
    started = time.perf_counter()
    for index, (batch, pulled) in enumerate(batches.epoch(0)):
        state, _ = jax.block_until_ready(step(state, batch, pulled))
        now = time.perf_counter()
        times, started = [*times, now - started], now
        if index == 2 * STEPS:
            break
    return {
        "ms": 1e3 * statistics.median(times[STEPS:]),
        "held": held,
        "extra": _peak_mib() - before - held,
    }


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _main(arguments: list[str]) -> Any:
    print(json.dumps(measure(arguments[0], int(arguments[1]))))


if __name__ == "__main__":
    _main(sys.argv[1:])
