"""Fields that a run adds or leaves out: they train, are saved with the run, and come back."""

import numpy as np
import pytest

from recjax.train import launch
from recjax.train.data.declaration.columns import Columns
from recjax.train.data.errors import DataError
from recjax.train.data.market import planted
from recjax.train.data.sources import open_source
from recjax.train.run import RunError
from recjax.zoo.features import UNSEEN_ROW

CROSS = "history.item*candidate.item"
SETTINGS = ["epochs=3", "batch_size=512", "history=3", "cross_history=1", "table_learning_rate=10"]


def auc(tmp_path, source, *overrides):
    folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
    _, results = launch.train(
        "lr",
        data=source,
        out=folder,
        options={**launch.options_of(SETTINGS), **launch.options_of(overrides)},
        quiet=True,
    )
    return results["test"]["auc"]


def test_co_clicks_are_learnt_by_a_cross_and_by_nothing_less(tmp_path):
    plain = auc(tmp_path, "planted:co_clicks")
    crossed = auc(tmp_path, "planted:co_clicks", f"crosses={CROSS}")
    truth = open_source("planted:co_clicks").truth["test"]["click"]
    assert set(np.unique(truth)) == {0.1, 0.6}
    assert plain < 0.55 and crossed > plain + 0.08
    # Where pairs say nothing, knowing them costs a little and gives nothing.
    alone = auc(tmp_path, "planted:popular")
    assert auc(tmp_path, "planted:popular", f"crosses={CROSS}") < alone + 0.005


def test_counts_cannot_tell_users_apart_and_ids_can(tmp_path):
    counts = "statistics=count(user),count(item),since(user)"
    settings = ["epochs=2", "batch_size=512", "history=3"]
    scores = []
    for number, overrides in enumerate((["leave_out=history.item", counts], [])):
        _, results = launch.train(
            "mlp",
            data="planted:two_tastes",
            out=tmp_path / str(number),
            options={**launch.options_of(settings), **launch.options_of(overrides)},
            quiet=True,
        )
        scores.append(results["test"]["auc"])
    assert scores[0] < 0.53 and scores[1] > 0.75


def test_a_run_remembers_its_fields(tmp_path):
    overrides = [
        "steps=3",
        "batch_size=64",
        "crosses=user.user_segment*candidate.category,history.item*candidate.item",
        "cross_rows=500",
        "statistics=count(item; 1d),since(user*category; buy)",
        "leave_out=price_level,history.category",
    ]
    folder, results = launch.train(
        "mlp",
        data="market:tiny",
        out=tmp_path / "run",
        options=launch.options_of(overrides),
        quiet=True,
    )
    saved = launch.load_run(folder).saved
    names = [f"{field.role}.{field.name}" for field in saved.schema.fields]
    assert "candidate.price_level" not in names and "history.category" not in names
    assert "candidate.category" in names and f"candidate.{CROSS}" in names
    assert "candidate.count(item; 1d)" in names
    assert {table.name: table.rows for table in saved.schema.tables}[CROSS] == 500
    again = launch.evaluate_run(folder)["test"]
    assert again == results["test"]


def test_other_data_must_have_the_fields(tmp_path):
    folder, _ = launch.train(
        "mlp",
        data="planted:co_clicks",
        out=tmp_path / "run",
        options={"steps": 1, "batch_size": 64, "statistics": "count(item)"},
        quiet=True,
    )
    with pytest.raises(RunError, match="sample"):
        launch.evaluate_run(folder, data="planted:sample_id")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("leave_out=shop", "leave_out: no field 'shop'; there are history.item, candidate.item"),
        ("crosses=candidate.item", "two or more fields"),
        ("crosses=user.city*candidate.item", "user.city is no id field to cross"),
        ("statistics=count(city)", "key 'city' is not one of user, item"),
        ("statistics=counts(item)", "it must be one of"),
        ("cross_rows=2", "cross_rows must be > 2, got 2"),
    ],
)
def test_what_cannot_be_added_or_left_out(tmp_path, override, message):
    with pytest.raises(ValueError, match=message):
        auc(tmp_path, "planted:popular", override)
    assert not any((tmp_path / "0").glob("*"))


def test_the_planted_worlds():
    for preset in planted.PRESETS:
        data = planted.load(preset)
        assert len(data.test) == planted.REQUESTS["test"]
        assert not set(data.train.user) & set(data.test.user)
        click = data.test.label["click"]
        assert abs(click.mean() - data.truth["test"]["click"].mean()) < 0.01
    sample = data.test.context["sample"]
    assert np.all(sample == UNSEEN_ROW) and len(np.unique(data.train.context["sample"])) == 40_000
    again, other = planted.load("popular"), planted.load("popular", seed=1)
    assert np.array_equal(again.train.candidate, planted.load("popular").train.candidate)
    assert not np.array_equal(again.truth["test"]["click"], other.truth["test"]["click"])
    with pytest.raises(DataError, match="Unknown planted world 'nothing'; choose from co_clicks"):
        open_source("planted:nothing")


@pytest.mark.parametrize("override", ["statistics=count(user)", f"crosses={CROSS}"])
def test_retrieval_refuses_what_it_would_not_read(tmp_path, override):
    with pytest.raises(ValueError, match="'mf' knows items by their own fields: no statistics"):
        launch.train(
            "mf", data="market:tiny", out=tmp_path / "run", options=launch.options_of([override])
        )


def test_retrieval_needs_the_identity_of_items(tmp_path):
    with pytest.raises(ValueError, match="'mind' finds items by 'item', which leave_out names"):
        launch.train("mind", data="market:tiny", out=tmp_path, options={"leave_out": "item"})


def test_a_log_of_another_kind_of_time_is_refused(tmp_path):
    path = tmp_path / "events.csv"
    rows = [(u, i, 100_000 * i) for u in range(3) for i in range(u, u + 5)]

    def write(columns):
        text = "\n".join(",".join(map(str, row[:columns])) for row in rows)
        path.write_text(",".join(["user_id", "item_id", "timestamp"][:columns]) + "\n" + text)

    write(3)
    folder, _ = launch.train(
        "mlp",
        data=f"events:{path}",
        out=tmp_path / "run",
        options={"steps": 1, "batch_size": 8},
        quiet=True,
    )
    write(2)
    with pytest.raises(DataError, match="declared column 'timestamp' missing"):
        launch.evaluate_run(folder)
    ids = Columns(tuple(c for c in Columns.load(folder / "columns.json") if c.role != "time"))
    with pytest.raises(RunError, match="trained on events with a clock, .* has only an order"):
        launch.evaluate_run(folder, columns=ids)


def test_what_a_run_adds_can_be_inspected(capsys):
    launch.inspect(
        "planted:popular",
        options={"statistics": "count(item)", **launch.options_of([f"crosses={CROSS}"])},
    )
    text = capsys.readouterr().out
    assert f"candidate.{CROSS}" in text and "candidate.count(item)" in text
    with pytest.raises(ValueError, match="--history must be >= 1, got 0"):
        launch.inspect("planted:popular", history=0)
