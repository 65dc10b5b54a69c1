r"""The listwise market: slates whose items change each other's chances, and what each is worth.

A market's users ask; an upstream ranker sends the N candidates of each request, sorted by
score = b + N(0, rank_noise^2) with b the pointwise logit of `World.attraction`. A re-ranker picks
and orders M of them. The user reads the slate from the top and likes slot t with probability

    a_t = sigmoid(b_t - fatigue sum_{k=1..3} [c_{t-k} = c_t] / k
                      - contrast (z_t - mean z of the neighbours)
                      - shadow max(0, max_{k<t} b_k - b_t))

with z the price relative to the category, and clicks what he likes and looks at:

    "cascade"     e_1 = 1,  e_{t+1} = e_t ((1 - a_t) after_skip + a_t after_click)
    "position"    e_t = t ** -examination_decay

    worth in clicks  U = sum_t e_t a_t      in purchases  sum_t e_t a_t P(buy | click)

The cascade is the dependent click model of Guo et al., "Efficient Multiple-Click Models in Web
Search", WSDM 2009. The worth of any slate, logged or not, follows in closed form: it is the judge,
and no model ever sees it.
Shapes: `R` requests, `N` candidates in upstream order, `M` slots, `K` slates per request.
"""

import dataclasses
import itertools
from typing import Literal, NamedTuple

from jaxtyping import Bool, Float, Int
import numpy as np

from .presets import PRESETS, Preset
from .world import World

_BLOCK = 1 << 22  # numbers per array while slates are searched


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlatePreset:
    """A market and how its slates are read. Weights are in logits, times in hours.

    Attributes:
      version: raised whenever a number changes, the market's included.
      purpose: what the preset is for, and who must (not) win there.
      market: where users and items come from.
      candidates, slots: N and M.
      rank_noise: standard deviation of the upstream ranker's error.
      fatigue, contrast, shadow: see above.
      examination: "cascade" or "position".
      after_skip, after_click: chance to look at the next slot, without and with a click.
      examination_decay: of "position".
      buy_delay: mean of the exponential delay from click to purchase.
    """

    version: int
    purpose: str
    market: Preset
    candidates: int = 20
    slots: int = 10
    rank_noise: float = 0.8
    fatigue: float = 1.0
    contrast: float = 0.5
    shadow: float = 0.25
    examination: Literal["cascade", "position"] = "cascade"
    after_skip: float = 0.93
    after_click: float = 0.75
    examination_decay: float = 0.35
    buy_delay: float = 2.0


_CASCADE = SlatePreset(
    version=1,
    purpose="Context matters, and a click makes the rest less likely to be seen: orders differ in "
    "worth, and the pointwise sort is not the best of them.",
    market=PRESETS["standard"],
)
_NOTHING = dict(fatigue=0.0, contrast=0.0, shadow=0.0)

SLATES: dict[str, SlatePreset] = {
    "cascade": _CASCADE,
    "pbm": dataclasses.replace(
        _CASCADE,
        purpose="Slots are looked at by their position alone, whatever stands above.",
        examination="position",
    ),
    "no_context": dataclasses.replace(
        _CASCADE,
        purpose="Neighbours do not matter: sorting by the pointwise logit is optimal, and no "
        "re-ranker may beat it.",
        **_NOTHING,
    ),
    "strong_context": dataclasses.replace(
        _CASCADE,
        purpose="Context matters twice as much: re-rankers must win over the pointwise sort.",
        fatigue=2.0,
        contrast=1.0,
        shadow=0.5,
    ),
    "drift": dataclasses.replace(
        _CASCADE,
        purpose="Categories drift fast and jump: what was learned before is stale, and only what "
        "adapts at serving time or keeps learning holds up.",
        market=PRESETS["drift"],
    ),
    "delayed": dataclasses.replace(
        _CASCADE,
        purpose="Purchases arrive days after their clicks: who waits for them learns late, who "
        "does not learns that nobody buys.",
        buy_delay=48.0,
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SlateRequests:
    """Requests, their candidates in upstream order, and the truth about them.

    Attributes:
      user, round, scene, hour: (R,) as in `World`.
      candidate: (R, N) items, all distinct, by falling score.
      score: (R, N) the upstream ranker's.
      base, category, price: (R, N) b, the category, and z. conversion: (R, N) P(buy | click).
    """

    user: Int[np.ndarray, " R"]
    round: Int[np.ndarray, " R"]
    scene: Int[np.ndarray, " R"]
    hour: Int[np.ndarray, " R"]
    candidate: Int[np.ndarray, "R N"]
    score: Float[np.ndarray, "R N"]
    base: Float[np.ndarray, "R N"]
    category: Int[np.ndarray, "R N"]
    price: Float[np.ndarray, "R N"]
    conversion: Float[np.ndarray, "R N"]

    def __len__(self) -> int:
        return len(self.user)

    def take(self, index: np.ndarray | slice) -> "SlateRequests":
        """The requests at `index`."""
        columns = {f.name: getattr(self, f.name)[index] for f in dataclasses.fields(self)}
        return SlateRequests(**columns)


class Feedback(NamedTuple):
    """Responses to exposed slates; a delay (hours after the click) counts where bought is set."""

    clicked: Bool[np.ndarray, "R M"]
    bought: Bool[np.ndarray, "R M"]
    delay: Float[np.ndarray, "R M"]


class Worth(NamedTuple):
    """Expected value of slates."""

    clicks: Float[np.ndarray, "*lead"]
    purchases: Float[np.ndarray, "*lead"]


class SlateWorld:
    """A listwise market, drawn from (preset, seed)."""

    def __init__(self, preset: SlatePreset, seed: int = 0):
        self.preset = preset
        self.world = World(preset.market, seed)

    # --- Requests ----------------------------------------------------------------------------

    def requests(self, rng: np.random.Generator, count: int, rounds: range) -> SlateRequests:
        """`count` requests, evenly spread over these rounds, in their order."""
        world, p = self.world, self.preset
        sizes = np.full(len(rounds), count // len(rounds))
        sizes[: count % len(rounds)] += 1
        parts = []
        for round, size in zip(rounds, sizes, strict=True):
            user, scene, hour, _ = world.visits(rng, round)
            # A user may ask more than once: nothing depends on what he saw before.
            pick = rng.integers(0, len(user), size)
            user, scene, hour = user[pick], scene[pick], hour[pick]
            item = world.retrieve(rng, round, user, scene=scene, hour=hour, size=p.candidates)
            at = np.full(size, round)
            base = world.attraction(user, at, item, scene=scene, hour=hour)
            score = base + p.rank_noise * rng.standard_normal(base.shape)
            order = np.argsort(-score, axis=1, kind="stable")
            sort = lambda x, order=order: np.take_along_axis(x, order, axis=1)
            item = sort(item)
            parts.append(
                SlateRequests(
                    user=user,
                    round=at,
                    scene=scene,
                    hour=hour,
                    candidate=item,
                    score=sort(score),
                    base=sort(base),
                    category=world.category[item],
                    price=world.relative_price[item],
                    conversion=world.conversion_probability(user, at, item),
                )
            )
        names = [field.name for field in dataclasses.fields(SlateRequests)]
        return SlateRequests(
            **{name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        )

    # --- The judge ---------------------------------------------------------------------------

    def click_probability(
        self, requests: SlateRequests, order: Int[np.ndarray, "R *k M"]
    ) -> Float[np.ndarray, "R *k M"]:
        """P(click) of every slot; `order` indexes the candidates of each request."""
        p = self.preset
        at = lambda x: _gather(x, order)
        base, category, price = at(requests.base), at(requests.category), at(requests.price)
        liked = _sigmoid(base + _context(p, base, category, price))
        return _examination(p, liked) * liked

    def worth(self, requests: SlateRequests, order: Int[np.ndarray, "R *k M"]) -> Worth:
        """Expected clicks and purchases of each slate."""
        click = self.click_probability(requests, order)
        buy = click * _gather(requests.conversion, order)
        return Worth(click.sum(axis=-1), buy.sum(axis=-1))

    def attraction(self, requests: SlateRequests) -> Float[np.ndarray, "R N"]:
        """The chance that each candidate is clicked when it stands alone: graded relevance."""
        return _sigmoid(requests.base)

    def feedback(
        self, rng: np.random.Generator, requests: SlateRequests, order: Int[np.ndarray, "R M"]
    ) -> Feedback:
        """Draws what the users do with these slates, reading from the top."""
        p = self.preset
        at = lambda x: _gather(x, order)
        base, category, price = at(requests.base), at(requests.category), at(requests.price)
        liked = rng.random(order.shape) < _sigmoid(base + _context(p, base, category, price))
        drawn = rng.random(order.shape)
        clicked = np.zeros(order.shape, bool)
        looks = np.ones(len(order), bool)
        for slot in range(order.shape[1]):
            if p.examination == "position":
                looks = drawn[:, slot] < (slot + 1.0) ** -p.examination_decay
            clicked[:, slot] = looks & liked[:, slot]
            stays = np.where(clicked[:, slot], p.after_click, p.after_skip)
            looks = looks & (drawn[:, slot] < stays)
        bought = clicked & (rng.random(order.shape) < at(requests.conversion))
        return Feedback(clicked, bought, rng.exponential(p.buy_delay, order.shape))

    # --- Who decides the order -----------------------------------------------------------------

    def plackett_luce(
        self, rng: np.random.Generator, requests: SlateRequests, inverse_temperature: float
    ) -> Int[np.ndarray, "R M"]:
        """A logging policy: candidates drawn one by one by exp(inverse_temperature * score).

        1.5 keeps to the upstream order (a narrow log), 0.5 explores.
        """
        noisy = inverse_temperature * requests.score + rng.gumbel(size=requests.score.shape)
        return np.argsort(-noisy, axis=1)[:, : self.preset.slots]

    def pointwise(self, requests: SlateRequests) -> Int[np.ndarray, "R M"]:
        """The best candidates by their true pointwise logit, best first."""
        return np.argsort(-requests.base, axis=1, kind="stable")[:, : self.preset.slots]

    def upstream(self, requests: SlateRequests) -> Int[np.ndarray, "R M"]:
        """The order of the upstream ranker."""
        first = np.arange(self.preset.slots)
        return np.broadcast_to(first, (len(requests), self.preset.slots)).copy()

    def exact_oracle(self, requests: SlateRequests, slots: int) -> Int[np.ndarray, "R M"]:
        """The order of the most expected clicks, by trying all N! / (N - M)! of them.

        Raises:
          ValueError: more than 20,000 orders.
        """
        count = requests.base.shape[1]
        tried = 1
        for n in range(count, count - slots, -1):
            tried *= n
        if not 0 < slots <= count or tried > 20_000:
            raise ValueError(
                f"slots must be in 1..{count} with at most 20,000 orders, got {slots}: "
                f"{tried:,} orders; use beam_oracle."
            )
        orders = np.array(list(itertools.permutations(range(count), slots)))
        best = np.empty((len(requests), slots), int)
        step = max(1, _BLOCK // orders.size)
        for start in range(0, len(requests), step):
            part = requests.take(slice(start, start + step))
            everywhere = np.broadcast_to(orders, (len(part), *orders.shape))
            best[start : start + step] = orders[self.worth(part, everywhere).clicks.argmax(axis=1)]
        return best

    def beam_oracle(
        self, requests: SlateRequests, slots: int | None = None, *, beam: int = 64
    ) -> Int[np.ndarray, "R M"]:
        """A strong order by beam search with the true worth of every prefix: a lower bound.

        A prefix is worth what it would be as a whole slate.
        """
        slots = self.preset.slots if slots is None else slots
        count = requests.base.shape[1]
        if not 0 < slots <= count:
            raise ValueError(f"slots must be in 1..{count}, the candidates, got {slots}.")
        found = np.empty((len(requests), slots), int)
        step = max(1, _BLOCK // (beam * count * slots))
        for start in range(0, len(requests), step):
            part = requests.take(slice(start, start + step))
            kept = np.zeros((len(part), 1, 0), int)
            for _ in range(slots):
                kept = self._extended(part, kept, beam)
            found[start : start + step] = kept[:, 0]
        return found

    def _extended(self, requests, prefixes, beam):
        """The best prefixes with one more slot, best first."""
        rows, width, length = prefixes.shape
        count = requests.base.shape[1]
        shape = (rows, width, count)
        longer = np.empty((*shape, length + 1), int)
        longer[..., :length] = prefixes[:, :, None]
        longer[..., length] = np.arange(count)
        value = self.worth(requests, longer).clicks
        value[(prefixes[:, :, None] == np.arange(count)[:, None]).any(axis=-1)] = -np.inf
        value = value.reshape(rows, -1)
        best = np.argsort(-value, axis=1, kind="stable")
        # All of them are real: fewer than `beam` exist only while prefixes are short.
        real = np.isfinite(value).sum(axis=1).min()
        best = best[:, : min(beam, real), None]
        return np.take_along_axis(longer.reshape(rows, -1, length + 1), best, axis=1)


def _gather(x, order):
    """(R, ..., M) of x (R, N) at each request's order; no slot may be empty."""
    if order.size and not 0 <= order.min() <= order.max() < x.shape[1]:
        raise ValueError(
            f"order must index candidates 0..{x.shape[1] - 1}, got {order.min()}..{order.max()}."
        )
    flat = order.reshape(len(order), -1)
    return np.take_along_axis(x, flat, axis=1).reshape(order.shape)


def _context(p, base, category, price):
    slots = base.shape[-1]
    context = np.zeros(base.shape)
    for k in range(1, min(4, slots)):
        context[..., k:] -= p.fatigue / k * (category[..., k:] == category[..., :-k])
    if slots > 1:
        around, neighbours = np.zeros(base.shape), np.full(slots, 2)
        around[..., 1:] += price[..., :-1]
        around[..., :-1] += price[..., 1:]
        neighbours[[0, -1]] = 1
        context -= p.contrast * (price - around / neighbours)
        highest = np.maximum.accumulate(base[..., :-1], axis=-1)
        context[..., 1:] -= p.shadow * np.maximum(0.0, highest - base[..., 1:])
    return context


def _examination(p, liked):
    slots = liked.shape[-1]
    if p.examination == "position":
        return np.arange(1.0, slots + 1) ** -p.examination_decay
    stays = (1 - liked) * p.after_skip + liked * p.after_click
    first = np.ones((*liked.shape[:-1], 1))
    return np.concatenate([first, stays[..., :-1].cumprod(axis=-1)], axis=-1)


def _sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))
