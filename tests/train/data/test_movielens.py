import numpy as np
import pytest

from recjax.train.data import movielens
from recjax.train.data.errors import DataError
from recjax.train.data.event_log import leaks
from recjax.zoo.features import signatures
from testing import SHARED_DATA, needs_shared_data

GENRES = ["unknown", "Action", "Comedy"]
# Movie 4 nobody rates; user 9 neither. Users and movies are not listed in order.
MOVIES = {3: ["Action", "Comedy"], 1: ["Comedy"], 2: [], 4: ["unknown"], 7: ["Action"]}
USERS = {5: ("24", "M", "artist"), 2: ("33", "F", "writer"), 9: ("50", "M", "none")}
RATINGS = [
    (5, 1, 4, 300),
    (2, 2, 1, 100),
    (5, 3, 5, 100),
    (2, 3, 2, 100_000),
    (5, 2, 3, 200),
    (2, 1, 3, 90),
    (5, 7, 3, 400),
]


def write(folder, **files):
    for name, lines in files.items():
        text = "\n".join(lines) + "\n"
        (folder / name.replace("__", ".")).write_bytes(text.encode("latin-1"))
    return folder


def files_100k():
    flags = {id_: ["1" if genre in own else "0" for genre in GENRES] for id_, own in MOVIES.items()}
    title = lambda id_: f"Café {id_}\x85 (1995)"  # a letter that Python takes for the end of a line
    return dict(
        u__data=["\t".join(map(str, rating)) for rating in RATINGS],
        u__item=["|".join([str(i), title(i), "01-Jan-1995", "", "url", *flags[i]]) for i in MOVIES],
        u__genre=[*(f"{name}|{n}" for n, name in enumerate(GENRES)), ""],
        u__user=["|".join([str(id_), *user, "85711"]) for id_, user in USERS.items()],
    )


def files_1m():
    return dict(
        ratings__dat=["::".join(map(str, rating)) for rating in RATINGS],
        movies__dat=[f"{i}::Café {i}\x85 (1995)::{'|'.join(MOVIES[i])}" for i in MOVIES],
        users__dat=[f"{i}::{u[1]}::{u[0]}::{u[2]}::48067" for i, u in USERS.items()],
    )


def rows(dataset, table, *values):
    return dataset.row_maps[table](signatures(table, list(values))).tolist()


@pytest.mark.parametrize(("files", "name"), [(files_100k, "100k"), (files_1m, "1m")])
def test_both_formats(tmp_path, files, name):
    dataset = movielens.load(write(tmp_path, **files()))
    log = dataset.log
    assert dataset.name == f"movielens:{name}"
    # Users in the order of their file, their ratings by time; items likewise: 3, 1, 2, 4, 7.
    assert log.offsets.tolist() == [0, 4, 7]
    assert log.time.tolist() == [100, 200, 300, 400, 90, 100, 100_000]
    assert log.item.tolist() == [0, 2, 1, 4, 1, 2, 0]
    assert log.has_clock
    assert log.num_items == 5
    # Training sees movies 3 and 2 of user 5, and 1 of user 2.
    assert log.items["item"].tolist() == [*rows(dataset, "item", 3, 1, 2), 1, 1]
    assert sorted(rows(dataset, "item", 3, 1, 2)) == [2, 3, 4]
    action, comedy = rows(dataset, "genre", "Action", "Comedy")
    assert sorted([action, comedy]) == [2, 3]
    genres = log.items["genre"].tolist()
    assert genres[0] == [action, comedy] and genres[1] == [comedy, 0] and genres[3] == [1, 0]
    for at, column in enumerate(("age", "gender", "occupation")):
        values = [USERS[5][at], USERS[2][at]]
        assert log.users[column].tolist() == rows(dataset, column, *values)
        assert sorted(log.users[column].tolist()) == [2, 3]
    assert dataset.schema.find("candidate", "genre").kind == "bag"
    assert dataset.train.cut.tolist() == [0, 1, 0]


def test_max_train_per_user(tmp_path):
    dataset = movielens.load(write(tmp_path, **files_1m()), max_train_per_user=1)
    assert dataset.train.cut.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("files", "name", "line", "reason"),
    [
        (files_100k, "u.data", "1\t2\t3", "line 2 has 3 values, expected 4 split by '\\t'"),
        (files_100k, "u.data", "5\tx\t3\t100", "line 2: 'x' is not a whole number"),
        (files_100k, "u.data", "5\t1\t3\t1.5", "line 2: '1.5' is not a whole number"),
        (files_100k, "u.item", "6|Title|date||url|0|1", "line 2 has 7 values, expected 8"),
        (files_100k, "u.item", "six|Title|date||url|0|1|0", "line 2: 'six' is not a whole number"),
        (files_100k, "u.genre", "Drama", "line 2 has 1 values, expected 2"),
        (files_100k, "u.user", "7|24|M|artist", "line 2 has 4 values, expected 5"),
        (files_1m, "ratings.dat", "5::1::3", "line 2 has 3 values, expected 4 split by '::'"),
        (files_1m, "ratings.dat", "5::::3::9", "line 2: '' is not a whole number"),
        (files_1m, "movies.dat", "6::Title", "line 2 has 2 values, expected 3"),
        (files_1m, "users.dat", "x::F::1::10::48067", "line 2: 'x' is not a whole number"),
    ],
)
def test_bad_lines_are_named(tmp_path, files, name, line, reason):
    write(tmp_path, **files())
    lines = (tmp_path / name).read_text("latin-1").split("\n")
    lines[1] = line
    (tmp_path / name).write_text("\n".join(lines), "latin-1")
    with pytest.raises(DataError) as caught:
        movielens.load(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / name}: {reason}")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("line", "reason"),
    [("8\t1\t3\t9", "a rating names user 8"), ("5\t6\t3\t9", "a rating names movie 6")],
)
def test_ratings_of_strangers(tmp_path, line, reason):
    files = files_100k()
    files["u__data"].append(line)
    with pytest.raises(DataError, match=reason):
        movielens.load(write(tmp_path, **files))


@pytest.mark.parametrize("name", ["u.item", "u.genre", "u.user"])
def test_missing_and_empty_files(tmp_path, name):
    write(tmp_path, **files_100k())
    (tmp_path / name).write_text("\n\n")
    with pytest.raises(DataError, match=f"{name}: the file is empty"):
        movielens.load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=f"{name}: no such file"):
        movielens.load(tmp_path)


def test_no_folder(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(DataError, match="neither u.data .MovieLens 100K. nor ratings.dat"):
            movielens.load(folder)


@needs_shared_data
def test_the_real_100k():
    dataset = movielens.load(SHARED_DATA / "ml-100k")
    facts = dict(dataset.facts)
    assert facts == {
        "users": 943,
        "items": 1682,
        "events": 100_000,
        "users dropped (fewer than 3 events)": 0,
    }
    log = dataset.log
    assert log.lengths().min() == 20 and log.lengths().max() == 737
    # 22 September 1997 to 22 April 1998, as the README says: seven months.
    assert (log.time.min(), log.time.max()) == (874_724_710, 893_286_638)
    assert len(dataset.validation) == len(dataset.test) == 943
    assert len(dataset.train) == np.minimum(log.lengths() - 2, 20).sum()
    assert dataset.schema.find("candidate", "genre").width == 6
    for requests in (dataset.train, dataset.validation, dataset.test):
        assert len(leaks(log, requests)) == 0
