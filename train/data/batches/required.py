"""Parts of a batch beyond candidates and history (`zoo.contract.Requirements`).

Shared negatives, a negative for every event, and what an index finds in a user's whole past. All
of it is chosen here, before rows are pulled: a model only ever looks up ids that it is given.
Shapes: `B` requests, `C` candidates, `L` history events, `G` groups, `K` events of a group.
"""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from ....zoo.contract import Requirements
from ....zoo.features import UNSEEN_ROW
from .. import draws
from ..dataset import Dataset
from ..errors import DataError
from ..event_log import EventLog, Requests

# Streams of draws that share the address (seed, epoch, ...) of a batch.
_SAMPLED, _HISTORY_NEGATIVE = -2, -3


class Groups(NamedTuple):
    """Events that an index found: positions in the log, oldest first.

    `at`, `mask` (B, G, K); `group` (B, C) is the candidate's, -1 where nothing matches.
    """

    at: np.ndarray
    mask: np.ndarray
    group: np.ndarray


class Extra(NamedTuple):
    """Parts of a batch beyond candidates and history; None where no model asks for them.

    Attributes:
      groups: the sub-histories of an index.
      history_negative: (B, L) items.
      sampled: (S,) items. sampled_log_q, sampled_mask, candidate_log_q: see the contract.
    """

    groups: Groups | None = None
    history_negative: np.ndarray | None = None
    sampled: np.ndarray | None = None
    sampled_log_q: np.ndarray | None = None
    sampled_mask: np.ndarray | None = None
    candidate_log_q: np.ndarray | None = None


NOTHING = Extra()


class Required:
    """Chooses what `requirements` ask for, for the requests of one dataset."""

    def __init__(
        self, dataset: Dataset, requirements: Requirements, *, point_in_time: bool = False
    ):
        self._needs, self._point_in_time = requirements, point_in_time
        self._index = index_for(dataset.log, requirements)
        self._by_popularity = self._untouched = None
        if requirements.sampled or requirements.history_negatives == "log_popularity":
            self._by_popularity = ByPopularity.of(dataset, point_in_time=point_in_time)
        if requirements.history_negatives != "none":
            self._untouched = draws.UntouchedItems(dataset.log)
            self._proposal: draws.Proposal = self._by_popularity or dataset.catalogue(
                point_in_time=point_in_time
            )

    def draw(self, requests: Requests, length: int, *address: int) -> Extra:
        """For a training batch at `address`, (seed, epoch, index), with histories of `length`."""
        found = look_up(self._index, requests, self._needs)
        if self._untouched is not None:
            rows = np.arange(len(requests))
            negative = self._untouched.draw(
                requests.user,
                length,
                *address,
                rows,
                _HISTORY_NEGATIVE,
                proposal=self._proposal,
                time=requests.time,
            )
            found = found._replace(history_negative=negative)
        if self._by_popularity is not None and self._needs.sampled:
            sampler, size = self._by_popularity, self._needs.sampled
            sampled = sampler.draw(draws.uniform(*address, np.arange(size), _SAMPLED))
            found = found._replace(
                sampled=sampled,
                sampled_log_q=sampler.log_count(sampled, size),
                sampled_mask=(
                    sampler.had_appeared(sampled, requests.time) if self._point_in_time else None
                ),
                candidate_log_q=sampler.log_count(requests.candidate, size),
            )
        return found


def index_for(log: EventLog, requirements: Requirements) -> "GroupIndex | None":
    """The index that the requirements need, if they need one."""
    return GroupIndex.of(log, requirements.group_by) if requirements.retrieved else None


def look_up(index: "GroupIndex | None", requests: Requests, requirements: Requirements) -> Extra:
    """The part of `Extra` that serving needs too."""
    if index is None:
        return NOTHING
    return Extra(groups=index.find(requests, requirements.retrieved))


@dataclasses.dataclass(frozen=True, eq=False)
class ByPopularity:
    """Log-uniform over items by falling popularity.

        P(rank i) = log((i + 2) / (i + 1)) / log(N + 1),    i = 0, ..., N - 1

    As TensorFlow's log-uniform candidate sampler, which expects ids sorted by frequency. Popularity
    counts the positives of training; items that training never saw are never drawn. A
    `draws.Proposal`; `point_in_time` as in `draws.Catalogue`.

    Attributes:
      items: (N,) int32, most popular first.
      rank: of every item of the log; N - 1 for those that are not in `items`.
      appeared: (N,) from when on each of `items` is drawn.
    """

    items: np.ndarray
    rank: np.ndarray
    appeared: np.ndarray

    @staticmethod
    def of(dataset: Dataset, *, point_in_time: bool = False) -> "ByPopularity":
        """Ranks the known items of a dataset; ties are broken by item."""
        train, log = dataset.train, dataset.log
        positive = train.label[dataset.schema.tasks[0]] > 0
        counts = np.bincount(
            train.candidate[positive & (train.candidate >= 0)], minlength=log.num_items
        )
        appeared = dataset.appearances()
        known = appeared < draws.NEVER
        for field in dataset.schema.item_fields[:1]:
            if field.kind == "id":
                known = known & (log.items[field.name] > UNSEEN_ROW)
        order = np.argsort(-counts, kind="stable")
        order = order[known[order]]
        if not len(order):
            raise DataError(f"{dataset.name}: training knows no item, so no negative can be drawn.")
        rank = np.full(log.num_items, len(order) - 1)
        rank[order] = np.arange(len(order))
        timed = point_in_time and log.has_clock
        first = appeared[order] if timed else np.full(len(order), -draws.NEVER)
        return ByPopularity(order.astype(np.int32), rank, first)

    def draw(self, uniform: np.ndarray) -> np.ndarray:
        """Items by the inverse of the distribution, for uniform numbers in [0, 1)."""
        rank = np.exp(uniform * np.log(len(self.items) + 1.0)) - 1.0
        return self.items[np.minimum(rank.astype(np.int64), len(self.items) - 1)]

    def had_appeared(self, items: np.ndarray, time: np.ndarray) -> np.ndarray:
        """(R, S) whether each of these items had appeared at each time."""
        return self.appeared[self.rank[items]] <= time[:, None]

    def weight(self, time: np.ndarray | None) -> np.ndarray:
        """(R, N) the probabilities in units of 2^-40, 0 where an item had not appeared."""
        rank = np.arange(len(self.items))
        share = np.log((rank + 2.0) / (rank + 1.0)) / np.log(len(self.items) + 1.0)
        weight = np.maximum(np.rint(2.0**40 * share), 1).astype(np.int64)
        return weight if time is None else weight * (self.appeared <= time[:, None])

    def propose(self, noise: np.ndarray, time: np.ndarray | None) -> np.ndarray:
        """(n,) items; -1 for those that had not appeared."""
        item = self.draw(draws.as_uniform(noise))
        if time is None:
            return item
        return np.where(self.appeared[self.rank[item]] <= time, item, np.int32(-1))

    def log_count(self, items: np.ndarray, size: int) -> np.ndarray:
        """log of how often `size` draws hold each item on average, float32."""
        rank = self.rank[np.maximum(items, 0)]
        share = np.log((rank + 2.0) / (rank + 1.0)) / np.log(len(self.items) + 1.0)
        return np.log(size * share).astype(np.float32)


class GroupIndex:
    """User -> value of a field -> that user's events, in memory.

    The user behaviour tree of SIM (Pi et al., CIKM 2020, section 4.3,
    https://arxiv.org/abs/2006.05639), as one sorted array: 8 bytes an event.
    """

    def __init__(self, log: EventLog, field: str):
        if field not in log.items:
            known = ", ".join(sorted(log.items)) or "none"
            raise ValueError(f"group_by must be a field of the items, got {field!r} ({known}).")
        self._log, self._value = log, log.items[field]
        if self._value.ndim != 1 or self._value.dtype.kind not in "iu":
            raise ValueError(f"group_by must be an id, but {field!r} is a bag or a number.")
        self._values = int(self._value.max(initial=0)) + 1
        user = np.repeat(np.arange(log.num_users), log.lengths())
        value = self._value[log.item]
        # Values that stand for "unknown" match nothing, not each other.
        kept = np.flatnonzero(value > UNSEEN_ROW)
        key = user[kept] * np.int64(self._values) + value[kept]
        self._keys, owner = np.unique(key, return_inverse=True)
        self._code = np.sort(owner.astype(np.int64) * log.num_events + kept)
        self._start = np.searchsorted(self._code, np.arange(len(self._keys)) * log.num_events)

    @classmethod
    @functools.lru_cache(maxsize=2)
    def of(cls, log: EventLog, field: str) -> "GroupIndex":
        """The index of a log; built once."""
        return cls(log, field)

    def find(self, requests: Requests, most: int) -> Groups:
        """The newest `most` events before each cut in the group of each candidate.

        G and K are cut to what the batch needs, rounded up to a power of two, so that few shapes
        compile.
        """
        log, real = self._log, requests.candidate >= 0
        value = np.where(real, self._value[np.maximum(requests.candidate, 0)], 0)
        distinct, group = _distinct_by_row(np.where(value > UNSEEN_ROW, value, 0))
        last = log.offsets[requests.user] + requests.cut
        key = requests.user.astype(np.int64)[:, None] * self._values + distinct
        owner = np.minimum(np.searchsorted(self._keys, key), max(len(self._keys) - 1, 0))
        found = np.zeros(key.shape, bool)
        if len(self._keys):
            found = (self._keys[owner] == key) & (distinct > 0)
        stop = np.searchsorted(self._code, owner * np.int64(log.num_events) + last[:, None])
        start = self._start[owner] if len(self._keys) else stop
        count = np.where(found, np.minimum(stop - start, most), 0)
        width = min(_power_of_two(int(count.max(initial=0))), most)
        mask = np.arange(width) < count[..., None]
        index = np.where(mask, (stop - count)[..., None] + np.arange(width), 0)
        at = self._code[index] % log.num_events if len(self._code) else index
        at = np.where(mask, at, 0)
        group = np.where(np.take_along_axis(count, group, axis=1) > 0, group, -1)
        return Groups(at, mask, group.astype(np.int32))


def _distinct_by_row(value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct positive values of each row (B, G), zero-filled, and each entry's place (B, C)."""
    order = np.argsort(value, axis=1, kind="stable")
    ordered = np.take_along_axis(value, order, axis=1)
    fresh = np.ones(value.shape, bool)
    fresh[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    fresh &= ordered > 0
    place = np.maximum(np.cumsum(fresh, axis=1) - 1, 0)
    distinct = np.zeros((len(value), _power_of_two(int(fresh.sum(axis=1).max(initial=0)))), int)
    row, column = np.nonzero(fresh)
    distinct[row, place[row, column]] = ordered[row, column]
    where = np.empty_like(place)
    np.put_along_axis(where, order, place, axis=1)
    return distinct, where


def _power_of_two(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()
