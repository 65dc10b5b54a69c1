from time import perf_counter

import numpy as np
import pytest

from logs import random_dataset
from recjax.train.data import draws
from recjax.train.data.batches.required import ByPopularity
from recjax.train.data.event_log import EventLog


def log_of(*items, catalogue):
    """A log in which user u touches items[u]."""
    flat = np.concatenate([np.asarray(own, np.int32) for own in items])
    return EventLog(
        offsets=np.cumsum([0, *map(len, items)]),
        item=flat,
        time=np.arange(len(flat)),
        event={},
        items={"item": np.arange(2, catalogue + 2, dtype=np.int32)},
        users={},
    )


def test_bits_are_pinned():
    # Resumed runs and evaluation negatives depend on these numbers.
    assert [hex(value) for value in draws.bits(1, 2, np.arange(2))] == [
        "0xe68e6fc01df08360",
        "0xb815246f417cade2",
    ]


def test_an_address_alone_decides():
    whole = draws.bits(5, np.arange(100)[:, None], np.arange(3))
    assert whole.shape == (100, 3)
    assert whole[41, 2] == draws.bits(5, 41, 2)
    assert np.array_equal(whole[::-1], draws.bits(5, np.arange(100)[::-1, None], np.arange(3)))
    assert len(np.unique(whole)) == 300
    assert draws.bits(1, 2) != draws.bits(2, 1)
    assert draws.bits(1) != draws.bits(1, 0)
    assert draws.bits(-1) != draws.bits(1)


def test_uniform_and_below():
    numbers = draws.uniform(7, np.arange(100_000))
    assert 0 <= numbers.min() and numbers.max() < 1
    # The standard error of the mean is 0.2887 / sqrt(1e5) = 0.0009.
    assert abs(numbers.mean() - 0.5) < 5 * 0.0009
    counts = np.bincount(draws.below(10, 7, np.arange(100_000)), minlength=10)
    assert len(counts) == 10
    # Chi-square of 10 buckets: mean 9, standard deviation 4.2.
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 9 + 5 * 4.2


def test_permutation():
    order = draws.permutation(1000, 3, 4)
    assert np.array_equal(np.sort(order), np.arange(1000))
    assert np.array_equal(order, draws.permutation(1000, 3, 4))
    assert (order == draws.permutation(1000, 3, 5)).sum() < 10
    assert draws.permutation(0, 1).shape == (0,)


def test_a_long_permutation_is_drawn_block_by_block(monkeypatch):
    whole = draws.permutation(1000, 3, 4)
    assert np.array_equal(whole, np.argsort(draws.bits(3, 4, np.arange(1000))))
    monkeypatch.setattr(draws, "_AT_ONCE", 7)
    assert np.array_equal(draws.permutation(1000, 3, 4), whole)


def test_untouched_items_are_uniform():
    # User 0 leaves 5 of 8 items, user 1 all but one.
    untouched = draws.UntouchedItems(log_of([1, 1, 4, 6], [2], catalogue=8))
    user = np.repeat([0, 1], 10_000)
    items = untouched.draw(user, 2, 9, np.arange(20_000))
    assert items.dtype == np.int32 and items.shape == (20_000, 2)
    counts = np.bincount(items[user == 0].ravel(), minlength=8)
    assert np.flatnonzero(counts == 0).tolist() == [1, 4, 6]
    # 20 000 draws over 5 items: mean 4000, standard deviation 57.
    assert np.abs(counts[counts > 0] - 4000).max() < 5 * 57
    assert np.unique(items[user == 1]).tolist() == [0, 1, 3, 4, 5, 6, 7]


def test_a_draw_does_not_depend_on_its_neighbours():
    log = random_dataset().log
    untouched = draws.UntouchedItems(log)
    user, example = np.arange(40), np.arange(40) * 3
    together = untouched.draw(user, 4, 1, 2, example)
    for i in (0, 7, 39):
        alone = untouched.draw(user[i : i + 1], 4, 1, 2, example[i : i + 1])
        assert np.array_equal(alone[0], together[i])
    assert not np.array_equal(untouched.draw(user, 4, 1, 3, example), together)


def test_the_only_item_left_is_found():
    untouched = draws.UntouchedItems(log_of([0, 1, 2, 4], [0], catalogue=5))
    assert np.all(untouched.draw(np.zeros(50, int), 3, np.arange(50)) == 3)


def test_a_user_who_touched_everything_is_refused_once_asked_for():
    untouched = draws.UntouchedItems(log_of([0], [2, 1, 0, 1], catalogue=3))
    assert (untouched.draw(np.array([0, 0]), 5, 1) > 0).all()
    message = "user 1 of the log touched all 3 items that could be drawn: no negative is left"
    with pytest.raises(ValueError, match=message):
        untouched.draw(np.array([0, 1]), 1, 1)


SIZE = 40
COUNTS = np.where(np.arange(SIZE) % 3 > 0, np.arange(SIZE), 0)


def by_popularity():
    """Ranks items 39, 38, ..., 10; training does not know the first ten."""
    order = np.arange(SIZE)[:9:-1].astype(np.int32)
    rank = np.full(SIZE, len(order) - 1)
    rank[order] = np.arange(len(order))
    return ByPopularity(order, rank, np.zeros(len(order), np.int64))


def log_uniform():
    """The distribution of `by_popularity`, as its formula says."""
    share = np.zeros(SIZE)
    rank = np.arange(SIZE - 10)
    share[39 - rank] = np.log((rank + 2) / (rank + 1)) / np.log(SIZE - 10 + 1)
    return share


PROPOSALS = {
    "uniform": (lambda: draws.Everything(SIZE), lambda: np.ones(SIZE)),
    "counts": (lambda: draws.ByCount(COUNTS), lambda: COUNTS),
    "log-popularity": (by_popularity, log_uniform),
    "catalogue": (
        lambda: draws.Catalogue(np.where(np.arange(SIZE) < 10, draws.NEVER, 0)),
        lambda: np.arange(SIZE) >= 10,
    ),
}


@pytest.mark.parametrize("rounds", [0, 1, 64], ids=lambda rounds: f"{rounds} rounds")
@pytest.mark.parametrize("name", PROPOSALS)
def test_a_draw_has_the_distribution_without_what_is_touched(monkeypatch, name, rounds):
    """Whether by rejection, from the explicit complement (no rounds left), or by both."""
    monkeypatch.setattr(draws, "_ROUNDS", rounds)
    proposal, weight = PROPOSALS[name]
    kept = np.array([2, 7, 13, 25, 38])
    touched = np.setdiff1d(np.arange(SIZE), kept)
    untouched = draws.UntouchedItems(log_of(touched, [1], catalogue=SIZE))
    size = 20_000
    drawn = untouched.draw(
        np.zeros(size, int), 1, 5, np.arange(size), proposal=proposal(), time=np.zeros(size, int)
    )
    expected = np.where(np.isin(np.arange(SIZE), kept), weight(), 0.0)
    expected *= size / expected.sum()
    counts = np.bincount(drawn[:, 0], minlength=SIZE)
    assert (counts[expected == 0] == 0).all()
    real = expected > 0
    # Each count is binomial: five standard deviations.
    assert (np.abs(counts - expected)[real] <= 5 * np.sqrt(expected[real])).all()


def test_no_item_is_drawn_before_it_appeared():
    appeared = np.array([5, 0, draws.NEVER, 10, 0])
    untouched = draws.UntouchedItems(log_of([1], catalogue=5))
    time = np.repeat([4, 5, 9, 10, 11], 200)
    options = dict(proposal=draws.Catalogue(appeared, point_in_time=True), time=time)
    drawn = untouched.draw(np.zeros(1000, int), 1, np.arange(1000), **options)[:, 0]
    found = {moment: np.unique(drawn[time == moment]).tolist() for moment in (4, 5, 9, 10, 11)}
    assert found == {4: [4], 5: [0, 4], 9: [0, 4], 10: [0, 3, 4], 11: [0, 3, 4]}


def test_where_all_that_had_appeared_is_touched_the_draw_is_from_all_that_is_known():
    appeared = np.array([0, 5, draws.NEVER, 10])
    untouched = draws.UntouchedItems(log_of([0], catalogue=4))
    proposal = draws.Catalogue(appeared, point_in_time=True)
    options = dict(proposal=proposal, time=np.zeros(200, int))
    drawn = untouched.draw(np.zeros(200, int), 1, np.arange(200), **options)
    assert np.unique(drawn).tolist() == [1, 3]


def test_all_known_items_are_drawn_at_any_time():
    catalogue = draws.Catalogue(np.array([7, draws.NEVER, 9]))
    untouched = draws.UntouchedItems(log_of([1], catalogue=3))
    options = dict(proposal=catalogue, time=np.zeros(100, int))
    drawn = untouched.draw(np.zeros(100, int), 1, np.arange(100), **options)
    assert np.unique(drawn).tolist() == [0, 2]
    with pytest.raises(ValueError, match="training knows no item"):
        draws.Catalogue(np.full(3, draws.NEVER))


@pytest.mark.parametrize("proposal", [None, "counts", "catalogue"])
def test_a_crawler_costs_no_more_than_others(proposal):
    """Of 50,000 items one user touches all but two; a thousand requests are theirs."""
    size, asked = 50_000, 1000
    left = [17, 40_000]
    untouched = draws.UntouchedItems(log_of(np.delete(np.arange(size), left), catalogue=size))
    chosen = {
        None: None,
        "counts": draws.ByCount(np.ones(size, np.int64)),
        "catalogue": draws.Catalogue(np.zeros(size, np.int64)),
    }[proposal]
    time = np.full(asked, 9) if proposal == "catalogue" else None
    start = perf_counter()
    drawn = untouched.draw(np.zeros(asked, int), 3, np.arange(asked), proposal=chosen, time=time)
    # A thousand times the catalogue would be 50 million look-ups: seconds.
    assert perf_counter() - start < 1.5
    assert np.unique(drawn).tolist() == left
    assert abs((drawn == 17).sum() - 1500) < 5 * np.sqrt(3000 / 4)
