"""A declaration decides: every form of a log, and other days' files, mean the same by it."""

import datetime
import json

import numpy as np
import pyarrow as pa
from pyarrow import feather
import pyarrow.parquet as pq
import pytest

from logs import shop_columns
from recjax.train import launch
from recjax.train.data.batches.pipeline import TrainingBatches
from recjax.train.data.declaration.columns import Column, Columns
from recjax.train.data.errors import DataError
from recjax.train.data.protocol import Protocol
from recjax.train.data.sources import events
from recjax.zoo.features import signatures

SHOP = shop_columns()
DECLARED = Columns(
    (
        Column(name="user_id", role="user_id", value="int"),
        Column(name="item_id", role="item_id", value="int"),
        Column(name="timestamp", role="time"),
        Column(name="behavior", role="behavior"),
        Column(name="brand", role="item"),
        Column(name="genres", role="item", kind="bag", separator="|", width=3),
        Column(name="city", role="user", value="int"),
        Column(name="price", role="item", per="event", kind="number"),
        Column(name="home", role="user", per="event"),
        Column(name="session", role="ignored"),
        Column(name="stars", role="history", kind="number"),
        Column(name="bought_on", role="ignored"),
    )
)


def cell(value):
    if isinstance(value, list):
        return "|".join(map(str, value))
    return "" if value is None else str(value)


def text(path, columns, separator=","):
    lines = [separator.join(columns)]
    lines += [separator.join(map(cell, row)) for row in zip(*columns.values(), strict=True)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def table(columns, **changed):
    """As an Arrow table; `changed` are types of columns."""
    arrays = {name: pa.array(values) for name, values in columns.items()}
    for name, kind in changed.items():
        arrays[name] = arrays[name].cast(kind)
    return pa.table(arrays)


def parquet(path, columns, **changed):
    pq.write_table(table(columns, **changed), path)
    return path


def json_lines(path, columns):
    plain = lambda value: value.item() if isinstance(value, np.generic) else value
    rows = zip(*(map(plain, values) for values in columns.values()), strict=True)
    rows = (dict(zip(columns, row, strict=True)) for row in rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def arrow_file(path, columns):
    feather.write_feather(table(columns), str(path))
    return path


def shuffled(columns, seed=0):
    order = np.random.default_rng(seed).permutation(len(columns["user_id"]))
    return {name: [values[i] for i in order] for name, values in columns.items()}


def scaled(columns, per):
    return {**columns, "timestamp": np.asarray(columns["timestamp"]) * per + per // 3}


def reversed_(columns):
    return dict(reversed(columns.items()))


def in_zone(unit, zone):
    """A change of the time column's type, from whole seconds."""
    return lambda path, columns: parquet(
        path,
        {**columns, "timestamp": pa.array(columns["timestamp"]).cast(pa.timestamp("s"))},
        timestamp=pa.timestamp(unit, zone),
    )


ISO = [datetime.datetime.fromtimestamp(int(t), datetime.UTC).isoformat() for t in SHOP["timestamp"]]
FORMS = {
    "CSV": ("log.csv", text),
    "tabs": ("log.tsv", lambda path, columns: text(path, columns, "\t")),
    "semicolons": ("log.csv", lambda path, columns: text(path, columns, ";")),
    "JSON lines": ("log.jsonl", json_lines),
    "Feather": ("log.feather", arrow_file),
    "Parquet": ("log.parquet", parquet),
    "Parquet, ids as floats": (
        "log.parquet",
        lambda p, c: parquet(p, c, user_id=pa.float64(), item_id=pa.float64(), city=pa.float32()),
    ),
    "Parquet, ids as text": (
        "log.parquet",
        lambda p, c: parquet(p, c, user_id=pa.string(), item_id=pa.string(), city=pa.string()),
    ),
    "Parquet, unsigned ids": (
        "log.parquet",
        lambda p, c: parquet(p, c, user_id=pa.uint64(), item_id=pa.uint16(), timestamp=pa.uint64()),
    ),
    "Parquet, dictionaries": (
        "log.parquet",
        lambda p, c: parquet(p, c, brand=pa.dictionary(pa.int8(), pa.string())),
    ),
    "Parquet, numbers as text": (
        "log.parquet",
        lambda p, c: parquet(p, c, price=pa.string(), stars=pa.string(), timestamp=pa.string()),
    ),
    "Parquet, times as floats": (
        "log.parquet",
        lambda p, c: parquet(p, c, timestamp=pa.float64()),
    ),
    "Parquet, nanoseconds in a zone": ("log.parquet", in_zone("ns", "Asia/Tokyo")),
    "Parquet, milliseconds without one": ("log.parquet", in_zone("ms", None)),
    "ISO texts": ("log.csv", lambda p, c: text(p, {**c, "timestamp": ISO})),
    "milliseconds": ("log.csv", lambda p, c: text(p, scaled(c, 10**3))),
    "microseconds": ("log.parquet", lambda p, c: parquet(p, scaled(c, 10**6))),
    "nanoseconds": ("log.jsonl", lambda p, c: json_lines(p, scaled(c, 10**9))),
    "shuffled": ("log.csv", lambda p, c: text(p, shuffled(c))),
    "shuffled JSON lines": ("log.jsonl", lambda p, c: json_lines(p, shuffled(c, 1))),
    "columns the other way around": ("log.csv", lambda p, c: text(p, reversed_(c))),
    "whole ids with a fraction": (
        "log.csv",
        lambda p, c: text(p, {**c, "item_id": [f"{i}.0" for i in c["item_id"]]}),
    ),
    "lists written out": (
        "log.csv",
        lambda p, c: text(p, {**c, "genres": ["|".join(g) + "|" for g in c["genres"]]}),
    ),
}


def contents(dataset, epochs=2):
    """Every array that a data set holds, and of its first batches."""
    found, log = {}, dataset.log
    for group in ("event", "items", "users"):
        found |= {f"{group}.{name}": x for name, x in getattr(log, group).items()}
    found |= {"offsets": log.offsets, "item": log.item, "time": log.time}
    for part in ("train", "validation", "test"):
        for name, value in vars(getattr(dataset, part)).items():
            more = value.items() if isinstance(value, dict) else [("", value)]
            found |= {f"{part}.{name}.{key}": x for key, x in more}
    for epoch in range(epochs):
        batches = TrainingBatches(dataset, batch_size=256, history=10, unseen_share=0.1)
        for k, step in enumerate(batches.epoch(epoch)):
            for role, value in step.batch.items():
                more = value.items() if isinstance(value, dict) else [("", value)]
                found |= {f"batch {epoch} {k} {role}.{key}": x for key, x in more}
            found |= {f"rows {epoch} {k} {name}": x for name, x in step.pulled.rows.items()}
    return {k: (str(getattr(x, "dtype", "")), np.asarray(x).tolist()) for k, x in found.items()}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    path = text(tmp_path_factory.mktemp("csv") / "log.csv", SHOP)
    dataset = events.load(path, columns=DECLARED)
    assert dataset.schema.find("candidate", "price").kind == "dense"
    found = contents(dataset)
    assert sum(key.startswith("batch") for key in found) > 30
    return dataset, found


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_log_gives_the_same_batches(tmp_path, expected, form):
    name, write = FORMS[form]
    dataset = events.load(write(tmp_path / name, SHOP), columns=DECLARED)
    assert dataset.schema == expected[0].schema
    ours = contents(dataset)
    assert ours.keys() == expected[1].keys()
    for key, value in expected[1].items():
        assert ours[key] == value, key


@pytest.mark.parametrize(
    "form", ["JSON lines", "Parquet", "shuffled", "columns the other way around"]
)
def test_every_form_of_a_log_is_guessed_alike(tmp_path, expected, form):
    guess = events.load(text(tmp_path / "first.csv", SHOP)).columns
    name, write = FORMS[form]
    other = events.load(write(tmp_path / name, SHOP)).columns
    for column in guess:
        found = other.get(column.name)
        if column.kind == "bag" and found.separator is None:
            assert (found.role, found.kind, found.width) == ("item", "bag", 3)
        else:
            assert found == column
    # And what a guess finds, a declaration of it gives again.
    once = events.load(tmp_path / "first.csv")
    again = events.load(tmp_path / "first.csv", columns=guess)
    assert contents(once, 1) == contents(again, 1)
    assert once.schema == again.schema


@pytest.mark.parametrize("form", ["yyyymmdd", "date32", "ISO", "timestamp"])
def test_days(tmp_path, form):
    """Nobody does two things a day here, so that the order of rows says nothing."""
    random = np.random.default_rng(0)
    user = np.repeat(np.arange(30), 12)
    day = np.concatenate([random.choice(60, 12, replace=False) for _ in range(30)])
    dates = [datetime.date(2021, 3, 1) + datetime.timedelta(int(d)) for d in day]
    columns = {"user_id": user, "item_id": random.integers(0, 50, 360), "timestamp": dates}
    declared = Columns(DECLARED.columns[:3])
    seconds = [(d - datetime.date(1970, 1, 1)).days * 86_400 for d in dates]
    plain = {**columns, "timestamp": np.array(seconds)}
    expected = contents(events.load(parquet(tmp_path / "plain.parquet", plain), columns=declared))
    path = {
        "yyyymmdd": lambda: text(
            tmp_path / "log.csv", {**columns, "timestamp": [d.strftime("%Y%m%d") for d in dates]}
        ),
        "date32": lambda: parquet(tmp_path / "log.parquet", columns),
        "ISO": lambda: text(tmp_path / "log.csv", columns),
        "timestamp": lambda: parquet(
            tmp_path / "log.parquet", columns, timestamp=pa.timestamp("us")
        ),
    }[form]()
    assert contents(events.load(path, columns=declared)) == expected
    assert contents(events.load(path)) == expected  # nor does a guess see anything else


def test_a_declaration_is_written_and_read_again(tmp_path):
    guess = events.load(text(tmp_path / "log.csv", SHOP)).columns
    for columns in (guess, DECLARED):
        columns.save(tmp_path / "columns.json")
        assert Columns.load(tmp_path / "columns.json") == columns
        lines = (tmp_path / "columns.json").read_text().splitlines()
        assert len(lines) == 2 + len(columns.columns)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["columns.json", "log.csv"]
    assert json.loads(lines[8].rstrip(",")) == {
        "name": "price",
        "role": "item",
        "per": "event",
        "kind": "number",
    }
    assert json.loads(lines[1].rstrip(","))["value"] == "int"


BAD = {
    "no JSON": ("{", "is no JSON"),
    "another object": ('{"column": []}', "a declaration holds 'columns' only, got"),
    "nothing": ("[]", "'columns' must be a list of columns, got none"),
    "no name": ('[{"role": "item"}]', "a column must be an object with a 'name'"),
    "no role": ('[{"name": "x"}]', "column 'x': needs a role"),
    "a key": ('[{"name": "x", "role": "item", "knd": "bag"}]', "did you mean 'kind'?"),
    "a role": ('[{"name": "x", "role": "itm"}]', "role must be one of user_id, item_id"),
    "a kind": ('[{"name": "x", "role": "item", "kind": "float"}]', "kind must be one of id, bag"),
    "a unit": ('[{"name": "x", "role": "time", "unit": "sec"}]', "unit must be one of s, ms"),
    "per": ('[{"name": "x", "role": "item", "per": "user"}]', "must be one of item, event"),
    "per of ids": ('[{"name": "x", "role": "user_id", "per": "user"}]', "per is for features"),
    "width": ('[{"name": "x", "role": "item", "width": 3}]', "width makes no sense for item of id"),
    "no width": (
        '[{"name": "x", "role": "item", "kind": "bag", "width": 0}]',
        "width must be >= 1, got 0",
    ),
    "a width in words": (
        '[{"name": "x", "role": "item", "kind": "bag", "width": "3"}]',
        "width must be >= 1, got '3'",
    ),
    "a width that is true": (
        '[{"name": "x", "role": "item", "kind": "bag", "width": true}]',
        "width must be >= 1, got True",
    ),
    "a list for a role": ('[{"name": "x", "role": ["item"]}]', "role must be one of user_id"),
    "a number for a field": (
        '[{"name": "x", "role": "item", "field": 3}]',
        "field must be text, got 3",
    ),
    "no kind": ('[{"name": "x", "role": "item", "kind": null}]', "kind must be one of id, bag"),
    "a unit elsewhere": ('[{"name": "x", "role": "item", "unit": "s"}]', "unit makes no sense"),
    "twice": ('[{"name": "x", "role": "item"}, {"name": "x", "role": "user"}]', "'x' twice"),
    "two users": (
        '[{"name": "x", "role": "user_id"}, {"name": "y", "role": "user_id"}]',
        "two columns of role 'user_id': 'x' and 'y'",
    ),
    "one field": (
        '[{"name": "x", "role": "item"}, {"name": "y", "role": "user", "field": "x"}]',
        "column 'y' must be renamed: 'x' takes its name",
    ),
    "reserved": ('[{"name": "time", "role": "item"}]', "'time' must be renamed: the request"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_declarations_end_with_one_line(tmp_path, case):
    content, message = BAD[case]
    path = tmp_path / "columns.json"
    path.write_text(content)
    with pytest.raises(DataError) as caught:
        Columns.load(path)
    assert str(caught.value).startswith(f"{path}: ") and message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(DataError, match="No such file"):
        Columns.load(tmp_path / "none.json")


def tomorrow(tmp_path, name="tomorrow.csv", **changed):
    """Another day's file, some columns changed; None leaves one out."""
    columns = shop_columns(events=300, seed=1)
    columns = {k: v for k, v in (columns | changed).items() if v is not None}
    return text(tmp_path / name, columns)


def by(dataset, path):
    """Another file, read as a run does that was trained on the data set."""
    transforms = {
        f"{f.role}.{f.name}": f.transform for f in dataset.schema.fields if f.kind == "dense"
    }
    return events.load(
        path, columns=dataset.columns, row_maps=dataset.row_maps, transforms=transforms
    )


def changed_cell(name, value, at=-1):
    values = list(shop_columns(events=300, seed=1)[name])
    values[at] = value
    return {name: values}


ODD_DAYS = {
    "one text among the items": changed_cell("item_id", "x7"),
    "one text among the users": changed_cell("user_id", "guest"),
    "one text among the cities": changed_cell("city", "Rome"),
    "a long id": changed_cell("item_id", "9" * 25),
    "one price that is no number": changed_cell("price", "free"),
    "one price changed": changed_cell("price", 99.25, 10),
    "whole prices": {"price": np.arange(300) % 7 + 3},
    "another brand for one event": changed_cell("brand", "brand of nobody", 7),
    "one brand for all": {"brand": ["brand 1"] * 300},
    "every genre alone": {"genres": [["war"]] * 300},
    "more genres than before": changed_cell("genres", ["war", "love", "crime", "fun", "x"]),
    "no city at all": {"city": [None] * 300},
    "a column more": {"more": list(range(300))},
    "a column that is ignored is gone": {"session": None},
}


@pytest.mark.parametrize("day", ODD_DAYS)
def test_another_day_s_file_is_read_by_the_first_one_s_declaration(tmp_path, day):
    first = events.load(text(tmp_path / "log.csv", SHOP))
    plain = by(first, tomorrow(tmp_path, "plain.csv"))
    other = by(first, tomorrow(tmp_path, **ODD_DAYS[day]))
    assert other.schema == plain.schema == first.schema
    for name in ("item", "brand", "city", "home", "genres", "behavior"):
        assert other.row_maps[name] is first.row_maps[name]
    # Whatever is odd is one event's, one item's or one column's own: the rest is the same.
    same = other.log.num_events == plain.log.num_events
    assert same or day in ("one text among the users",)
    if "text among the items" in day or "long id" in day:
        known = lambda data: data.log.items["item"][data.log.item]
        assert (known(other) != known(plain)).sum() == 1 and (known(other) == 1).any()
    if day == "one price that is no number":
        assert "column 'price': 1 value no number: missing" in other.notes
    if "text among" in day or "long id" in day:
        assert any("1 value no whole number: unknown ids" in note for note in other.notes)
    if day == "a column more":
        assert "not declared, left out: more" in other.notes
    if day == "whole prices":
        assert len(np.unique(other.log.event["price"])) == 7


@pytest.mark.parametrize("name", ["item_id", "timestamp", "brand", "price"])
def test_a_declared_column_that_is_missing_is_named(tmp_path, name):
    first = events.load(text(tmp_path / "log.csv", SHOP))
    path = tomorrow(tmp_path, **{name: None})
    with pytest.raises(DataError) as caught:
        by(first, path)
    message = str(caught.value)
    assert message.startswith(f"{path}: declared column {name!r} missing; found ")
    path = tomorrow(tmp_path, brand=None, price=None)
    with pytest.raises(DataError, match="declared columns 'brand', 'price' missing; found"):
        by(first, path)


def test_another_unit_is_bad_rows_by_the_declaration(tmp_path):
    first = events.load(text(tmp_path / "log.csv", SHOP))
    assert first.columns.get("timestamp").unit == "s"
    time = shop_columns(events=300, seed=1)["timestamp"] * 1000
    with pytest.raises(DataError, match="line 2: timestamp must be a time, got"):
        by(first, tomorrow(tmp_path, timestamp=time))


def test_a_run_reads_other_files_by_its_own_declaration(tmp_path):
    path = text(tmp_path / "log.csv", SHOP)
    folder, results = launch.train(
        "mlp",
        data=f"events:{path}",
        out=tmp_path / "run",
        options={"steps": 2, "batch_size": 64},
        quiet=True,
    )
    assert Columns.load(folder / "columns.json") == events.load(path).columns
    assert launch.evaluate_run(folder)["test"] == results["test"]
    # The same log in other forms.
    for form in ("Parquet", "shuffled", "JSON lines", "Parquet, ids as text"):
        name, write = FORMS[form]
        (tmp_path / form).mkdir()
        other = write(tmp_path / form / name, SHOP)
        assert launch.evaluate_run(folder, data=f"events:{other}")["test"] == results["test"]
    for change in ("one text among the items", "whole prices", "one price changed"):
        other = tomorrow(tmp_path, **ODD_DAYS[change])
        block = launch.evaluate_run(folder, data=f"events:{other}")["test"]
        assert 0 < block["auc"] < 1
    with pytest.raises(DataError, match="declared column 'brand' missing"):
        launch.evaluate_run(folder, data=f"events:{tomorrow(tmp_path, brand=None)}")


def test_a_declaration_overrules_the_guess(tmp_path):
    path = text(tmp_path / "log.csv", SHOP)
    assert events.load(path).schema.find("history", "stars") is None
    dataset = events.load(path, columns=DECLARED)
    assert dataset.schema.find("history", "stars").kind == "dense"
    assert dataset.schema.find("candidate", "stars") is None
    changed = [c for c in DECLARED if c.name not in ("stars", "session", "city")]
    more = [
        Column(name="stars", role="context", kind="number", transform="identity"),
        Column(name="session", role="history", field="visit", dim=3),
        Column(name="city", role="ignored"),
    ]
    dataset = events.load(path, columns=Columns((*changed, *more)))
    assert dataset.schema.find("context", "stars").transform == "identity"
    assert dataset.schema.table("visit").dim == 3
    assert dataset.schema.find("user", "city") is None
    assert set(np.unique(dataset.test.context["stars"])) <= {1.5, 2.5, 3.5, 4.5, 5.5}


def test_a_sentinel_does_not_flatten_a_number(tmp_path):
    """-1 or 999999 for "unknown": the others keep their spread, and nothing grows beyond 5."""
    random = np.random.default_rng(0)
    of_item = np.exp(random.normal(3, 0.5, 60)) + 0.01
    plain = of_item[SHOP["item_id"] - 5000]
    for sentinel in (-1.0, 999_999.0, 1e12, -1e30):
        marked = np.where((SHOP["item_id"] - 5000) % 12 == 0, sentinel, plain)
        path = text(tmp_path / "log.csv", {**SHOP, "weight": marked})
        dataset = events.load(path)
        column = dataset.log.items["weight"]
        assert np.abs(column).max() <= 5
        real = column[np.arange(60) % 12 != 0]
        assert 0.6 < real.std() < 2 and len(np.unique(real)) > 50
        assert len(np.unique(column[np.arange(60) % 12 == 0])) == 1


@pytest.mark.parametrize("base", [10**18 + 7, 9 * 10**18, 2**63 - 100])
def test_nineteen_digits_are_the_same_id_in_every_form(tmp_path, base):
    columns = {
        **SHOP,
        "item_id": base + SHOP["item_id"] % 60,
        "user_id": base + SHOP["user_id"] % 40,
    }
    paths = [
        text(tmp_path / "log.csv", columns),
        parquet(tmp_path / "log.parquet", columns),
        json_lines(tmp_path / "log.jsonl", columns),
        parquet(tmp_path / "text.parquet", columns, item_id=pa.string(), user_id=pa.string()),
    ]
    first = events.load(paths[0])
    for path in paths[1:]:
        other = events.load(path)
        assert other.schema == first.schema
        assert contents(other, 1) == contents(first, 1)
        assert contents(by(first, path), 1) == contents(first, 1)
    ids = [int(base + k) for k in range(60)]
    rows = first.row_maps["item"](signatures("item", ids))
    assert len(np.unique(rows[rows > 1])) == (rows > 1).sum() > 40


def test_unsigned_64_bit_ids(tmp_path):
    big = np.uint64(2**64 - 1000)
    columns = {**SHOP, "item_id": big + (SHOP["item_id"] % 60).astype(np.uint64)}
    paths = [
        parquet(tmp_path / "log.parquet", columns),
        text(tmp_path / "log.csv", columns),
        json_lines(tmp_path / "log.jsonl", columns),
    ]
    first = events.load(paths[0])
    assert first.log.num_items == 60 and first.schema.find("candidate", "item").value == "string"
    for path in paths[1:]:
        assert contents(events.load(path), 1) == contents(first, 1)


def test_columns_that_are_guessed_to_be_nothing_are_named_with_the_reason(tmp_path):
    dataset = events.load(text(tmp_path / "log.csv", SHOP))
    assert dataset.facts["columns left out"] == "session, stars, bought_on"
    assert all(column.why for column in dataset.columns)


@pytest.mark.parametrize("name", ["label", "Click", "target"])
def test_a_column_of_outcomes_is_refused_with_the_remedy(tmp_path, name):
    flags = np.arange(900) % 3 // 2
    path = text(tmp_path / "log.csv", {**SHOP, name: np.random.default_rng(0).permutation(flags)})
    with pytest.raises(DataError) as caught:
        events.load(path)
    message = str(caught.value)
    assert f"column {name!r} says what came of each row" in message
    assert f"impressions:{path}" in message and len(message.splitlines()) == 1
    ignored = Column(name=name, role="ignored")
    dataset = events.load(path, columns=Columns((*DECLARED.columns, ignored)))
    assert dataset.schema.find("candidate", name) is None
    shown = Columns((*DECLARED.columns, Column(name=name, role="label")))
    with pytest.raises(DataError, match="is declared as label: these are rows that were shown"):
        events.load(path, columns=shown)


def test_ratings_below_the_threshold_are_left_out(tmp_path):
    columns = {k: v for k, v in SHOP.items() if k != "stars"} | {"rating": SHOP["stars"]}
    path = text(tmp_path / "log.csv", columns)
    dataset = events.load(path, protocol=Protocol(min_rating=3.5))
    kept = int((SHOP["stars"] >= 3.5).sum())
    assert dataset.facts["events rated below 3.5 left out"] == 900 - kept
    assert dataset.log.num_events == kept
    assert events.load(path).log.num_events == 900
    with pytest.raises(DataError, match="min_rating needs ratings, and the events have none"):
        events.load(text(tmp_path / "none.csv", SHOP), protocol=Protocol(min_rating=3.0))
