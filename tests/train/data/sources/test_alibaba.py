import numpy as np
import pytest

from recjax.train.data.errors import DataError
from recjax.train.data.event_log import leaks
from recjax.train.data.sources import alibaba
from recjax.zoo.features import signatures
from testing import SHARED_DATA, needs_shared_data

DAY = 86_400
FIRST = 18_063 * DAY  # 16 June 2019, in days since 1970
EDGES = [
    (7, 100, 1, 20190617),
    (7, 300, 3, 20190616),
    (8, 100, 2, 20190616),
    (7, 100, 4, 20190616),  # earlier than the first line, though later in the file
    (7, 300, 4, 20190618),
    (8, 200, 1, 20190616),
    (7, 200, 1, 20190618),
    (8, 300, 1, 20190618),
    (9, 200, 1, 20190616),
    (7, 400, 1, 20190619),
    (8, 600, 1, 20190619),
    (11, 100, 1, 20190617),
    (11, 700, 1, 20190616),
    (11, 200, 1, 20190618),
]
ITEMS = [(300, 33, 51, 0, 21.5), (100, 34, 52, 900, 3), (500, 34, 53, 901, 7)]
USERS = [
    (9, 1, 5, -1, 10, 5000.0, "-1"),
    (7, 0, 4, -1, -1, 9999.5, "1,6"),
    (5, 0, 1, 1, 1, -1, "2"),
]
FILES = {
    "ecomm_edge_train.txt": EDGES,
    "ecomm_item_feature.txt": ITEMS,
    "ecomm_user_feature.txt": USERS,
}


def write(folder, **changes):
    for name, lines in FILES.items():
        lines = changes.get(name.removesuffix(".txt"), lines)
        (folder / name).write_text("".join("\t".join(map(str, line)) + "\n" for line in lines))
    return folder


def rows(dataset, table, *values):
    return dataset.row_maps[table](signatures(table, list(values))).tolist()


def test_the_published_form(tmp_path):
    dataset = alibaba.load(write(tmp_path))
    log = dataset.log
    assert dataset.name == "alibaba"
    # On the 16th user 7 meets 300 and (by a purchase, some lines later) 100, user 8 100 and 200.
    assert log.offsets.tolist() == [0, 4, 8, 11]
    assert log.item.tolist() == [2, 0, 1, 3, 0, 1, 2, 4, 5, 0, 1]
    days = (0, 0, 2, 3, 0, 0, 2, 3, 0, 1, 2)
    assert log.time.tolist() == [FIRST + day * DAY for day in days]
    assert log.has_clock
    assert dataset.facts["repeated events left out"] == 2
    assert dataset.facts["users dropped (fewer than 3 events)"] == 1
    # Training sees 300 and 100 of user 7, 100 and 200 of user 8, 700 of user 11.
    known = rows(dataset, "item", 100, 200, 300, 700)
    assert sorted(known) == [2, 3, 4, 5]
    assert log.items["item"].tolist() == [*known[:3], 1, 1, known[3]]
    # Items 200, 400, 600 and 700 are not listed; 0 is no brand.
    a, b = rows(dataset, "category", 51, 52)
    assert sorted([a, b]) == [2, 3]
    assert log.items["category"].tolist() == [b, 0, a, 0, 0, 0]
    a, b = rows(dataset, "top_category", 33, 34)
    assert log.items["top_category"].tolist() == [b, 0, a, 0, 0, 0]
    assert log.items["brand"].tolist() == [2, 0, 0, 0, 0, 0]
    np.testing.assert_allclose(log.items["price"], np.log1p([3, 0, 21.5, 0, 0, 0]), rtol=3e-7)
    click, favourite, cart, buy = rows(dataset, "behavior", "click", "favourite", "cart", "buy")
    assert sorted([click, favourite, cart, buy]) == [2, 3, 4, 5]
    of_seven, of_eight = [cart, buy, click, click], [favourite, click, click, click]
    assert log.event["behavior"].tolist() == of_seven + of_eight + [click] * 3
    # Users 8 and 11 are not listed.
    assert log.users["gender"].tolist() == [2, 0, 0] == log.users["age"].tolist()
    assert log.users["education"].tolist() == [0, 0, 0] == log.users["career"].tolist()
    assert log.users["income"].tolist() == [*rows(dataset, "income", 9), 0, 0] == [2, 0, 0]
    one, six = rows(dataset, "stage", "1", "6")
    assert log.users["stage"].tolist() == [[one, six], [0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("name", "line", "reason"),
    [
        ("ecomm_edge_train", (7, 100, 1), "has 3 values, expected 4 split by '\\t'"),
        ("ecomm_edge_train", (7, 100, 5, 20190616), "behavior must be one of 1, 2, 3, 4, got '5'"),
        (
            "ecomm_edge_train",
            (7, 100, 1, 20190631),
            "day must be yyyymmdd since 1970, got 20190631",
        ),
        ("ecomm_edge_train", (7, 100, 1, 16), "day must be yyyymmdd since 1970, got 16"),
        ("ecomm_edge_train", (7, 100, 1, -20190616), "day must be yyyymmdd since 1970, got -2019"),
        ("ecomm_edge_train", (7, 100, 1, 19690616), "day must be yyyymmdd since 1970, got 1969"),
        ("ecomm_edge_train", (7, "x", 1, 20190616), "item must be a whole number, got 'x'"),
        ("ecomm_item_feature", (700, 33, 51, 0, "free"), "price must be a finite number"),
        ("ecomm_user_feature", (70, 0, "old", 1, 1, 1, 1), "age must be a whole number, got 'old'"),
    ],
)
def test_bad_lines(tmp_path, name, line, reason):
    lines = FILES[f"{name}.txt"]
    write(tmp_path, **{name: [*lines[:2], line, *lines[2:]]})
    with pytest.raises(DataError) as caught:
        alibaba.load(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / name}.txt: line 3: {reason}")
    dataset = alibaba.load(tmp_path, on_bad_row="skip")
    assert dataset.facts["rows skipped"] == 1
    assert dataset.log.item.tolist() == [2, 0, 1, 3, 0, 1, 2, 4, 5, 0, 1]


@pytest.mark.parametrize("name", FILES)
def test_missing_files(tmp_path, name):
    write(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=f"{name}: no such file"):
        alibaba.load(tmp_path)


def test_no_folder(tmp_path):
    with pytest.raises(DataError, match="none: no such folder"):
        alibaba.load(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file: not a folder"):
        alibaba.load(tmp_path / "file")


@needs_shared_data
def test_the_real_sample():
    dataset = alibaba.load(SHARED_DATA / "alibaba-ecomm")
    log, facts = dataset.log, dataset.facts
    events = facts["events"] + facts["repeated events left out"]
    assert 85_213 - 2 * facts["users dropped (fewer than 3 events)"] <= events <= 85_213
    assert facts["users"] + facts["users dropped (fewer than 3 events)"] == 1476
    assert "rows skipped" not in facts
    # Ten days from 10 June 2019; nobody meets an item twice.
    assert (log.time.min(), log.time.max()) == (FIRST - 6 * DAY, FIRST + 3 * DAY)
    users = np.repeat(np.arange(log.num_users), log.lengths())
    assert len(np.unique(users * log.num_items + log.item)) == log.num_events
    assert set(log.users) == {"gender", "age", "education", "career", "income", "stage"}
    assert (log.items["category"] > 0).all() and (log.items["price"] > 0).all()
    assert (log.items["brand"] > 0).mean() < 0.1
    for requests in (dataset.train, dataset.validation, dataset.test):
        # Within a day nothing tells which came first.
        assert len(leaks(log, requests)) == 0
