"""Evaluators and generators of a listwise market, trained and judged by the suite `last`.

Four draws of requests of their own: those whose exposed slates train the evaluators and those on
which the generator learns without feedback, both of the training days; validation, and test, of
later days each. The judge is the market's own
closed form; no model sees it.
"""

from collections.abc import Callable, Iterator
import dataclasses
import functools
from pathlib import Path
import tempfile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...train import checkpoints, defaults
from ...train.data.batches.assembly import whole_batch
from ...train.data.dataset import Dataset
from ...train.data.event_log import Requests
from ...train.data.market import slate_log
from ...train.data.market.slates import SLATES, SlateRequests, SlateWorld, Worth
from ...train.loop import fit
from ...train.rerank import train_generator
from ...train.settings import Settings
from ...zoo.contract import Variables
from ...zoo.rerank import evaluator, generator, last
from ...zoo.rerank.last import TrainedGenerator
from ...zoo.rerank.rewards import Evaluators

REQUESTS = 3_000
# Of requests that are served at once, so that memory does not grow with how many there are.
AT_ONCE = 500
_GENERATOR_BATCH = 192


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regime:
    """Logs that evaluators may learn from.

    Attributes:
      preset: of the market.
      logs: exposed slates that each evaluator is trained on, its own.
      inverse_temperature: of the logging policy.
      evaluators: how many there are; their mean is the score.
      teachers: of them, whom the generator learns from; the others are second opinions.
      settings: of their training.
      steps: of the generator's, on requests without feedback.
    """

    preset: str
    logs: int
    inverse_temperature: float = slate_log.EXPLORING
    evaluators: int = 3
    teachers: int = 3
    settings: Settings
    steps: int = 1500


ONCE = Settings(epochs=1, batch_size=2560, history=1, learning_rate=4e-3, table_learning_rate=1e-2)
STRONG = Regime(preset="cascade", logs=1_000_000, settings=ONCE)
WEAK = Regime(
    preset="cascade",
    logs=200,
    inverse_temperature=slate_log.NARROW,
    teachers=1,
    settings=Settings(
        epochs=6, batch_size=512, history=1, learning_rate=1e-3, table_learning_rate=3e-3
    ),
)


Method = Callable[..., last.Chosen]


@functools.cache
def steps(count: int, **options: Any) -> Method:
    """LAST, parallel, of this many steps of both signs."""
    config = last.Config(steps=last.both_signs(count), **options)
    return parallel(config)


@functools.cache
def parallel(config: last.Config) -> Method:
    """LAST, parallel."""
    return lambda made, by, batch, seeds: last.last_parallel(made, by, batch, config, seeds=seeds)


class Asked(NamedTuple):
    """Requests as the market knows them, and as models see them."""

    truth: SlateRequests
    requests: Requests
    batch: dict[str, Any]


class Trained(NamedTuple):
    """A market, and what was trained on it."""

    world: SlateWorld
    data: Dataset
    by: Evaluators
    generator: TrainedGenerator
    validation: Asked
    test: Asked


def train(regime: Regime, seed: int) -> Trained:
    """The market of a seed, its evaluators, a generator, and requests to choose and to judge by."""
    world = SlateWorld(SLATES[regime.preset], seed)
    data, by = train_evaluators(world, regime, seed)
    _, validation, test = world.preset.market.starts
    teachers = by._replace(variables=by.variables[: regime.teachers])
    made = train_pointer(world, data, teachers, steps=regime.steps, seed=seed)
    chosen_by = asked(world, data, (seed, 1), range(validation, test))
    return Trained(world, data, by, made, chosen_by, asked_last(world, data, seed))


def train_evaluators(
    world: SlateWorld, regime: Regime, seed: int, worth: tuple[float, ...] = (1.0, 0.0)
) -> tuple[Dataset, Evaluators]:
    """Evaluators, each on logs of its own; and the last log, for its schema."""
    found, config, data = [], None, None
    for member in range(regime.evaluators):
        data = slate_log.load(
            world,
            name=f"slates:{regime.preset}",
            slates=regime.logs,
            inverse_temperature=regime.inverse_temperature,
            seed=regime.evaluators * seed + member,
        )
        config = evaluator.Config(schema=data.schema)
        settings = dataclasses.replace(regime.settings, seed=regime.evaluators * seed + member)
        found.append(fitted(evaluator, config, data, settings))
    assert data is not None
    return data, Evaluators(found, config, worth)


def fitted(module: Any, config: Any, data: Dataset, settings: Settings) -> Variables:
    """The best variables of a training."""
    with tempfile.TemporaryDirectory() as folder:
        fit(module, config, data, settings, Path(folder) / "run", quiet=True)
        like = jax.eval_shape(lambda key: module.init(key, config), jax.random.key(0))
        return checkpoints.restore(Path(folder) / "run" / "checkpoints" / "best", like)[1]


def train_pointer(
    world: SlateWorld,
    data: Dataset,
    by: Evaluators,
    *,
    steps: int,
    seed: int,
    preferences: tuple[str, ...] = (),
) -> TrainedGenerator:
    """The pointer generator, on requests of the training rounds, without their feedback."""
    config = generator.Config(
        schema=data.schema, encoder_units=64, head_units=64, preferences=preferences
    )
    settings = defaults.settings("generator", steps=steps, seed=seed)
    stream = requests_of(world, data, seed)
    variables = train_generator(config, data.log, stream, by, settings, quiet=True)
    return TrainedGenerator(variables, config)


def requests_of(world: SlateWorld, data: Dataset, seed: int) -> Callable[[int], Requests]:
    """Requests of a training step, by its number: those of one day of the training rounds."""
    first, last, _ = world.preset.market.starts

    def stream(step: int) -> Requests:
        day = first + step % (last - first)
        rng = np.random.default_rng([world.world.seed, seed, 7, step])
        truth = world.requests(rng, _GENERATOR_BATCH, range(day, day + 1))
        return slate_log.to_requests(world, truth, data.row_maps)

    return stream


def asked(
    world: SlateWorld,
    data: Dataset,
    address: tuple[int, ...],
    rounds: range,
    count: int = REQUESTS,
) -> Asked:
    """Requests of some rounds; `address` names the draw."""
    truth = world.requests(np.random.default_rng([world.world.seed, 8, *address]), count, rounds)
    requests = slate_log.to_requests(world, truth, data.row_maps)
    return Asked(truth, requests, whole_batch(data.schema, data.log, requests, history=1))


def asked_last(world: SlateWorld, data: Dataset, seed: int) -> Asked:
    """The test requests of a seed: those of the last rounds."""
    market = world.preset.market
    return asked(world, data, (seed, 2), range(market.starts[2], market.rounds))


def chunks(batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The batch, `AT_ONCE` requests at a time."""
    count = len(batch["candidate_mask"])
    for start in range(0, count, AT_ONCE):
        yield jax.tree.map(lambda x, s=start: x[s : s + AT_ONCE], batch)


def serve(
    method: Callable[..., Any], generator: TrainedGenerator, by: Evaluators, ask: Asked, seed: int
) -> Any:
    """All requests through `method(generator, by, batch, seeds)`, in parts; arrays in NumPy.

    Compiled once per method: give the same function again, not another one like it.
    """
    count = len(ask.batch["candidate_mask"])
    seeds = np.random.default_rng([seed, 9]).integers(0, 2**32, count, np.uint32)
    run = _compiled(
        method,
        (generator.config, generator.module),
        (by.config, by.worth, by.more, by.module),
    )
    parts = []
    for number, batch in enumerate(chunks(ask.batch)):
        mine = jnp.asarray(seeds[number * AT_ONCE :][:AT_ONCE])
        found = run(generator.variables, list(by.variables), batch, mine)
        parts.append(jax.tree.map(np.asarray, found))
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


@functools.lru_cache(maxsize=64)
def _compiled(
    method: Callable[..., Any], generator: tuple[Any, Any], by: tuple[Any, Any, Any, Any]
) -> Any:
    """A method under jit, by what decides it beside its arrays."""

    def run(variables, evaluators, batch, seeds):
        config, worth, more, module = by
        judges = Evaluators(evaluators, config, worth, more, module)
        return method(TrainedGenerator(variables, *generator), judges, batch, seeds)

    return jax.jit(run)


def worth_of(world: SlateWorld, truth: SlateRequests, orders: np.ndarray) -> Worth:
    """True worth of slates (R, M) or (R, S, M), a part of the requests at a time."""
    parts = [
        world.worth(truth.take(slice(start, start + AT_ONCE)), orders[start : start + AT_ONCE])
        for start in range(0, len(orders), AT_ONCE)
    ]
    return Worth(*(np.concatenate(x) for x in zip(*parts, strict=True)))
