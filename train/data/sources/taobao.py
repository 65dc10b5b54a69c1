"""`taobao:FILE`: UserBehavior.csv, a sample of Taobao's log, as Alibaba publishes it on Tianchi.

Zhu et al., "Learning Tree-based Deep Model for Recommender Systems", KDD 2018,
https://arxiv.org/abs/1801.02294; https://tianchi.aliyun.com/dataset/649. 100,150,807 lines without
a header: user, item, category, behaviour (pv, buy, cart, fav) and second, from 25 November to
3 December 2017, of about a million users and four million items.

Differs from the file: some of its timestamps lie outside those nine days (as Beijing counts them),
by years or below zero. They are events whose time is not known, so they are left out and counted.
An item is of the category that its first line names. Lines that repeat are events that repeat, as
in any log by the second.

A line takes 17 bytes while the file is read, and 16 of the data set that is made.
"""

import dataclasses
import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute

from ....zoo.features import RowMap
from .. import columns, interactions
from ..dataset import Dataset
from ..errors import DataError
from ..fields.encoding import Attribute
from ..files.lines import BadRows, OnBadRow, read_blocks
from ..protocol import Protocol
from ..raw_interactions import Interactions

BEHAVIORS = ("pv", "buy", "cart", "fav")
_COLUMNS = {
    "user": pa.int64(),
    "item": pa.int64(),
    "category": pa.int64(),
    "behavior": pa.dictionary(pa.int32(), pa.string()),
    "timestamp": pa.int64(),
}
_BEIJING = datetime.timezone(datetime.timedelta(hours=8))
_FIRST = int(datetime.datetime(2017, 11, 25, tzinfo=_BEIJING).timestamp())
_END = int(datetime.datetime(2017, 12, 4, tzinfo=_BEIJING).timestamp())


def load(
    path: str | Path,
    *,
    on_bad_row: OnBadRow = "stop",
    row_maps: dict[str, RowMap] | None = None,
    protocol: Protocol | None = None,
) -> Dataset:
    """Reads the file (or a part of it), plain, compressed or in a `.zip`, as it is published.

    Raises:
      DataError: no such file, a bad row unless they are skipped, or too few events.
    """
    path, facts = Path(path), {}
    dataset = interactions.build(
        f"taobao:{path.name}",
        # Held by no name here, so that it goes as soon as it is no longer needed.
        _read(path, BadRows(on_bad_row), facts),
        row_maps=row_maps,
        protocol=protocol,
    )
    return dataclasses.replace(dataset, facts=dataset.facts | facts)


def _read(path: Path, bad: BadRows, facts: dict) -> Interactions:
    parts = {name: columns.Column() for name in _COLUMNS}
    outside = 0
    for batch in read_blocks(path, _COLUMNS, bad=bad, choices={"behavior": BEHAVIORS}):
        time = batch["timestamp"].to_numpy()
        inside = (time >= _FIRST) & (time < _END)
        outside += len(time) - int(inside.sum())
        for name in ("user", "item", "category", "timestamp"):
            parts[name].append(columns.compact(batch[name].to_numpy()[inside]))
        parts["behavior"].append(_behavior_codes(batch["behavior"])[inside])
    if not len(parts["user"]):
        raise DataError(f"{path}: none of its {outside} events is of 25.11. to 3.12.2017.")
    user, _ = columns.codes(parts["user"].whole())
    item, item_ids = columns.codes(parts["item"].whole())
    category = columns.first_of_each(item, parts["category"].whole(), len(item_ids))
    behavior = pa.DictionaryArray.from_arrays(parts["behavior"].whole(), list(BEHAVIORS))
    facts["events outside 2017-11-25 to 2017-12-03 left out"] = outside
    facts |= bad.facts()
    return Interactions(
        user=user,
        item=item,
        time=parts["timestamp"].whole(),
        item_ids=pa.array(item_ids),
        items=(Attribute(name="category", values=pa.array(category)),),
        events=(Attribute(name="behavior", values=behavior, dim=4),),
    )


def _behavior_codes(values: pa.DictionaryArray) -> np.ndarray:
    """int8 positions in BEHAVIORS: every block has a dictionary of its own."""
    known = np.array([BEHAVIORS.index(name) for name in values.dictionary.to_pylist()], np.int8)
    return known[values.indices.to_numpy()]
