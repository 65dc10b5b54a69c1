"""From a listwise market to a `Dataset`: slates that a policy exposed, and what came of them.

Models see what a re-ranker sees in production: the request's context, the items, and what the
upstream ranker knew of each pair (its score, its rank, its signals). They never see the truth.
Shapes: `R` requests, `N` candidates in upstream order, `M` slots.
"""

from typing import Any, Literal

from jaxtyping import Int
import numpy as np

from ....zoo.features import Field, KnownRows, RowMap, Schema, Table, signatures
from ..dataset import Dataset
from ..event_log import EventLog, Requests
from .presets import PRICE_LEVELS, ROUND_SECONDS, SCENES, SEGMENTS
from .slates import SlateRequests, SlateWorld

EXPLORING, NARROW = 0.5, 1.5
View = Literal["slates", "candidates"]
SIGNALS = ("match", "price distance", "affinity", "hot")
_DIMS = {
    "item": 16,
    "category": 8,
    "price_level": 4,
    "rank": 4,
    "user_segment": 4,
    "scene": 4,
    "hour": 4,
}


def load(
    world: SlateWorld,
    *,
    name: str,
    slates: int = 200_000,
    inverse_temperature: float = EXPLORING,
    seed: int = 0,
    view: View = "slates",
) -> Dataset:
    """A log of exposed slates with clicks and purchases.

    Args:
      world: who asks and what happens.
      name: of the dataset.
      slates: to train on; a tenth as many to validate, and to test.
      inverse_temperature: of the logging policy, see `SlateWorld.plackett_luce`.
      seed: of requests, policy and feedback.
      view: "slates" holds what was exposed, in slot order, for evaluators; "candidates" all that
        could have been, in upstream order, for re-rankers: what was not shown weighs 0.

    Purchases count in training if they had arrived when the training rounds ended.

    Raises:
      ValueError: fewer than 10 slates, which leave none to validate.
    """
    if slates < 10:
        raise ValueError(f"slates must be >= 10, got {slates}.")
    train, validation, test = world.preset.market.starts
    ends = (validation, test, world.preset.market.rounds)
    rounds = [range(a, b) for a, b in zip((train, validation, test), ends, strict=True)]
    row_maps = _row_maps(world)
    log = _items(world, row_maps)
    splits, truth = [], []
    for number, (span, count) in enumerate(
        zip(rounds, (slates, slates // 10, slates // 10), strict=True)
    ):
        rng = np.random.default_rng([world.world.seed, seed, 4, number])
        asked = world.requests(rng, count, span)
        order = world.plackett_luce(rng, asked, inverse_temperature)
        shown = to_requests(world, asked, row_maps, order=order if view == "slates" else None)
        feedback = world.feedback(rng, asked, order)
        bought = feedback.bought
        if number == 0:
            arrived = shown.time[:, None] + 3600 * feedback.delay < validation * ROUND_SECONDS
            bought = bought & arrived
        labels = {"click": feedback.clicked, "purchase": bought}
        columns = {task: x.astype(np.float32) for task, x in labels.items()}
        click = world.click_probability(asked, order)
        if view == "candidates":
            spread = lambda x, order=order, shape=shown.candidate.shape: _spread(x, order, shape)
            columns = {task: spread(x) for task, x in columns.items()}
            click = spread(click)
            weight = spread(np.ones(order.shape, np.float32))
            shown.weight.update(dict.fromkeys(columns, weight))
        shown.label.update(columns)
        splits.append(shown)
        truth.append({"click": click})
    return Dataset(
        name=name,
        schema=schema_of(row_maps),
        row_maps=row_maps,
        log=log,
        train=splits[0],
        validation=splits[1],
        test=splits[2],
        truth={"validation": truth[1], "test": truth[2]},
        facts={
            "slates": slates,
            "slots": world.preset.slots,
            "clicks per slate": round(float(splits[0].label["click"].sum(axis=1).mean()), 3),
            "purchases per slate": round(float(splits[0].label["purchase"].sum(axis=1).mean()), 3),
        },
    )


def to_requests(
    world: SlateWorld,
    asked: SlateRequests,
    row_maps: dict[str, RowMap],
    *,
    order: Int[np.ndarray, "R M"] | None = None,
) -> Requests:
    """Requests as models see them: all candidates in upstream order, or the slate of `order`."""
    if order is None:
        every = np.arange(asked.candidate.shape[1])
        order = np.broadcast_to(every, asked.candidate.shape)
    pick = lambda x: np.take_along_axis(x, order, axis=1)
    item = pick(asked.candidate)
    signals = np.stack(world.world.signals(asked.user, asked.round, item), axis=-1)
    rows = lambda table, values: row_maps[table](signatures(table, values))
    shown: dict[str, Any] = {
        "rank": rows("rank", np.arange(asked.candidate.shape[1]))[order],
        "score": pick(asked.score).astype(np.float32),
        "signals": signals.astype(np.float32),
    }
    return Requests(
        user=asked.user.astype(np.int32),
        cut=np.zeros(len(asked), np.int64),
        time=asked.round.astype(np.int64) * ROUND_SECONDS + asked.hour * 3600,
        candidate=item.astype(np.int32),
        label={},
        context={
            "scene": rows("scene", list(SCENES))[asked.scene],
            "hour": rows("hour", np.arange(24))[asked.hour],
        },
        shown=shown,
    )


def _spread(x: np.ndarray, order: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Columns of slots as columns of candidates; 0 for those that were not shown."""
    found = np.zeros(shape, x.dtype)
    np.put_along_axis(found, order, x, axis=1)
    return found


def schema_of(row_maps: dict[str, RowMap]) -> Schema:
    """The schema of slates."""
    return Schema(
        tables=tuple(
            Table(name=table, rows=row_maps[table].rows, dim=dim) for table, dim in _DIMS.items()
        ),
        fields=(
            Field(name="user_segment", role="user", value="string"),
            Field(name="scene", role="context", value="string"),
            Field(name="hour", role="context"),
            Field(name="item", role="candidate"),
            Field(name="category", role="candidate"),
            Field(name="price_level", role="candidate"),
            Field(name="price", role="candidate", kind="dense"),
            Field(name="rank", role="candidate"),
            Field(name="score", role="candidate", kind="dense"),
            Field(name="signals", role="candidate", kind="dense", width=len(SIGNALS)),
        ),
        tasks=("click", "purchase"),
    )


def _row_maps(world: SlateWorld) -> dict[str, RowMap]:
    market = world.preset.market
    values = {
        "item": np.arange(market.items),
        "category": np.arange(market.categories),
        "price_level": np.arange(PRICE_LEVELS),
        "rank": np.arange(world.preset.candidates),
        "user_segment": list(SEGMENTS),
        "scene": list(SCENES),
        "hour": np.arange(24),
    }
    return {table: KnownRows.of(signatures(table, value)) for table, value in values.items()}


def _items(world: SlateWorld, row_maps: dict[str, RowMap]) -> EventLog:
    """The catalogue and the users, without events."""
    market, rows = world.world, lambda table, values: row_maps[table](signatures(table, values))
    return EventLog(
        offsets=np.zeros(market.preset.users + 1, np.int64),
        item=np.zeros(0, np.int32),
        time=np.zeros(0, np.int64),
        event={},
        items={
            "item": rows("item", np.arange(market.preset.items)),
            "category": rows("category", market.category),
            "price_level": rows("price_level", market.price_level),
            "price": market.relative_price.astype(np.float32),
        },
        users={"user_segment": rows("user_segment", list(SEGMENTS))[market.segment]},
    )
