"""Suite `accuracy`: every model on every source at hand, three seeds, frozen defaults.

Real data are used where `RECJAX_DATA` (default: `../shared/data`) holds them. A case whose name
says "control" is a world in which the richer model must not win. Every training is a process of
its own, and the processes share the cores between them.
"""

from concurrent.futures import ThreadPoolExecutor
import dataclasses
import json
import os
from pathlib import Path
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np

from ..train import launch, metrics
from ..train.data.sources import open_source
from .results import Row

MODELS = ("mlp", "din")
METRICS = {"auc": "", "gauc": "", "logloss": "", "examples/s": "1/s"}


@dataclasses.dataclass(frozen=True)
class Case:
    """A source, and `--set` texts for what is not the default there, of the run or of a model."""

    name: str
    source: str
    overrides: tuple[str, ...] = ()
    of_model: tuple[tuple[str, str], ...] = ()


# Few passes over many impressions want larger steps, and one sum over histories of this length
# a mean. Chosen on the market's validation rounds; the unit is small to keep the demo short.
FEW_PASSES = (
    "epochs=2",
    "history=100",
    "batch_size=512",
    "table_learning_rate=0.03",
    "embedding_dropout=0.2",
)
OF_MODEL = (("mlp", "pooling=mean"), ("din", "attention_units=32,16"))
MARKET = Case("market", "market:standard", FEW_PASSES, OF_MODEL)
CONTROL = Case("market, control", "market:single_taste", FEW_PASSES, OF_MODEL)


def cases() -> list[Case]:
    """The built-in worlds, and the real data that are there."""
    found = [MARKET, CONTROL]
    data = Path(os.environ.get("RECJAX_DATA", "../shared/data"))
    beauty = data / "amazon-beauty" / "interactions.csv.gz"
    if beauty.is_file():
        found.append(Case("Amazon Beauty", f"events:{beauty}"))
    if (data / "ml-100k" / "u.data").is_file():
        found.append(Case("MovieLens 100K", f"movielens:{data / 'ml-100k'}"))
    return found


def run(only: list[str] | None = None, seeds: int = 3) -> list[Row]:
    """Cases by name (all of them by default), with seeds 0, 1, ..."""
    found = {case.name: case for case in cases()}
    unknown = sorted(set(only or ()) - found.keys())
    if unknown:
        raise ValueError(f"Unknown case {unknown[0]!r}; at hand are {', '.join(found)}.")
    if seeds < 1:
        raise ValueError(f"--seeds must be >= 1, got {seeds}.")
    return compare([found[name] for name in only or found], tuple(range(seeds)))


def compare(chosen: list[Case], seeds: tuple[int, ...]) -> list[Row]:
    """Trains every model on every case with every seed; rows by case and model.

    Where the source knows the truth, its own figures stand beside: nobody can do better.
    """
    # The slow model first: the short jobs then fill the gaps.
    jobs = [(c, model, seed) for model in reversed(MODELS) for seed in seeds for c in chosen]
    cores = sorted(os.sched_getaffinity(0))
    halves = [cores[: len(cores) // 2], cores[len(cores) // 2 :]] if len(cores) > 1 else [cores]
    free = list(halves)  # as many as there are threads, so a pop always finds one

    def work(job: tuple[Case, str, int]) -> dict[str, float]:
        mine = free.pop()
        try:
            return _in_process(*job, mine)
        finally:
            free.append(mine)

    with ThreadPoolExecutor(len(halves)) as pool:
        results = dict(zip(jobs, pool.map(work, jobs), strict=True))
    rows: list[Row] = []
    for case in chosen:
        rows += truth_rows(case)
        for model in MODELS:
            for metric, unit in METRICS.items():
                values = [results[case, model, seed][metric] for seed in seeds]
                rows.append(Row.of(case.name, model, metric, values, unit))
        if len(seeds) > 1:
            gain = [results[case, "din", s]["auc"] - results[case, "mlp", s]["auc"] for s in seeds]
            rows.append(Row.of(case.name, "din - mlp", "auc", gain))
    return rows


def truth_rows(case: Case) -> list[Row]:
    """How well the true click probabilities rank the test clicks."""
    if not case.source.startswith("market"):
        return []
    dataset = open_source(case.source)
    truth, real = dataset.truth["test"]["click"], dataset.test.candidate >= 0
    label = dataset.test.label["click"]
    user = np.broadcast_to(dataset.test.user[:, None], real.shape)
    values = {
        "auc": metrics.auc(truth[real], label[real]),
        "gauc": metrics.gauc(truth[real], label[real], user[real]),
        "logloss": metrics.logloss(truth[real], label[real]),
    }
    return [Row.of(case.name, "the truth", name, [value]) for name, value in values.items()]


def _in_process(case: Case, model: str, seed: int, cores: list[int]) -> dict[str, float]:
    overrides = [*case.overrides, *(text for name, text in case.of_model if name == model)]
    job = {"model": model, "source": case.source, "overrides": overrides}
    job |= {"seed": seed, "cores": cores}
    command = [sys.executable, "-m", f"{__package__}.accuracy", json.dumps(job)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _train(job: dict[str, Any]) -> dict[str, float]:
    """One training, in this process; what the suite wants to know of it."""
    os.sched_setaffinity(0, job["cores"])
    with tempfile.TemporaryDirectory() as folder:
        _, results = launch.train(
            job["model"],
            source=job["source"],
            out=Path(folder) / "run",
            settings={"seed": job["seed"]},
            overrides=job["overrides"],
        )
    test = {name: results["test"][name] for name in ("auc", "gauc", "logloss")}
    return {**test, "examples/s": results["train"]["examples_per_second"]}


if __name__ == "__main__":
    print(json.dumps(_train(json.loads(sys.argv[1]))))
