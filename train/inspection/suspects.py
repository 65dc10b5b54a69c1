"""Columns of candidates that say more than they should, and how to notice.

A column that tells the outcome of an event makes a model look perfect in tests and useless when it
serves. Such columns can be recognised: one alone predicts the label.
"""

import numpy as np

from ...zoo.features import PADDING_ROW, UNSEEN_ROW, Field
from ..data import draws
from ..data.batches.assembly import whole_batch
from ..data.dataset import Dataset
from ..evaluation.metrics import auc

# One column alone that orders candidates like this knows the answer.
ALARM = 0.95
UNIQUE = 0.9
_REQUESTS, _HISTORY, _FEWEST = 4096, 20, 20


def suspects(dataset: Dataset) -> list[str]:
    """A sentence for each candidate's column that looks like the outcome, or like a second id.

    From at most 4,096 validation requests, in the order of the schema.
    """
    requests = dataset.validation
    few = draws.permutation(len(requests), 0)[:_REQUESTS]
    requests = requests.take(np.sort(few))
    batch = whole_batch(dataset.schema, dataset.log, requests, history=_HISTORY)
    mask = requests.candidate >= 0
    label = requests.label[dataset.schema.tasks[0]] > 0
    half = np.broadcast_to(np.arange(len(requests))[:, None] % 2 == 0, mask.shape)
    identity = next((f.name for f in dataset.schema.item_fields if f.kind == "id"), None)
    if "item" in dataset.log.items:  # Even where one of its fields is left out.
        identity = "item"
    found = []
    for field in dataset.schema.role("candidate"):
        if field.cross:
            continue
        value = batch["candidate"][field.name]
        scores = {"its value": value} if field.kind == "dense" and value.ndim == 2 else {}
        if field.kind == "id":
            scores["its value"] = _rates(value, label, mask, half)
            scores["whether it is missing"] = value == PADDING_ROW
            if dataset.schema.find("history", field.name):
                past = batch["history"][field.name]
                past = np.where(batch["history_mask"], past, PADDING_ROW)
                same = value[:, :, None] == past[:, None, :]
                known = (value > UNSEEN_ROW)[:, :, None]
                scores["whether it stood in the history"] = (same & known).any(axis=2)
        for what, score in scores.items():
            if what == "its value" and field.kind == "id" and field.name == identity:
                continue
            part = mask if what != "its value" or field.kind == "dense" else mask & ~half
            area = auc(np.asarray(score, np.float64)[part], label[part])
            if max(area, 1 - area) >= ALARM:  # Not true of NaN.
                found.append(
                    f"candidate.{field.name} alone predicts the label ({what}: AUC {area:.3f}): it "
                    f"may be the outcome; --set leave_out={field.name} trains without it"
                )
                break
        if field.kind == "id" and field.name != identity and _nearly_unique(dataset, field):
            found.append(
                f"candidate.{field.name} has a value of its own for nearly every item: it says no "
                "more than the item's id"
            )
    return found


def _rates(value: np.ndarray, label: np.ndarray, mask: np.ndarray, half: np.ndarray) -> np.ndarray:
    """The share of positives of each value in one half of the requests, for all of them."""
    rows, some = int(value.max(initial=0)) + 1, mask & half
    seen = np.bincount(value[some], minlength=rows)
    positive = np.bincount(value[some], label[some], minlength=rows)
    prior = positive.sum() / max(seen.sum(), 1)
    return ((positive + prior) / (seen + 1))[value]


def _nearly_unique(dataset: Dataset, field: Field) -> bool:
    column = dataset.log.items.get(field.name)
    if column is None or column.ndim != 1 or dataset.log.num_items < _FEWEST:
        return False
    known = column[column > UNSEEN_ROW]
    return len(known) >= _FEWEST and len(np.unique(known)) >= UNIQUE * len(known)
