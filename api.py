"""The Python API: read data, train, load a run, ask it, export it. The command line is the same.

data = recjax.read("events:clicks.csv")          # or a data frame, or an Arrow table
run = recjax.train("din", data, options={"epochs": 2}, out="runs/din")
run.recommend(records, k=3)
"""

from collections.abc import Callable, Sequence
import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import numpy as np

from .export import answers
from .export.answers import Recommendation as Recommendation
from .export.inputs import grown
from .train import launch, reading
from .train.data.dataset import MEMORY
from .train.data.dataset import Dataset as Dataset
from .train.data.declaration.columns import Columns
from .train.data.files import InMemory
from .train.data.files.lines import OnBadRow
from .train.data.protocol import Protocol
from .train.evaluation.scoring import even_preferences
from .train.options import Options, split
from .train.run import Saved, load_config
from .train.settings import DataSettings
from .zoo.batch import served
from .zoo.calibration import Calibration
from .zoo.contract import Model, Variables
from .zoo.features import RequestEncoder, Schema, require_rows

if TYPE_CHECKING:
    from .export.artifact import Artifact

Folder: TypeAlias = "Path | str | Run"
Worth: TypeAlias = tuple[float, ...] | tuple[tuple[float, ...], ...]


def read(
    data: Any,
    *,
    kind: str | None = None,
    options: Options | None = None,
    columns: Columns | Path | str | None = None,
    on_bad_row: OnBadRow = "stop",
    like: "Folder | None" = None,
) -> Dataset:
    """Reads and splits data.

    Args:
      data: a SOURCE such as "market", "movielens:DIR" or "events:FILE" (see `train.data.sources`);
        a `Path`, which is read as a file of `kind`; or a table in memory: a pandas or polars data
        frame, an Arrow table, a dict of columns, a list of dicts. A tuple of three tables is to
        train, validate and test on; one of two is impressions and their histories.
      kind: "events" or "impressions": what the rows of a file or table are, see docs/data.md; by
        default as in the run `like`, else events.
      options: how to split, and what counts: the fields of `train.data.protocol.Protocol`.
      columns: the declaration of the columns, or its file (a run's columns.json); guessed without
        it, and said by `train`.
      on_bad_row: "stop" at the first row that cannot be read, or "skip" such rows and count them.
      like: a run, or its folder, with whose declaration and transforms the data are read: those of
        another day, to go on training with (`train(..., warm_start=run)`).

    Returns:
      The data set, for `train` and `Run.evaluate`.

    Raises:
      ValueError: data that cannot be read, or an unknown option; the message is one line.

    Examples:
      >>> import recjax
      >>> rows = [{"user_id": u, "item_id": (u * 7 + t) % 11, "timestamp": t} for u in range(9)
      ...         for t in range(1, 7)]
      >>> data = recjax.read(rows)
      >>> data.facts["users"], data.facts["items"], len(data.test)
      (9, 11, 9)
    """
    asked, of_training = split(Protocol, options or {})
    if of_training:
        raise ValueError(f"{next(iter(of_training))} is an option of training: give it to train.")
    more: dict[str, Any] = {} if like is None else _saved(like).reading()
    if columns is not None:
        more["columns"] = columns
    found = _data(data, kind, like)
    if found is None or isinstance(found, Dataset):
        raise ValueError(f"data to read are a SOURCE, a path or a table, got {data!r:.60}.")
    return reading.opened(found, DataSettings(**asked), on_bad_row=on_bad_row, **more)


def train(
    model: str | Model,
    data: Any = None,
    *,
    options: Options | None = None,
    out: Path | str | None = None,
    kind: str | None = None,
    evaluators: "Sequence[Folder]" = (),
    worth: Worth | None = None,
    resume: bool = False,
    warm_start: "Folder | None" = None,
    callbacks: Sequence[Callable[[dict[str, Any]], bool | None]] = (),
    columns: Columns | Path | str | None = None,
    on_bad_row: OnBadRow = "stop",
    devices: int = 1,
    quiet: bool = False,
) -> "Run":
    """Trains a model.

    Args:
      model: a name ("din"; `recjax train --help` lists them), or a module of one's own with the
        names of `zoo.contract`.
      data: what `read` gave, or whatever it reads; by default the built-in world that the model is
        for.
      options: of the model and of its training by name, e.g. {"epochs": 2, "attention_units":
        (32, 16)}; `recjax train MODEL --help` lists them.
      out: folder of the run; the first free `runs/<model>-<source>-<number>` by default.
      kind: "events" or "impressions", of tables in memory; as in the run that is resumed or begun
        from by default, else events.
      evaluators: runs, or their folders, that judge a generator; several make an ensemble.
      worth: how much each task of the evaluators counts, see `zoo.rerank.rewards.Evaluators`.
      resume: go on with the interrupted run in `out`, to the same bits.
      warm_start: a run, or its folder, whose parameters this one begins with.
      callbacks: called after each epoch with {"epoch", "train_loss", "validation", "score"}; one
        that gives True ends the training.
      columns, on_bad_row: see `read`.
      devices: local devices that share each batch.
      quiet: print nothing.

    Raises:
      ValueError: an unknown name or a bad value; the message is one line.
      KeyboardInterrupt: Ctrl-C; the last whole step is saved, for `resume`.

    Examples:
      >>> import tempfile
      >>> import recjax
      >>> options = {"steps": 2, "tower_units": (8,)}
      >>> run = recjax.train(
      ...     "mlp", "market:tiny", options=options, out=tempfile.mkdtemp(), quiet=True
      ... )
      >>> request = {"context": {"time": 100}, "items": [{"item": 3}, {"item": 5}, {"item": 8}]}
      >>> [len(best) for best in run.recommend([request], k=2)]
      [2]
      >>> bool(0 < run.predict([request])[0]["click"][1] < 1)
      True
    """
    folder, _ = launch.train(
        model,
        data=_data(data, kind, out if resume else warm_start),
        evaluators=[_folder(one) for one in evaluators],
        worth=worth,
        out=out,
        options=options,
        resume=resume,
        warm_start=None if warm_start is None else _folder(warm_start),
        callbacks=callbacks,
        on_bad_row=on_bad_row,
        columns=columns,
        devices=devices,
        quiet=quiet,
    )
    return Run(folder, None if isinstance(model, str) else model)


def load(folder: Path | str, model: Model | None = None) -> "Run":
    """Opens the folder of a run.

    Args:
      folder: of the run.
      model: the module of a model of one's own; those of the zoo are known by their names.

    Raises:
      ValueError: no run, or of another model.
    """
    run = Run(Path(folder), model)
    run.name  # noqa: B018  What cannot be opened is refused here.
    return run


class Run:
    """A trained model and what belongs to it.

    Attributes:
      folder: of the run, absolute.
    """

    def __init__(self, folder: Path, model: Model | None = None):
        """See `load`; the folder is read when something of it is asked for."""
        self.folder, self._model = folder.absolute(), model

    @functools.cached_property
    def _trained(self) -> launch.Trained:
        return launch.load_run(self.folder, self._model)

    @property
    def name(self) -> str:
        """Of the model."""
        return self._trained.saved.model

    @property
    def module(self) -> Model:
        """The model's module, see `zoo.contract`."""
        return self._trained.module

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self._trained.config

    @property
    def variables(self) -> Variables:
        """The parameters of the best epoch, tables whole."""
        return self._trained.variables

    @property
    def schema(self) -> Schema:
        """What its batches hold."""
        return self._trained.saved.schema

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @property
    def kind(self) -> str:
        """Of the model: "ranking", "retrieval", "evaluator", "reranking" or "generator"."""
        return self.module.KIND

    @functools.cached_property
    def metrics(self) -> dict[str, Any]:
        """The results of the training: `metrics.json`, with its "validation" and "test"."""
        return json.loads((self.folder / "metrics.json").read_text())

    def evaluate(
        self,
        data: Any = None,
        *,
        kind: str | None = None,
        options: Options | None = None,
        columns: Columns | Path | str | None = None,
        on_bad_row: OnBadRow = "stop",
        quiet: bool = True,
    ) -> dict[str, Any]:
        """Metrics on the test requests of data: {"model", "data", "test"}.

        Args:
          data: those that it was trained on by default; others are read by the run's own
            declaration and vocabularies.
          kind: of files and tables, as in the run by default.
          columns, on_bad_row: see `read`.
          options: `evaluation_negatives`, the only setting that may differ from the run's.
          quiet: do not print how the data were read.

        Raises:
          ValueError: data of another schema (the differences are named), or that are gone.
        """
        return launch.evaluate_run(
            self._trained,
            data=_data(data, kind, self),
            options=options,
            on_bad_row=on_bad_row,
            columns=columns,
            quiet=quiet,
        )

    def predict(self, records: Any, *, unknown: str = "error") -> list[dict[str, np.ndarray]]:
        """Calibrated probabilities {task: (candidates,)} of each record; see `answers.predict`."""
        return answers.predict(self, records, unknown=unknown)

    def recommend(
        self, records: Any, k: int = 10, *, unknown: str = "error"
    ) -> list[list[Recommendation]]:
        """The best `k` candidates of each record, best first; see `answers.recommend`."""
        return answers.recommend(self, records, k, unknown=unknown)

    def export(self, out: Path | str, **options: Any) -> "Artifact":
        """Writes an artifact that serves without this library's models, and opens it.

        `options` are those of `export.stablehlo.export_run`; runs may stand for their folders.
        """
        from .export import artifact, stablehlo

        if "evaluators" in options:
            options["evaluators"] = [_folder(one) for one in options["evaluators"]]
        stablehlo.export_run(self.folder, out, model=self._model, **options)
        return artifact.load(out)

    def encode(self, records: Any, *, unknown: str = "error") -> dict[str, Any]:
        """The batch of raw request records; see `zoo.features.encode`."""
        batch = self._encoder(records, unknown=unknown)
        if not self._trained.saved.has_clock:  # The model never saw an age.
            del batch["history_age"]
        return grown(batch, {"L": self._trained.saved.settings.history})

    @functools.cached_property
    def _encoder(self) -> RequestEncoder:
        saved = self._trained.saved
        return RequestEncoder(self.schema, saved.row_maps, history=saved.settings.history)

    def outputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Of a batch of whole-table rows: "logit" and "tasks", or "order"."""
        count = len(batch["candidate_mask"])
        batch = served({**batch, **even_preferences(self.module, self.config, count)})
        needs = self.module.requirements(self.config)
        if needs.retrieved and "retrieved" not in batch:
            raise ValueError(answers.NO_INDEX.format(self.name))
        require_rows(self.schema, batch)
        return self._apply(self.variables, batch)

    def probability(self, task: str, logit: np.ndarray) -> np.ndarray:
        """Calibrated probabilities of a task's logits."""
        return self._trained.calibrations.get(task, Calibration()).probability(logit)

    def sizes(self, requests: int, candidates: int) -> tuple[int, int]:
        """Sizes in which so many are computed."""
        width = answers.rung(candidates, smallest=8)
        if self.kind == "evaluator":  # It has no more slots than that.
            width = max(candidates, min(width, self.config.slots))
        return answers.rung(requests), width

    @functools.cached_property
    def _apply(self) -> Callable[[Variables, dict[str, Any]], dict[str, Any]]:
        module, config = self.module, self.config

        def apply(variables: Variables, batch: dict[str, Any]) -> dict[str, Any]:
            output = module.apply(variables, config, batch)._asdict()
            return {name: output[name] for name in ("logit", "tasks", "order") if name in output}

        return jax.jit(apply)


def _data(data: Any, kind: str | None, like: "Folder | None") -> reading.Data | None:
    """What `launch` takes, from what a user has; of the kind of a run's data if none is said."""
    if data is None or isinstance(data, str | Dataset):
        return data
    kind = kind or (None if like is None else _kind_of(like)) or "events"
    return f"{kind}:{data}" if isinstance(data, Path) else InMemory.of(kind, data)


def _kind_of(run: "Folder") -> str | None:
    """The kind of a run's data, if such may be in memory; None where there is no run yet."""
    if not isinstance(run, Run) and not (Path(run) / "config.json").is_file():
        return None
    kind, _, what = _saved(run).source.partition(":")
    kind = what if kind == MEMORY else kind
    return kind if kind in ("events", "impressions") else None


def _saved(run: "Folder") -> Saved:
    return run._trained.saved if isinstance(run, Run) else load_config(Path(run))


def _folder(run: "Folder") -> Path | str:
    return run.folder if isinstance(run, Run) else run
