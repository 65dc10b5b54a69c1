import tracemalloc

import numpy as np
import pytest

from recjax.zoo.features import DistinctCounts, KnownRows, signatures


def counted(*blocks, dtype=np.uint64):
    counts = DistinctCounts()
    for block in blocks:
        counts.add(np.array(block, dtype))
    return counts


def test_counts_across_blocks():
    counts = counted([5, 9, 5], [], [[3, 5], [9, 7]], [2**63])
    values, times = counts.total()
    assert values.tolist() == [3, 5, 7, 9, 2**63] and values.dtype == np.uint64
    assert times.tolist() == [1, 3, 1, 2, 1]
    assert counts.frequent(2).tolist() == [5, 9]
    counts.add(np.array([7, 8], np.uint64), np.array([4, 2]))  # counting goes on afterwards
    assert dict(zip(*counts.total(), strict=True)) == {3: 1, 5: 3, 7: 5, 8: 2, 9: 2, 2**63: 1}


def test_blocks_do_not_matter():
    values = signatures("item", np.random.default_rng(0).zipf(1.3, 20_000))
    whole = KnownRows.of(values, min_count=10)
    for size in (7, 1_000, 20_000):
        blocks = [values[at : at + size] for at in range(0, len(values), size)]
        known = counted(*blocks).frequent(10)
        assert len(known) > 100
        assert np.array_equal(known, whole.signatures)


def test_nothing_was_counted():
    assert counted().frequent(1).shape == (0,)
    with pytest.raises(ValueError, match="min_count must be >= 1, got 0"):
        counted([1]).frequent(0)


def test_memory_follows_the_distinct_values():
    draws = np.random.default_rng(0)
    counts = DistinctCounts()
    counts.add(draws.integers(0, 1000, 10_000).astype(np.uint64))
    tracemalloc.start()
    for _ in range(300):
        counts.add(draws.integers(0, 1000, 10_000).astype(np.uint64))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert counts.total()[1].sum() == 301 * 10_000
    # A block of 80 KB, sorted beside itself and its sums; all values would take 24 MB.
    assert peak < 600_000
