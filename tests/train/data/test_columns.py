import numpy as np
import pyarrow as pa
import pytest

from logs import hand_made_dataset, random_dataset
from recjax.train.data import columns


@pytest.fixture(params=[1, 3, 2**22])
def piece(request, monkeypatch):
    """Pieces of one, pieces that do not divide the columns below, and a single piece."""
    monkeypatch.setattr(columns, "_PIECE", request.param)
    return request.param


def test_pieces(piece):
    parts = list(columns.pieces(7))
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(7))
    assert len(parts) == -(-7 // piece)
    assert list(columns.pieces(0)) == []


def test_take_and_count(piece):
    values = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
    taken = columns.take(values, np.array([2, 0, 2, 1], np.int32))
    assert taken.tolist() == [[5, 6], [1, 2], [5, 6], [3, 4]] and taken.dtype == np.float32
    assert columns.take(np.array([7, 8]), np.array([1, 1, 0]), np.int8).dtype == np.int8
    assert columns.count(np.array([1, 3, 1, 1], np.int8)).tolist() == [0, 3, 0, 1]
    assert columns.count(np.array([1, 3, 1, 1]), 6).tolist() == [0, 3, 0, 1, 0, 0]
    assert columns.count(np.array([], np.int32), 2).tolist() == [0, 0]


def test_compact():
    assert columns.compact(np.array([-(2**31), 2**31 - 1])).dtype == np.int32
    assert columns.compact(np.array([0, 2**31])).dtype == np.int64


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_columns_grow(monkeypatch, chunk):
    monkeypatch.setattr(columns, "_CHUNK", chunk)
    column = columns.Column()
    assert len(column) == 0 and column.whole().tolist() == []
    for part, length in (([1, 2, 3], 3), ([], 3), ([4], 4), ([2**40, 5], 6), ([6], 7)):
        kind = np.int64 if 2**40 in part else np.int32
        column.append(np.array(part, kind))
        assert len(column) == length
    assert column.whole().tolist() == [1, 2, 3, 4, 2**40, 5, 6]
    assert len(column) == 0
    column.append(np.array([1, 2], np.int8))
    whole = column.whole()
    assert whole.tolist() == [1, 2] and whole.dtype == np.int8


def test_distinct_of(piece):
    values = np.array([5, 2, 5, 5, 9, 2, 0, 5, 9, 9])
    assert columns.distinct_of(values).tolist() == [0, 2, 5, 9]
    random = np.random.default_rng(0).integers(-5, 5, 100)
    assert columns.distinct_of(random.copy()).tolist() == np.unique(random).tolist()
    assert columns.distinct_of(np.array([], np.int64)).tolist() == []


@pytest.mark.parametrize("far", [7, 2**31 - 1, 2**60])
def test_codes(piece, far):
    ids = np.array([far, -2, far, 3, -2], np.int64 if far == 2**60 else np.int32)
    found, distinct = columns.codes(ids.copy())
    assert found.tolist() == [2, 0, 2, 1, 0] and found.dtype == np.int32
    assert distinct.tolist() == [-2, 3, far]


def test_codes_of_texts():
    parts = [pa.array(part).dictionary_encode() for part in (["b", "é", "b"], ["a"], ["é", "a"])]
    found, distinct = columns.codes_of_texts(parts)
    assert found.tolist() == [1, 2, 1, 0, 2, 0] and found.dtype == np.int32
    assert distinct.to_pylist() == ["a", "b", "é"]
    assert parts == []


def test_first_of_each(piece):
    codes = np.array([2, 0, 2, 2, 0, 3])
    values = np.array([10, 20, 30, 40, 50, 60], np.int32)
    assert columns.first_of_each(codes, values, 5).tolist() == [20, 0, 10, 60, 0]


def test_firsts(piece):
    a = np.array([1, 2, 1, 1, 2, 1], np.int32)
    b = np.array([5, 5, 5, 6, 5, 5], np.int32)
    # (1, 5) at 0, 2 and 5; (2, 5) at 1 and 4; (1, 6) at 3.
    assert columns.firsts((a, b)).tolist() == [True, True, False, True, False, False]
    time = np.array([9, 3, 4, 1, 2, 4])
    assert columns.firsts((a, b), time).tolist() == [False, False, True, True, True, False]


@pytest.mark.parametrize("make", [hand_made_dataset, random_dataset])
def test_pieces_leave_no_trace_in_a_data_set(monkeypatch, make):
    whole = make()
    monkeypatch.setattr(columns, "_PIECE", 4)
    parts = make()
    for name in ("offsets", "item", "time"):
        np.testing.assert_array_equal(getattr(parts.log, name), getattr(whole.log, name))
    np.testing.assert_array_equal(parts.log.event["behavior"], whole.log.event["behavior"])
    for part in ("train", "validation", "test"):
        one, two = getattr(parts, part), getattr(whole, part)
        np.testing.assert_array_equal(one.candidate, two.candidate)
        np.testing.assert_array_equal(one.cut, two.cut)
