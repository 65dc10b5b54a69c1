"""Training of generators: no feedback, only evaluators' opinion of the slates that they draw.

Step after step a slate is drawn for every request, the evaluators say what each of its slots would
get and what those of another slate would, and the generator's own loss (`zoo.rerank.generator`)
makes more of what is better. It needs no labels, so that a deployed generator may go on learning
on the requests of the hour, while their feedback is still on its way: an `Actor` does.
"""

from collections.abc import Callable, Sequence
import dataclasses
from pathlib import Path
import time
from typing import Any, Literal, get_args
import zlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray
import numpy as np

from ..zoo.batch import Batch, served
from ..zoo.contract import Generator, Variables
from ..zoo.rerank import generator as generators
from ..zoo.rerank.last import seeds_of
from ..zoo.rerank.rewards import Evaluators, Judge, judge_of, require_fit, upstream
from . import checkpoints, run
from .data import draws
from .data.batches.assembly import pulled_batch, whole_batch
from .data.batches.pipeline import evaluation_batches, fitting_batch
from .data.batches.requests import fill_up
from .data.dataset import Dataset
from .data.event_log import EventLog, Requests
from .evaluation.scoring import evaluate, even_preferences, require_prior
from .folder import open_folder
from .forecast import Forecast
from .inspection import report
from .progress import Progress
from .settings import Settings
from .step import initial_state, make_step

_JUDGED_AT_ONCE = 8192  # candidates

Baseline = Literal["greedy", "upstream"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """Baseline of a drawn slate, and the worth of components.

    Attributes:
      baseline: "greedy" is the generator's own greedy slate, "upstream" the order that came.
      whole: weight of what a slot of the slate gained on average, beside each one's own gain.
    """

    baseline: Baseline = "greedy"
    whole: float = 0.5

    def __post_init__(self):
        if self.baseline not in get_args(Baseline):
            raise ValueError(
                f"Objective.baseline must be greedy or upstream, got {self.baseline!r}."
            )
        if not 0 <= self.whole < np.inf:
            raise ValueError(f"Objective.whole must be >= 0 and finite, got {self.whole}.")


def train_generator(
    config: Any,
    log: EventLog,
    requests: Callable[[int], Requests],
    by: Evaluators,
    settings: Settings,
    *,
    module: Generator = generators,
    objective: Objective | None = None,
    start: Variables | None = None,
    folder: Path | None = None,
    per_epoch: int = 0,
    quiet: bool = False,
) -> Variables:
    """Trains a generator against evaluators for `settings.steps` steps; its variables.

    Args:
      config: of the generator; its schema is the evaluators'.
      log: users and items.
      requests: of a step, by its number: all candidates, in upstream order.
      by: who judges.
      settings: optimisers, rates, seed, steps.
      module: with the names of `zoo.rerank.generator`.
      objective: what a slate is compared with.
      start: variables to go on from; fresh ones by default.
      folder: of checkpoints, one every `settings.checkpoint_every` steps; the newest that is there
        is gone on from, with the same bits as without the interruption. Ctrl-C leaves one of the
        last whole step. None by default.
      per_epoch: steps that see every request once, if there is an end of them: for what is said
        of the time that it will take.
      quiet: print nothing.

    Raises:
      ValueError: `settings.steps` is 0 (there is no end of requests), or the schemas differ.
      RunError: the checkpoint is of a training with other evaluators.
    """
    if settings.steps < 1:
        raise ValueError(f"steps must be >= 1 for a generator, got {settings.steps}.")
    actor = Actor(config, log, by, settings, module=module, objective=objective, start=start)
    if folder is not None and checkpoints.steps(folder):
        actor.restore(folder)
    left = settings.steps - actor.number
    with Progress("generator", settings.steps, done=actor.number, quiet=quiet) as progress:
        epochs = left / per_epoch if per_epoch else 1
        forecast = Forecast(progress, left, per_epoch=per_epoch, epochs=epochs)
        try:
            for number in range(actor.number, settings.steps):
                asked = requests(number)
                with checkpoints.to_the_end():  # State and number are of the same step.
                    gain = actor.learn(asked)
                progress.advance(1)
                forecast.step(lambda: jax.block_until_ready(actor.variables))
                if folder is not None and actor.number % settings.checkpoint_every == 0:
                    actor.save(folder)
                if number % 100 == 99:
                    progress.print(f"step {number + 1}: drawn slates gain {float(gain):+.4f}")
        except KeyboardInterrupt:
            if folder is not None and checkpoints.steps(folder)[:1] != [actor.number]:
                actor.save(folder)
            raise
    return actor.variables


class Actor:
    """A generator that goes on learning, request by request, without feedback.

    `variables` are the newest ones; evaluators may be replaced by newer ones of their kind.
    `number` counts the steps: what a step draws depends on it and on the seed alone.
    """

    def __init__(
        self,
        config: Any,
        log: EventLog,
        by: Evaluators,
        settings: Settings,
        *,
        module: Generator = generators,
        objective: Objective | None = None,
        start: Variables | None = None,
    ):
        """See `train_generator`; a linear schedule ends with step `settings.steps`."""
        require_fit(config, by)
        objective = objective or Objective()
        self._config, self._log, self._seed = config, log, settings.seed
        self._judges = list(by.variables)
        self._state = initial_state(module, config, settings, {}, start)
        self.number = 0
        step = make_step(module, config, settings, total_steps=settings.steps)
        self._step = jax.jit(step, donate_argnums=0)
        self._draw = jax.jit(
            lambda variables, batch, key, judges: explore(
                module, config, variables, batch, by._replace(variables=judges), objective, key
            )
        )

    @property
    def variables(self) -> Variables:
        """Variables for the generator's `apply`; the next step gives these buffers away."""
        return self._state.variables

    def learn(
        self, requests: Requests, judges: Sequence[Variables] | None = None
    ) -> Float[Array, ""]:
        """One step on these requests, by newer judges if given; what drawn slates gained."""
        self._judges = self._judges if judges is None else list(judges)
        schema, number = self._config.schema, self.number
        more = _preferences(self._config, len(requests), self._seed, number)
        batch = {**whole_batch(schema, self._log, requests, history=1), **more}
        key = jax.random.fold_in(jax.random.key(self._seed), number)
        slate, gain = self._draw(self.variables, batch, key, self._judges)
        renamed, pulled = pulled_batch(schema, self._log, requests, history=1)
        self._state, _ = self._step(self._state, {**renamed, **more, "slate": slate}, pulled)
        self.number += 1
        return gain

    def save(self, folder: Path) -> None:
        """Writes a checkpoint of the state and of the number of steps."""
        note = {"judges": checksum(self._judges)}
        checkpoints.save(folder, self.number, self._state, note)

    def restore(self, folder: Path) -> None:
        """Goes on from the newest checkpoint. Raises RunError if the evaluators were others."""
        self.number, self._state, note = checkpoints.restore(folder, self._state)
        if note["judges"] != checksum(self._judges):
            raise run.RunError(f"{folder.parent.parent} was trained with other evaluators.")


def fit_generator(
    module: Generator,
    config: Any,
    dataset: Dataset,
    by: Evaluators,
    settings: Settings,
    out: Path | str,
    *,
    name: str,
    source: str,
    objective: Objective | None = None,
    start: Variables | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Trains a generator on the requests of a dataset and writes the folder of the run (see `run`).

    Without `settings.steps` it sees every training request `settings.epochs` times. Labels are
    read in validation and test only. `resume` goes on from the newest checkpoint, with the same
    model, data, settings and evaluators; `start` is what a new one begins with.

    Generators do not share the loop of `loop.fit`: there are no labels, so no epoch is validated
    and none is the best, and every step first draws the slates that it learns from. They train on
    one device: the evaluators judge the drawn slates in the same program, on whole batches.

    Returns:
      The content of `metrics.json`; beside the metrics of an order, what the evaluators say of
      the generator's slates and of the upstream order.

    Raises:
      RunError: `out` holds something else, or a run of another model, data or settings.
    """
    out = Path(out)
    dataset.check()
    require_prior(module, dataset, settings.positive_rate)
    size = settings.batch_size or fitting_batch(dataset.train.candidate.size)
    size = max(1, size // dataset.train.candidate.shape[1])
    each = -(-len(dataset.train) // size)
    settings = dataclasses.replace(settings, steps=settings.steps or each * settings.epochs)

    def requests(step: int) -> Requests:
        order = draws.permutation(len(dataset.train), settings.seed, step // each)
        start = step % each * size
        return fill_up(dataset.train.take(order[start : start + size]), size)

    open_folder(out, resume, name, module, config, settings, source, dataset)
    with run.forgotten_on_failure(out):
        if not quiet:
            report.say(dataset)
        started = time.perf_counter()
        variables = train_generator(
            config,
            dataset.log,
            requests,
            by,
            settings,
            module=module,
            objective=objective,
            start=start,
            folder=out / "checkpoints" / "last",
            per_epoch=each,
            quiet=quiet,
        )
        jax.block_until_ready(variables)
        seconds = time.perf_counter() - started
        checkpoints.save(out / "checkpoints" / "best", settings.steps, variables, {}, keep=1)
        parts = {"validation": dataset.validation, "test": dataset.test}
        examples = settings.steps * size * dataset.train.candidate.shape[1]
        results = {
            **run.head_of(name, source, settings.seed, dataset, variables),
            "train": {
                **run.throughput(examples, seconds),
                "steps": settings.steps,
            },
            **{
                part: {
                    **evaluate(module, config, variables, dataset, asked, history=1),
                    **_opinion(module, config, variables, dataset, asked, by),
                }
                for part, asked in parts.items()
            },
        }
        run.write_json(out / "metrics.json", results)
    return results


def _opinion(
    module: Generator,
    config: Any,
    variables: Variables,
    dataset: Dataset,
    requests: Requests,
    by: Evaluators,
) -> dict[str, float]:
    """Means over requests of what the evaluators say of slates."""

    def judged(variables, evaluators, batch):
        mine = module.apply(variables, config, batch).order
        both = jnp.stack([mine, upstream(batch, config.slots)], axis=1)
        return judge_of(by._replace(variables=evaluators), batch)(both).sum(axis=2).mean(axis=-1)

    jitted, found = jax.jit(judged), []
    for batch in evaluation_batches(
        config.schema, dataset.log, requests, batch_size=_JUDGED_AT_ONCE, history=1
    ):
        real = batch["candidate_mask"].any(axis=1)
        batch = {**served(batch), **even_preferences(module, config, len(real))}
        found.append(np.asarray(jitted(variables, list(by.variables), batch))[real])
    mine, theirs = np.concatenate(found).mean(axis=0)
    return {"evaluator_score": float(mine), "upstream_evaluator_score": float(theirs)}


def explore(
    module: Generator,
    config: Any,
    variables: Variables,
    batch: Batch,
    by: Evaluators,
    objective: Objective,
    key: PRNGKeyArray,
) -> tuple[dict[str, Array], Float[Array, ""]]:
    """A drawn slate per request, what each slot gained, and what slates gained on average."""
    encoded = module.encode(variables, config, batch)
    seeds = seeds_of(key, encoded.mask.shape[0])
    drawn = module.decode(variables, config, encoded, noise=seeds).order
    if objective.baseline == "greedy":
        other = module.decode(variables, config, encoded).order
    else:
        other = upstream(batch, config.slots)[:, None]
    advantage = advantages(judge_of(by, batch), drawn, other, objective.whole)
    gain = advantage.sum(axis=1).mean() / (1 + objective.whole)
    return {"order": drawn[:, 0], "advantage": advantage}, gain


def advantages(
    judge: Judge, drawn: Int[Array, "B 1 M"], other: Int[Array, "B 1 M"], whole: float
) -> Float[Array, "B M"]:
    """Gain of each slot over the same slot of the other slate, and its share of all."""
    reward = judge(jnp.concatenate([drawn, other], axis=1)).mean(axis=-1)
    each = reward[:, 0] - reward[:, 1]
    return each + whole * each.mean(axis=1, keepdims=True)


def _preferences(config: Any, count: int, seed: int, step: int) -> dict[str, np.ndarray]:
    """Any weights of the objectives that add up to 1, a request at a time; nothing without any."""
    names = getattr(config, "preferences", ())
    if not names:
        return {}
    rng = np.random.default_rng([seed, step])
    return {"preference": rng.dirichlet(np.ones(len(names)), count).astype(np.float32)}


def checksum(tree: Any) -> int:
    """CRC-32 of the arrays of a tree."""
    found = 0
    for leaf in jax.tree.leaves(tree):
        found = zlib.crc32(np.asarray(leaf).tobytes(), found)
    return found
