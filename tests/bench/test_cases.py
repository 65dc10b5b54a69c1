"""The suites that train: their cases name real models, options, sources and methods."""

import time

import pytest

from recjax.bench import compare as compare_module
from recjax.bench.cases import choose
from recjax.bench.compare import (
    BOUND,
    Case,
    Method,
    compare,
    flat_metrics,
    rules_of,
)
from recjax.bench.suites import accuracy, fields, worlds
from recjax.train.data.market import PRESETS, planted
from recjax.train.data.sources import open_source
from recjax.train.settings import Settings
from recjax.zoo import MODELS

SUITES = (accuracy, worlds, fields)
CASES = [case for suite in SUITES for case in suite.cases()]


def test_names_are_distinct():
    for suite in SUITES:
        names = [case.name for case in suite.cases()]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_case_names_what_exists(case):
    kind, _, preset = case.source.partition(":")
    assert kind != "market" or preset in PRESETS
    assert kind != "planted" or preset in planted.PRESETS
    for method in case.methods:
        options = {*MODELS[method.model].Config.__dataclass_fields__} - {"schema"}
        known = options | {*Settings.__dataclass_fields__}
        assert {text.partition("=")[0] for text in (*case.overrides, *method.overrides)} <= known
    names = {method.name for method in case.methods}
    for richer, poorer, _ in case.gains:
        assert {richer, poorer} <= names
    for pair in case.bounds:
        assert {*pair} <= names


def test_every_world_comes_with_its_control():
    names = [case.name for case in worlds.cases()]
    assert {f"{name}, control" for name in names if "control" not in name} <= set(names)


def test_only_known_cases_are_chosen():
    cases = accuracy.cases()
    assert [case.name for case in choose(cases, ["market"])] == ["market"]
    assert choose(cases, None) == cases
    with pytest.raises(ValueError, match="Unknown case 'markt'; at hand are market"):
        choose(cases, ["markt"])


def test_figures_of_a_block():
    block = {"auc": 0.7, "gauc": None, "logloss": 0.3, "by": {}}
    assert flat_metrics(block) == {"auc": 0.7, "logloss": 0.3}
    both = {"click": block, "conversion": {**block, "auc": 0.6}}
    assert flat_metrics(both)["conversion auc"] == 0.6
    assert flat_metrics(both)["auc"] == 0.7
    found = {"recall@20": 0.1, "recall@50": 0.2, "ndcg@50": 0.3, "coverage@50": 0.4, "requests": 5}
    assert flat_metrics(found) == {k: v for k, v in found.items() if k != "requests"}


def test_rules_stand_beside_learned_retrieval():
    rules = rules_of(open_source("market:tiny"), 10)
    assert set(rules) == {"popularity", "tags"}
    assert 0 < rules["popularity"]["recall@50"] < 1 and rules["tags"] != rules["popularity"]
    small = ("steps=2", "batch_size=64", "history=10")
    case = Case("small", "market:tiny", (Method("mf", "mf"),), small)
    rows = {(row.method, row.metric): row.value for row in compare([case], seeds=1)}
    for name, figures in rules.items():
        assert {metric: rows[name, metric] for metric in figures} == figures
    assert ("mf", "recall@50") in rows and ("the truth", "auc") not in rows


def test_methods_are_compared_seed_by_seed():
    """Two trainings of a few steps, in processes of their own, and the gain between them."""
    methods = (Method("one", "lr"), Method("two", "lr", ("table_learning_rate=0.5",)))
    small = ("steps=2", "batch_size=64", "history=4")
    gains, bounds = (("two", "one", "auc"),), (("two", "one"),)
    case = Case("small", "market:tiny", methods, small, gains, bounds)
    rows = {(row.method, row.metric): row for row in compare([case], seeds=1)}
    gain = rows["two", "auc"].value - rows["one", "auc"].value
    assert rows["two - one", "auc"].value == pytest.approx(gain)
    assert gain < rows["two - one", BOUND].value < gain + 0.2
    assert rows["the truth", "auc"].value > rows["one", "auc"].value
    assert ("one", "auc with others' histories") in rows
    with pytest.raises(ValueError, match="--seeds must be >= 1, got 0"):
        compare([case], seeds=0)


def test_after_a_failure_nothing_more_is_started(monkeypatch):
    started = []

    def fails(*job):
        started.append(job)
        time.sleep(0.02)
        raise RuntimeError("no such run")

    monkeypatch.setattr(compare_module, "_in_process", fails)
    methods = tuple(Method(str(i), "lr") for i in range(50))
    with pytest.raises(RuntimeError, match="no such run"):
        compare([Case("many", "market:tiny", methods)], seeds=3)
    assert len(started) < 100
