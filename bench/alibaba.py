"""The Alibaba e-commerce sample as an events file: clicks, favourites, carts and purchases."""

import csv
import datetime
import gzip
from pathlib import Path

BEHAVIORS = {"1": "click", "2": "favourite", "3": "cart", "4": "buy"}
_EDGES, _ITEMS = "ecomm_edge_train.txt", "ecomm_item_feature.txt"


def is_there(folder: Path) -> bool:
    """True if `folder` holds the sample."""
    return all((folder / name).is_file() for name in (_EDGES, _ITEMS))


def write_events(folder: Path, out: Path) -> Path:
    """Writes the first event of every user with every item to `out` (gzipped CSV).

    Repetitions are left out: nearly half of all events are, and whoever repeats the past would
    win. Days are all the time there is; within a day the order is the file's.
    """
    category = {row[0]: row[2] for row in _rows(folder / _ITEMS)}
    seen: set[tuple[str, str]] = set()
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(out.name + ".partial")
    with gzip.open(aside, "wt", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["user_id", "item_id", "category_id", "behavior", "timestamp"])
        for user, item, behavior, day in _rows(folder / _EDGES):
            if (user, item) in seen:
                continue
            seen.add((user, item))
            date = datetime.datetime.strptime(day, "%Y%m%d").replace(tzinfo=datetime.UTC)
            kind, seconds = BEHAVIORS[behavior], int(date.timestamp())
            writer.writerow([user, item, category.get(item, ""), kind, seconds])
    aside.rename(out)
    return out


def _rows(path: Path):
    with path.open(newline="") as file:
        yield from csv.reader(file, delimiter="\t")
