"""Each user's events, stored once; training examples are positions in it.

An example names a user and a cut, the number of that user's events that had happened; its
history is a slice of the log, taken when the batch is built. No history is ever copied into rows.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any
import zlib

import numpy as np

from ...zoo.features.file_names import file_of


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class EventLog:
    """Events of `U` users over `N` items, `E` in all, in compressed-sparse-row form.

    Attributes:
      offsets: (U + 1,) int64; user u's events are `offsets[u]:offsets[u + 1]`, oldest first.
      item: (E,) int32, the item of each event, 0..N-1.
      time: (E,) int64 seconds; only their order counts when `has_clock` is false.
      event: columns of the events themselves, e.g. `behavior`: {field: (E, ...)}.
      items: columns of the items, read by history and candidates alike: {field: (N, ...)}.
      users: columns of the users: {field: (U, ...)}.
      has_clock: whether `time` is in seconds, so that ages mean something.

    Columns hold what the batch will hold: int32 row ids, or float32 numbers.
    """

    offsets: np.ndarray
    item: np.ndarray
    time: np.ndarray
    event: dict[str, np.ndarray]
    items: dict[str, np.ndarray]
    users: dict[str, np.ndarray]
    has_clock: bool = True

    @property
    def num_users(self) -> int:
        """Number of users in the log."""
        return len(self.offsets) - 1

    @property
    def num_events(self) -> int:
        """Number of events in the log."""
        return len(self.item)

    @property
    def num_items(self) -> int:
        """Number of items in the catalogue; 0 where it says nothing of them."""
        return len(next(iter(self.items.values()), ()))

    def lengths(self) -> np.ndarray:
        """(U,) events per user."""
        return np.diff(self.offsets)

    def fingerprint(self) -> int:
        """Tells the events of this log from others: evaluation negatives depend on it."""
        whole = lambda column: np.ascontiguousarray(column).data  # not copied if it is
        return zlib.crc32(whole(self.time), zlib.crc32(whole(self.item)))

    def checksum(self) -> int:
        """Of every column of events, items and users; a run that goes on must find the same."""
        total = self.fingerprint()
        for group in (self.event, self.items, self.users):
            for name in sorted(group):
                total = zlib.crc32(np.ascontiguousarray(group[name]).view(np.uint8).data, total)
        return total

    def save(self, folder: Path | str) -> None:
        """Writes one `.npy` per column and `log.json`, aside and then renamed."""
        folder = Path(folder)
        aside = folder.with_name(folder.name + ".partial")
        aside.mkdir(parents=True, exist_ok=True)
        names: dict[str, list[str]] = {}
        for group in ("event", "items", "users"):
            names[group] = sorted(getattr(self, group))
            for name in names[group]:
                np.save(_file(aside, group, name), getattr(self, group)[name])
        for name in ("offsets", "item", "time"):
            np.save(aside / f"{name}.npy", getattr(self, name))
        (aside / "log.json").write_text(json.dumps({"columns": names, "has_clock": self.has_clock}))
        aside.rename(folder)

    @classmethod
    def load(cls, folder: Path | str) -> "EventLog":
        """Opens a saved log memory-mapped: nothing is read until it is used."""
        folder = Path(folder)
        if not (folder / "log.json").is_file():
            raise FileNotFoundError(f"{folder} is not a saved event log (it has no log.json).")
        content = json.loads((folder / "log.json").read_text())
        read = lambda file: np.load(file, mmap_mode="r", allow_pickle=False)
        groups: dict[str, Any] = {
            group: {name: read(_file(folder, group, name)) for name in names}
            for group, names in content["columns"].items()
        }
        plain: dict[str, Any] = {
            name: read(folder / f"{name}.npy") for name in ("offsets", "item", "time")
        }
        return cls(**plain, **groups, has_clock=content["has_clock"])


def _file(folder: Path, group: str, name: str) -> Path:
    return file_of(folder, name, before=f"{group}.")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Requests:
    """`R` requests of `C` candidates each, as positions in an `EventLog`.

    Attributes:
      user: (R,) int32, index of the user in the log.
      cut: (R,) int64, how many of the user's events had happened: the history is its newest part.
      time: (R,) int64, seconds, like the log's.
      candidate: (R, C) int32, index of each item; -1 where a request has fewer than C.
      label: {task: (R, C)} float32.
      weight: {task: (R, C)} float32; a task that is absent weighs 1.
      context: {field: (R, ...)} columns of the request.
      shown: {field: (R, C, ...)} columns of a candidate in this request only, e.g. its position;
        a field that stands here hides the item's column of the same name.
    """

    user: np.ndarray
    cut: np.ndarray
    time: np.ndarray
    candidate: np.ndarray
    label: dict[str, np.ndarray]
    weight: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    context: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    shown: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.user)

    @property
    def examples(self) -> int:
        """Labelled candidates."""
        return int((self.candidate >= 0).sum())

    def take(self, index: np.ndarray | slice) -> "Requests":
        """The requests at `index`, in that order."""
        pick = lambda columns: {name: column[index] for name, column in columns.items()}
        return Requests(
            user=self.user[index],
            cut=self.cut[index],
            time=self.time[index],
            candidate=self.candidate[index],
            label=pick(self.label),
            weight=pick(self.weight),
            context=pick(self.context),
            shown=pick(self.shown),
        )


def leaks(log: EventLog, requests: Requests) -> np.ndarray:
    """Indices of the requests whose history holds an event that had not yet happened.

    A history may hold only events before its request: none later than the request's time, and
    none at that very time that is one of the request's own positives. (Other events of the same
    second are allowed: logs such as MovieLens' record many a second, in order.)
    """
    starts = log.offsets[requests.user]
    if np.any(requests.cut < 0) or np.any(starts + requests.cut > log.offsets[requests.user + 1]):
        raise ValueError("Requests.cut must lie within each user's events.")
    positive = np.zeros(requests.candidate.shape, bool)
    for label in requests.label.values():
        positive |= label > 0
    late = np.zeros(len(requests), bool)
    # Events are in order of time: look back from the newest until one is older than its request.
    open_, at = np.flatnonzero(requests.cut > 0), starts + requests.cut - 1
    while len(open_):
        item, time = log.item[at[open_]], log.time[at[open_]]
        own = np.any((requests.candidate[open_] == item[:, None]) & positive[open_], axis=1)
        same = time == requests.time[open_]
        late[open_] = (time > requests.time[open_]) | (same & own)
        at[open_] -= 1
        open_ = open_[same & ~own & (at[open_] >= starts[open_])]
    return np.flatnonzero(late)
