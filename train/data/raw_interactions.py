"""Interactions as a source has read them, before anything is chosen, split or encoded."""

import dataclasses
from typing import Any

import numpy as np

from .fields.encoding import Attribute


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interactions:
    """Raw events in file order, with attributes of items, users and events.

    Attributes:
      user, item: (E,) integers, indices into the user attributes and `item_ids`.
      time: (E,) integers.
      item_ids: (N,) Arrow array of the items' published ids.
      items: attributes with N values. users: with U values. events: with E values.
      context: attributes with E values that are known before the event, such as its scene; those
        of the target's own event are the request's.
      changing_items, changing_users: attributes with E values that an item or a user has from that
        event on, such as a price or a city. A candidate has the item's last one before the
        request; the request's context has the user's; a past event has its own price.
      has_clock: whether `time` is in seconds.
      has_time: whether `time` comes from the file, and is not only the order of its rows.
      user_ids: (U,) Arrow array of the users' published ids, for messages.
      rating: (E,) numbers, NaN where none, for `Protocol.min_rating`.
      part: (E,) 0, 1 or 2 where files of one's own say what is to train, validate and test on.
      negatives: indices (user, item) of given evaluation negatives.
    """

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    item_ids: Any
    items: tuple[Attribute, ...] = ()
    users: tuple[Attribute, ...] = ()
    events: tuple[Attribute, ...] = ()
    context: tuple[Attribute, ...] = ()
    changing_items: tuple[Attribute, ...] = ()
    changing_users: tuple[Attribute, ...] = ()
    has_clock: bool = True
    has_time: bool = True
    user_ids: Any = None
    rating: np.ndarray | None = None
    part: np.ndarray | None = None
    negatives: tuple[np.ndarray, np.ndarray] | None = None
