"""The command line answers requests from files, and says what every option means."""

import io
import json

import pyarrow as pa
import pyarrow.parquet
import pytest

import recjax
from recjax import cli
from recjax.train.defaults import ALL, options_with_defaults
from recjax.zoo import mlp
from recjax.zoo.features import Field, Schema, Table, record_type
from recjax.zoo.rerank import generator
from reranking import CONFIG
from runs import fresh, saved
from testing import rejected

LOG = Schema(
    tables=(Table(name="item", rows=30, dim=4),),
    fields=(
        Field(name="item", role="candidate"),
        Field(name="item", role="history"),
        Field(name="price", role="candidate", kind="dense"),
    ),
    tasks=("click",),
)
RECORDS = [
    {
        "context": {"time": 90},
        "user": {"history": [{"time": 5, "item": 3}]},
        "items": [{"item": at, "price": 0.5 * at - first} for at in range(first, first + 3)],
    }
    for first in range(4)
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    where = tmp_path_factory.mktemp("cli")
    config = mlp.Config(schema=LOG, tower_units=(4,))
    run = saved(where / "run", "mlp", config, fresh(mlp, config), history=4)
    recjax.load(run).export(where / "artifact", platforms=["cpu"])
    return where


def said(capsys, *arguments):
    """The lines of JSON that a command prints."""
    assert cli.main([str(argument) for argument in arguments]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def lines(records):
    return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records)


FORMS = {
    "lines": lambda path: path.write_text(lines(RECORDS)),
    "gaps": lambda path: path.write_text("\r\n".join(["", *lines(RECORDS).split("\n"), ""])),
    "a mark": lambda path: path.write_text(lines(RECORDS), encoding="utf-8-sig"),
    "array": lambda path: path.write_text(json.dumps(RECORDS, indent=2)),
    "parquet": lambda path: pyarrow.parquet.write_table(
        pa.Table.from_pylist(RECORDS, schema=record_type(LOG)), path
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_records_of_any_file(folders, tmp_path, capsys, form):
    FORMS[form](tmp_path / "records")
    expected = recjax.load(folders / "run").predict(RECORDS)
    found = said(capsys, "predict", folders / "run", "--records", tmp_path / "records")
    assert [one["click"] for one in found] == [one["click"].tolist() for one in expected]


@pytest.mark.parametrize("folder", ["run", "artifact"])
def test_recommendations_from_standard_input(folders, capsys, monkeypatch, folder):
    monkeypatch.setattr("sys.stdin", io.StringIO(lines(RECORDS)))
    found = said(capsys, "recommend", folders / folder, "--records", "-", "--k", 2)
    expected = recjax.load(folders / "run").recommend(RECORDS, k=2)
    assert [[best["index"] for best in one] for one in found] == [
        [best.index for best in one] for one in expected
    ]
    assert found[1][0].keys() == {"index", "item", "score", "probabilities"}
    assert found[1][0]["item"] == RECORDS[1]["items"][found[1][0]["index"]]
    assert found[1][0]["score"] == pytest.approx(expected[1][0].score, abs=1e-6)
    assert found[1][0]["probabilities"] == pytest.approx(expected[1][0].probabilities, abs=1e-6)


def test_an_order_has_no_scores(tmp_path, capsys):
    run = saved(tmp_path / "run", "generator", CONFIG, fresh(generator, CONFIG))
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps({"context": {}, "user": {}, "items": [{"item": 1}]}))
    (found,) = said(capsys, "recommend", run, "--records", path)
    assert found == [{"index": 0, "item": {"item": 1}, "score": None, "probabilities": {}}]
    assert "generator gives an order" in rejected(capsys, "predict", run, "--records", path)


def test_text_may_hold_other_ends_of_lines(folders, tmp_path, capsys):
    odd = [{**RECORDS[0], "note": "a\u2028b\x85c"}, *RECORDS[1:]]
    path = tmp_path / "records.jsonl"
    path.write_text(lines(odd))
    assert "note" in rejected(capsys, "predict", folders / "run", "--records", path)
    found = said(capsys, "predict", folders / "run", "--records", path, "--unknown", "ignore")
    assert len(found) == len(RECORDS)


def test_values_that_json_does_not_know(folders, tmp_path, capsys):
    """A date, which only an ignored column of Parquet can hold."""
    fields = [("item", pa.int64()), ("price", pa.float64()), ("since", pa.timestamp("s"))]
    table = pa.table(
        {
            "context": [{"time": 90}],
            "user": [{"history": [{"time": 5, "item": 3}]}],
            "items": pa.array(
                [[{"item": 3, "price": 1.0, "since": 86_400}]],
                pa.list_(pa.struct(fields)),
            ),
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "records")
    (found,) = said(
        capsys, "recommend", folders / "run", "--records", tmp_path / "records",
        "--unknown", "ignore",
    )  # fmt: skip
    assert found[0]["item"]["since"] == "1970-01-02 00:00:00"


@pytest.mark.parametrize(
    "content, reason",
    [
        (lines(RECORDS[:1]) + "\n{oops}\n", "line 3 is no JSON"),
        ("[{]", "cannot be read as JSON"),
        (lines(RECORDS) + "3\n", "line 5 must be an object, got 3"),
        ("[{}, [1]]", "record 2 must be an object, got [1]"),
        (b"\xff\xfe\x00", "neither JSON nor Parquet"),
        (b"PAR1 and nothing else", "records"),
        (None, "no such file"),
    ],
)
def test_odd_files(folders, tmp_path, capsys, content, reason):
    path = tmp_path / "records"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for command in ("predict", "recommend"):
        assert reason in rejected(capsys, command, folders / "run", "--records", path)


def test_odd_requests_of_the_command(folders, tmp_path, capsys):
    path = tmp_path / "records"
    path.write_text(lines(RECORDS))
    said = rejected(capsys, "recommend", folders / "run", "--records", path, "--k", "0")
    assert "k must be >= 1, got 0" in said
    said = rejected(capsys, "predict", tmp_path, "--records", path)
    assert "is not the folder of a run" in said


@pytest.mark.parametrize("name", ALL)
def test_every_option_has_a_meaning(name, capsys):
    known = options_with_defaults(name)
    assert all(len(option.meaning) > 8 for option in known)
    assert len({option.name for option in known}) == len(known)
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", name, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    of_model, of_training = shown.split("options of the training")
    assert "recjax train" in of_model and "options of the model" in of_model
    for option in known:
        part = {"model": of_model, "training": of_training}[option.of]
        assert part.count(f"\n  {option.name}={option.kind}\n") == 1, option.name
        text = " ".join(part.split(f"\n  {option.name}={option.kind}\n")[1].split())
        default = option.default
        if isinstance(default, tuple):
            default = ",".join(map(str, default))
        assert text.startswith(
            f"{option.meaning} (default: {default if default != '' else 'none'})"
        )


def test_the_defaults_that_help_shows_are_those_of_the_model(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "lr", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "table_optimizer=TEXT for the rows of tables" in shown and "(default: ftrl)" in shown
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    assert "options of the model" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["train", "dim", "--help"], "Unknown model 'dim'; choose from lr"),
        (["train", "mlp", "--lr", "0.1"], "'--lr'; did you mean --set learning_rate=...?"),
        (["train", "mlp", "--tower-units", "8"], "did you mean --set tower_units=...?"),
        (["train", "mlp", "--batchsize", "8"], "did you mean --batch-size N?"),
        (["train", "mlp", "--qqq"], "unknown argument '--qqq'; see recjax COMMAND --help"),
        (["evaluate", "x", "--lr", "0.1"], "did you mean"),
        (["recommend", "x", "--records", "y", "--lr", "1"], "unknown argument '--lr'; see recjax"),
    ],
)
def test_what_was_probably_meant(capsys, arguments, reason):
    assert reason in rejected(capsys, *arguments)


def test_warm_start(tmp_path, capsys, monkeypatch):
    given = {}

    def train(model, **options):
        given.update(options)
        raise ValueError("seen")

    monkeypatch.setattr("recjax.api.train", train)
    command = ["train", "mlp", "--warm-start", tmp_path / "run", "--set", "steps=3", "--seed", 4]
    assert "seen" in rejected(capsys, *command)
    assert given["warm_start"] == str(tmp_path / "run")
    assert given["options"] == {"steps": "3", "seed": 4}
