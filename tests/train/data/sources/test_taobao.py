import gzip

import numpy as np
import pyarrow as pa
import pytest

from recjax.train.data import interactions, raw_interactions
from recjax.train.data.errors import DataError
from recjax.train.data.event_log import leaks
from recjax.train.data.protocol import Protocol
from recjax.train.data.sources import taobao
from recjax.zoo.features import signatures

START = 1_511_539_200  # 25 November 2017, midnight in Beijing
END = START + 9 * 86_400
LINES = [
    f"7,500,41,pv,{START + 50}",
    f"7,300,42,cart,{START}",
    f"9,300,42,pv,{START + 9}",
    f"7,300,42,buy,{START + 60}",
    f"9,100,41,fav,{START + 8}",
    f"7,200,43,pv,{END - 1}",
    f"9,500,99,pv,{START + 10}",  # a category of its own: not its first
    f"8,400,43,pv,{START}",  # a user of one event
    f"9,200,43,pv,{END}",
    f"7,100,41,pv,{START - 1}",
    "7,100,41,pv,-1",
    "7,100,41,pv,2122867355",
]


def write(tmp_path, lines, name="UserBehavior.csv"):
    path = tmp_path / name
    content = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


def rows(dataset, table, *values):
    return dataset.row_maps[table](signatures(table, list(values))).tolist()


@pytest.mark.parametrize("name", ["UserBehavior.csv", "UserBehavior.csv.gz"])
def test_the_published_form(tmp_path, name):
    dataset = taobao.load(write(tmp_path, LINES, name))
    log = dataset.log
    assert dataset.name == f"taobao:{name}"
    assert dataset.facts == {
        "users": 2,
        "items": 4,
        "events": 7,
        "users dropped (fewer than 3 events)": 1,
        "events outside 2017-11-25 to 2017-12-03 left out": 4,
        # User 9 met 100, 300 and 500, which is all.
        "training targets left out (their users touched all that training knows)": 1,
    }
    # Items 100, 200, 300 and 500: 400 left with its user.
    assert log.offsets.tolist() == [0, 4, 7]
    assert log.item.tolist() == [2, 3, 2, 1, 0, 2, 3]
    assert log.time.tolist() == [
        *(START + seconds for seconds in (0, 50, 60, 9 * 86_400 - 1)),
        *(START + seconds for seconds in (8, 9, 10)),
    ]
    assert log.time.dtype == np.int64 and log.item.dtype == np.int32
    # Training sees the first two events of user 7, and the first of user 9.
    assert log.items["item"].tolist() == [
        rows(dataset, "item", 100)[0],
        1,
        *rows(dataset, "item", 300, 500),
    ]
    # 41 is of 100 and 500; nothing that training sees is of 43.
    one, two = rows(dataset, "category", 41, 42)
    assert sorted([one, two]) == [2, 3]
    assert log.items["category"].tolist() == [one, 1, two, one]
    cart, pv, fav = rows(dataset, "behavior", "cart", "pv", "fav")
    assert sorted([cart, pv, fav]) == [2, 3, 4]
    assert log.event["behavior"].tolist() == [cart, pv, 1, pv, fav, pv, pv]
    kinds = [(field.role, field.name, field.value) for field in dataset.schema.fields]
    assert kinds == [
        ("candidate", "item", "int"),
        ("history", "item", "int"),
        ("candidate", "category", "int"),
        ("history", "category", "int"),
        ("history", "behavior", "string"),
    ]


def test_lines_that_repeat_are_one_event_unless_repeats_are_kept(tmp_path):
    path = write(tmp_path, [LINES[0], *LINES])
    dataset = taobao.load(path)
    assert dataset.log.item.tolist() == [2, 3, 2, 1, 0, 2, 3]
    assert dataset.facts["duplicate rows dropped"] == 1
    dataset = taobao.load(path, protocol=Protocol(duplicates="keep"))
    assert dataset.log.item.tolist() == [2, 3, 3, 2, 1, 0, 2, 3]


def test_nothing_of_those_days(tmp_path):
    with pytest.raises(DataError, match="UserBehavior.csv: none of its 4 events is of 25.11."):
        taobao.load(write(tmp_path, LINES[-4:]))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("7,100,41,pv", "has 4 values, expected 5 split by ','"),
        ("7,100,41,PV,1511539200", "behavior must be one of buy, cart, fav, pv, got 'PV'"),
        ("7,100,41,,1511539200", "behavior is missing"),
        ("7,,41,pv,1511539200", "item is missing"),
        ("seven,100,41,pv,1511539200", "user must be a whole number, got 'seven'"),
        ("7,100,41,pv,1511539200.5", "timestamp must be a whole number, got '1511539200.5'"),
        ("7,100,41,pv," + "9" * 19, "timestamp must fit in int64, got '9999"),
    ],
)
def test_bad_lines(tmp_path, line, reason):
    path = write(tmp_path, [*LINES[:3], line, *LINES[3:]])
    with pytest.raises(DataError) as caught:
        taobao.load(path)
    assert str(caught.value).startswith(f"{path}: line 4: {reason}")
    dataset = taobao.load(path, on_bad_row="skip")
    assert dataset.log.item.tolist() == [2, 3, 2, 1, 0, 2, 3]
    assert dataset.facts["rows skipped"] == 1
    assert dataset.facts["first row skipped"].startswith(f"UserBehavior.csv: line 4: {reason}")


def generated(size, seed=0):
    """Lines of 3000 users and 20,000 items, in no order, as columns."""
    random = np.random.default_rng(seed)
    item = (20_000 * random.random(size) ** 2).astype(np.int64) + 10**6
    return {
        "user": random.integers(1, 3001, size),
        "item": item,
        "category": item % 97,
        "behavior": random.integers(0, 4, size),
        "time": random.integers(START - 1000, END, size),
    }


def test_many_lines_are_what_the_definition_makes_of_them(tmp_path):
    """More than one block of text, and of every column."""
    raw = generated(300_000)
    names = np.array(taobao.BEHAVIORS)[raw["behavior"]]
    columns = [raw["user"], raw["item"], raw["category"], names, raw["time"]]
    path = write(tmp_path, (",".join(map(str, line)) for line in zip(*columns, strict=True)))
    dataset = taobao.load(path)
    inside = raw["time"] >= START
    user, item, time = (raw[name][inside] for name in ("user", "item", "time"))
    item_ids, code = np.unique(item, return_inverse=True)
    plain = raw_interactions.Interactions(
        user=np.unique(user, return_inverse=True)[1],
        item=code,
        time=time,
        item_ids=pa.array(item_ids),
        items=(interactions.Attribute(name="category", values=pa.array(item_ids % 97)),),
        events=(interactions.Attribute(name="behavior", values=pa.array(names[inside]), dim=4),),
    )
    expected = interactions.build("plain", plain)
    assert dataset.schema == expected.schema
    for group in ("event", "items", "users"):
        ours, theirs = getattr(dataset.log, group), getattr(expected.log, group)
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name])
    # And by plain sorting: by user, then time, then line.
    order = np.lexsort((np.arange(len(user)), time, user))
    np.testing.assert_array_equal(item_ids[dataset.log.item], item[order])
    np.testing.assert_array_equal(dataset.log.time, time[order])
    for part in ("train", "validation", "test"):
        ours, theirs = getattr(dataset, part), getattr(expected, part)
        np.testing.assert_array_equal(ours.candidate, theirs.candidate)
        assert len(leaks(dataset.log, ours)) == 0
    left_out = "events outside 2017-11-25 to 2017-12-03 left out"
    assert dataset.facts[left_out] == (~inside).sum() > 0
