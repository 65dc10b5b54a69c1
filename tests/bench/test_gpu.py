"""Suite `gpu` where there is no GPU: all of it but the kernels, on small cases."""

import dataclasses
import json
import sys
import time

import jax
import numpy as np
import pytest

from recjax.bench import suites
from recjax.bench.gpu import kernels, models
from recjax.bench.reranking import cost
from recjax.bench.results import Row
from recjax.bench.suites import gpu
from recjax.kernels.dot_attention.cases import Case as Search
from recjax.kernels.pointer_decode.cases import Case as Lists
from recjax.kernels.target_attention.cases import Case as Attention
from recjax.train.settings import Settings

SIZES = {"name": "", "batch": 2, "candidates": 3, "length": 40, "width": 8}
SMALL = [
    kernels.Workload("attention", "target_attention", Attention(**SIZES, units=(6, 4))),
    kernels.Workload("search", "dot_attention", Search(**SIZES, intervals=5, interval_width=2)),
    kernels.Workload(
        "lists",
        "pointer_decode",
        Lists(name="", batch=2, candidates=5, slots=3, lanes=4, width=8, units=4),
    ),
]


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="there is a GPU")
def test_without_a_gpu_it_names_what_it_leaves_out(tmp_path, capsys):
    assert suites.run("gpu", tmp_path) is None
    said = capsys.readouterr().out
    for part in gpu.all_parts():
        assert f"{part.name}: left out\n" in said
    assert "cannot run here: it needs a GPU, and JAX sees cpu." in said
    assert "nothing is written" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("workload", SMALL, ids=lambda x: x.name)
def test_parity_of_what_is_right(workload):
    rows = kernels.parity(workload, kernels.OPS[workload.op].plain)
    assert {row.method for row in rows} == {"float32", "float32 by TF32", "bfloat16"}
    assert {row.metric for row in rows} == set(gpu.METRICS[-4:])
    assert not any(map(kernels.too_far, rows))


@pytest.mark.parametrize("factor", [1.5, np.nan])
def test_parity_of_what_is_wrong(factor, monkeypatch):
    right = kernels.OPS["dot_attention"]

    def run(*args, implementation):
        out = right.run(*args, implementation="chunked")
        return out * factor if implementation == "reference" else out

    monkeypatch.setitem(kernels.OPS, "dot_attention", dataclasses.replace(right, run=run))
    rows = kernels.parity(SMALL[1], "reference")
    assert all(map(kernels.too_far, rows))
    json.dumps([dataclasses.asdict(row) for row in rows], allow_nan=False)


def test_a_wrong_leaf_is_seen_whatever_the_others_are():
    right = [np.ones(3), np.ones(3), np.full(3, 100.0), np.full(3, 10.0)]
    for i in range(4):
        wrong = [x * (1.01 if i == j else 1.0) for j, x in enumerate(right)]
        for measure in (kernels.units_off, kernels.relative_error):
            assert kernels.worst_leaf(measure, wrong, right, 1e-3) > 1
            spoilt = [x * np.nan if i == j else x for j, x in enumerate(right)]
            assert kernels.worst_leaf(measure, spoilt, right, 1e-3) == kernels.FAR


def test_a_lost_tile_is_seen_though_no_number_is_far_off():
    right = np.random.default_rng(0).normal(size=10_000)
    wrong = right + 0.05 * np.random.default_rng(1).normal(size=10_000)
    rows = [
        Row.of("case", "bfloat16", metric, [measure(wrong, right, 2.0**-7)])
        for metric, measure in (
            ("units off", kernels.units_off),
            ("relative error", kernels.relative_error),
        )
    ]
    assert [kernels.too_far(row) for row in rows] == [False, True]


@pytest.mark.parametrize("workload", SMALL, ids=lambda x: x.name)
def test_times_and_rates(workload, capsys, monkeypatch):
    monkeypatch.setattr(kernels, "SECONDS_PER_REPEAT", 0.0)
    plain = kernels.OPS[workload.op].plain
    seconds = kernels.times(workload, ("triton", plain))
    assert not seconds["triton"] and "triton, forward: left out" in capsys.readouterr().out
    roof = kernels.roofline(side=64, numbers=1000)
    rows = kernels.rates(workload, plain, seconds[plain], roof)
    assert {row.metric for row in rows} == set(gpu.METRICS[:5])
    assert all(row.value > 0 for row in rows)
    assert kernels.rates(workload, "triton", seconds["triton"], roof) == []


@pytest.mark.parametrize(
    ("wanted", "values", "said"),
    [
        ({"a"}, [("a", 1.0)], "parity: all within limits"),
        ({"a"}, [("a", 99.0)], "parity: OFF: a, float32, units off"),
        ({"a", "b"}, [("a", 1.0)], "parity: not measured: b"),
        (set(), [], "parity: not asked for"),
    ],
)
def test_the_verdict_never_says_more_than_was_measured(wanted, values, said):
    rows = [Row.of(case, "float32", "units off", [value]) for case, value in values]
    assert gpu.verdict(wanted, rows) == said


def test_whole_models(monkeypatch):
    monkeypatch.setattr(models, "SETTINGS", Settings(batch_size=8, history=4))
    monkeypatch.setattr(models, "STEPS", 1)
    monkeypatch.setattr(models, "READY", 1)
    sizes = {"attention_units": (4,), "tower_units": (4,)}
    rows = models.din_training("din", sizes=sizes, items=100)
    assert {row.method for row in rows} == {"din", "din, the step alone"}
    # Compiling them is left to the suite `last`.
    taken = [*np.full(95, 0.01), *np.full(5, 0.05)]
    monkeypatch.setattr(cost, "seconds", lambda methods, requests: dict.fromkeys(methods, taken))
    rows += models.last_latency("last", requests=2)
    found = {(row.method, row.metric): row.value for row in rows}
    assert found["one-shot", "ms"] == pytest.approx(10)
    assert found["LAST, S = 32", "p99 ms"] == pytest.approx(50)
    assert found["LAST, S = 32", "requests/s"] == pytest.approx(200)
    assert {row.metric for row in rows} <= set(gpu.METRICS)


WORKER = """
import os, sys, time
for part in sys.argv[1:]:
    if part == "crash":
        os._exit(3)
    if part == "hang":
        time.sleep(60)
    if part == "silent":  # Says nothing more, does not end, and leaves a child that holds stdout.
        if os.fork() == 0:
            time.sleep(60)
        os.close(1)
        time.sleep(60)
    print("noise", flush=True)
    print('rows: [{"part": "%s"}]' % part, flush=True)
"""


def test_a_part_that_crashes_or_hangs_is_left_out(monkeypatch, capsys):
    real = gpu.subprocess.Popen

    def worker(command, **options):
        return real([sys.executable, "-c", WORKER, *command[3:]], **options)

    monkeypatch.setattr(gpu.subprocess, "Popen", worker)
    monkeypatch.setattr(gpu, "PART_S", 3)
    parts = ["one", "crash", "two", "hang", "silent", "torch: three"]
    started = time.monotonic()
    found = dict(gpu.in_processes(parts, started + 40))
    assert time.monotonic() - started < 30
    assert found == {part: [{"part": part}] for part in ("one", "two", "torch: three")}
    said = capsys.readouterr().out
    assert "crash: left out, its process ended with 3" in said
    assert "hang: left out, out of time" in said and "noise" in said
    assert "silent: left out" in said
    assert not dict(gpu.in_processes(["one"], time.monotonic()))
    assert "out of time: one left out" in capsys.readouterr().out


def test_a_part_that_fails_has_no_rows(capsys):
    def measure(part):
        if part == "bad":
            raise AssertionError
        return [Row.of(part, "x", "ms", [1.0])]

    gpu.main(["bad", "good"], measure)
    lines = capsys.readouterr().out.splitlines()
    assert "bad: AssertionError" in lines[0] and lines[1] == "rows: []"
    assert json.loads(lines[2].removeprefix("rows: "))[0]["case"] == "good"
