"""One value is one id, number or list, whatever type and text a file gives it."""

import decimal

import numpy as np
import pyarrow as pa
import pytest

from recjax.train.data.declaration.columns import Column
from recjax.train.data.declaration.values import (
    as_ids,
    as_lists,
    as_numbers,
    is_boolean,
    is_fraction,
    is_whole,
    parse_list,
    read_values,
)

LONG = 1234567890123456789  # 19 digits, of which a float keeps 16


def ids(values, value="int", kind=None):
    found, odd = as_ids(pa.array(values, kind), value)
    return found.to_pylist(), odd


SEVEN = [
    pa.array([7, None, -3]),
    pa.array([7, None, -3], pa.int8()),
    pa.array([7.0, None, -3.0]),
    pa.array([7.0, None, -3.0], pa.float32()),
    pa.array([decimal.Decimal("7.00"), None, decimal.Decimal("-3.00")]),
    pa.array(["7", None, "-3"]),
    pa.array(["7.0", None, "-3.00"]),
    pa.array(["7.", None, "-3"]),
]


@pytest.mark.parametrize("values", SEVEN, ids=lambda x: f"{x.type} {x[0]}")
def test_a_whole_number_is_one_id(values):
    found, odd = as_ids(values, "int")
    assert (found.type, found.to_pylist(), odd) == (pa.int64(), [7, None, -3], 0)
    assert is_whole(values) and not is_fraction(values)


def test_ids_read_as_text_are_one_id_too():
    for values in SEVEN[:5]:
        assert as_ids(values, "string")[0].to_pylist() == ["7", None, "-3"]
    assert ids([1.5, 2.0], "string") == (["1.5", "2"], 0)
    assert ids([True, False], "string") == (["true", "false"], 0)


def test_nineteen_digits_are_exact():
    for values in ([LONG], [str(LONG)], [f"{LONG}.0"], [decimal.Decimal(LONG)]):
        assert ids(values) == ([LONG], 0)
    assert ids([LONG], kind=pa.uint64()) == ([LONG], 0)
    assert ids([str(2**63 - 1), str(-(2**63))]) == ([2**63 - 1, -(2**63)], 0)


def test_unsigned_ids_beyond_int64_are_texts_in_every_form():
    big = 2**64 - 2
    typed, text = pa.array([big, 5], pa.uint64()), pa.array([str(big), "5"])
    assert not is_whole(typed) and not is_whole(text)
    for values in (typed, text):
        assert as_ids(values, "string")[0].to_pylist() == [str(big), "5"]
    # Declared as whole numbers by another day's file they are unknown, but told apart.
    for values in (typed, text):
        (first, five), odd = ids(values)
        assert five == 5 and first < 0 and odd == 1
    assert ids(typed)[0] == ids(text)[0]


def test_leading_zeros_and_signs_are_text():
    for text in ("007", "+7", "7e0", "0x7", "7 ", "", "-"):
        assert not is_whole(pa.array([text, "1"])), text
    assert is_whole(pa.array(["0", "-7", None, "7"]))


def test_what_a_whole_number_cannot_be_is_unknown_and_told_apart():
    found, odd = ids(["5", "x7", None, "x8", "x7", "1.5", "05"])
    assert odd == 5
    assert (found[0], found[2]) == (5, None)
    assert found[1] == found[4] and len({found[1], found[3], found[5], found[6]}) == 4
    assert max(found[1], found[3], found[5], found[6]) < 0


def test_truth_values():
    for values in ([True, False, None], ["true", "False", None], ["1", "0", None], [1, 0, None]):
        assert ids(values, "bool") == ([1, 0, None], 0)
    found, odd = ids(["true", "maybe"], "bool")
    assert odd == 1 and found[0] == 1 and found[1] < 0
    assert is_boolean(pa.array([True])) and is_boolean(pa.array(["TRUE", "false", None]))
    for values in (["1", "0"], [1, 0], ["yes"], [None]):
        assert not is_boolean(pa.array(values))


@pytest.mark.parametrize(
    ("values", "fraction"),
    [
        (["1.5", "2"], True),
        (["1e3", "2"], True),
        ([".5"], True),
        (["-inf", "1"], True),
        (["1.0", "2.00", None], False),
        (["1", "2"], False),
        (["007", "08"], False),
        (["x", "1.5"], False),
        ([None, None], False),
        ([1.5, None], True),
        ([1.0, float("nan")], True),
        ([3.0, None], False),
    ],
)
def test_numbers_with_a_fraction_are_no_ids(values, fraction):
    kind = pa.string() if values == [None, None] else None
    assert is_fraction(pa.array(values, kind)) == fraction


def test_numbers():
    expected = [1.5, None, -2.0]
    for values in (expected, ["1.5", None, "-2"], [decimal.Decimal("1.5"), None, -2]):
        numbers, odd = as_numbers(pa.array(values))
        assert (numbers.to_pylist(), odd) == (expected, 0)
    numbers, odd = as_numbers(pa.array(["1.5", "x", None, "1,5", ""]))
    assert (numbers.to_pylist(), odd) == ([1.5, None, None, None, None], 3)
    numbers, odd = as_numbers(pa.array([1.5, float("nan"), None]))
    assert (numbers.to_pylist(), odd) == ([1.5, None, None], 0)
    assert as_numbers(pa.array([True, False]))[0].to_pylist() == [1.0, 0.0]
    assert as_numbers(pa.array([[1]]))[0].to_pylist() == [None]
    column = Column(name="price", role="item", kind="number")
    read = read_values(pa.array([1.5, 1e300, None, -1e39, float("inf")]), column)
    assert read.endless.tolist() == [False, True, False, True, True]


def test_texts_that_write_lists():
    for text in ("[1, 2]", "[1,2]", " [1, 2] ", "[1 2]"):
        assert parse_list(text) == [1, 2]
    assert parse_list('["a", "b, c", null]') == ["a", "b, c", None]
    assert parse_list("['a', 'b']") == ["a", "b"]
    assert parse_list("[]") == []
    assert parse_list("[ 1.5e-1  2. ]") == [0.15, 2.0]
    for text in ("[1, [2]]", "[a, b]", "1, 2", "[1", '{"a": 1}', "[(1, 2)]", "[" * 10_000 + "]"):
        assert parse_list(text) is None, text[:20]


def bag(values, **options):
    column = Column(name="tags", role="item", kind="bag", **options)
    read = read_values(pa.array(values), column)
    return read.values.to_pylist(), read.odd


def test_bags():
    assert bag([["a", "b"], None, []]) == ([["a", "b"], None, []], 0)
    assert bag(["a|b", None, "c", "|a|| b |"], separator="|") == (
        [["a", "b"], None, ["c"], ["a", "b"]],
        0,
    )
    assert bag([[1, 2], [3]], value="int") == ([[1, 2], [3]], 0)
    assert bag([[1.0, 2.0], [3.0]], value="int") == ([[1, 2], [3]], 0)
    assert bag(["1|2", "3.0"], separator="|", value="int") == ([[1, 2], [3]], 0)
    assert bag(["[1, 2]", "[3]"], separator="[]", value="int") == ([[1, 2], [3]], 0)
    assert bag(['["a", "b"]', "[]"], separator="[]") == ([["a", "b"], []], 0)
    # One more kind of list in a file; the first slots count.
    large = pa.array([["a", "b", "c"]], pa.large_list(pa.string()))
    column = Column(name="tags", role="item", kind="bag", width=2)
    assert read_values(large, column).values.to_pylist() == [["a", "b"]]
    fixed = pa.array([[1, 2], None], pa.list_(pa.int16(), 2))
    assert as_lists(fixed, None)[0].to_pylist() == [[1, 2], None]
    # A file without lists, read by a declaration of lists.
    assert bag(["a", None, "b"]) == ([["a"], None, ["b"]], 0)
    found, odd = bag([["1", "x"], ["2"]], value="int")
    assert odd == 1 and found[0][0] == 1 and found[0][1] < 0 and found[1] == [2]


def test_a_slice_of_lists_is_read_as_itself():
    """Arrow's slices share the values of the whole."""
    whole = pa.array([["a"], ["b", "c"], None, ["d"]])
    column = Column(name="tags", role="item", kind="bag")
    assert read_values(whole.slice(1), column).values.to_pylist() == [["b", "c"], None, ["d"]]
    assert read_values(whole.slice(1, 1), column).values.to_pylist() == [["b", "c"]]


def test_vectors_have_the_declared_length():
    column = Column(name="picture", role="item", kind="vector", width=2)
    read = read_values(pa.array([[1.0, 2.0], [1.0], None, [3.0, None]]), column)
    assert read.values.to_pylist() == [[1.0, 2.0], None, None, [3.0, None]]
    assert read.odd == 1
    text = Column(name="picture", role="item", kind="vector", width=2, separator="|")
    read = read_values(pa.array(["1.5|2", "3|x", "4"]), text)
    assert read.values.to_pylist() == [[1.5, 2.0], [3.0, None], None]
    assert read.odd == 2
    assert np.dtype(read.values.flatten().to_numpy(zero_copy_only=False).dtype) == np.float64
