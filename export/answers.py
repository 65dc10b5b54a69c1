"""Answers to raw requests: probabilities and orders, from a run or from an artifact alike.

Requests and candidates are padded to a ladder of sizes, so that few programs are compiled: a number
of candidates that was never seen costs no compilation if its rung was warmed up.
"""

from collections.abc import Sequence
import dataclasses
import functools
import operator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

from .inputs import grown

_AT_ONCE = 2**16
"""Candidates that are scored in one call; more are split by requests."""
NO_INDEX = (
    "{} reads events that an index retrieves from the whole past, which a request record does not "
    "hold."
)


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """A candidate in its place.

    Attributes:
      index: of the candidate in the record's items.
      item: the candidate as the record has it.
      score: what ranks, the larger the better; NaN of models that give an order alone.
      probabilities: calibrated, by task; empty of models that give none.
    """

    index: int
    item: dict[str, Any]
    score: float
    probabilities: dict[str, float]


@runtime_checkable
class Answering(Protocol):
    """What gives answers: a run, or an artifact."""

    @property
    def kind(self) -> str:
        """Of the model: "ranking", "retrieval", ..., see `zoo.contract`."""
        ...

    @property
    def name(self) -> str:
        """Of the model."""
        ...

    def encode(self, records: Any, *, unknown: str = "error") -> dict[str, Any]:
        """The batch of raw request records."""
        ...

    def outputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Of a batch of whole-table rows: "logit" and "tasks", or "order"."""
        ...

    def probability(self, task: str, logit: np.ndarray) -> np.ndarray:
        """Calibrated probabilities of a task's logits."""
        ...

    def sizes(self, requests: int, candidates: int) -> tuple[int, int]:
        """Sizes in which so many are computed."""
        ...


def predict(
    model: Answering, records: Any, *, unknown: str = "error"
) -> list[dict[str, np.ndarray]]:
    """Calibrated probabilities of every candidate.

    Args:
      model: a ranking model, a re-ranker or an evaluator.
      records: request records, see `zoo.features.encode`.
      unknown: "error" or "ignore": what to do with keys that the schema has not.

    Returns:
      Per record {task: (candidates,) float64}, in the order of the record's items.

    Raises:
      ValueError: a record that does not fit the schema, or a model that gives no probabilities.
    """
    if model.kind in ("retrieval", "generator"):
        raise ValueError(f"{model.name} gives an order, no probabilities: use recommend.")
    found = []
    for scored in _scored(model, records, unknown):
        found.append(_probabilities(model, scored))
    return found


def recommend(
    model: Answering, records: Any, k: int = 10, *, unknown: str = "error"
) -> list[list[Recommendation]]:
    """The best `k` candidates of every record, the best one first.

    Candidates of equal score stay in the record's order; fewer than `k` give fewer.

    Args:
      model: of any kind; a generator's slate may have fewer slots than `k`.
      records, unknown: see `predict`.
      k: at least 1.

    Raises:
      ValueError: a record that does not fit the schema, or k < 1.
    """
    if k < 1:
        raise ValueError(f"k must be >= 1, got {k}.")
    found = []
    for scored in _scored(model, records, unknown):
        score = scored.outputs.get("logit")
        if score is None:
            order = [int(at) for at in scored.outputs["order"] if at >= 0][:k]
            score = np.full(len(scored.items), np.nan)
        else:
            order = np.argsort(-score, kind="stable")[:k].tolist()
        has_none = model.kind in ("retrieval", "generator")
        by_task = {} if has_none else _probabilities(model, scored)
        found.append(
            [
                Recommendation(
                    at,
                    scored.items[at],
                    float(score[at]),
                    {task: float(values[at]) for task, values in by_task.items()},
                )
                for at in order
            ]
        )
    return found


class _Scored(NamedTuple):
    """A record's candidates, and what the model says of them."""

    items: list[dict[str, Any]]
    outputs: dict[str, Any]


def _probabilities(model: Answering, scored: _Scored) -> dict[str, np.ndarray]:
    return {task: model.probability(task, x) for task, x in scored.outputs["tasks"].items()}


def _scored(model: Answering, records: Any, unknown: str) -> list[_Scored]:
    """Each record with its own part of the outputs."""
    batch = model.encode(records, unknown=unknown)
    mask = batch["candidate_mask"]
    count, width = mask.shape
    if not count:
        return []
    if not isinstance(records, list | tuple):
        records = records.select(["items"]).to_pylist()
    at_once = max(1, _AT_ONCE // max(1, width))
    # A program of a fixed number of requests takes no more of them.
    at_once = min(at_once, model.sizes(at_once, width)[0])
    found = []
    for start in range(0, count, at_once):
        some = slice(start, start + at_once)
        part, here = jax.tree.map(operator.itemgetter(some), batch), mask[some]
        sizes = model.sizes(*here.shape)
        outputs = model.outputs(grown(part, dict(zip("BC", sizes, strict=True))))
        outputs = jax.tree.map(np.asarray, outputs)
        for row, record in enumerate(records[some]):
            items = record.get("items") or []
            own = functools.partial(_own, row=row, count=len(items))
            found.append(_Scored([item or {} for item in items], jax.tree.map(own, outputs)))
    return found


def warm_up(model: Answering, *, requests: int = 1, candidates: int = 100) -> None:
    """Compiles what every number of requests and candidates up to these needs."""
    counts, widths = rungs(requests), rungs(candidates, smallest=8)
    # Of a model of fixed sizes they are one and the same.
    for count, width in sorted({model.sizes(count, width) for count in counts for width in widths}):
        record = {"context": {}, "user": {"history": []}, "items": [{}] * width}
        outputs = model.outputs(model.encode([record] * count))
        jax.block_until_ready(outputs)


def rung(count: int, *, smallest: int = 1) -> int:
    """The size of the ladder that holds `count`: four steps to every doubling above 32."""
    size = max(count, smallest)
    if size <= 8:
        return 1 << (size - 1).bit_length()
    step = max(8, (1 << (size - 1).bit_length()) // 8)
    return -(-size // step) * step


def rungs(most: int, *, smallest: int = 1) -> Sequence[int]:
    """All sizes of the ladder that hold `most` or fewer."""
    found = [rung(smallest)]
    while found[-1] < most:
        found.append(rung(found[-1] + 1))
    return found


def _own(value: np.ndarray, *, row: int, count: int) -> np.ndarray:
    """A request's own scores; an order is not cut, as it is not by candidates."""
    return value[row] if value.dtype.kind in "iu" else value[row, :count]
