"""`alibaba:DIR`: a sample of an e-commerce log of Alibaba, with features of items and users.

Published with Xue et al., "Modeling Dynamic Heterogeneous Network for Link Prediction Using
Hierarchical Attention with Temporal RNN", ECML-PKDD 2020, https://arxiv.org/abs/2004.01024,
https://github.com/xuehansheng/DyHATR. Three files of tab-separated values without a header:

    ecomm_edge_train.txt     user, item, behaviour (1 click, 2 favourite, 3 cart, 4 buy), yyyymmdd
    ecomm_item_feature.txt   item, top category, category, brand (0: none), price
    ecomm_user_feature.txt   user, gender, age level, education, career, income, stages of life

The features of users are the publisher's guesses; -1 says that there is none. Incomes, some 3500
to 21,000, are ids of whole thousands: as numbers they would drown the other inputs. Items and users
that their files do not list have no features; those that are of no event are left out. A feature
line that names an id again is ignored.

Only the first event of every user with every item counts: nearly half of all events repeat one,
and whoever repeats the past would win. First by its day (`bench/alibaba.py` keeps the first line
instead); days are all the time there is, and within a day the order is the file's.
"""

import dataclasses
import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from ....zoo.features import RowMap
from .. import columns, files, interactions
from ..dataset import Dataset
from ..fields.encoding import Attribute
from ..files.lines import BadRows, OnBadRow, read_blocks
from ..protocol import Protocol
from ..raw_interactions import Interactions

pc: Any = pyarrow.compute  # its functions are made when it is imported

BEHAVIORS = {"1": "click", "2": "favourite", "3": "cart", "4": "buy"}
_EVENTS = "ecomm_edge_train.txt"
_EDGES = {"user": pa.int64(), "item": pa.int64(), "behavior": pa.string(), "day": pa.int32()}
_ITEMS = {
    "item": pa.int64(),
    "top_category": pa.int64(),
    "category": pa.int64(),
    "brand": pa.int64(),
    "price": pa.float64(),
}
_USERS = {
    "user": pa.int64(),
    "gender": pa.int64(),
    "age": pa.int64(),
    "education": pa.int64(),
    "career": pa.int64(),
    "income": pa.float64(),
    "stage": pa.string(),
}
_USER_DIM = 8


def load(
    folder: str | Path,
    *,
    on_bad_row: OnBadRow = "stop",
    row_maps: dict[str, RowMap] | None = None,
    protocol: Protocol | None = None,
) -> Dataset:
    """Reads the folder, or an archive of it; its files may be compressed.

    Raises:
      DataError: a file that is not there, a bad row unless they are skipped, or too few events.
    """
    bad = BadRows(on_bad_row)
    folder = files.folder_of(folder, lambda name: files.name_of(Path(name)) == _EVENTS)
    raw, repeated = _read(folder, bad)
    dataset = interactions.build("alibaba", raw, row_maps=row_maps, protocol=protocol)
    facts = dataset.facts | {"repeated events left out": repeated} | bad.facts()
    return dataclasses.replace(dataset, facts=facts)


def _read(folder: Path, bad: BadRows) -> tuple[Interactions, int]:
    user, item, behavior, time = _events(files.packed(folder / _EVENTS), bad)
    first = columns.firsts((user, item), time)
    user, user_ids = columns.codes(user[first])
    item, item_ids = columns.codes(item[first])
    of_items = _features(files.packed(folder / "ecomm_item_feature.txt"), _ITEMS, item_ids, bad)
    of_users = _features(files.packed(folder / "ecomm_user_feature.txt"), _USERS, user_ids, bad)
    known = lambda values, none: pc.if_else(
        pc.equal(values, none), pa.scalar(None, values.type), values
    )
    income, stage = of_users["income"], of_users["stage"]
    guesses = {name: known(of_users[name], -1) for name in ("gender", "age", "education", "career")}
    guesses["income"] = pc.floor(pc.divide(known(income, -1), 1000.0)).cast(pa.int64())
    guesses["stage"] = _stages(stage)
    raw = Interactions(
        user=user,
        item=item,
        time=time[first],
        item_ids=pa.array(item_ids),
        items=(
            Attribute(name="top_category", values=of_items["top_category"]),
            Attribute(name="category", values=of_items["category"]),
            Attribute(name="brand", values=known(of_items["brand"], 0)),
            Attribute(name="price", values=of_items["price"], transform="log1p"),
        ),
        users=tuple(Attribute(name=n, values=v, dim=_USER_DIM) for n, v in guesses.items()),
        events=(
            Attribute(
                name="behavior",
                values=pa.DictionaryArray.from_arrays(behavior[first], list(BEHAVIORS.values())),
                dim=4,
            ),
        ),
    )
    return raw, len(first) - len(user)


def _events(path: Path, bad: BadRows) -> tuple[np.ndarray, ...]:
    """User, item, position in BEHAVIORS and second of every event."""
    parts = [columns.Column() for _ in range(4)]
    names = pa.array(list(BEHAVIORS))
    choices = {"behavior": tuple(BEHAVIORS)}
    form: Any = {"separator": "\t", "choices": choices, "numbered": True}
    for batch in read_blocks(path, _EDGES, bad=bad, **form):
        user, item, _, day, line = (
            column.to_numpy(zero_copy_only=False) for column in batch.columns
        )
        behavior = pc.index_in(batch["behavior"], names).to_numpy().astype(np.int8)
        days, which = np.unique(day, return_inverse=True)
        seconds = np.array([_seconds(int(some)) for some in days])
        time = seconds[which]
        for row in np.flatnonzero(time < 0):
            bad.add(path, int(line[row]), f"day must be yyyymmdd since 1970, got {day[row]}")
        for part, column in zip(parts, (user, item, behavior, time), strict=True):
            part.append(column[time >= 0])
    return tuple(part.whole() for part in parts)


def _seconds(day: int) -> int:
    """Midnight of a day written yyyymmdd; -1 if there is no such day, or none since 1970."""
    try:
        date = datetime.datetime.strptime(f"{day:08}", "%Y%m%d")
    except ValueError:
        return -1
    return max(-1, int(date.replace(tzinfo=datetime.UTC).timestamp()))


def _features(path: Path, kinds: dict[str, Any], ids: np.ndarray, bad: BadRows) -> dict[str, Any]:
    """Columns of the features of `ids`; null where an id is not listed."""
    table = pa.Table.from_batches(read_blocks(path, kinds, separator="\t", bad=bad))
    listed, first = np.unique(table.column(0).to_numpy(), return_index=True)
    at = np.minimum(np.searchsorted(listed, ids), len(listed) - 1)
    rows = pa.array(first[at], mask=listed[at] != ids)
    return {name: table[name].combine_chunks().take(rows) for name in kinds}


def _stages(texts: pa.Array) -> pa.Array:
    """`1,6,4` is a bag of three."""
    return pa.array(
        [None if t in (None, "-1") else [s for s in t.split(",") if s] for t in texts.to_pylist()],
        pa.list_(pa.string()),
    )
