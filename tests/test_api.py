"""The Python API: what is read, trained and opened, and that its settings are what they say."""

import json
from pathlib import Path
import subprocess
import sys

import jax
import numpy as np
import pyarrow.parquet
import pytest

from logs import hand_made_dataset
import recjax
from recjax import api
from recjax.train import launch

OPTIONS = {"steps": 2, "tower_units": 8, "history": 6}
ROWS = [
    {"user_id": f"u{u}", "item_id": (u * 7 + t * (1 + u % 3)) % 23, "timestamp": 1000 + 60 * t + u}
    for u in range(25)
    for t in range(8)
]


@pytest.fixture(scope="module")
def data():
    return recjax.read(ROWS, options={"evaluation_negatives": "popularity", "split": "last"})


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("api") / "run"
    return recjax.train("mlp", data, options=OPTIONS, out=out, quiet=True)


def config_of(run):
    return json.loads((run.folder / "config.json").read_text())


def refused(said, function, *arguments, **options):
    with pytest.raises(ValueError, match=said) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)


def fails(said, tmp_path, *arguments, **options):
    """A training that is refused, and leaves nothing behind."""
    out = tmp_path / "out"
    refused(said, recjax.train, *arguments, out=out, quiet=True, **options)
    assert not out.exists()


def test_a_run_says_what_it_is(run, data):
    assert isinstance(run, recjax.Run) and (run.name, run.kind) == ("mlp", "ranking")
    assert run.schema == data.schema and run.config.tower_units == (8,)
    assert repr(run) == f"Run('{run.folder}')"
    assert "item" in run.variables["tables"] and run.module.__name__ == "recjax.zoo.mlp"
    again = recjax.load(str(run.folder))
    assert again.metrics == run.metrics
    assert again.folder == run.folder and again.config == run.config
    refused("is not the folder of a run", recjax.load, run.folder.parent)


def test_settings_are_those_by_which_the_data_were_read(run, data):
    settings = config_of(run)["settings"]
    assert (settings["evaluation_negatives"], settings["split"]) == ("popularity", "last")
    assert run.evaluate(data)["test"] == run.metrics["test"]
    assert run.evaluate(ROWS)["test"] == run.metrics["test"]


def test_options_typed_or_as_text(data, tmp_path):
    typed = {"tower_units": [8, 4], "learning_rate": 0.001, "product": False, "steps": 1}
    text = {"tower_units": "8,4", "learning_rate": "1e-3", "product": "false", "steps": "1"}
    runs = [
        recjax.train("mlp", data, options=options, out=tmp_path / name, quiet=True)
        for name, options in (("typed", typed), ("text", text))
    ]
    one, other = map(config_of, runs)
    assert one == other and one["options"]["tower_units"] == [8, 4]
    assert one["settings"]["learning_rate"] == 1e-3 and one["options"]["product"] is False
    jax.tree.map(np.testing.assert_array_equal, runs[0].variables, runs[1].variables)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"lr": 0.1}, "unknown option 'lr'; did you mean 'learning_rate'"),
        ({"hidden_units": 8}, "did you mean 'tower_units'"),
        ({"learning_rat": 0.1}, "did you mean 'learning_rate'"),
        ({"qqq": 0.1}, "unknown option 'qqq'; choose from activation"),
        ({"steps": 1.5}, "steps must be a whole number, got 1.5"),
        ({"steps": True}, "steps must be a whole number, got True"),
        ({"product": "maybe"}, "product must be true or false, got 'maybe'"),
        ({"tower_units": None}, "tower_units must be a whole number"),
        ({"split": "time"}, "split is 'time', but events:list was read with 'last'"),
    ],
)
def test_odd_options(data, tmp_path, options, said):
    fails(said, tmp_path, "mlp", data, options=options)


def test_what_was_read_is_not_read_otherwise(data, tmp_path):
    fails(
        "evaluation_negatives is 'uniform', but events:list was read with 'popularity': give it to",
        tmp_path, "mlp", data, options={"evaluation_negatives": "uniform"},
    )  # fmt: skip
    agreed = {**OPTIONS, "evaluation_negatives": "popularity"}
    run = recjax.train("mlp", data, options=agreed, out=tmp_path / "run", quiet=True)
    assert config_of(run)["settings"]["evaluation_negatives"] == "popularity"
    refused(
        "evaluation_negatives is 'uniform', but events:list was read",
        run.evaluate, data, options={"evaluation_negatives": "uniform"},
    )  # fmt: skip


def test_options_of_reading(tmp_path):
    refused("did you mean 'split'", recjax.read, ROWS, options={"splits": "time"})
    for name in ("history", "epochs", "statistics"):
        refused(f"{name} is an option of training", recjax.read, ROWS, options={name: 3})
    refused("data to read are a SOURCE, a path or a table", recjax.read, hand_made_dataset())
    refused("data to read are a SOURCE, a path or a table", recjax.read, None)


def test_data_in_memory_are_not_remembered(run):
    assert config_of(run)["data"] == "memory:events"
    refused("were in memory: give them again", run.evaluate)
    refused("were in memory", recjax.train, "mlp", out=run.folder, resume=True, quiet=True)


def test_hand_made_data(tmp_path):
    made = hand_made_dataset()
    fails(
        "split says how data are read; hand-made", tmp_path, "mlp", made, options={"split": "time"}
    )
    run = recjax.train("mlp", made, options=OPTIONS, out=tmp_path / "run", quiet=True)
    assert config_of(run)["data"] == "memory:hand-made"
    assert run.evaluate(made)["test"] == run.metrics["test"]
    refused("were in memory", run.evaluate)


def test_a_path_is_remembered_from_anywhere(tmp_path, monkeypatch):
    table = pyarrow.Table.from_pylist(ROWS)
    pyarrow.parquet.write_table(table, tmp_path / "log.parquet")
    monkeypatch.chdir(tmp_path)
    run = recjax.train("mlp", Path("log.parquet"), options=OPTIONS, quiet=True)
    assert run.folder == Path("runs/mlp-events-log-1").absolute()
    assert config_of(run)["data"] == f"events:{tmp_path / 'log.parquet'}"
    assert recjax.read(Path("log.parquet")).source == f"events:{tmp_path / 'log.parquet'}"
    folder, metrics = run.folder.absolute(), run.metrics
    monkeypatch.chdir("/")
    assert recjax.load(folder).evaluate()["test"] == metrics["test"]


def test_ids_of_another_vocabulary_are_not_taken_for_the_runs(run):
    """They would be scored by the rows of other items."""
    others = [{**row, "item_id": row["item_id"] - 4} for row in ROWS]
    read = {"evaluation_negatives": "popularity", "split": "last"}
    data = recjax.read(others, options=read, like=run)
    assert data.schema.hash == run.schema.hash
    refused("list was read with other vocabularies than the run has", run.evaluate, data)
    assert run.evaluate(others)["model"] == "mlp"
    assert recjax.read(others, options=read, like=str(run.folder)).source == "memory:events"


def test_callbacks_see_every_epoch_and_end_the_training(data, tmp_path):
    seen = []
    options = {"epochs": 5, "tower_units": 8, "patience": 0}
    callbacks = [lambda entry: entry["epoch"] == 2, seen.append]
    run = recjax.train(
        "mlp", data, options=options, out=tmp_path / "run", callbacks=callbacks, quiet=True
    )
    assert [one["epoch"] for one in seen] == [1, 2] and run.metrics["train"]["epochs"] == 2
    for entry in seen:
        assert entry["score"] == entry["validation"]["auc"] and entry["train_loss"] > 0
    best = max(seen, key=lambda entry: entry["score"])
    assert run.metrics["train"]["best_epoch"] == best["epoch"]
    # Resumed, it goes on where it ended.
    again = recjax.train(
        "mlp", data, options=options, out=run.folder, resume=True, callbacks=[seen.append],
        quiet=True,
    )  # fmt: skip
    assert [one["epoch"] for one in seen] == [1, 2, 3, 4, 5]
    assert again.metrics["train"]["epochs"] == 5


def test_evaluators_are_runs_or_folders(monkeypatch, run, tmp_path):
    given = {}

    def train(model, **options):
        given.update(options)
        return tmp_path, {}

    monkeypatch.setattr(launch, "train", train)
    other = tmp_path / "judge"
    made = recjax.train("generator", evaluators=[run, other, str(other)], worth=(1.0, 2.0))
    assert given["evaluators"] == [run.folder, other, str(other)]
    assert given["worth"] == (1.0, 2.0) and given["warm_start"] is None
    assert made.folder == tmp_path
    recjax.train("mlp", warm_start=run)
    assert given["warm_start"] == run.folder


def test_models_that_need_what_is_not_given(data, tmp_path):
    fails("Unknown model 'dim'; choose from lr", tmp_path, "dim", data)
    fails("'generator' needs --evaluator", tmp_path, "generator", data)
    fails("'mlp' takes no --evaluator", tmp_path, "mlp", data, evaluators=["x"])
    fails("no epochs after which", tmp_path, "nar", data, evaluators=["x"], callbacks=[print])


def in_a_fresh_process(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_importing_loads_no_jax():
    code = """
import sys, recjax
assert {"read", "train", "load", "Run", "Dataset", "Recommendation"} <= set(dir(recjax))
try:
    recjax.nothing
except AttributeError as error:
    assert "recjax" in str(error) and "nothing" in str(error)
print(*(name for name in ("jax", "numpy", "flax", "pyarrow") if name in sys.modules))
"""
    assert in_a_fresh_process(code) == []


@pytest.mark.parametrize(
    "first", ["from recjax import train as found", "import recjax.train.launch"]
)
def test_train_is_a_function_and_a_package(first):
    code = f"""
{first}
import inspect, recjax
from recjax import api
assert callable(recjax.train) and recjax.train.__path__
assert globals().get("found", recjax.train) is recjax.train
assert inspect.signature(recjax.train) == inspect.signature(api.train)
from recjax.train import options
assert recjax.train.options is options
try:
    recjax.train("dim")
except ValueError as error:
    print(error)
"""
    assert in_a_fresh_process(code)[:3] == ["Unknown", "model", "'dim';"]


def test_names_are_those_of_the_api():
    assert recjax.Run is api.Run and recjax.read is api.read and recjax.load is api.load
