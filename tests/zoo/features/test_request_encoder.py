"""What remembers rows encodes as `encode` does, bit for bit, and says what it says."""

import itertools

import numpy as np
import pytest

from recjax.zoo.features import (
    Field,
    HashedRows,
    KnownRows,
    RequestEncoder,
    Schema,
    Table,
    encode,
    request_encoder,
    signatures,
)

SCHEMA = Schema(
    tables=(
        Table(name="item", rows=40, dim=4),
        Table(name="word", rows=20, dim=4),
        Table(name="city", rows=9, dim=2),
        Table(name="both", rows=50, dim=2),
    ),
    fields=(
        Field(name="item", role="candidate"),
        Field(name="item", role="history"),
        Field(name="words", role="candidate", table="word", kind="bag", width=2, value="string"),
        Field(name="words", role="history", table="word", kind="bag", width=2, value="string"),
        Field(name="price", role="candidate", kind="dense", transform="log1p"),
        Field(name="picture", role="candidate", kind="dense", width=3),
        Field(name="city", role="user", value="string", missing="unseen"),
        Field(name="scene", role="context", table="word", value="string"),
        Field(
            name="both",
            role="candidate",
            kind="bag",
            width=4,
            cross=("history.item", "candidate.item"),
        ),
    ),
)
ROW_MAPS = {
    "item": KnownRows.of(signatures("item", np.arange(38))),
    "word": KnownRows.of(signatures("word", [f"w{k}" for k in range(18)])),
    "city": HashedRows(9),
    "both": HashedRows(50),
}


def some(random, low=0, high=5):
    return range(int(random.integers(low, high)))


def maybe(random, value):
    """The value, or nothing in one of two ways."""
    return [{}, {"x": None}, {"x": value}, {"x": value}, {"x": value}][random.integers(5)]


def named(name, found):
    return dict.fromkeys([name], found["x"]) if found else {}


def records(seed, count=4):
    random = np.random.default_rng(seed)
    item = lambda: int(random.integers(-5, 60))
    word = lambda: f"w{random.integers(25)}"

    def thing(*, dense):
        found = named("item", maybe(random, item()))
        found |= named("words", maybe(random, [word() for _ in some(random)]))
        number = [1, 0.5, 2**40, -0.0, float("nan")][random.integers(5)]
        picture = [[0.5, None, 2][random.integers(3)] for _ in range(3)]
        more = named("price", maybe(random, number)) | named("picture", maybe(random, picture))
        return found | (more if dense else {})

    def past():
        return thing(dense=False) | named("time", maybe(random, int(random.integers(0, 99))))

    return [
        {
            "context": named("time", maybe(random, int(random.integers(50, 99))))
            | named("scene", maybe(random, word())),
            "user": named("city", maybe(random, word()))
            | named("history", maybe(random, [past() for _ in some(random, 0, 9)])),
            "items": [thing(dense=True) for _ in some(random)],
        }
        for _ in range(count)
    ]


def assert_equal(one, two):
    assert one.keys() == two.keys()
    for name, value in one.items():
        if isinstance(value, dict):
            assert_equal(value, two[name])
        else:
            assert value.dtype == two[name].dtype, name
            np.testing.assert_array_equal(value, two[name], err_msg=name)


@pytest.fixture
def never_slow(monkeypatch):
    """What falls back on `encode` fails."""

    def refuse(*_, **__):
        raise AssertionError("not encoded by what is remembered")

    monkeypatch.setattr(request_encoder, "encode", refuse)


@pytest.mark.parametrize("seed", range(25))
def test_batches_are_those_of_encode(seed, never_slow):
    encoder = RequestEncoder(SCHEMA, ROW_MAPS, history=4)
    for again in range(3):  # With nothing remembered, and with much.
        asked = records(100 * seed + again)
        assert_equal(encoder(asked), encode(asked, SCHEMA, ROW_MAPS, history=4))
        assert_equal(encoder(tuple(asked)), encode(asked, SCHEMA, ROW_MAPS, history=4))


def test_what_is_remembered_is_bounded(monkeypatch, never_slow):
    monkeypatch.setattr(request_encoder, "_REMEMBERED", 5)
    encoder = RequestEncoder(SCHEMA, ROW_MAPS, history=4)
    for start in range(0, 60, 4):
        asked = [{"items": [{"item": start + k} for k in range(4)]}]
        assert_equal(encoder(asked), encode(asked, SCHEMA, ROW_MAPS, history=4))
        assert all(len(rows) <= 10 for rows in encoder._rows.values())


EMPTY = ([], [{}], [{"items": None, "user": None, "context": None}], [{"user": {"history": []}}])


@pytest.mark.parametrize("asked", EMPTY, ids=str)
def test_empty_requests(asked, never_slow):
    encoder = RequestEncoder(SCHEMA, ROW_MAPS, history=4)
    assert_equal(encoder(asked), encode(asked, SCHEMA, ROW_MAPS, history=4))


ODD = (
    [{"items": [{"item": True}]}],
    [{"items": [{"item": 3.0}]}],
    [{"items": [{"item": np.int64(3)}]}],
    [{"items": [None, {"item": 1}]}],
    [{"items": [{"price": 2**60}]}],
    [{"items": [{"item": 2**63}]}],
    [{"items": [{"item": "3"}]}],
    [{"items": [{"item": 2.5}]}],
    [{"items": [{"words": "w1"}]}],
    [{"items": [{"words": ["w1", None]}]}],
    [{"items": [{"words": ["w1", 2]}]}],
    [{"items": [{"": 1}]}],
    [{"items": [{"itm": 1}]}],
    [{"user": {"history": [{"price": 1.0}]}}],
    [{"item": 1}],
    [{"items": {"item": 1}}],
    [{"context": {"time": "now"}}],
    [{"context": {"time": 2**70}}],
    [{"context": [1]}],
    ["record"],
    [{"user": {"city": 3}}],
    [{"items": [{"picture": [1.0, 2.0]}]}],
    [{"items": [{"picture": 1.0}]}],
    [{"items": [{"picture": [1.0, "2", 3.0]}]}],
    [{"user": {"city": "\ud800"}}],
)


@pytest.mark.parametrize(("asked", "unknown"), list(itertools.product(ODD, ("error", "ignore"))))
def test_what_is_odd_is_read_or_refused_as_by_encode(asked, unknown):
    encoder = RequestEncoder(SCHEMA, ROW_MAPS, history=4)
    encoder([{"items": [{"item": k} for k in range(10)]}])
    try:
        expected = encode(asked, SCHEMA, ROW_MAPS, history=4, unknown=unknown)
    except ValueError as error:
        with pytest.raises(ValueError) as raised:
            encoder(asked, unknown=unknown)
        assert str(raised.value) == str(error)
    else:
        assert_equal(encoder(asked, unknown=unknown), expected)
