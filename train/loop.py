"""The loop: epochs of steps, validation, early stopping, checkpoints, results.

Selection reads validation only; the test set is read once, at the end, with the best epoch's
parameters. A run is a function of (data, model, settings): interrupted anywhere and resumed, it
ends with the same bits.
"""

from collections.abc import Callable, Sequence
import dataclasses
import math
from pathlib import Path
import time
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ..zoo.batch import Batch
from ..zoo.contract import Model, Variables
from . import checkpoints, run
from .data.batches.deduplicate import Pulled
from .data.batches.pipeline import TrainingBatches
from .data.dataset import Dataset
from .evaluation.miscalibration import miscalibrated, warning_of
from .evaluation.scoring import (
    evaluate,
    fit_calibrations,
    gives_probabilities,
    judge,
    predict,
    reliabilities,
    require_prior,
    score,
    summary,
)
from .folder import open_folder
from .inspection import report
from .memory import keep_freed_memory
from .plots import learning_curve, reliability_diagram
from .progress import Progress
from .settings import Settings
from .step import TrainState, initial_state, make_step, parallel_step, replicate, shard
from .unseen import unseen_weights, with_average_unseen

Callback: TypeAlias = Callable[[dict[str, Any]], bool | None]


@dataclasses.dataclass
class _Position:
    """Position of a run. Travels in every checkpoint's note, as JSON.

    Attributes:
      epoch, index: the next batch. step: how many were trained on.
      loss_sum, examples, seconds, compile_seconds: of the training so far (the loss: this epoch).
      devices, requests: how many shared each batch, and its size, which `index` counts by; 0 in
        older notes.
      history: one entry per finished epoch.
    """

    epoch: int = 0
    index: int = 0
    step: int = 0
    loss_sum: float = 0.0
    examples: int = 0
    seconds: float = 0.0
    compile_seconds: float = 0.0
    devices: int = 0
    requests: int = 0
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def best_epoch(self) -> int:
        """Index of the best epoch by validation so far (the first of equals); -1 before any."""
        scores = [entry["score"] for entry in self.history]
        return scores.index(max(scores)) if scores else -1


def fit(
    model: Model,
    config: Any,
    dataset: Dataset,
    settings: Settings,
    out: Path | str,
    *,
    name: str | None = None,
    source: str | None = None,
    resume: bool = False,
    devices: int = 1,
    start: Variables | None = None,
    callbacks: Sequence[Callback] = (),
    quiet: bool = False,
) -> dict[str, Any]:
    """Trains `model` and writes the folder of the run (see `run`).

    Args:
      model: a module of the zoo, or any object with its names (see `zoo.contract`).
      config: the model's configuration; its schema must be the dataset's.
      dataset: from a source.
      settings: how to train.
      out: folder of the run; absent or empty, unless `resume`.
      name: of the model, for the results; the last part of the module's own name by default.
      source: of the data, for `recjax evaluate`; the dataset's name by default.
      resume: go on from the newest checkpoint, with the same model, data and settings.
      devices: how many local devices share each batch (pmap).
      start: variables to begin with; fresh ones by default.
      callbacks: called after each epoch with its entry of the history ("epoch", "train_loss",
        "validation", "score"); if one gives True, the training ends.
      quiet: print nothing.

    Returns:
      The content of `metrics.json`.

    Raises:
      RunError: `out` holds something else, or a run of another model, data or settings.
      FloatingPointError: the loss or the scores are no longer finite.
    """
    out, source = Path(out), source or dataset.name
    if name is None:
        name = run.module_of(model).rpartition(".")[2]
    _check(model, config, dataset, settings, devices)
    dataset.check()
    keep_freed_memory()
    last = out / "checkpoints" / "last"
    # Resumed on other devices, a run keeps its batches: those of the devices that it began on.
    begun = checkpoints.newest_note(last).get("devices") or 1 if resume else 1
    trainer = _Trainer(model, config, dataset, settings, devices, math.lcm(devices, begun), start)
    open_folder(out, resume, name, model, config, settings, source, dataset)
    with run.forgotten_on_failure(out):
        if not quiet:  # What is refused is refused before, in one line.
            report.say(dataset)
        position = trainer.begin()
        if resume and checkpoints.steps(last):
            position = trainer.restore(out)

        with Progress(f"{name} on {source}", trainer.total_steps, quiet=quiet) as progress:
            progress.advance(position.step)
            while not trainer.finished(position):
                trainer.train_epoch(position, out, progress)
                progress.say("validating")
                variables = trainer.served()
                block = evaluate(
                    model, config, variables, dataset, dataset.validation, history=settings.history
                )
                _close_epoch(position, block, progress)
                if position.best_epoch() == position.epoch - 1:
                    checkpoints.save(
                        out / "checkpoints" / "best", position.epoch, variables, {}, keep=1
                    )
                trainer.save(out, position)
                if any([callback(position.history[-1]) for callback in callbacks]):
                    break

        _, best, _ = checkpoints.restore(out / "checkpoints" / "best", trainer.served())
        title = f"{name} on {source}"
        judged = _judged(model, config, best, dataset, settings, out, title)
        faults = []
        if gives_probabilities(model):
            faults = [f"{part}, {line}" for part in judged for line in miscalibrated(judged[part])]
        if faults:
            progress.print(warning_of(faults))
        results = {
            **run.head_of(name, source, settings.seed, dataset, best),
            "train": {
                **run.throughput(position.examples, position.seconds),
                "compile_seconds": position.compile_seconds,
                "epochs": position.epoch,
                "best_epoch": position.best_epoch() + 1,
            },
            **judged,
            **({"warnings": faults} if faults else {}),
        }
        run.write_json(out / "metrics.json", results)
        learning_curve(
            position.history,
            out / "learning_curve.png",
            title=title,
            measure="recall@50" if model.KIND == "retrieval" else "AUC",
        )
        return results


def _judged(
    model: Model,
    config: Any,
    best: Variables,
    dataset: Dataset,
    settings: Settings,
    out: Path,
    title: str,
) -> dict[str, Any]:
    """Blocks of validation and test, by calibrated probabilities, of which it writes the files."""
    parts, history = {"validation": dataset.validation, "test": dataset.test}, settings.history
    if not gives_probabilities(model):
        return {
            part: evaluate(model, config, best, dataset, requests, history=history)
            for part, requests in parts.items()
        }
    logits = {
        part: predict(model, config, best, dataset, requests, history=history)
        for part, requests in parts.items()
    }
    calibrations = fit_calibrations(
        dataset.validation, logits["validation"], positive_rate=settings.positive_rate
    )
    run.save_calibrations(out, calibrations)
    shown = reliabilities(dataset.test, logits["test"], calibrations)
    reliability_diagram(shown, out / "reliability.png", title=title)
    return {
        part: judge(model, dataset, requests, logits[part], calibrations)
        for part, requests in parts.items()
    }


class _Trainer:
    """The state of a run and its compiled steps."""

    def __init__(
        self,
        model: Model,
        config: Any,
        dataset: Dataset,
        settings: Settings,
        devices: int,
        multiple_of: int = 1,
        start: Variables | None = None,
    ):
        self._settings, self._devices, self._multiple_of = settings, devices, multiple_of
        self._averaged = unseen_weights(dataset)
        self._batches = TrainingBatches(
            dataset,
            batch_size=settings.batch_size or None,
            history=settings.history,
            negatives=settings.negatives,
            seed=settings.seed,
            unseen_share=settings.unseen_share,
            multiple_of=math.lcm(devices, multiple_of),
            requirements=model.requirements(config),
            point_in_time=settings.point_in_time,
        )
        self.total_steps = len(self._batches) * settings.epochs
        if settings.steps:
            self.total_steps = min(self.total_steps, settings.steps)
        occurrences = jax.tree.map(jnp.asarray, count_rows(self._batches)) if settings.l2 else {}
        self._state = self._place(initial_state(model, config, settings, occurrences, start))
        self._jitted: Any  # a jitted or pmapped function
        if devices == 1:
            step = make_step(model, config, settings, total_steps=self.total_steps)
            self._jitted = jax.jit(step, donate_argnums=0)
        else:
            self._jitted = parallel_step(model, config, settings, total_steps=self.total_steps)
        self._compiled: dict[Any, Any] = {}

    def begin(self) -> _Position:
        """Position of a new run."""
        return _Position(devices=self._multiple_of, requests=self._batches.requests_per_batch)

    def finished(self, position: _Position) -> bool:
        stale = position.epoch - 1 - position.best_epoch()
        return (
            position.epoch >= self._settings.epochs
            or position.step >= self.total_steps
            or (self._settings.patience > 0 and stale >= self._settings.patience)
        )

    def train_epoch(self, position: _Position, out: Path, progress: Progress) -> None:
        """The rest of this epoch, or of the steps; checkpoints on the way."""
        started, compiled_before = time.perf_counter(), position.compile_seconds
        loss = np.float32(position.loss_sum)
        for batch, pulled in self._batches.epoch(position.epoch, position.index):
            position.examples += int(batch["candidate_mask"].sum())
            terms = self._step(batch, pulled, position)
            loss = loss + terms["loss"]
            position.index += 1
            position.step += 1
            progress.advance(1)
            if position.step >= self.total_steps:
                break
            if position.index % self._settings.checkpoint_every == 0:
                position.loss_sum = _finite(loss, position.step)
                self._account(position, started, compiled_before)
                self.save(out, position)
                started, compiled_before = time.perf_counter(), position.compile_seconds
        position.loss_sum = _finite(loss, position.step)
        self._account(position, started, compiled_before)

    def held(self) -> TrainState:
        """The state as one device holds it."""
        if self._devices == 1:
            return self._state
        return jax.tree.map(lambda x: x[0], self._state)

    def served(self) -> Variables:
        """Variables to evaluate and to keep: the row of unknown items is a mean of known ones."""
        return with_average_unseen(self.held().variables, self._averaged)

    def save(self, out: Path, position: _Position) -> None:
        note = dataclasses.asdict(position)
        checkpoints.save(out / "checkpoints" / "last", position.step, self.held(), note)

    def restore(self, out: Path) -> _Position:
        _, state, note = checkpoints.restore(out / "checkpoints" / "last", self.held())
        position, here = _Position(**note), self._batches.requests_per_batch
        if position.requests not in (0, here):
            raise run.RunError(
                f"{out} cannot be resumed on {self._devices} devices: its batches hold "
                f"{position.requests} requests, which {self._devices} devices cannot share "
                f"alike; it began on {position.devices}: use as many, or a divisor of that."
            )
        self._state = self._place(state)
        return position

    def _place(self, state: TrainState) -> TrainState:
        return state if self._devices == 1 else replicate(state, self._devices)

    def _step(self, batch: Batch, pulled: Pulled, position: _Position) -> dict[str, Any]:
        """One step; compiles once per combination of shapes, on the compiler's own clock."""
        if self._devices > 1:
            batch = shard(batch, self._devices)
        shapes = tuple(x.shape for x in jax.tree.leaves((batch, pulled)))
        if shapes not in self._compiled:
            started = time.perf_counter()
            lowered = self._jitted.lower(self._state, batch, pulled)
            self._compiled[shapes] = lowered.compile()
            position.compile_seconds += time.perf_counter() - started
        self._state, terms = self._compiled[shapes](self._state, batch, pulled)
        return terms if self._devices == 1 else jax.tree.map(lambda x: x[0], terms)

    def _account(self, position: _Position, started: float, compiled_before: float) -> None:
        jax.block_until_ready(self._state)
        compiling = position.compile_seconds - compiled_before
        position.seconds += time.perf_counter() - started - compiling


def count_rows(batches: TrainingBatches) -> dict[str, np.ndarray]:
    """Occurrences of each row in one epoch of training batches: {table: (rows,) float32}.

    Counted in batches, since a push happens once per batch that names the row.
    """
    counts = {}
    for _, pulled in batches.epoch(0):
        for table, size in batches.table_sizes.items():
            count = counts.setdefault(table, np.zeros(size, np.float32))
            count[pulled.rows[table][pulled.touched[table]]] += 1.0
    return counts


def _close_epoch(position: _Position, block: dict[str, Any], progress: Progress) -> None:
    """Records a finished epoch and moves on to the next."""
    entry = {
        "epoch": position.epoch + 1,
        "train_loss": position.loss_sum / max(position.index, 1),
        "validation": block,
        "score": score(block),
    }
    position.history.append(entry)
    position.epoch += 1
    position.index, position.loss_sum = 0, 0.0
    best = " (best)" if position.best_epoch() == position.epoch - 1 else ""
    progress.print(
        f"epoch {entry['epoch']}: train loss {entry['train_loss']:.4f}, validation "
        f"{summary(block)}{best}"
    )


def _finite(loss: Any, step: int) -> float:
    value = float(loss)
    if not math.isfinite(value):
        raise FloatingPointError(
            f"The loss is {value} by step {step}: lower the learning rates, or check dense inputs."
        )
    return value


def _check(model: Model, config: Any, dataset: Dataset, settings: Settings, devices: int) -> None:
    if config.schema != dataset.schema:
        lines = "; ".join(config.schema.differences(dataset.schema)) or "table sizes"
        raise run.RunError(f"The config's schema is not the data's: {lines}.")
    if not 1 <= devices <= jax.local_device_count():
        raise run.RunError(f"devices must be in 1..{jax.local_device_count()}, got {devices}.")
    require_prior(model, dataset, settings.positive_rate)
