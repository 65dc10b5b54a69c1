import math
from typing import ClassVar

import pytest

from recjax.bench.suites import search
from recjax.train import defaults
from recjax.train.settings import Settings
from recjax.zoo import din

optuna = pytest.importorskip("optuna")


def of_rate(rate):
    return 0.8 - 0.05 * abs(math.log10(rate / 0.02))


class Known:
    """Trainings whose outcome is known: the best rate is 0.02, and softmax costs 0.1."""

    asked: ClassVar[list] = []

    def __init__(self, cores, countdown):
        self.width = len(list(cores))

    def __call__(self, source, overrides, seed):
        self.asked.append((overrides, seed))
        value = of_rate(overrides.get("table_learning_rate", Settings().table_learning_rate))
        value -= 0.1 * (overrides.get("normalize", "none") == "softmax")
        return {"validation": value, "test": value - 0.01 * seed}


@pytest.fixture
def rows(monkeypatch):
    monkeypatch.setattr(search, "_Trainings", Known)
    monkeypatch.setattr(Known, "asked", [])
    monkeypatch.setattr(search, "TRIALS", 30)
    case = search.Case("market", "market:evolving", sensitivity=True)
    monkeypatch.setattr(search, "cases", lambda: [case])
    return {(row.method, row.metric): row for row in search.run(only=["market"], seeds=2)}


def test_the_search_finds_what_there_is_and_says_what_it_is_worth(rows):
    default = of_rate(Settings().table_learning_rate)
    assert rows["defaults", "validation auc"].value == pytest.approx(default)
    (winner,) = {method for method, _ in rows if method.startswith("searched: ")}
    assert "table learning rate 0.0" in winner and "normalize" not in winner
    best = rows[winner, "validation auc"].value
    assert 0.79 < best <= 0.8
    # Judged with other seeds, on the test set.
    assert rows["defaults", "auc"].high == pytest.approx(default - 0.01)
    assert rows["defaults", "auc"].low == pytest.approx(default - 0.02)
    assert rows["defaults - searched", "auc"].value == pytest.approx(default - best)


def test_it_says_how_many_trainings_there_are(capsys, request):
    request.getfixturevalue("rows")
    assert capsys.readouterr().err.startswith(f"{len(Known.asked)} trainings")


def test_defaults_that_nothing_beats_are_trained_once(monkeypatch):
    monkeypatch.setattr(search, "_Trainings", Known)
    monkeypatch.setattr(Known, "asked", [])
    monkeypatch.setattr(search, "TRIALS", 1)
    rows = {(row.method, row.metric): row for row in search.run(only=["market"], seeds=2)}
    assert Known.asked == [({}, 0), ({}, 1), ({}, 2)]
    assert rows["defaults - searched", "auc"].value == 0.0
    both = [rows[method, "auc"] for method in ("defaults", "searched: nothing better")]
    assert both[0].value == both[1].value


def test_sensitivity_moves_one_setting_at_a_time(rows, tmp_path):
    moved = {m: row.value for (m, metric), row in rows.items() if metric == search.METRICS[-1]}
    default = Settings().table_learning_rate
    assert moved["table_learning_rate x 10"] == pytest.approx(
        of_rate(10 * default) - of_rate(default)
    )
    assert moved["learning_rate x 10"] == 0.0
    assert moved["normalize = softmax"] == pytest.approx(-0.1)
    assert "normalize = none" not in moved and "product = False" in moved
    search.draw(list(rows.values()), tmp_path / "search.png")
    assert (tmp_path / "search.png").stat().st_size > 0


def test_no_picture_where_no_setting_was_moved(rows, tmp_path):
    judged = [row for (_, metric), row in rows.items() if metric != search.METRICS[-1]]
    search.draw(judged, tmp_path / "search.png")
    assert not list(tmp_path.iterdir())


def test_the_space_holds_the_defaults_and_names_what_exists():
    point, settings = search._defaults(), defaults.settings(search.MODEL)
    assert point["batch_size"] == settings.batch_size
    known = {*din.Config.__dataclass_fields__, *Settings.__dataclass_fields__}
    assert {*search.RATES, *search.CHOICES} <= known
    for name, (low, high) in search.RATES.items():
        assert low < point[name] < high
    for name, choices in search.CHOICES.items():
        assert point[name] in choices
    trial = optuna.trial.create_trial(
        params=point, distributions=search._distributions(), value=0.0
    )
    assert trial.params == point
