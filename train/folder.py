"""The folder of a run, opened for a new run or to go on with one."""

import dataclasses
from pathlib import Path
from typing import Any

from ..zoo.contract import Model
from . import run
from .data.dataset import Dataset
from .data.files import is_file
from .data.protocol import POPULARITY, UNIFORM
from .data.sources import absolute, gone, kind_of
from .settings import Settings


def _changed(was: Any, now: Any) -> str:
    """Differences, key by key where there are keys."""
    if not isinstance(was, dict):
        return f" was {was}, is now {now}"
    keys = [key for key in {**was, **now} if was.get(key) != now.get(key)]
    return ", ".join(f" {key} was {was.get(key)}, is now {now.get(key)}" for key in keys)


def open_folder(
    out: Path,
    resume: bool,
    name: str,
    model: Model,
    config: Any,
    settings: Settings,
    source: str,
    dataset: Dataset,
) -> None:
    """Makes the folder of a new run, or checks that an old one asked for the same."""
    if resume and (out / "config.json").is_file():
        saved = run.load_config(out)
        saved.require_schema(config.schema)
        settings = _with_moved_pairs(settings, saved.settings)
        # Data may have moved: below, their events tell whether they are the same.
        moved = gone(saved.source) is not None and kind_of(saved.source) == kind_of(source)
        for what, was, now in (
            ("model", saved.model, name),
            ("data", source if moved else absolute(saved.source), absolute(source)),
            ("settings", dataclasses.asdict(saved.settings), dataclasses.asdict(settings)),
            ("options", saved.options, run.options_of(config)),
        ):
            if was != now:
                raise run.RunError(f"{out} cannot be resumed: {what}{_changed(was, now)}.")
        same = run.outline(saved.row_maps) == run.outline(dataset.row_maps)
        if not same or saved.events != dataset.log.checksum():
            raise run.RunError(
                f"{out} cannot be resumed: {source} no longer holds the events that it was "
                "trained on."
            )
        if moved:
            run.point_at(out, absolute(source))
        return
    run.require_free(out)
    out.mkdir(parents=True, exist_ok=True)
    run.save_config(
        out,
        model=name,
        module=model,
        config=config,
        settings=settings,
        source=source,
        dataset=dataset,
    )


def _with_moved_pairs(settings: Settings, was: Settings) -> Settings:
    """The settings as they were, but for a file of given negatives that is elsewhere now."""
    both = {settings.evaluation_negatives, was.evaluation_negatives}
    if both & {UNIFORM, POPULARITY} or is_file(Path(was.evaluation_negatives)):
        return settings
    return dataclasses.replace(settings, evaluation_negatives=was.evaluation_negatives)
