"""`movielens:DIR`: MovieLens 100K and 1M as GroupLens publishes them.

Harper and Konstan, "The MovieLens Datasets", TiiS 2015, https://doi.org/10.1145/2827872. Every
rating is an event, whatever its stars. Items carry their genres (a bag), users gender, age and
occupation. Recommended limits and licence: see the README in the folder.
"""

from pathlib import Path
import re

import numpy as np
import pyarrow as pa

from ...zoo.features import RowMap
from . import interactions
from .dataset import Dataset
from .errors import DataError
from .interactions import Attribute, Interactions

_ENCODING = "latin-1"
_USER_DIM = 8


def load(
    folder: str | Path, *, max_train_per_user: int = 20, row_maps: dict[str, RowMap] | None = None
) -> Dataset:
    """Reads the folder of `u.data` (100K) or of `ratings.dat` (1M).

    Raises:
      DataError: neither is there, or a line does not have its published form (named by number).
    """
    folder = Path(folder)
    if (folder / "u.data").is_file():
        name, raw = "100k", _read_100k(folder)
    elif (folder / "ratings.dat").is_file():
        name, raw = "1m", _read_1m(folder)
    else:
        raise DataError(f"{folder}: neither u.data (MovieLens 100K) nor ratings.dat (1M) is there.")
    return interactions.build(
        f"movielens:{name}", raw, max_train_per_user=max_train_per_user, row_maps=row_maps
    )


def _read_100k(folder: Path) -> Interactions:
    genre_names = [name for name, _ in _lines(folder / "u.genre", "|", 2)]
    ratings = _lines(folder / "u.data", "\t", 4, integers=4)
    movies = _lines(folder / "u.item", "|", 5 + len(genre_names), integers=1)
    people = _lines(folder / "u.user", "|", 5, integers=1)
    genres = [
        [name for name, flag in zip(genre_names, movie[5:], strict=True) if flag == "1"]
        for movie in movies
    ]
    users = {"age": 1, "gender": 2, "occupation": 3}
    return _assemble(folder, ratings, [movie[0] for movie in movies], genres, people, users)


def _read_1m(folder: Path) -> Interactions:
    ratings = _lines(folder / "ratings.dat", "::", 4, integers=4)
    movies = _lines(folder / "movies.dat", "::", 3, integers=1)
    people = _lines(folder / "users.dat", "::", 5, integers=1)
    genres = [[name for name in movie[2].split("|") if name] for movie in movies]
    users = {"gender": 1, "age": 2, "occupation": 3}
    return _assemble(folder, ratings, [movie[0] for movie in movies], genres, people, users)


def _lines(path: Path, separator: str, columns: int, *, integers: int = 0) -> list[list[str]]:
    """The values of each line; the first `integers` of them are whole numbers."""
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    rows = []
    # Not splitlines(): some of its line ends are letters of other encodings.
    for number, line in enumerate(path.read_text(encoding=_ENCODING).split("\n"), start=1):
        if not line.strip():
            continue
        row = line.split(separator)
        if len(row) != columns:
            raise DataError(
                f"{path}: line {number} has {len(row)} values, expected {columns} split by "
                f"{separator!r}."
            )
        for value in row[:integers]:
            if not re.fullmatch(r"-?[0-9]{1,18}", value.strip()):
                raise DataError(f"{path}: line {number}: {value!r} is not a whole number.")
        rows.append(row)
    if not rows:
        raise DataError(f"{path}: the file is empty.")
    return rows


def _assemble(
    folder: Path,
    ratings: list[list[str]],
    movie_ids: list[str],
    genres: list[list[str]],
    people: list[list[str]],
    user_columns: dict[str, int],
) -> Interactions:
    table = np.array(ratings, np.int64)
    movies = np.array(movie_ids, np.int64)
    persons = np.array([person[0] for person in people], np.int64)
    return Interactions(
        user=_index(folder, "user", persons, table[:, 0]),
        item=_index(folder, "movie", movies, table[:, 1]),
        time=table[:, 3],
        item_ids=pa.array(movies),
        items=(Attribute(name="genre", values=pa.array(genres, pa.list_(pa.string()))),),
        users=tuple(
            Attribute(name=name, values=pa.array([p[at] for p in people]), dim=_USER_DIM)
            for name, at in user_columns.items()
        ),
    )


def _index(folder: Path, what: str, known: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Positions of `wanted` among `known`."""
    order = np.argsort(known)
    at = np.minimum(np.searchsorted(known, wanted, sorter=order), len(known) - 1)
    if not np.array_equal(known[order[at]], wanted):
        stray = wanted[known[order[at]] != wanted][0]
        raise DataError(
            f"{folder}: a rating names {what} {stray}, which the {what} file does not list."
        )
    return order[at]
