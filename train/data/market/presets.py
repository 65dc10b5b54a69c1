"""The constants of every built-in world, frozen, with a version each.

A control differs from its partner in a few named constants only, and says which kind of model it
was made to reward or to refuse. The constants come from what is usual in shops and from
`audit.py`, which trains no network; they are not to be tuned on a model's results. Who changes
a number raises `version`, and every result quoted for the old version is void.
"""

import dataclasses

SEGMENTS = ("heavy", "regular", "light", "new")
SCENES = ("home", "category", "search")
BEHAVIORS = ("click", "cart", "buy")
PRICE_LEVELS = 5
ROUND_SECONDS = 24 * 3600


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """Everything that a world is made of. Weights are in logits, times in rounds of one day.

    Attributes:
      version: raised whenever a number of the preset changes.
      purpose: what the preset is for, and who must (not) win there.

      users, items, categories: sizes; every category holds the same number of items.
      style_dims: length of the style and taste vectors.
      slots: items of a page. pool: items that the pre-ranker scores for one page.
      warmup_rounds: rounds that give history only. train_rounds, validation_rounds, test_rounds:
        the rounds that follow. In a round a user opens one page or none.

      segment_share: how many users are heavy, regular, light, new.
      visit_probability: chance per round that a user of each segment opens a page.
      scene_share: how requests fall on home, category page, search-compensation.
      scene_mix: for each scene the parts of the pool that come from the user's lasting
        categories, from the hot category, and from what is popular; random items are added.

      lasting_interests: categories that a user keeps liking.
      shared_taste: in [0, 1], variance share of a user's taste (style and price level) that is
        the same in all categories: 0 = every category its own, 1 = one taste for everything.
      hot_stay: chance per round that the hot category stays.
      hot_follow: chance that a change goes to a successor of the last hot category (and not to
        one of the user's lasting categories).
      hot_successors: categories lie on a ring; that many next ones succeed each category.

      match_weight: of <taste, style>, which has mean 0 and variance 1.
      price_fit_weight: of -|relative price - the user's level|, in standard deviations.
      interest_weight: of the lasting interest in the category, in [0, 1].
      hot_weight: of being in the hot category.
      quality_weight: of the item's quality, N(0, 1). cheap_weight: of minus relative price.
      life_weight: of the life cycle (1 - exp(-age / life_rise)) exp(-age / life_decay).
      additive_weight: of main effects of segment, category, price level and scene, N(0, 1) each.
      cross_weight: of tables segment x category x price level and scene x category, N(0, 1).
      hour_weight: of cos(2 pi (hour - 21) / 24).
      fatigue: lost for a same-category item k = 1..3 slots above: fatigue / k.
      contrast: lost per unit of relative price above the mean of the two neighbours.
      examination_decay: slot t = 1.. is looked at with probability t ** -examination_decay.

      click_rate: clicks per impression that the intercept is set to reach.
      cart_rate, buy_rate: the same for carts per click, and purchases per cart.
      cart_liking: how much of the click logit's user part (match, price fit, lasting and hot
        interest) also drives carts. cart_brand: of the brand's strength, N(0, 1).
      buy_price: lost per unit of relative price above the user's level. buy_brand: of the brand.
      cart_delay_hours, buy_delay_hours: means of exponential delays, click to cart to purchase.

      catalogue_age: the oldest item was born that many rounds before the first.
      life_rise, life_decay: rounds.
      category_tail, item_tail: popularity falls as rank ** -tail.
      price_spread: standard deviation of log price within a category.
      season: amplitude of each category's cycle of `season_rounds` rounds.
      trend_step: standard deviation of a category's random step per round.
      shift_round, shift_size: the round of the sudden shift, and how far each category moves up
        or down (a third of them each, a third stays).
      prerank_skill: pre-ranking score = skill * logit + N(0, 1).
    """

    version: int
    purpose: str

    users: int
    items: int
    categories: int
    style_dims: int = 3
    slots: int = 10
    pool: int = 30
    warmup_rounds: int
    train_rounds: int
    validation_rounds: int
    test_rounds: int

    segment_share: tuple[float, ...] = (0.25, 0.45, 0.20, 0.10)
    visit_probability: tuple[float, ...] = (0.95, 0.60, 0.25, 0.60)
    scene_share: tuple[float, ...] = (0.60, 0.25, 0.15)
    scene_mix: tuple[tuple[float, ...], ...] = (
        (0.60, 0.20, 0.20),
        (0.30, 0.60, 0.10),
        (0.40, 0.30, 0.30),
    )

    lasting_interests: int = 6
    shared_taste: float = 0.0
    hot_stay: float = 0.85
    hot_follow: float = 0.5
    hot_successors: int = 2

    match_weight: float = 1.3
    price_fit_weight: float = 0.4
    interest_weight: float = 0.5
    hot_weight: float = 1.0
    quality_weight: float = 0.4
    cheap_weight: float = 0.1
    life_weight: float = 0.5
    additive_weight: float = 0.15
    cross_weight: float = 0.15
    hour_weight: float = 0.15
    fatigue: float = 0.4
    contrast: float = 0.2
    examination_decay: float = 0.35

    click_rate: float = 0.15
    cart_rate: float = 0.30
    buy_rate: float = 0.35
    cart_liking: float = 0.4
    cart_brand: float = 0.5
    buy_price: float = 0.5
    buy_brand: float = 0.5
    cart_delay_hours: float = 0.5
    buy_delay_hours: float = 24.0

    catalogue_age: int = 180
    life_rise: float = 3.0
    life_decay: float = 60.0
    category_tail: float = 0.5
    item_tail: float = 0.7
    price_spread: float = 0.5
    season: float = 0.2
    season_rounds: float = 30.0
    trend_step: float = 0.03
    shift_round: int
    shift_size: float = 0.3
    prerank_skill: float = 0.5

    def __post_init__(self):
        if self.items % self.categories:
            raise ValueError(
                f"Preset.items must be a multiple of categories ({self.categories}), "
                f"got {self.items}."
            )
        for name in ("warmup_rounds", "train_rounds", "validation_rounds", "test_rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"Preset.{name} must be >= 1, got {getattr(self, name)}.")
        for name, length in (
            ("segment_share", len(SEGMENTS)),
            ("visit_probability", len(SEGMENTS)),
            ("scene_share", len(SCENES)),
            ("scene_mix", len(SCENES)),
        ):
            if len(getattr(self, name)) != length:
                raise ValueError(f"Preset.{name} must have {length} entries.")
        if not 0 <= self.shared_taste <= 1:
            raise ValueError(f"Preset.shared_taste must be in [0, 1], got {self.shared_taste}.")
        if self.lasting_interests > self.categories:
            raise ValueError("Preset.lasting_interests must not exceed categories.")

    @property
    def rounds(self) -> int:
        """All rounds."""
        return self.starts[-1] + self.test_rounds

    @property
    def starts(self) -> tuple[int, int, int]:
        """First rounds of train, validation and test."""
        train = self.warmup_rounds
        validation = train + self.train_rounds
        return train, validation, validation + self.validation_rounds


_STANDARD = Preset(
    version=1,
    purpose="Several lasting interests per user, a different taste in each, one passing interest "
    "on top. The relevant part of a history is what lies in the candidate's category: local "
    "activation (DIN and its kin) must beat summing the history.",
    users=3000,
    items=2000,
    categories=40,
    warmup_rounds=15,
    train_rounds=44,
    validation_rounds=6,
    test_rounds=9,
    shift_round=35,
)

_LONG = dataclasses.replace(
    _STANDARD,
    purpose="Tastes last for ever, but each of many categories comes up seldom, in spells: the "
    "newest 100 events mostly miss the candidate's category. Searching the whole history must "
    "beat a short window.",
    users=900,
    warmup_rounds=280,
    train_rounds=110,
    validation_rounds=12,
    test_rounds=20,
    shift_round=300,
    segment_share=(0.60, 0.30, 0.05, 0.05),
    scene_mix=((0.05, 0.85, 0.10), (0.0, 1.0, 0.0), (0.05, 0.85, 0.10)),
    lasting_interests=36,
    hot_stay=0.80,
    hot_follow=0.0,
    catalogue_age=400,
    life_decay=400.0,
)


def _control(partner: Preset, purpose: str, **constants) -> Preset:
    return dataclasses.replace(partner, purpose=purpose, **constants)


PRESETS: dict[str, Preset] = {
    "standard": _STANDARD,
    "tiny": _control(
        _STANDARD,
        "The standard world made small, for tests. Nobody learns anything here.",
        users=100,
        items=240,
        categories=8,
        warmup_rounds=8,
        train_rounds=12,
        validation_rounds=3,
        test_rounds=4,
        lasting_interests=3,
        catalogue_age=60,
        shift_round=14,
    ),
    "single_taste": _control(
        _STANDARD,
        "One taste and one price level per user, good for every category; no category is liked "
        "for itself. The sum of the history says all there is: local activation must not win.",
        shared_taste=1.0,
        interest_weight=0.0,
        hot_weight=0.0,
    ),
    "no_interest": _control(
        _STANDARD,
        "Clicks follow quality, position, price, life cycle and trend, never the user: no model "
        "of the history may win, and one that does is reading the future.",
        match_weight=0.0,
        price_fit_weight=0.0,
        interest_weight=0.0,
        hot_weight=0.0,
        additive_weight=0.0,
        cross_weight=0.0,
    ),
    "no_evolution": _control(
        _STANDARD,
        "No passing interests: the order of the history says nothing, so models of its "
        "evolution (DIEN) must not beat DIN.",
        hot_weight=0.0,
    ),
    "evolving": _control(
        _STANDARD,
        "Passing interests dominate and follow each other by fixed transitions: models of order "
        "and evolution (DIEN) must beat those that see a set (DIN).",
        hot_stay=0.6,
        hot_follow=0.95,
        hot_successors=1,
        hot_weight=2.0,
        interest_weight=0.0,
        match_weight=0.4,
        price_fit_weight=0.2,
    ),
    "long_interest": _LONG,
    "no_long_interest": _control(
        _LONG,
        "Only the hot category matters, and it is seen in the newest events alone: a long "
        "history must not beat a short one.",
        match_weight=0.0,
        price_fit_weight=0.0,
        interest_weight=0.0,
        hot_weight=2.0,
        hot_follow=1.0,
    ),
    "selection_bias": _control(
        _STANDARD,
        "What makes a user click makes him buy: clicked items convert far better than those "
        "not clicked would, so a conversion model trained on clicks alone is biased, and one "
        "trained on all impressions (ESMM) must win there.",
        cart_liking=1.2,
        cart_brand=0.3,
        buy_price=1.0,
        buy_brand=0.3,
    ),
    "no_selection_bias": _control(
        _STANDARD,
        "Purchases depend on the brand alone, which clicks ignore: training on all impressions "
        "must not win by removing a bias that is not there.",
        cart_liking=0.0,
        cart_brand=0.8,
        buy_price=0.0,
        buy_brand=0.8,
    ),
    "no_context": _control(
        _STANDARD,
        "Neighbours on the page do not matter: sorting by the pointwise score is optimal and no "
        "re-ranker may win.",
        fatigue=0.0,
        contrast=0.0,
    ),
    "strong_context": _control(
        _STANDARD,
        "Category fatigue and price contrast are strong: re-rankers and page-wise models must "
        "win over sorting by the pointwise score.",
        fatigue=1.0,
        contrast=0.5,
    ),
    "crosses": _control(
        _STANDARD,
        "Clicks follow planted crosses of segment, category and price level, and of scene and "
        "category: models of feature crosses must beat additive ones.",
        match_weight=0.0,
        price_fit_weight=0.0,
        interest_weight=0.0,
        hot_weight=0.0,
        additive_weight=0.0,
        cross_weight=1.0,
    ),
    "no_crosses": _control(
        _STANDARD,
        "The same fields act additively: models of feature crosses must not win.",
        match_weight=0.0,
        price_fit_weight=0.0,
        interest_weight=0.0,
        hot_weight=0.0,
        additive_weight=0.5,
        cross_weight=0.0,
    ),
    "drift": _control(
        _STANDARD,
        "Categories drift fast and jump at the start of the test rounds: models that keep "
        "learning must beat frozen ones.",
        season=0.5,
        trend_step=0.1,
        shift_round=65,
        shift_size=1.2,
    ),
}
