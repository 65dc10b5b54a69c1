import gzip

import numpy as np
import pytest

from recjax.train import launch
from recjax.train.data.batches.pipeline import evaluation_batches
from recjax.train.data.errors import DataError
from recjax.train.data.event_log import leaks
from recjax.train.data.sources import aliccp, open_source
from recjax.train.data.sources.aliccp_files import BAG, NODES
from recjax.zoo.features import encode, signatures

FILES = (
    "common_features_train.csv",
    "common_features_test.csv",
    "sample_skeleton_train.csv",
    "sample_skeleton_test.csv",
)
VISITS = [f"{n:016x}" for n in range(10)]


def features(*some):
    """The count and the list, of (field, id) or (field, id, value)."""
    listed = [(*one, 1.0)[:3] for one in some]
    return f"{len(listed)}," + "\x01".join(f"{f}\x02{i}\x03{v}" for f, i, v in listed)


def common(visit, *some):
    return f"{visit},{features(*some)}\n"


def sample(number, click, conversion, visit, *some):
    return f"{number},{click},{conversion},{visit},{features(*some)}\n"


def files():
    """Ten visits of one user each, two lines a visit; visits stand in both files of a part."""
    behaviours = [("109_14", n, n / 10) for n in range(60)]
    users = [common(v, ("101", n % 3), ("124", n % 2), *behaviours) for n, v in enumerate(VISITS)]
    lines = []
    for n in range(20):
        nodes = [("210", 7), ("210", 8)] if n % 2 else [("210", 7)]
        # Clicks on 1, 4, 7, ...; conversions on 4 (clicked) and 5 (not clicked).
        labels = (int(n % 3 == 1), int(n in (4, 5)))
        one = [("205", 100 + n // 10), ("206", 5), ("301", 9), ("508", n), *nodes]
        lines.append(sample(n + 1, *labels, VISITS[n // 2], *one))
    tests = [
        sample(1, 1, 1, VISITS[1], ("205", 100), ("206", 6)),
        sample(2, 0, 0, VISITS[0], ("205", 999)),
    ]
    # Visits of the same name in the other part are others.
    strangers = [common(VISITS[0], ("101", 77)), common(VISITS[1], ("101", 1))]
    return dict(zip(FILES, map("".join, (users, strangers, lines, tests)), strict=True))


def write(folder, contents=None, *, packed=False, **changes):
    for name, content in {**(contents or files()), **changes}.items():
        content = content.encode() if isinstance(content, str) else content
        path = folder / (name + ".gz" if packed else name)
        path.write_bytes(gzip.compress(content) if packed else content)
    return folder


def rows(data, table, *values):
    return data.row_maps[table](signatures(table, list(values))).tolist()


@pytest.mark.parametrize("packed", [False, True])
def test_what_the_files_say(tmp_path, packed):
    data = aliccp.load(write(tmp_path, packed=packed), min_count=2)
    assert data.name == f"aliccp:{tmp_path.name}" and data.schema.tasks == ("click", "conversion")
    assert (len(data.train), len(data.validation), len(data.test)) == (18, 2, 2)
    # Each visit is stored once, however many lines it has.
    assert data.log.num_users == 12 and data.log.num_events == 0
    assert data.train.user.tolist() == [n // 2 for n in range(18)]
    assert data.validation.user.tolist() == [9, 9] and data.test.user.tolist() == [11, 10]
    assert data.train.time.tolist() == list(range(1, 19))
    assert data.validation.time.tolist() == [19, 20]
    assert data.train.label["click"].ravel().tolist() == [0, 1, 0] * 6
    assert np.flatnonzero(data.train.label["conversion"]).tolist() == [4]
    assert data.facts["conversions without a click, not counted"] == 1
    assert data.test.label["conversion"].tolist() == [[1], [0]]
    shown = data.train.shown
    one, two = rows(data, "item", 100, 101)
    assert shown["item"].tolist() == [[one]] * 10 + [[two]] * 8 and min(one, two) > 1
    assert data.test.shown["item"].tolist() == [[one], [1]]
    assert data.test.shown["category"].tolist() == [[1], [0]]  # 6 is new, none is padding
    assert set(shown["category_match"].ravel()) == {1}  # once each: too rare
    seven, eight = rows(data, "nodes", 7, 8)
    assert shown["nodes"].shape == (18, 1, NODES)
    assert shown["nodes"][0].tolist() == [[seven] + [0] * 7]
    assert shown["nodes"][1].tolist() == [[seven, eight] + [0] * 6]
    assert set(data.train.context["position"]) == {2}
    for requests in (data.train, data.validation, data.test):
        assert requests.examples == len(requests) and len(leaks(data.log, requests)) == 0


def test_users_are_visits(tmp_path):
    data = aliccp.load(write(tmp_path), min_count=2)
    users = data.log.users
    zero, one, two = rows(data, "user", 0, 1, 2)
    assert users["user"].tolist() == [zero, one, two] * 3 + [zero] + [1, one]
    assert users["gender"].tolist()[-2:] == [0, 0]
    bag = users["user_categories"]
    assert bag.shape == (12, BAG)
    # The heaviest 50 of 60, heaviest first.
    assert bag[0].tolist() == rows(data, "user_categories", *range(59, 9, -1))
    assert not bag[10:].any() and not users["user_shops"].any()
    assert data.facts["features beyond the width of their field"] == "109_14: 100"


def test_values_of_users_count_once_a_line(tmp_path):
    # Users 0, 1 and 2 have 6 lines each in training, visits 0..8 of 2 lines.
    assert aliccp.load(write(tmp_path), min_count=6).schema.table("user").rows == 2 + 3
    assert aliccp.load(write(tmp_path), min_count=7).schema.table("user").rows == 2
    # 0 is the gender of visits 0, 2, 4, 6, 8, 1 that of four.
    assert aliccp.load(write(tmp_path), min_count=9).schema.table("gender").rows == 2 + 1


def test_what_only_validation_and_test_have_is_unseen(tmp_path):
    data = aliccp.load(write(tmp_path), min_count=1)
    assert data.schema.table("category_match").rows == 2 + 18
    assert rows(data, "category_match", 18, 19) == [1, 1]
    assert rows(data, "user", 77) == [1]


def test_a_batch_is_what_a_request_record_says(tmp_path):
    data = aliccp.load(write(tmp_path), min_count=1)
    (batch,) = evaluation_batches(data.schema, data.log, data.train, batch_size=18, history=4)
    assert batch["history_mask"].shape == (18, 0) and "history_age" not in batch
    raw = [
        {
            "user": {
                "user": n // 2 % 3,
                "gender": n // 2 % 2,
                "user_categories": list(range(59, -1, -1)),
                "history": [],
            },
            "context": {"position": 9},
            "items": [
                {
                    "item": 100 + n // 10,
                    "category": 5,
                    "category_match": n,
                    "nodes": [7, 8] if n % 2 else [7],
                }
            ],
        }
        for n in range(18)
    ]
    served = encode(raw, data.schema, data.row_maps, history=4)
    for role in ("user", "context", "candidate"):
        assert batch[role].keys() == served[role].keys()
        for name, column in served[role].items():
            assert np.array_equal(batch[role][name], column), name
            assert batch[role][name].dtype == column.dtype


def test_vocabularies_of_an_earlier_run(tmp_path):
    first = aliccp.load(write(tmp_path), min_count=2)
    new = {name: text.replace("205\x02101", "205\x02555") for name, text in files().items()}
    again = aliccp.load(write(tmp_path, new), row_maps=first.row_maps)
    assert again.schema == first.schema
    (one,) = rows(first, "item", 100)
    assert again.train.shown["item"].ravel().tolist() == [one] * 10 + [1] * 8
    for name, column in first.log.users.items():
        assert np.array_equal(again.log.users[name], column)


def broken(name, number, before, after):
    lines = files()[name].splitlines(keepends=True)
    assert before in lines[number - 1]
    lines[number - 1] = lines[number - 1].replace(before, after, 1)
    return {name: "".join(lines).encode("latin-1")}


SKELETON, COMMON = "sample_skeleton_train.csv", "common_features_train.csv"
# Where, what becomes what, and what is said of it.
BROKEN = {
    "click": (SKELETON, "3,0,0", "3,2,0", "click must be one of 0, 1, got '2'"),
    "conversion": (SKELETON, "3,0,0", "3,0,x", "conversion must be one of 0, 1, got 'x'"),
    "sample": (SKELETON, "3,0,0", "three,0,0", "sample must be a whole number, got 'three'"),
    "count": (SKELETON, ",5,", ",6,", "says that it holds 6 features, holds 5"),
    "features": (SKELETON, "206\x025", "206\x02five", "a feature must be field\\x02id\\x03value"),
    "visit": (SKELETON, VISITS[1], "abc", "common feature index 'abc' is not listed"),
    "encoding": (SKELETON, VISITS[1], "\xff\xfe", "is not UTF-8 text"),
    "values": (SKELETON, "3,0,0", "3,0", "has 5 values, expected 6 split by ','"),
    "count of a user": (COMMON, ",62,", ",61,", "says that it holds 61 features, holds 62"),
    "features of a user": (COMMON, "\x032.5", "\x03much", "a feature must be field\\x02id\\x03"),
    "encoding of a user": (COMMON, ",62,", "\xff\xfe,62,", "is not UTF-8 text"),
    "a user twice": (COMMON, VISITS[2], VISITS[1], "repeats the common feature index of line 2"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("what", BROKEN)
def test_a_bad_line(tmp_path, what, packed):
    name, before, after, said = BROKEN[what]
    write(tmp_path, files() | broken(name, 3, before, after), packed=packed)
    path = tmp_path / (name + ".gz" if packed else name)
    with pytest.raises(DataError) as error:
        aliccp.load(tmp_path)
    assert str(error.value).startswith(f"{path}: line 3: {said}")
    assert "\n" not in str(error.value)
    data = aliccp.load(tmp_path, on_bad_row="skip", min_count=2)
    assert data.facts["first row skipped"].startswith(f"{path.name}: line 3: {said}")
    if name == SKELETON:
        assert data.train.time.tolist() == [1, 2, *range(4, 19)]
        assert data.facts["rows skipped"] == 1
    else:  # The lines of a visit that is not listed go with it.
        assert data.train.time.tolist() == [1, 2, 3, 4, *range(7, 19)]
        assert data.facts["rows skipped"] == 3


def test_unknown_fields_are_left_out(tmp_path):
    extra = broken(SKELETON, 3, "206\x025", "999\x025") | broken(COMMON, 1, "101\x02", "205\x02")
    data = aliccp.load(write(tmp_path, files() | extra), min_count=2)
    assert data.train.shown["category"].ravel().tolist() == [2, 2, 0, *[2] * 15]
    assert data.log.users["user"][0] == 0
    assert data.facts["features of unknown fields"] == "205: 1, 999: 1"


@pytest.mark.parametrize("name", FILES)
def test_cut_in_mid_line(tmp_path, name):
    text = files()[name][:-12]
    number = text.count("\n") + 1
    write(tmp_path, files() | {name: text})
    with pytest.raises(DataError, match=rf"{name}: line {number}: "):
        aliccp.load(tmp_path)
    data = aliccp.load(tmp_path, on_bad_row="skip", min_count=2)
    assert data.facts["rows skipped"] >= 1


@pytest.mark.parametrize("on_bad_row", ["stop", "skip"])
@pytest.mark.parametrize("name", FILES)
def test_a_cut_archive_is_never_taken_for_a_whole_one(tmp_path, name, on_bad_row):
    write(tmp_path, packed=True)
    path = tmp_path / f"{name}.gz"
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(DataError, match=rf"{name}\.gz: cannot be read after line 0: "):
        aliccp.load(tmp_path, on_bad_row=on_bad_row)


def test_the_order_of_lines_does_not_move_a_visit(tmp_path):
    first = aliccp.load(write(tmp_path), min_count=2)
    text = files()[SKELETON].splitlines(keepends=True)
    order = np.random.default_rng(0).permutation(20)
    mixed = "".join(text[n] for n in order)
    data = aliccp.load(write(tmp_path, files() | {SKELETON: mixed}), min_count=2)
    assert data.schema == first.schema
    kept = order[order < 18]
    assert data.train.user.tolist() == (kept // 2).tolist()
    for name, column in first.train.shown.items():
        assert np.array_equal(data.train.shown[name], column[kept])
    assert data.validation.user.tolist() == [9, 9]


def test_lines_that_repeat_count_as_often(tmp_path):
    text = files()[SKELETON]
    data = aliccp.load(write(tmp_path, files() | {SKELETON: text + text}), min_count=12)
    assert len(data.train) == 36 and len(data.validation) == 4
    assert data.log.num_users == 12
    assert data.schema.table("user").rows == 2 + 3  # 12 lines each now


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_missing_or_empty(tmp_path, name):
    write(tmp_path, files() | {name: ""})
    with pytest.raises(DataError, match=f"{name}: the file is empty"):
        aliccp.load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=f"{name}: no such file"):
        aliccp.load(tmp_path)


def test_no_visit_can_be_used(tmp_path):
    text = files()[COMMON].replace(",62,", ",61,")
    with pytest.raises(DataError, match=rf"{COMMON}: no line can be used \({COMMON}: line 1: says"):
        aliccp.load(write(tmp_path, files() | {COMMON: text}), on_bad_row="skip")


def test_a_split_without_lines(tmp_path):
    text = "".join(files()[SKELETON].splitlines(keepends=True)[:18])
    with pytest.raises(DataError, match="no line of the visits for validation"):
        aliccp.load(write(tmp_path, files() | {SKELETON: text}))


def many(seed=0):
    """Files in which the item tells the click, and the category of a clicked one the conversion."""
    draws = np.random.default_rng(seed)
    users, lines, number = {}, {}, 0
    for part, visits in (("train", 60), ("test", 20)):
        names = [f"{seed:08x}{n:08x}" for n in range(visits)]
        users[part] = "".join(common(name, ("101", n % 7)) for n, name in enumerate(names))
        lines[part] = ""
        for name in names:
            for _ in range(20):
                number += 1
                item, category = draws.integers(0, 4, 2)
                click = int(draws.random() < (0.8 if item < 2 else 0.1))
                bought = int(click and draws.random() < (0.9 if category < 2 else 0.1))
                one = [("205", item), ("206", category), ("301", draws.integers(0, 3))]
                lines[part] += sample(number, click, bought, name, *one)
    return dict(zip(FILES, (*users.values(), *lines.values()), strict=True))


def test_esmm_learns_from_a_folder(tmp_path):
    write(tmp_path, many())
    folder, results = launch.train(
        "esmm",
        data=f"aliccp:{tmp_path}",
        out=tmp_path / "run",
        options={"epochs": 6, "batch_size": 64, "learning_rate": 0.01, "tower_units": 8},
        quiet=True,
    )
    test = results["test"]
    assert test["click"]["auc"] > 0.75 and test["conversion"]["auc"] > 0.8
    again = launch.evaluate_run(folder)["test"]
    assert again["conversion"]["auc"] == test["conversion"]["auc"]
    other = tmp_path / "other"
    other.mkdir()
    write(other, many(seed=1))
    assert launch.evaluate_run(folder, data=f"aliccp:{other}")["test"]["click"]["auc"] > 0.75


def test_by_name(tmp_path):
    assert open_source(f"aliccp:{write(tmp_path)}").facts["visits"] == 12
    with pytest.raises(DataError, match="Source 'aliccp' needs a path: aliccp:DIR"):
        open_source("aliccp:")
