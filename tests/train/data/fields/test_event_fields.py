"""Files of events with more than ids: context, vectors, numbers, segments."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recjax.train import launch
from recjax.train.data.batches.pipeline import TrainingBatches
from recjax.train.data.declaration.columns import Column, Columns
from recjax.train.data.errors import DataError
from recjax.train.data.sources import events
from recjax.zoo.features import signatures

# user, item, timestamp, scene, hour of the day, temperature, the user's segment
ROWS = [
    (1, 10, 0, "home", 8, 1.5, "new"),
    (1, 11, 100_000, "cart", 9, 2.5, "new"),
    (1, 12, 200_000, "home", 9, 40.5, "new"),
    (1, 13, 300_000, "search", 10, -1.5, "new"),
    (2, 12, 0, "home", 8, 3.5, "loyal"),
    (2, 10, 100_000, "", 8, 0.5, "loyal"),
    (2, 13, 200_000, "cart", 7, 1.5, "loyal"),
    (3, 14, 0, "home", 8, 2.5, "loyal"),
    (3, 14, 100_000, "home", 8, 2.5, "loyal"),
    (3, 12, 200_000, "home", 8, 2.5, "loyal"),
]
NAMES = "user_id,item_id,timestamp,context_scene,context_hour,context_degrees,segment"


def csv(tmp_path, name="events.csv", lines=ROWS):
    path = tmp_path / name
    path.write_text("\n".join([NAMES, *(",".join(map(str, row)) for row in lines)]) + "\n")
    return path


def row(dataset, table, value):
    return int(dataset.row_maps[table](signatures(table, [value]))[0])


def test_what_was_known_before_an_event_is_the_context_of_its_request(tmp_path):
    dataset = events.load(csv(tmp_path))
    roles = {field.name: field.role for field in dataset.schema.fields if field.name != "item"}
    assert roles == {
        "segment": "user",
        "scene": "context",
        "hour": "context",
        "degrees": "context",
    }
    # Targets by user: of training the events of items 10 and 11, 12, 14; the last is tested.
    scene = lambda split: getattr(dataset, split).context["scene"].tolist()
    home, cart = row(dataset, "scene", "home"), row(dataset, "scene", "cart")
    assert scene("train") == [home, cart, home, home]
    assert scene("validation") == [home, 0, home]  # an empty value
    assert scene("test") == [1, cart, home] and row(dataset, "scene", "search") == 1  # new
    eight = row(dataset, "hour", 8)
    assert dataset.test.context["hour"].tolist() == [1, 1, eight] and eight > 1
    # Numbers are standardised by the median and the quartiles of what training sees.
    assert np.percentile([1.5, 2.5, 3.5, 2.5], (25, 50, 75)).tolist() == [2.25, 2.5, 2.75]
    deviation = 0.5 / 1.349
    expected = np.clip((np.array([-1.5, 1.5, 2.5]) - 2.5) / deviation, -5, 5)
    np.testing.assert_allclose(dataset.test.context["degrees"], expected, rtol=1e-6)
    assert dataset.validation.context["degrees"][0] == 5  # 40.5 is cut
    step = next(TrainingBatches(dataset, batch_size=8, history=4).epoch(0))
    assert step.batch["context"]["degrees"].shape == step.batch["candidate_mask"].shape[:1]


def test_metrics_are_broken_down_by_scene_and_segment(tmp_path):
    dataset = events.load(csv(tmp_path))
    assert set(dataset.segments["segment"].values()) == {"new", "loyal"}
    assert set(dataset.segments["scene"].values()) == {"home", "cart"}
    _, results = launch.train(
        "mlp",
        data=f"events:{tmp_path / 'events.csv'}",
        out=tmp_path / "run",
        options={"steps": 1, "batch_size": 4, "history": 2},
        quiet=True,
    )
    assert set(results["test"]["by"]) == {"scene", "segment"}
    assert set(results["test"]["by"]["segment"]) == {"new", "loyal"}


def test_other_data_are_read_by_what_training_learnt(tmp_path):
    overrides = ["steps=1", "batch_size=4", "history=2"]
    path = csv(tmp_path)
    folder, results = launch.train(
        "mlp",
        data=f"events:{path}",
        out=tmp_path / "run",
        options=launch.options_of(overrides),
        quiet=True,
    )
    hotter = [(*r[:5], r[5] + 30, r[6]) for r in ROWS]
    other = csv(tmp_path, "hotter.csv", hotter)
    again = launch.evaluate_run(folder, data=f"events:{path}")
    assert again["test"] == results["test"]
    # Standardised anew it would be the same data; by the run's own median it is not.
    fresh = events.load(other)
    transforms = {
        f"{field.role}.{field.name}": field.transform
        for field in launch.load_run(folder).saved.schema.fields
        if field.kind == "dense"
    }
    read = events.load(other, transforms=transforms)
    assert fresh.test.context["degrees"].tolist() != read.test.context["degrees"].tolist()
    assert read.test.context["degrees"].tolist() == [5, 5, 5]
    assert launch.evaluate_run(folder, data=f"events:{other}")["test"] != results["test"]


def parquet(tmp_path, vectors):
    columns = dict(zip(NAMES.split(",")[:3], zip(*[r[:3] for r in ROWS], strict=True), strict=True))
    columns["picture"] = pa.array(
        [vectors[item] for item in columns["item_id"]], pa.list_(pa.float64())
    )
    path = tmp_path / "events.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def test_lists_of_numbers_are_vectors_of_the_item(tmp_path):
    vectors = {10: [0.5, 1.0], 11: [2.0, -3.0], 12: None, 13: [4.0, None], 14: [0.0, 0.0]}
    dataset = events.load(parquet(tmp_path, vectors))
    field = dataset.schema.find("history", "picture")
    assert (field.kind, field.width) == ("dense", 2)
    assert dataset.schema.find("candidate", "picture").width == 2
    assert dataset.log.items["picture"].tolist() == [[0.5, 1], [2, -3], [0, 0], [4, 0], [0, 0]]
    step = next(TrainingBatches(dataset, batch_size=8, history=4).epoch(0))
    assert step.batch["candidate"]["picture"].shape == (*step.batch["candidate_mask"].shape, 2)


@pytest.mark.parametrize(
    ("vectors", "why"),
    [
        ({10: [0.5], 11: [1.0, 2.0]}, "holds lists of numbers of different lengths"),
        ({10: [], 11: []}, "has one value only"),
    ],
)
def test_vectors_must_have_one_length(tmp_path, vectors, why):
    path = parquet(tmp_path, {12: None, 13: None, 14: None, **vectors})
    column = events.load(path).columns.get("picture")
    assert (column.role, column.why) == ("ignored", why)
    # Where a length is declared, others are no vectors of it.
    known = [Column(name=x, role=x) for x in ("user_id", "item_id")]
    known.append(Column(name="timestamp", role="time"))
    picture = Column(name="picture", role="item", kind="vector", width=2)
    dataset = events.load(path, columns=Columns((*known, picture)))
    lists = [own for own in (vectors[10], vectors[11]) if len(own) == 2]
    assert dataset.log.items["picture"].tolist() == [[0, 0], *(lists or [[0, 0]]), *[[0, 0]] * 3]
    # A note counts rows, not items: 10 stands in two.
    assert any("no vector of 2 numbers: missing" in note for note in dataset.notes)


def test_vectors_that_differ_from_event_to_event_say_nothing_of_the_item(tmp_path):
    """They may well be an outcome: left out, unless they are known to be of the context."""
    columns = dict(zip(NAMES.split(",")[:3], zip(*[r[:3] for r in ROWS], strict=True), strict=True))
    drawn = np.random.default_rng(0).normal(size=(len(ROWS), 2)).tolist()
    path = tmp_path / "events.parquet"
    pq.write_table(pa.table({**columns, "gaze": drawn, "context_place": drawn}), path)
    dataset = events.load(path)
    assert dataset.facts["columns left out"] == "gaze"
    assert dataset.schema.find("context", "place").width == 2
    last = [i for i, r in enumerate(ROWS) if i + 1 == len(ROWS) or ROWS[i + 1][0] != r[0]]
    expected = np.array(drawn, np.float32)[last]
    np.testing.assert_array_equal(dataset.test.context["place"], expected)


def test_vectors_must_be_finite(tmp_path):
    vectors = {10: [0.5], 11: [1.0], 12: [float("inf")], 13: [2.0], 14: None}
    with pytest.raises(DataError, match="Vectors of 'picture' must hold finite numbers"):
        events.load(parquet(tmp_path, vectors))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("item", "column 'item' must be renamed: 'item_id' takes its name"),
        ("context_item", "column 'context_item' must be renamed: 'item_id' takes its name"),
        ("hour", "column 'hour' must be renamed: 'context_hour' takes its name"),
        ("time", "column 'time' must be renamed: the request itself takes its name"),
        ("context_time", "column 'context_time' must be renamed: the request itself"),
        ("history", "column 'history' must be renamed: the request itself takes its name"),
        ("context_", "column 'context_' must be renamed: it names no field"),
    ],
)
def test_names_that_are_taken(tmp_path, name, message):
    path = csv(tmp_path)
    header, *lines = path.read_text().splitlines()
    more = [f"{line},x{int(line.split(',')[1]) % 2}" for line in lines]
    path.write_text("\n".join([f"{header},{name}", *more]) + "\n")
    with pytest.raises(DataError, match=message):
        events.load(path)
