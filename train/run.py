"""The folder of a run: what was asked, what came out, and how to read it back.

config.json           model, its options, settings, data source, schema and its hash
rows/<table>.npy      vocabularies, where a table has one
columns.json          how the columns of its data were read, to read those of other days alike
calibration.json      what makes probabilities of each logit, see `evaluation.calibration`
checkpoints/          `last/` to resume from, `best/` by validation AUC
metrics.json          the results
learning_curve.png
reliability.png       predicted and observed shares of the test set, of models of probabilities
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import datetime
import json
import os
from pathlib import Path
import platform
import shutil
from typing import Any
import zlib

import numpy as np

from ..zoo.contract import Model, Variables
from ..zoo.features import HashedRows, KnownRows, RowMap, Schema
from ..zoo.features.file_names import file_of
from . import checkpoints
from .data.dataset import Dataset
from .data.declaration.columns import Columns, of_schema
from .evaluation.calibration import Calibration, Calibrations
from .options import as_annotated
from .settings import Settings

_DIFFERENCES = 8  # Of schemas, that a message shows.


class RunError(ValueError):
    """A run's folder cannot be used as asked; the message is one line."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in a training.

    Attributes:
      folder: of the run.
      step: of its newest checkpoint; None if there is none.
    """

    def __init__(self, folder: Path, step: int | None):
        """See the attributes."""
        super().__init__(f"{folder}: {'nothing' if step is None else f'step {step:,}'} is saved")
        self.folder, self.step = folder, step


def write_json(path: Path, content: Any) -> None:
    """Writes aside and renames; a NaN is an error, not invalid JSON."""
    aside = path.with_name(path.name + ".partial")
    aside.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    aside.rename(path)


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    import flax
    import jax
    import optax

    from .. import __version__

    return {
        "recjax": __version__,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "flax": flax.__version__,
        "optax": optax.__version__,
        "numpy": np.__version__,
    }


def device() -> str:
    """The device that computes, in words."""
    import jax

    first = jax.devices()[0]
    count = jax.local_device_count()
    return f"{first.device_kind} ({first.platform})" + (f" x {count}" if count > 1 else "")


def now() -> str:
    """The date of a result: ISO 8601, UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def head_of(
    name: str, source: str, seed: int, dataset: Dataset, variables: Variables
) -> dict[str, Any]:
    """The head of every `metrics.json`: what was trained, on what, where and when."""
    import jax

    trained = variables["tables"], variables["params"]
    return {
        "model": name,
        "data": source,
        "seed": seed,
        "device": device(),
        "versions": versions(),
        "date": now(),
        "schema_hash": dataset.schema.hash,
        "facts": dataset.facts,
        "parameters": sum(int(np.prod(x.shape)) for x in jax.tree.leaves(trained)),
    }


def throughput(examples: int, seconds: float) -> dict[str, Any]:
    """Labelled candidates and seconds of a training, for `metrics.json`."""
    return {
        "examples": examples,
        "seconds": seconds,
        "examples_per_second": examples / max(seconds, 1e-9),
    }


def require_free(folder: Path, remedy: str = "choose another folder") -> None:
    """Raises RunError unless `folder` is absent or empty, and could be written."""
    if folder.is_dir() and any(folder.iterdir()):
        raise RunError(f"{folder} is not empty; {remedy}.")
    require_writable(folder)


def require_writable(folder: Path) -> None:
    """Raises RunError unless `folder` is one, or could be made, and can be written."""
    there = folder.absolute()
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir():
        raise RunError(f"{folder}: {there} is a file, not a folder.")
    if not os.access(there, os.W_OK):
        raise RunError(f"{folder} cannot be written: no permission in {there}.")


@contextlib.contextmanager
def forgotten_on_failure(folder: Path) -> Iterator[None]:
    """A run that fails before its first checkpoint leaves nothing to bar the next attempt.

    Raises:
      Interrupted: on Ctrl-C; it knows whether there is something to go on from.
    """
    try:
        yield
    except BaseException as error:
        last = folder / "checkpoints" / "last"
        for unfinished in last.glob("*.partial"):
            shutil.rmtree(unfinished)
        with contextlib.suppress(OSError):  # Not empty, or not there.
            last.rmdir()
            last.parent.rmdir()
        if not (folder / "checkpoints").exists():
            for name in ("config.json", "columns.json"):
                (folder / name).unlink(missing_ok=True)
            shutil.rmtree(folder / "rows", ignore_errors=True)
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(folder, next(iter(checkpoints.steps(last)), None)) from error
        raise


def free_folder(model: str, source: str) -> Path:
    """The first `runs/<model>-<source>-<number>` that does not exist."""
    kind, _, where = source.partition(":")
    name = "-".join(part for part in (model, kind, Path(where).name.partition(".")[0]) if part)
    number = 1
    while (folder := Path("runs") / f"{name}-{number}").exists():
        number += 1
    return folder


def module_of(model: Model) -> str:
    """The name by which a model's module, or the class of an object, is imported."""
    name = getattr(model, "__name__", None)
    return name or f"{type(model).__module__}.{type(model).__qualname__}"


def options_of(config: Any) -> dict[str, Any]:
    """A model's options but for its schema, as JSON reads them back."""
    options = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    del options["schema"]
    return json.loads(json.dumps(options))


def save_config(
    folder: Path,
    *,
    model: str,
    module: Model,
    config: Any,
    settings: Settings,
    source: str,
    dataset: Dataset,
) -> None:
    """Writes `config.json` and the vocabularies."""
    (folder / "rows").mkdir(exist_ok=True)
    for table, row_map in dataset.row_maps.items():
        if isinstance(row_map, KnownRows):
            np.save(rows_file(folder, table), row_map.signatures)
    (dataset.columns or of_schema(config.schema)).save(folder / "columns.json")
    write_json(
        folder / "config.json",
        {
            "model": model,
            "module": module_of(module),
            "options": options_of(config),
            "settings": dataclasses.asdict(settings),
            "data": source,
            "events": dataset.log.checksum(),
            "has_clock": dataset.log.has_clock,
            "schema": config.schema.to_dict(),
            "schema_hash": config.schema.hash,
            "row_maps": outline(dataset.row_maps),
        },
    )


def point_at(folder: Path, source: str) -> None:
    """Says that the data of the run are now at another place."""
    path = folder / "config.json"
    write_json(path, json.loads(path.read_text()) | {"data": source})


def save_calibrations(folder: Path, calibrations: Calibrations) -> None:
    """Writes `calibration.json`; nothing where there is nothing to calibrate.

    Numbers that do nothing are left out, so that releases that knew only a slope and an intercept
    read what those two say.
    """
    if calibrations:
        always, unused = ("slope", "intercept"), Calibration()._asdict()
        content = {
            name: {k: v for k, v in one._asdict().items() if k in always or v != unused[k]}
            for name, one in calibrations.items()
        }
        write_json(folder / "calibration.json", content)


def load_calibrations(folder: Path) -> Calibrations:
    """The calibrations that `save_calibrations` wrote; none for a run without. Raises RunError."""
    path = folder / "calibration.json"
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
        return {name: Calibration(**one) for name, one in content.items()}
    except (TypeError, ValueError, AttributeError, OSError) as error:
        raise RunError(f"{path} cannot be read: {type(error).__name__}: {error}") from error


def outline(row_maps: dict[str, RowMap]) -> dict[str, Any]:
    """Identity of row maps: {table: rows, or the checksum of what it knows}."""
    found: dict[str, Any] = {}
    for table, row_map in row_maps.items():
        if isinstance(row_map, KnownRows):
            found[table] = {"known": zlib.crc32(row_map.signatures.tobytes())}
        elif isinstance(row_map, HashedRows):
            found[table] = row_map.rows
        else:
            raise TypeError(f"Table {table!r}: cannot save a row map of {type(row_map).__name__}.")
    return found


@dataclasses.dataclass(frozen=True)
class Saved:
    """A run's `config.json`, read back.

    `events` is the checksum of its log, `module` the name of the model's module.
    """

    model: str
    options: dict[str, Any]
    settings: Settings
    source: str
    events: int
    has_clock: bool
    schema: Schema
    row_maps: dict[str, RowMap]
    columns: Columns | None = None
    module: str | None = None

    def reading(self) -> dict[str, Any]:
        """How other data are to be read, for `open_source`: nothing is guessed or learnt anew."""
        dense = [field for field in self.schema.fields if field.kind == "dense"]
        return {
            "columns": self.columns,
            "schema": self.schema,
            "transforms": {f"{field.role}.{field.name}": field.transform for field in dense},
        }

    def config(self, model: Model) -> Any:
        """The model's config as it was."""
        try:
            options = {k: as_annotated(model.Config, k, v) for k, v in self.options.items()}
            return model.Config(schema=self.schema, **options)
        except (KeyError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise RunError(f"The run's options are not those of {self.model}: {reason}") from error

    def require_schema(self, schema: Schema) -> None:
        """Raises RunError naming what differs, if `schema` is not this run's."""
        if schema.hash != self.schema.hash:
            lines = self.schema.differences(schema)
            more = [f"and {len(lines) - _DIFFERENCES} more"] if len(lines) > _DIFFERENCES else []
            raise RunError(
                "The run was trained on another schema (run against data): "
                f"{'; '.join(lines[:_DIFFERENCES] + more)}."
            )


def rows_file(folder: Path, table: str) -> Path:
    """Of a table's vocabulary; tables are named after columns, which may hold any character."""
    return file_of(folder / "rows", table)


def _is_artifact(folder: Path) -> bool:
    return (folder / "manifest.json").is_file()


def load_config(folder: Path) -> Saved:
    """Reads what `save_config` wrote. Raises RunError if the folder is no run or was tampered."""
    path = folder / "config.json"
    if not path.is_file():
        other = "; it is an artifact: export.artifact.load opens it" if _is_artifact(folder) else ""
        raise RunError(f"{folder} is not the folder of a run (it has no config.json){other}.")
    try:
        content = json.loads(path.read_text())
        schema = Schema.from_dict(content["schema"])
        settings = Settings(
            **{k: as_annotated(Settings, k, v) for k, v in content["settings"].items()}
        )
        row_maps: dict[str, RowMap] = {}
        for table, kind in content["row_maps"].items():
            if isinstance(kind, int):
                row_maps[table] = HashedRows(kind)
                continue
            signatures = np.load(rows_file(folder, table), allow_pickle=False)
            if zlib.crc32(signatures.tobytes()) != kind["known"]:
                raise ValueError(f"the vocabulary of table {table!r} has changed (checksum)")
            row_maps[table] = KnownRows(signatures)
        model, options, source = content["model"], content["options"], content["data"]
        for name, value, kind in (("model", model, str), ("options", options, dict)):
            if not isinstance(value, kind):
                raise ValueError(f"{name} must be a {kind.__name__}, got {value!r}")
        events, has_clock = content["events"], content["has_clock"]
        declared = folder / "columns.json"
        columns = Columns.load(declared) if declared.is_file() else None
        saved = Saved(
            model,
            options,
            settings,
            str(source),
            events,
            has_clock,
            schema,
            row_maps,
            columns,
            content.get("module"),
        )
    except (LookupError, TypeError, ValueError, OSError, EOFError, AttributeError) as error:
        raise RunError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    if schema.hash != content.get("schema_hash"):
        raise RunError(f"{path}: the schema does not match its own hash; the file was edited.")
    return saved
