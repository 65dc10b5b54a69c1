import numpy as np
import pyarrow as pa
import pytest

from recjax.train.data.sources.feature_lists import parse


def text(*features):
    """Features as their publisher writes them, from (field, id, value)."""
    return "\x01".join(f"{field}\x02{id_}\x03{value}" for field, id_, value in features)


FULL = text(("205", 7, "1.0"), ("210", 5, "0.5"), ("210", 6, "2"), ("210", 4, "2.0"))
LISTS = [FULL, None, text(("109_14", 2**31 - 1, "-1e-2")), text(("210", 0, ".5"))]
COUNTS = np.array([4, 0, 1, 1])


def test_lists():
    for lists in (pa.array(LISTS), pa.array(["x", *LISTS, "y"]).slice(1, 4)):
        features, broken = parse(lists, COUNTS)
        assert broken == {}
        assert features.row.tolist() == [0, 0, 0, 0, 2, 3]
        assert [features.names[at] for at in features.field] == ["205"] + ["210"] * 3 + [
            "109_14",
            "210",
        ]
        assert features.id.tolist() == [7, 5, 6, 4, 2**31 - 1, 0] and features.id.dtype == np.int32
        assert features.value.tolist() == [1, 0.5, 2, 2, -0.01, 0.5]


def test_one_id_or_the_heaviest():
    features, _ = parse(pa.array(LISTS), COUNTS)
    ids, more = features.first("205", 4)
    assert (ids.tolist(), more) == ([7, -1, -1, -1], 0)
    ids, more = features.first("210", 4)
    assert (ids.tolist(), more) == ([5, -1, -1, 0], 2)
    # By value, then in the published order.
    ids, more = features.heaviest("210", 4, 2)
    assert (ids.tolist(), more) == ([[6, 4], [-1, -1], [-1, -1], [0, -1]], 1)
    ids, more = features.heaviest("210", 4, 4)
    assert (ids.tolist(), more) == ([[6, 4, 5, -1], [-1] * 4, [-1] * 4, [0, -1, -1, -1]], 0)
    assert features.first("999", 4)[0].tolist() == [-1] * 4
    assert features.heaviest("999", 4, 1)[0].tolist() == [[-1]] * 4


BROKEN = {
    "205\x027": "a feature must be field\\x02id\\x03value, got '205\\x027'",
    "205\x037\x021.0": "a feature must be field\\x02id\\x03value, got ",
    "\x027\x031.0": "a feature must be field\\x02id\\x03value, got ",
    "205\x02x\x031.0": "a feature must be field\\x02id\\x03value, got ",
    "205\x020x1\x031.0": "a feature must be field\\x02id\\x03value, got ",
    "205\x02-7\x031.0": "a feature must be field\\x02id\\x03value, got ",
    "205\x02 7\x031.0": "a feature must be field\\x02id\\x03value, got ",
    "205\x027\x03": "a feature must be field\\x02id\\x03value, got ",
    "205\x027\x03nan": "a feature must be field\\x02id\\x03value, got ",
    "205\x027\x031.0\x03": "a feature must be field\\x02id\\x03value, got ",
    "205\x027\x031.0\r": "a feature must be field\\x02id\\x03value, got ",
    "205\x02\x031\x027\x031.0": "a feature must be field\\x02id\\x03value, got ",
    f"205\x02{2**31}\x031.0": "an id must be <= 2147483647, got 2147483648",
    "205\x027\x031e999": "a value must be finite, got 1e999",
    "": "says that it holds 1 features, holds 0",
    "205\x027\x031.0\x01": "says that it holds 1 features, holds 2",
}


@pytest.mark.parametrize("list_", BROKEN)
def test_a_broken_list_leaves_the_others(list_):
    features, broken = parse(pa.array([*LISTS, list_ or None, FULL]), np.array([*COUNTS, 1, 4]))
    assert broken.keys() == {4} and broken[4].startswith(BROKEN[list_])
    expected, _ = parse(pa.array([*LISTS, FULL]), np.array([*COUNTS, 4]))
    assert features.row.tolist() == expected.row.tolist()
    assert features.id.tolist() == expected.id.tolist()


def test_a_feature_may_be_empty_only_by_mistake():
    _, broken = parse(pa.array(["205\x027\x031.0\x01", "\x01205\x027\x031.0"]), np.array([2, 2]))
    assert [reason.partition(",")[0] for reason in broken.values()] == [
        "a feature must be field\\x02id\\x03value"
    ] * 2


def test_nothing():
    features, broken = parse(pa.array([None, None], pa.string()), np.zeros(2, np.int64))
    assert broken == {} and features.names == ()
    assert features.first("205", 2)[0].tolist() == [-1, -1]
    assert features.heaviest("205", 2, 1)[0].tolist() == [[-1], [-1]]
