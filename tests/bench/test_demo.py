"""The demonstration: what it prints is what it found, and the run that it names is there."""

import dataclasses
import json
import re

from recjax import api
from recjax.bench import demo
from recjax.bench.suites import accuracy
from recjax.train.options import options_of


def test_it_shows_the_suites_worlds_with_less_training():
    assert [case.source for case in demo.CASES] == ["market:standard", "market:single_taste"]
    for case in demo.CASES:
        assert [method.name for method in case.methods] == ["mlp", "din"]
        mine, suites = options_of(case.overrides), options_of(accuracy.FEW_PASSES)
        shorter = {"steps", "history", "epochs"}
        assert {name: mine[name] for name in mine.keys() - shorter} == {
            name: suites[name] for name in suites.keys() - shorter
        }
        assert int(mine["history"]) < int(suites["history"])


def test_what_it_prints(tmp_path, capfd):
    case = dataclasses.replace(
        demo.CASES[0], source="market:tiny", overrides=("steps=2", "batch_size=64", "history=4")
    )
    (tmp_path / "din").mkdir()
    (tmp_path / "din" / "config.json").write_text("of the last time")
    path = demo.show(tmp_path, [case])
    out, err = capfd.readouterr()
    rows = json.loads(path.read_text())["rows"]
    auc = {row["method"]: row["value"] for row in rows if row["metric"] == "auc"}
    assert f"market: din - mlp = {auc['din'] - auc['mlp']:+.4f} AUC" in out
    assert not [row for row in rows if "others' histories" in row["metric"]]
    assert err.splitlines()[0].startswith("2 trainings")

    run = api.load(tmp_path / "din")
    assert run.metrics["test"]["auc"] == auc["din"]
    request = api.read("market:tiny").examples[0]
    (best,) = run.recommend([request], k=3)
    shown = re.findall(r"^(\d) of (\d+): item (\{.*\}), click ([\d.]+)", out, re.MULTILINE)
    assert shown == [
        (str(place), str(len(request["items"])), str(one.item), f"{one.probabilities['click']:.4f}")
        for place, one in enumerate(best, start=1)
    ]
    assert len(shown) == 3
    for command in ("inspect --data events:", "train din --data events:", "recommend runs/din"):
        assert f"recjax {command}" in out
