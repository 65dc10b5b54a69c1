"""SOURCE strings, `KIND[:WHERE]`, and the code that opens each kind."""

from collections.abc import Callable, Sequence
import dataclasses
import glob
from pathlib import Path
from typing import Any

from ....zoo.features import RowMap, Schema
from .. import market
from ..dataset import MEMORY, Dataset
from ..declaration.columns import Columns, of_schema
from ..errors import DataError
from ..files import InMemory, is_file
from ..files.lines import OnBadRow
from ..market import planted, slate_log
from ..market.slates import SLATES, SlateWorld
from ..protocol import Protocol
from . import alibaba, aliccp, amazon, criteo, events, ffm, impressions, movielens, taobao

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
    "libffm": ("FILE", ffm.load_libffm),
    "libsvm": ("FILE", ffm.load_libsvm),
}
_FILES = _LOGS | _LABELLED
# Files whose columns are declared, or guessed.
_DECLARED = ("events", "impressions")
# Files whose transforms learn from what training sees.
_LEARNT = (*_DECLARED, "libffm", "libsvm")
SOURCES = (
    "market[:PRESET]",
    "slates[:PRESET]",
    "candidates[:PRESET]",
    "planted[:PRESET]",
    *(f"{kind}:{what}" for kind, (what, _) in _FILES.items()),
)


def absolute(source: str) -> str:
    """The source with the path that it names made absolute: what a run remembers of its data."""
    kind, colon, where = source.partition(":")
    if kind not in _FILES or not where:
        return source
    return f"{kind}{colon}{','.join(str(path.expanduser().absolute()) for path in _paths(where))}"


def _paths(where: str) -> list[Path]:
    """The paths that a source names: one, or several joined by commas."""
    if Path(where).exists() or "," not in where:
        return [Path(where)]
    return [Path(part.strip()) for part in where.split(",")]


def still_there(source: str, folder: Path | str) -> str:
    """The source of the run in `folder`, as `absolute` gave it.

    Raises:
      DataError: what it names is gone; the message names the remedy.
    """
    if kind_of(source) == MEMORY:
        raise DataError(
            f"{folder}: trained on data that were in memory: give them again, or say where such "
            "data are (--data SOURCE)."
        )
    missing = gone(source)
    if missing is not None:
        raise DataError(
            f"{missing}: the data of the run {folder} are no longer there; say where they are by "
            f"--data {kind_of(source)}:PATH."
        )
    return source


def gone(source: str) -> Path | None:
    """The first of the paths that a source names at which there is nothing."""
    _, _, where = source.partition(":")
    for path in _paths(where) if kind_of(source) in _FILES else []:
        if not (is_file(path) or path.exists() or glob.glob(str(path), recursive=True)):
            return path
    return None


def kind_of(source: str) -> str:
    """The kind of a source: the part before the colon."""
    return source.partition(":")[0]


def open_source(
    source: str | InMemory,
    *,
    on_bad_row: OnBadRow = "stop",
    seed: int = 0,
    row_maps: dict[str, RowMap] | None = None,
    transforms: dict[str, str] | None = None,
    protocol: Protocol | None = None,
    columns: Columns | None = None,
    names: Sequence[str] | None = None,
    schema: Schema | None = None,
) -> Dataset:
    """Reads a source.

    Args:
      source: e.g. "market", "market:evolving", "events:log.csv.gz", "movielens:ml-100k";
        "slates:cascade" holds exposed slates, for evaluators, "candidates:cascade" whatever could
        have been shown, for re-rankers and generators; "planted:co_clicks" is a small world in
        which one thing holds. Or tables in memory, in place of the files of "events" or
        "impressions".
      on_bad_row: "stop" or "skip", for files.
      seed: of the built-in world; files have none.
      row_maps: vocabularies of an earlier run, to read new data the way its model was trained.
      transforms: of the dense fields of that run, by "role.name"; they do not learn anew.
      protocol: how a log of interactions is split, and what counts.
      columns: what the columns of a file are; of sources whose columns their publisher defines,
        which fields are left out.
      names: of the columns of delimited text without a header.
      schema: of an earlier run, whose fields are read as they are there (libffm and libsvm).

    Raises:
      DataError: an unknown kind or preset, or a file that cannot be used.

    Examples:
      >>> from recjax.train.data.sources import open_source
      >>> dataset = open_source("market:tiny")
      >>> dataset.schema.tasks
      ('click', 'conversion')
    """
    if isinstance(source, InMemory):
        kind, where = source.kind, source
        if kind not in _DECLARED:
            raise DataError(
                f"Tables in memory are read as {' or '.join(_DECLARED)}, got kind {kind!r}."
            )
    else:
        kind, _, where = source.partition(":")
    options: dict[str, Any] = {"on_bad_row": on_bad_row, "row_maps": row_maps}
    options |= {"transforms": transforms, "schema": schema, "columns": columns, "names": names}
    dataset = _opened(source, kind, where, seed=seed, protocol=protocol, **options)
    said = dataclasses.fields(Protocol)
    read_by = Protocol(**{f.name: getattr(protocol or Protocol(), f.name) for f in said})
    return dataclasses.replace(dataset, source=absolute(str(source)), protocol=read_by)


def _opened(
    source: str | InMemory,
    kind: str,
    where: Any,
    *,
    on_bad_row: OnBadRow,
    seed: int,
    row_maps: dict[str, RowMap] | None,
    transforms: dict[str, str] | None,
    protocol: Protocol | None,
    columns: Columns | None,
    names: Sequence[str] | None,
    schema: Schema | None,
) -> Dataset:
    """The data set of a source of a kind; `where` is what stands behind the colon."""
    known = kind in _FILES or kind in ("market", "planted", "slates", "candidates")
    if protocol is not None and known and kind not in (*_LOGS, *_DECLARED):
        _refuse_protocol(str(source), protocol)
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
        there = Path(str(source)).exists()
        hint = f"did you mean events:{source} or impressions:{source}? There are" if there else None
        raise DataError(f"Unknown source {source!r}; {hint or 'choose from'} {', '.join(SOURCES)}.")
    what, load = _FILES[kind]
    if not where:
        raise DataError(f"Source {kind!r} needs a path: {kind}:{what}.")
    options: dict[str, Any] = {"on_bad_row": on_bad_row, "row_maps": row_maps}
    if kind in _LOGS:
        options["protocol"] = protocol
    if kind in _LEARNT:
        options["transforms"] = transforms
    if kind in ("libffm", "libsvm"):
        options["schema"] = schema
    if kind in _DECLARED:
        return load(where, **options | {"protocol": protocol}, columns=columns, names=names)
    if names:
        raise DataError(f"Source {kind!r} has columns of its own; --columns cannot name them.")
    dataset = load(where, **options)
    if columns is None:
        return dataclasses.replace(dataset, columns=of_schema(dataset.schema))
    return _declared(dataset, columns)


def _refuse_protocol(source: str, protocol: Protocol) -> None:
    """Raises DataError for what is asked of a source that splits and labels by itself."""
    usual = Protocol()
    asked = [
        field.name
        for field in dataclasses.fields(Protocol)
        if getattr(protocol, field.name) != getattr(usual, field.name)
    ]
    if asked:
        kinds = ", ".join(f"{kind}:" for kind in (*_LOGS, "impressions"))
        raise DataError(f"{source}: {', '.join(asked)} cannot be set; it is for {kinds}.")


def _declared(dataset: Dataset, columns: Columns) -> Dataset:
    """A data set whose columns its publisher defines, without the fields that are ignored."""
    known = {field.name for field in dataset.schema.fields}
    strange = [c.name for c in columns if c.role != "ignored" and c.name not in known]
    if strange:
        raise DataError(
            f"{dataset.name}: has no field {strange[0]!r}, which the declaration (--columns, or "
            f"the run's own) names; there are {', '.join(sorted(known))}."
        )
    left_out = [c.name for c in columns.of("ignored") if c.name in known]
    return dataclasses.replace(dataset.without(left_out), columns=columns)
