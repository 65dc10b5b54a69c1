"""From a world to a `Dataset`: the log of its rounds, encoded and split by time."""

import dataclasses
from typing import Any

from jaxtyping import Bool, Float, Int
import numpy as np
import pyarrow as pa

from ....zoo.features import Field, KnownRows, RowMap, Schema, Table, signatures, transforms
from .. import examples
from ..dataset import Dataset
from ..event_log import EventLog, Requests
from .presets import BEHAVIORS, PRESETS, PRICE_LEVELS, ROUND_SECONDS, SCENES, SEGMENTS, Preset
from .world import World

_DIMS = {
    "item": 16,
    "category": 16,
    "price_level": 4,
    "position": 4,
    "behavior": 4,
    "user_segment": 4,
    "scene": 4,
    "hour": 4,
}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PageLog:
    """Every page that was shown, by time, and everything that came of it.

    Attributes:
      user, round, scene, hour, time: (R,) of the request; `scene` indexes `SCENES`.
      candidate: (R, C) items in the exposed order.
      clicked, carted, bought: (R, C), what the user did, however late.
      click_time, cart_time, buy_time: (R, C) seconds, meaningful where the flag is set.
      click_probability: (R, C) P(click). conversion_probability: (R, C) P(buy), click included.
    """

    user: Int[np.ndarray, " R"]
    round: Int[np.ndarray, " R"]
    scene: Int[np.ndarray, " R"]
    hour: Int[np.ndarray, " R"]
    time: Int[np.ndarray, " R"]
    candidate: Int[np.ndarray, "R C"]
    clicked: Bool[np.ndarray, "R C"]
    carted: Bool[np.ndarray, "R C"]
    bought: Bool[np.ndarray, "R C"]
    click_time: Int[np.ndarray, "R C"]
    cart_time: Int[np.ndarray, "R C"]
    buy_time: Int[np.ndarray, "R C"]
    click_probability: Float[np.ndarray, "R C"]
    conversion_probability: Float[np.ndarray, "R C"]


def simulate(world: World) -> PageLog:
    """Lets every round of the world happen once; the draws follow from the world's own seed."""
    rng = np.random.default_rng([world.seed, 2])
    parts: dict[str, list[np.ndarray]] = {field.name: [] for field in dataclasses.fields(PageLog)}
    for round in range(world.preset.rounds):
        user, scene, hour, time = world.visits(rng, round)
        rounds = np.full(len(user), round)
        page = world.retrieve(rng, round, user, scene=scene, hour=hour, size=world.preset.slots)
        response = world.respond(rng, user, rounds, page, scene=scene, hour=hour, time=time)
        click = world.click_probability(user, rounds, page, scene=scene, hour=hour)
        conversion = click * world.conversion_probability(user, rounds, page)
        new = dict(user=user, round=rounds, scene=scene, hour=hour, time=time, candidate=page)
        new |= response._asdict()
        new |= dict(click_probability=click, conversion_probability=conversion)
        for name, part in new.items():
            parts[name].append(part)
    return PageLog(**{name: np.concatenate(part) for name, part in parts.items()})


def load(preset: str, seed: int = 0) -> Dataset:
    """The log of the world (preset, seed), as a source.

    Events are clicks, carts and purchases, each at its own time. Tasks: `click`, and
    `conversion`, a purchase that this impression led to. In training a conversion counts only if
    it happened before the training rounds ended; in validation and test, however late it came.
    Items first shown after the training rounds read row 1.
    """
    if preset not in PRESETS:
        raise ValueError(f"market preset must be one of {sorted(PRESETS)}, got {preset!r}.")
    world = World(PRESETS[preset], seed)
    return dataset(world, simulate(world), name=f"market:{preset}")


def dataset(world: World, pages: PageLog, *, name: str) -> Dataset:
    """Encodes and splits a log of the world."""
    p = world.preset
    train, validation, test = p.starts
    row_maps = _row_maps(p, np.unique(pages.candidate[pages.round < validation]))
    log = _event_log(world, pages, row_maps)
    spans = {
        "train": slice(*np.searchsorted(pages.round, [train, validation])),
        "validation": slice(*np.searchsorted(pages.round, [validation, test])),
        "test": slice(np.searchsorted(pages.round, test), None),
    }
    requests = {part: _requests(pages, span, log, row_maps) for part, span in spans.items()}
    span = spans["train"]
    known = pages.bought[span] & (pages.buy_time[span] < validation * ROUND_SECONDS)
    requests["train"].label["conversion"] = known.astype(np.float32)
    truth = {
        part: {
            "click": pages.click_probability[spans[part]],
            "conversion": pages.conversion_probability[spans[part]],
        }
        for part in ("validation", "test")
    }
    segments = {
        field: {int(_rows(row_maps, field, [value])[0]): value for value in values}
        for field, values in (("scene", SCENES), ("user_segment", SEGMENTS))
    }
    facts = {
        "preset": name.partition(":")[2],
        "version": p.version,
        "seed": world.seed,
        "users": p.users,
        "items": p.items,
        "categories": p.categories,
        "events": log.num_events,
        "click_rate": float(pages.clicked.mean()),
        "purchases_per_click": float(pages.bought.sum() / pages.clicked.sum()),
        "mean_history_at_test": float(requests["test"].cut.mean()),
    }
    schema = _schema(row_maps)
    return Dataset(
        name=name,
        schema=schema,
        row_maps=row_maps,
        log=log,
        train=requests["train"],
        validation=requests["validation"],
        test=requests["test"],
        segments=segments,
        truth=truth,
        facts=facts,
        examples=_examples(world, pages, spans["test"], log, requests["test"], row_maps, schema),
    )


def _examples(
    world: World,
    pages: PageLog,
    span: slice,
    log: EventLog,
    test: Requests,
    row_maps: dict[str, RowMap],
    schema: Schema,
) -> tuple[dict[str, Any], ...]:
    """The first requests of the test as raw records."""
    few = test.take(np.arange(min(len(test), examples.COUNT)))
    count = len(few)
    at = examples.histories(log.offsets, few.user, few.cut)
    behavior = _rows(row_maps, "behavior", list(BEHAVIORS))
    kind = np.argmax(log.event["behavior"][at][:, None] == behavior, axis=1)
    kept = examples.RawValues(
        requests=np.stack([few.user, few.cut, few.time], axis=1),
        items={
            "item": pa.array(range(world.preset.items)),
            "category": pa.array(world.category),
            "price_level": pa.array(world.price_level),
            "price": pa.array(world.price),
        },
        users={"user_segment": pa.array(SEGMENTS).take(pa.array(world.segment[few.user]))},
        context={
            "scene": pa.array(SCENES).take(pa.array(pages.scene[span][:count])),
            "hour": pa.array(pages.hour[span][:count]),
        },
        at=at,
        events={"behavior": pa.array(BEHAVIORS).take(pa.array(kind))},
    )
    slots = list(range(few.candidate.shape[1]))
    return kept.records(log, few, schema, {"position": [slots] * count})


def questions(data: Dataset, requests: Requests) -> dict[str, np.ndarray]:
    """`user`, `round`, `scene`, `hour` of requests, as `World`'s methods take them."""
    rows = _rows(data.row_maps, "scene", list(SCENES))
    scene = np.argmax(requests.context["scene"][:, None] == rows, axis=1)
    return {
        "user": requests.user,
        "round": requests.time // ROUND_SECONDS,
        "scene": scene,
        "hour": requests.time % ROUND_SECONDS // 3600,
    }


def _schema(row_maps: dict[str, RowMap]) -> Schema:
    item_fields = ("item", "category", "price_level")
    return Schema(
        tables=tuple(
            Table(name=table, rows=row_maps[table].rows, dim=dim) for table, dim in _DIMS.items()
        ),
        fields=(
            Field(name="user_segment", role="user", value="string"),
            Field(name="scene", role="context", value="string"),
            Field(name="hour", role="context"),
            *(Field(name=field, role="history") for field in item_fields),
            Field(name="behavior", role="history", value="string"),
            *(Field(name=field, role="candidate") for field in item_fields),
            Field(name="position", role="candidate"),
            Field(name="price", role="candidate", kind="dense", transform="log1p"),
        ),
        tasks=("click", "conversion"),
    )


def _row_maps(p: Preset, exposed: np.ndarray) -> dict[str, RowMap]:
    values = {
        "item": exposed,
        "category": np.arange(p.categories),
        "price_level": np.arange(PRICE_LEVELS),
        "position": np.arange(p.slots),
        "behavior": list(BEHAVIORS),
        "user_segment": list(SEGMENTS),
        "scene": list(SCENES),
        "hour": np.arange(24),
    }
    return {table: KnownRows.of(signatures(table, value)) for table, value in values.items()}


def _rows(row_maps, table, values):
    return row_maps[table](signatures(table, values))


def _event_log(world: World, pages: PageLog, row_maps: dict[str, RowMap]) -> EventLog:
    p = world.preset
    flags = (pages.clicked, pages.carted, pages.bought)
    times = (pages.click_time, pages.cart_time, pages.buy_time)
    user_of = np.broadcast_to(pages.user[:, None], pages.candidate.shape)
    user = np.concatenate([user_of[flag] for flag in flags])
    item = np.concatenate([pages.candidate[flag] for flag in flags])
    time = np.concatenate([t[flag] for t, flag in zip(times, flags, strict=True)])
    kind = np.repeat(np.arange(len(BEHAVIORS)), [np.count_nonzero(flag) for flag in flags])
    order = np.lexsort((kind, time, user))
    encode = lambda table, values: _rows(row_maps, table, values)
    return EventLog(
        offsets=np.concatenate([[0], np.cumsum(np.bincount(user, minlength=p.users))]),
        item=item[order].astype(np.int32),
        time=time[order].astype(np.int64),
        event={"behavior": encode("behavior", list(BEHAVIORS))[kind[order]]},
        items={
            "item": encode("item", np.arange(p.items)),
            "category": encode("category", world.category),
            "price_level": encode("price_level", world.price_level),
            "price": transforms.function("log1p")(world.price),
        },
        users={"user_segment": encode("user_segment", list(SEGMENTS))[world.segment]},
    )


def _requests(pages: PageLog, span: slice, log: EventLog, row_maps) -> Requests:
    user, time = pages.user[span], pages.time[span]
    # One sorted key for (user, time), so that a single search finds every cut.
    far = int(max(log.time.max(initial=0), pages.time.max())) + 1
    owner = np.repeat(np.arange(log.num_users), log.lengths())
    cut = np.searchsorted(owner * far + log.time, user * far + time) - log.offsets[user]
    candidate = pages.candidate[span].astype(np.int32)
    position = _rows(row_maps, "position", np.arange(candidate.shape[1]))
    return Requests(
        user=user.astype(np.int32),
        cut=cut.astype(np.int64),
        time=time.astype(np.int64),
        candidate=candidate,
        label={
            "click": pages.clicked[span].astype(np.float32),
            "conversion": pages.bought[span].astype(np.float32),
        },
        context={
            "scene": _rows(row_maps, "scene", list(SCENES))[pages.scene[span]],
            "hour": _rows(row_maps, "hour", pages.hour[span]),
        },
        shown={"position": np.broadcast_to(position, candidate.shape).copy()},
    )
