"""Suite `serving`: what a request costs, raw record to ranking, beside the compiled model alone.

DIN with the frozen defaults, and LAST with one evaluator, both trained for a few steps: what they
learnt does not matter here. One request at a time; all calls of a case are timed in turns. "Never
seen" are numbers of candidates that no request had before, within what `warm_up` made ready; the
spread of their times is over the numbers.
"""

from collections.abc import Callable
from pathlib import Path
import tempfile
import time
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from ... import api
from ...export.artifact import Artifact, load, platform
from ...export.inputs import grown
from ...train.launch import load_evaluators
from ...zoo.batch import served
from ...zoo.contract import Generator
from ...zoo.features import encode
from ...zoo.rerank import last
from ..results import Row
from ..timing import in_turns

METRICS = ["ms", "times the model", "first request"]
REPEATS, LOADS = 200, 3
_CANDIDATES, _EVENTS = 100, 50
_MODEL, _PREDICT = "the compiled model alone", "predict"


def run() -> list[Row]:
    """Rows of the suite."""
    with tempfile.TemporaryDirectory() as place:
        return [*_ranking(Path(place)), *_last(Path(place))]


def _ranking(place: Path) -> list[Row]:
    data = api.read("market:standard")
    options = {"steps": 20, "history": _EVENTS}
    run = api.train("din", data, options=options, out=place / "din", quiet=True)
    record = _record(data, _CANDIDATES, _EVENTS)
    artifact = run.export(place / "artifact", platforms=[platform()])
    artifact.warm_up(candidates=2 * _CANDIDATES)
    batch = artifact.encode([record])
    ready = jax.tree.map(jnp.asarray, served(batch))
    config, module = run.config, run.module
    alone = jax.jit(lambda variables, batch: module.apply(variables, config, batch).logit)
    schema, row_maps, history = artifact.schema, artifact.row_maps, artifact.manifest["history"]
    calls = {
        _MODEL: lambda: alone(run.variables, ready),
        "artifact: score of an encoded batch": lambda: artifact.score(batch),
        f"artifact: {_PREDICT}": lambda: artifact.predict([record]),
        "artifact: recommend": lambda: artifact.recommend([record]),
        f"run: {_PREDICT}": lambda: run.predict([record]),
        "encode, by what is remembered": lambda: artifact.encode([record]),
        "encode, by Arrow": lambda: encode([record], schema, row_maps, history=history),
    }
    case = f"din, {_CANDIDATES} candidates, {_EVENTS} events"
    rows, model = _timed(case, calls)
    counts = np.random.default_rng(0).permutation(np.arange(1, 2 * _CANDIDATES + 1))[:_CANDIDATES]
    asked = [_record(data, int(count), _EVENTS) for count in counts]
    unseen = [_milliseconds(lambda one=one: artifact.predict([one])) for one in asked]
    rows += _rows(case, f"artifact: {_PREDICT}, numbers of candidates never seen", unseen, model)
    first = []
    for _ in range(LOADS):
        again: Artifact = load(place / "artifact").warm_up(candidates=_CANDIDATES)
        first.append(_milliseconds(lambda again=again: again.predict([record])))
    rows.append(Row.of(case, f"artifact: {_PREDICT}", "first request", first, "ms"))
    return rows


def _last(place: Path) -> list[Row]:
    judge = api.train(
        "evaluator", "slates:cascade", options={"steps": 5}, out=place / "judge", quiet=True
    )
    candidates = api.read("candidates:cascade")
    run = api.train(
        "generator",
        candidates,
        options={"steps": 5},
        evaluators=[judge],
        out=place / "generator",
        quiet=True,
    )
    artifact = run.export(place / "last", evaluators=[judge], platforms=[platform()]).warm_up(
        candidates=20
    )
    made = last.TrainedGenerator(run.variables, run.config, cast(Generator, run.module))
    judges = load_evaluators([judge.folder])
    count = candidates.test.candidate.shape[1]
    record = {"context": {}, "items": [{"item": k} for k in range(count)]}
    batch = jax.tree.map(jnp.asarray, grown(artifact.encode([record]), {}))
    alone = jax.jit(lambda batch: last.last_parallel(made, judges, batch).order)
    calls = {
        _MODEL: lambda: alone(batch),
        "last_parallel, as it is called": lambda: last.last_parallel(made, judges, batch).order,
        "artifact: recommend": lambda: artifact.recommend([record]),
    }
    return _timed(f"LAST, {count} candidates, {run.config.slots} slots", calls)[0]


def _timed(case: str, calls: dict[str, Callable[[], Any]]) -> tuple[list[Row], float]:
    """Rows of every call, and the median milliseconds of the model alone."""
    for call in calls.values():
        jax.block_until_ready(call())
    seconds = in_turns(list(calls.values()), REPEATS)
    ms = {name: [1e3 * x for x in one] for name, one in zip(calls, seconds, strict=True)}
    model = float(np.median(ms[_MODEL]))
    return [row for name, one in ms.items() for row in _rows(case, name, one, model)], model


def _rows(case: str, method: str, ms: list[float], model: float) -> list[Row]:
    """Medians, between the quartiles."""
    low, middle, high = (float(x) for x in np.quantile(ms, (0.25, 0.5, 0.75)))
    return [
        Row(case, method, "ms", middle, "ms", low, high),
        Row(case, method, "times the model", middle / model, "", low / model, high / model),
    ]


def _milliseconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return 1e3 * (time.perf_counter() - start)


def _record(data: Any, candidates: int, events: int) -> dict[str, Any]:
    """A record of so many candidates and events, made of those of the examples."""
    items = [item for one in data.examples for item in one["items"]]
    past = [event for one in data.examples for event in one["user"]["history"]]
    some = data.examples[0]
    return {
        "context": some["context"],
        "user": {**some["user"], "history": [past[k % len(past)] for k in range(events)]},
        "items": [items[k % len(items)] for k in range(candidates)],
    }
