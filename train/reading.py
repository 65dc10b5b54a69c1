"""Data as a run reads them: opened by its settings, with the fields that these add."""

import dataclasses
from pathlib import Path
from typing import Any, TypeAlias

from .data.dataset import Dataset
from .data.declaration.columns import Columns
from .data.errors import DataError
from .data.fields.crosses import with_crosses
from .data.fields.statistics import with_statistics
from .data.files import InMemory
from .data.protocol import Protocol
from .data.sources import absolute, open_source
from .options import Options
from .settings import DataSettings, Settings

Data: TypeAlias = str | InMemory | Dataset
"""A SOURCE, tables in memory, or what they were read as."""


def declared(columns: Columns | Path | str | None) -> tuple[Columns | None, list[str] | None]:
    """A declaration, and the names of the columns of a text without a header.

    Args:
      columns: a declaration, the path of its file, or names joined by commas.

    Raises:
      DataError: no such file, or one that is no declaration.
    """
    if columns is None or isinstance(columns, Columns):
        return columns, None
    if not isinstance(columns, str | Path):
        raise DataError(
            "columns must be a declaration (Columns), the path of its file, or names joined by "
            f"commas, got {type(columns).__name__}."
        )
    if not Path(columns).is_file() and "," in str(columns):
        return None, [name.strip() for name in str(columns).split(",")]
    return Columns.load(columns), None


def opened(
    data: str | InMemory,
    settings: DataSettings,
    *,
    columns: Columns | Path | str | None = None,
    **reading: Any,
) -> Dataset:
    """The data set of a source, split as the settings say; `reading` as `open_source` has it."""
    columns, names = declared(columns)
    source = absolute(data) if isinstance(data, str) else data
    return open_source(source, protocol=settings, columns=columns, names=names, **reading)


def prepared(dataset: Dataset, settings: DataSettings) -> Dataset:
    """The data set with the fields that the settings add, and without those they leave out."""
    dataset = with_statistics(dataset, settings.statistics)
    dataset = with_crosses(
        dataset, settings.crosses, rows=settings.cross_rows, history=settings.cross_history
    )
    return dataset.without(settings.leave_out)


def as_read(dataset: Dataset, settings: Settings, asked: Options) -> Settings:
    """The settings with the protocol by which the data were read.

    Raises:
      ValueError: another one is asked for.
    """
    read_by = dataset.protocol
    for field in dataclasses.fields(Protocol):
        if field.name not in asked:
            continue
        if read_by is None:
            raise ValueError(f"{field.name} says how data are read; {dataset.name} has been made.")
        was, now = getattr(read_by, field.name), getattr(settings, field.name)
        if was != now:
            raise ValueError(
                f"{field.name} is {now!r}, but {dataset.name} was read with {was!r}: give it to "
                "what reads the data."
            )
    if read_by is None:
        return settings
    return dataclasses.replace(settings, **dataclasses.asdict(read_by))
