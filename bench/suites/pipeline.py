"""Suite `pipeline`: does the cost of a step follow the batch and not the tables?

On a synthetic log: batch assembly alone, the time of whole training steps with tables of 100
thousand to 10 million rows that name the same number of distinct ids, and each run's peak memory
beyond its tables and their optimiser state. Every table size runs in a process of its own.
"""

import resource
import statistics
import time

import jax

from ...train.data.batches.pipeline import TrainingBatches
from ...train.defaults import model_config
from ...train.settings import Settings
from ...train.step import initial_state
from ...zoo import MODELS
from ..process import in_process
from ..results import Row
from ..workload import step_times, synthetic

METRICS = [
    "examples/s",
    "ms per step",
    "time against the smallest",
    "tables and state",
    "peak beyond them",
]
SIZES = (100_000, 1_000_000, 10_000_000)
NAMES = ("mlp", "din")
REPEATS = 5
STEPS = 20
_BATCH, _HISTORY = 1024, 100


def run() -> list[Row]:
    """Rows of the suite."""
    rows = [Row.of("batch assembly, history 100", "pipeline", "examples/s", assembly(), "1/s")]
    runs = [(model, size) for size in SIZES for model in NAMES]
    found: dict[tuple[str, int], list[dict[str, float]]] = {key: [] for key in runs}
    for _ in range(REPEATS):
        for model, size in runs:  # interleaved, so that a noisy moment does not fall on one size
            found[model, size].append(in_process(measure, model, size))
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
    data = synthetic(SIZES[1], _HISTORY)
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


def measure(model: str, rows: int) -> dict[str, float]:
    """Median milliseconds per step, and MiB of tables with state, and of the peak beyond them."""
    before = _peak_mib()
    data, settings = synthetic(rows, _HISTORY), Settings(batch_size=_BATCH, history=_HISTORY)
    module = MODELS[model]
    config = model_config(model, data.schema)
    state = jax.block_until_ready(initial_state(module, config, settings, {}))
    held = sum(x.nbytes for x in jax.tree.leaves((state.tables, state.table_state))) / 2**20
    times = step_times(module, config, settings, data, state, STEPS)
    return {
        "ms": 1e3 * statistics.median(times),
        "held": held,
        "extra": _peak_mib() - before - held,
    }


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
