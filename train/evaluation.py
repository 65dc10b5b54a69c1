"""Scores and metrics of a model on requests. Whole tables, no gradients, no randomness."""

import functools
from typing import Any

import jax
import numpy as np

from ..zoo.contract import Batch, Model, Output, Variables
from . import metrics
from .data.dataset import Dataset
from .data.event_log import Requests
from .data.pipeline import evaluation_batches

_BATCH_SIZE = 8192


@functools.lru_cache(maxsize=16)
def _scorer(model: Model, config: Any):
    def score(variables: Variables, batch: Batch) -> Output:
        return model.apply(variables, config, batch)

    return jax.jit(score)


def predict(
    model: Model,
    config: Any,
    variables: Variables,
    dataset: Dataset,
    requests: Requests,
    *,
    history: int,
) -> dict[str, np.ndarray]:
    """Logits of every request, by task: {task: (R, C)} float32; masked slots hold any number."""
    score = _scorer(model, config)
    parts: list[dict[str, jax.Array]] = []
    batches = evaluation_batches(
        config.schema,
        dataset.log,
        requests,
        batch_size=_BATCH_SIZE,
        history=history,
        requirements=model.requirements(config),
    )
    for batch in batches:
        batch = {key: value for key, value in batch.items() if key not in ("label", "weight")}
        parts.append(score(variables, batch).tasks)
    return {
        task: np.concatenate([np.asarray(part[task]) for part in parts])[: len(requests)]
        for task in parts[0]
    }


def evaluate(
    model: Model,
    config: Any,
    variables: Variables,
    dataset: Dataset,
    requests: Requests,
    *,
    history: int,
) -> dict[str, Any]:
    """Metrics of a ranking model, with the breakdown by the dataset's segments.

    One block of `metrics.evaluate`; a model of several tasks gives one block per task.
    """
    logits = predict(model, config, variables, dataset, requests, history=history)
    mask = requests.candidate >= 0
    blocks = {
        task: metrics.evaluate(
            logit,
            requests.label[task],
            mask,
            requests.weight.get(task),
            requests.user,
            segments(dataset, requests),
        )
        for task, logit in logits.items()
    }
    return blocks if len(blocks) > 1 else next(iter(blocks.values()))


def segments(dataset: Dataset, requests: Requests) -> dict[str, np.ndarray]:
    """{segment: (R,) label of each request}, for breaking metrics down."""
    result = {}
    for name, labels in dataset.segments.items():
        if name in requests.context:
            row = requests.context[name]
        else:
            row = dataset.log.users[name][requests.user]
        result[name] = np.array([labels.get(int(r), "other") for r in row])
    return result
