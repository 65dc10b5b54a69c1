import zipfile

import numpy as np
import pytest

from recjax.train.data.errors import DataError
from recjax.train.data.event_log import leaks
from recjax.train.data.protocol import Protocol
from recjax.train.data.sources import movielens
from recjax.zoo.features import signatures
from testing import SHARED_DATA, needs_shared_data

GENRES = ["unknown", "Action", "Comedy"]
# Movie 4 nobody rates. Users and movies are not listed in order.
MOVIES = {3: ["Action", "Comedy"], 1: ["Comedy"], 2: [], 4: ["unknown"], 7: ["Action"], 8: []}
USERS = {5: ("24", "M", "artist"), 2: ("33", "F", "writer"), 9: ("50", "M", "none")}
RATINGS = [
    (5, 1, 4, 300),
    (2, 2, 1, 100),
    (5, 3, 5, 100),
    (2, 3, 2, 100_000),
    (5, 2, 3, 200),
    (2, 1, 3, 90),
    (5, 7, 3, 400),
    (9, 1, 2, 20),
    (9, 2, 2, 30),
    (9, 8, 4, 10),
]


def write(folder, **files):
    for name, lines in files.items():
        text = "\n".join(lines) + "\n"
        # 1M and 10M name their files alike.
        is_latin = not name.endswith("csv") and "1::4.5::" not in files.get("ratings__dat", [""])[0]
        encoding = "latin-1" if is_latin else "utf-8"
        (folder / name.replace("__", ".")).write_bytes(text.encode(encoding))
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


def files_10m():
    genres = lambda id_: "|".join(MOVIES[id_]) or "(no genres listed)"
    return dict(
        ratings__dat=[f"{u}::{m}::{stars + 0.5:g}::{time}" for u, m, stars, time in RATINGS],
        movies__dat=[f"{i}::Amélie {i} ミ (1995)::{genres(i)}" for i in MOVIES],
        tags__dat=["5::1::excellent!::1215184630"],
    )


def files_20m():
    title = lambda id_: f'"Café ""{id_}"", The (1995)"'
    genres = lambda id_: "|".join(MOVIES[id_]) or "(no genres listed)"
    return dict(
        ratings__csv=[
            "userId,movieId,rating,timestamp",
            *(f"{user},{movie},{stars - 0.5},{time}" for user, movie, stars, time in RATINGS),
        ],
        movies__csv=["movieId,title,genres", *(f"{i},{title(i)},{genres(i)}" for i in MOVIES)],
    )


FORMATS = {"100k": files_100k, "1m": files_1m, "10m": files_10m, "20m": files_20m}


def rows(dataset, table, *values):
    return dataset.row_maps[table](signatures(table, list(values))).tolist()


@pytest.mark.parametrize("name", FORMATS)
def test_every_format(tmp_path, name):
    dataset = movielens.load(write(tmp_path, **FORMATS[name]()))
    log = dataset.log
    assert dataset.name == f"movielens:{name}"
    # Users 2, 5 and 9, their ratings by time; movies 1, 2, 3, 4, 7, 8.
    assert log.offsets.tolist() == [0, 3, 7, 10]
    assert log.time.tolist() == [90, 100, 100_000, 100, 200, 300, 400, 10, 20, 30]
    assert log.item.tolist() == [0, 1, 2, 2, 1, 0, 4, 5, 0, 1]
    assert log.has_clock
    assert log.num_items == 6
    # Training sees movie 1 of user 2, 3 and 2 of user 5, and 8 of user 9.
    known = rows(dataset, "item", 1, 2, 3, 8)
    assert log.items["item"].tolist() == [*known[:3], 1, 1, known[3]]
    assert sorted(known) == [2, 3, 4, 5]
    action, comedy = rows(dataset, "genre", "Action", "Comedy")
    assert sorted([action, comedy]) == [2, 3]
    genres = [[comedy, 0], [0, 0], [action, comedy], [1, 0], [action, 0], [0, 0]]
    assert log.items["genre"].tolist() == genres
    if name in ("10m", "20m"):
        assert log.users == {}
    else:
        for at, column in enumerate(("age", "gender", "occupation")):
            values = [USERS[2][at], USERS[5][at], USERS[9][at]]
            assert log.users[column].tolist() == rows(dataset, column, *values)
            assert set(log.users[column].tolist()) == {*range(2, 2 + len(set(values)))}
    assert dataset.schema.find("candidate", "genre").kind == "bag"
    assert dataset.train.cut.tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize(("folder", "name"), [("ml-25m", "25m"), ("ml-32m", "32m"), ("x", "20m")])
def test_later_sizes_are_named_by_their_folder(tmp_path, folder, name):
    (tmp_path / folder).mkdir()
    dataset = movielens.load(write(tmp_path / folder, **files_20m()))
    assert dataset.name == f"movielens:{name}"


def test_1m_and_10m_are_told_apart(tmp_path):
    files = files_1m()
    del files["users__dat"]
    with pytest.raises(DataError, match="users.dat: no such file, which MovieLens 1M has; and rat"):
        movielens.load(write(tmp_path, **files))
    # One half star, wherever it stands, is 10M's; those of 10M may be written without fractions.
    files = files_10m()
    files["ratings__dat"] = [line.replace(".5::", "::") for line in files["ratings__dat"][::-1]]
    files["ratings__dat"][-1] = files_10m()["ratings__dat"][0]
    folder = tmp_path / "ten"
    folder.mkdir()
    for name, lines in files.items():
        (folder / name.replace("__", ".")).write_text("\n".join(lines), encoding="utf-8")
    dataset = movielens.load(folder)
    assert dataset.name == "movielens:10m" and dataset.facts["events"] == len(RATINGS)
    # Half stars beside 1M's users belong to neither.
    (folder / "users.dat").write_text("\n".join(files_1m()["users__dat"]))
    (folder / "movies.dat").write_bytes((tmp_path / "movies.dat").read_bytes())
    with pytest.raises(DataError, match="ratings.dat: line 10: rating must be a whole number"):
        movielens.load(folder)


@pytest.mark.parametrize("name", ["ml-25m.zip", "x.zip"])
def test_a_zip_without_a_folder_is_named_by_itself(tmp_path, name):
    write(tmp_path, **files_20m())
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        for file in ("ratings.csv", "movies.csv"):
            archive.write(tmp_path / file, file)
    dataset = movielens.load(tmp_path / name)
    assert dataset.name == f"movielens:{'25m' if 'ml' in name else '20m'}"


def test_max_train_per_user(tmp_path):
    dataset = movielens.load(write(tmp_path, **files_1m()), protocol=Protocol(max_train_per_user=1))
    assert dataset.train.cut.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("name", "file", "line", "reason"),
    [
        ("100k", "u.data", "1\t2\t3", "has 3 values, expected 4 split by '\\t'"),
        ("100k", "u.data", "5\tx\t3\t100", "movie must be a whole number, got 'x'"),
        ("100k", "u.data", "5\t1\t3\t1.5", "time must be a whole number, got '1.5'"),
        ("100k", "u.data", "8\t1\t3\t9", "names user 8, which u.user does not list"),
        ("100k", "u.data", "5\t6\t3\t9", "names movie 6, which u.item does not list"),
        ("100k", "u.item", "6|Title|date||url|0|1", "has 7 values, expected 8"),
        ("100k", "u.item", "six|Title|date||url|0|1|0", "movie must be a whole number, got 'six'"),
        ("100k", "u.item", "6|Title|date||url|0|1|no", "flag 2 (Comedy) must be a whole number"),
        ("100k", "u.genre", "Drama", "has 1 values, expected 2"),
        ("100k", "u.user", "7|24|M|artist", "has 4 values, expected 5"),
        ("1m", "ratings.dat", "5::1::3", "has 3 values, expected 4 split by '::'"),
        ("1m", "ratings.dat", "5::::3::9", "movie is missing"),
        ("1m", "ratings.dat", "5::1::3.5::9", "rating must be a whole number, got '3.5'"),
        ("1m", "movies.dat", "6::Title", "has 2 values, expected 3"),
        ("1m", "users.dat", "x::F::1::10::48067", "user must be a whole number, got 'x'"),
        ("10m", "ratings.dat", "5::1::3", "has 3 values, expected 4 split by '::'"),
        ("10m", "ratings.dat", "5::1::five::9", "rating must be a finite number, got 'five'"),
        ("10m", "ratings.dat", "5::6::3::9", "names movie 6, which movies.dat does not list"),
        ("10m", "movies.dat", "x::Title::Drama", "movie must be a whole number, got 'x'"),
        ("20m", "ratings.csv", "5,1,3", "has 3 values, expected 4"),
        ("20m", "ratings.csv", "5,1,three,9", "rating must be a finite number, got 'three'"),
        ("20m", "ratings.csv", "5,6,3.5,9", "names movie 6, which movies.csv does not list"),
        ("20m", "movies.csv", "6,Title, The,Drama", "has 4 values, expected 3"),
        ("20m", "movies.csv", '6,"Title,Drama', "cannot be split into values"),
    ],
)
def test_bad_lines_are_named(tmp_path, name, file, line, reason):
    write(tmp_path, **FORMATS[name]())
    before = movielens.load(tmp_path)
    path = tmp_path / file
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], line.encode(), *lines[1:]]))
    with pytest.raises(DataError) as caught:
        movielens.load(tmp_path)
    assert str(caught.value).startswith(f"{path}: line 2: {reason}")
    assert len(str(caught.value).splitlines()) == 1
    after = movielens.load(tmp_path, on_bad_row="skip")
    assert after.log.item.tolist() == before.log.item.tolist()
    assert after.log.items["genre"].tolist() == before.log.items["genre"].tolist()
    assert after.facts["rows skipped"] == 1
    assert after.facts["first row skipped"].startswith(f"{file}: line 2: {reason}")


def test_ratings_of_a_movie_whose_line_is_skipped_are_skipped(tmp_path):
    write(tmp_path, **files_20m())
    path = tmp_path / "movies.csv"
    path.write_bytes(path.read_bytes().replace(b"\n7,", b"\nseven,"))
    with pytest.raises(DataError, match="movies.csv: line 6: movieId must be a whole number"):
        movielens.load(tmp_path)
    dataset = movielens.load(tmp_path, on_bad_row="skip")
    assert dataset.log.time.tolist() == [90, 100, 100_000, 100, 200, 300, 10, 20, 30]
    assert dataset.facts["rows skipped"] == 2


def test_genres_are_what_their_numbers_say(tmp_path):
    files = files_100k()
    ordered = movielens.load(write(tmp_path, **files))
    files["u__genre"] = ["Comedy|2", "unknown|0", "Action|1"]
    dataset = movielens.load(write(tmp_path, **files))
    assert dataset.log.items["genre"].tolist() == ordered.log.items["genre"].tolist()
    files["u__genre"] = ["Comedy|2", "unknown|0"]
    reason = "u.genre: genres must be numbered 0, 1, 2, ..., got .0, 2."
    with pytest.raises(DataError, match=reason):
        movielens.load(write(tmp_path, **files))


def test_no_rating_left(tmp_path):
    files = files_20m()
    files["movies__csv"] = [files["movies__csv"][0], "99,Title,Drama"]
    with pytest.raises(DataError, match="ratings.csv: holds no rating of a movie and user"):
        movielens.load(write(tmp_path, **files), on_bad_row="skip")


def test_another_header(tmp_path):
    files = files_20m()
    files["ratings__csv"][0] = "user,movie,rating,timestamp"
    with pytest.raises(DataError, match="the first line must be 'userId,movieId,rating,timestamp'"):
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
