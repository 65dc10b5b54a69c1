"""Data that each kind of model can learn from.

| kind | learns from |
|---|---|
| ranking | labelled candidates, or positives beside which negatives are drawn |
| esmm | labels of two tasks |
| retrieval | positives; its negatives are shared by the batch |
| evaluator | slates that were shown, with labels, slot by slot |
| re-rankers (prm, dlcm, seq2slate) | lists of two labelled candidates or more |
| generators | requests with all their candidates, that evaluators judge slates of |

A log of interactions has no slates: nobody was shown an event beside negatives that were drawn for
it, and their order is random. An evaluator would learn how negatives are drawn, and a generator
would have one candidate to choose from. Re-rankers learn an order of such a list as a ranker does.
"""

from typing import Any

import numpy as np

from ...zoo import MODELS
from ...zoo.contract import Generator
from ...zoo.rerank import GENERATORS, RERANKERS
from ..data.dataset import Dataset
from ..data.errors import DataError

_SLATES = "slates[:PRESET], candidates[:PRESET], impressions:FILE"
_OF_SLATES = {
    "evaluator": "learns what became of every slot of a slate that was shown",
    "generator": "writes slates from all the candidates of a request",
}


def unlearnt_tasks(model: str, module: Any, tasks: tuple[str, ...]) -> tuple[str, ...]:
    """The tasks of the data that a model of this name and module makes nothing of.

    Nobody knows what a model from outside the zoo makes of them.
    """
    ours = {**MODELS, **RERANKERS, **GENERATORS}.get(model) is module
    if not ours or module.KIND == "evaluator" or model in GENERATORS:
        return ()
    return tasks[2 if model == "esmm" else 1 :]


def require_suitable(model: str, module: Any, dataset: Dataset) -> None:
    """Raises DataError unless a model of this name and module can learn from the data set.

    The message says what the model needs, what the data are, and which sources fit.
    """
    listwise = {**RERANKERS, **GENERATORS}.get(model) is module
    kind = module.KIND if isinstance(module, Generator) or module.KIND == "evaluator" else None
    if kind in _OF_SLATES and dataset.samples_negatives:
        raise DataError(
            f"Model {model!r} {_OF_SLATES[kind]}, but {dataset.name} holds single events, to which "
            f"negatives are drawn; use {_SLATES}."
        )
    tasks = dataset.schema.tasks
    if module is MODELS["esmm"] and len(tasks) < 2:
        remedy = (
            "choose behaviours: --set tasks=view,buy"
            if dataset.samples_negatives
            else "use impressions:FILE with a column label_TASK"
        )
        raise DataError(
            f"Model {model!r} needs two tasks, such as a click and what it leads to, but "
            f"{dataset.name} has only {', '.join(tasks)!r}; {remedy}."
        )
    if listwise and not dataset.samples_negatives:
        most = int((dataset.train.candidate >= 0).sum(axis=1).max(initial=0))
        if most < 2:
            raise DataError(
                f"Model {model!r} puts the candidates of a request in order, but those of "
                f"{dataset.name} have {most} each; use {_SLATES}."
            )
    if module.KIND == "retrieval":
        task = dataset.schema.tasks[0]
        if not np.any((dataset.train.label[task] > 0) & (dataset.train.candidate >= 0)):
            raise DataError(
                f"Model {model!r} learns from positives, but no candidate of {dataset.name} that "
                f"it could train on has {task!r}."
            )
