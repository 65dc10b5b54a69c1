"""The loop: epochs of steps, validation, early stopping, checkpoints, results.

Selection reads validation only; the test set is read once, at the end, with the best epoch's
parameters. A run is a function of (data, model, settings): interrupted anywhere and resumed, it
ends with the same bits.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
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
from .evaluation.miscalibration import miscalibrated, no_better_than_chance, warning_of
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
from .forecast import Forecast
from .inspection import report
from .memory import keep_freed_memory
from .plots import learning_curve, reliability_diagram
from .position import Position
from .progress import Progress
from .settings import Settings
from .step import TrainState, initial_state, make_step, parallel_step, replicate, shard
from .unseen import unseen_weights, with_average_unseen

Callback: TypeAlias = Callable[[dict[str, Any]], bool | None]


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

        title, done = f"{name} on {source}", position.step
        with Progress(title, trainer.total_steps, done=done, quiet=quiet) as progress:
            forecast = trainer.forecast(progress, position)
            while not trainer.finished(position):
                with trainer.saved_on_interrupt(out, position):
                    trainer.train_epoch(position, out, progress, forecast)
                    progress.say("validating")
                    variables, asked = trainer.served(), dataset.validation
                    block = evaluate(
                        model, config, variables, dataset, asked, history=settings.history
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
        judged = _judged(model, config, best, dataset, settings, out, title)
        faults = []
        if gives_probabilities(model):
            faults = [f"{part}, {line}" for part in judged for line in miscalibrated(judged[part])]
        if faults:
            progress.print(warning_of(faults))
        for line in no_better_than_chance(judged["validation"]):
            progress.print(f"warning: {line}")
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
        # Retrieval scores the whole catalogue, whose time no step tells.
        parts = () if model.KIND == "retrieval" else (dataset.validation, dataset.test)
        self._scored = tuple(int((part.candidate >= 0).sum()) for part in parts)
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
        self._since = 0.0, 0.0

    def begin(self) -> Position:
        """Position of a new run."""
        return Position(devices=self._multiple_of, requests=self._batches.requests_per_batch)

    def finished(self, position: Position) -> bool:
        stale = position.epoch - 1 - position.best_epoch()
        return (
            position.epoch >= self._settings.epochs
            or position.step >= self.total_steps
            or (self._settings.patience > 0 and stale >= self._settings.patience)
        )

    def forecast(self, progress: Progress, position: Position) -> Forecast:
        """What says after the first steps how long the rest will take."""
        done, each = position.step, len(self._batches)
        return Forecast.of(progress, self._settings, self._scored, self.total_steps, done, each)

    def train_epoch(
        self, position: Position, out: Path, progress: Progress, forecast: Forecast
    ) -> None:
        """The rest of this epoch, or of the steps; checkpoints on the way."""
        self._mark(position)
        loss = np.float32(position.loss_sum)
        try:
            for batch, pulled in self._batches.epoch(position.epoch, position.index):
                with checkpoints.to_the_end():  # State and position are of the same step.
                    terms = self._step(batch, pulled, position)
                    loss = loss + terms["loss"]
                    position.examples += int(batch["candidate_mask"].sum())
                    position.index += 1
                    position.step += 1
                progress.advance(1)
                forecast.step(
                    lambda: jax.block_until_ready(self._state),
                    candidates=batch["candidate_mask"].size,
                    compiled=position.compile_seconds,
                )
                if position.step >= self.total_steps:
                    break
                if position.index % self._settings.checkpoint_every == 0:
                    position.loss_sum = _finite(loss, position.step)
                    self._account(position)
                    self.save(out, position)
                    self._mark(position)
        except KeyboardInterrupt:  # No other error may hide behind one of these two.
            position.loss_sum = _finite(loss, position.step)
            self._account(position)
            raise
        position.loss_sum = _finite(loss, position.step)
        self._account(position)

    @contextlib.contextmanager
    def saved_on_interrupt(self, out: Path, position: Position) -> Iterator[None]:
        """Ctrl-C in the block ends the training with a checkpoint of its last whole step."""
        try:
            yield
        except KeyboardInterrupt:
            newest = checkpoints.steps(out / "checkpoints" / "last")[:1]
            if position.step and newest != [position.step]:
                self.save(out, position)
            raise

    def held(self) -> TrainState:
        """The state as one device holds it."""
        if self._devices == 1:
            return self._state
        return jax.tree.map(lambda x: x[0], self._state)

    def served(self) -> Variables:
        """Variables to evaluate and to keep: the row of unknown items is a mean of known ones."""
        return with_average_unseen(self.held().variables, self._averaged)

    def save(self, out: Path, position: Position) -> None:
        note = dataclasses.asdict(position)
        checkpoints.save(out / "checkpoints" / "last", position.step, self.held(), note)

    def restore(self, out: Path) -> Position:
        _, state, note = checkpoints.restore(out / "checkpoints" / "last", self.held())
        position, here = Position(**note), self._batches.requests_per_batch
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

    def _step(self, batch: Batch, pulled: Pulled, position: Position) -> dict[str, Any]:
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

    def _mark(self, position: Position) -> None:
        """Seconds are counted from here on."""
        self._since = time.perf_counter(), position.compile_seconds

    def _account(self, position: Position) -> None:
        """Counts them, so far."""
        jax.block_until_ready(self._state)
        started, compiled_before = self._since
        position.seconds += time.perf_counter() - started
        position.seconds -= position.compile_seconds - compiled_before
        self._mark(position)


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


def _close_epoch(position: Position, block: dict[str, Any], progress: Progress) -> None:
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
