"""Files as people have them, in forms that no documentation lists."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from recjax.train.data.declaration.clock import read_clock
from recjax.train.data.declaration.columns import Column, Columns
from recjax.train.data.errors import DataError
from recjax.train.data.fields.crosses import with_crosses
from recjax.train.data.protocol import Protocol
from recjax.train.data.sources import events, impressions, open_source
from recjax.train.inspection.suitable import require_suitable, unlearnt_tasks
from recjax.train.inspection.suspects import suspects
from recjax.train.settings import Settings
from recjax.zoo import MODELS, esmm
from recjax.zoo.rerank import RERANKERS

USERS, PER, ITEMS = 30, 12, 40
START = 1_600_000_000


def log(**more):
    """Events of 30 users with 40 items, an hour apart; columns by name."""
    random = np.random.default_rng(0)
    size = USERS * PER
    item = random.integers(0, ITEMS, size)
    time = START + random.permutation(size) * 3600
    user = np.repeat(np.arange(USERS), PER) + 1
    columns = {"user_id": user, "item_id": item + 100, "timestamp": time}
    return columns | {name: make(columns) for name, make in more.items()}


def csv(path, columns):
    rows = zip(*columns.values(), strict=True)
    lines = [",".join(columns), *(",".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def parquet(path, columns):
    pyarrow.parquet.write_table(pa.table({k: pa.array(v) for k, v in columns.items()}), path)
    return path


def jsonl(path, columns):
    rows = zip(*(np.asarray(values).tolist() for values in columns.values()), strict=True)
    lines = (json.dumps(dict(zip(columns, row, strict=True))) for row in rows)
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("text", "cut"),
    [("%Y%m%d%H%M%S", 1), ("%Y%m%d%H%M", 60), ("%Y%m%d%H", 3600), ("%Y%m%d%H%M%S987", 1)],
)
@pytest.mark.parametrize("write", [csv, parquet])
def test_moments_written_as_digits_are_times(tmp_path, text, cut, write):
    moments = np.array([START + 90_061 * n for n in range(8)])
    digits = pa.compute.strftime(pa.array(moments, pa.timestamp("s")), text).to_pylist()
    numbers = {"timestamp": [int(x) for x in digits]}
    assert "yyyymmddhh" in read_clock(pa.array(numbers["timestamp"])).note
    for values in (digits, numbers["timestamp"]):
        clock = read_clock(pa.array(values))
        assert clock.bad == {} and clock.has_clock
        assert clock.seconds.tolist() == (moments // cut * cut).tolist()
    columns = {"user_id": [1, 1, 1, 1, 2, 2, 2, 2], "item_id": [1, 2, 3, 4, 5, 6, 7, 8], **numbers}
    dataset = events.load(write(tmp_path / "log.any", columns))
    assert dataset.log.time.tolist() == (moments // cut * cut).tolist()


@pytest.mark.parametrize("odd", [0, -1, -2_208_988_800, 253_402_214_400])
def test_dates_that_stand_for_unknown_are_bad_rows_in_every_form(odd):
    """0, -1, 1900-01-01 and 9999-12-31, as numbers, texts, dates and timestamps."""
    moments = [START, START + 5, odd, START + 9]
    texts = [str(np.datetime64(x, "s")) for x in moments]
    forms = [pa.array(moments), pa.array(texts), pa.array(moments, pa.timestamp("s"))]
    forms += [pa.array(moments, pa.timestamp("s")).cast(pa.date32(), safe=False)]
    for values in forms:
        assert list(read_clock(values).bad) == [2], values.type
    old = read_clock(pa.array(["1955-01-01", "1956-01-01", "1969-12-31"]))
    assert old.bad == {}  # All are old: none stands for unknown.


def test_times_in_no_known_form_say_what_is_read(tmp_path):
    columns = log(timestamp=lambda c: ["10/02/2020 21:26"] * len(c["user_id"]))
    with pytest.raises(DataError, match="got '10/02/2020 21:26'; times are seconds or .* ISO 8601"):
        events.load(csv(tmp_path / "log.csv", columns))


@pytest.mark.parametrize("write", [csv, parquet, jsonl])
def test_padding_around_numbers_makes_no_other_ids(tmp_path, write):
    padded = lambda c: [f" {x} " if n % 2 else str(x) for n, x in enumerate(c["item_id"])]
    plain = events.load(csv(tmp_path / "plain.csv", log()))
    suffix = {csv: "csv", parquet: "parquet", jsonl: "jsonl"}[write]
    dataset = events.load(write(tmp_path / f"log.{suffix}", log(item_id=padded)))
    assert dataset.schema.hash == plain.schema.hash
    np.testing.assert_array_equal(dataset.log.item, plain.log.item)
    assert any("spaces around its values" in note for note in dataset.notes)


@pytest.mark.parametrize("write", [parquet, jsonl])
def test_decimal_commas_are_refused_in_every_format(tmp_path, write):
    commas = lambda c: [f"{x},5" for x in c["item_id"]]
    path = tmp_path / f"log.{'parquet' if write is parquet else 'jsonl'}"
    with pytest.raises(DataError, match="decimal commas"):
        events.load(write(path, log(price=commas)))


def test_seconds_under_any_name_are_said_where_there_is_no_clock(tmp_path):
    columns = log()
    columns["visited"] = columns.pop("timestamp")
    dataset = events.load(csv(tmp_path / "log.csv", columns))
    assert "if it is the clock: rename it to timestamp" in dataset.columns.get("visited").why


def test_the_file_is_named_where_a_columns_name_is_taken(tmp_path):
    with pytest.raises(DataError, match="log.csv: column 'context_time' must be renamed"):
        events.load(csv(tmp_path / "log.csv", log(context_time=lambda c: c["item_id"] % 7)))


def test_the_other_id_is_no_hint_for_a_missing_one(tmp_path):
    columns = log()
    columns["product"] = columns.pop("item_id")
    with pytest.raises(DataError, match="column 'item_id' is missing") as error:
        events.load(csv(tmp_path / "log.csv", columns))
    assert "Is it 'user_id'" not in str(error.value)


def test_numbers_joined_by_a_bar_are_vectors_though_no_number_repeats(tmp_path):
    vector = lambda c: [f"{x / 7:.3f}|{x / 3:.3f}" for x in c["item_id"]]
    dataset = events.load(csv(tmp_path / "log.csv", log(embedding=vector)))
    column = dataset.columns.get("embedding")
    assert (column.kind, column.width) == ("vector", 2)


def test_names_that_swap_the_columns_of_a_header_are_refused(tmp_path):
    path = csv(tmp_path / "log.csv", log())
    with pytest.raises(DataError, match="already names column 'item_id', in another place"):
        events.load(path, names=["item_id", "user_id", "timestamp"])
    dataset = events.load(path, names=["user_id", "item_id", "timestamp"])
    assert dataset.log.num_users == USERS


def test_a_declared_column_that_changes_or_is_empty_is_said(tmp_path):
    brand = lambda c: [f"b{x % 6}" for x in c["item_id"]]
    first = events.load(csv(tmp_path / "log.csv", log(brand=brand)))
    assert first.notes == ()
    other = log(brand=brand)
    other["brand"][:2] = ["b8", "b9"]
    dataset = events.load(csv(tmp_path / "next.csv", other), columns=first.columns)
    assert dataset.notes == (
        'column \'brand\': 2 items have several values: the first one is read ("per": "event" '
        "reads each as of its event)",
    )
    none = csv(tmp_path / "none.csv", log(brand=lambda c: [""] * len(c["user_id"])))
    assert "column 'brand': no value at all" in events.load(none, columns=first.columns).notes


def test_a_category_that_changes_is_said(tmp_path):
    changing = lambda c: np.arange(len(c["user_id"])) % 9
    dataset = events.load(csv(tmp_path / "log.csv", log(category_id=changing)))
    assert any("'category_id': " in x and "have several values" in x for x in dataset.notes)


def test_ratings_that_are_truth_values_or_words(tmp_path):
    liked = lambda c: [str(n % 3 > 0) for n in range(len(c["user_id"]))]
    path = csv(tmp_path / "log.csv", log(rating=liked))
    dataset = events.load(path, protocol=Protocol(min_rating=1.0))
    assert dataset.facts["events rated below 1 left out"] == USERS * PER // 3
    words = csv(tmp_path / "words.csv", log(rating=lambda c: ["4 stars"] * len(c["user_id"])))
    with pytest.raises(DataError, match="'rating' holds no numbers .it says '4 stars'."):
        events.load(words, protocol=Protocol(min_rating=1.0))
    with pytest.raises(DataError, match="fewer than 3 events rated 9 or more"):
        events.load(path, protocol=Protocol(min_rating=9.0))


def test_evaluation_negatives_name_what_they_may_be_and_users_by_their_own_ids(tmp_path):
    path = csv(tmp_path / "log.csv", log())
    with pytest.raises(DataError, match="must be uniform, popularity or a file of pairs .* Popul"):
        events.load(path, protocol=Protocol(evaluation_negatives="Popularity"))
    few = {"user_id": np.arange(1, 11), "item_id": np.arange(100, 110)}
    given = str(csv(tmp_path / "few.csv", few))
    with pytest.raises(DataError, match="targets have no given item .* first that of user 11"):
        events.load(path, protocol=Protocol(evaluation_negatives=given))


def test_moments_that_split_nothing_are_shown_beside_the_times(tmp_path):
    path = csv(tmp_path / "log.csv", log())
    milliseconds = (START * 1000.0, START * 1000.0 + 1)
    with pytest.raises(DataError, match="split=time at 16000.*; the times are 1600000000 to 16"):
        events.load(path, protocol=Protocol(split="time", split_at=milliseconds))
    with pytest.raises(DataError, match="training, validation and test in this order"):
        events.load(f"{path},{path},{path}")


@pytest.mark.parametrize("scale", [(-1, 1), ("no", "yes"), (1, 5)])
def test_labels_on_another_scale_are_no_rows_to_skip(tmp_path, scale):
    columns = log(label=lambda c: [scale[n % 2] for n in range(len(c["user_id"]))])
    with pytest.raises(DataError, match="must hold labels within .0, 1., got .* write 1 for"):
        impressions.load(csv(tmp_path / "log.csv", columns), on_bad_row="skip")


def test_later_labels_without_earlier_ones_are_said(tmp_path):
    flags = {"label": lambda c: c["item_id"] % 2, "label_buy": lambda c: c["item_id"] % 3 == 0}
    buy = flags | {"label_buy": lambda c: (c["item_id"] % 3 == 0).astype(int)}
    dataset = impressions.load(csv(tmp_path / "log.csv", log(**buy)))
    count = np.count_nonzero((log()["item_id"] % 3 == 0) & (log()["item_id"] % 2 == 0))
    assert f"{count} rows have buy without click: not steps of one funnel, then" in dataset.notes
    both = buy | {"label_buy": lambda c: (c["item_id"] % 6 == 3).astype(int)}
    dataset = impressions.load(csv(tmp_path / "both.csv", log(**both)))
    assert not any("without click" in note for note in dataset.notes)


def test_two_tasks_are_asked_for_by_the_option_that_gives_them(tmp_path):
    path = csv(
        tmp_path / "log.csv", log(behavior=lambda c: np.where(c["item_id"] % 3, "see", "buy"))
    )
    with pytest.raises(DataError, match="has only 'click'; choose behaviours: --set tasks="):
        require_suitable("esmm", esmm, events.load(path))
    require_suitable("esmm", esmm, events.load(path, protocol=Protocol(tasks=("see", "buy"))))


@pytest.mark.parametrize("text", ["city", "city*brand", "user.*candidate.brand", ".x*candidate.x"])
def test_crosses_without_roles_name_the_fields_there_are(tmp_path, text):
    columns = log(city=lambda c: c["user_id"] % 5, brand=lambda c: c["item_id"] % 6)
    dataset = events.load(csv(tmp_path / "log.csv", columns))
    with pytest.raises(ValueError, match=r"each ROLE.NAME; there are .*candidate.brand.*user.city"):
        with_crosses(dataset, [text])
    with_crosses(dataset, ["user.city*candidate.brand"])


def test_given_negatives_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Settings(evaluation_negatives="few.csv").evaluation_negatives == f"{tmp_path}/few.csv"
    assert Settings(evaluation_negatives="popularity").evaluation_negatives == "popularity"


def test_the_item_is_no_second_id_of_itself(tmp_path):
    brand = lambda c: [f"b{x % 6}" for x in c["item_id"]]
    dataset = events.load(csv(tmp_path / "log.csv", log(brand=brand)))
    assert suspects(dataset.without(["history.item"])) == []


def test_a_declaration_of_another_source_is_named_as_such(tmp_path):
    columns = events.load(csv(tmp_path / "log.csv", log())).columns
    folder = tmp_path / "ml"
    folder.mkdir()
    pairs = [(user, movie) for user in (1, 2) for movie in range(user, user + 6)]
    lines = [f"{user},{movie},4.0,{START + movie}" for user, movie in pairs]
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + "\n".join(lines))
    movies = [f"{movie},name,Drama" for movie in range(1, 9)]
    (folder / "movies.csv").write_text("movieId,title,genres\n" + "\n".join(movies))
    with pytest.raises(DataError, match="no field 'user_id', which the declaration .* names"):
        open_source(f"movielens:{folder}", columns=columns)


def test_events_logged_twice_a_moment_apart_are_said(tmp_path):
    """They are no exact copies, yet target and history at once."""
    once = log(behavior=lambda c: ["view"] * len(c["user_id"]))
    assert not any("seconds" in x for x in events.load(csv(tmp_path / "once.csv", once)).notes)
    twice = {name: np.concatenate([column, column]) for name, column in once.items()}
    twice["timestamp"][USERS * PER :] += 2
    dataset = events.load(csv(tmp_path / "twice.csv", twice))
    said = "50% of the events repeat the user's last one within 10 seconds"
    assert any(note.startswith(said) for note in dataset.notes)
    twice["behavior"][USERS * PER :] = "cart"
    assert not any(
        "seconds" in x for x in events.load(csv(tmp_path / "two.csv", twice)).notes
    )  # Two steps of one visit.


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"role": "item_id", "kind": "bag"}, "kind of role 'item_id' must be id, got 'bag'"),
        ({"role": "user_id", "kind": "number"}, "kind of role 'user_id' must be id"),
        ({"role": "item", "kind": "bag", "separator": ""}, "separator must not be empty"),
        ({"role": "item", "kind": "bag", "width": 10**7}, "width must be <= 8192, got 10000000"),
        ({"role": "item", "dim": 10**9}, "dim must be <= 8192"),
    ],
)
def test_declarations_that_no_file_could_meet_are_refused(options, said):
    with pytest.raises(DataError, match=said):
        Columns.from_dict([{"name": "it", **options}])


def test_a_declaration_without_an_id_is_said_to_have_none(tmp_path):
    path = csv(tmp_path / "log.csv", log())
    with pytest.raises(DataError, match="the declaration has no column of role 'item_id'"):
        events.load(path, columns=Columns((Column(name="user_id", role="user_id"),)))


@pytest.mark.parametrize("wrong", ["users", "times"])
def test_a_file_of_histories_that_fits_nobody_is_said(tmp_path, wrong):
    path = csv(tmp_path / "log.csv", log(label=lambda c: c["item_id"] % 2))
    past = log()
    past["timestamp"] -= 10**7
    fine = impressions.load(f"{path},{csv(tmp_path / 'past.csv', past)}")
    assert not any("history" in note for note in fine.notes)
    if wrong == "users":
        past["user_id"] += 1000
    else:
        past["timestamp"] += 10**8
    dataset = impressions.load(f"{path},{csv(tmp_path / 'wrong.csv', past)}")
    assert any(note.startswith("no request has a history: are the ids") for note in dataset.notes)


@pytest.mark.parametrize("kind", ["libffm", "libsvm", "criteo"])
def test_lines_without_users_and_items_pass_the_check_of_every_data_set(tmp_path, kind):
    """Training checks what it is given: a log without items has candidates none the less."""
    lines = {
        "libffm": lambda n: f"{n % 2} 0:{n % 5}:1 1:{100 + n % 7}:1",
        "libsvm": lambda n: f"{n % 2} {1 + n % 5}:1 {10 + n % 7}:1",
        "criteo": lambda n: "\t".join([str(n % 2), *["3"] * 13, *[f"{n % 4:08x}"] * 26]),
    }
    path = tmp_path / "log.txt"
    path.write_text("\n".join(lines[kind](n) for n in range(60)) + "\n")
    dataset = open_source(f"{kind}:{path}")
    dataset.check()
    strange = dataclasses.replace(dataset.test, candidate=dataset.test.candidate - 2)
    with pytest.raises(DataError, match="candidate must be in"):
        dataclasses.replace(dataset, test=strange).check()


@pytest.mark.parametrize("source", ["criteo:none.txt", "libffm:none.txt", "aliccp:none", "market"])
def test_what_a_source_does_not_heed_is_refused(source):
    with pytest.raises(DataError, match="tasks cannot be set; it is for events:, .*impressions:"):
        open_source(source, protocol=Protocol(tasks=("view", "buy")))
    if source != "market":
        with pytest.raises(DataError) as error:
            open_source(source, protocol=Protocol())
        assert "cannot be set" not in str(error.value)


def test_one_time_for_all_is_said(tmp_path):
    same = log(timestamp=lambda c: np.full(len(c["user_id"]), 1_600_000_000))
    note = "all events have one time: the order of the rows is each user's order"
    assert note in events.load(csv(tmp_path / "same.csv", same)).notes
    assert note not in events.load(csv(tmp_path / "log.csv", log())).notes


def test_tasks_that_a_model_does_not_learn():
    tasks = ("view", "cart", "buy")
    assert unlearnt_tasks("din", MODELS["din"], tasks) == ("cart", "buy")
    assert unlearnt_tasks("mind", MODELS["mind"], tasks[:1]) == ()
    assert unlearnt_tasks("esmm", esmm, tasks) == ("buy",)
    assert unlearnt_tasks("evaluator", RERANKERS["evaluator"], tasks) == ()
