"""Small logs of interactions, written by hand, for the tests of `train/data`."""

import numpy as np
import pyarrow as pa

from recjax.train.data import interactions
from recjax.train.data.fields.encoding import Attribute
from recjax.train.data.raw_interactions import Interactions

ITEM_IDS = [101, 102, 103, 104, 105, 106, 107, 108, 109]
CATEGORIES = ["a", "b", "a", None, "c", "b", "d", "a", "a"]
TAGS = [["x"], ["x", "y"], [], None, ["z", "x", "y"], ["x"], ["w"], ["y"], ["y"]]
PRICES = [1.25, 3.1, None, 0.1, 8.0, 16777217.3, float("nan"), 2.0, 4.0]
AGES = [25, 40, 60, 33]
# (user, item, time, behavior), in file order. Users 0..3; user 2 has too few events. Items count
# from 0; 5 is only ever a test target and 4 only a validation target, 6 and 7 nobody touches. Of
# the others, which training knows, 8 is left to draw for users 0 and 1. A tie: user 0 at time 20.
EVENTS = [
    (0, 0, 10, "click"),
    (1, 0, 11, "click"),
    (0, 2, 20, "buy"),
    (0, 1, 20, "click"),
    (1, 3, 30, "click"),
    (0, 5, 90_000, "buy"),
    (0, 3, 15, "click"),
    (2, 1, 40, "click"),
    (1, 4, 45, "cart"),
    (0, 4, 80_000, "cart"),
    (1, 5, 50, "click"),
    (2, 2, 50, "click"),
    (3, 1, 9, "click"),
    (3, 2, 8, "click"),
    (3, 0, 7, "click"),
    (3, 8, 6, "click"),
]
# The same by user, oldest first.
ORDERED = {0: [0, 3, 2, 1, 4, 5], 1: [0, 3, 4, 5], 3: [8, 0, 2, 1]}


def hand_made(**changes):
    user, item, time, behavior = zip(*EVENTS, strict=True)
    options = dict(
        user=np.array(user),
        item=np.array(item),
        time=np.array(time),
        item_ids=pa.array(ITEM_IDS),
        items=(
            Attribute(name="category", values=pa.array(CATEGORIES)),
            Attribute(name="tags", values=pa.array(TAGS)),
            Attribute(name="price", values=pa.array(PRICES), transform="log1p"),
        ),
        users=(Attribute(name="age", values=pa.array(AGES), dim=8),),
        events=(Attribute(name="behavior", values=pa.array(behavior), dim=4),),
    )
    return Interactions(**options | changes)


def hand_made_dataset(**options):
    return interactions.build("hand-made", hand_made(), **options)


def random_dataset(*, users=40, items=60, seed=0, has_clock=True, **options):
    """Users with 3 to 30 events each, in random file order."""
    random = np.random.default_rng(seed)
    user = random.permutation(np.repeat(np.arange(users), random.integers(3, 31, users)))
    raw = Interactions(
        user=user,
        item=random.integers(0, items, len(user)),
        time=random.integers(0, 10**6, len(user)),
        item_ids=pa.array(range(1000, 1000 + items)),
        items=(
            Attribute(name="category", values=pa.array(random.integers(0, 5, items))),
            Attribute(name="price", values=pa.array(random.normal(size=items))),
        ),
        users=(Attribute(name="age", values=pa.array(random.integers(20, 60, users)), dim=8),),
        events=(Attribute(name="behavior", values=pa.array(random.integers(0, 3, len(user)))),),
        has_clock=has_clock,
    )
    return interactions.build("random", raw, **options)


def shop_columns(*, users=40, items=60, events=900, seed=0):
    """Columns of a log of a shop, by time, as NumPy arrays and lists.

    Nothing in it predicts what anybody does. Of the columns beside ids, time and behaviour, `brand`
    and `genres` are the item's, `city` the user's, `price` is the item's and changes over time,
    `home` the user's and changes; `session`, `stars` and `bought_on` are the event's.
    """
    random = np.random.default_rng(seed)
    user = random.integers(0, users, events)
    item = random.integers(0, items, events)
    # No two events at once: then the order of the rows is nobody's order.
    time = 1_600_000_000 + np.sort(random.integers(0, 30 * 86_400, events)) + np.arange(events)
    day = (time - 1_600_000_000) // 86_400
    genres = [["war", "love", "crime"][: 1 + i % 3] for i in range(items)]
    # A price holds for ten days or so, a home for about half the month.
    price = 5.25 + item % 11 + 0.5 * ((day + 3 * item) // 10)
    home = (user + (day + 7 * user) // 17) % 9
    return {
        "user_id": 1000 + user,
        "item_id": 5000 + item,
        "timestamp": time,
        "behavior": [("view", "cart", "buy")[b] for b in random.integers(0, 3, events)],
        "brand": [f"brand {i % 7}" for i in item],
        "genres": [genres[i] for i in item],
        "city": 70 + user % 8,
        "price": price,
        "home": [f"home {h}" for h in home],
        "session": [f"s{u}-{d}" for u, d in zip(user, day, strict=True)],
        "stars": random.integers(1, 6, events) + 0.5,
        "bought_on": [f"2020-09-{13 + d % 15:02}" for d in day],
    }
