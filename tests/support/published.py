"""A small log in the forms in which logs are published, for the tests of `train/data`."""

import dataclasses
import gzip
import json
from pathlib import Path

import numpy as np


@dataclasses.dataclass(frozen=True)
class Published:
    """The files of a source.

    Attributes:
      kind: of SOURCE.
      files: {name: lines}; the first file is that of the events.
      strays: {name: (a line with letters where a number is due, why it is bad)}.
      opened: the file that SOURCE names; by default the folder.
      header: whether the first line of every file names its columns.
      form_of_others: files every line of which others need.
    """

    kind: str
    files: dict[str, list[str]]
    strays: dict[str, tuple[str, str]]
    opened: str = ""
    header: bool = False
    form_of_others: tuple[str, ...] = ()

    @property
    def main(self) -> str:
        return next(iter(self.files))

    def write(self, folder: Path, **changed: list[str | bytes]) -> str:
        """Writes all files, `changed` ones by their name with `__` for dots; returns SOURCE."""
        for name, lines in self.files.items():
            write(folder / name, changed.get(name.replace(".", "__"), lines))
        return f"{self.kind}:{folder / self.opened}"


def write(path: Path, lines: list[str | bytes], *, end: bytes = b"\n") -> None:
    content = b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines) + end
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def _events() -> list[tuple[int, int, int]]:
    """(user, item, step), in no order: nobody meets an item twice, or two items at once."""
    random = np.random.default_rng(0)
    events = []
    for user in range(1, 13):
        size = int(random.integers(4, 8))
        items = random.choice(np.arange(20, 40), size, replace=False)
        steps = random.choice(10, size, replace=False)
        events += [(user, int(i), int(s)) for i, s in zip(items, steps, strict=True)]
    return [events[at] for at in random.permutation(len(events))]


EVENTS = _events()
_USERS, _ITEMS = range(1, 13), range(20, 40)
_HOUR = 3600
_START = 1_511_539_200  # 25 November 2017 in Beijing
_BEHAVIORS = ("pv", "buy", "cart", "fav")


def _taobao(name: str) -> Published:
    line = lambda u, i, s: f"{u},{i},{i % 3},{_BEHAVIORS[s % 4]},{_START + _HOUR * s}"
    return Published(
        "taobao",
        {name: [line(*event) for event in EVENTS]},
        {name: ("3,21,0,pv,soon", "timestamp must be a whole number, got 'soon'")},
        opened=name,
    )


def _events_csv(name: str) -> Published:
    line = lambda u, i, s: f"{u},{i},{i % 3},{_START + 86_400 * s}"
    return Published(
        "events",
        {
            name: [
                "user_id,item_id,category_id,timestamp",
                *(line(*event) for event in EVENTS),
            ]
        },
        {name: ("3,21,0,soon", "timestamp must be a time, got 'soon'")},
        opened=name,
        header=True,
    )


def _alibaba() -> Published:
    edges, items, users = (
        f"ecomm_{name}.txt" for name in ("edge_train", "item_feature", "user_feature")
    )
    return Published(
        "alibaba",
        {
            edges: [f"{u}\t{i}\t{1 + s % 4}\t201906{10 + s}" for u, i, s in EVENTS],
            items: [f"{i}\t{i % 2}\t{i % 5}\t{i % 3}\t{i}.5" for i in _ITEMS],
            users: [f"{u}\t{u % 2}\t{u % 5}\t-1\t{u % 3}\t{u}\t1,{u % 3}" for u in _USERS],
        },
        {
            edges: ("3\t21\t1\ttoday", "day must be a whole number, got 'today'"),
            items: ("21\t1\t1\t1\tfree", "price must be a finite number, got 'free'"),
            users: ("3\tw\t1\t1\t1\t1\t1", "gender must be a whole number, got 'w'"),
        },
    )


def _movielens_100k() -> Published:
    movie = lambda i: f"{i}|Title {i}|||url|0|{i % 2}|{int(i % 3 == 0)}"
    return Published(
        "movielens",
        {
            "u.data": [f"{u}\t{i}\t{1 + s % 5}\t{_START + s}" for u, i, s in EVENTS],
            "u.item": [movie(i) for i in _ITEMS],
            "u.user": [f"{u}|{20 + u}|{'MF'[u % 2]}|writer|{u}" for u in _USERS],
            "u.genre": ["unknown|0", "Action|1", "Comedy|2"],
        },
        {
            "u.data": ("3\t21\t5\tsoon", "time must be a whole number, got 'soon'"),
            "u.item": ("six|Title|||url|0|1|0", "movie must be a whole number, got 'six'"),
            "u.user": ("six|24|M|writer|1", "user must be a whole number, got 'six'"),
            "u.genre": ("Drama|six", "number must be a whole number, got 'six'"),
        },
        form_of_others=("u.genre",),
    )


def _movielens_1m() -> Published:
    return Published(
        "movielens",
        {
            "ratings.dat": [f"{u}::{i}::{1 + s % 5}::{_START + s}" for u, i, s in EVENTS],
            "movies.dat": [f"{i}::Title {i}::{'Action|Comedy'[: 6 + 7 * (i % 2)]}" for i in _ITEMS],
            "users.dat": [f"{u}::{'MF'[u % 2]}::{20 + u}::{u % 4}::1" for u in _USERS],
        },
        {
            "ratings.dat": ("3::21::5::soon", "time must be a whole number, got 'soon'"),
            "movies.dat": ("six::Title::Action", "movie must be a whole number, got 'six'"),
            "users.dat": ("six::M::24::1::1", "user must be a whole number, got 'six'"),
        },
    )


def _movielens_20m() -> Published:
    ratings = [f"{u},{i},{0.5 + s / 2},{_START + s}" for u, i, s in EVENTS]
    movies = [f'{i},"Title, {i}",{"Action|Comedy"[: 6 + 7 * (i % 2)]}' for i in _ITEMS]
    return Published(
        "movielens",
        {
            "ratings.csv": ["userId,movieId,rating,timestamp", *ratings],
            "movies.csv": ["movieId,title,genres", *movies],
        },
        {
            "ratings.csv": ("3,21,five,9", "rating must be a finite number, got 'five'"),
            "movies.csv": ("six,Title,Action", "movieId must be a whole number, got 'six'"),
        },
        header=True,
    )


def _amazon_2014() -> Published:
    review = lambda u, i, s: {"reviewerID": f"A{u}", "asin": f"B{i}", "unixReviewTime": s}
    product = lambda i: {"asin": f"B{i}", "categories": [["a", f"c{i % 3}"]], "price": i / 2}
    reviews, products = "reviews_Beauty_5.json.gz", "meta_Beauty.json.gz"
    return Published(
        "amazon",
        {
            reviews: [json.dumps(review(*event)) for event in EVENTS],
            products: [repr(product(i)) for i in _ITEMS],
        },
        {
            reviews: (
                json.dumps(review(3, 21, "soon")),
                "unixReviewTime must be whole seconds, got 'soon'",
            ),
            products: ("{'asin': 21}", "asin must be text, got 21"),
        },
    )


def _amazon_2023() -> Published:
    review = lambda u, i, s: {"user_id": f"A{u}", "parent_asin": f"B{i}", "timestamp": s}
    product = lambda i: {"parent_asin": f"B{i}", "categories": ["a", f"c{i % 3}"], "price": i / 2}
    reviews, products = "All_Beauty.jsonl", "meta_All_Beauty.jsonl"
    return Published(
        "amazon",
        {
            reviews: [json.dumps(review(u, i, 1000 * s)) for u, i, s in EVENTS],
            products: [json.dumps(product(i)) for i in _ITEMS],
        },
        {
            reviews: (
                json.dumps(review(3, 21, "soon")),
                "timestamp must be whole milliseconds, got 'soon'",
            ),
            products: ('{"parent_asin": 21}', "parent_asin must be text, got 21"),
        },
    )


PUBLISHED = {
    "events": _events_csv("log.csv"),
    "events.gz": _events_csv("log.csv.gz"),
    "taobao": _taobao("UserBehavior.csv"),
    "taobao.gz": _taobao("UserBehavior.csv.gz"),
    "alibaba": _alibaba(),
    "movielens 100k": _movielens_100k(),
    "movielens 1m": _movielens_1m(),
    "movielens 20m": _movielens_20m(),
    "amazon 2014": _amazon_2014(),
    "amazon 2023": _amazon_2023(),
}
