"""From names and options to a run: what `recjax.api` and the command line call."""

from collections.abc import Callable, Sequence
import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax

from ..zoo import MODELS
from ..zoo.contract import Generator, Model, Variables
from ..zoo.layers.retrieval import identity_field
from ..zoo.rerank.rewards import Evaluators
from . import checkpoints, defaults, run
from .data.dataset import Dataset
from .data.declaration.columns import Columns
from .data.event_log import Requests
from .data.files import is_file
from .data.files.lines import OnBadRow
from .data.protocol import POPULARITY, UNIFORM
from .data.sources import still_there
from .defaults import ALL
from .evaluation.calibration import Calibrations
from .evaluation.scoring import evaluate
from .inspection import report
from .inspection.suitable import require_suitable, unlearnt_tasks
from .loop import Callback, fit
from .options import Options, split
from .options import options_of as options_of
from .reading import Data, as_read, opened, prepared
from .rerank import fit_generator
from .settings import Settings
from .step import offer_devices
from .warm_start import warm_variables

_OF_TEST = "evaluation_negatives"  # Another split would test on what the run was trained on.

_RESUME = "choose another folder, or --resume its run"


def default_source(model: str | Model) -> str:
    """The built-in world that a model is for."""
    name, module = named(model)
    if MODELS.get(name) is module or module.KIND in ("ranking", "retrieval"):
        return "market"
    return "slates" if module.KIND == "evaluator" else "candidates"


def named(model: str | Model) -> tuple[str, Model]:
    """The name and the module of a model, which is one of the zoo's or one's own.

    Raises:
      ValueError: an unknown name, or a module without the names of `zoo.contract`.
    """
    if isinstance(model, str):
        if model not in ALL:
            raise ValueError(f"Unknown model {model!r}; choose from {', '.join(ALL)}.")
        return model, ALL[model]
    name = run.module_of(model).rpartition(".")[2]
    needed = ("Config", "KIND", "init", "apply", "loss", "requirements")
    if missing := [part for part in needed if not hasattr(model, part)]:
        raise ValueError(f"Model {name!r} has no {', '.join(missing)}; see zoo.contract.")
    return name, model


def train(
    model: str | Model,
    *,
    data: Data | None = None,
    evaluators: Sequence[Path | str] = (),
    worth: tuple[float, ...] | tuple[tuple[float, ...], ...] | None = None,
    out: Path | str | None = None,
    options: Options | None = None,
    resume: bool = False,
    warm_start: Path | str | None = None,
    callbacks: Sequence[Callback] = (),
    on_bad_row: OnBadRow = "stop",
    columns: Columns | Path | str | None = None,
    devices: int = 1,
    quiet: bool = False,
) -> tuple[Path, dict[str, Any]]:
    """Trains a model on data.

    Args:
      model: one of `defaults.ALL`, or a module with the names of `zoo.contract`.
      data: a SOURCE, see `data.sources`, or what one was read as; by default the built-in world
        that the model is for.
      evaluators: folders of the runs that judge, for a generator; several make an ensemble.
      worth: how much each of their tasks counts, see `load_evaluators`.
      out: folder of the run; the first free `runs/<model>-<source>-<number>` by default.
      options: of the model's config and of `Settings`, by name; typed values or texts. See
        `options.listed`.
      resume: go on with the run in `out`.
      warm_start: folder of a run of the same model whose parameters this one begins with, ids that
        it knew under their own names; see `warm_start`.
      callbacks: see `loop.fit`.
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
      ...     "mlp", data="market:tiny", out=out, options={"steps": 2}, quiet=True
      ... )
      >>> 0 < results["test"]["auc"] < 1
      True
      >>> launch.evaluate_run(folder)["test"] == results["test"]
      True
    """
    name, module = named(model)
    writes = isinstance(module, Generator)
    if writes != bool(evaluators):
        need = "needs" if writes else "takes no"
        raise ValueError(f"Model {name!r} {need} --evaluator, the folder of an evaluator's run.")
    if writes and devices != 1:
        raise ValueError(f"Model {name!r} is trained on one device, got --devices {devices}.")
    if writes and callbacks:
        raise ValueError(f"Model {name!r} has no epochs after which to call back.")
    offer_devices(devices)
    if worth is not None and not evaluators:
        raise ValueError(f"Model {name!r} is not judged: --worth is of evaluators.")
    if resume and out is None:
        raise ValueError("--resume needs --out, the folder of the run to go on with.")
    begun = Path(out or "") / "config.json"
    if resume and data is None and begun.is_file():
        data = still_there(run.load_config(begun.parent).source, begun.parent)
    if data is None:
        data = default_source(model)
    of_model, of_training = split(module.Config, options or {})
    chosen = defaults.settings(name, module, **of_training)
    if isinstance(data, Dataset):
        chosen = as_read(data, chosen, of_training)
    if module.KIND == "retrieval" and (chosen.statistics or chosen.crosses):
        raise ValueError(
            f"Model {name!r} knows items by their own fields: no statistics, no crosses."
        )
    if out is not None and not resume:
        run.require_free(Path(out), _RESUME)
    by = load_evaluators(evaluators, worth) if evaluators else None
    if resume and columns is None and (Path(out or "") / "columns.json").is_file():
        columns = Path(out or "") / "columns.json"  # No new guess.
    before = None if warm_start is None else load_run(warm_start, model)
    dataset = data
    if not isinstance(dataset, Dataset):
        more: dict[str, Any] = {} if before is None else before.saved.reading()
        if columns is not None:
            more["columns"] = columns
        dataset = opened(dataset, chosen, on_bad_row=on_bad_row, **more)
    source = dataset.source
    require_suitable(name, module, dataset)
    whole = dataset.schema
    dataset = prepared(dataset, chosen)
    if module.KIND == "retrieval" and identity_field(dataset.schema) != identity_field(whole):
        raise ValueError(
            f"Model {name!r} finds items by {identity_field(whole).name!r}, which leave_out names."
        )
    config = defaults.model_config(name, dataset.schema, of_model, module)
    if left_over := unlearnt_tasks(name, module, dataset.schema.tasks):
        note = f"{name} learns {dataset.schema.tasks[0]!r}, and nothing of {', '.join(left_over)}"
        dataset = dataclasses.replace(dataset, notes=(*dataset.notes, note))
    start = None
    if before is not None:
        start = warm_variables(before, module, config, dataset, seed=chosen.seed)
    folder = Path(out) if out is not None else run.free_folder(name, source)
    asked: dict[str, Any] = {"name": name, "source": source, "resume": resume, "quiet": quiet}
    if by is not None:
        assert isinstance(module, Generator)
        known = run.outline(load_run(evaluators[0]).saved.row_maps)
        if known != run.outline(dataset.row_maps):
            raise run.RunError(f"{evaluators[0]} knows other ids than {source} has.")
        results = fit_generator(module, config, dataset, by, chosen, folder, start=start, **asked)
    else:
        results = fit(
            module,
            config,
            dataset,
            chosen,
            folder,
            devices=devices,
            start=start,
            callbacks=callbacks,
            **asked,
        )
    return folder, results


class Trained(NamedTuple):
    """A run, read back: what was asked, and its best variables."""

    saved: run.Saved
    module: Model
    config: Any
    variables: Variables
    calibrations: Calibrations


def load_run(folder: Path | str, model: str | Model | None = None) -> Trained:
    """Reads the folder of a run.

    Args:
      folder: of the run.
      model: the module of a model of one's own; those of the zoo are known by their names.

    Raises:
      RunError: it is none, or of another model.
    """
    folder = Path(folder)
    saved = run.load_config(folder)
    known = ALL.get(saved.model)
    of_zoo = known is not None and saved.module in (None, run.module_of(known))
    name, module = named(model) if model is not None else (saved.model, known)
    if name != saved.model:
        raise run.RunError(f"{folder} is a run of {saved.model!r}, not of {name!r}.")
    if module is None or (module is known and not of_zoo):
        raise run.RunError(
            f"{folder}: model {saved.model!r} ({saved.module}) is not one of {', '.join(ALL)}: "
            "give its module."
        )
    if of_zoo and module is not known:
        raise run.RunError(f"{folder} is a run of the zoo's {name!r}, not of {model!r:.60}.")
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
    folder: Path | str | Trained,
    *,
    data: Data | None = None,
    options: Options | None = None,
    on_bad_row: OnBadRow = "stop",
    columns: Columns | Path | str | None = None,
    change: Callable[[Requests], Requests] = lambda requests: requests,
    quiet: bool = True,
) -> dict[str, Any]:
    """Scores the test requests of data with the best parameters of a run.

    Args:
      folder: of the run, or what `load_run` gave.
      data: the run's own by default; others must have the same schema, and are read with the run's
        vocabularies, unless they have been read already.
      options: `evaluation_negatives`, the only setting that may differ from the run's.
      on_bad_row: "stop" or "skip", for files of events.
      columns: what the columns of the source are; as in the run by default, never a new guess.
      change: what to do to the test requests first, e.g. `evaluation.exchange_histories`.
      quiet: do not print what a person should know of how the source was read.

    Raises:
      RunError: no run, or another schema (the differences are named).
      ValueError: options of anything else.
    """
    trained = folder if isinstance(folder, Trained) else load_run(folder)
    where = "the run" if isinstance(folder, Trained) else folder
    saved = trained.saved
    settings = _for_test(saved.settings, options or {}, where)
    dataset = data
    if isinstance(dataset, Dataset):
        as_read(dataset, settings, options or {})
    else:
        reading: dict[str, Any] = saved.reading() | {"row_maps": saved.row_maps}
        if columns is not None:
            reading["columns"] = columns
        source = still_there(saved.source, where) if dataset is None else dataset
        dataset = opened(source, settings, on_bad_row=on_bad_row, **reading)
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
    if run.outline(dataset.row_maps) != run.outline(saved.row_maps):
        raise run.RunError(
            f"{dataset.name} was read with other vocabularies than the run has: give its source, "
            "or its tables, which are then read with the run's."
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
    data: Data,
    *,
    options: Options | None = None,
    history: int = 50,
    on_bad_row: OnBadRow = "stop",
    columns: Columns | Path | str | None = None,
) -> None:
    """Prints what a source holds and how it was read, and hit rates and drift of its fields.

    The `options` add fields, or choose another split.

    Raises:
      ValueError: see `train`.
    """
    _, more = split(MODELS["mlp"].Config, options or {})
    settings = Settings(**more)
    dataset = data
    if not isinstance(dataset, Dataset):
        dataset = opened(dataset, settings, on_bad_row=on_bad_row, columns=columns)
    report.show(prepared(dataset, settings), history=history)


def _for_test(settings: Settings, options: Options, folder: Path | str) -> Settings:
    """The settings of a run, with other negatives of the test."""
    for key, value in options.items():
        if key != _OF_TEST:
            raise ValueError(f"--set takes {_OF_TEST}=... here, got {key!r}.")
        settings = dataclasses.replace(settings, evaluation_negatives=str(value))
    pairs = settings.evaluation_negatives
    if pairs not in (UNIFORM, POPULARITY) and not is_file(Path(pairs)):
        raise run.RunError(
            f"{pairs}: the pairs that {folder} is evaluated with are not there; say where they are "
            f"by --set evaluation_negatives=FILE, or choose {UNIFORM} or {POPULARITY} ones."
        )
    return settings
