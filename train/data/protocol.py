"""The protocol of a log of interactions: its split, and what is an event, a label, a negative."""

import dataclasses
from typing import Any, Literal, get_args

import numpy as np

from . import columns

Split = Literal["auto", "last", "time"]
Duplicates = Literal["drop", "keep"]
UNIFORM, POPULARITY = "uniform", "popularity"

TRAIN, VALIDATION, TEST = 0, 1, 2
# Of the events, for validation and for test, where a moment splits and none is given.
_SHARES = (0.8, 0.9)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """The protocol of a log of interactions.

    Attributes:
      split: "last": per user the last event is for test, the one before it for validation;
        "time": for all users by the same two moments, so that nothing is learnt from later;
        "auto": last for logs of interactions, time for logs of impressions.
      split_at: these two moments, in seconds since 1970; by default after 80 % and 90 % of the
        events.
      duplicates: "drop" makes one event of rows that say the same; "keep" reads them as repeats.
      evaluation_negatives: how the item beside each target of validation and test is drawn:
        "uniform" over the catalogue, or by "popularity" in training; or a file of
        user_id,item_id pairs, which are then the candidates of all of a user's targets.
      min_rating: events with a lower rating are left out, where the log has ratings.
      max_train_per_user: newest training targets per user, of a log of interactions.
      tasks: behaviours, as a funnel (view, cart, buy): events of these are the targets, and label
        number k is 1 for behaviour number k and those after it. Empty: every event is a click.
    """

    split: Split = "auto"
    split_at: tuple[float, ...] = ()
    duplicates: Duplicates = "drop"
    evaluation_negatives: str = UNIFORM
    min_rating: float = 0.0
    max_train_per_user: int = 20
    tasks: tuple[str, ...] = ()

    def __post_init__(self):
        for name, choices in (("split", Split), ("duplicates", Duplicates)):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(
                    f"{name} must be {' or '.join(get_args(choices))}, got {getattr(self, name)!r}."
                )
        if self.split_at:
            rising = len(self.split_at) == 2 and self.split_at[0] < self.split_at[1]
            if not rising:
                raise ValueError(
                    "split_at must be two moments, for validation and for test, the first before "
                    f"the second, got {self.split_at}."
                )
            if self.split != "time":
                raise ValueError("split_at is for split=time.")
        if self.max_train_per_user < 1:
            raise ValueError(f"max_train_per_user must be >= 1, got {self.max_train_per_user}.")
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks: a behaviour stands twice in {', '.join(self.tasks)}.")

    @property
    def min_events(self) -> int:
        """Events that a user needs: one each to train, validate and test on, or a past."""
        return 2 if self.split == "time" else 3


def parts_by_position(offsets: np.ndarray, is_target: np.ndarray) -> np.ndarray:
    """(E,) int8: per user, from the last target on TEST, from the one before it VALIDATION."""
    # The number of targets up to and including each event, from the end of its user's.
    before = np.concatenate([[0], np.cumsum(is_target)])
    until_end = np.repeat(before[offsets[1:]], np.diff(offsets)) - before[:-1]
    part = np.full(len(is_target), TRAIN, np.int8)
    part[until_end <= 2] = VALIDATION
    part[until_end <= 1] = TEST
    return part


def parts_by_time(time: np.ndarray, split_at: tuple[float, ...]) -> tuple[np.ndarray, Any]:
    """(E,) int8 by two moments, and the moments."""
    if not split_at:
        split_at = tuple(float(x) for x in np.quantile(time, _SHARES, method="lower"))
    part = (time >= split_at[0]).astype(np.int8) + (time >= split_at[1]).astype(np.int8)
    return part, split_at


def repeats(*keys: np.ndarray) -> np.ndarray:
    """(n,) bool: the rows whose keys an earlier row has."""
    return ~columns.firsts(keys)


def not_behind_later_parts(
    index: np.ndarray, offsets: np.ndarray, part: np.ndarray, own: int
) -> np.ndarray:
    """Those of the events `index` of a part before which the user has none of a later part.

    A history may not hold what is to be predicted later.
    """
    late = np.flatnonzero(part > own)
    first = offsets[1:].copy()
    user = np.searchsorted(offsets, late, side="right") - 1
    np.minimum.at(first, user, late)
    owner = np.searchsorted(offsets, index, side="right") - 1
    return index[index < first[owner]]


def newest_of_each(index: np.ndarray, offsets: np.ndarray, count: int) -> np.ndarray:
    """The last `count` of the ascending events `index` of each user."""
    user = np.searchsorted(offsets, index, side="right") - 1
    ends = np.searchsorted(user, user, side="right")
    return index[ends - np.arange(len(index)) <= count]
