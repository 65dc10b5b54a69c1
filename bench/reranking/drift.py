"""Case `drift` of the suite `last`: a market that jumps, and four ways to live with it.

Evaluators and generator learned before the jump. From then on, hour by hour: the stale generator;
stale with LAST; online learning, where evaluators learn from the feedback of what was served and
the generator from the newer evaluators; online with LAST. Feedback takes `DELAY` hours, so that in
the first hours nobody has any. The judge is the market.
"""

from collections.abc import Iterator
import dataclasses
import itertools
from typing import Any, NamedTuple

import jax
import numpy as np

from ...train.data.batches.assembly import pulled_batch, whole_batch
from ...train.data.batches.requests import fill_up
from ...train.data.dataset import Dataset
from ...train.data.event_log import Requests
from ...train.data.market import slate_log
from ...train.data.market.slates import SLATES, SlateRequests, SlateWorld
from ...train.rerank import Actor
from ...train.settings import Settings
from ...train.step import initial_state, make_step
from ...zoo.rerank import evaluator
from ...zoo.rerank.last import TrainedGenerator
from ...zoo.rerank.rewards import Evaluators
from ..countdown import each_seed
from ..results import Row
from . import slates
from .slates import ONCE, Asked, Regime, serve

HOURS, EACH, DELAY = 48, 3, 6
PER_DAY = 4000
REGIME = Regime(preset="drift", logs=100_000, evaluators=2, settings=ONCE, steps=600)
WAYS = STALE, WITH_LAST, ONLINE, BOTH = "stale", "stale + LAST", "online", "online + LAST"
_AT_ONCE, _PASSES, _ACTOR_STEPS = 128, 3, 8
_LEARNING = Settings(schedule="constant", learning_rate=1e-3, table_learning_rate=5e-3)


class Hour(NamedTuple):
    """Requests of a few hours, from `start` hours after the jump."""

    start: int
    truth: SlateRequests


def drift(name: str, seeds: int) -> list[Row]:
    """Curves over simulated hours, and what LAST gained before any feedback."""
    found = []
    for seed in each_seed(name, seeds):
        found.append(_lived(seed))
    rows = []
    for hour in found[0]:
        stale = np.concatenate([one[hour][STALE] for one in found])
        for way in WAYS:
            worth = np.concatenate([one[hour][way] for one in found])
            rows.append(_interval(name, f"{way}, hour {hour}", "clicks per slate", worth))
            if way != STALE:
                rows.append(_interval(name, f"{way}, hour {hour}", "above stale", worth - stale))
    for what, hours in (
        ("before any feedback", [hour for hour in found[0] if hour < EACH + DELAY]),
        ("the second day", [hour for hour in found[0] if hour >= 24]),
    ):
        for way in WAYS[1:]:
            pairs = [(one[hour][way], one[hour][STALE]) for one in found for hour in hours]
            gain = np.concatenate([mine - theirs for mine, theirs in pairs])
            error = gain.std() / np.sqrt(len(gain))
            rows.append(_interval(name, f"{way}, {what}", "gain over stale", gain))
            ratio = float(gain.mean() / error) if error else 0.0
            rows.append(Row.of(name, f"{way}, {what}", "in standard errors", [ratio]))
    return rows


def draw(axes: Any, case: str, rows: list[Row]) -> None:
    """Picture of each way's gain over the stale generator, hour by hour, with its intervals."""
    for number, way in enumerate(WAYS[1:]):
        found = {
            int(row.method.rpartition(" ")[2]): row
            for row in rows
            if row.case == case
            and row.metric == "above stale"
            and row.method.startswith(f"{way}, hour ")
        }
        hours = sorted(found)
        low, high = ([getattr(found[h], end) for h in hours] for end in ("low", "high"))
        axes.plot(hours, [found[h].value for h in hours], color=f"C{number}", label=way)
        axes.fill_between(hours, low, high, color=f"C{number}", alpha=0.2)
    axes.axhline(0, color="gray", linewidth=0.8)
    axes.axvline(EACH + DELAY, color="gray", linestyle=":")
    axes.set(xlabel="hours since the jump", ylabel="clicks per slate above stale", title=case)
    axes.legend()


def _interval(case: str, method: str, metric: str, values: np.ndarray) -> Row:
    """The mean and its 95 % interval over requests, given the trained models."""
    mean, error = float(values.mean()), float(values.std() / np.sqrt(len(values)))
    return Row(case, method, metric, mean, "", mean - 1.96 * error, mean + 1.96 * error)


def _lived(seed: int) -> dict[int, dict[str, np.ndarray]]:
    """{hour: {method: true clicks of each request}}."""
    world = SlateWorld(SLATES[REGIME.preset], seed)
    data, by = slates.train_evaluators(world, REGIME, seed)
    made = slates.train_pointer(world, data, by, steps=REGIME.steps, seed=seed)
    learners = {way: _Learner(world, data, by, made, seed) for way in (ONLINE, BOTH)}
    found: dict[int, dict[str, np.ndarray]] = {}
    for hour in _hours(world, seed):
        asked = _asked(world, data, hour.truth)
        served = {
            STALE: _serve(made, by, asked, seed, steps=0),
            WITH_LAST: _serve(made, by, asked, seed, steps=8),
        }
        for way, learner in learners.items():
            learner.hear(hour.start)
            order = _serve(
                learner.generator, learner.by, asked, seed, steps=8 if way == BOTH else 0
            )
            served[way] = order
            learner.show(hour, order)
        found[hour.start] = {
            way: slates.worth_of(world, hour.truth, order).clicks for way, order in served.items()
        }
        means = ", ".join(f"{way} {x.mean():.3f}" for way, x in found[hour.start].items())
        print(f"  hour {hour.start}: {means}", flush=True)
    return found


def _hours(world: SlateWorld, seed: int) -> list[Hour]:
    """The requests after the jump, in order of time."""
    rng = np.random.default_rng([world.world.seed, seed, 11])
    first, found = world.preset.market.starts[2], []
    for day in range(HOURS // 24):
        truth = world.requests(rng, PER_DAY, range(first + day, first + day + 1))
        for start in range(0, 24, EACH):
            mine = np.flatnonzero((truth.hour >= start) & (truth.hour < start + EACH))
            found.append(Hour(24 * day + start, truth.take(mine)))
    return found


def _asked(world: SlateWorld, data: Dataset, truth: SlateRequests) -> Asked:
    """Filled up to whole parts, so that one shape is compiled."""
    requests = slate_log.to_requests(world, truth, data.row_maps)
    full = fill_up(requests, -(-len(requests) // slates.AT_ONCE) * slates.AT_ONCE)
    return Asked(truth, requests, whole_batch(data.schema, data.log, full, history=1))


def _serve(
    made: TrainedGenerator, by: Evaluators, asked: Asked, seed: int, *, steps: int
) -> np.ndarray:
    return serve(slates.steps(steps), made, by, asked, seed).order[: len(asked.truth)]


@dataclasses.dataclass
class _Waiting:
    """Feedback on its way."""

    arrives: int
    slates: Requests
    asked: Requests


class _Learner:
    """Evaluators and a generator that learn from what they served."""

    def __init__(
        self, world: SlateWorld, data: Dataset, by: Evaluators, made: TrainedGenerator, seed: int
    ):
        self._world, self._data, self._by, self._made = world, data, by, made
        self._rng = np.random.default_rng([seed, 12])
        settings = dataclasses.replace(_LEARNING, seed=seed)
        self._states = [
            initial_state(evaluator, by.config, settings, {}, start) for start in by.variables
        ]
        step = make_step(evaluator, by.config, settings, total_steps=0)
        self._step = jax.jit(step, donate_argnums=0)
        self._actor = Actor(made.config, data.log, by, settings, start=made.variables)
        self._waiting: list[_Waiting] = []

    @property
    def by(self) -> Evaluators:
        """The newest evaluators."""
        return self._by._replace(variables=[state.variables for state in self._states])

    @property
    def generator(self) -> TrainedGenerator:
        """The newest generator."""
        return self._made._replace(variables=self._actor.variables)

    def show(self, hour: Hour, order: np.ndarray) -> None:
        """Slates go out; what users do with them will be known later."""
        feedback = self._world.feedback(self._rng, hour.truth, order)
        shown = slate_log.to_requests(self._world, hour.truth, self._data.row_maps, order=order)
        shown.label["click"] = feedback.clicked.astype(np.float32)
        bought = feedback.bought & (feedback.delay <= DELAY)
        shown.label["purchase"] = bought.astype(np.float32)
        asked = slate_log.to_requests(self._world, hour.truth, self._data.row_maps)
        self._waiting.append(_Waiting(hour.start + EACH + DELAY, shown, asked))

    def hear(self, now: int) -> None:
        """Learns from what has arrived: evaluators from feedback, the generator from them."""
        arrived = [one for one in self._waiting if one.arrives <= now]
        self._waiting = [one for one in self._waiting if one.arrives > now]
        for one in arrived:
            for member in range(len(self._states)):
                for _ in range(_PASSES):
                    for part in self._parts(one.slates):
                        self._states[member] = self._learned(self._states[member], part)
            newest = self.by.variables
            for part in itertools.islice(self._parts(one.asked), _ACTOR_STEPS):
                self._actor.learn(part, newest)

    def _parts(self, requests: Requests) -> Iterator[Requests]:
        order = self._rng.permutation(len(requests))
        for start in range(0, len(order), _AT_ONCE):
            yield fill_up(requests.take(order[start : start + _AT_ONCE]), _AT_ONCE)

    def _learned(self, state: Any, part: Requests) -> Any:
        batch, pulled = pulled_batch(self._data.schema, self._data.log, part, history=1)
        return self._step(state, batch, pulled)[0]
