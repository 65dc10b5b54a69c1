import numpy as np
import pytest

from recjax.zoo.features import HashedRows, KnownRows, RowMap, signatures

MANY = signatures("item", np.arange(10_000))


@pytest.mark.parametrize("rows", [3, 4, 1000, 2**31 - 1])
def test_hashed_rows_stay_in_range(rows):
    hashed = HashedRows(rows)(MANY)
    assert hashed.dtype == np.int32 and hashed.shape == MANY.shape
    assert hashed.min() >= 2 and hashed.max() < rows


def test_hashed_rows_use_every_bucket_evenly():
    counts = np.bincount(HashedRows(102)(MANY), minlength=102)
    assert counts[:2].tolist() == [0, 0]
    # 100 buckets of 100 values: chi-square has mean 99 and standard deviation 14.
    assert abs(((counts[2:] - 100) ** 2 / 100).sum() - 99) < 5 * 14


@pytest.mark.parametrize("rows", [-1, 2, 2**31])
def test_hashed_rows_must_fit(rows):
    with pytest.raises(ValueError, match=f"HashedRows.rows must be > 2 .* got {rows}"):
        HashedRows(rows)


def test_known_rows_keep_what_is_frequent():
    values = np.array([5, 9, 5, 3, 5, 9], np.uint64)
    ask = np.array([3, 5, 9, 4, 0, 2**63], np.uint64)
    assert KnownRows.of(values)(ask).tolist() == [2, 3, 4, 1, 1, 1]
    assert KnownRows.of(values, min_count=2)(ask).tolist() == [1, 2, 3, 1, 1, 1]
    assert KnownRows.of(values, min_count=3)(ask).tolist() == [1, 2, 1, 1, 1, 1]
    assert [KnownRows.of(values, min_count=n).rows for n in (1, 2, 3, 4)] == [5, 4, 3, 2]


def test_known_rows_are_distinct_and_keep_the_shape():
    known = KnownRows.of(MANY)
    rows = known(MANY.reshape(100, 100))
    assert rows.shape == (100, 100) and rows.dtype == np.int32
    assert np.array_equal(np.sort(rows, axis=None), np.arange(2, 10_002))
    assert np.all(known(signatures("user", np.arange(100))) == 1)


def test_empty():
    nothing = KnownRows.of(np.zeros(0, np.uint64))
    assert nothing.rows == 2
    assert nothing(MANY[:3]).tolist() == [1, 1, 1]
    for rows in (nothing, KnownRows.of(MANY), HashedRows(10)):
        assert rows(np.zeros((2, 0), np.uint64)).shape == (2, 0)


def test_both_are_row_maps():
    assert isinstance(HashedRows(10), RowMap)
    assert isinstance(KnownRows.of(MANY), RowMap)
