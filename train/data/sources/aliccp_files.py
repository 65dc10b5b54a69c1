r"""The files of Ali-CCP: their fields, and their lines as columns of codes (see `aliccp`).

A code is the id that the publisher gave to a value, -1 where there is none.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ....zoo.features import signatures
from .. import files
from ..errors import DataError
from ..files.lines import BadRows, read_blocks
from ..store import ColumnStore
from . import feature_lists
from .feature_lists import Features

BAG = 50
# An item may have several intention nodes.
NODES = 8


class Published(NamedTuple):
    """A field: its published number, its name here, the dim of its table, the slots of a bag."""

    number: str
    name: str
    dim: int = 16
    width: int | None = None


USER = (
    Published("101", "user"),
    Published("121", "profile", 8),
    Published("122", "profile_group", 8),
    Published("124", "gender", 4),
    Published("125", "age", 4),
    Published("126", "consumption_1", 4),
    Published("127", "consumption_2", 4),
    Published("128", "occupation", 4),
    Published("129", "geography", 4),
    Published("109_14", "user_categories", 16, BAG),
    Published("110_14", "user_shops", 16, BAG),
    Published("127_14", "user_brands", 16, BAG),
    Published("150_14", "user_nodes", 16, BAG),
)
CONTEXT = (Published("301", "position", 4),)
CANDIDATE = (
    Published("205", "item"),
    Published("206", "category"),
    Published("207", "shop"),
    Published("210", "nodes", 16, NODES),
    Published("216", "brand"),
    # The user's past with this item's category, shop, brand and nodes.
    Published("508", "category_match"),
    Published("509", "shop_match"),
    Published("702", "brand_match"),
    Published("853", "node_match", 16, NODES),
)
_LIST = {"count": pa.int64(), "features": pa.string()}
_VISIT = {"visit": pa.dictionary(pa.int32(), pa.string())}
_COMMON = {**_VISIT, **_LIST}
_SKELETON = {
    "sample": pa.int64(),
    "click": pa.string(),
    "conversion": pa.string(),
    **_VISIT,
    **_LIST,
}


class Visits(NamedTuple):
    """The visits of one file: their signatures, ascending, and the place of each in the log."""

    signed: np.ndarray
    place: np.ndarray
    first: int

    def find(self, visits: pa.DictionaryArray) -> np.ndarray:
        """(R,) int32 places; -1 where a visit is not listed."""
        signed = signatures("visit", visits.dictionary.to_pylist())
        at = np.minimum(np.searchsorted(self.signed, signed), len(self.signed) - 1)
        place = np.where(self.signed[at] == signed, self.place[at], np.int32(-1))
        return place[visits.indices.to_numpy()]


class Reader:
    """Reads the files of a folder, and counts what it leaves out."""

    def __init__(self, folder: Path, bad: BadRows):
        self._folder, self._bad = folder, bad
        self._unknown: Counter[str] = Counter()
        self._cut: Counter[str] = Counter()
        self._without_click = 0

    def visits(self, part: str, store: ColumnStore) -> Visits:
        """Appends the visits of a file to `store`, as codes."""
        path, first = self._path(f"common_features_{part}"), len(store)
        seen: list[np.ndarray] = []
        lines: list[np.ndarray] = []
        for block, features in self._blocks(path, _COMMON):
            store.append(self._codes(USER, features, block.num_rows))
            visit = block["visit"]
            signed = signatures("visit", visit.dictionary.to_pylist())
            seen.append(signed[visit.indices.to_numpy()])
            lines.append(block["line"].to_numpy())
        signed, line = np.concatenate(seen), np.concatenate(lines)
        if not len(signed):
            raise DataError(f"{path}: no line can be used ({self._bad.first}).")
        order = np.argsort(signed, kind="stable")
        again = np.flatnonzero(signed[order][1:] == signed[order][:-1])
        for at in again[np.argsort(order[again + 1])]:
            twin = line[order[at]]
            self._bad.add(
                path, int(line[order[at + 1]]), f"repeats the common feature index of line {twin}"
            )
        # Of a visit that comes twice the first counts.
        order = np.delete(order, again + 1)
        return Visits(signed[order], (first + order).astype(np.int32), first)

    def requests(self, part: str, visits: Visits) -> Iterator[dict[str, np.ndarray]]:
        """Blocks of requests, features as codes."""
        path = self._path(f"sample_skeleton_{part}")
        for block, features in self._blocks(path, _SKELETON, visits):
            place = visits.find(block["visit"])
            click, conversion = (_flags(block[task]) for task in ("click", "conversion"))
            self._without_click += int(np.count_nonzero(conversion & ~click))
            columns = self._codes((*CONTEXT, *CANDIDATE), features, block.num_rows)
            for field in CANDIDATE:
                columns[field.name] = columns[field.name][:, None]
            yield {
                **columns,
                "visit": place,
                "line": block["line"].to_numpy(),
                "clicked": click.astype(np.float32)[:, None],
                "converted": (click & conversion).astype(np.float32)[:, None],
            }

    def facts(self) -> dict[str, Any]:
        """Counts of rows left out."""
        facts: dict[str, Any] = {}
        if self._without_click:
            facts["conversions without a click, not counted"] = self._without_click
        for title, counter in (
            ("features of unknown fields", self._unknown),
            ("features beyond the width of their field", self._cut),
        ):
            if counter:
                facts[title] = ", ".join(f"{name}: {n}" for name, n in sorted(counter.items()))
        return {**facts, **self._bad.facts()}

    def _path(self, stem: str) -> Path:
        name = f"{stem}.csv"
        archive = self._folder / f"sample_{stem.rpartition('_')[2]}.tar.gz"
        if files.is_file(archive) and not files.is_file(files.packed(self._folder / name)):
            # As it is published.
            return files.folder_of(archive, lambda found: found == name) / name
        return files.packed(self._folder / name)

    def _blocks(
        self, path: Path, columns: dict[str, pa.DataType], visits: Visits | None = None
    ) -> Iterator[tuple[pa.RecordBatch, Features]]:
        """The usable rows of each block, with their features."""
        blocks = read_blocks(
            path,
            columns,
            bad=self._bad,
            optional=("features",),
            choices=dict.fromkeys({"click", "conversion"} & columns.keys(), ("0", "1")),
            numbered=True,
        )
        for block in blocks:
            if visits is not None:
                listed = visits.find(block["visit"]) >= 0
                stray = {int(row): _unlisted(block, int(row)) for row in np.flatnonzero(~listed)}
                block = self._without(path, block, stray)
            counts = block["count"].to_numpy()
            features, broken = feature_lists.parse(block["features"], counts)
            yield self._without(path, block, broken), features

    def _without(self, path: Path, block: pa.RecordBatch, bad: dict[int, str]) -> pa.RecordBatch:
        if not bad:
            return block
        for row, reason in bad.items():
            self._bad.add(path, block["line"][row].as_py(), reason)
        kept = np.ones(block.num_rows, bool)
        kept[list(bad)] = False
        return block.filter(pa.array(kept))

    def _codes(
        self, fields: tuple[Published, ...], features: Features, rows: int
    ) -> dict[str, np.ndarray]:
        columns = {}
        for field in fields:
            if field.width is None:
                columns[field.name], cut = features.first(field.number, rows)
            else:
                columns[field.name], cut = features.heaviest(field.number, rows, field.width)
            if cut:
                self._cut[field.number] += cut
        known = {field.number for field in fields}
        for index, name in enumerate(features.names):
            if name not in known:
                self._unknown[name] += int(np.count_nonzero(features.field == index))
        return columns


def _unlisted(block: pa.RecordBatch, row: int) -> str:
    return f"common feature index {block['visit'][row].as_py()!r} is not listed"


def _flags(column: pa.StringArray) -> np.ndarray:
    return np.asarray(column.to_numpy(zero_copy_only=False) == "1", bool)
