"""Users and items of a market: everything that is drawn once."""

import numpy as np

from .presets import PRICE_LEVELS, SCENES, SEGMENTS, Preset

_QUINTILES = (-0.8416212, -0.2533471, 0.2533471, 0.8416212)  # of N(0, 1)


class Population:
    """Items, users and what moves them.

    Attributes:
      category, price_level, birth: (items,) ints; an item is born in its round, before it never
        shown. style: (items, style_dims). price: money. relative_price, quality, brand: N(0, 1).
      segment, join: (users,) ints; a user visits from round `join` on.
      taste: (users, categories, style_dims), of length 1. level, affinity: (users, categories).
      hot: (rounds, users) category of the passing interest. successors: (categories,
        hot_successors), what may follow each. trend: (rounds, categories) logits.
    """

    def __init__(self, preset: Preset, rng: np.random.Generator):
        self.preset = preset
        self._draw_items(rng)
        self._draw_users(rng)
        self._draw_trends(rng)
        self._draw_crosses(rng)
        self._draw_hot(rng)

    def _draw_items(self, rng):
        p = self.preset
        each = p.items // p.categories
        self.category = np.repeat(np.arange(p.categories), each)
        style = rng.standard_normal((p.items, p.style_dims))
        self.style = _unit(style) * np.sqrt(p.style_dims)
        self.relative_price = rng.standard_normal(p.items)
        self.price_level = np.digitize(self.relative_price, _QUINTILES)
        base = 3.5 + 0.6 * rng.standard_normal(p.categories)
        self.price = np.round(np.exp(base[self.category] + p.price_spread * self.relative_price), 2)
        self.quality = rng.standard_normal(p.items)
        self.brand = rng.standard_normal(p.items)
        # Births are spread evenly within each category, so that none is ever empty.
        order = (np.tile(np.arange(each), p.categories) + rng.random(p.items)) / each
        self.birth = np.floor(order * (p.catalogue_age + p.rounds)).astype(int) - p.catalogue_age
        rank = np.argsort(rng.random((p.categories, each)), axis=1).ravel() + 1.0
        category_rank = rng.permutation(p.categories) + 1.0
        self._category_popularity = category_rank**-p.category_tail
        self._popularity = rank**-p.item_tail * self._category_popularity[self.category]

    def _draw_users(self, rng):
        p = self.preset
        self.segment = choose(rng, np.asarray(p.segment_share), p.users)
        late = rng.integers(p.warmup_rounds, p.rounds, p.users)
        self.join = np.where(self.segment == SEGMENTS.index("new"), late, 0)
        own, common = np.sqrt(1 - p.shared_taste), np.sqrt(p.shared_taste)
        shape = (p.users, p.categories, p.style_dims)
        taste = own * rng.standard_normal(shape)
        taste += common * rng.standard_normal((p.users, 1, p.style_dims))
        self.taste = _unit(taste)
        self.level = own * rng.standard_normal((p.users, p.categories))
        self.level += common * rng.standard_normal((p.users, 1))
        # The Gumbel trick: categories without replacement, by popularity.
        gumbel = -np.log(-np.log1p(-rng.random((p.users, p.categories))))
        chosen = np.argsort(-(gumbel + np.log(self._category_popularity)), axis=1)
        self._lasting = chosen[:, : p.lasting_interests]
        strength = np.linspace(1.0, 0.5, p.lasting_interests)
        self._lasting_share = np.cumsum(strength) / strength.sum()
        self.affinity = np.zeros((p.users, p.categories))
        np.put_along_axis(self.affinity, self._lasting, strength[None, :], axis=1)

    def _draw_trends(self, rng):
        p = self.preset
        phase = rng.random(p.categories)
        rounds = np.arange(p.rounds)[:, None]
        season = p.season * np.sin(2 * np.pi * (rounds / p.season_rounds + phase))
        walk = p.trend_step * np.cumsum(rng.standard_normal((p.rounds, p.categories)), axis=0)
        direction = rng.permutation(np.arange(p.categories)) % 3 - 1
        shift = p.shift_size * direction * (rounds >= p.shift_round)
        self.trend = season + walk + shift

    def _draw_crosses(self, rng):
        categories = self.preset.categories
        self._segment_effect = rng.standard_normal(len(SEGMENTS))
        self._category_effect = rng.standard_normal(categories)
        self._level_effect = rng.standard_normal(PRICE_LEVELS)
        self._scene_effect = rng.standard_normal(len(SCENES))
        self._segment_cross = rng.standard_normal((len(SEGMENTS), categories, PRICE_LEVELS))
        self._scene_cross = rng.standard_normal((len(SCENES), categories))

    def _draw_hot(self, rng):
        p = self.preset
        ring = rng.permutation(p.categories)
        place = np.argsort(ring)[:, None] + 1 + np.arange(p.hot_successors)
        self.successors = ring[place % p.categories]
        users = np.arange(p.users)
        self.hot = np.empty((p.rounds, p.users), np.int16)
        for round in range(p.rounds):
            anew = (rng.random((p.users, 1)) >= self._lasting_share[:-1]).sum(-1)
            back = self._lasting[users, anew]
            branch = rng.integers(0, p.hot_successors, p.users)
            stay, follow = rng.random(p.users) < p.hot_stay, rng.random(p.users) < p.hot_follow
            if round == 0:
                self.hot[0] = back
                continue
            last = self.hot[round - 1]
            moved = np.where(follow, self.successors[last, branch], back)
            self.hot[round] = np.where(stay, last, moved)


def choose(rng, weight, size):
    """`size` draws of an index with probability in proportion to its weight."""
    share = np.cumsum(weight) / np.sum(weight)
    return np.searchsorted(share[:-1], rng.random(size), side="right")


def _unit(x):
    return x / np.sqrt((x * x).sum(-1, keepdims=True))
