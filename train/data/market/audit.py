"""Consequences of a world's constants, found without training a network.

Logistic regressions of a few features answer the question that a preset's purpose raises: what
can be known from a history if it is summed as a whole, if only the events in the candidate's
category count, or only the newest ones? The features use the items' TRUE style vectors, so they
bound what a model that must first learn them can gain; they say nothing about any model.
"""

import dataclasses

from jaxtyping import Bool, Float, Int
import numpy as np

from ...evaluation.metrics import auc
from ..dataset import Dataset
from ..event_log import EventLog, Requests
from .presets import PRICE_LEVELS
from .source import questions
from .world import World

_PRIOR = 3.0  # imaginary events without a style, which every mean is shrunk by


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audit:
    """AUC over the test impressions.

    Attributes:
      truth: of the true click probabilities; no model can pass it, but by chance.
      item: of item and context features: CTR in training, price, position, segment, scene, hour,
        and the shares of the history in the candidate's category and in its predecessor's.
      whole: the same, and the match with the mean of the whole history's styles and prices.
      sketch: the same as `whole`, and the match within one sum of width 4 x style_dims in which
        every category has its random direction: what summed embeddings can keep apart.
      local: `item`, and the match with the mean over the history in the candidate's category.
      newest: as `local`, over the newest `window` events only.
      recent: `local`, and the two shares over the newest ten events.
      crossed: `item`, and CTR in training by segment x category x price level, and by scene x
        category.
    """

    truth: float
    item: float
    whole: float
    sketch: float
    local: float
    newest: float
    recent: float
    crossed: float


def audit(world: World, data: Dataset, *, requests: int = 16_000, window: int = 100) -> Audit:
    """Fits on about `requests` training requests and scores as many of test, evenly spread."""
    spread = lambda count: slice(None, None, -(-count // requests))
    test = spread(len(data.test))
    splits = {"train": data.train.take(spread(len(data.train))), "test": data.test.take(test)}
    groups = {part: _features(world, data, split, window) for part, split in splits.items()}
    label = {part: split.label["click"].ravel() > 0 for part, split in splits.items()}
    scores = {}
    for name, parts in {
        "item": ("item",),
        "whole": ("item", "whole"),
        "sketch": ("item", "whole", "sketch"),
        "local": ("item", "local"),
        "newest": ("item", "newest"),
        "recent": ("item", "local", "recent"),
        "crossed": ("item", "crossed"),
    }.items():
        x = {
            part: np.concatenate([groups[part][group] for group in parts], axis=1)
            for part in groups
        }
        scores[name] = auc(x["test"] @ logistic(x["train"], label["train"]), label["test"])
    truth = auc(data.truth["test"]["click"][test].ravel(), label["test"])
    return Audit(truth=truth, **scores)


def logistic(
    x: Float[np.ndarray, "M F"], label: Bool[np.ndarray, " M"], *, ridge: float = 1.0
) -> Float[np.ndarray, " F"]:
    """Weights of a logistic regression by Newton's method (iteratively reweighted squares)."""
    weight = np.zeros(x.shape[1])
    for _ in range(12):
        probability = 1 / (1 + np.exp(-(x @ weight)))
        gradient = x.T @ (label - probability) - ridge * weight
        curvature = (x * (probability * (1 - probability))[:, None]).T @ x
        weight += np.linalg.solve(curvature + ridge * np.eye(len(weight)), gradient)
    return weight


def _click_through(cell: np.ndarray, clicks: np.ndarray) -> np.ndarray:
    """Log odds of clicks per impression of each cell, shrunk to the mean by 20 impressions."""
    shown = np.bincount(cell.ravel())
    clicked = np.bincount(cell.ravel(), clicks.ravel())
    mean = clicks.mean()
    rate = (clicked + 20 * mean) / (shown + 20)
    return np.log(rate / (1 - rate))


def _cells(world: World, data: Dataset, requests: Requests) -> list[np.ndarray]:
    """(R, C) cells to count in: item, segment x category x price level, scene x category."""
    p = world.preset
    category = world.category[requests.candidate]
    segment = world.segment[requests.user][:, None]
    scene = questions(data, requests)["scene"][:, None]
    level = world.price_level[requests.candidate]
    return [
        requests.candidate,
        (segment * p.categories + category) * PRICE_LEVELS + level,
        scene * p.categories + category,
    ]


def _features(
    world: World, data: Dataset, requests: Requests, window: int
) -> dict[str, np.ndarray]:
    """Groups of columns, one row per impression."""
    p = world.preset
    candidate = requests.candidate
    category = world.category[candidate]
    style, z = world.style[candidate], world.relative_price[candidate]
    user = np.broadcast_to(requests.user[:, None], candidate.shape)
    rates = []
    clicks = data.train.label["click"]
    for trained, asked in zip(
        _cells(world, data, data.train), _cells(world, data, requests), strict=True
    ):
        table = _click_through(trained, clicks)
        unseen = np.append(table, np.log(clicks.mean() / (1 - clicks.mean())))
        rates.append(unseen[np.minimum(asked, len(table))])
    code = np.random.default_rng(0).standard_normal((p.categories, 4))
    code /= np.sqrt((code * code).sum(1, keepdims=True))

    sums = _CategorySums(world, data.log)
    every = np.full(len(requests), np.iinfo(np.int64).max)
    whole, sketch = _summed(world, data.log, requests, code)
    whole = np.broadcast_to(whole, (*candidate.shape, whole.shape[-1]))
    local = sums(user, category, requests.cut, every)
    newest = sums(user, category, requests.cut, np.full(len(requests), window))
    before = np.argsort(world.successors[:, 0])[category]  # whose first successor it is
    ten = np.full(len(requests), 10)
    recent = [sums(user, c, requests.cut, ten)[..., 0] for c in (category, before)]
    earlier = sums(user, before, requests.cut, every)[..., 0]

    def match(total):
        """Match with a mean style, distance from a mean price, and how much stands behind."""
        mean = total[..., 1:] / (total[..., :1] + _PRIOR)
        return np.stack(
            [(mean[..., :-1] * style).sum(-1), np.abs(z - mean[..., -1]), np.log1p(total[..., 0])],
            axis=-1,
        )

    ask = questions(data, requests)
    segment = np.eye(4)[world.segment[requests.user]][:, 1:]
    scene = np.eye(3)[ask["scene"]][:, 1:]
    context = np.concatenate(
        [segment, scene, np.cos(2 * np.pi * (ask["hour"][:, None] - 21) / 24)], axis=1
    )
    position = np.broadcast_to(np.log(np.arange(1, candidate.shape[1] + 1)), candidate.shape)
    one, count = np.ones(z.shape), whole[..., 0] + _PRIOR
    item = np.stack([one, position, rates[0], z, local[..., 0] / count, earlier / count], axis=-1)
    context = np.broadcast_to(context[:, None], (*candidate.shape, context.shape[1]))
    sketched = np.einsum("rqd,rcq,rcd->rc", sketch, code[category], style)
    groups = {
        "item": np.concatenate([item, context], axis=-1),
        "whole": match(whole),
        "sketch": (sketched / count)[..., None],
        "local": match(local),
        "newest": match(newest),
        "recent": np.stack(recent, axis=-1),
        "crossed": np.stack(rates[1:], axis=-1),
    }
    return {name: group.reshape(-1, group.shape[-1]) for name, group in groups.items()}


class _CategorySums:
    """Counts and summed (style, price) of a user's clicks in a category, between two events."""

    def __init__(self, world: World, log: EventLog):
        self._offsets, self._categories = log.offsets, world.preset.categories
        event, user, values = _clicks(world, log)
        self._far = log.num_events + 1
        key = (user * self._categories + world.category[log.item[event]]) * self._far + event
        order = np.argsort(key)
        self._key = key[order]
        self._total = np.concatenate([np.zeros((1, values.shape[1])), values[order].cumsum(0)])

    def __call__(
        self,
        user: Int[np.ndarray, "R C"],
        category: Int[np.ndarray, "R C"],
        cut: Int[np.ndarray, " R"],
        window: Int[np.ndarray, " R"],
    ) -> np.ndarray:
        """(R, C, 1 + style_dims + 1), over the newest `window` events before the cut."""
        base = (user * self._categories + category) * self._far
        start = self._offsets[user]
        oldest = start + np.maximum(cut - window, 0)[:, None]
        low = np.searchsorted(self._key, base + oldest)
        high = np.searchsorted(self._key, base + start + cut[:, None])
        return self._total[high] - self._total[low]


def _clicks(world: World, log: EventLog):
    """Events that are clicks, their users, and their (1, style, relative price)."""
    user = np.repeat(np.arange(log.num_users), log.lengths())
    behavior = log.event["behavior"]
    # The first event of all is a click: nothing else can come first.
    event = np.flatnonzero(behavior == behavior[0])
    item = log.item[event]
    one = np.ones((len(item), 1))
    values = np.concatenate([one, world.style[item], world.relative_price[item, None]], axis=1)
    return event, user[event], values


def _summed(world: World, log: EventLog, requests: Requests, code: np.ndarray):
    """The whole history's sum, (R, 1, 1 + style_dims + 1), and its sketch, (R, 4, style_dims)."""
    event, _, values = _clicks(world, log)
    coded = code[world.category[log.item[event]]][:, :, None] * values[:, None, 1:-1]
    low = np.searchsorted(event, log.offsets[requests.user])
    high = np.searchsorted(event, log.offsets[requests.user] + requests.cut)

    def between(x):
        total = np.concatenate([np.zeros((1, *x.shape[1:])), np.cumsum(x, axis=0)])
        return total[high] - total[low]

    return between(values)[:, None], between(coded)
