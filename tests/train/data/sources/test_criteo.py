import dataclasses
import gzip

import numpy as np
import pyarrow as pa
import pytest

from recjax.train import launch
from recjax.train.data.batches.pipeline import evaluation_batches
from recjax.train.data.errors import DataError
from recjax.train.data.event_log import leaks
from recjax.train.data.sources import criteo, open_source
from recjax.zoo.features import HashedRows, encode, signatures

LINES = 20
FREQUENT, RARE, LATE = "68fd1e64", "0000000f", "ffffffff"


def line(label=0, numbers=(), categories=()):
    """One line as Criteo publishes it; what is left out is empty."""
    numbers = [*map(str, numbers), *[""] * (13 - len(numbers))]
    categories = [*categories, *[""] * (26 - len(categories))]
    return "\t".join([str(label), *numbers, *categories]) + "\n"


def lines():
    """c1: FREQUENT on even lines; RARE on lines 1 and 17, so once in training; LATE on 19."""
    for n in range(LINES):
        rare = {1: RARE, 17: RARE, 19: LATE}.get(n, "")
        yield line(n % 2, ["" if n == 3 else n, -n], [rare if n % 2 else FREQUENT, f"{n:08x}"])


TEXT = "".join(lines())


def write(tmp_path, content=TEXT, name="train.txt"):
    path = tmp_path / name
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


def many(count=1000, seed=0):
    """Lines in which c1 tells the label."""
    draws = np.random.default_rng(seed)
    for _ in range(count):
        kinds = draws.integers(0, 4, 26)
        label = int(draws.random() < (0.9 if kinds[0] < 2 else 0.1))
        yield line(label, draws.integers(-2, 100, 13), [f"{kind:08x}" for kind in kinds])


@pytest.mark.parametrize("name", ["train.txt", "train.txt.gz"])
def test_what_a_file_says(tmp_path, name):
    data = criteo.load(write(tmp_path, name=name), min_count=2)
    assert data.name == f"criteo:{name}"
    assert (len(data.train), len(data.validation), len(data.test)) == (16, 2, 2)
    assert data.train.time.tolist() == list(range(1, 17))
    assert data.validation.time.tolist() == [17, 18] and data.test.time.tolist() == [19, 20]
    assert data.train.label["click"].tolist() == [[n % 2] for n in range(16)]
    for requests in (data.train, data.validation, data.test):
        assert requests.examples == len(requests) and len(leaks(data.log, requests)) == 0
    # FREQUENT is seen 8 times, RARE once, LATE never by training.
    assert data.schema.table("c1").rows == 3
    assert data.row_maps["c1"](signatures("c1", [FREQUENT, RARE, LATE])).tolist() == [2, 1, 1]
    assert data.train.context["c1"].tolist() == [2, 1, *[2, 0] * 7]
    assert data.validation.context["c1"].tolist() == [2, 1]
    assert data.test.context["c1"].tolist() == [2, 1]
    assert data.schema.table("c2").rows == 2 and set(data.train.context["c2"]) == {1}
    assert set(data.train.context["c3"]) == {0}
    for name, sign in (("i1", 1), ("i2", -1)):
        expected = [sign * np.log1p(n) for n in range(16)]
        expected[3] = 0.0 if name == "i1" else expected[3]
        np.testing.assert_allclose(data.train.context[name], expected, rtol=1e-6)
    assert set(data.train.context["i3"]) == {0.0}
    assert data.facts["lines"] == 20 and data.facts["clicks per line"] == 0.5
    assert not data.log.has_clock and data.log.num_items == 0


def test_published_minimum(tmp_path):
    text = "".join(line(0, (), [f"{n // 10:08x}", f"{n // 9:08x}"]) for n in range(100))
    data = criteo.load(write(tmp_path, text))
    # Training sees lines 0..79: 8 values ten times each; 8 values nine times and one eight times.
    assert data.schema.table("c1").rows == 2 + 8
    assert data.schema.table("c2").rows == 2


def test_a_batch_is_what_a_request_record_says(tmp_path):
    data = criteo.load(write(tmp_path), min_count=1)
    (batch,) = evaluation_batches(data.schema, data.log, data.train, batch_size=16, history=4)
    assert batch["history_mask"].shape == (16, 0) and batch["history"] == {}
    assert "history_age" not in batch
    raw = []
    for text in TEXT.splitlines()[:16]:
        values = [value or None for value in text.split("\t")[1:]]
        numbers = [None if value is None else int(value) for value in values[:13]]
        fields = zip(criteo.NUMBERS + criteo.CATEGORIES, numbers + values[13:], strict=True)
        raw.append({"context": dict(fields), "user": {"history": []}, "items": [{}]})
    served = encode(raw, data.schema, data.row_maps, history=4)
    for name, column in served["context"].items():
        assert np.array_equal(batch["context"][name], column), name
        assert batch["context"][name].dtype == column.dtype
    assert np.array_equal(batch["candidate_mask"], served["candidate_mask"])


def test_vocabularies_of_an_earlier_run(tmp_path):
    first = criteo.load(write(tmp_path), min_count=2)
    text = "".join(line(0, (), [RARE if n else FREQUENT]) for n in range(LINES))
    again = criteo.load(write(tmp_path, text, "new.txt"), row_maps=first.row_maps)
    assert again.train.context["c1"].tolist() == [2, *[1] * 15]
    assert again.schema == first.schema
    hashed = dict.fromkeys(criteo.CATEGORIES, HashedRows(50))
    again = criteo.load(write(tmp_path, text, "new.txt"), row_maps=hashed)
    expected = HashedRows(50)(signatures("c1", [FREQUENT, RARE])).tolist()
    assert again.train.context["c1"].tolist() == [expected[0], *[expected[1]] * 15]
    # One of another kind of source has nothing to say.
    other = criteo.load(write(tmp_path), min_count=2, row_maps={"item": HashedRows(50)})
    assert other.schema == first.schema


def test_codes_are_exact():
    texts = ["00000000", "ffffffff", "89abcdef", "01234567", "0", "", "0123456g", "0123456A", None]
    texts += ["000000000", "0x123456", "\u00e9abcdef"]
    whole = pa.array(["deadbeef", *texts])
    for column in (pa.array(texts), whole.slice(1)):
        codes, fine = criteo.codes_of(column)
        assert codes[:4].tolist() == [0, 2**32 - 1, 0x89ABCDEF, 0x01234567]
        assert fine.tolist() == [True] * 4 + [False] * 4 + [True] + [False] * 3


# What is wrong, the line it is on, and what is said of it.
BROKEN = {
    "a label": ("0\t4\t", "2\t4\t", 5, "label must be one of 0, 1, got '2'"),
    "no label": ("0\t4\t", "\t4\t", 5, "label is missing"),
    "a number": ("0\t4\t", "0\t4.5\t", 5, "i1 must be a whole number, got '4.5'"),
    "a category": ("00000004", "0000000z", 5, "c2 must be 8 hexadecimal digits, got '0000000z'"),
    "a short one": ("00000004", "4", 5, "c2 must be 8 hexadecimal digits, got '4'"),
    "a value less": ("0\t4\t", "4\t", 5, r"has 39 values, expected 40 split by '\t'"),
    "encoding": ("\t-4\t", "\t-4\xff\xfe\t", 5, "is not UTF-8 text"),
}


@pytest.mark.parametrize("name", ["train.txt", "train.txt.gz"])
@pytest.mark.parametrize("what", BROKEN)
def test_a_bad_line(tmp_path, what, name):
    before, after, number, said = BROKEN[what]
    rows = TEXT.splitlines(keepends=True)
    rows[number - 1] = rows[number - 1].replace(before, after, 1)
    path = write(tmp_path, "".join(rows).encode("latin-1"), name)
    with pytest.raises(DataError) as error:
        criteo.load(path)
    assert str(error.value).startswith(f"{path}: line {number}: {said}")
    assert "\n" not in str(error.value)
    data = criteo.load(path, on_bad_row="skip", min_count=2)
    assert data.facts["lines"] == 19 and data.facts["rows skipped"] == 1
    assert data.facts["first row skipped"] == f"{name}: line {number}: {said}"
    lines_read = [*data.train.time, *data.validation.time, *data.test.time]
    assert lines_read == [n for n in range(1, 21) if n != number]


@pytest.mark.parametrize("tail", [3, 20, 40])
def test_cut_in_mid_line(tmp_path, tail):
    path = write(tmp_path, TEXT[:-tail])
    with pytest.raises(DataError, match=r"train\.txt: line 20: "):
        criteo.load(path)
    data = criteo.load(path, on_bad_row="skip")
    assert data.facts["lines"] == 19 and data.facts["rows skipped"] == 1


@pytest.mark.parametrize("on_bad_row", ["stop", "skip"])
def test_a_cut_archive_is_never_taken_for_a_whole_one(tmp_path, on_bad_row):
    path = tmp_path / "train.txt.gz"
    path.write_bytes(gzip.compress(TEXT.encode())[:-20])
    with pytest.raises(DataError, match=r"train\.txt\.gz: cannot be read after line 0: "):
        criteo.load(path, on_bad_row=on_bad_row)


def test_another_order_is_another_time(tmp_path):
    rows = TEXT.splitlines(keepends=True)
    data = criteo.load(write(tmp_path, "".join(rows[::-1])), min_count=1)
    assert data.train.label["click"].ravel().tolist() == [1, 0] * 8
    # What was late is early: LATE and RARE are known now, line 1 is not.
    assert data.row_maps["c1"](signatures("c1", [LATE, RARE])).min() > 1
    assert data.test.context["c2"].tolist() == [1, 1]


def test_lines_that_repeat_count_as_often(tmp_path):
    data = criteo.load(write(tmp_path, TEXT + TEXT), min_count=4)
    assert data.facts["lines"] == 40 and data.facts["clicks per line"] == 0.5
    assert len(data.train) == 32
    # Of the 32 lines RARE stands on 1, 17 and 21, FREQUENT on the 16 even ones.
    assert data.schema.table("c1").rows == 3


def test_too_few(tmp_path):
    rows = TEXT.splitlines(keepends=True)
    assert criteo.load(write(tmp_path, "".join(rows[:10]))).facts["lines"] == 10
    with pytest.raises(DataError, match=r"holds 9 lines that can be read, needs 10"):
        criteo.load(write(tmp_path, "".join(rows[:9])))
    with pytest.raises(DataError, match="the file is empty"):
        criteo.load(write(tmp_path, ""))
    with pytest.raises(DataError, match="no such file"):
        criteo.load(tmp_path / "nowhere.txt")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("criteo")
    path = write(folder, "".join(many()))
    settings = {"epochs": 6, "batch_size": 128, "learning_rate": 0.01}
    settings["table_learning_rate"] = 0.05
    run, results = launch.train(
        "dcn",
        data=f"criteo:{path}",
        out=folder / "run",
        options={**settings, "tower_units": 8, "cross_layers": 2},
        quiet=True,
    )
    return path, run, results


def test_dcn_learns_from_a_file(trained):
    path, run, results = trained
    assert results["data"] == f"criteo:{path}" and results["facts"]["lines"] == 1000
    # P(click) is 0.9 for half of the lines and 0.1 for the others: the truth has AUC 0.9.
    assert results["test"]["auc"] > 0.75
    assert results["test"]["gauc"] == results["test"]["auc"]
    assert launch.evaluate_run(run)["test"]["auc"] == results["test"]["auc"]


def test_another_file_is_read_with_the_vocabularies_of_the_run(trained, tmp_path):
    _, run, results = trained
    path = write(tmp_path, "".join(many(seed=1)), "other.txt")
    assert launch.evaluate_run(run, data=f"criteo:{path}")["test"]["auc"] > 0.75


def test_the_number_of_a_sample_is_learnt_by_heart_unless_it_must_be_frequent(tmp_path):
    draws = np.random.default_rng(0)
    text = ""
    for n in range(2000):
        kind = draws.integers(0, 4)
        label = int(draws.random() < (0.8 if kind < 2 else 0.2))
        text += line(label, (), [f"{kind:08x}", f"{n:08x}"])
    path = write(tmp_path, text)
    options = {"batch_size": 128, "learning_rate": 0.01, "table_learning_rate": 0.3}
    trained, tested = {}, {}
    for min_count in (1, 10):
        data = criteo.load(path, min_count=min_count)
        # Nobody watches: the epoch that is best in training is kept.
        data = dataclasses.replace(data, validation=data.train)
        _, results = launch.train(
            "mlp",
            data=data,
            out=tmp_path / f"run-{min_count}",
            options={
                "epochs": 5,
                "patience": 0,
                **options,
                "tower_units": 8,
                "embedding_dropout": 0,
            },
            quiet=True,
        )
        trained[min_count] = results["validation"]["auc"]
        tested[min_count] = results["test"]["auc"]
    # The first category alone has AUC 0.8.
    assert trained[1] > 0.99 and tested[1] < 0.85
    assert abs(trained[10] - 0.8) < 0.03 and abs(tested[10] - 0.8) < 0.05


@pytest.mark.parametrize("name", ["lr", "mlr", "mlp"])
def test_models_without_a_history(trained, tmp_path, name):
    path, _, _ = trained
    settings = {"steps": 2, "batch_size": 128}
    _, results = launch.train(
        name, data=f"criteo:{path}", out=tmp_path / "run", options=settings, quiet=True
    )
    assert np.isfinite(results["test"]["logloss"])


@pytest.mark.parametrize("name", ["din", "dien", "sim", "mimn", "mind", "mf", "esmm"])
def test_other_models_say_what_they_lack(trained, tmp_path, name):
    path, _, _ = trained
    with pytest.raises(ValueError) as error:
        launch.train(name, data=f"criteo:{path}", out=tmp_path / "run", quiet=True)
    assert "needs" in str(error.value) or "must have a field of history" in str(error.value)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_by_name(tmp_path):
    assert open_source(f"criteo:{write(tmp_path)}").facts["lines"] == 20
    with pytest.raises(DataError, match="Source 'criteo' needs a path: criteo:FILE"):
        open_source("criteo:")
