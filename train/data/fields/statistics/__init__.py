"""Counts, ratios and recency of past events, point-in-time: every file here is one operation.

A statistic is a text: the operation, whose events count, and how,

    count(item)                        events of the candidate item before the request
    count(user*category; cart; 7d)     carts of this user in the candidate's category, in 7 days
    ratio(item; buy/click)             (buys + 1) / (clicks + 2) of the candidate item
    decayed(item; 12h)                 events of the item, each counting half after every 12 hours
    since(user*category; buy)          days since this user bought in the category; -1: never

The key names `user`, `item` or any id that the log keeps of items, joined by `*`; a behaviour
narrows the events; a duration is a number and s, m, h or d. Of a request at time t only events
before t count (those of the same second do not), whoever's they are: there is no way to ask for
later ones. A statistic becomes a dense field of its own name: of the candidate if its key has an
item in it, else of the context. Decision states (how long ago was the last purchase in this
category, how often was it viewed or put into a cart since) are such fields. What is counted is in
the log at hand: a file that begins later has smaller counts. Whoever serves puts the number itself
into the request's record, under the statistic's text; the field's transform is applied there.

A new operation is one new file with a class `Operation`; see `count`.
"""

from collections.abc import Sequence
import dataclasses
import importlib
import pkgutil
import re
from typing import Any

import numpy as np

from .....zoo.features import UNSEEN_ROW, Field, transforms
from .....zoo.features.row_map import RowMap
from .....zoo.features.signature import signatures
from ...dataset import Dataset
from ...errors import DataError
from ...event_log import EventLog, Requests
from .past import Past

OPERATIONS = tuple(
    sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "past")
)
_STATISTIC = re.compile(r"\s*(\w+)\s*\(([^()]+)\)\s*")
_DURATION = re.compile(r"(\d+)([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statistic:
    """A statistic, read; see the module.

    Attributes:
      operation: a name of `OPERATIONS`.
      key: what an event must share with the request to count.
      behaviors: which events count; empty for all of them.
      duration: as it was written, or None. seconds: the same in numbers.
    """

    operation: str
    key: tuple[str, ...]
    behaviors: tuple[str, ...] = ()
    duration: str | None = None

    @staticmethod
    def parse(text: str) -> "Statistic":
        """Raises ValueError for an unknown operation, or arguments that it does not take."""
        found = _STATISTIC.fullmatch(text)
        if not found or found[1] not in OPERATIONS:
            known = ", ".join(f"{name}(...)" for name in OPERATIONS)
            raise ValueError(f"Statistic {text!r}: it must be one of {known}.")
        key, *more = (part.strip() for part in found[2].split(";"))
        durations = [part for part in more if _DURATION.fullmatch(part)]
        behaviors = [part for part in more if part not in durations]
        parts = tuple(part.strip() for part in key.split("*"))
        if len(durations) > 1 or len(behaviors) > 1 or not all(parts) or "" in more:
            raise ValueError(
                f"Statistic {text!r}: it takes a key, one behaviour and one duration at most."
            )
        if len(set(parts)) != len(parts):
            raise ValueError(f"Statistic {text!r}: a part of the key stands twice.")
        statistic = Statistic(
            operation=found[1],
            key=parts,
            behaviors=tuple(x.strip() for x in behaviors[0].split("/")) if behaviors else (),
            duration=durations[0] if durations else None,
        )
        takes = statistic.kind.TAKES
        given = (len(statistic.behaviors), int(bool(durations)))
        for name, count, allowed in zip(("behaviours", "durations"), given, takes, strict=True):
            if count not in allowed:
                wanted = " or ".join(map(str, allowed))
                raise ValueError(
                    f"Statistic {text!r}: {statistic.operation} takes {wanted} {name}, got {count}."
                )
        if statistic.seconds is not None and not 0 < statistic.seconds < 2**40:
            raise ValueError(f"Statistic {text!r}: a duration must be > 0 and < 2^40 seconds.")
        if len(set(statistic.behaviors)) < len(statistic.behaviors):
            raise ValueError(f"Statistic {text!r}: a behaviour stands twice.")
        return statistic

    @property
    def kind(self) -> Any:
        """The class that computes it."""
        return importlib.import_module(f".{self.operation}", __name__).Operation

    @property
    def seconds(self) -> int | None:
        """The duration."""
        if self.duration is None:
            return None
        return int(self.duration[:-1]) * _SECONDS[self.duration[-1]]

    def __str__(self) -> str:
        parts = ["*".join(self.key), "/".join(self.behaviors), self.duration]
        return f"{self.operation}({'; '.join(part for part in parts if part)})"

    @property
    def field(self) -> Field:
        """The field that holds it."""
        role = "context" if self.key == ("user",) else "candidate"
        return Field(name=str(self), role=role, kind="dense", transform=self.kind.TRANSFORM)


class Statistics:
    """Computes statistics of requests from one log.

    Raises:
      DataError: a key or a behaviour that the log does not have, or a duration without a clock.
    """

    def __init__(self, texts: Sequence[str], log: EventLog, row_maps: dict[str, RowMap]):
        self._log = log
        if texts and not log.num_events:
            raise DataError(f"Statistic {texts[0]!r}: this log has no events.")
        self._computed: list[tuple[Statistic, Any]] = []
        for text in texts:
            statistic = Statistic.parse(text)
            if (statistic.seconds or statistic.kind.IN_TIME) and not log.has_clock:
                raise DataError(f"Statistic {text!r}: this log has no clock, only an order.")
            key, real = self._keys(statistic, None, log.item, log_users(log))
            pasts = [
                Past(key, log.time, real & of)
                for of in _of_behaviors(statistic.behaviors, log, row_maps)
            ]
            self._computed.append((statistic, statistic.kind(pasts, statistic.seconds)))

    @property
    def fields(self) -> tuple[Field, ...]:
        """One dense field per statistic."""
        return tuple(statistic.field for statistic, _ in self._computed)

    def add(self, requests: Requests) -> Requests:
        """The requests with every statistic as a column; 0 where there is no candidate."""
        context, shown = dict(requests.context), dict(requests.shown)
        for statistic, operation in self._computed:
            if statistic.field.role == "context":
                item, user, time = None, requests.user, requests.time
            else:
                item, shape = requests.candidate, requests.candidate.shape
                user = np.broadcast_to(requests.user[:, None], shape)
                time = np.broadcast_to(requests.time[:, None], shape)
            key, real = self._keys(statistic, item, item, user)
            value = operation(key.ravel(), time.ravel()).reshape(key.shape)
            value = transforms.function(statistic.field.transform)(value.astype(np.float32))
            column = np.where(real, value, np.float32(0))
            (context if item is None else shown)[str(statistic)] = column
        return dataclasses.replace(requests, context=context, shown=shown)

    def _keys(
        self, statistic: Statistic, candidate: Any, item: Any, user: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """One int64 per entry that stands for the whole key, and whether the key is known."""
        code = np.zeros(user.shape, np.int64)
        real = np.ones(user.shape, bool) if candidate is None else candidate >= 0
        for part in statistic.key:
            if part == "user":
                value, size = user, self._log.num_users
            elif part == "item":
                value, size = item, self._log.num_items
            else:
                column = self._column(statistic, part)
                value, size = column[np.maximum(item, 0)], int(column.max(initial=0)) + 1
                # All that is unseen has one row, and is not one value.
                real = real & (value > UNSEEN_ROW)
            code = code * size + value
        return code, real

    def _column(self, statistic: Statistic, name: str) -> np.ndarray:
        columns = {
            name: column
            for name, column in self._log.items.items()
            if column.ndim == 1 and column.dtype.kind in "iu"
        }
        if name not in columns:
            known = ", ".join(["user", "item", *(c for c in columns if c != "item")])
            raise DataError(f"Statistic {str(statistic)!r}: key {name!r} is not one of {known}.")
        return columns[name]


def log_users(log: EventLog) -> np.ndarray:
    """(E,) whose each event is."""
    return np.repeat(np.arange(log.num_users), log.lengths())


def _of_behaviors(
    behaviors: tuple[str, ...], log: EventLog, row_maps: dict[str, RowMap]
) -> list[np.ndarray]:
    """(E,) for each behaviour, whether an event is one; all events where none is named."""
    if not behaviors:
        return [np.ones(log.num_events, bool)]
    if "behavior" not in log.event:
        raise DataError(f"Behaviour {behaviors[0]!r}: the events of this log have no behaviour.")
    found = []
    for name in behaviors:
        value = int(name) if name.isdecimal() else name
        row = int(row_maps["behavior"](signatures("behavior", [value]))[0])
        if row == UNSEEN_ROW:
            raise DataError(
                f"Statistics: {name!r} is no behaviour of this log's events, nor a duration (a "
                "number and s, m, h or d)."
            )
        found.append(log.event["behavior"] == row)
    return found


def with_statistics(dataset: Dataset, texts: Sequence[str]) -> Dataset:
    """The data set with a dense field for every statistic of `texts`; see the module.

    Raises:
      ValueError: a text that cannot be read. DataError: see `Statistics`.
    """
    if not texts:
        return dataset
    names = [str(Statistic.parse(text)) for text in texts]
    if len(set(names)) < len(names):
        raise ValueError(f"statistics: one stands twice in {', '.join(names)}.")
    statistics = Statistics(texts, dataset.log, dataset.row_maps)
    schema = dataclasses.replace(
        dataset.schema, fields=(*dataset.schema.fields, *statistics.fields)
    )
    # Negatives are drawn when a batch is made, and their statistics computed then.
    train = dataset.train if dataset.samples_negatives else statistics.add(dataset.train)
    return dataclasses.replace(
        dataset,
        schema=schema,
        train=train,
        validation=statistics.add(dataset.validation),
        test=statistics.add(dataset.test),
        complete=lambda requests: statistics.add(dataset.complete(requests)),
    )
