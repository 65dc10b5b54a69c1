"""`movielens:DIR`: MovieLens 100K, 1M, 10M, 20M, 25M and 32M as GroupLens publishes them.

Harper and Konstan, "The MovieLens Datasets", TiiS 2015, https://doi.org/10.1145/2827872. Every
rating is an event, whatever its stars, and so is one that repeats. Items carry their genres (a
bag); the users of 100K and 1M gender, age and occupation. 10M has the files of 1M but for
`users.dat`, and half stars, which tell the two apart. Users and movies count by their ids; a
movie or user that is listed twice is what its first line says. Recommended limits and licence: see
the README in the folder.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute

from ....zoo.features import RowMap
from .. import columns, files, interactions
from ..dataset import Dataset
from ..errors import DataError
from ..fields.encoding import Attribute
from ..files.lines import BadRows, OnBadRow, read_blocks, read_lines
from ..protocol import Protocol
from ..raw_interactions import Interactions

pc: Any = pyarrow.compute  # its functions are made when it is imported

_RATINGS = ("u.data", "ratings.dat", "ratings.csv")
_USER_DIM = 8
_NO_GENRE = ("", "(no genres listed)")
_RATING = {"user": pa.int64(), "movie": pa.int64(), "rating": pa.int8(), "time": pa.int64()}
_HALVES = {
    "userId": pa.int64(),
    "movieId": pa.int64(),
    "rating": pa.float32(),
    "timestamp": pa.int64(),
}


def load(
    folder: str | Path,
    *,
    on_bad_row: OnBadRow = "stop",
    row_maps: dict[str, RowMap] | None = None,
    protocol: Protocol | None = None,
) -> Dataset:
    """Reads the folder of `u.data` (100K), `ratings.dat` (1M, 10M) or `ratings.csv` (20M on).

    Args:
      folder: as published, or the published archive (`ml-1m.zip`); files may be compressed.

    Raises:
      DataError: none is there, or (unless they are skipped) a line does not have its published
        form, or names a user or movie that its file does not list.
    """
    folder, bad = Path(folder), BadRows(on_bad_row)
    if files.is_file(folder):
        folder = files.folder_of(folder, lambda name: files.name_of(Path(name)) in _RATINGS)
    has = lambda name: files.is_file(files.packed(folder / name))
    if has("u.data"):
        name, raw = "100k", _read_100k(folder, bad)
    elif has("ratings.dat") and has("users.dat"):
        name, raw = "1m", _read_1m(folder, bad)
    elif has("ratings.dat"):
        name, raw = "10m", _read_10m(folder, bad)
    elif has("ratings.csv"):
        # These differ in nothing but their size, and in how their folder is called.
        name = files.name_of(folder.resolve())
        name = name.removeprefix("ml-") if name.startswith("ml-") else "20m"
        raw = _read_20m(folder, bad)
    else:
        raise DataError(
            f"{folder}: neither u.data (MovieLens 100K) nor ratings.dat (1M, 10M) nor "
            "ratings.csv (20M and later) is there."
        )
    dataset = interactions.build(
        f"movielens:{name}",
        raw,
        row_maps=row_maps,
        protocol=protocol,
    )
    return dataclasses.replace(dataset, facts=dataset.facts | bad.facts())


class _Listed(NamedTuple):
    """Users or movies, by their ids: (N,) sorted, and Arrow columns of what their file says."""

    path: Path
    ids: np.ndarray
    columns: dict[str, Any]


def _read_100k(folder: Path, bad: BadRows) -> Interactions:
    form: Any = {"separator": "|", "encoding": "latin-1", "bad": bad}
    names = _genres(folder / "u.genre", form)
    text = ("title", "date", "video date", "url")
    movie = {"movie": pa.int64()} | dict.fromkeys(text, pa.string())
    flags = {f"flag {number} ({name})": pa.int8() for number, name in enumerate(names)}
    movies = _listed(folder / "u.item", movie | flags, optional=text, **form)
    user = dict.fromkeys(("age", "gender", "occupation", "zip code"), pa.string())
    users = _listed(folder / "u.user", {"user": pa.int64()} | user, **form)
    set_ = np.stack([movies.columns[flag].to_numpy() == 1 for flag in flags], axis=1)
    of_movies = [[names[at] for at in np.flatnonzero(row)] for row in set_]
    ratings = _Ratings(files.packed(folder / "u.data"), _RATING, movies, users, {"separator": "\t"})
    return ratings.read(of_movies, ("age", "gender", "occupation"), bad)


def _genres(path: Path, form: dict[str, Any]) -> list[str]:
    """The genres by their numbers, which are the places of their flags in `u.item`."""
    table = _table(path, {"genre": pa.string(), "number": pa.int64()}, **form)
    numbers, first = np.unique(table["number"].to_numpy(), return_index=True)
    if not np.array_equal(numbers, np.arange(len(numbers))):
        raise DataError(f"{path}: genres must be numbered 0, 1, 2, ..., got {numbers.tolist()}.")
    return table["genre"].take(pa.array(first)).to_pylist()


def _read_1m(folder: Path, bad: BadRows) -> Interactions:
    form: Any = {"separator": "::", "encoding": "latin-1", "bad": bad}
    movie = {"movie": pa.int64(), "title": pa.string(), "genres": pa.string()}
    movies = _listed(folder / "movies.dat", movie, optional=("title", "genres"), **form)
    user = dict.fromkeys(("gender", "age", "occupation", "zip code"), pa.string())
    users = _listed(folder / "users.dat", {"user": pa.int64()} | user, **form)
    path = files.packed(folder / "ratings.dat")
    ratings = _Ratings(path, _RATING, movies, users, {"separator": "::"})
    return ratings.read(_split(movies), ("gender", "age", "occupation"), bad)


def _read_10m(folder: Path, bad: BadRows) -> Interactions:
    path = files.packed(folder / "ratings.dat")
    if not any(b".5::" in line for _, line in read_lines(path)):
        raise DataError(
            f"{folder / 'users.dat'}: no such file, which MovieLens 1M has; and {path.name} has no "
            "half stars, which 10M has."
        )
    movie = {"movie": pa.int64(), "title": pa.string(), "genres": pa.string()}
    form: Any = {"separator": "::", "optional": ("title", "genres"), "bad": bad}
    movies = _listed(folder / "movies.dat", movie, **form)
    ratings = _Ratings(path, _RATING | {"rating": pa.float32()}, movies, None, {"separator": "::"})
    return ratings.read(_split(movies), (), bad)


def _read_20m(folder: Path, bad: BadRows) -> Interactions:
    movie = {"movieId": pa.int64(), "title": pa.string(), "genres": pa.string()}
    movies = _listed(
        folder / "movies.csv",
        movie,
        optional=("title", "genres"),
        header=True,
        quoted=True,
        bad=bad,
    )
    ratings = _Ratings(
        files.packed(folder / "ratings.csv"), _HALVES, movies, None, {"header": True}
    )
    return ratings.read(_split(movies), (), bad)


def _table(path: Path, kinds: dict[str, Any], **form: Any) -> pa.Table:
    return pa.Table.from_batches(read_blocks(files.packed(path), kinds, **form)).combine_chunks()


def _listed(path: Path, kinds: dict[str, Any], **form: Any) -> _Listed:
    """A file whose first column is the id."""
    table = _table(path, kinds, **form)
    ids, first = np.unique(table.column(0).to_numpy(), return_index=True)
    table = table.take(pa.array(first))
    return _Listed(path, ids, {name: table[name].combine_chunks() for name in kinds})


def _split(movies: _Listed) -> list[list[str]]:
    """The genres of each movie, from its text `Action|Comedy`."""
    texts = movies.columns["genres"].fill_null("").to_pylist()
    return [[name for name in text.split("|") if name not in _NO_GENRE] for text in texts]


class _Ratings(NamedTuple):
    """A file of ratings: user, movie, rating and second; what they may name, if that is listed."""

    path: Path
    kinds: dict[str, Any]
    movies: _Listed
    users: _Listed | None
    form: dict[str, Any]

    def read(
        self, genres: list[list[str]], user_fields: tuple[str, ...], bad: BadRows
    ) -> Interactions:
        parts = [columns.Column() for _ in range(4)]
        for batch in read_blocks(self.path, self.kinds, numbered=True, bad=bad, **self.form):
            user, movie, rating, time, line = (column.to_numpy() for column in batch.columns)
            movie, known = self._positions("movie", movie, self.movies, line, bad)
            if self.users:
                user, more = self._positions("user", user, self.users, line, bad, known)
                known &= more
            for part, column in zip(parts[:3], (user, movie, time), strict=True):
                part.append(columns.compact(column[known]))
            parts[3].append(rating[known].astype(np.float32))
        user, movie, time, rating = (part.whole() for part in parts)
        if not len(user):
            raise DataError(f"{self.path}: holds no rating of a movie and user that are listed.")
        if not self.users:
            user, _ = columns.codes(user)
        of_users = self.users.columns if self.users else {}
        return Interactions(
            user=user,
            item=movie,
            time=time,
            item_ids=pa.array(self.movies.ids),
            rating=rating,
            items=(Attribute(name="genre", values=pa.array(genres, pa.list_(pa.string()))),),
            users=tuple(
                Attribute(name=name, values=of_users[name], dim=_USER_DIM) for name in user_fields
            ),
        )

    def _positions(
        self,
        what: str,
        ids: np.ndarray,
        listed: _Listed,
        line: np.ndarray,
        bad: BadRows,
        wanted: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Where each id stands in the list, and whether it does; strangers are bad rows."""
        at = np.minimum(np.searchsorted(listed.ids, ids), len(listed.ids) - 1)
        known = listed.ids[at] == ids
        strange = ~known if wanted is None else ~known & wanted
        for row in np.flatnonzero(strange):
            reason = f"names {what} {ids[row]}, which {listed.path.name} does not list"
            bad.add(self.path, int(line[row]), reason)
        return at, known
