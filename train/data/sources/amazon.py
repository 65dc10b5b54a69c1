"""`amazon:DIR`: reviews of products of one department, as McAuley's group publishes them.

A folder of one file of reviews and optionally one of metadata (`meta_...`), a product a line, as
`.json` or `.jsonl`, compressed or not, of any of the three generations; or the file of reviews
alone, if compressed, or an archive:

    2014  http://jmcauley.ucsd.edu/data/amazon; its metadata are Python literals, not JSON
    2018  https://cseweb.ucsd.edu/~jmcauley/datasets/amazon_v2
    2023  https://amazon-reviews-2023.github.io; products by `parent_asin`, milliseconds

Every review is an event, whatever its stars (`min_rating` leaves out those of few); a user's second
review of the same product in the same second is the first one published twice, and left out. A
product's category is the last of its (first) path of categories, as in DIEN's scripts (DIN's take
the last path), or its department where it has none; brand (in 2023 the store) and price where some
product has one. A price that is no number of dollars ("$12.99", the lower end of a range) is
missing. The first of two metadata of a product counts.

Lines are read one by one; what is held are ids, times, and the three attributes.
"""

import ast
from collections.abc import Callable, Iterator
import dataclasses
import json
import math
from pathlib import Path
import re
import reprlib
from typing import Any
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.compute

from ....zoo.features import RowMap
from .. import columns, files, interactions
from ..dataset import Dataset
from ..errors import DataError
from ..fields.encoding import Attribute
from ..files.lines import BadRows, OnBadRow, read_lines
from ..protocol import Protocol
from ..raw_interactions import Interactions

pc: Any = pyarrow.compute  # its functions are made when it is imported

_ENDINGS = (".json", ".jsonl")
_ROWS_AT_ONCE = 2**17
_LATEST = 2**53 // 1000
_PRICE = re.compile(r"(?:from )?\$? ?([0-9][0-9,]*(?:\.[0-9]+)?)(?: ?- ?\$? ?[0-9][0-9,.]*)?")


def load(
    folder: str | Path,
    *,
    on_bad_row: OnBadRow = "stop",
    row_maps: dict[str, RowMap] | None = None,
    protocol: Protocol | None = None,
) -> Dataset:
    """Reads the folder, an archive of it, or one compressed file of reviews.

    Raises:
      DataError: not one file of reviews, more than one of metadata, a bad row unless they are
        skipped, or too few events.
    """
    reviews, metadata = _files(Path(folder))
    bad = BadRows(on_bad_row)
    raw, facts = _read(reviews, metadata, bad)
    dataset = interactions.build(
        f"amazon:{reviews.name.partition('.')[0]}",
        raw,
        row_maps=row_maps,
        protocol=protocol,
    )
    return dataclasses.replace(dataset, facts=dataset.facts | facts | bad.facts())


def _files(folder: Path) -> tuple[Path, Path | None]:
    """The file of reviews, and that of metadata if there is one."""
    is_lines = lambda name: files.name_of(Path(name)).endswith(_ENDINGS)
    is_packed = files.name_of(folder) != folder.name
    if is_packed and is_lines(folder.name) and files.is_file(folder):
        if not files.files_in(folder):
            return folder, None  # The file of reviews as it is published.
    folder = files.folder_of(folder, is_lines)
    found = [path for path in files.files_in(folder) if is_lines(path.name)]
    metadata = [path for path in found if path.name.startswith("meta_")]
    reviews = [path for path in found if path not in metadata]
    if len(reviews) != 1 or len(metadata) > 1:
        names = ", ".join(path.name for path in found) or "nothing"
        raise DataError(
            f"{folder}: expected one file of reviews and at most one of metadata (meta_...), "
            f"as {', '.join(_ENDINGS)} (compressed or not), found {names}."
        )
    return reviews[0], metadata[0] if metadata else None


def _read(
    reviews: Path, metadata: Path | None, bad: BadRows
) -> tuple[Interactions, dict[str, Any]]:
    users, products, times, stars = _columns_of(
        _parsed(reviews, _review, bad), (pa.string(), pa.string(), pa.int64(), pa.float32())
    )
    if not times:
        raise DataError(f"{reviews}: holds no review that can be read ({bad.first}).")
    user, _ = columns.codes_of_texts(users)
    item, item_ids = columns.codes_of_texts(products)
    seconds, rating = columns.Column(), columns.Column()
    for part, rated in zip(times, stars, strict=True):
        seconds.append(columns.compact(part.to_numpy()))
        rating.append(rated.to_numpy())
    time = seconds.whole()
    once = columns.firsts((user, item, time))
    facts: dict[str, Any] = {"repeated reviews left out": len(once) - int(once.sum())}
    of_items: tuple[Attribute, ...] = ()
    if metadata:
        of_items, missing = _attributes(metadata, item_ids, bad)
        facts["items without metadata"] = missing
    raw = Interactions(
        user=user[once],
        item=item[once],
        time=time[once],
        item_ids=item_ids,
        items=of_items,
        rating=rating.whole()[once],
    )
    return raw, facts


def _attributes(path: Path, item_ids: pa.Array, bad: BadRows) -> tuple[tuple[Attribute, ...], int]:
    """What the metadata say of each item, and of how many they say nothing."""
    kinds = (pa.string(), pa.string(), pa.string(), pa.float64())
    with warnings.catch_warnings():
        # Python's parser has opinions on the texts in literals.
        warnings.simplefilter("ignore")
        ids, categories, brands, prices = _columns_of(_parsed(path, _product, bad), kinds)
    named = pc.index_in(
        pa.chunked_array([part.dictionary_decode() for part in ids], pa.string()), item_ids
    ).combine_chunks()
    row = np.flatnonzero(named.is_valid().to_numpy(zero_copy_only=False))
    at = np.full(len(item_ids), -1)
    # Backwards: the first of a product's metadata stays.
    at[named.drop_null().to_numpy()[::-1]] = row[::-1]
    rows = pa.array(at, mask=at < 0)
    values = {
        "category": _texts(categories, rows),
        "brand": _texts(brands, rows),
        "price": pa.chunked_array(prices, pa.float64()).combine_chunks().take(rows),
    }
    attributes = tuple(
        Attribute(name=name, values=column, transform="log1p" if name == "price" else "identity")
        for name, column in values.items()
        if name == "category" or column.null_count < len(column)
    )
    return attributes, int((at < 0).sum())


def _texts(parts: list[Any], rows: pa.Array) -> pa.Array:
    if not parts:
        return pa.nulls(len(rows), pa.string())
    coded = pa.chunked_array(parts).combine_chunks()
    return coded.take(rows).dictionary_decode()


def _columns_of(rows: Iterator[tuple], kinds: tuple[pa.DataType, ...]) -> tuple[list[Any], ...]:
    """Columns of `rows` in parts; those of texts as dictionaries, since texts repeat."""
    parts: tuple[list[Any], ...] = tuple([] for _ in kinds)
    held: list[tuple] = []

    def put_away() -> None:
        for part, kind, values in zip(parts, kinds, zip(*held, strict=True), strict=False):
            array = pa.array(values, kind)
            part.append(array.dictionary_encode() if pa.types.is_string(kind) else array)
        held.clear()

    for row in rows:
        held.append(row)
        if len(held) == _ROWS_AT_ONCE:
            put_away()
    put_away()
    return parts


class _BadLine(Exception):
    """Why a line cannot be used."""


def _parsed(path: Path, read: Callable[[Any], tuple], bad: BadRows) -> Iterator[tuple]:
    for number, line in read_lines(path):
        try:
            yield read(_object(line))
        except _BadLine as error:
            bad.add(path, number, str(error))


def _object(line: bytes) -> dict[str, Any]:
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise _BadLine("is not UTF-8 text") from None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        try:
            content = ast.literal_eval(text)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            raise _BadLine(f"is neither JSON nor a literal: {reprlib.repr(text)}") from None
    if not isinstance(content, dict):
        raise _BadLine(f"must be an object, got {reprlib.repr(content)}")
    return content


def _review(line: dict[str, Any]) -> tuple[str, str, int, float]:
    """User, product, second and stars; NaN without stars."""
    if "user_id" in line:
        user, product, time, units = "user_id", "parent_asin", "timestamp", 1000
    else:
        user, product, time, units = "reviewerID", "asin", "unixReviewTime", 1
    stars = line.get("rating" if "user_id" in line else "overall", math.nan)
    if type(stars) not in (int, float):
        raise _BadLine(f"the rating must be a number, got {reprlib.repr(stars)}")
    value = line.get(time)
    # True is an int to Python.
    if type(value) is not int or not -_LATEST < value // units < _LATEST:
        what = "milliseconds" if units > 1 else "seconds"
        raise _BadLine(f"{time} must be whole {what}, got {reprlib.repr(value)}")
    return _text(line, user), _text(line, product), value // units, float(stars)


def _product(line: dict[str, Any]) -> tuple[str, str | None, str | None, float | None]:
    """Id, category, brand and price."""
    id_ = _text(line, "parent_asin" if "parent_asin" in line else "asin")
    brand = line.get("brand") or line.get("store")
    if not (brand is None or brand == "" or isinstance(brand, str)):
        raise _BadLine(f"brand must be text, got {reprlib.repr(brand)}")
    return id_, _category(line), _storable(brand) or None, _price(line.get("price"))


def _text(line: dict[str, Any], name: str) -> str:
    value = line.get(name)
    if not isinstance(value, str) or not value:
        raise _BadLine(f"{name} must be text, got {reprlib.repr(value)}")
    return _storable(value)


def _storable(value: Any) -> Any:
    """Text that UTF-8 can hold: JSON may name half of a surrogate pair."""
    if value and not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise _BadLine(f"{reprlib.repr(value)} is not text that UTF-8 can hold")
    return value


def _category(line: dict[str, Any]) -> str | None:
    path = line.get("categories") or line.get("category") or []
    if isinstance(path, list) and path and isinstance(path[0], list):
        path = path[0]
    if not isinstance(path, list) or not all(isinstance(name, str) for name in path):
        raise _BadLine(f"categories must be a list of texts, got {reprlib.repr(path)}")
    last = path[-1] if path else line.get("main_category") or line.get("main_cat")
    return _storable(last) if isinstance(last, str) and last else None


def _price(value: Any) -> float | None:
    """Dollars; None for what is no price: the files hold scraps of pages in its place."""
    if isinstance(value, str) and (match := _PRICE.fullmatch(value.strip())):
        value = float(match[1].replace(",", ""))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value < 1e9 else None
