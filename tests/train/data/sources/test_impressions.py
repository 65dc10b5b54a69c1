import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from recjax.train.data.declaration.columns import Column, Columns
from recjax.train.data.errors import DataError
from recjax.train.data.event_log import leaks
from recjax.train.data.impressions import groups
from recjax.train.data.protocol import Protocol
from recjax.train.data.sources import impressions
from recjax.zoo.features import signatures

HEADER = "user_id,request_id,timestamp,position,item_id,context_scene,label_buy,label_click,weight"
# (user, request, time, position, item, scene, buy, click, weight), in no order of time or slot.
ROWS = """\
ann,7,100,2,30,home,0,0,1
ann,7,100,1,10,home,1,1,2
bob,8,100,1,20,search,0,1,1
ann,9,300,1,20,home,0,1,1
ann,9,300,2,30,home,0,0,.5
ann,9,300,3,10,home,0,1,1
bob,5,200,1,10,search,0,0,1
ann,10,400,2,40,search,1,1,1
ann,10,400,1,20,search,0,0,0
ann,11,400,1,50,home,0,1,1
bob,12,500,1,10,home,0,0,1
bob,12,500,2,60,home,0,1,1
"""
TEXT = f"{HEADER}\n{ROWS}"
AT = Protocol(split="time", split_at=(400.0, 500.0))


def write(tmp_path, text=TEXT, name="log.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


def load(tmp_path, text=TEXT, **options):
    options = {"protocol": AT, **options}
    return impressions.load(write(tmp_path, text), **options)


def rows(dataset, table, *values):
    return dataset.row_maps[table](signatures(table, list(values))).tolist()


def items_of(dataset, requests):
    """The published ids of the candidates, 0 where none is or training does not know it."""
    known = {row: i for i in range(0, 1000, 10) for row in rows(dataset, "item", i) if row > 1}
    row = np.where(requests.candidate >= 0, dataset.log.items["item"][requests.candidate], 0)
    return [[known.get(int(x), 0) for x in line] for line in row]


def pasts(dataset, requests):
    """The items of each history."""
    log = dataset.log
    item = log.items["item"][log.item]
    start = log.offsets[requests.user]
    return [item[a : a + n].tolist() for a, n in zip(start, requests.cut, strict=True)]


def no_leaks(dataset):
    parts = (dataset.train, dataset.validation, dataset.test)
    return not any(len(leaks(dataset.log, part)) for part in parts)


def simple(count=20, header="user_id,item_id,timestamp,label", row="{u},{i},{t},{y}"):
    """One candidate a request: text of `count` rows."""
    lines = [
        row.format(u=n % 3, i=n % 7, t=1_600_000_000 + 100 * n, y=n % 2, n=n) for n in range(count)
    ]
    return "\n".join([header, *lines]) + "\n"


def test_what_was_shown_together(tmp_path):
    dataset = load(tmp_path)
    train = dataset.train
    assert not dataset.samples_negatives
    assert dataset.schema.tasks == ("click", "buy")  # down the funnel, not as the columns stand
    # By time, then in file order; in the order of the slots.
    assert items_of(dataset, train) == [[10, 30, 0], [20, 0, 0], [10, 0, 0], [20, 30, 10]]
    assert train.time.tolist() == [100, 100, 200, 300]
    assert train.candidate[:, 2].tolist()[:3] == [-1, -1, -1]
    assert train.label["click"].tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 0], [1, 0, 1]]
    assert train.label["buy"].tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    for task in ("click", "buy"):
        assert train.weight[task].tolist() == [[2, 1, 0], [1, 0, 0], [1, 0, 0], [1, 0.5, 1]]
    home, search = rows(dataset, "scene", "home", "search")
    assert train.context["scene"].tolist() == [home, search, search, home]
    first, second, third = rows(dataset, "position", 1, 2, 3)
    assert train.shown["position"].tolist() == [
        [first, second, 0],
        [first, 0, 0],
        [first, 0, 0],
        [first, second, third],
    ]
    assert dataset.segments == {"scene": {home: "home", search: "search"}}
    assert dataset.facts["requests"] == 7 and dataset.facts["impressions"] == 12
    assert no_leaks(dataset)


def test_histories_are_of_earlier_seconds(tmp_path):
    dataset = load(tmp_path)
    ten, twenty = rows(dataset, "item", 10, 20)
    # Ann's at 300; nobody has a past at 100; Bob at 200 clicked 20 before.
    assert pasts(dataset, dataset.train) == [[], [], [twenty], [ten]]
    # Ann's two requests at 400: neither sees what the other one got.
    assert pasts(dataset, dataset.validation) == [[ten, twenty, ten]] * 2
    assert pasts(dataset, dataset.test) == [[twenty]]
    assert no_leaks(dataset)


def test_training_alone_is_learnt_from(tmp_path):
    dataset = load(tmp_path)
    # 40 and 50 stand in validation, 60 in test.
    assert rows(dataset, "item", 40, 50, 60) == [1, 1, 1]
    assert dataset.schema.table("item").rows == 2 + 3
    text = simple(20, "user_id,item_id,timestamp,label,context_x", "{u},{i},{t},{y},{n}.5")
    dataset = impressions.load(write(tmp_path, text))
    # 16 of 20 requests train: 0.5, ..., 15.5, the median 8, the quartiles 4.25 and 11.75.
    assert dataset.schema.find("context", "x").transform.startswith("robust(8, ")
    assert len(dataset.train) == 16


def test_without_request_ids_rows_of_a_second_are_a_request(tmp_path):
    text = "".join(
        ",".join(cell for n, cell in enumerate(line.split(",")) if n != 1) + "\n"
        for line in TEXT.splitlines()
    )
    dataset = load(tmp_path, text)
    # Ann's requests 10 and 11, both at 400, are one, and it has two candidates in the first slot.
    assert items_of(dataset, dataset.validation)[0][0] == 20
    assert (dataset.validation.candidate >= 0).sum() == 3 and len(dataset.validation) == 1
    assert "no request_id: rows of one user and one timestamp are a request" in dataset.notes
    # One scene is no longer that of the request.
    assert dataset.columns.get("context_scene").role == "item"
    assert dataset.validation.shown["scene"].shape == (1, 3) and not dataset.segments


def test_without_any_time_the_order_of_the_requests_is_the_time(tmp_path):
    text = "user_id,request_id,item_id,label\n" + "".join(
        f"{r % 2},{r},{i},{int(i == r % 5)}\n" for r in range(10) for i in (r % 5, 7)
    )
    dataset = impressions.load(write(tmp_path, text))
    assert not dataset.log.has_clock
    assert [len(x) for x in (dataset.train, dataset.validation, dataset.test)] == [8, 1, 1]
    # Every request has one positive, and each user every other request.
    assert dataset.train.cut.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert dataset.test.cut.tolist() == [4]
    assert "no timestamp: the order of the requests in the file is the time" in dataset.notes
    assert no_leaks(dataset)
    bare = "user_id,item_id,label\n" + "".join(f"{n // 5},{n % 7},{n % 2}\n" for n in range(20))
    dataset = impressions.load(write(tmp_path, bare), protocol=Protocol(split="last"))
    assert dataset.train.candidate.shape == (12, 1)
    assert dataset.test.cut.tolist() == [2, 2, 2, 2]
    notes = " ".join(dataset.notes)
    assert "every row is a request of one candidate" in notes and "sorted by user" in notes


def test_the_last_request_of_each_user(tmp_path):
    dataset = load(tmp_path, protocol=Protocol(split="last"))
    # Ann's 10 and 11 share a second: the file decides.
    assert dataset.test.time.tolist() == [400, 500]
    assert dataset.validation.time.tolist() == [200, 400]
    assert dataset.train.time.tolist() == [100, 100, 300]
    assert dataset.test.candidate[0].tolist().count(-1) == 2


def test_a_split_of_few_times(tmp_path):
    # Nine of ten requests lie in one second: no part is empty all the same.
    rows = [f"{n},{n % 5},{1_600_000_000 + 60 * max(0, n - 27)},{n % 2}" for n in range(30)]
    text = "user_id,item_id,timestamp,label\n" + "\n".join(rows)
    dataset = impressions.load(write(tmp_path, text))
    assert [len(x) for x in (dataset.train, dataset.validation, dataset.test)] == [28, 1, 1]
    with pytest.raises(DataError, match="three times or more, and the requests have 1; split=last"):
        impressions.load(
            write(
                tmp_path,
                simple().replace(",16000", ",16000").split("\n")[0] + "\n1,2,5,1\n1,3,5,0\n",
            )
        )
    with pytest.raises(DataError, match="no request is left for test"):
        impressions.load(write(tmp_path), protocol=Protocol(split="time", split_at=(400.0, 900.0)))


def test_a_file_of_histories(tmp_path):
    impressed = "user_id,request_id,timestamp,item_id,label\n" + "".join(
        f"{1 + r % 2},{r},{1_600_000_000 + 100 * r},{i},{int(i < 3)}\n"
        for r in range(10)
        for i in (r % 5, 5)
    )
    past = "user_id,item_id,timestamp,behavior,brand\n" + "".join(
        f"{u},{i},{t},{b},b{int(float(i)) % 2}\n"
        for u, i, t, b in [
            ("1.0", "77", 1_600_000_000, "view"),
            ("1.0", "3.0", 1_599_999_999, "view"),
            ("2.0", "78", 1_600_000_150, "buy"),
            ("3.0", "3.0", 1_500_000_000, "buy"),
            ("3.0", "79", 1_500_000_000, "buy"),
            *(("2.0", str(i), 1_600_000_040 + i, "view") for i in range(6)),
            *(("1.0", str(i), 1_600_000_110 + i, "view") for i in range(6)),
        ]
    )
    one, other = write(tmp_path, impressed), write(tmp_path, past, "past.csv")
    dataset = impressions.load(f"{one},{other}")
    # User 1 asks at 0, 200, 400, ...: 77 happened in the second of the first request.
    assert dataset.train.user.tolist() == [0, 1] * 4
    assert dataset.train.cut.tolist() == [1, 6, 8, 7, 8, 7, 8, 7]
    three, of_1 = rows(dataset, "item", 3, 77)
    assert pasts(dataset, dataset.train)[0] == [three] and of_1 > 1
    assert pasts(dataset, dataset.train)[2][:2] == [three, of_1]
    assert dataset.facts["events of users without requests left out"] == 2
    assert rows(dataset, "item", 79) == [1]  # Only of a user who never asks.
    view, buy = rows(dataset, "behavior", "view", "buy")
    assert dataset.log.event["behavior"].tolist() == [view] * 8 + [view] * 6 + [buy]
    # The brand of items stands in one file, and is that of the candidates.
    brand = dataset.log.items["brand"][dataset.train.candidate[0]]
    assert brand.tolist() == rows(dataset, "brand", "b0", "b1")
    assert dataset.columns.get("brand").role == "item"
    assert no_leaks(dataset)
    again = impressions.load(f"{one},{other}", columns=dataset.columns, row_maps=dataset.row_maps)
    assert again.schema == dataset.schema and again.log.checksum() == dataset.log.checksum()
    write(tmp_path, "user_id,item_id\n1,2\n2,3\n", "past.csv")
    with pytest.raises(DataError, match="past.csv: needs a timestamp"):
        impressions.load(f"{one},{other}")
    write(tmp_path, "user_id,item_id,timestamp\n1,2,1\n2,3,2\n", "past.csv")
    with pytest.raises(DataError, match="times cannot be compared"):
        impressions.load(f"{one},{other}")


def test_files_of_ones_own(tmp_path):
    head, *lines = TEXT.splitlines()
    parts = [lines[:7], lines[7:10], lines[10:]]
    paths = [
        str(write(tmp_path, "\n".join([head, *part]) + "\n", f"{n}.csv"))
        for n, part in enumerate(parts)
    ]
    dataset = impressions.load(",".join(paths))
    whole = load(tmp_path)
    for part in ("train", "validation", "test"):
        mine, theirs = getattr(dataset, part), getattr(whole, part)
        assert mine.candidate.tolist() == theirs.candidate.tolist()
        assert mine.cut.tolist() == theirs.cut.tolist()
    # Training on what came after the test would see its answer in the history.
    other = impressions.load(",".join([paths[0], paths[2], paths[1]]))
    assert other.validation.time.tolist() == [500]
    with pytest.raises(DataError, match="no request is left for train"):
        impressions.load(",".join([paths[1], paths[2], paths[0]]))


def test_copies_of_rows_are_dropped(tmp_path):
    whole = load(tmp_path)
    twice = load(tmp_path, TEXT + ROWS)
    assert twice.train.candidate.tolist() == whole.train.candidate.tolist()
    assert twice.log.checksum() == whole.log.checksum()
    assert twice.facts["duplicate rows dropped"] == 12
    kept = load(tmp_path, TEXT + ROWS, protocol=dataclasses.replace(AT, duplicates="keep"))
    assert (kept.train.candidate >= 0).sum() == 2 * (whole.train.candidate >= 0).sum()
    assert "duplicate rows dropped" not in kept.facts
    assert no_leaks(kept)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("ann,7,100,1,10,home,0,2,1", "label_click must be a number within [0, 1], got '2'"),
        ("ann,7,100,1,10,home,-1,1,1", "label_buy must be a number within [0, 1], got '-1'"),
        ("ann,7,100,1,10,home,0,x,1", "label_click must be a number within [0, 1], got 'x'"),
        ("ann,7,100,1,10,home,0,,1", "label_click is missing"),
        ("ann,7,100,1,10,home,0,1,-1", "weight must be a number >= 0, got '-1'"),
        ("ann,7,100,1,10,home,0,1,inf", "weight must be a number >= 0, got 'inf'"),
        ("ann,,100,1,10,home,0,1,1", "request_id is missing"),
        (",7,100,1,10,home,0,1,1", "user_id is missing"),
    ],
)
def test_bad_rows(tmp_path, row, reason):
    text = f"{HEADER}\n\n{row}\n{ROWS}"
    with pytest.raises(DataError) as error:
        load(tmp_path, text)
    assert f"log.csv: line 3: {reason}" in str(error.value)
    dataset = load(tmp_path, text, on_bad_row="skip")
    assert dataset.facts["rows skipped"] == 1
    assert dataset.train.candidate.tolist() == load(tmp_path).train.candidate.tolist()


@pytest.mark.parametrize(
    ("names", "tasks"),
    [
        ("label", ["click"]),
        ("Label", ["click"]),
        ("clicked", ["click"]),
        ("is_click", ["click"]),
        ("conversion,click", ["click", "conversion"]),
        ("label_pay,label_fav,label_click", ["click", "fav", "pay"]),
        ("label_buy,label", ["click", "buy"]),
        ("label_b,label_a", ["b", "a"]),
    ],
)
def test_names_of_labels(tmp_path, names, tasks):
    values = ",".join(["{y}"] * len(names.split(",")))
    text = simple(20, f"user_id,item_id,timestamp,{names}", "{u},{i},{t}," + values)
    dataset = impressions.load(write(tmp_path, text))
    assert list(dataset.schema.tasks) == tasks == list(dataset.train.label)
    again = impressions.load(write(tmp_path, text), columns=dataset.columns)
    assert again.schema.tasks == dataset.schema.tasks
    flags = impressions.load(write(tmp_path, text.replace(",1", ",True").replace(",True6", ",16")))
    assert flags.train.label[tasks[0]].tolist() == dataset.train.label[tasks[0]].tolist()


def test_a_label_beside_another_one_is_an_outcome(tmp_path):
    text = simple(40, "user_id,item_id,timestamp,label,click,rating", "{u},{i},{t},{y},{y},{y}")
    dataset = impressions.load(write(tmp_path, text))
    assert {f.name for f in dataset.schema.fields} == {"item"}
    assert "click" in dataset.facts["columns left out"]
    with pytest.raises(DataError, match="no column of labels.*events:"):
        impressions.load(write(tmp_path, simple(row="{u},{i},{t},{n}").replace("label", "n")))
    double = Columns.from_dict(
        [
            {"name": "user_id", "role": "user_id"},
            {"name": "item_id", "role": "item_id"},
            {"name": "label", "role": "label"},
            {"name": "timestamp", "role": "label"},
        ]
    )
    with pytest.raises(DataError, match="both labels of 'click'|within"):
        impressions.load(write(tmp_path, simple().replace("16000", "0")), columns=double)


def test_tasks_that_are_asked_for(tmp_path):
    dataset = load(tmp_path, protocol=dataclasses.replace(AT, tasks=("buy",)))
    assert dataset.schema.tasks == ("buy",)
    assert dataset.log.num_events == 2  # Histories are of the first task.
    with pytest.raises(DataError, match="no label of task 'cart' \\(click, buy\\)"):
        load(tmp_path, protocol=dataclasses.replace(AT, tasks=("cart",)))
    with pytest.raises(DataError, match="min_rating is for events"):
        load(tmp_path, protocol=dataclasses.replace(AT, min_rating=3.0))


def test_odd_requests_are_said(tmp_path):
    text = TEXT + "bob,7,100,3,70,home,0,0,1\nann,9,300,4,20,home,0,0,1\n"
    dataset = load(tmp_path, text)
    assert "1 request ids are of several users: a request is of one user" in dataset.notes
    assert "1 requests show an item twice: each is a candidate of its own" in dataset.notes
    assert (dataset.train.candidate >= 0).sum() == 9
    late = load(tmp_path, TEXT + "bob,5,400000,2,10,search,0,0,1\n")
    assert any("rows of one request lie up to" in note for note in late.notes)
    assert "all labels of buy in test are 0: AUC is undefined" in dataset.notes
    ones = load(tmp_path, TEXT.replace(",0,0,", ",0,1,"))
    assert "all labels of click in train are 1: nothing can be learnt" in ones.notes
    with pytest.raises(DataError, match="labels of click must be 0 or 1 in validation and test"):
        load(tmp_path, TEXT.replace("50,home,0,1,1", "50,home,0,.5,1"))
    assert (
        load(tmp_path, TEXT.replace("30,home,0,0,1", "30,home,0,.5,1")).train.label["click"].max()
    )
    with pytest.raises(DataError, match="weights of click must not all be 0 in test"):
        load(
            tmp_path,
            TEXT.replace("10,home,0,0,1", "10,home,0,0,0").replace(
                "60,home,0,1,1", "60,home,0,1,0"
            ),
        )


def test_a_crawler_is_cut(tmp_path):
    many = 50_000
    request = np.concatenate([np.zeros(many, np.int64), np.arange(1, 2001)])
    table = pa.table(
        {
            "user_id": request % 100,
            "request_id": request,
            "timestamp": 1_600_000_000 + 60 * request,
            "item_id": np.arange(len(request)),
            "label": np.arange(len(request)) % 2,
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "log.parquet")
    dataset = impressions.load(tmp_path / "log.parquet")
    width = dataset.train.candidate.shape[1]
    assert width <= groups.MOST_CANDIDATES
    assert dataset.train.candidate.size <= 16 * len(request) + 2**20
    pieces = -(-many // width)
    assert (dataset.train.time == 1_600_000_000).sum() == pieces
    assert (dataset.train.cut[:pieces] == 0).all()
    examples = sum(p.examples for p in (dataset.train, dataset.validation, dataset.test))
    assert examples == len(request)
    assert f"1 request has more than {width} candidates (up to {many})" in " ".join(dataset.notes)
    assert no_leaks(dataset)


def test_long_requests_among_many_short_ones_cost_little():
    lengths = np.concatenate([np.full(2, 1000), np.ones(200_000, np.int64)])
    user = np.repeat(np.arange(len(lengths)), lengths)
    notes = []
    asked = groups.group(user, user)
    padded = groups.Padded.of(asked, notes)
    assert len(padded.owner) * padded.width <= 16 * len(user) + 2**20
    assert padded.width > 1 and len(notes) == 1
    # Nothing is cut where it fits.
    padded = groups.Padded.of(groups.group(user[:2500], user[:2500]), notes)
    assert padded.width == 1000 and len(notes) == 1
    every = np.ones(502, bool)
    assert (np.sort(padded.fill(every, np.arange(1, 2501)), axis=None)[-2500:] > 0).all()


def shop(count=200, seed=0):
    """Requests of four candidates; what each column is, `test_what_columns_are` says."""
    rng = np.random.default_rng(seed)
    lines = ["user_id,request_id,timestamp,item_id,brand,city,price,context_score,spent,label"]
    for r in range(count):
        user, spent = int(rng.integers(150)), int(rng.integers(2))
        for item in rng.choice(30, 4, replace=False):
            price = item + r // 50 + 0.25
            score, label = round(rng.random(), 3), int(rng.random() < 0.5) * spent
            lines.append(
                f"{user},{r},{1_600_000_000 + 60 * r},{item},b{item % 4},c{user % 5},{price},"
                f"{score},{spent},{label}"
            )
    return "\n".join(lines) + "\n"


def test_what_columns_are(tmp_path):
    dataset = impressions.load(write(tmp_path, shop()))
    roles = {column.name: (column.role, column.per) for column in dataset.columns}
    assert roles["brand"] == ("item", "item")
    assert roles["city"] == ("user", "user")
    # Its rows agree in what a request came to, and most users have one: no user's own.
    assert roles["spent"] == ("ignored", None)
    assert "spent" in dataset.facts["columns left out"]
    assert roles["price"] == roles["context_score"] == ("item", "event")
    shown = dataset.train.shown
    assert set(shown) == {"price", "score"}
    # The candidate has the price of its own row, and so has the past event.
    raw = pyarrow.csv.read_csv(tmp_path / "log.csv")
    at = np.argmax(raw["price"].to_numpy()[:4])
    assert np.argmax(shown["price"][0]) == at
    assert np.unique(dataset.log.event["price"]).size > 30
    assert no_leaks(dataset)


def test_another_day_is_read_the_same(tmp_path):
    first = impressions.load(write(tmp_path, shop()))
    transforms = {
        f"{f.role}.{f.name}": f.transform for f in first.schema.fields if f.kind == "dense"
    }
    text = shop(60, seed=1).replace(",b1,", ",7,")
    path = tmp_path / "columns.json"
    first.columns.save(path)
    options = {"columns": Columns.load(path), "row_maps": first.row_maps, "transforms": transforms}
    other = impressions.load(write(tmp_path, text), **options)
    assert other.schema == first.schema
    assert other.train.shown["price"].dtype == np.float32
    assert 1 in other.log.items["brand"]
    with pytest.raises(DataError, match="declared column 'label' missing"):
        impressions.load(write(tmp_path, text.replace("label", "lable")), **options)


def test_a_declaration(tmp_path):
    columns = Columns(
        (
            Column(name="who", role="user_id"),
            Column(name="what", role="item_id", value="int"),
            Column(name="page", role="request"),
            Column(name="when", role="time", unit="s"),
            Column(name="slot", role="position", value="int"),
            Column(name="ordered", role="label", task="order"),
            Column(name="seen", role="label", task="open"),
            Column(name="share", role="weight", task="open"),
            Column(name="hour", role="context", value="int"),
            Column(name="dwell", role="history", kind="number"),
            Column(name="city", role="user", per="event"),
        )
    )
    text = "who,what,page,when,slot,ordered,seen,share,hour,dwell,city,noise\n" + "".join(
        f"u{r % 2},{i},{r},{160_000_000 + 3600 * r},{9 - i},{int(r % 3 == i)},{i % 2},{1 + i},{r},"
        f"{i}.5,{'xyz'[r // 4 % 3]},{r}\n"
        for r in range(20)
        for i in range(3)
    )
    dataset = impressions.load(write(tmp_path, text), columns=columns)
    assert dataset.schema.tasks == ("order", "open")  # As declared.
    assert set(dataset.train.weight) == {"open"}
    # The slots fall as the items rise.
    assert (np.diff(dataset.train.candidate, axis=1) < 0).all()
    assert dataset.train.weight["open"][0].tolist() == [3, 2, 1]
    assert "slot" in dataset.train.shown and "hour" in dataset.train.context
    # What came of an event is known of past events only.
    assert dataset.schema.find("history", "dwell") and not dataset.schema.find("candidate", "dwell")
    # A user is where they were in an earlier request: 0, 0, then x until request 5, y from 6 on.
    x, y = rows(dataset, "city", "x", "y")
    assert dataset.train.context["city"][:8].tolist() == [0, 0, x, x, x, x, y, y]
    assert "not declared, left out: noise" in dataset.notes
    assert no_leaks(dataset)


def test_users_whom_training_never_asks_are_unknown(tmp_path):
    columns = Columns(
        (
            Column(name="user_id", role="user_id", value="int"),
            Column(name="item_id", role="item_id", value="int"),
            Column(name="timestamp", role="time", unit="s"),
            Column(name="label", role="label"),
            Column(name="city", role="user"),
        )
    )
    text = simple(20, "user_id,item_id,timestamp,label,city", "{u},{i},{t},{y},c{u}")
    text += f"9,1,{1_600_000_000 + 100 * 20},1,c9\n"
    dataset = impressions.load(write(tmp_path, text), columns=columns)
    assert rows(dataset, "city", "c9") == [1]
    assert 1 not in rows(dataset, "city", "c0", "c1", "c2")
    assert dataset.log.users["city"].tolist() == rows(dataset, "city", "c0", "c1", "c2", "c9")
