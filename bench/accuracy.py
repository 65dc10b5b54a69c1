"""Suite `accuracy`: every model on every source at hand, three seeds, frozen defaults.

Real data are used where `RECJAX_DATA` (default: `../shared/data`) holds them. A case whose name
says "control" is a world in which the richer model must not win.
"""

import dataclasses
import os
from pathlib import Path
import tempfile
from typing import Any

import numpy as np

from ..train import launch, metrics
from ..train.data.sources import open_source
from .results import Row

SEEDS = (0, 1, 2)
MODELS = ("mlp", "din")
METRICS = ("auc", "gauc", "logloss")


@dataclasses.dataclass(frozen=True)
class Case:
    """A source and how it is trained on; no settings means the defaults."""

    name: str
    source: str
    settings: tuple[tuple[str, Any], ...] = ()


def cases() -> list[Case]:
    """The built-in worlds, and the real data that are there."""
    one_pass = (("epochs", 1),)
    found = [
        Case("market", "market:standard", one_pass),
        Case("market, control", "market:single_taste", one_pass),
    ]
    data = Path(os.environ.get("RECJAX_DATA", "../shared/data"))
    beauty = data / "amazon-beauty" / "interactions.csv.gz"
    if beauty.is_file():
        found.append(Case("Amazon Beauty", f"events:{beauty}"))
    if (data / "ml-100k" / "u.data").is_file():
        found.append(Case("MovieLens 100K", f"movielens:{data / 'ml-100k'}"))
    return found


def run(seeds: tuple[int, ...] = SEEDS) -> list[Row]:
    """Trains every model on every case; rows of AUC, GAUC, logloss and examples per second."""
    rows: list[Row] = []
    for case in cases():
        rows += case_rows(case, seeds)
    return rows


def case_rows(case: Case, seeds: tuple[int, ...]) -> list[Row]:
    """The rows of one case, the truth's own AUC among them where the source knows it."""
    rows = truth_rows(case)
    for model in MODELS:
        results = [_train(model, case, seed) for seed in seeds]
        for metric in METRICS:
            values = [result["test"][metric] for result in results]
            rows.append(Row.of(case.name, model, metric, values))
        speed = [result["train"]["examples_per_second"] for result in results]
        rows.append(Row.of(case.name, model, "examples/s", speed, "1/s"))
    return rows


def truth_rows(case: Case) -> list[Row]:
    """How well the true click probabilities rank the test clicks: nobody can do better."""
    dataset = open_source(case.source)
    if "test" not in dataset.truth:
        return []
    truth, real = dataset.truth["test"]["click"], dataset.test.candidate >= 0
    label = dataset.test.label["click"]
    user = np.broadcast_to(dataset.test.user[:, None], real.shape)
    values = {
        "auc": metrics.auc(truth[real], label[real]),
        "gauc": metrics.gauc(truth[real], label[real], user[real]),
        "logloss": metrics.logloss(truth[real], label[real]),
    }
    return [Row.of(case.name, "the truth", name, [value]) for name, value in values.items()]


def _train(model: str, case: Case, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        settings = {**dict(case.settings), "seed": seed}
        _, results = launch.train(
            model, source=case.source, out=Path(folder) / "run", settings=settings
        )
    return results
