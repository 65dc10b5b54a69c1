"""The command line as a user meets it: bad input gets one clear line and exit code 2."""

import gzip
import json

import numpy as np
import pytest

from recjax import cli
from recjax.bench.suites import SUITES
from recjax.train.data.sources import SOURCES
from recjax.train.defaults import ALL
from recjax.zoo.rerank import last
from testing import rejected

LOG = "user_id,item_id,category_id,timestamp\n" + "".join(
    f"{user},{(user * 7 + step) % 23},{(user * 7 + step) % 23 % 3},{1000 * step}\n"
    for user in range(12)
    for step in range(8)
)


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(LOG)
    return path


def train(log, out, *more):
    return ["train", "mlp", "--data", f"events:{log}", "--out", out, "--epochs", "1", *more]


def test_train_then_evaluate(log, tmp_path, capsys):
    out = tmp_path / "run"
    assert cli.main([str(a) for a in train(log, out, "--set", "tower_units=8,4")]) == 0
    printed = json.loads(capsys.readouterr().out)
    metrics = json.loads((out / "metrics.json").read_text())
    assert printed["test"] == metrics["test"]
    assert json.loads((out / "config.json").read_text())["options"]["tower_units"] == [8, 4]
    assert cli.main(["evaluate", str(out)]) == 0
    assert json.loads(capsys.readouterr().out)["test"] == metrics["test"]
    assert cli.main([str(a) for a in train(log, out, "--set", "tower_units=8,4", "--resume")]) == 0


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["train", "dim"], "Unknown model 'dim'; choose from lr, mlr, mlp, din"),
        (["train", "mlp", "--data", "markt"], "Unknown source 'markt'; choose from market"),
        (["train", "mlp", "--data", "market:nope"], "Unknown market preset 'nope'; choose from"),
        (["train", "mlp", "--data", "events:"], "needs a path"),
        (["train", "mlp", "--data", "events:/no/such.csv"], "/no/such.csv: no such file"),
        (["train", "mlp", "--data", "movielens:/no/such"], "neither u.data"),
        (["train", "mlp", "--history", "0"], "history must be >= 1, got 0"),
        (["train", "mlp", "--epochs", "-1"], "epochs must be >= 1, got -1"),
        (["train", "mlp", "--batch-size", "x"], "invalid int value: 'x'"),
        (["train", "mlp", "--seed", "-3"], "seed must be >= 0, got -3"),
        (["train", "mlp", "--seed", str(10**30)], "seed must be < 2147483648"),
        (["train", "mlp", "--set", "learning_rate=inf"], "learning_rate must be finite"),
        (["train", "mlp", "--set", "embedding_dropout=nan"], "embedding_dropout must be finite"),
        (["train", "mlp", "--out", "/dev/null/run"], "/dev/null is a file, not a folder"),
        (["bench", "accuracy", "--out", "/dev/null/run"], "/dev/null is a file, not a folder"),
        (["bench", "accuracy", "--seeds", "0"], "--seeds must be >= 1, got 0"),
        (["train", "mlp", "--set", "tower=8"], "unknown option 'tower'"),
        (["train", "mlp", "--set", "tower_units"], "--set takes key=value, got 'tower_units'"),
        (["train", "mlp", "--set", "tower_units=8,x"], "tower_units must be a whole number"),
        (["train", "mlp", "--set", "activation=gelu"], "one of prelu, sigmoid, relu, dice"),
        (["train", "mlp", "--set", "embedding_dropout=1.5"], "must be in [0, 1), got 1.5"),
        (["train", "mlp", "--set", "learning_rate=0"], "must be > 0, got 0.0"),
        (["train", "mlp", "--set", "table_optimizer=adm"], "one of sgd, adagrad"),
        (["train", "mlp", "--resume"], "--resume needs --out"),
        (["train"], "the following arguments are required: MODEL"),
        (["trian", "mlp"], "invalid choice: 'trian'"),
        (["train", "mlp", "--set", "l1=1"], "l1 must be 0 unless table_optimizer is ftrl"),
        (
            [
                "train",
                "sim",
                "--data",
                "market:tiny",
                "--set",
                "search=hard",
                "--set",
                "group_by=x",
            ],
            "group_by must be a field of the items, got 'x'",
        ),
        (["export", "/no/such/run", "--out", "a"], "is not the folder of a run"),
        (["evaluate", "/no/such/run"], "is not the folder of a run"),
        (["bench", "nope"], "Unknown suite 'nope'; choose from"),
        ([], "arguments are required"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_arguments(capsys, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert said in rejected(capsys, *arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "the file is empty"),
        (b"\x93\x00\xff\xfe" * 50, "log.csv"),
        (b"user_id,item_id\n", "holds no events"),
        (b"user,item_id\n1,2\n", "column 'user_id' is missing"),
        (
            LOG.replace("2,17,2,3000", "2,17,2,soon").encode(),
            "line 21: timestamp must be a time, got 'soon'",
        ),
        (b"user_id,item_id\n1,2\n1,3,4\n", "line 3"),
        (b"user_id,item_id\n1,2\n2,3\n2,4\n", "fewer than 3 events"),
        (gzip.compress(LOG.encode())[:60], "log.csv"),
    ],
    ids=["empty", "junk", "header", "column", "timestamp", "width", "short", "gzip"],
)
def test_bad_files(capsys, tmp_path, content, said):
    path = tmp_path / "log.csv"
    path.write_bytes(content)
    out = tmp_path / "run"
    assert said in rejected(capsys, *train(path, out))
    assert not out.exists(), "a refused run must leave nothing behind"


def test_a_model_that_the_data_cannot_train(log, tmp_path, capsys):
    out = tmp_path / "run"
    said = rejected(capsys, "train", "esmm", "--data", f"events:{log}", "--out", out)
    assert "'esmm' needs two tasks" in said and "--set tasks=view,buy" in said
    assert not out.exists()


def test_bad_rows_are_skipped_when_asked(log, tmp_path, capsys):
    log.write_text(LOG + "3,4\n5,6,1,never\n")
    out = tmp_path / "run"
    assert "line 98" in rejected(capsys, *train(log, out))
    assert cli.main([str(a) for a in train(log, out, "--on-bad-row", "skip")]) == 0
    assert json.loads((out / "metrics.json").read_text())["facts"]["rows skipped"] == 2
    capsys.readouterr()
    assert "line 98" in rejected(capsys, "evaluate", out)
    assert cli.main(["evaluate", str(out), "--on-bad-row", "skip"]) == 0


def test_another_schema_is_named(log, tmp_path, capsys):
    out = tmp_path / "run"
    assert cli.main([str(a) for a in train(log, out)]) == 0
    capsys.readouterr()
    bare = tmp_path / "bare.csv"
    lines = [",".join(line.split(",")[:2]) for line in LOG.splitlines()]
    bare.write_text("\n".join(lines))
    said = rejected(capsys, "evaluate", out, "--data", f"events:{bare}")
    assert "bare.csv: declared columns 'category_id', 'timestamp' missing; found user_id" in said
    said = rejected(capsys, *train(bare, out, "--resume"))
    assert "declared columns 'category_id', 'timestamp' missing" in said
    said = rejected(capsys, *train(log, out))
    assert "is not empty" in said


def test_a_damaged_run_is_refused(log, tmp_path, capsys):
    out = tmp_path / "run"
    assert cli.main([str(a) for a in train(log, out)]) == 0
    capsys.readouterr()
    config = json.loads((out / "config.json").read_text())
    config["schema"]["tables"][0]["dim"] = 99
    (out / "config.json").write_text(json.dumps(config))
    assert "does not match its own hash" in rejected(capsys, "evaluate", out)
    (out / "config.json").write_text("{")
    assert "cannot be read" in rejected(capsys, "evaluate", out)


@pytest.mark.parametrize(
    "key, value",
    [("model", ["mlp"]), ("model", "din"), ("options", []), ("settings", {"seed": 0.5})],
)
def test_an_edited_run_is_refused(log, tmp_path, capsys, key, value):
    out = tmp_path / "run"
    assert cli.main([str(a) for a in train(log, out)]) == 0
    capsys.readouterr()
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, key: value}))
    said = rejected(capsys, "evaluate", out)
    assert "cannot be read" in said or "(recjax.zoo.mlp) is not one of" in said


def test_another_vocabulary_is_refused(log, tmp_path, capsys):
    out = tmp_path / "run"
    assert cli.main([str(a) for a in train(log, out)]) == 0
    capsys.readouterr()
    rows = out / "rows" / "item.npy"
    np.save(rows, np.load(rows)[::-1])
    assert "vocabulary of table 'item' has changed" in rejected(capsys, "evaluate", out)
    rows.write_bytes(b"")
    assert "cannot be read" in rejected(capsys, "evaluate", out)


def test_a_column_may_have_any_name(tmp_path, capsys):
    lines = LOG.splitlines()
    odd = [line + ",kind-" + line.split(",")[2] for line in lines[1:]]
    path, out = tmp_path / "log.csv", tmp_path / "runs" / "run"
    path.write_text("\n".join([lines[0] + ",../../x", *odd]))
    assert cli.main([str(a) for a in train(path, out)]) == 0
    capsys.readouterr()
    assert [p.name for p in tmp_path.rglob("*x.npy")] == ["..%2F..%2Fx.npy"]
    assert cli.main(["evaluate", str(out)]) == 0


def test_a_run_that_diverges_leaves_nothing(log, tmp_path, capsys):
    out = tmp_path / "run"
    rates = ("--set", "learning_rate=1e30", "--set", "table_learning_rate=1e30")
    command = [str(a) for a in train(log, out, "--steps", "1", *rates)]
    assert cli.main(command) == 2  # after one step the loss is fine, but the parameters are not
    assert "scores (click) are not finite" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("price", ["1e300", "-1e39"])
def test_a_number_without_end_is_a_bad_row(tmp_path, capsys, price):
    lines = LOG.splitlines()
    path = tmp_path / "log.csv"
    priced = [line + ",1.5" for line in lines[1:]]
    priced[4] = lines[5] + f",{price}"
    path.write_text("\n".join([lines[0] + ",price", *priced]))
    said = rejected(capsys, *train(path, tmp_path / "run"))
    assert "line 6: price must be a number within float32" in said


def test_help_and_version(capsys):
    for arguments in (["--help"], ["train", "--help"], ["--version"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert stop.value.code == 0 and capsys.readouterr().out


def test_help_names_all_that_there_is(capsys):
    def shown(command):
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        return "".join(capsys.readouterr().out.split())

    names = {"train": (ALL, SOURCES), "bench": (SUITES,), "export": (last.PRESETS,)}
    for command, lists in names.items():
        text = shown(command)
        for wanted in lists:
            assert ",".join(wanted) in text
