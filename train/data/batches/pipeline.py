"""From positions in a log to batches: windows cut, negatives drawn, ids deduplicated.

Everything is a function of (seed, epoch, index), so a run resumes at any step with the very same
batches. Shapes: `B` requests, `L` history events, `C` candidates; batch sizes count labelled
candidates.
"""

from collections.abc import Callable, Iterator
import dataclasses
import functools
from typing import Any, NamedTuple
import zlib

import numpy as np

from ....zoo.contract import NOTHING_MORE, Requirements
from ....zoo.features import ROLES, UNSEEN_ROW, Field, Schema
from ....zoo.features.cross import cross
from ....zoo.features.record import or_unseen
from .. import draws
from ..dataset import Dataset
from ..event_log import EventLog, Requests
from .deduplicate import Pulled, deduplicate, distinct, padded_size
from .required import NOTHING, Extra, Required, index_for, look_up

_SHORTEST_BUCKET = 8
_SMALL_TABLE = 4096
_LARGEST_BATCH, _SMALLEST_BATCH, _STEPS_PER_EPOCH = 2048, 256, 1024


class Step(NamedTuple):
    """One training batch; its ids are positions in the rows it pulls."""

    batch: dict[str, Any]
    pulled: Pulled


class Hide(NamedTuple):
    """Which share of a batch's distinct items appears as unknown, drawn at an address."""

    share: float = 0.0
    address: tuple[int, ...] = ()


_SHOW_ALL = Hide()


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


def positives(requests: Requests, task: str) -> Requests:
    """One request of a single candidate for every positive label of `task`."""
    row, column = np.nonzero((requests.label[task] > 0) & (requests.candidate >= 0))
    pick = lambda columns: {name: value[row, column][:, None] for name, value in columns.items()}
    return dataclasses.replace(
        requests.take(row),
        candidate=requests.candidate[row, column][:, None],
        label=pick(requests.label),
        weight=pick(requests.weight),
        shown=pick(requests.shown),
    )


def with_negatives(requests: Requests, negative: np.ndarray, *address: Any) -> Requests:
    """Adds `n` negatives to requests of one positive, shuffles, and weighs the positive n times.

    The weight keeps predictions calibrated to one negative per positive, whatever n. The order
    depends on `address` (see `draws`), which broadcasts against the requests.
    """
    size, count = negative.shape
    candidate = np.concatenate([requests.candidate, negative], axis=1)
    is_positive = np.arange(1 + count) == 0
    parts = [np.asarray(part)[..., None] for part in address]
    noise = draws.bits(*parts, np.arange(1 + count), -1)
    order = np.argsort(np.broadcast_to(noise, candidate.shape), axis=1)
    first = is_positive[order]
    weight = np.where(first, np.float32(count), np.float32(1))
    return dataclasses.replace(
        requests,
        candidate=np.take_along_axis(candidate, order, axis=1),
        label={
            task: np.where(first, label, np.float32(0)) for task, label in requests.label.items()
        },
        weight=dict.fromkeys(requests.label, weight),
    )


def with_candidates(
    requests: Requests,
    user: np.ndarray,
    item: np.ndarray,
    name: Callable[[int], Any] = "number {} of the log".format,
) -> Requests:
    """Adds given items of label 0 to requests of one positive, which stands first.

    Args:
      requests: of one candidate each.
      user, item: (P,) pairs; a request gets all items of its user but its own candidate.
      name: of a user, for the message.

    Raises:
      ValueError: a user of the requests has no other item.
    """
    pairs = np.unique(np.stack([user, item]).astype(np.int64), axis=1)
    starts = np.searchsorted(pairs[0], requests.user)
    sizes = np.searchsorted(pairs[0], requests.user, side="right") - starts
    width = int(sizes.max(initial=0))
    column = np.arange(width)
    real = column < sizes[:, None]
    more = np.where(real, pairs[1][np.where(real, starts[:, None] + column, 0)], -1)
    more = np.where(more == requests.candidate, -1, more).astype(np.int32)
    lonely = np.flatnonzero(~(more >= 0).any(axis=1)) if width else np.arange(len(requests))
    if len(lonely):
        first = int(requests.user[lonely[0]])
        raise ValueError(
            f"evaluation_negatives: {len(lonely)} targets have no given item beside their own, "
            f"first that of user {name(first)}."
        )
    candidate = np.concatenate([requests.candidate, more], axis=1)
    empty = np.zeros(more.shape, np.float32)
    label = {task: np.concatenate([x, empty], axis=1) for task, x in requests.label.items()}
    return dataclasses.replace(requests, candidate=candidate, label=label)


def fill_up(requests: Requests, size: int) -> Requests:
    """Appends requests without candidates or history until there are `size`."""
    missing = size - len(requests)
    if missing == 0:
        return requests
    filled = requests.take(np.concatenate([np.arange(len(requests)), np.zeros(missing, int)]))
    real = np.arange(size) < len(requests)
    return dataclasses.replace(
        filled,
        cut=np.where(real, filled.cut, 0),
        candidate=np.where(real[:, None], filled.candidate, np.int32(-1)),
    )


@dataclasses.dataclass(frozen=True)
class Windows:
    """Parts of histories: event positions in a log, (B, L) or more axes, and which are real."""

    at: np.ndarray
    mask: np.ndarray

    @staticmethod
    def cut(log: EventLog, requests: Requests, history: int) -> "Windows":
        """The newest `history` events before each cut, oldest first, left-aligned."""
        kept = np.minimum(requests.cut, history)
        first = log.offsets[requests.user] + requests.cut - kept
        # A log without events has nothing to point at, not even for padding.
        column = np.arange(window_length(requests, history) if log.num_events else 0)
        mask = column < kept[:, None]
        return Windows(np.where(mask, first[:, None] + column, 0), mask)


def window_length(requests: Requests, history: int) -> int:
    """L of the batch of these requests."""
    return bucket(min(int(requests.cut.max(initial=0)), history), history)


def bucket(longest: int, history: int) -> int:
    """The shortest of history, history / 2, history / 4, ... that holds `longest` events.

    A batch is padded to it, so that few different shapes compile.
    """
    length = history
    while length > _SHORTEST_BUCKET and -(-length // 2) >= longest:
        length = -(-length // 2)
    return length


class _Column(NamedTuple):
    """One field of a role, as `value[at]`, or as `value` where `at` is None."""

    role: str
    field: Field
    value: np.ndarray
    at: np.ndarray | None = None

    def full(self, value: np.ndarray | None = None) -> np.ndarray:
        value = self.value if value is None else value
        return value if self.at is None else value[self.at]


def whole_batch(
    schema: Schema, log: EventLog, requests: Requests, *, history: int, extra: Extra = NOTHING
) -> dict[str, Any]:
    """The batch of these requests, ids being rows of the whole tables."""
    windows = Windows.cut(log, requests, history)
    batch = _frame(log, requests, windows, extra)
    for column in _columns(schema, log, requests, windows, extra):
        batch[column.role][column.field.name] = column.full()
    return batch


def pulled_batch(
    schema: Schema,
    log: EventLog,
    requests: Requests,
    *,
    history: int,
    extra: Extra = NOTHING,
    hide: Hide = _SHOW_ALL,
) -> Step:
    """The batch of these requests and the rows it pulls, ids being positions among them."""
    windows = Windows.cut(log, requests, history)
    columns = _columns(schema, log, requests, windows, extra, hide)
    ids = [column for column in columns if column.field.kind != "dense"]
    # Columns of an item's field share their values, whatever their role: these are renamed once.
    plan: dict[str, dict[int, np.ndarray]] = {table.name: {} for table in schema.tables}
    for column in ids:
        plan[column.field.table_name][id(column.value)] = column.value
    sizes = {table.name: table.rows for table in schema.tables}
    # A small table is pulled at its full size whatever it names: one shape, compiled once.
    full = {name: padded_size(rows) for name, rows in sizes.items() if rows <= _SMALL_TABLE}
    arrays = {table: list(values.values()) for table, values in plan.items()}
    pulled, positions = deduplicate(arrays, sizes, at_least=full)
    renamed = {
        table: dict(zip(values, positions[table], strict=True)) for table, values in plan.items()
    }
    batch = _frame(log, requests, windows, extra)
    for column in columns:
        value = column.value
        if column.field.kind != "dense":
            value = renamed[column.field.table_name][id(value)]
        batch[column.role][column.field.name] = column.full(value)
    return Step(batch, pulled)


def _columns(
    schema: Schema,
    log: EventLog,
    requests: Requests,
    windows: Windows,
    extra: Extra,
    hide: Hide = _SHOW_ALL,
) -> list[_Column]:
    """Every field of every role of the batch.

    Items repeat within a batch, so their columns are read once per distinct item: what follows
    (renaming ids) is then small. Slot 0 of the distinct items stands for no item.
    """
    events = {"history": windows}
    fields = {role: schema.role(role) for role in ROLES}
    named = {"candidate": requests.candidate}
    if extra.groups is not None:
        events["retrieved"] = Windows(extra.groups.at, extra.groups.mask)
        fields["retrieved"] = schema.role("history")
    if extra.history_negative is not None:
        named["history_negative"] = np.where(windows.mask, extra.history_negative, np.int32(-1))
        fields["history_negative"] = schema.item_fields
    if extra.sampled is not None:
        named["sampled"] = extra.sampled
        fields["sampled"] = schema.item_fields
    named |= {
        role: np.where(some.mask, log.item[some.at], np.int32(-1)) for role, some in events.items()
    }
    items, positions = distinct(*(item + np.int32(1) for item in named.values()))
    at = dict(zip(named, positions, strict=True))

    def shown(field: Field, value: np.ndarray, owner: np.ndarray) -> np.ndarray:
        """The values, but for some ids that training is to see as unknown."""
        if not hide.share:
            return value
        # By table: a new item usually comes in a known category.
        table = zlib.crc32(field.table_name.encode())
        hidden = (value > UNSEEN_ROW) & (draws.uniform(*hide.address, table, owner) < hide.share)
        return np.where(hidden, np.int32(UNSEEN_ROW), value)

    @functools.cache
    def value_of_items(field: Field) -> np.ndarray:
        value = _known(field, log.items[field.name][np.maximum(items - 1, 0)])
        value = _keep(items > 0, value)
        return shown(field, value, items) if field.kind == "id" else value

    def of_items(role: str, field: Field) -> _Column:
        anywhere = dataclasses.replace(field, role="candidate")
        return _Column(role, field, value_of_items(anywhere), at[role])

    def of_requests(role: str, field: Field, value: np.ndarray) -> _Column:
        if field.missing == "unseen":
            value = shown(field, _known(field, value), np.arange(len(value)))
        return _Column(role, field, value)

    def column(role: str, field: Field) -> _Column:
        if role == "user":
            return of_requests(role, field, log.users[field.name][requests.user])
        if role == "context":
            return of_requests(role, field, requests.context[field.name])
        if role in events and field.name in log.event:
            some = events[role]
            value = _known(field, log.event[field.name][some.at])
            return _Column(role, field, _keep(some.mask, value))
        if role == "candidate" and field.name in requests.shown:
            value = _known(field, requests.shown[field.name])
            return _Column(role, field, _keep(requests.candidate >= 0, value))
        return of_items(role, field)

    found = [
        column(role, field)
        for role, members in fields.items()
        for field in members
        if not field.cross
    ]
    parts = {(column.role, column.field.name): column for column in found}
    for field in schema.fields:
        if field.cross:
            values = [parts[part].full() for part in field.parts]
            found.append(_Column(field.role, field, cross(schema, field, values, windows.mask)))
    return found


def _frame(log: EventLog, requests: Requests, windows: Windows, extra: Extra) -> dict[str, Any]:
    """Everything of a batch that is not a field."""
    batch: dict[str, Any] = {role: {} for role in ROLES}
    batch["candidate_mask"] = requests.candidate >= 0
    batch["label"] = dict(requests.label)
    if requests.weight:
        batch["weight"] = dict(requests.weight)
    batch |= _events("history", log, requests, windows)
    if extra.groups is not None:
        groups = Windows(extra.groups.at, extra.groups.mask)
        batch |= {"retrieved": {}, "group": extra.groups.group}
        batch |= _events("retrieved", log, requests, groups)
    if extra.history_negative is not None:
        batch["history_negative"] = {}
    if extra.sampled is not None:
        batch |= {"sampled": {}, "sampled_log_q": extra.sampled_log_q}
        if extra.sampled_mask is not None:
            batch["sampled_mask"] = extra.sampled_mask
        batch["candidate_log_q"] = extra.candidate_log_q
    return batch


def _events(role: str, log: EventLog, requests: Requests, some: Windows) -> dict[str, Any]:
    """Mask and age of events, whatever role they stand in."""
    result: dict[str, Any] = {f"{role}_mask": some.mask}
    if log.has_clock:
        now = requests.time.reshape((-1,) + (1,) * (some.at.ndim - 1))
        age = np.clip(now - log.time[some.at], 0, 2**31 - 1)
        result[f"{role}_age"] = np.where(some.mask, age, 0).astype(np.int32)
    return result


def _known(field: Field, rows: np.ndarray) -> np.ndarray:
    """Rows of a field in which what is missing reads as the field says."""
    return or_unseen(rows) if field.missing == "unseen" else rows


def _keep(mask: np.ndarray, value: np.ndarray) -> np.ndarray:
    """`value` where real, zeros elsewhere."""
    mask = mask.reshape(mask.shape + (1,) * (value.ndim - mask.ndim))
    return np.where(mask, value, np.zeros((), value.dtype))
