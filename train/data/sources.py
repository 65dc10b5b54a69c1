"""SOURCE strings, `KIND[:WHERE]`, and the code that opens each kind."""

from collections.abc import Callable
from typing import Any

from ...zoo.features import RowMap
from . import (
    alibaba,
    aliccp,
    amazon,
    criteo,
    events,
    impressions,
    market,
    movielens,
    planted,
    taobao,
)
from .dataset import Dataset
from .errors import DataError
from .lines import OnBadRow
from .market import slate_log
from .market.slates import SLATES, SlateWorld

# What is read from files: what the path names, and how it is opened.
_LOGS: dict[str, tuple[str, Callable[..., Dataset]]] = {
    "events": ("FILE", events.load),
    "movielens": ("DIR", movielens.load),
    "taobao": ("FILE", taobao.load),
    "amazon": ("DIR", amazon.load),
    "alibaba": ("DIR", alibaba.load),
}
# Every line of these is a labelled request, whoever's it is.
_LABELLED: dict[str, tuple[str, Callable[..., Dataset]]] = {
    "impressions": ("FILE", impressions.load),
    "criteo": ("FILE", criteo.load),
    "aliccp": ("DIR", aliccp.load),
}
_FILES = _LOGS | _LABELLED
SOURCES = (
    "market[:PRESET]",
    "slates[:PRESET]",
    "candidates[:PRESET]",
    "planted[:PRESET]",
    *(f"{kind}:{what}" for kind, (what, _) in _FILES.items()),
)


def open_source(
    source: str,
    *,
    max_train_per_user: int = 20,
    on_bad_row: OnBadRow = "stop",
    seed: int = 0,
    row_maps: dict[str, RowMap] | None = None,
    transforms: dict[str, str] | None = None,
) -> Dataset:
    """Reads a source.

    Args:
      source: e.g. "market", "market:evolving", "events:log.csv.gz", "movielens:ml-100k";
        "slates:cascade" holds exposed slates, for evaluators, "candidates:cascade" whatever could
        have been shown, for re-rankers and generators; "planted:co_clicks" is a small world in
        which one thing holds.
      max_train_per_user: newest training targets per user, for logs of interactions.
      on_bad_row: "stop" or "skip", for files.
      seed: of the built-in world; files have none.
      row_maps: vocabularies of an earlier run, to read new data the way its model was trained.
      transforms: of the dense fields of that run, by "role.name"; they do not learn anew.

    Raises:
      DataError: an unknown kind or preset, or a file that cannot be used.
    """
    kind, _, where = source.partition(":")
    if kind == "market":
        if where and where not in market.PRESETS:
            raise DataError(
                f"Unknown market preset {where!r}; choose from {', '.join(market.PRESETS)}."
            )
        return market.load(where or "standard", seed=seed)
    if kind == "planted":
        return planted.load(where or "co_clicks", seed=seed)
    if kind in ("slates", "candidates"):
        where = where or "cascade"
        if where not in SLATES:
            raise DataError(f"Unknown preset of slates {where!r}; choose from {', '.join(SLATES)}.")
        # The requests that re-rankers learn from are not those whose slates trained evaluators.
        draw = 2 * seed + (kind == "candidates")
        world = SlateWorld(SLATES[where], seed)
        return slate_log.load(world, name=f"{kind}:{where}", seed=draw, view=kind)
    if kind not in _FILES:
        raise DataError(f"Unknown source {source!r}; choose from {', '.join(SOURCES)}.")
    what, load = _FILES[kind]
    if not where:
        raise DataError(f"Source {kind!r} needs a path: {kind}:{what}.")
    options: dict[str, Any] = {"on_bad_row": on_bad_row, "row_maps": row_maps}
    if kind in _LOGS:
        options["max_train_per_user"] = max_train_per_user
    if kind == "events":  # The only one whose transforms learn.
        options["transforms"] = transforms
    return load(where, **options)
