r"""The market itself: who likes what, what is shown, what happens, and what would have happened.

A user u who sees item i of category c in slot t of a page looks at it and likes it independently:

    P(click) = t ** -examination_decay * sigmoid(a),   a = intercept + liking + appeal + context
    liking  = w_match <taste[u, c], style[i]> - w_fit |z[i] - level[u, c]|
              + w_interest affinity[u, c] + w_hot [c is u's hot category in this round]
    appeal  = w_quality quality - w_cheap z + w_life life(age) + trend[round, c]
              + main effects + crosses + hour
    context = -fatigue sum_{k=1..3} [c_{t-k} = c] / k - contrast (z[i] - mean z of neighbours)

where z is the price relative to the category, in standard deviations. After a click

    P(cart | click) = sigmoid(intercept + cart_liking liking + cart_brand brand[i])
    P(buy | cart)   = sigmoid(intercept - buy_price (z[i] - level[u, c]) + buy_brand brand[i])

Nothing depends on what was clicked before: histories reveal users, they do not change them. So
any page can be asked about, logged or not, in closed form.
Shapes: `R` requests, `C` candidates in page order, `N` items retrieved.
"""

from typing import NamedTuple

from jaxtyping import Bool, Float, Int
import numpy as np

from .population import Population, choose
from .presets import ROUND_SECONDS, Preset

_SECONDS_PER_SLOT = 5


class PageValue(NamedTuple):
    """Expected value of pages: clicks, purchases, and revenue in units of money."""

    clicks: Float[np.ndarray, " R"]
    purchases: Float[np.ndarray, " R"]
    revenue: Float[np.ndarray, " R"]


class Response(NamedTuple):
    """Responses of users to pages; a time (seconds) means something only where its flag is set."""

    clicked: Bool[np.ndarray, "R C"]
    carted: Bool[np.ndarray, "R C"]
    bought: Bool[np.ndarray, "R C"]
    click_time: Int[np.ndarray, "R C"]
    cart_time: Int[np.ndarray, "R C"]
    buy_time: Int[np.ndarray, "R C"]


class World(Population):
    """One market, drawn from (preset, seed); worlds of one seed share their draws."""

    def __init__(self, preset: Preset, seed: int):
        super().__init__(preset, np.random.default_rng([seed, 0]))
        self.seed = seed
        self._set_intercepts(np.random.default_rng([seed, 1]))

    # --- Questions about pages ---------------------------------------------------------------

    def click_probability(
        self,
        user: Int[np.ndarray, " R"],
        round: Int[np.ndarray, " R"],
        candidates: Int[np.ndarray, "R C"],
        *,
        scene: Int[np.ndarray, " R"],
        hour: Int[np.ndarray, " R"],
    ) -> Float[np.ndarray, "R C"]:
        """P(click) of every slot of these pages, in this order; `scene` indexes `SCENES`."""
        attraction = self.attraction(user, round, candidates, scene=scene, hour=hour)
        logit = attraction + self._context(candidates)
        return self.examination(candidates.shape[1]) * _sigmoid(logit)

    def conversion_probability(
        self,
        user: Int[np.ndarray, " R"],
        round: Int[np.ndarray, " R"],
        candidates: Int[np.ndarray, "R C"],
    ) -> Float[np.ndarray, "R C"]:
        """P(buy | click), whether or not the item would be clicked; neighbours do not matter."""
        cart, buy = self._cart_and_buy(user, round, candidates)
        return cart * buy

    def page_value(
        self,
        user: Int[np.ndarray, " R"],
        round: Int[np.ndarray, " R"],
        candidates: Int[np.ndarray, "R C"],
        *,
        scene: Int[np.ndarray, " R"],
        hour: Int[np.ndarray, " R"],
    ) -> PageValue:
        """Expected clicks, purchases and revenue of each page: sums over its slots."""
        click = self.click_probability(user, round, candidates, scene=scene, hour=hour)
        buy = click * self.conversion_probability(user, round, candidates)
        revenue = buy * self.price[candidates]
        return PageValue(click.sum(1), buy.sum(1), revenue.sum(1))

    def attraction(
        self,
        user: Int[np.ndarray, " R"],
        round: Int[np.ndarray, " R"],
        candidates: Int[np.ndarray, "R C"],
        *,
        scene: Int[np.ndarray, " R"],
        hour: Int[np.ndarray, " R"],
    ) -> Float[np.ndarray, "R C"]:
        """The pointwise logit: an item that is looked at and has no neighbours."""
        p = self.preset
        category, level = self.category[candidates], self.price_level[candidates]
        segment = self.segment[user][:, None]
        effects = (
            self._segment_effect[segment]
            + self._category_effect[category]
            + self._level_effect[level]
            + self._scene_effect[scene][:, None]
        )
        crosses = (
            self._segment_cross[segment, category, level]
            + self._scene_cross[scene[:, None], category]
        ) / np.sqrt(2)
        life = self._life(round[:, None] - self.birth[candidates])
        return (
            self._click_intercept
            + self.liking(user, round, candidates)
            + p.quality_weight * self.quality[candidates]
            - p.cheap_weight * self.relative_price[candidates]
            + p.life_weight * life
            + self.trend[round[:, None], category]
            + p.additive_weight * effects
            + p.cross_weight * crosses
            + p.hour_weight * np.cos(2 * np.pi * (hour[:, None] - 21) / 24)
        )

    def liking(
        self,
        user: Int[np.ndarray, " R"],
        round: Int[np.ndarray, " R"],
        candidates: Int[np.ndarray, "R C"],
    ) -> Float[np.ndarray, "R C"]:
        """The part of the logit that belongs to the user's interests."""
        p = self.preset
        match, distance, affinity, hot = self.signals(user, round, candidates)
        return (
            p.match_weight * match
            - p.price_fit_weight * distance
            + p.interest_weight * affinity
            + p.hot_weight * hot
        )

    def signals(
        self,
        user: Int[np.ndarray, " R"],
        round: Int[np.ndarray, " R"],
        candidates: Int[np.ndarray, "R C"],
    ) -> tuple[Float[np.ndarray, "R C"], ...]:
        """Signals of users and items: match, distance of prices, affinity, hot or not."""
        category = self.category[candidates]
        taste = self.taste[user[:, None], category]
        style = self.style[candidates]
        match = np.asarray(
            sum(taste[..., k] * style[..., k] for k in range(self.preset.style_dims))
        )
        distance = np.abs(self.relative_price[candidates] - self.level[user[:, None], category])
        hot = (self.hot[round, user][:, None] == category).astype(float)
        return match, distance, self.affinity[user[:, None], category], hot

    def examination(self, slots: int) -> Float[np.ndarray, " C"]:
        """P(looked at) of each slot."""
        return np.arange(1, slots + 1) ** -self.preset.examination_decay

    # --- Making a log ------------------------------------------------------------------------

    def visits(
        self, rng: np.random.Generator, round: int
    ) -> tuple[
        Int[np.ndarray, " R"], Int[np.ndarray, " R"], Int[np.ndarray, " R"], Int[np.ndarray, " R"]
    ]:
        """Visits of a round: user, scene, hour, and time in seconds, by time."""
        p = self.preset
        chance = np.asarray(p.visit_probability)[self.segment]
        user = np.flatnonzero((rng.random(p.users) < chance) & (self.join <= round))
        scene = choose(rng, np.asarray(p.scene_share), len(user))
        weight = 1.2 + np.cos(2 * np.pi * (np.arange(24) - 21) / 24)  # evenings are busy
        hour = choose(rng, weight, len(user))
        second = rng.integers(0, 3600, len(user))
        time = round * ROUND_SECONDS + hour * 3600 + second
        order = np.argsort(time, kind="stable")
        return user[order], scene[order], hour[order], time[order]

    def retrieve(
        self,
        rng: np.random.Generator,
        round: int,
        user: Int[np.ndarray, " R"],
        *,
        scene: Int[np.ndarray, " R"],
        hour: Int[np.ndarray, " R"],
        size: int,
    ) -> Int[np.ndarray, "R N"]:
        """The `size` items that the pre-ranker puts first, best first; all born, all distinct.

        A pool is drawn from the user's lasting categories, the hot one and what is popular
        (`scene_mix`), `size` random items are added, and the whole is sorted by
        prerank_skill * logit + N(0, 1). A logged page is `size = slots`, in this order.
        """
        p = self.preset
        requests = len(user)
        weight = self._exposure(round)
        total = np.cumsum(weight)
        per_category = p.items // p.categories
        ends = total[per_category - 1 :: per_category]
        starts = np.concatenate([[0.0], ends[:-1]])

        mix = np.cumsum(np.asarray(p.scene_mix), axis=1)[scene]
        source = rng.random((requests, p.pool))
        lasting = (rng.random((requests, p.pool, 1)) >= self._lasting_share[:-1]).sum(-1)
        category = self._lasting[user[:, None], lasting]
        category = np.where(source < mix[:, :1], category, self.hot[round, user][:, None])
        popular = source >= mix[:, 1:2]
        low = np.where(popular, 0.0, starts[category])
        high = np.where(popular, total[-1], ends[category])
        point = low + rng.random((requests, p.pool)) * (high - low)
        point = np.minimum(point, np.nextafter(high, 0.0))
        drawn = np.searchsorted(total, point, side="right")

        born = rng.permutation(np.flatnonzero(weight > 0))
        if size > len(born):
            raise ValueError(f"size must be <= the {len(born)} items born, got {size}.")
        first = rng.integers(0, len(born), (requests, 1))
        stride = rng.integers(1, max(2, len(born) // size), (requests, 1))
        explored = born[(first + stride * np.arange(size)) % len(born)]

        pool = np.concatenate([explored, drawn], axis=1)
        rounds = np.full(requests, round)
        score = p.prerank_skill * self.attraction(user, rounds, pool, scene=scene, hour=hour)
        score = score + rng.standard_normal(pool.shape)
        score[_repeated(pool)] = -np.inf
        best = np.argsort(-score, axis=1, kind="stable")[:, :size]
        return np.take_along_axis(pool, best, axis=1)

    def respond(
        self,
        rng: np.random.Generator,
        user: Int[np.ndarray, " R"],
        round: Int[np.ndarray, " R"],
        candidates: Int[np.ndarray, "R C"],
        *,
        scene: Int[np.ndarray, " R"],
        hour: Int[np.ndarray, " R"],
        time: Int[np.ndarray, " R"],
    ) -> Response:
        """Draws what these users do with these pages, shown at `time` (seconds)."""
        p = self.preset
        click = self.click_probability(user, round, candidates, scene=scene, hour=hour)
        cart, buy = self._cart_and_buy(user, round, candidates)
        clicked = rng.random(click.shape) < click
        carted = clicked & (rng.random(click.shape) < cart)
        bought = carted & (rng.random(click.shape) < buy)
        slot = np.arange(1, candidates.shape[1] + 1)
        click_time = time[:, None] + _SECONDS_PER_SLOT * slot
        cart_time = click_time + _delay(rng, click.shape, p.cart_delay_hours)
        buy_time = cart_time + _delay(rng, click.shape, p.buy_delay_hours)
        return Response(clicked, carted, bought, click_time, cart_time, buy_time)

    def _set_intercepts(self, rng):
        """Intercepts at which pages of sampled rounds reach the preset's three rates."""
        p = self.preset
        self._click_intercept = self._cart_intercept = self._buy_intercept = 0.0
        clicks, carts, buys = [], [], []
        for round in np.unique(np.linspace(0, p.rounds - 1, 8).astype(int)).tolist():
            user, scene, hour, _ = self.visits(rng, round)
            rounds = np.full(len(user), round)
            page = self.retrieve(rng, round, user, scene=scene, hour=hour, size=p.slots)
            attraction = self.attraction(user, rounds, page, scene=scene, hour=hour)
            clicks.append(attraction + self._context(page))
            cart, buy = self._cart_and_buy_logits(user, rounds, page)
            carts.append(cart)
            buys.append(buy)
        click, cart, buy = (np.concatenate(logits) for logits in (clicks, carts, buys))
        seen = np.broadcast_to(self.examination(p.slots), click.shape)
        self._click_intercept = _intercept(click, seen / seen.size, p.click_rate)
        weight = seen * _sigmoid(click + self._click_intercept)
        self._cart_intercept = _intercept(cart, weight / weight.sum(), p.cart_rate)
        weight = weight * _sigmoid(cart + self._cart_intercept)
        self._buy_intercept = _intercept(buy, weight / weight.sum(), p.buy_rate)

    # --- Parts of the formulas ---------------------------------------------------------------

    def _context(self, candidates):
        p = self.preset
        category, z = self.category[candidates], self.relative_price[candidates]
        context = np.zeros(candidates.shape)
        for k in range(1, min(4, candidates.shape[1])):
            context[:, k:] -= p.fatigue / k * (category[:, k:] == category[:, :-k])
        if candidates.shape[1] > 1:
            around, neighbours = np.zeros(z.shape), np.zeros(z.shape[1])
            around[:, 1:] += z[:, :-1]
            around[:, :-1] += z[:, 1:]
            neighbours[1:] += 1
            neighbours[:-1] += 1
            context -= p.contrast * (z - around / neighbours)
        return context

    def _cart_and_buy_logits(self, user, round, candidates):
        p = self.preset
        brand = self.brand[candidates]
        level = self.level[user[:, None], self.category[candidates]]
        cart = p.cart_liking * self.liking(user, round, candidates) + p.cart_brand * brand
        buy = p.buy_brand * brand - p.buy_price * (self.relative_price[candidates] - level)
        return cart, buy

    def _cart_and_buy(self, user, round, candidates):
        cart, buy = self._cart_and_buy_logits(user, round, candidates)
        return _sigmoid(cart + self._cart_intercept), _sigmoid(buy + self._buy_intercept)

    def _life(self, age):
        p = self.preset
        age = np.maximum(age, 0) + 1.0
        return (1 - np.exp(-age / p.life_rise)) * np.exp(-age / p.life_decay)

    def _exposure(self, round):
        """(items,) how readily each item is put into a pool; 0 before its birth."""
        life = 0.2 + self._life(round - self.birth)
        weight = self._popularity * np.exp(self.trend[round, self.category]) * life
        return np.where(self.birth <= round, weight, 0.0)


def _sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def _delay(rng, shape, mean_hours):
    """Whole seconds, at least one, of an exponential delay."""
    return 1 + np.floor(-np.log1p(-rng.random(shape)) * mean_hours * 3600).astype(np.int64)


def _repeated(items):
    """Marks every occurrence of an item in its row but the first."""
    order = np.argsort(items, axis=1, kind="stable")
    ordered = np.take_along_axis(items, order, axis=1)
    again = np.zeros(items.shape, bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    repeated = np.empty_like(again)
    np.put_along_axis(repeated, order, again, axis=1)
    return repeated


def _intercept(logit, weight, rate):
    """b with sum(weight * sigmoid(logit + b)) = rate, by bisection."""
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        if np.sum(weight * _sigmoid(logit + middle)) < rate:
            low = middle
        else:
            high = middle
    return (low + high) / 2
