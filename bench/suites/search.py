"""Suite `search`: how much do the frozen defaults leave on the table?

On each data set a small search by Optuna (extra `bench`; tree-structured Parzen estimator, the
defaults being its first trial) looks for better settings of DIN by validation AUC; then the winner
and the defaults are trained with seeds of their own and compared on the test set, which the search
never sees. On the smallest real data set "sensitivity" moves one setting at a time away from its
default, by validation AUC: how wrong may a setting be before it hurts?
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
import dataclasses
import importlib.util
import os
from pathlib import Path
import tempfile
from typing import Any

from ...train import launch
from ..cases import choose
from ..countdown import Countdown
from ..process import in_process
from ..results import Row
from .accuracy import real_sources

METRICS = ["auc", "validation auc", "validation auc - default's"]
TRIALS = 12
MODEL = "din"
# The search's space: (low, high) on a logarithmic scale, or choices.
RATES = {"table_learning_rate": (5e-4, 5e-2), "learning_rate": (5e-4, 1e-2)}
CHOICES: dict[str, tuple[Any, ...]] = {
    "embedding_dropout": (0.0, 0.15, 0.3, 0.5),
    "normalize": ("none", "softmax"),
    "batch_size": (0, 512, 2048, 8192),
    "product": (False, True),
}
FACTORS = (0.1, 0.3, 3.0, 10.0)

_Overrides = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Case:
    """A source that is searched; with `sensitivity`, one setting at a time as well."""

    name: str
    source: str
    sensitivity: bool = False


def cases() -> list[Case]:
    """Two built-in worlds, and the real data that are there."""
    found = [Case("market", "market:evolving"), Case("market, one taste", "market:single_taste")]
    real = real_sources()
    smallest = "MovieLens 100K"
    names = [name for name in ("Amazon Beauty", smallest) if name in real]
    return found + [Case(name, real[name], sensitivity=name == smallest) for name in names]


def run(only: list[str] | None = None, seeds: int = 3) -> list[Row]:
    """Cases by name (all of them by default), judged with seeds 1, 2, ...; 0 is the search's."""
    if seeds < 1:
        raise ValueError(f"--seeds must be >= 1, got {seeds}.")
    chosen = choose(cases(), only)
    if importlib.util.find_spec("optuna") is None:
        raise ValueError("Suite 'search' needs optuna (extra `bench`).")
    cores = sorted(os.sched_getaffinity(0))
    rows = []
    with ThreadPoolExecutor(len(cores)) as pool:
        moves = len(_moves()) if any(case.sensitivity for case in chosen) else 0
        count = len(chosen) * (TRIALS + 2 * seeds) + moves
        train = _Trainings(cores, Countdown(count, len(cores)))
        for case in chosen:
            best, searched = _search(case, train, pool)
            rows.append(Row.of(case.name, "defaults", "validation auc", [searched[0]]))
            rows.append(Row.of(case.name, _winner(best), "validation auc", [max(searched)]))
            rows += _judge(case, best, train, pool, seeds)
            if case.sensitivity:
                rows += _sensitivity(case, searched[0], train, pool)
    return rows


def _search(
    case: Case, train: "_Trainings", pool: ThreadPoolExecutor
) -> tuple[_Overrides, list[float]]:
    """The best settings of the trials, and every trial's validation AUC, the defaults' first."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    values = [train(case.source, {}, 0)["validation"]]
    study.add_trial(
        optuna.trial.create_trial(
            params=_defaults(),
            distributions=_distributions(),
            value=values[0],
        )
    )
    overrides: list[_Overrides] = [{}]
    while len(values) < TRIALS:
        few = min(train.width, TRIALS - len(values))
        trials = [study.ask(_distributions()) for _ in range(few)]
        found = pool.map(lambda trial: train(case.source, trial.params, 0)["validation"], trials)
        for trial, value in zip(trials, found, strict=True):
            study.tell(trial, value)
            values.append(value)
            overrides.append(trial.params)
    return overrides[values.index(max(values))], values


def _distributions() -> dict[str, Any]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    rates = {name: FloatDistribution(*ends, log=True) for name, ends in RATES.items()}
    return {**rates, **{name: CategoricalDistribution(of) for name, of in CHOICES.items()}}


def _defaults() -> dict[str, Any]:
    """The defaults as a point of the space."""
    from ...train import defaults
    from ...zoo.features import Field, Schema, Table

    fields = tuple(Field(name="item", role=role) for role in ("history", "candidate"))
    schema = Schema(tables=(Table(name="item", rows=3, dim=1),), fields=fields)
    config, settings = defaults.model_config(MODEL, schema), defaults.settings(MODEL)
    of = lambda name: getattr(config if hasattr(config, name) else settings, name)
    return {name: of(name) for name in (*RATES, *CHOICES)}


def _winner(best: _Overrides) -> str:
    """Name of the best settings in tables: those that are not the defaults."""
    default = _defaults()
    changes = [
        f"{name} {value:.2g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in best.items()
        if value != default[name]
    ]
    return f"searched: {', '.join(changes).replace('_', ' ') or 'nothing better'}"


def _judge(
    case: Case, best: _Overrides, train: "_Trainings", pool: ThreadPoolExecutor, seeds: int
) -> list[Row]:
    """Defaults and winner on the test set, and their difference seed by seed."""
    jobs = [({}, seed) for seed in range(1, seeds + 1)]
    jobs += [(best, seed) for _, seed in jobs if best]
    found = list(pool.map(lambda job: train(case.source, *job)["test"], jobs))
    mine, other = found[:seeds], found[-seeds:]
    gain = [a - b for a, b in zip(mine, other, strict=True)]
    shown = {"defaults": mine, _winner(best): other, "defaults - searched": gain}
    return [Row.of(case.name, method, "auc", values) for method, values in shown.items()]


def _sensitivity(
    case: Case, default: float, train: "_Trainings", pool: ThreadPoolExecutor
) -> list[Row]:
    """One setting at a time; the change of validation AUC."""
    moves = _moves()
    found = pool.map(lambda move: train(case.source, {move[0]: move[1]}, 0)["validation"], moves)
    return [
        Row.of(case.name, f"{name} {how}", "validation auc - default's", [value - default])
        for (name, _, how), value in zip(moves, found, strict=True)
    ]


def _moves() -> list[tuple[str, Any, str]]:
    """Every setting moved away from its default: its name, its value, and how it moved."""
    start = _defaults()
    moves: list[tuple[str, Any, str]]
    moves = [(name, factor * start[name], f"x {factor:g}") for name in RATES for factor in FACTORS]
    return moves + [
        (name, value, f"= {value}")
        for name, choices in CHOICES.items()
        for value in choices
        if value != start[name]
    ]


class _Trainings:
    """Trains (source, overrides, seed) in processes of a core each; AUC of validation and test."""

    def __init__(self, cores: Iterable[int], countdown: Countdown):
        self._free, self._countdown = list(cores), countdown
        self.width = len(self._free)

    def __call__(self, source: str, overrides: _Overrides, seed: int) -> dict[str, float]:
        core = self._free.pop()
        try:
            texts = [f"{name}={value}" for name, value in overrides.items()]
            job = {"source": source, "overrides": texts, "seed": seed, "core": core}
            found = in_process(train, job)
            self._countdown.done()
            return found
        finally:
            self._free.append(core)


def train(job: dict[str, Any]) -> dict[str, float]:
    """One training, in this process."""
    os.sched_setaffinity(0, [job["core"]])
    with tempfile.TemporaryDirectory() as place:
        _, results = launch.train(
            MODEL,
            data=job["source"],
            out=Path(place) / "run",
            options={"seed": job["seed"], **launch.options_of(job["overrides"])},
        )
    return {split: first_auc(results[split]) for split in ("validation", "test")}


def first_auc(block: dict[str, Any]) -> float:
    """The AUC of a block of metrics, or of its first task's."""
    return block["auc"] if "auc" in block else next(iter(block.values()))["auc"]


def draw(rows: list[Row], path: Path) -> None:
    """Change of validation AUC against the factor of each rate, one panel per data set.

    Without a case that has `sensitivity` there is no picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    moved = [row for row in rows if row.metric == METRICS[-1]]
    if not moved:
        return
    names = list(dict.fromkeys(row.case for row in moved))
    figure = Figure(figsize=(4 * len(names), 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(names), squeeze=False, sharey="row")
    for (above, below), name in zip(axes.T, names, strict=True):
        of = {row.method: row.value for row in moved if row.case == name}
        for rate in RATES:
            points = [(f, of.get(f"{rate} x {f:g}", 0.0)) for f in sorted((1.0, *FACTORS))]
            above.plot(*zip(*points, strict=True), "o-", label=rate.replace("_", " "))
        above.set(xscale="log", xlabel="factor of the default", title=name)
        bars = {method: value for method, value in of.items() if " = " in method}
        below.barh([method.replace("_", " ") for method in bars], list(bars.values()))
        below.axvline(0.0, color="black", linewidth=0.8)
    axes[0, 0].set_ylabel("change of validation AUC")
    axes[0, 0].legend()
    figure.savefig(path, dpi=110)
