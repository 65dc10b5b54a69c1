"""The built-in world: logs like a system, answers like the truth, and its controls control."""

import dataclasses
import functools
import hashlib
import json

import numpy as np
import pytest

from recjax.train.data import market
from recjax.train.data.event_log import leaks
from recjax.train.data.market.audit import audit, logistic
from recjax.zoo.features import signatures

TINY = market.PRESETS["tiny"]
PARTS = ("train", "validation", "test")

# What makes each preset differ from its partner. Nothing else may.
SIZES = {"users", "warmup_rounds", "train_rounds", "validation_rounds", "test_rounds"}
DIFFERENCES = {
    "standard": ("standard", set()),
    "tiny": (
        "standard",
        SIZES | {"items", "categories", "lasting_interests", "catalogue_age", "shift_round"},
    ),
    "single_taste": ("standard", {"shared_taste", "interest_weight", "hot_weight"}),
    "no_interest": (
        "standard",
        {"match_weight", "price_fit_weight", "interest_weight", "hot_weight"}
        | {"additive_weight", "cross_weight"},
    ),
    "no_evolution": ("standard", {"hot_weight"}),
    "evolving": (
        "standard",
        {"hot_stay", "hot_follow", "hot_successors", "hot_weight"}
        | {"interest_weight", "match_weight", "price_fit_weight"},
    ),
    "long_interest": (
        "standard",
        SIZES
        | {"shift_round", "segment_share", "scene_mix", "lasting_interests", "hot_stay"}
        | {"hot_follow", "catalogue_age", "life_decay"},
    ),
    "no_long_interest": (
        "long_interest",
        {"match_weight", "price_fit_weight", "interest_weight", "hot_weight", "hot_follow"},
    ),
    "selection_bias": ("standard", {"cart_liking", "cart_brand", "buy_price", "buy_brand"}),
    "no_selection_bias": ("standard", {"cart_liking", "cart_brand", "buy_price", "buy_brand"}),
    "no_context": ("standard", {"fatigue", "contrast"}),
    "strong_context": ("standard", {"fatigue", "contrast"}),
    "crosses": (
        "standard",
        {"match_weight", "price_fit_weight", "interest_weight", "hot_weight"}
        | {"additive_weight", "cross_weight"},
    ),
    "no_crosses": (
        "standard",
        {"match_weight", "price_fit_weight", "interest_weight", "hot_weight"}
        | {"additive_weight", "cross_weight"},
    ),
    "drift": ("standard", {"season", "trend_step", "shift_round", "shift_size"}),
}


@functools.cache
def made(name, seed=0):
    """World, page log and data of a preset."""
    world = market.World(market.PRESETS[name], seed)
    pages = market.simulate(world)
    return world, pages, market.dataset(world, pages, name=f"market:{name}")


@functools.cache
def small(name):
    """A control's constants on a world of tiny's sizes."""
    constants = {field: getattr(market.PRESETS[name], field) for field in DIFFERENCES[name][1]}
    if name == "drift":
        constants["shift_round"] = TINY.starts[2]
    world = market.World(dataclasses.replace(TINY, users=400, **constants), 3)
    return world, market.simulate(world)


@functools.cache
def audited(name, users=None):
    """What a preset's constants imply; with fewer users where the effect is large."""
    if users is None:
        world, _, data = made(name)
    else:
        world = market.World(dataclasses.replace(market.PRESETS[name], users=users), 0)
        data = market.dataset(world, market.simulate(world), name=f"market:{name}")
    return audit(world, data, requests=8000)


# --- The log ---------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bits_and_another_gives_others():
    _, first, data = made("tiny")
    again = market.load("tiny", seed=0)
    np.testing.assert_array_equal(data.log.item, again.log.item)
    np.testing.assert_array_equal(data.log.time, again.log.time)
    np.testing.assert_array_equal(data.truth["test"]["click"], again.truth["test"]["click"])
    for part in PARTS:
        mine, its = getattr(data, part), getattr(again, part)
        np.testing.assert_array_equal(mine.candidate, its.candidate)
        np.testing.assert_array_equal(mine.label["conversion"], its.label["conversion"])
    other = market.simulate(market.World(TINY, 1))
    assert not np.array_equal(first.candidate[:100], other.candidate[:100])


def test_worlds_of_one_seed_share_their_draws():
    """Controls are paired with their partners: only what a constant moves is different."""
    standard = market.World(market.PRESETS["standard"], 0)
    control = market.World(market.PRESETS["no_evolution"], 0)
    np.testing.assert_array_equal(standard.taste, control.taste)
    np.testing.assert_array_equal(standard.style, control.style)
    np.testing.assert_array_equal(standard.hot, control.hot)


def test_unknown_preset_names_the_choices():
    with pytest.raises(ValueError, match="'no_such'.*") as error:
        market.load("no_such")
    assert "standard" in str(error.value)


def test_histories_hold_only_what_had_happened():
    _, _, data = made("tiny")
    for part in PARTS:
        requests = getattr(data, part)
        assert len(leaks(data.log, requests)) == 0
        start = data.log.offsets[requests.user]
        seen = requests.cut > 0
        assert np.all(data.log.time[(start + requests.cut - 1)[seen]] < requests.time[seen])
        # And all of it: the next event comes no earlier than the request.
        more = start + requests.cut < data.log.offsets[requests.user + 1]
        assert np.all(data.log.time[(start + requests.cut)[more]] >= requests.time[more])


def test_planted_leaks_are_found():
    _, _, data = made("tiny")
    clicked = np.flatnonzero(data.train.label["click"].any(1))
    late = dataclasses.replace(data.train, cut=data.train.cut.copy())
    late.cut[clicked] += 1  # the own click, or one of a page before it that came later
    np.testing.assert_array_equal(leaks(data.log, late), clicked)
    start = data.log.offsets[data.test.user]
    newest = data.log.time[np.maximum(start + data.test.cut - 1, 0)]
    shifted = dataclasses.replace(data.test, time=newest - 1)
    np.testing.assert_array_equal(leaks(data.log, shifted), np.flatnonzero(data.test.cut > 0))


def test_events_are_the_clicks_carts_and_purchases_of_the_pages():
    _, pages, data = made("tiny")
    counts = [int(flag.sum()) for flag in (pages.clicked, pages.carted, pages.bought)]
    rows = data.row_maps["behavior"](signatures("behavior", list(market.BEHAVIORS)))
    assert [int((data.log.event["behavior"] == row).sum()) for row in rows] == counts
    assert np.all(~pages.carted | pages.clicked) and np.all(~pages.bought | pages.carted)
    assert np.all(pages.click_time > pages.time[:, None])
    assert np.all(pages.cart_time > pages.click_time)
    assert np.all(pages.buy_time > pages.cart_time)
    hours = (pages.buy_time - pages.cart_time) / 3600
    assert abs(hours.mean() / TINY.buy_delay_hours - 1) < 0.05


def test_pages_show_distinct_born_items_to_users_who_have_joined():
    world, pages, _ = made("tiny")
    assert np.all(world.birth[pages.candidate] <= pages.round[:, None])
    assert np.all(np.diff(np.sort(pages.candidate, axis=1), axis=1) > 0)
    assert np.all(world.join[pages.user] <= pages.round)
    visits = pages.user * world.preset.rounds + pages.round
    assert len(np.unique(visits)) == len(visits)


def test_splits_follow_each_other_in_time():
    _, _, data = made("tiny")
    for earlier, later in zip(PARTS[:-1], PARTS[1:], strict=True):
        assert getattr(data, earlier).time.max() < getattr(data, later).time.min()
    for part in PARTS:
        assert np.all(np.diff(getattr(data, part).time) >= 0)
    assert data.train.time.min() >= TINY.warmup_rounds * market.ROUND_SECONDS
    assert np.all(
        np.diff(data.log.time)[
            np.diff(np.repeat(np.arange(data.log.num_users), data.log.lengths())) == 0
        ]
        >= 0
    )


def test_training_conversions_end_with_the_training_rounds():
    _, pages, data = made("tiny")
    train, validation, _ = TINY.starts
    span = (pages.round >= train) & (pages.round < validation)
    end = validation * market.ROUND_SECONDS
    in_time = pages.bought[span] & (pages.buy_time[span] < end)
    np.testing.assert_array_equal(data.train.label["conversion"] > 0, in_time)
    assert in_time.sum() < pages.bought[span].sum()  # some purchases came too late
    later = pages.round >= TINY.starts[2]
    np.testing.assert_array_equal(data.test.label["conversion"] > 0, pages.bought[later])
    for part in PARTS:
        label = getattr(data, part).label
        assert np.all(label["conversion"] <= label["click"])


def test_columns_are_the_rows_that_raw_values_would_get():
    world, pages, data = made("tiny")
    assert data.log.num_items == world.preset.items
    for table, values in (
        ("item", np.arange(TINY.items)),
        ("category", world.category),
        ("price_level", world.price_level),
    ):
        rows = data.row_maps[table](signatures(table, values))
        np.testing.assert_array_equal(data.log.items[table], rows)
    later = pages.round >= TINY.starts[2]
    scenes = np.array(market.SCENES, dtype=object)[pages.scene[later]]
    rows = data.row_maps["scene"](signatures("scene", scenes))
    np.testing.assert_array_equal(data.test.context["scene"], rows)
    assert [data.segments["scene"][int(row)] for row in rows] == scenes.tolist()
    np.testing.assert_allclose(data.log.items["price"], np.log1p(world.price), rtol=1e-6)
    for field in data.schema.fields:
        if field.kind == "id":
            assert data.schema.table(field.table_name).rows == data.row_maps[field.table_name].rows
    assert {field.name for field in data.schema.role("candidate")} == (
        set(data.log.items) | set(data.test.shown)
    )
    np.testing.assert_array_equal(np.unique(data.test.shown["position"]), np.arange(10) + 2)


def test_items_that_training_never_showed_are_unseen():
    _, pages, data = made("tiny")
    shown = np.unique(pages.candidate[pages.round < TINY.starts[1]])
    np.testing.assert_array_equal(np.flatnonzero(data.log.items["item"] != 1), shown)
    assert np.any(data.log.items["item"][data.test.candidate] == 1)


# --- The truth -------------------------------------------------------------------------------


def test_truth_is_what_the_world_answers():
    world, _, data = made("tiny")
    for part in ("validation", "test"):
        requests = getattr(data, part)
        ask = market.questions(data, requests)
        click = world.click_probability(
            ask["user"], ask["round"], requests.candidate, scene=ask["scene"], hour=ask["hour"]
        )
        np.testing.assert_array_equal(click, data.truth[part]["click"])
        convert = world.conversion_probability(ask["user"], ask["round"], requests.candidate)
        np.testing.assert_array_equal(click * convert, data.truth[part]["conversion"])
        value = world.page_value(**ask, candidates=requests.candidate)
        np.testing.assert_allclose(value.clicks, click.sum(1), rtol=1e-12)
        np.testing.assert_allclose(value.purchases, (click * convert).sum(1), rtol=1e-12)
        money = (click * convert * world.price[requests.candidate]).sum(1)
        np.testing.assert_allclose(value.revenue, money, rtol=1e-12)


def test_formula_of_one_page_by_hand():
    world, _, _ = made("tiny")
    p, user, round, scene, hour = TINY, 5, 20, 1, 9
    page = [3, 4, 100]
    assert world.category[3] == world.category[4] != world.category[100]
    z = world.relative_price[page]
    expected = []
    for slot, item in enumerate(page):
        c, level, segment = world.category[item], world.price_level[item], world.segment[user]
        liking = 1.3 * float(world.taste[user, c] @ world.style[item])
        liking -= 0.4 * abs(z[slot] - world.level[user, c]) - 0.5 * world.affinity[user, c]
        liking += 1.0 * (world.hot[round, user] == c)
        age = max(round - world.birth[item], 0) + 1
        appeal = 0.4 * world.quality[item] - 0.1 * z[slot] + world.trend[round, c]
        appeal += 0.5 * (1 - np.exp(-age / 3)) * np.exp(-age / 60)
        appeal += 0.15 * (
            world._segment_effect[segment]
            + world._category_effect[c]
            + world._level_effect[level]
            + world._scene_effect[scene]
        )
        crosses = world._segment_cross[segment, c, level] + world._scene_cross[scene, c]
        appeal += 0.15 * crosses / np.sqrt(2) + 0.15 * np.cos(2 * np.pi * (hour - 21) / 24)
        neighbours = {0: z[1], 1: (z[0] + z[2]) / 2, 2: z[1]}[slot]
        context = -0.2 * (z[slot] - neighbours) - 0.4 * (slot == 1)
        logit = world._click_intercept + liking + appeal + context
        expected.append((slot + 1) ** -p.examination_decay / (1 + np.exp(-logit)))
    one = lambda value: np.array([value])
    actual = world.click_probability(
        one(user), one(round), np.array([page]), scene=one(scene), hour=one(hour)
    )
    np.testing.assert_allclose(actual[0], expected, rtol=1e-12)


def test_simulated_responses_agree_with_the_closed_form():
    world, pages, _ = made("tiny")
    rng = np.random.default_rng(7)
    repeats = 20_000
    for index in (50, 900, 1500):
        same = lambda column, at=index: np.broadcast_to(
            column[at], (repeats, *column[at].shape)
        ).copy()
        page = same(pages.candidate)
        response = world.respond(
            rng,
            same(pages.user),
            same(pages.round),
            page,
            scene=same(pages.scene),
            hour=same(pages.hour),
            time=same(pages.time),
        )
        for happened, probability in (
            (response.clicked, pages.click_probability[index]),
            (response.bought, pages.conversion_probability[index]),
        ):
            z = (happened.mean(0) - probability) / np.sqrt(
                probability * (1 - probability) / repeats
            )
            assert np.abs(z).max() < 4.5
        value = world.page_value(
            pages.user[[index]],
            pages.round[[index]],
            page[:1],
            scene=pages.scene[[index]],
            hour=pages.hour[[index]],
        )
        earned = (response.bought * world.price[page]).sum(1)
        assert abs(earned.mean() - value.revenue[0]) < 4.5 * earned.std() / np.sqrt(repeats)


def test_the_log_as_a_whole_agrees_with_the_closed_form():
    _, pages, _ = made("tiny")
    for happened, probability in (
        (pages.clicked, pages.click_probability),
        (pages.bought, pages.conversion_probability),
    ):
        spread = np.sqrt((probability * (1 - probability)).sum())
        assert abs(happened.sum() - probability.sum()) < 4 * spread


def test_longer_lists_can_be_retrieved_and_pages_of_any_length_asked_about():
    world, _, _ = made("tiny")
    rng = np.random.default_rng(1)
    user, scene, hour, _ = world.visits(rng, 20)
    rounds = np.full(len(user), 20)
    many = world.retrieve(rng, 20, user, scene=scene, hour=hour, size=25)
    assert many.shape == (len(user), 25)
    assert np.all(np.diff(np.sort(many, axis=1), axis=1) > 0)
    one = world.click_probability(user, rounds, many[:, :1], scene=scene, hour=hour)
    alone = world.attraction(user, rounds, many[:, :1], scene=scene, hour=hour)
    np.testing.assert_allclose(one, 1 / (1 + np.exp(-alone)), rtol=1e-12)
    with pytest.raises(ValueError, match="size must be <= the"):
        world.retrieve(rng, 20, user, scene=scene, hour=hour, size=1000)


# --- The controls ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "constants, message",
    [
        ({"items": 241}, "items must be a multiple of categories"),
        ({"test_rounds": 0}, "test_rounds must be >= 1, got 0"),
        ({"scene_share": (0.5, 0.5)}, "scene_share must have 3 entries"),
        ({"shared_taste": 1.5}, "shared_taste must be in"),
        ({"lasting_interests": 9}, "lasting_interests must not exceed"),
    ],
)
def test_impossible_presets_are_refused(constants, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **constants)


def test_every_preset_says_how_it_differs():
    assert set(DIFFERENCES) == set(market.PRESETS)


@pytest.mark.parametrize("name", DIFFERENCES)
def test_presets_differ_from_their_partner_in_the_named_constants_only(name):
    partner, named = DIFFERENCES[name]
    mine = dataclasses.asdict(market.PRESETS[name])
    its = dataclasses.asdict(market.PRESETS[partner])
    assert {key for key in mine if mine[key] != its[key]} - {"purpose", "version"} == named


def test_without_interests_the_user_does_not_matter():
    world, pages = small("no_interest")
    other = (pages.user + 1) % world.preset.users
    swapped = world.click_probability(
        other, pages.round, pages.candidate, scene=pages.scene, hour=pages.hour
    )
    np.testing.assert_array_equal(swapped, pages.click_probability)


def test_a_single_taste_holds_in_every_category():
    world, _ = small("single_taste")
    np.testing.assert_allclose(world.taste, world.taste[:, :1] + 0 * world.taste, atol=1e-12)
    np.testing.assert_array_equal(world.level, world.level[:, :1] + 0 * world.level)


def test_order_matters_only_where_there_is_context():
    for name, matters in (("no_context", False), ("strong_context", True)):
        world, _ = small(name)
        rng = np.random.default_rng(0)
        user, scene, hour, _ = world.visits(rng, 20)
        rounds = np.full(len(user), 20)
        page = world.retrieve(rng, 20, user, scene=scene, hour=hour, size=10)
        logit = world.attraction(user, rounds, page, scene=scene, hour=hour)
        page = np.take_along_axis(page, np.argsort(-logit, axis=1), axis=1)
        worth = lambda order, world=world, user=user, rounds=rounds, scene=scene, hour=hour: (
            world.page_value(user, rounds, order, scene=scene, hour=hour).clicks
        )
        best = np.max([worth(rng.permuted(page, axis=1)) for _ in range(200)], axis=0)
        better = (best > worth(page) + 1e-9).mean()
        assert better > 0.5 if matters else better == 0


def test_selection_bias_is_where_it_should_be():
    """Purchases per click: over what is clicked, against over all that is shown."""
    lift = {}
    for name in ("selection_bias", "no_selection_bias"):
        world = market.World(market.PRESETS[name], 0)
        rng = np.random.default_rng(0)
        click, convert = [], []
        for round in range(20, 70, 10):
            user, scene, hour, _ = world.visits(rng, round)
            rounds = np.full(len(user), round)
            page = world.retrieve(rng, round, user, scene=scene, hour=hour, size=10)
            click.append(world.click_probability(user, rounds, page, scene=scene, hour=hour))
            convert.append(world.conversion_probability(user, rounds, page))
        click, convert = np.concatenate(click), np.concatenate(convert)
        lift[name] = np.average(convert, weights=click) / convert.mean()
    assert lift["selection_bias"] > 1.3
    assert abs(lift["no_selection_bias"] - 1) < 0.06


def test_drift_is_visible():
    """Category click rates before and after the shift: the same in a calm world, not here."""
    change = {}
    for name in ("standard", "drift"):
        world, pages = small(name)
        shift = world.preset.starts[2]
        category = world.category[pages.candidate]
        rate = []
        for when in (pages.round < shift, pages.round >= shift):
            cell = category[when].ravel()
            shown = np.bincount(cell, minlength=world.preset.categories)
            clicks = np.bincount(cell, pages.click_probability[when].ravel(), len(shown))
            rate.append(clicks / shown)
        change[name] = np.abs(np.log(rate[1] / rate[0])).mean()
    assert change["drift"] > 2 * change["standard"]


def test_hot_categories_follow_the_ring_where_interests_evolve():
    world, _ = small("evolving")
    before, after = world.hot[:-1], world.hot[1:]
    moved = before != after
    followed = world.successors[before[moved], 0] == after[moved]
    assert abs(moved.mean() - 0.4) < 0.03 and followed.mean() > 0.93


# --- What the constants imply (no networks) ---------------------------------------------------


def test_logistic_regression_finds_the_weights():
    rng = np.random.default_rng(0)
    x = np.concatenate([np.ones((200_000, 1)), rng.standard_normal((200_000, 2))], axis=1)
    weight = np.array([-1.0, 0.5, -2.0])
    label = rng.random(len(x)) < 1 / (1 + np.exp(-(x @ weight)))
    np.testing.assert_allclose(logistic(x, label), weight, atol=0.03)


def test_standard_is_as_promised():
    _, _, data = made("standard")
    assert 700_000 <= data.train.examples <= 800_000
    assert 90_000 <= data.validation.examples <= 120_000
    assert 140_000 <= data.test.examples <= 170_000
    assert 0.10 < data.facts["click_rate"] < 0.20
    assert 0.05 < data.facts["purchases_per_click"] < 0.15
    assert 30 <= np.median(data.test.cut) <= 120
    assert 0.75 < audited("standard").truth < 0.80


def test_local_activation_pays_in_standard_and_only_there():
    standard = audited("standard")
    assert standard.local - max(standard.whole, standard.sketch) > 0.02
    single = audited("single_taste")
    assert single.local < single.whole - 0.02 and single.whole - single.item > 0.05
    nobody = audited("no_interest")
    for gained in (nobody.whole, nobody.sketch, nobody.local, nobody.newest, nobody.recent):
        assert gained - nobody.item < 0.002


def test_recency_pays_where_interests_evolve():
    evolving, still = audited("evolving", users=1000), audited("no_evolution", users=1000)
    assert evolving.recent - evolving.local > 0.01
    assert still.recent - still.local < 0.002


def test_a_long_history_pays_only_where_interests_last():
    lasting, passing = (audited(name, users=250) for name in ("long_interest", "no_long_interest"))
    assert lasting.local - lasting.newest > 0.01
    assert passing.local - passing.newest < 0.002


def test_crosses_pay_only_where_they_are_planted():
    crossed, additive = (audited(name, users=1000) for name in ("crosses", "no_crosses"))
    assert crossed.crossed - crossed.item > 0.02
    assert additive.crossed - additive.item < 0.003


# --- Version guard ---------------------------------------------------------------------------

PINNED = {
    "standard": (1, "282cfbe8dd40"),
    "tiny": (1, "e610fb432001"),
    "single_taste": (1, "da64086528e1"),
    "no_interest": (1, "9726e9a4ea8c"),
    "no_evolution": (1, "e4dee88258f0"),
    "evolving": (1, "7597fb6b3e40"),
    "long_interest": (1, "3ce9d38bce55"),
    "no_long_interest": (1, "cc14ff5e3e78"),
    "selection_bias": (1, "4eec26865e5f"),
    "no_selection_bias": (1, "1f637476582d"),
    "no_context": (1, "9e976f0d0e26"),
    "strong_context": (1, "f2e6f8f10d15"),
    "crosses": (1, "e9ba35ad5523"),
    "no_crosses": (1, "e03859fe3ac5"),
    "drift": (1, "07eee5a63fed"),
}
PINNED_LOG = {
    "requests": 1645,
    "clicks": 2514,
    "carts": 763,
    "bought": 274,
    "items": 2183690,
    "cuts": 9760,
    "truth": 2499.957,
}


def digest(preset):
    constants = dataclasses.asdict(preset)
    del constants["purpose"], constants["version"]
    return hashlib.sha256(json.dumps(constants, sort_keys=True).encode()).hexdigest()[:12]


@pytest.mark.parametrize("name", DIFFERENCES)
def test_changing_a_number_means_raising_the_version(name):
    preset = market.PRESETS[name]
    assert (preset.version, digest(preset)) == PINNED[name], (
        f"Constants of {name!r} changed: raise its version, and pin the new pair here."
    )


def test_the_log_of_tiny_is_pinned():
    """Counts and rounded sums, so that the last bit of a platform's exp cannot fail it."""
    _, pages, data = made("tiny")
    facts = {
        "requests": len(pages.user),
        "clicks": int(pages.clicked.sum()),
        "carts": int(pages.carted.sum()),
        "bought": int(pages.bought.sum()),
        "items": int(pages.candidate.sum()),
        "cuts": int(data.test.cut.sum()),
        "truth": round(float(pages.click_probability.sum()), 3),
    }
    assert facts == PINNED_LOG, "The tiny world logs differently: raise every preset's version."
