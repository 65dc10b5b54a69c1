import dataclasses

import numpy as np
import pytest

from recjax.train.data.batches.assembly import pulled_batch, whole_batch
from recjax.train.data.event_log import EventLog, Requests
from recjax.zoo.features import Field, HashedRows, Schema, Table, encode, record_type
from recjax.zoo.features.cross import cross

ROWS = 10_000
PAIR = Field(name="pair", role="candidate", cross=("user.city", "candidate.item"))
HOURLY = Field(name="hourly", role="context", cross=("user.city", "context.hour"))
SEEN = Field(
    name="seen",
    role="candidate",
    kind="bag",
    width=3,
    cross=("history.item", "candidate.item"),
)
PLAIN = (
    Field(name="city", role="user"),
    Field(name="hour", role="context"),
    Field(name="item", role="history"),
    Field(name="item", role="candidate"),
)
SCHEMA = Schema(
    tables=tuple(
        Table(name=name, rows=ROWS, dim=2)
        for name in ("city", "hour", "item", "pair", "hourly", "seen")
    ),
    # Crosses may stand before their parts.
    fields=(PAIR, *PLAIN, SEEN, HOURLY),
)
ROW_MAPS = {table.name: HashedRows(ROWS) for table in SCHEMA.tables}


def rows(field, *parts, mask=((True,),)):
    parts = [np.array(part, np.int32) for part in parts]
    return cross(SCHEMA, field, parts, np.array(mask, bool))


def test_a_combination_has_a_row_of_its_own():
    row = rows(PAIR, [7], [[9, 8, 9]])
    assert row.shape == (1, 3) and row.dtype == np.int32
    assert row[0, 0] == row[0, 2] != row[0, 1]
    assert 2 <= row.min() and row.max() < ROWS
    # Neither the sum nor the set of the parts: 7 with 9 is not 9 with 7.
    assert rows(PAIR, [9], [[7]])[0, 0] != row[0, 0]
    # The same combination in another table is another.
    assert rows(HOURLY, [7], [9])[0] != row[0, 0]


def test_few_combinations_collide():
    city, item = np.meshgrid(np.arange(2, 52), np.arange(2, 22), indexing="ij")
    found = rows(PAIR, city[:, 0], item)
    assert len(np.unique(found)) > 0.93 * 1000  # 1 - exp(-1000 / 10000) share a row: 5 %


def test_padding_and_the_unseen_pass_through():
    assert rows(PAIR, [0, 1, 5], [[1, 3], [3, 0], [1, 0]]).tolist() == [[0, 0], [1, 0], [1, 0]]


def test_history_parts_are_the_newest_events():
    mask = [[True, False, True, True, True], [False] * 5, [True] + [False] * 4]
    history = [[11, 99, 12, 13, 14], [99] * 5, [11] + [99] * 4]
    found = rows(SEEN, history, [[5], [5], [6]], mask=mask)
    one = lambda item, candidate: rows(SEEN, [[item]], [[candidate]])[0, 0, 0]
    assert found.shape == (3, 1, 3)
    assert found[0, 0].tolist() == [one(14, 5), one(13, 5), one(12, 5)]
    assert found[1, 0].tolist() == [0, 0, 0]
    assert found[2, 0].tolist() == [one(11, 6), 0, 0]
    assert rows(SEEN, np.zeros((2, 0)), [[5], [6]], mask=np.zeros((2, 0))).tolist() == [
        [[0, 0, 0]],
        [[0, 0, 0]],
    ]


def test_logged_and_live_requests_agree():
    raw = {"city": [3, 4], "hour": [20, 21, 22], "item": [100, 101, 102]}
    row = {name: ROW_MAPS[name](_signed(name, values)) for name, values in raw.items()}
    log = EventLog(
        offsets=np.array([0, 4, 5]),
        item=np.array([0, 1, 2, 0, 1], np.int32),
        time=np.array([1, 2, 3, 4, 5]),
        event={},
        items={"item": row["item"]},
        users={"city": row["city"]},
    )
    requests = Requests(
        user=np.array([0, 1, 1], np.int32),
        cut=np.array([4, 1, 0]),
        time=np.array([10, 10, 10]),
        candidate=np.array([[2, 1], [0, 2], [1, -1]], np.int32),
        label={"click": np.zeros((3, 2), np.float32)},
        context={"hour": row["hour"]},
    )
    logged = whole_batch(SCHEMA, log, requests, history=4)
    events = [[100, 101, 102, 100], [101], []]
    items = [[102, 101], [100, 102], [101]]
    record = lambda i: {
        "context": {"time": 10, "hour": raw["hour"][i]},
        "user": {"city": [3, 4, 4][i], "history": [{"time": 0, "item": x} for x in events[i]]},
        "items": [{"item": x} for x in items[i]],
    }
    assert "pair" not in str(record_type(SCHEMA))
    live = encode([record(i) for i in range(3)], SCHEMA, ROW_MAPS, history=4)
    for role, name in (("candidate", "pair"), ("candidate", "seen"), ("context", "hourly")):
        np.testing.assert_array_equal(live[role][name], logged[role][name])
    assert logged["candidate"]["seen"].shape == (3, 2, 3)
    # Pulled: the same rows, by their positions.
    step = pulled_batch(SCHEMA, log, requests, history=4)
    for name in ("pair", "seen"):
        pulled = step.pulled.rows[name][step.batch["candidate"][name]]
        np.testing.assert_array_equal(pulled, logged["candidate"][name])


def _signed(name, values):
    from recjax.zoo.features import signatures

    return signatures(name, np.array(values))


def test_the_schema_carries_it():
    assert Schema.from_dict(SCHEMA.to_dict()) == SCHEMA
    other = dataclasses.replace(PAIR, cross=("candidate.item", "user.city"))
    assert dataclasses.replace(SCHEMA, fields=(other, *SCHEMA.fields[1:])).hash != SCHEMA.hash


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(cross=("user.city",)), "two or more fields as 'role.name'"),
        (dict(cross=("user.city", "item")), "two or more fields as 'role.name'"),
        (dict(cross=("user.city", "user.city")), "a part stands twice"),
        (dict(role="user"), "role 'candidate' and kind 'id', got 'user' and 'id'"),
        (dict(cross=("user.city", "context.hour")), "must have role 'context'"),
        (dict(cross=("history.item", "candidate.item")), "role 'candidate' and kind 'bag'"),
        (dict(cross=("history.item", "history.item2")), "one part of a cross may be of the hist"),
    ],
)
def test_bad_crosses(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PAIR, **changes)


@pytest.mark.parametrize("part", ["candidate.price", "user.tags", "candidate.pair", "user.name"])
def test_only_ids_can_be_crossed(part):
    more = (
        Field(name="price", role="candidate", kind="dense"),
        Field(name="tags", role="user", kind="bag", table="item", width=2),
    )
    crossed = Field(name="bad", role="candidate", table="pair", cross=("candidate.item", part))
    with pytest.raises(ValueError, match=f"candidate.bad: {part} is no id field to cross"):
        dataclasses.replace(SCHEMA, fields=(*SCHEMA.fields, *more, crossed))
