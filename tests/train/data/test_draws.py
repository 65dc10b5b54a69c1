from logs import random_dataset
import numpy as np
import pytest

from recjax.train.data import draws
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


def test_a_user_who_touched_everything_is_refused():
    with pytest.raises(ValueError, match="user 1 of the log touched all 3 items"):
        draws.UntouchedItems(log_of([0], [2, 1, 0, 1], catalogue=3))
