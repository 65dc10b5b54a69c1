"""Data sets: a schema, a log, and requests to train, validate and test on."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import numpy as np

from ...zoo.features import RowMap, Schema
from .declaration.columns import Columns
from .draws import NEVER, Catalogue
from .errors import DataError
from .event_log import EventLog, Requests, leaks
from .protocol import Protocol

MEMORY = "memory"
"""Kind of source that a run remembers where its data were in memory."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Dataset:
    """A source, read and split.

    Attributes:
      name: of the data, for people, e.g. "market:standard".
      source: the SOURCE that it was read from, its paths absolute; what was in memory says
        so ("memory:..."), and so does what was made by hand.
      protocol: how it was read; None if it was made by hand.
      schema: what its batches hold.
      row_maps: {table: RowMap} that made the row ids.
      log: every user's events.
      train, validation, test: the requests; selection reads validation, test is read once.
      samples_negatives: whether a training request is one positive to which the pipeline adds
        negatives (interaction logs), or already holds labelled candidates (page logs).
      segments: {name: {value: label}} context or user fields that metrics are broken down by.
      truth: what a simulated world knows and a log does not, e.g. `truth["test"]["click"]`
        (R, C), the true click probabilities of the test requests; empty for real data.
      facts: counts worth printing.
      appeared: (N,) int64, the time at which each item of the log appeared, for all that training
        knows; `draws.NEVER` for items that only validation and test hold, which are never drawn as
        negatives. None computes it from the requests of training, see `appearances`.
      columns: the declaration by which its file was read, where columns have to be known.
      notes: what people should know of how it was read, a sentence each.
      examples: the first requests of the test as raw records (see `zoo.features.encode`), to try a
        model with; none where the source keeps no raw values.
      complete: adds the columns that depend on which candidates a request has, once they are
        drawn, to training requests of a log of interactions; see `statistics`.
    """

    name: str
    source: str = ""
    protocol: Protocol | None = None
    schema: Schema
    row_maps: dict[str, RowMap]
    log: EventLog
    train: Requests
    validation: Requests
    test: Requests
    samples_negatives: bool = False
    segments: dict[str, dict[int, str]] = dataclasses.field(default_factory=dict)
    truth: dict[str, dict[str, np.ndarray]] = dataclasses.field(default_factory=dict)
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    appeared: np.ndarray | None = None
    columns: Columns | None = None
    notes: tuple[str, ...] = ()
    examples: tuple[dict[str, Any], ...] = ()
    complete: Callable[[Requests], Requests] = lambda requests: requests

    def __post_init__(self):
        if not self.source:
            object.__setattr__(self, "source", f"{MEMORY}:{self.name}")

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(getattr(self, x))} {x}" for x in ("train", "validation", "test"))
        return f"Dataset({self.name!r}: {self.log.num_events} events; requests: {sizes})"

    def appearances(self) -> np.ndarray:
        """(N,) when each item first stood in an event that training may see; `draws.NEVER` else.

        Training sees the histories of its requests, and their candidates.
        """
        if self.appeared is not None:
            return self.appeared
        log, train = self.log, self.train
        seen_until = np.zeros(log.num_users, np.int64)
        np.maximum.at(seen_until, train.user, train.cut)
        event = np.arange(log.num_events) - np.repeat(log.offsets[:-1], log.lengths())
        visible = event < np.repeat(seen_until, log.lengths())
        appeared = np.full(log.num_items, NEVER)
        np.minimum.at(appeared, log.item[visible], log.time[visible])
        row, column = np.nonzero(train.candidate >= 0)
        np.minimum.at(appeared, train.candidate[row, column], train.time[row])
        return appeared

    def catalogue(self, *, point_in_time: bool = False) -> Catalogue:
        """From which training draws negatives. Raises DataError if training knows no item."""
        try:
            timed = point_in_time and self.log.has_clock
            return Catalogue(self.appearances(), point_in_time=timed)
        except ValueError as error:
            raise DataError(f"{self.name}: {error}") from error

    def check(self) -> None:
        """Raises DataError for requests that no source may give, whoever made them.

        Cuts beyond a user's events, histories that reach into the future or hold the target, users
        and candidates that the log does not have, labels outside [0, 1], weights below 0.
        """
        for split in ("train", "validation", "test"):
            requests: Requests = getattr(self, split)
            where = f"{self.name}: {split} request"
            # A log that says nothing of items (each line is a request of its own) names none.
            last = self.log.num_items - 1 if self.log.items else np.inf
            for what, value, low, high in (
                ("user", requests.user[:, None], 0, self.log.num_users - 1),
                ("candidate", requests.candidate, -1, last),
                *((f"label {k!r}", x, 0, 1) for k, x in requests.label.items()),
                *((f"weight {k!r}", x, 0, np.inf) for k, x in requests.weight.items()),
            ):
                real = what[0] not in "lw" or requests.candidate >= 0
                wrong = np.argwhere(~((value >= low) & (value <= high)) & real)
                if len(wrong):
                    at = tuple(wrong[0])
                    raise DataError(
                        f"{where} {at[0]}: {what} must be in [{low}, {high}], got {value[at]}."
                    )
            try:
                late = leaks(self.log, requests)
            except ValueError as error:
                raise DataError(f"{self.name}: {split}: {error}") from error
            if len(late):
                raise DataError(
                    f"{where} {late[0]} and {len(late) - 1} more: the history holds events that "
                    "had not happened by then, or the target itself."
                )

    def without(self, names: Sequence[str]) -> "Dataset":
        """The data set without some fields, `name` or `role.name`, and the tables only they read.

        Raises:
          ValueError: a name that no field has.
        """
        matches = lambda field: {field.name, f"{field.role}.{field.name}"} & set(names)
        left_out = [field for field in self.schema.fields if matches(field)]
        stray = set(names) - {name for field in left_out for name in matches(field)}
        if stray:
            known = ", ".join(f"{field.role}.{field.name}" for field in self.schema.fields)
            raise ValueError(f"leave_out: no field {sorted(stray)[0]!r}; there are {known}.")
        fields = tuple(field for field in self.schema.fields if field not in left_out)
        read = {field.table_name for field in fields}
        tables = tuple(table for table in self.schema.tables if table.name in read)
        return dataclasses.replace(
            self,
            schema=dataclasses.replace(self.schema, fields=fields, tables=tables),
            row_maps={name: rows for name, rows in self.row_maps.items() if name in read},
        )
