"""A synthetic workload, and the time of whole training steps on it. For speed, not for accuracy."""

from collections.abc import Iterator
import itertools
import time
from typing import Any

import jax
import numpy as np

from ..train.data.batches.assembly import Step
from ..train.data.batches.pipeline import TrainingBatches
from ..train.data.dataset import Dataset
from ..train.data.event_log import EventLog, Requests
from ..train.memory import keep_freed_memory
from ..train.settings import Settings
from ..train.step import TrainState, make_step, parallel_step, replicate, shard
from ..zoo.contract import Model
from ..zoo.features import RESERVED_ROWS, Field, HashedRows, Schema, Table


def synthetic(
    rows: int, history: int, candidates: int = 4, items: int = 50_000, dim: int = 16
) -> Dataset:
    """Full histories over one table of items, of so many rows, and a small one of categories.

    Events name all of `items` distinct items, equally often, and these are spread over the table.
    """
    rng = np.random.default_rng(0)
    events, items = 2 * history, min(items, rows - RESERVED_ROWS)
    users = max(2_000, 4 * items // events)
    schema = Schema(
        tables=(Table(name="item", rows=rows, dim=dim), Table(name="category", rows=1002, dim=dim)),
        fields=tuple(
            Field(name=name, role=role)
            for name in ("item", "category")
            for role in ("candidate", "history")
        ),
    )
    spread = np.linspace(2, rows - 1, items).astype(np.int32)
    log = EventLog(
        offsets=np.arange(users + 1, dtype=np.int64) * events,
        item=rng.permutation(np.arange(users * events, dtype=np.int32) % items),
        time=np.tile(np.arange(events, dtype=np.int64), users),
        event={},
        items={"item": spread, "category": rng.integers(2, 1002, items).astype(np.int32)},
        users={},
        has_clock=False,
    )
    count = 50_000
    user = rng.integers(0, users, count).astype(np.int32)
    requests = Requests(
        user=user,
        cut=np.full(count, history, np.int64),
        time=np.full(count, history, np.int64),
        candidate=rng.integers(0, items, (count, candidates)).astype(np.int32),
        label={"click": rng.integers(0, 2, (count, candidates)).astype(np.float32)},
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


def batches(module: Model, config: Any, settings: Settings, data: Dataset) -> Iterator[Step]:
    """The batches that `step_times` trains on."""
    return TrainingBatches(
        data,
        batch_size=settings.batch_size,
        history=settings.history,
        requirements=module.requirements(config),
    ).epoch(0)


def step_times(
    module: Model,
    config: Any,
    settings: Settings,
    data: Dataset,
    state: TrainState,
    steps: int,
    devices: int = 1,
) -> list[float]:
    """Seconds of each of `steps` steps, batch assembly included, after as many to warm up.

    As in `train.loop`, a batch is assembled while the step before it runs, and freed memory stays.
    """
    keep_freed_memory()
    if devices == 1:
        step = jax.jit(make_step(module, config, settings, total_steps=10**6), donate_argnums=0)
    else:
        step = parallel_step(module, config, settings, total_steps=10**6)
        state = replicate(state, devices)
    times: list[float] = []
    before, started = None, time.perf_counter()
    for batch, pulled in itertools.islice(batches(module, config, settings, data), 2 * steps):
        batch = batch if devices == 1 else shard(batch, devices)
        state, terms = step(state, batch, pulled)
        jax.block_until_ready(before)
        before, now = terms, time.perf_counter()
        times, started = [*times, now - started], now
    return times[steps:]
