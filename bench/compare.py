"""Methods side by side: every training a process of its own, several seeds, medians and gains.

A case is a source and the methods that compete on it; suites are lists of cases. The processes
share the cores between them, so no speed is reported: suite `training` measures it. A case whose
name says "control" is a world in which the richer method must not win.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
import dataclasses
import functools
import os
from pathlib import Path
import tempfile
from typing import Any

import numpy as np

from ..train import launch
from ..train.data.dataset import Dataset
from ..train.data.sources import open_source
from ..train.evaluation import baselines, bootstrap, metrics
from ..train.evaluation.scoring import exchange_histories, predict
from ..train.inspection.hit_rates import hit_rates
from ..train.reading import prepared
from .countdown import Countdown
from .process import in_process
from .results import Row

BOUND, RARE, HIT_RATE = "auc, upper bound", "auc, rare items", "hit rate"
_RARE = 3

_Figures = dict[str, float]
_Outcome = dict[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Method:
    """A model and `--set` texts for what is not the default; `name` is what tables call it."""

    name: str
    model: str
    overrides: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Case:
    """A source, its methods, and the gains to report.

    Attributes:
      name: of the case.
      source: SOURCE.
      methods: what competes.
      overrides: `--set` texts of all methods.
      gains: (richer method, poorer method, metric): their difference, seed by seed.
      bounds: (reference, method): by how much the reference may be ahead in AUC, seed by seed; the
        upper end of a 95 % interval, by paired bootstrap over users.
      exchanged: also report AUC with others' histories.
      fitted: also report AUC on the training requests, on candidates that training shows at most
        three times, and the share of the test's lookups in the finest field that training shows.
    """

    name: str
    source: str
    methods: tuple[Method, ...]
    overrides: tuple[str, ...] = ()
    gains: tuple[tuple[str, str, str], ...] = ()
    bounds: tuple[tuple[str, str], ...] = ()
    exchanged: bool = True
    fitted: bool = False


def compare(
    cases: list[Case], seeds: int, *, kept: Mapping[tuple[str, str], Path] | None = None
) -> list[Row]:
    """Trains every method of every case with seeds 0, 1, ...; rows by case and method.

    What needs no training stands beside: the truth, where the source knows it (nobody can do
    better), and the rules that learned retrieval has to beat.

    Args:
      cases: what to train.
      seeds: how many.
      kept: folders for runs that are not to be thrown away, by case and method; seed 0.
    """
    if seeds < 1:
        raise ValueError(f"--seeds must be >= 1, got {seeds}.")
    # The slow methods, which stand last, first: the short jobs then fill the gaps.
    jobs = [
        (case, method, seed)
        for case in cases
        for method in reversed(case.methods)
        for seed in range(seeds)
    ]
    cores = sorted(os.sched_getaffinity(0))
    halves = [cores[: len(cores) // 2], cores[len(cores) // 2 :]] if len(cores) > 1 else [cores]
    countdown = Countdown(len(jobs), len(halves))
    free = list(halves)  # as many as there are threads, so a pop always finds one

    with tempfile.TemporaryDirectory() as place, ThreadPoolExecutor(len(halves)) as pool:
        scores = {job: Path(place) / f"{number}.npz" for number, job in enumerate(jobs)}

        def work(job: tuple[Case, Method, int]) -> _Outcome:
            mine = free.pop()
            try:
                of_bounds = scores[job] if job[0].bounds else None
                folder = (kept or {}).get((job[0].name, job[1].name)) if job[2] == 0 else None
                outcome = _in_process(*job, mine, of_bounds, folder)
                countdown.done()
                return outcome
            finally:
                free.append(mine)

        try:
            results = dict(zip(jobs, pool.map(work, jobs), strict=True))
        except BaseException:
            pool.shutdown(cancel_futures=True)  # Nobody waits hours for what will not be reported.
            raise
        bounds = {case: _bounds(case, scores, seeds) for case in cases}
    rows: list[Row] = []
    for case in cases:
        for name, beside in results[case, case.methods[0], 0]["beside"].items():
            rows += [Row.of(case.name, name, metric, [beside[metric]]) for metric in beside]
        found = {
            method.name: [results[case, method, seed]["figures"] for seed in range(seeds)]
            for method in case.methods
        }
        for method, values in found.items():
            for metric in values[0]:
                column = [value[metric] for value in values]
                rows.append(Row.of(case.name, method, metric, column))
        for richer, poorer, metric in case.gains:
            pairs = zip(found[richer], found[poorer], strict=True)
            gain = [mine[metric] - other[metric] for mine, other in pairs]
            rows.append(Row.of(case.name, f"{richer} - {poorer}", metric, gain))
        rows += bounds[case]
    return rows


def _bounds(case: Case, scores: dict[tuple[Case, Method, int], Path], seeds: int) -> list[Row]:
    """The rows of `case.bounds`, from the scores that the trainings left."""
    methods = {method.name: method for method in case.methods}
    rows = []
    for reference, other in case.bounds:
        ends = []
        for seed in range(seeds):
            left, right = (np.load(scores[case, methods[n], seed]) for n in (reference, other))
            interval = bootstrap.paired_bootstrap(
                left["score"], right["score"], left["label"], left["user"]
            )
            ends.append(interval[2])
        rows.append(Row.of(case.name, f"{reference} - {other}", BOUND, ends))
    return rows


def _in_process(
    case: Case,
    method: Method,
    seed: int,
    cores: list[int],
    scores: Path | None,
    kept: Path | None,
) -> _Outcome:
    overrides = [*case.overrides, *method.overrides]
    job: dict[str, Any] = {"model": method.model, "source": case.source, "overrides": overrides}
    job |= {"seed": seed, "cores": cores, "fitted": case.fitted, "exchanged": case.exchanged}
    job |= {"scores": scores and str(scores), "kept": kept and str(kept)}
    return in_process(train, job)


def train(job: dict[str, Any]) -> _Outcome:
    """One training, in this process: its test metrics and its speed, and what stands beside."""
    os.sched_setaffinity(0, job["cores"])
    dataset = open_source(job["source"])
    with tempfile.TemporaryDirectory() as place:
        folder, results = launch.train(
            job["model"],
            data=dataset,
            out=job["kept"] or Path(place) / "run",
            options={"seed": job["seed"], **launch.options_of(job["overrides"])},
        )
        figures = flat_metrics(results["test"])
        if "auc" in figures and job["exchanged"]:
            other = launch.evaluate_run(folder, data=dataset, change=exchange_histories)
            figures["auc with others' histories"] = flat_metrics(other["test"])["auc"]
        trained = launch.load_run(folder)
        if job["fitted"]:
            figures |= fitted(trained, dataset)
        if job["scores"]:
            _save_scores(Path(job["scores"]), trained, dataset)
        beside = {"the truth": truth_of(dataset)}
        if "recall@50" in figures:
            beside = rules_of(dataset, trained.saved.settings.history)
    return {"figures": figures, "beside": beside}


def fitted(trained: launch.Trained, dataset: Dataset) -> _Figures:
    """Fit of a run to its training requests, and to candidates that it rarely saw."""
    history = trained.saved.settings.history
    dataset = prepared(dataset, trained.saved.settings)
    task, found = dataset.schema.tasks[0], {}
    score = functools.partial(
        predict, trained.module, trained.config, trained.variables, dataset, history=history
    )
    if not dataset.samples_negatives:  # Positives alone have no AUC.
        real = dataset.train.candidate >= 0
        found["train auc"] = metrics.auc(
            score(dataset.train)[task][real], dataset.train.label[task][real]
        )
    real = dataset.test.candidate >= 0
    shown = dataset.train.candidate
    shown = np.bincount(shown[shown >= 0], minlength=dataset.log.num_items)
    rare = real & (shown[np.maximum(dataset.test.candidate, 0)] <= _RARE)
    label = dataset.test.label[task][rare]
    if len(np.unique(label)) == 2:
        found[RARE] = metrics.auc(score(dataset.test)[task][rare], label)
    candidates = [rate for rate in hit_rates(dataset, history=history) if rate.role != "history"]
    found[HIT_RATE] = min(rate.hit_rate for rate in candidates)
    return found


def _save_scores(path: Path, trained: launch.Trained, dataset: Dataset) -> None:
    """Score, label and user of every test candidate; of the first task."""
    dataset = prepared(dataset, trained.saved.settings)
    logits = predict(
        trained.module,
        trained.config,
        trained.variables,
        dataset,
        dataset.test,
        history=trained.saved.settings.history,
    )
    task, real = dataset.schema.tasks[0], dataset.test.candidate >= 0
    user = np.broadcast_to(dataset.test.user[:, None], real.shape)
    label = dataset.test.label[task]
    np.savez(path, score=logits[task][real], label=label[real], user=user[real])


def rules_of(dataset: Dataset, history: int) -> dict[str, _Figures]:
    """Metrics of rules of retrieval, by the newest `history` events."""
    found = {"popularity": baselines.evaluate_popularity(dataset, dataset.test)}
    if dataset.log.items.get("category") is not None:
        found["tags"] = baselines.evaluate_tags(dataset, dataset.test, history=history)
    return {name: flat_metrics(test) for name, test in found.items()}


def truth_of(dataset: Dataset) -> _Figures:
    """Metrics of the true click probabilities; empty where the source does not know them."""
    if not dataset.truth:
        return {}
    truth, real = dataset.truth["test"]["click"], dataset.test.candidate >= 0
    label = dataset.test.label["click"]
    user = np.broadcast_to(dataset.test.user[:, None], real.shape)
    return {
        "auc": metrics.auc(truth[real], label[real]),
        "gauc": metrics.gauc(truth[real], label[real], user[real]),
        "logloss": metrics.logloss(truth[real], label[real]),
    }


def flat_metrics(test: dict[str, Any]) -> _Figures:
    """The figures of a test block that tables show, the first task's without its name."""
    if "recall@50" in test:
        names = ("recall@20", "recall@50", "ndcg@50", "coverage@50")
        return {name: test[name] for name in names}
    blocks = {"": test} if "auc" in test else {f"{task} ": block for task, block in test.items()}
    first = next(iter(blocks))
    return {
        f"{'' if task == first else task}{name}": block[name]
        for task, block in blocks.items()
        for name in ("auc", "gauc", "logloss", "calibration_loss", "calibration_error")
        if block.get(name) is not None
    }
