"""Suite `last`: does LAST pay, and by whose word? The judge is the market, never an evaluator.

"strong" and "weak": every method of re-ranking on the same requests, with evaluators that learned
from many exploring logs, or from few narrow ones. "gain" is against the one-shot slate, request by
request, and "recovered" the share of what the beam oracle has over the upstream order. Where the
truth picks among the greedy slate and eight draws, that is an upper bound of what a script gets
that picks by test labels.
"trust" says how far the evaluators are to be believed (correlations are across requests, one slate
of each) and what more pessimism does, on validation requests and on test's.
"s.e." and "standard errors" are over requests, given the trained models, all seeds' requests
together: how seeds differ is what the spread in brackets says.
"no context": sorting by the true pointwise logit is optimal there, so that nothing may beat it.
"""

from collections.abc import Callable
import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np

from ...zoo.rerank import last
from ...zoo.rerank.last import PRESETS, Chosen, TrainedGenerator, deltas
from ...zoo.rerank.rewards import Evaluators, judge_of
from ..cases import choose
from ..countdown import each_seed
from ..reranking import cost, drift, preferences, rivals, slates
from ..reranking.slates import (
    STRONG,
    WEAK,
    Asked,
    Method,
    Trained,
    parallel,
    serve,
    steps,
    worth_of,
)
from ..results import Row

METRICS = ["evaluator score", "true utility", "gain", "s.e.", "recovered", "slates"]

PESSIMISM = (0.0, 0.5, 1.0, 2.0, 3.0, 5.0)
BUDGET = 8 + 3  # Draws that cost as much as eight steps along a gradient: it takes about three.


@dataclasses.dataclass(frozen=True)
class Way:
    """A method, what it costs, and what tables call it.

    Attributes:
      name: of the method.
      run: `run(generator, by, batch, seeds) -> Chosen`.
      slates: decoded per request, the evaluated ones.
      depth: decodes, evaluations and derivatives that wait for each other.
    """

    name: str
    run: Method
    slates: int
    depth: int


@functools.cache
def draws(count: int) -> Method:
    """The best of the greedy slate and so many drawn ones."""
    return lambda made, by, batch, seeds: last.best_of(made, by, batch, count, seeds=seeds)


@functools.cache
def serial(rounds: int) -> Method:
    """LAST, serial."""
    return lambda made, by, batch, seeds: last.last_serial(made, by, batch, rounds=rounds)


@functools.cache
def anywhere(count: int) -> Method:
    """Steps of the same sizes along a random direction of the same norms."""
    config = last.Config(steps=last.both_signs(count))

    def run(made: TrainedGenerator, by: Evaluators, batch: Any, seeds: Any) -> Chosen:
        judge = judge_of(by, batch)
        encoded = made.module.encode(made.variables, made.config, batch)
        greedy = made.module.decode(made.variables, made.config, encoded).order
        way = last.direction(made, encoded, greedy, judge, batch, config)
        way = deltas.random_like(way, made.module.MOVED, seeds)
        return last.explore(made, encoded, greedy, way, judge, config)

    return run


@functools.cache
def alone(count: int) -> Method:
    """LAST, parallel, by the word of the first evaluator."""

    def run(made: TrainedGenerator, by: Evaluators, batch: Any, seeds: Any) -> Chosen:
        return steps(count)(made, by._replace(variables=by.variables[:1]), batch, seeds)

    return run


ONE_SHOT = Way("one-shot", steps(0), 1, 1)
LAST = Way("LAST, S = 8", steps(8), 9, 5)
EIGHT = Way("best of 8 draws", draws(8), 9, 2)
EQUAL = Way(f"best of {BUDGET} draws", draws(BUDGET), BUDGET + 1, 2)
RANDOM = Way("random direction, S = 8", anywhere(8), 9, 2)
ALONE = Way("LAST, one evaluator, S = 8", alone(8), 9, 5)
CAUTIOUS = Way("LAST, cautious, S = 8", parallel(PRESETS["cautious"]), 9, 5)
WAYS = (
    ONE_SHOT,
    EIGHT,
    EQUAL,
    RANDOM,
    Way("LAST, official steps", parallel(PRESETS["official"]), 5, 5),
    LAST,
    Way("LAST, S = 8, drawn", steps(8, sample=True), 9, 5),
    Way("LAST, S = 8, parameters", steps(8, delta="parameters"), 9, 5),
    Way("LAST, serial, T = 8", serial(8), 9, 26),
    Way("best of 32 draws", draws(32), 33, 2),
    Way("LAST, S = 32", steps(32), 33, 5),
    ALONE,
    Way("LAST, one evaluator, S = 32", alone(32), 33, 5),
    CAUTIOUS,
    Way("LAST, cautious, S = 32", steps(32, pessimism=1.0), 33, 5),
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A part of the suite by name, and its picture: `draw(axes, name, rows)`."""

    name: str
    run: Callable[[str, int], list[Row]]
    draw: Callable[[Any, str, list[Row]], None]


def run(only: list[str] | None = None, seeds: int = 3) -> list[Row]:
    """Cases by name (all of them by default), with seeds 0, 1, ..."""
    if seeds < 1:
        raise ValueError(f"--seeds must be >= 1, got {seeds}.")
    return [row for case in choose(CASES, only) for row in case.run(case.name, seeds)]


def methods(regime: slates.Regime) -> Callable[[str, int], list[Row]]:
    """A case: every method, judged by the truth."""

    def run(name: str, seeds: int) -> list[Row]:
        found = []
        for seed in each_seed(name, seeds):
            found.append(_judged(slates.train(regime, seed), seed))
        return _rows(name, found)

    return run


@dataclasses.dataclass
class _Judged:
    """True clicks of methods on the requests of one seed: {method: (R,)}, and facts of the seed."""

    utility: dict[str, np.ndarray]
    figures: dict[str, dict[str, float]]
    facts: dict[str, dict[str, float]]


def _judged(trained: Trained, seed: int) -> _Judged:
    world, ask = trained.world, trained.test
    utility: dict[str, np.ndarray] = {}
    figures: dict[str, dict[str, float]] = {}
    score = _scores(trained, ask, seed)

    def add(name: str, order: np.ndarray, **more: float) -> None:
        worth = worth_of(world, ask.truth, order)
        utility[name] = worth.clicks
        figures[name] = {
            "evaluator score": float(score(order).mean()),
            "true utility": float(worth.clicks.mean()),
            "purchases": float(worth.purchases.mean()),
            **{f"ndcg@{k}": _ndcg(world.attraction(ask.truth), order, k) for k in (1, 3, 5, 10)},
            **more,
        }

    add("upstream order", world.upstream(ask.truth))
    add("pointwise sort by the truth", world.pointwise(ask.truth))
    add("beam oracle", world.beam_oracle(ask.truth))
    for way in WAYS:
        chosen = serve(way.run, trained.generator, trained.by, ask, seed)
        kinds = np.mean([len(np.unique(tried, axis=0)) for tried in chosen.tried])
        cost = {"slates": way.slates, "depth": way.depth, "distinct slates": float(kinds)}
        said = chosen.score.mean(axis=-1)
        cost["own score"] = float(said[np.arange(len(said)), chosen.best].mean())
        add(way.name, chosen.order, **cost)
        if way is EIGHT:
            worth = worth_of(world, ask.truth, chosen.tried).clicks
            best = np.take_along_axis(chosen.tried, worth.argmax(1)[:, None, None], 1)[:, 0]
            add("the same 8, the truth picks", best, **cost)
        print(f"  {way.name}: {utility[way.name].mean():.4f}", flush=True)
    base, top = utility["upstream order"].mean(), utility["beam oracle"].mean()
    for name, mine in utility.items():
        gain = mine - utility[ONE_SHOT.name]
        figures[name] |= {
            "gain": float(gain.mean()),
            "s.e.": float(gain.std() / np.sqrt(len(gain))),
            "recovered": float((mine.mean() - base) / (top - base)),
            "win rate": float((gain > 0).mean()),
            "loss rate": float((gain < 0).mean()),
        }
    return _Judged(utility, figures, _bias(trained, seed, score))


def _scores(trained: Trained, ask: Asked, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    """Of slates (R, M): what the mean of the evaluators says."""

    def score(order: np.ndarray) -> np.ndarray:
        given = ask._replace(batch={**ask.batch, "slate": {"order": order.astype(np.int32)}})
        return serve(_opinion, trained.generator, trained.by, given, seed)

    return score


def _opinion(made: TrainedGenerator, by: Evaluators, batch: Any, seeds: Any) -> Any:
    """Mean score of the evaluators for the slates that the batch brings."""
    del made, seeds
    order = batch["slate"]["order"][:, None]
    return judge_of(by, batch)(order)[:, 0].sum(axis=1).mean(axis=-1)


def _bias(trained: Trained, seed: int, score: Any) -> dict[str, dict[str, float]]:
    """Trust in the evaluators: correlations, and the best of ever more draws."""
    world, ask = trained.world, trained.test
    rng = np.random.default_rng([seed, 10])
    found: dict[str, dict[str, float]] = {}

    def correlation(name: str, order: np.ndarray) -> None:
        true, said = worth_of(world, ask.truth, order).clicks, score(order)
        slope = float(np.polyfit(said, true, 1)[0])
        found[name] = {
            "correlation": float(np.corrcoef(true, said)[0, 1]),
            "slope": slope,
            "said": float(said.mean()),
            "true utility": float(true.mean()),
        }

    exploring = world.plackett_luce(rng, ask.truth, 0.5)
    correlation("exploring logs", exploring)
    correlation("narrow logs", world.plackett_luce(rng, ask.truth, 1.5))
    shown = lambda way: serve(way.run, trained.generator, trained.by, ask, seed).order
    correlation("one-shot slates", shown(ONE_SHOT))
    correlation("winners of LAST", shown(LAST))
    drawn = serve(draws(128), trained.generator, trained.by, ask, seed)
    said = drawn.score.mean(axis=-1)[:, 1:]
    true = worth_of(world, ask.truth, drawn.tried[:, 1:]).clicks
    for count in 2 ** np.arange(8):
        best = said[:, :count].argmax(axis=1)[:, None]
        found[f"best of {count}"] = {
            "said": float(np.take_along_axis(said, best, 1).mean()),
            "true utility": float(np.take_along_axis(true, best, 1).mean()),
        }
    return found | _pessimism(trained, seed)


def _pessimism(trained: Trained, seed: int) -> dict[str, dict[str, float]]:
    """Gain over the one-shot slate by ever more cautious choices."""
    world = trained.world
    found: dict[str, dict[str, float]] = {}
    for part, ask in (("validation", trained.validation), ("test", trained.test)):
        for count in (8, 32):
            tried = serve(steps(count), trained.generator, trained.by, ask, seed)
            true = worth_of(world, ask.truth, tried.tried).clicks
            for pessimism in PESSIMISM:
                best = np.asarray(last.most_gained(tried.score, pessimism))[:, None]
                gain = np.take_along_axis(true, best, 1)[:, 0] - true[:, 0]
                found[f"S = {count}, pessimism {pessimism:g}, {part}"] = {
                    "gain": float(gain.mean()),
                    "s.e.": float(gain.std() / np.sqrt(len(gain))),
                }
    return found


def _rows(name: str, found: list[_Judged]) -> list[Row]:
    rows = [
        Row.of(name, method, metric, [one.figures[method][metric] for one in found])
        for method, figures in found[0].figures.items()
        for metric in figures
    ]
    for one, other in (
        (LAST, EQUAL),
        (LAST, RANDOM),
        (LAST, ONE_SHOT),
        (ALONE, ONE_SHOT),
        (CAUTIOUS, ONE_SHOT),
    ):
        differences = [x.utility[one.name] - x.utility[other.name] for x in found]
        method = f"{one.name}, against {other.name}"
        all_of_them = np.concatenate(differences)
        error = all_of_them.std() / np.sqrt(len(all_of_them))
        rows.append(Row.of(name, method, "difference", [x.mean() for x in differences]))
        ratio = all_of_them.mean() / error if error else 0.0
        rows.append(Row.of(name, method, "standard errors", [ratio]))
    rows += [
        Row.of(f"{name}, trust", method, metric, [one.facts[method][metric] for one in found])
        for method, figures in found[0].facts.items()
        for metric in figures
    ]
    return rows


def _ndcg(attraction: np.ndarray, order: np.ndarray, k: int) -> float:
    """NDCG@k of slates, graded by how attractive each candidate is by itself."""
    discount = 1 / np.log2(np.arange(2, k + 2))
    gains = 2**attraction - 1
    mine = np.take_along_axis(gains, order, axis=1)[:, :k]
    best = -np.sort(-gains, axis=1)[:, :k]
    return float(((mine @ discount) / (best @ discount)).mean())


def draw(rows: list[Row], path: Path) -> None:
    """A picture of every case, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    there = {row.case for row in rows}
    shown = [case for case in CASES if case.name in there]
    figure = Figure(figsize=(5 * len(shown), 4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, case in zip(panels, shown, strict=True):
        case.draw(axes, case.name, rows)
    aside = path.with_name("partial-" + path.name)
    figure.savefig(aside, dpi=120)
    aside.rename(path)


def _draw_trust(axes: Any, case: str, rows: list[Row]) -> None:
    """Evaluators' score of the best of ever more draws, and its true worth."""
    case = f"{case}, trust"
    found = {(row.method, row.metric): row.value for row in rows if row.case == case}
    counts = [2**k for k in range(8)]
    for metric in ("said", "true utility"):
        values = [found[f"best of {count}", metric] for count in counts]
        axes.plot(counts, values, "o-", label=metric)
    axes.set(xscale="log", xlabel="draws", ylabel="clicks per slate", title=case)
    axes.legend()


_NO_CONTEXT = dataclasses.replace(STRONG, preset="no_context", logs=100_000, steps=500)
CASES = (
    Case("strong", methods(STRONG), _draw_trust),
    Case("weak", methods(WEAK), _draw_trust),
    Case("no context", methods(_NO_CONTEXT), _draw_trust),
    Case("rivals", rivals.rivals, rivals.draw),
    Case("preferences", preferences.preferences, preferences.draw),
    Case("drift", drift.drift, drift.draw),
    Case("cost", cost.cost, cost.draw),
)
