"""From positions in a log to batches: windows cut, negatives drawn, ids deduplicated.

Everything is a function of (seed, epoch, index), so a run resumes at any step with the very same
batches. Shapes: `B` requests, `L` history events, `C` candidates; batch sizes count labelled
candidates.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ....zoo.contract import NOTHING_MORE, Requirements
from ....zoo.features import Schema
from .. import draws
from ..dataset import Dataset
from ..event_log import EventLog, Requests
from .assembly import Hide, Step, pulled_batch, whole_batch
from .requests import fill_up, positives, with_negatives
from .required import Required, index_for, look_up
from .windows import window_length

_LARGEST_BATCH, _SMALLEST_BATCH, _STEPS_PER_EPOCH = 2048, 256, 1024


class TrainingBatches:
    """The training batches of a dataset, by epoch and index.

    Args:
      dataset: where the requests come from.
      batch_size: labelled candidates per batch; a batch holds as many whole requests as fit. None
        takes `fitting_batch`.
      history: newest events kept.
      negatives: drawn per positive, where the dataset samples negatives.
      seed: of order, negatives and unseen ids.
      unseen_share: share of a batch's distinct items whose row it replaces by row 1, so that the
        unseen row learns what an unknown item is like; drawn for each table by itself.
      multiple_of: the number of requests is a multiple of this (devices of a pmap).
      requirements: of the model that is trained.
      point_in_time: draw as negatives only items that had appeared by then, see `draws.Catalogue`.

    Raises:
      ValueError: a bad size, or something required that the dataset does not have.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        batch_size: int | None,
        history: int,
        negatives: int = 3,
        seed: int = 0,
        unseen_share: float = 0.0,
        multiple_of: int = 1,
        requirements: Requirements = NOTHING_MORE,
        point_in_time: bool = False,
    ):
        for name, value in (("batch_size", batch_size), ("history", history)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}.")
        if not 0 <= unseen_share < 1:
            raise ValueError(f"unseen_share must be in [0, 1), got {unseen_share}.")
        self._dataset, self._history, self._seed = dataset, history, seed
        self._unseen_share = unseen_share
        self._required = Required(dataset, requirements, point_in_time=point_in_time)
        self._negatives = 0
        self._requests = dataset.train
        if requirements.sampled:
            self._requests = positives(dataset.train, dataset.schema.tasks[0])
        candidates = self._requests.candidate.shape[1]
        if dataset.samples_negatives and not requirements.sampled:
            if negatives < 1:
                raise ValueError(f"negatives must be >= 1 for {dataset.name}, got {negatives}.")
            self._negatives = negatives
            self._untouched = draws.UntouchedItems(dataset.log)
            self._catalogue = dataset.catalogue(point_in_time=point_in_time)
            candidates = 1 + negatives
        if batch_size is None:
            batch_size = fitting_batch(len(self._requests) * candidates)
        whole = max(1, batch_size // candidates)
        self.table_sizes = {table.name: table.rows for table in dataset.schema.tables}
        self.requests_per_batch = -(-whole // multiple_of) * multiple_of

    def __len__(self) -> int:
        """Batches per epoch; the last one is filled up with empty requests."""
        return -(-len(self._requests) // self.requests_per_batch)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Step]:
        """The batches `start, start + 1, ...` of an epoch."""
        order = draws.permutation(len(self._requests), self._seed, epoch)
        size = self.requests_per_batch
        for index in range(start, len(self)):
            yield self._step(epoch, index, order[index * size : (index + 1) * size])

    def _step(self, epoch: int, index: int, example: np.ndarray) -> Step:
        dataset, address = self._dataset, (self._seed, epoch, index)
        requests = self._requests.take(example)
        if self._negatives:
            negative = self._untouched.draw(
                requests.user,
                self._negatives,
                self._seed,
                epoch,
                example,
                proposal=self._catalogue,
                time=requests.time,
            )
            requests = with_negatives(requests, negative, self._seed, epoch, example)
        if dataset.samples_negatives:
            requests = dataset.complete(requests)
        requests = fill_up(requests, self.requests_per_batch)
        extra = self._required.draw(requests, window_length(requests, self._history), *address)
        hide = Hide(self._unseen_share, address)
        return pulled_batch(
            dataset.schema, dataset.log, requests, history=self._history, extra=extra, hide=hide
        )


def fitting_batch(candidates: int) -> int:
    """Labelled candidates per step, where nobody chooses, for an epoch of so many.

    2048, halved until an epoch has 1024 steps or a step 256 candidates. In large batches a short
    log ends before its rows have moved far enough; in small ones a long log only takes longer.
    """
    size = _LARGEST_BATCH
    while size > _SMALLEST_BATCH and candidates < _STEPS_PER_EPOCH * size:
        size //= 2
    return size


def evaluation_batches(
    schema: Schema,
    log: EventLog,
    requests: Requests,
    *,
    batch_size: int,
    history: int,
    requirements: Requirements = NOTHING_MORE,
) -> Iterator[dict[str, Any]]:
    """Batches of whole-table row ids, in order; the last one is filled up with empty requests."""
    size = max(1, batch_size // requests.candidate.shape[1])
    index = index_for(log, requirements)
    for start in range(0, len(requests), size):
        part = fill_up(requests.take(slice(start, start + size)), size)
        extra = look_up(index, part, requirements)
        yield whole_batch(schema, log, part, history=history, extra=extra)
