"""From names and texts to a run: what the command line calls."""

from collections.abc import Callable, Sequence
import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax

from ..zoo import MODELS
from ..zoo.contract import Model, Variables
from ..zoo.layers.retrieval import identity_field
from ..zoo.rerank import GENERATORS
from ..zoo.rerank.rewards import Evaluators
from . import checkpoints, defaults, run
from .data.dataset import Dataset
from .data.declaration.columns import Columns
from .data.event_log import Requests
from .data.fields.crosses import with_crosses
from .data.fields.statistics import with_statistics
from .data.files import is_file
from .data.files.lines import OnBadRow
from .data.protocol import POPULARITY, UNIFORM
from .data.sources import absolute, open_source, still_there
from .defaults import ALL
from .evaluation.calibration import Calibrations
from .evaluation.scoring import evaluate
from .inspection import report
from .inspection.suitable import require_suitable, unlearnt_tasks
from .loop import fit
from .rerank import fit_generator
from .settings import DataSettings, Settings
from .step import offer_devices

_OF_TEST = "evaluation_negatives"  # Another split would test on what the run was trained on.

_RESUME = "choose another folder, or --resume its run"


def default_source(model: str) -> str:
    """The built-in world that a model of this name is for."""
    if model not in ALL or model in MODELS:
        return "market"
    return "slates" if model == "evaluator" else "candidates"


def train(
    model: str,
    *,
    source: str | None = None,
    dataset: Dataset | None = None,
    evaluators: Sequence[Path | str] = (),
    worth: tuple[float, ...] | tuple[tuple[float, ...], ...] | None = None,
    out: Path | str | None = None,
    settings: dict[str, Any] | None = None,
    overrides: list[str] | None = None,
    resume: bool = False,
    on_bad_row: OnBadRow = "stop",
    columns: Columns | Path | str | None = None,
    devices: int = 1,
    quiet: bool = False,
) -> tuple[Path, dict[str, Any]]:
    """Trains a model of the zoo by name on a SOURCE.

    Args:
      model: one of `defaults.ALL`.
      source: see `data.sources`; by default the built-in world that the model is for.
      dataset: what `source` gives, for those who have opened it already.
      evaluators: folders of the runs that judge, for a generator; several make an ensemble.
      worth: how much each of their tasks counts, see `load_evaluators`.
      out: folder of the run; the first free `runs/<model>-<source>-<number>` by default.
      settings: values of `Settings` that are not the defaults.
      overrides: `key=value` texts for any field of the model's config or of the settings.
      resume: go on with the run in `out`.
      on_bad_row: "stop" or "skip", for files of events.
      columns: what the columns of a file are; see `declared`. Guessed by default, and said.
      devices: local devices that share each batch; a CPU stands for several, see `step`.
      quiet: print nothing.

    Returns:
      The folder of the run and the content of its `metrics.json`.

    Raises:
      ValueError: an unknown name or a bad value; the message is one line.

    Examples:
      >>> import tempfile
      >>> from recjax.train import launch
      >>> out = tempfile.mkdtemp()
      >>> folder, results = launch.train(
      ...     "mlp", source="market:tiny", out=out, overrides=["steps=2"], quiet=True
      ... )
      >>> 0 < results["test"]["auc"] < 1
      True
      >>> launch.evaluate_run(folder)["test"] == results["test"]
      True
    """
    if model not in ALL:
        raise ValueError(f"Unknown model {model!r}; choose from {', '.join(ALL)}.")
    if (model in GENERATORS) != bool(evaluators):
        need = "needs" if model in GENERATORS else "takes no"
        raise ValueError(f"Model {model!r} {need} --evaluator, the folder of an evaluator's run.")
    if model in GENERATORS and devices != 1:
        raise ValueError(f"Model {model!r} is trained on one device, got --devices {devices}.")
    offer_devices(devices)
    if worth is not None and not evaluators:
        raise ValueError(f"Model {model!r} is not judged: --worth is of evaluators.")
    if resume and out is None:
        raise ValueError("--resume needs --out, the folder of the run to go on with.")
    begun = Path(out or "") / "config.json"
    if resume and source is None and dataset is None and begun.is_file():
        source = still_there(run.load_config(begun.parent).source, begun.parent)
    module, source = ALL[model], absolute(source or default_source(model))
    options, more = _parse(module.Config, overrides or [])
    chosen = defaults.settings(model, **{**(settings or {}), **more})
    if module.KIND == "retrieval" and (chosen.statistics or chosen.crosses):
        raise ValueError(
            f"Model {model!r} knows items by their own fields: no statistics, no crosses."
        )
    if out is not None and not resume:
        run.require_free(Path(out), _RESUME)
    by = load_evaluators(evaluators, worth) if evaluators else None
    if resume and columns is None and (Path(out or "") / "columns.json").is_file():
        columns = Path(out or "") / "columns.json"  # No new guess.
    if dataset is None:
        dataset = opened(source, chosen, on_bad_row=on_bad_row, columns=columns)
    require_suitable(model, module, dataset)
    whole = dataset.schema
    dataset = prepared(dataset, chosen)
    if module.KIND == "retrieval" and identity_field(dataset.schema) != identity_field(whole):
        raise ValueError(
            f"Model {model!r} finds items by {identity_field(whole).name!r}, which leave_out names."
        )
    config = defaults.model_config(model, dataset.schema, options)
    if left_over := unlearnt_tasks(model, module, dataset.schema.tasks):
        note = f"{model} learns {dataset.schema.tasks[0]!r}, and nothing of {', '.join(left_over)}"
        dataset = dataclasses.replace(dataset, notes=(*dataset.notes, note))
    folder = Path(out) if out is not None else run.free_folder(model, source)
    if by is not None:
        known = run.outline(load_run(evaluators[0]).saved.row_maps)
        if known != run.outline(dataset.row_maps):
            raise run.RunError(f"{evaluators[0]} knows other ids than {source} has.")
        return folder, fit_generator(
            module,
            config,
            dataset,
            by,
            chosen,
            folder,
            name=model,
            source=source,
            resume=resume,
            quiet=quiet,
        )
    results = fit(
        module,
        config,
        dataset,
        chosen,
        folder,
        name=model,
        source=source,
        resume=resume,
        devices=devices,
        quiet=quiet,
    )
    return folder, results


class Trained(NamedTuple):
    """A run of a model of the zoo, read back: what was asked, and its best variables."""

    saved: run.Saved
    module: Model
    config: Any
    variables: Variables
    calibrations: Calibrations


def load_run(folder: Path | str) -> Trained:
    """Reads the folder of a run. Raises RunError if it is none, or not of the zoo."""
    folder = Path(folder)
    saved = run.load_config(folder)
    if saved.model not in ALL:
        raise run.RunError(f"{folder}: model {saved.model!r} is not one of {', '.join(ALL)}.")
    module = ALL[saved.model]
    config = saved.config(module)
    like = jax.eval_shape(lambda key: module.init(key, config), jax.random.key(0))
    _, variables, _ = checkpoints.restore(folder / "checkpoints" / "best", like)
    return Trained(saved, module, config, variables, run.load_calibrations(folder))


def load_evaluators(
    folders: Sequence[Path | str],
    worth: tuple[float, ...] | tuple[tuple[float, ...], ...] | None = None,
) -> Evaluators:
    """An ensemble of evaluators' runs.

    Args:
      folders: of the runs, of one configuration.
      worth: what counts, see `Evaluators`; by default a click 1, other tasks nothing.

    Raises:
      RunError: one is no evaluator's, or they were not trained with the same options and schema.
    """
    found = [load_run(folder) for folder in folders]
    for folder, one in zip(folders, found, strict=True):
        if one.saved.model != "evaluator":
            raise run.RunError(f"{folder} is a run of {one.saved.model!r}, not of an evaluator.")
        if one.config != found[0].config:
            raise run.RunError(f"{folder} and {folders[0]} differ in their options or schema.")
    config = found[0].config
    worth = worth or (1.0,) + (0.0,) * (len(config.schema.tasks) - 1)
    return Evaluators([one.variables for one in found], config, worth)


def evaluate_run(
    folder: Path | str,
    *,
    source: str | None = None,
    dataset: Dataset | None = None,
    overrides: list[str] | None = None,
    on_bad_row: OnBadRow = "stop",
    columns: Columns | Path | str | None = None,
    change: Callable[[Requests], Requests] = lambda requests: requests,
    quiet: bool = True,
) -> dict[str, Any]:
    """Scores the test requests of a source with the best parameters of a run.

    Args:
      folder: of the run.
      source: the run's own by default; another one must have the same schema, and is read with
        the run's vocabularies.
      dataset: what `source` gives, for those who have opened it already.
      overrides: `evaluation_negatives=...`, the only setting that may differ from the run's.
      on_bad_row: "stop" or "skip", for files of events.
      columns: what the columns of the source are; as in the run by default, never a new guess.
      change: what to do to the test requests first, e.g. `evaluation.exchange_histories`.
      quiet: do not print what a person should know of how the source was read.

    Raises:
      RunError: no run, or another schema (the differences are named).
      ValueError: overrides of anything else.
    """
    trained = load_run(folder)
    saved = trained.saved
    settings = _for_test(saved.settings, overrides or [], folder)
    if dataset is None:
        dataset = opened(
            absolute(source) if source else still_there(saved.source, folder),
            settings,
            on_bad_row=on_bad_row,
            columns=saved.columns if columns is None else columns,
            row_maps=saved.row_maps,
            schema=saved.schema,
            transforms={
                f"{f.role}.{f.name}": f.transform for f in saved.schema.fields if f.kind == "dense"
            },
        )
    if not quiet:
        report.say_notes(dataset)
    dataset = prepared(dataset, settings)
    saved.require_schema(dataset.schema)
    if saved.has_clock != dataset.log.has_clock:
        has = {True: "a clock", False: "only an order"}
        raise run.RunError(
            f"The run was trained on events with {has[saved.has_clock]}, {dataset.name} has "
            f"{has[dataset.log.has_clock]}."
        )
    dataset = dataclasses.replace(dataset, schema=saved.schema)
    dataset.check()
    block = evaluate(
        trained.module,
        trained.config,
        trained.variables,
        dataset,
        change(dataset.test),
        history=settings.history,
        calibrations=trained.calibrations,
    )
    return {"model": saved.model, "data": dataset.name, "test": block}


def inspect(
    source: str,
    *,
    overrides: list[str] | None = None,
    history: int = 50,
    on_bad_row: OnBadRow = "stop",
    columns: Columns | Path | str | None = None,
) -> None:
    """Prints what a source holds and how it was read, and hit rates and drift of its fields.

    The `overrides` add fields, or choose another split.

    Raises:
      ValueError: see `train`.
    """
    _, more = _parse(MODELS["mlp"].Config, overrides or [])
    settings = Settings(**more)
    dataset = opened(absolute(source), settings, on_bad_row=on_bad_row, columns=columns)
    report.show(prepared(dataset, settings), history=history)


def declared(columns: Columns | Path | str | None) -> tuple[Columns | None, list[str] | None]:
    """A declaration, and the names of the columns of a text without a header.

    Args:
      columns: a declaration, the path of its file, or names joined by commas.

    Raises:
      DataError: no such file, or one that is no declaration.
    """
    if columns is None or isinstance(columns, Columns):
        return columns, None
    if not Path(columns).is_file() and "," in str(columns):
        return None, [name.strip() for name in str(columns).split(",")]
    return Columns.load(columns), None


def opened(
    source: str,
    settings: DataSettings,
    *,
    columns: Columns | Path | str | None = None,
    **options: Any,
) -> Dataset:
    """The data set of a source, split as the settings say; `options` as `open_source` has them."""
    columns, names = declared(columns)
    return open_source(
        source,
        max_train_per_user=settings.max_train_per_user,
        protocol=settings,
        columns=columns,
        names=names,
        **options,
    )


def prepared(dataset: Dataset, settings: DataSettings) -> Dataset:
    """The data set with the fields that the settings add, and without those they leave out."""
    dataset = with_statistics(dataset, settings.statistics)
    dataset = with_crosses(
        dataset, settings.crosses, rows=settings.cross_rows, history=settings.cross_history
    )
    return dataset.without(settings.leave_out)


def _for_test(settings: Settings, overrides: list[str], folder: Path | str) -> Settings:
    """The settings of a run, with other negatives of the test."""
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or key != _OF_TEST:
            raise ValueError(f"--set takes {_OF_TEST}=... here, got {text!r}.")
        settings = dataclasses.replace(settings, evaluation_negatives=value)
    pairs = settings.evaluation_negatives
    if pairs not in (UNIFORM, POPULARITY) and not is_file(Path(pairs)):
        raise run.RunError(
            f"{pairs}: the pairs that {folder} is evaluated with are not there; say where they are "
            f"by --set evaluation_negatives=FILE, or choose {UNIFORM} or {POPULARITY} ones."
        )
    return settings


def _parse(config: type, overrides: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits `key=value` texts into options of the model and settings of the training."""
    options = {field.name for field in dataclasses.fields(config)} - {"schema"}
    settings = {field.name for field in dataclasses.fields(Settings)}
    result: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set takes key=value, got {text!r}.")
        if key in options:
            result[0][key] = run.as_annotated(config, key, value)
        elif key in settings:
            result[1][key] = run.as_annotated(Settings, key, value)
        else:
            known = ", ".join(sorted(options | settings))
            raise ValueError(f"--set: unknown key {key!r}; choose from {known}.")
    return result
