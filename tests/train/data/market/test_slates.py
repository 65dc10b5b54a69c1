"""The listwise market: its formulas by hand, its oracles, its logs, its controls."""

import dataclasses
import functools
import hashlib
import itertools
import json

import numpy as np
import pytest

from recjax.train.data.batches.assembly import whole_batch
from recjax.train.data.market import PRESETS, slate_log
from recjax.train.data.market.slates import SLATES, SlateRequests, SlateWorld
from recjax.train.data.sources import SOURCES, open_source

TINY = dataclasses.replace(SLATES["cascade"], market=PRESETS["tiny"])
ROUNDS = range(15, 20)


@functools.cache
def world_of(name="cascade", **changes):
    return SlateWorld(dataclasses.replace(SLATES[name], market=PRESETS["tiny"], **changes))


def asked(world, count=50, seed=0):
    return world.requests(np.random.default_rng(seed), count, ROUNDS)


def small(world, requests, candidates):
    """The same requests with their first candidates only."""
    pairs = ("candidate", "score", "base", "category", "price", "conversion")
    cut = {name: getattr(requests, name)[:, :candidates] for name in pairs}
    return dataclasses.replace(requests, **cut)


def by_hand(preset, base, category, price, conversion):
    """Expected clicks and purchases of one slate, slot by slot."""
    look, clicks, buys = 1.0, 0.0, 0.0
    for t in range(len(base)):
        logit = base[t]
        for k in range(1, 4):
            if t - k >= 0 and category[t - k] == category[t]:
                logit -= preset.fatigue / k
        around = [price[s] for s in (t - 1, t + 1) if 0 <= s < len(base)]
        if around:
            logit -= preset.contrast * (price[t] - np.mean(around))
        if t:
            logit -= preset.shadow * max(0.0, max(base[:t]) - base[t])
        liked = 1 / (1 + np.exp(-logit))
        if preset.examination == "position":
            look = (t + 1) ** -preset.examination_decay
        clicks += look * liked
        buys += look * liked * conversion[t]
        look *= (1 - liked) * preset.after_skip + liked * preset.after_click
    return clicks, buys


@pytest.mark.parametrize("name", ["cascade", "pbm", "no_context", "strong_context"])
def test_worth_is_its_formula(name):
    world = world_of(name)
    requests = asked(world, 20)
    order = world.plackett_luce(np.random.default_rng(1), requests, 0.5)
    both = world.worth(requests, np.stack([order, order[:, ::-1]], axis=1))
    for r, s in itertools.product(range(20), range(2)):
        chosen = order[r][:: 1 - 2 * s]
        parts = [x[r][chosen] for x in (requests.base, requests.category, requests.price)]
        clicks, buys = by_hand(world.preset, *parts, requests.conversion[r][chosen])
        np.testing.assert_allclose(both.clicks[r, s], clicks, rtol=1e-12)
        np.testing.assert_allclose(both.purchases[r, s], buys, rtol=1e-12)


@pytest.mark.parametrize("name", ["cascade", "pbm"])
def test_feedback_agrees_with_the_closed_form(name):
    world = world_of(name)
    one, repeats = asked(world, 1), 40_000
    requests = one.take(np.zeros(repeats, int))
    order = np.broadcast_to(np.arange(10), (repeats, 10))
    feedback = world.feedback(np.random.default_rng(2), requests, order)
    expected = world.click_probability(one, order[:1])[0]
    error = np.sqrt(expected * (1 - expected) / repeats)
    assert (np.abs(feedback.clicked.mean(axis=0) - expected) < 4.5 * error).all()
    bought = expected * one.conversion[0, :10]
    error = np.sqrt(bought * (1 - bought) / repeats)
    assert (np.abs(feedback.bought.mean(axis=0) - bought) < 4.5 * error + 1e-12).all()
    assert not (feedback.bought & ~feedback.clicked).any()
    assert feedback.delay.mean() == pytest.approx(world.preset.buy_delay, rel=0.05)


def test_oracles():
    world = world_of()
    requests = small(world, asked(world, 12), 6)
    exact = world.exact_oracle(requests, 3)
    best = world.worth(requests, exact).clicks
    for r in range(12):
        tried = np.array(list(itertools.permutations(range(6), 3)))
        one = requests.take(slice(r, r + 1))
        np.testing.assert_allclose(world.worth(one, tried[None]).clicks.max(), best[r], rtol=1e-12)
    # A beam as wide as all prefixes is exact; a narrow one is a lower bound.
    np.testing.assert_allclose(
        world.worth(requests, world.beam_oracle(requests, 3, beam=120)).clicks, best, rtol=1e-12
    )
    narrow = world.worth(requests, world.beam_oracle(requests, 3, beam=2)).clicks
    assert (narrow <= best + 1e-12).all()
    for order in (exact, world.beam_oracle(requests, 6, beam=4)):
        assert all(len(set(row)) == len(row) for row in order.tolist())
    with pytest.raises(
        ValueError, match="slots must be in 1..20 with at most 20,000 orders, got 10"
    ):
        world.exact_oracle(asked(world, 1), 10)
    with pytest.raises(ValueError, match="slots must be in 1..6, the candidates, got 7"):
        world.beam_oracle(requests, 7)


def test_without_context_the_pointwise_sort_is_the_best():
    for name, best in (("no_context", True), ("cascade", False), ("strong_context", False)):
        world = world_of(name)
        requests = asked(world, 40)
        gain = world.worth(requests, world.beam_oracle(requests)).clicks
        gain = gain - world.worth(requests, world.pointwise(requests)).clicks
        assert np.abs(gain).max() < 1e-9 if best else gain.mean() > 0.05


def test_candidates_come_in_upstream_order_and_are_distinct():
    world = world_of()
    requests = asked(world, 200)
    assert len(requests) == 200 and set(requests.round) == set(ROUNDS)
    assert (np.diff(requests.score, axis=1) <= 0).all()
    assert all(len(set(row)) == 20 for row in requests.candidate.tolist())
    noise = (requests.score - requests.base).ravel()
    assert noise.std() == pytest.approx(world.preset.rank_noise, rel=0.05)
    np.testing.assert_array_equal(world.upstream(requests)[0], np.arange(10))


def test_logging_policies():
    """The first choice follows the softmax of the scores; a narrow policy keeps the order."""
    world = world_of()
    one, repeats = asked(world, 1), 50_000
    requests = one.take(np.zeros(repeats, int))
    for inverse_temperature in (0.5, 1.5):
        order = world.plackett_luce(np.random.default_rng(3), requests, inverse_temperature)
        share = np.exp(inverse_temperature * one.score[0])
        share /= share.sum()
        found = np.bincount(order[:, 0], minlength=20) / repeats
        assert np.abs(found - share).max() < 4.5 * np.sqrt(share.max() / repeats)
    rank = lambda beta: np.mean(
        world.plackett_luce(np.random.default_rng(3), requests, beta).mean(axis=1)
    )
    assert rank(1.5) < rank(0.5)


def test_a_log_of_slates():
    world = world_of()
    data = slate_log.load(world, name="slates", slates=300)
    assert data.train.candidate.shape == (300, 10) and len(data.test) == 30
    again = slate_log.load(world, name="slates", slates=300)
    np.testing.assert_array_equal(data.train.candidate, again.train.candidate)
    other = slate_log.load(world, name="slates", slates=300, seed=1)
    assert (data.train.candidate != other.train.candidate).any()
    train, validation, test = world.preset.market.starts
    round = lambda part: part.time // 86_400
    assert round(data.train).min() >= train and round(data.train).max() < validation
    assert round(data.validation).max() < test <= round(data.test).min()
    batch = whole_batch(data.schema, data.log, data.test, history=1)
    assert batch["history_mask"].shape == (30, 0)
    assert batch["candidate"]["signals"].shape == (30, 10, 4)
    assert set(batch["label"]) == {"click", "purchase"}
    assert (batch["label"]["purchase"] <= batch["label"]["click"]).all()
    # The truth is beside the data, not in it.
    assert data.truth["test"]["click"].shape == (30, 10)
    assert not {"base", "conversion"} & {field.name for field in data.schema.fields}


def test_a_log_has_slates_to_validate():
    with pytest.raises(ValueError, match="slates must be >= 10, got 9"):
        slate_log.load(world_of(), name="slates", slates=9)


def test_signals_are_what_liking_is_made_of():
    world = world_of()
    requests = asked(world, 30)
    p = world.preset.market
    where = requests.user, requests.round, requests.candidate
    match, distance, affinity, hot = world.world.signals(*where)
    liking = p.match_weight * match - p.price_fit_weight * distance
    liking += p.interest_weight * affinity + p.hot_weight * hot
    np.testing.assert_allclose(liking, world.world.liking(*where), rtol=1e-12, atol=1e-12)


def test_purchases_that_come_too_late_are_not_in_the_log():
    bought = lambda delay: (
        slate_log.load(world_of(buy_delay=delay), name="x", slates=3000)
        .train.label["purchase"]
        .sum()
    )
    assert bought(1e6) == 0 < bought(300.0) < bought(0.01)


PINNED = {
    "cascade": (1, "63b892c97b16"),
    "pbm": (1, "d4cca5f1fdc5"),
    "no_context": (1, "12873b097b34"),
    "strong_context": (1, "58f2f33af0e2"),
    "drift": (1, "04f61b564d7e"),
    "delayed": (1, "97e07317d3ca"),
}


@pytest.mark.parametrize("name", SLATES)
def test_changing_a_number_means_raising_the_version(name):
    constants = dataclasses.asdict(SLATES[name])
    for part in (constants, constants["market"]):
        del part["purpose"], part["version"]
    digest = hashlib.sha256(json.dumps(constants, sort_keys=True).encode()).hexdigest()[:12]
    assert (SLATES[name].version, digest) == PINNED[name], (
        f"Constants of {name!r} changed: raise its version, and pin the new pair here."
    )


def test_requests_can_be_taken():
    requests = asked(world_of(), 10)
    part = requests.take(np.array([3, 1]))
    assert isinstance(part, SlateRequests) and len(part) == 2
    np.testing.assert_array_equal(part.candidate[1], requests.candidate[1])


def test_candidates_hold_what_was_not_shown_too():
    """Two views of one log: the same requests, labels where the slate was."""
    world = world_of()
    slates = slate_log.load(world, name="x", slates=200)
    every = slate_log.load(world, name="x", slates=200, view="candidates")
    assert every.schema == slates.schema
    shape = (200, world.preset.candidates)
    assert every.train.candidate.shape == every.train.weight["click"].shape == shape
    shown = every.train.weight["click"] > 0
    assert (shown.sum(axis=1) == world.preset.slots).all()
    for r in range(200):
        position = {item: n for n, item in enumerate(every.train.candidate[r])}
        at = [position[item] for item in slates.train.candidate[r]]
        assert set(at) == set(np.flatnonzero(shown[r]))
        for task in ("click", "purchase"):
            np.testing.assert_array_equal(
                every.train.label[task][r, at], slates.train.label[task][r]
            )
            assert not every.train.label[task][r][~shown[r]].any()
    # Upstream order: the ranks are 1, 2, 3, ... in every request.
    rank = every.train.shown["rank"]
    np.testing.assert_array_equal(rank, np.broadcast_to(rank[:1], rank.shape))


def test_sources_of_slates_are_known():
    with pytest.raises(ValueError, match="Unknown preset of slates 'none'; choose from cascade"):
        open_source("slates:none")
    assert {"slates[:PRESET]", "candidates[:PRESET]"} <= set(SOURCES)


def planted(world, **columns):
    """One request of the world with these columns of its candidates."""
    one = asked(world, 1)
    width = len(next(iter(columns.values())))
    cut = small(world, one, width)
    return dataclasses.replace(cut, **{k: np.array([v]) for k, v in columns.items()})


def test_the_odd_one_in_the_middle_is_liked_more():
    """Three bottles alike but for their price: the cheap one stands out between dear ones."""
    world = world_of("pbm")
    request = planted(world, base=[0.0] * 3, category=[1, 2, 3], price=[1.0, -1.0, 1.0])
    middle = world.click_probability(request, np.array([[0, 1, 2]]))[0, 1]
    alike = planted(world, base=[0.0] * 3, category=[1, 2, 3], price=[-1.0] * 3)
    assert middle > 1.3 * world.click_probability(alike, np.array([[0, 1, 2]]))[0, 1]


def test_two_of_three_make_six_slates():
    """The best of them by name, where the second item of a kind is liked less."""
    world = world_of()
    request = planted(world, base=[0.5, 0.4, 0.2], category=[1, 1, 2], price=[0.0] * 3)
    slates = list(itertools.permutations(range(3), 2))
    worth = world.worth(request, np.array([slates])).clicks[0]
    assert len(slates) == 6
    # The two that get along, the shorter way to the end first: a click ends many a visit.
    best = slates[int(worth.argmax())]
    assert set(best) == {0, 2}
    np.testing.assert_array_equal(world.exact_oracle(request, 2), [best])
    with pytest.raises(ValueError, match=r"order must index candidates 0\.\.2, got -1\.\.0"):
        world.worth(request, np.array([[0, -1]]))
