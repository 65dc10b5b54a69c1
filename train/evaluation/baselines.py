"""Rules of retrieval from before vectors were learned, judged like the models.

Both offer exactly what `retrieval.evaluate_retrieval` lets a model offer, and say the same metrics.
"""

from typing import Any

import numpy as np

from ...zoo.features import PADDING_ROW
from ..data.dataset import Dataset
from ..data.event_log import Requests
from .retrieval import Judged, measure, retrieve


def evaluate_popularity(
    dataset: Dataset, requests: Requests, *, category: str = "category"
) -> dict[str, Any]:
    """Offers everybody what training saw most."""
    judged = Judged.of(dataset, requests)
    items = judged.popularity.astype(np.float32)[:, None]
    users = np.ones((len(judged.requests), 1, 1), np.float32)
    return _measured(dataset, judged, users, items, category)


def evaluate_tags(
    dataset: Dataset, requests: Requests, *, history: int, tag: str = "category"
) -> dict[str, Any]:
    """Offers what is popular among the items that share a tag with the user's newest events.

    score = sum over tags of (events with the tag, among the newest `history`) * (the item's share
    of the tag's positives in training). Holds a float for each pair of an item and a tag.

    Raises:
      ValueError: items have no ids named `tag`.
    """
    log, judged = dataset.log, Judged.of(dataset, requests)
    tags = log.items.get(tag)
    if tags is None or not np.issubdtype(tags.dtype, np.integer):
        raise ValueError(f"evaluate_tags: items have no ids {tag!r}; they have {list(log.items)}.")
    tags = tags.reshape(log.num_items, -1)
    has = np.zeros((log.num_items, int(tags.max(initial=0)) + 1), np.float32)
    has[np.arange(log.num_items)[:, None], tags] = 1.0
    has[:, PADDING_ROW] = 0.0
    positives = has * judged.popularity[:, None]
    shares = positives / np.maximum(positives.sum(axis=0), 1.0)

    begin = log.offsets[judged.requests.user]
    end = begin + judged.requests.cut
    users = np.zeros((len(judged.requests), has.shape[1]), np.float32)
    for row, first, last in zip(users, np.maximum(begin, end - history), end, strict=True):
        row[:] = has[log.item[first:last]].sum(axis=0)
    return _measured(dataset, judged, users[:, None], shares.astype(np.float32), tag)


def _measured(
    dataset: Dataset, judged: Judged, users: np.ndarray, items: np.ndarray, category: str
) -> dict[str, Any]:
    mask = np.ones(users.shape[:2], bool)
    return measure(retrieve(dataset, judged, users, mask, items), judged, category)
