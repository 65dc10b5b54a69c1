"""Tables in memory give the batches that a file of them gives."""

import datetime
import os
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

import recjax
from recjax.train.data.errors import DataError
from recjax.train.data.files import InMemory
from recjax.train.data.sources import open_source

CASES = Path(os.environ.get("RECJAX_DATA", "../shared/data")).parent / "cases"
FORMS = {
    "arrow": lambda table: table,
    "pandas": lambda table: table.to_pandas(),
    "pandas, Arrow types": lambda table: table.to_pandas(types_mapper=pd.ArrowDtype),
    "polars": lambda table: pl.from_arrow(table),
    "a query": lambda table: pl.from_arrow(table).lazy(),
    "columns": lambda table: {name: table[name].to_pylist() for name in table.column_names},
    "rows": lambda table: table.to_pylist(),
}


def events(count=400, seed=0):
    """A log with an attribute of every kind."""
    random = np.random.default_rng(seed)
    item = random.integers(0, 30, count)
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    return pa.table(
        {
            "user_id": [f"u{u}" for u in random.integers(0, 25, count)],
            "item_id": pa.array(item, pa.int64()),
            "category_id": [f"c{i % 7}" for i in item],
            "timestamp": [start + datetime.timedelta(seconds=int(t)) for t in range(count)],
            "price": pa.array(np.round(1.5 * item + 0.25, 2)),
            "tags": [[f"t{i % 3}", f"t{i % 5}"] for i in item],
            "behavior": [["view", "buy"][b] for b in random.integers(0, 2, count)],
            "context_scene": pa.array([["home", "search"][b] for b in item % 2]),
        }
    )


def impressions(count=600, seed=0):
    random = np.random.default_rng(seed)
    request = np.sort(random.integers(0, count // 4, count))
    item = random.integers(0, 40, count)
    return pa.table(
        {
            "user_id": request % 20,
            "request_id": request,
            "timestamp": 1_600_000_000 + 60 * request,
            "item_id": item,
            "category_id": item % 5,
            "label": (random.random(count) < 0.3).astype(np.int64),
        }
    )


def content(dataset):
    """What of a data set batches depend on."""
    requests = {}
    for split in ("train", "validation", "test"):
        some = getattr(dataset, split)
        parts = {"user": some.user, "cut": some.cut, "time": some.time, "item": some.candidate}
        for group in ("label", "weight", "context", "shown"):
            parts |= {f"{group}.{name}": x for name, x in getattr(some, group).items()}
        requests[split] = {name: (x.shape, x.tobytes()) for name, x in parts.items()}
    return dataset.schema, dataset.log.checksum(), requests, dataset.examples


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["events", "impressions"])
def test_a_table_is_what_its_file_is(tmp_path, kind, form):
    table = {"events": events, "impressions": impressions}[kind]()
    pyarrow.parquet.write_table(table, tmp_path / "log.parquet")
    of_file = recjax.read(tmp_path / "log.parquet", kind=kind)
    assert len(of_file.test) > 10
    in_memory = recjax.read(FORMS[form](table), kind=kind)
    assert content(in_memory) == content(of_file)
    assert in_memory.columns == of_file.columns
    assert in_memory.notes == of_file.notes


@pytest.mark.parametrize(
    "name",
    sorted(path.name for path in CASES.glob("*.csv*") if ".zip" not in path.name),
)
def test_every_odd_file_is_read_alike_as_a_frame(name, tmp_path):
    """Types come from Arrow's reader here and from ours there: what they mean is the same."""
    kind = "impressions" if "impressions" in name else "events"
    frame = pyarrow.csv.read_csv(CASES / name)
    pyarrow.parquet.write_table(frame, tmp_path / "log.parquet")
    try:
        expected = content(open_source(f"{kind}:{tmp_path / 'log.parquet'}"))
    except DataError as error:
        said = str(error).partition(":")[2].replace("line", "row")
        with pytest.raises(DataError) as raised:
            recjax.read(frame, kind=kind)
        # Lines count from 2, as below a header; rows in memory from 0.
        assert said.split()[:2] == str(raised.value).partition(":")[2].split()[:2]
        return
    assert content(recjax.read(frame, kind=kind)) == expected
    assert content(recjax.read(frame.to_pandas(), kind=kind)) == expected


def test_an_index_is_no_column():
    frame = events().to_pandas()
    shuffled = frame.sample(frac=1, random_state=0).sort_values("timestamp")
    assert content(recjax.read(shuffled)) == content(recjax.read(events()))


def test_a_named_index_is_a_column():
    frame = events().to_pandas().set_index("user_id")
    assert content(recjax.read(frame)) == content(recjax.read(events()))


def test_categories_are_their_values():
    frame = events().to_pandas().astype({"category_id": "category", "behavior": "category"})
    assert content(recjax.read(frame)) == content(recjax.read(events()))


def test_three_tables_to_train_validate_and_test_on(tmp_path):
    table = events()
    parts = [table.slice(0, 300), table.slice(300, 50), table.slice(350)]
    paths = [tmp_path / f"{k}.parquet" for k in range(3)]
    for path, part in zip(paths, parts, strict=True):
        pyarrow.parquet.write_table(part, path)
    of_files = open_source(f"events:{','.join(map(str, paths))}")
    assert content(recjax.read(tuple(parts))) == content(of_files)
    with pytest.raises(DataError, match="three, to train, validate and test on, got 2"):
        recjax.read(tuple(parts[:2]))


def test_impressions_with_a_table_of_histories(tmp_path):
    shown = impressions()
    past = pa.table(
        {
            "user_id": np.arange(200) % 20,
            "item_id": np.arange(200) % 40,
            "timestamp": 1_599_990_000 + np.arange(200),
        }
    )
    paths = [tmp_path / "shown.parquet", tmp_path / "past.parquet"]
    for path, table in zip(paths, (shown, past), strict=True):
        pyarrow.parquet.write_table(table, path)
    of_files = open_source(f"impressions:{paths[0]},{paths[1]}")
    assert content(recjax.read((shown, past), kind="impressions")) == content(of_files)
    assert of_files.test.cut.min() > 0


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (3, "int: not a table"),
        ([], "list: not a table"),
        ([1, 2], "list: not a table"),
        ({"user_id": [1], "item_id": [1, 2]}, "cannot be read as a table"),
        (pd.DataFrame({"user_id": [1, "a"], "item_id": [1, 2]}), "cannot be read as a table"),
        (pd.DataFrame({"user_id": [], "item_id": []}), "holds no events"),
        (pd.DataFrame({"user": [1], "item_id": [1]}), "'user_id' is missing"),
        (pd.DataFrame([[1, 2, 3]], columns=["user_id", "item_id", "item_id"]), "Duplicate column"),
        ({"user_id": [1, None], "item_id": [1, 2]}, "row 1: user_id is missing"),
    ],
    ids=str,
)
def test_what_is_refused(table, said):
    with pytest.raises(DataError, match=said):
        recjax.read(table)


def test_kinds_of_tables():
    with pytest.raises(DataError, match="events or impressions, got kind 'movielens'"):
        recjax.read(events(), kind="movielens")


def test_what_a_run_remembers():
    assert str(InMemory.of("events", events())) == "memory:events"
    assert recjax.read(events()).source == "memory:events"


def test_a_run_knows_what_its_tables_were(tmp_path):
    table, options = impressions(), {"steps": 2, "tower_units": (8,), "history": 5}
    run = recjax.train(
        "mlp", table, kind="impressions", options=options, out=tmp_path / "run", quiet=True
    )
    assert run.evaluate(table)["test"] == run.metrics["test"]
    assert content(recjax.read(table, like=run)) == content(recjax.read(table, kind="impressions"))
    again = recjax.train("mlp", table, options=options, out=run.folder, resume=True, quiet=True)
    assert again.metrics["test"] == run.metrics["test"]
    with pytest.raises(DataError, match='read them with kind="impressions"'):
        recjax.read(table)


def test_a_file_without_its_kind_is_seen(tmp_path):
    pyarrow.parquet.write_table(events(), tmp_path / "log.parquet")
    with pytest.raises(DataError, match="did you mean events:.*log.parquet or impressions:"):
        recjax.read(str(tmp_path / "log.parquet"))


def test_a_data_set_is_printed_in_one_line():
    assert repr(recjax.read(events())).startswith("Dataset('events:Table': ")
    assert len(repr(recjax.read(events()))) < 120
