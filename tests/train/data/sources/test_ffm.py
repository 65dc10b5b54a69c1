import gzip

import numpy as np
import pytest

from recjax.train import launch
from recjax.train.data.batches.pipeline import evaluation_batches
from recjax.train.data.errors import DataError
from recjax.train.data.event_log import leaks
from recjax.train.data.sources import ffm, open_source
from recjax.zoo.features import encode, signatures

LINES = 20


def ffm_lines():
    """f0: 5 on even lines, 6 on 1 and 17; f1: bags; f2: a number, 0 on line 3; f9: a flag."""
    for n in range(LINES):
        one = {1: "0:6:1", 17: "0:6:1", 19: "0:77:1"}.get(n, "" if n % 2 else "0:5:1")
        bag = " ".join(f"1:{k}:1" for k in range(n % 4))
        number = "" if n == 3 else f"2:8:{n / 4 + 1.25}"
        yield f"{n % 2} {one} {number}\t{bag} 9:1:1"


def svm_lines():
    """The same features as indices: f0 as 5, 6 and 77, f1 as 100 + k, f2 as 8."""
    for n in range(LINES):
        one = {1: "6:1", 17: "6:1.0", 19: "77:1"}.get(n, "" if n % 2 else "5:1")
        bag = " ".join(f"{100 + k}:1" for k in range(n % 4))
        number = "8:0" if n == 3 else f"8:{n / 4 + 1.25}"
        yield f"{2 * (n % 2) - 1:+d} {one} {number} {bag} # line {n + 1}"


FFM = "".join(f"{line}\n" for line in ffm_lines())
SVM = "".join(f"{line}\n" for line in svm_lines())


def write(tmp_path, content=FFM, name="train.ffm"):
    path = tmp_path / name
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


def numbers(count=LINES):
    """Standardised by the first 16 of 20, as training sees them."""
    values = np.array([0 if n == 3 else n / 4 + 1.25 for n in range(count)])
    seen = values[: count * 8 // 10]
    return (values - seen.mean()) / seen.std()


@pytest.mark.parametrize("name", ["train.ffm", "train.ffm.gz"])
def test_libffm(tmp_path, name):
    data = ffm.load_libffm(write(tmp_path, name=name), min_count=2)
    assert data.name == f"libffm:{name}"
    assert (len(data.train), len(data.validation), len(data.test)) == (16, 2, 2)
    assert data.train.time.tolist() == list(range(1, 17)) and data.test.time.tolist() == [19, 20]
    assert data.train.label["click"].tolist() == [[n % 2] for n in range(16)]
    kinds = {field.name: (field.role, field.kind, field.width) for field in data.schema.fields}
    assert kinds == {
        "f0": ("context", "id", None),
        "f1": ("context", "bag", 3),
        "f2": ("context", "dense", None),
        "f9": ("context", "id", None),
    }
    # Training sees 5 eight times, 6 once, 77 never.
    assert data.row_maps["f0"](signatures("f0", [5, 6, 77])).tolist() == [2, 1, 1]
    assert data.train.context["f0"].tolist() == [2, 1, *[2, 0] * 7]
    assert data.validation.context["f0"].tolist() == [2, 1]
    assert data.test.context["f0"].tolist() == [2, 1]
    rows = data.row_maps["f1"](signatures("f1", [0, 1, 2])).tolist()
    assert sorted(rows) == [2, 3, 4]
    for n in range(16):
        expected = [*rows[: n % 4], 0, 0, 0][:3]
        assert data.train.context["f1"][n].tolist() == expected
    for part, span in ((data.train, slice(16)), (data.test, slice(18, 20))):
        np.testing.assert_allclose(part.context["f2"], numbers()[span], rtol=1e-5, atol=1e-6)
    assert set(data.train.context["f9"]) == {2}
    assert data.facts == {"lines": 20, "positive labels per line": 0.5}
    for requests in (data.train, data.validation, data.test):
        assert requests.examples == len(requests) and len(leaks(data.log, requests)) == 0
    assert not data.log.has_clock and data.log.num_items == 0


def test_libsvm(tmp_path):
    data = ffm.load_libsvm(write(tmp_path, SVM, "train.svm"), min_count=2)
    assert data.facts["labels"] == "-1 and 1, read as 0 and 1"
    assert data.train.label["click"].tolist() == [[n % 2] for n in range(16)]
    kinds = {field.name: (field.kind, field.width) for field in data.schema.fields}
    assert kinds == {"index": ("bag", 4), "i8": ("dense", None)}
    np.testing.assert_allclose(data.train.context["i8"], numbers()[:16], rtol=1e-5, atol=1e-6)
    rows = data.row_maps["index"](signatures("index", [5, 6, 77, 100, 101, 102])).tolist()
    assert rows[1:3] == [1, 1] and sorted(rows[:1] + rows[3:]) == [2, 3, 4, 5]
    assert data.train.context["index"][2].tolist() == [rows[0], *rows[3:5], 0]
    assert data.train.context["index"][1].tolist() == [1, rows[3], 0, 0]


def test_a_batch_is_what_a_request_record_says(tmp_path):
    data = ffm.load_libffm(write(tmp_path), min_count=1)
    (batch,) = evaluation_batches(data.schema, data.log, data.train, batch_size=16, history=4)
    raw = []
    for line in FFM.splitlines()[:16]:
        features = [feature.split(":") for feature in line.split()[1:]]
        of = lambda field, features=features: [int(f[1]) for f in features if f[0] == field]
        number = [float(value) for field, _, value in features if field == "2"]
        context = {"f0": (of("0") or [None])[0], "f1": of("1"), "f9": 1}
        context["f2"] = number[0] if number else 0.0
        raw.append({"context": context, "user": {"history": []}, "items": [{}]})
    served = encode(raw, data.schema, data.row_maps, history=4)
    for name, column in served["context"].items():
        np.testing.assert_allclose(batch["context"][name], column, rtol=1e-6)


# What is wrong, the form, a line, and what is said of it.
BROKEN = {
    "a label": ("libffm", "2 0:1:1", "the label must be 0 or 1 (or -1 or 1), got '2'"),
    "a label of several": ("libsvm", "1,0 3:1", "the label must be 0 or 1 (or -1 or 1), got '1,0'"),
    "no label": ("libffm", "0:1:1 1:2:1", "the label must be 0 or 1 (or -1 or 1), got '0:1:1'"),
    "no value": ("libffm", "1 0:1", "a feature must be field:feature:value, got '0:1'"),
    "an empty value": ("libffm", "1 0:1:", "a feature must be field:feature:value, got '0:1:'"),
    "a word": ("libffm", "1 0:x:1", "a feature must be field:feature:value, got '0:x:1'"),
    "nan": ("libffm", "1 0:1:nan", "a feature must be field:feature:value, got '0:1:nan'"),
    "libffm in libsvm": ("libsvm", "1 0:1:1", "a feature must be index:value, got '0:1:1'"),
    "an index below 0": ("libsvm", "1 -1:1", "a feature must be index:value, got '-1:1'"),
    "a large index": ("libsvm", "1 2147483648:1", "a number of a feature must be <= 2147483647"),
    "a large value": ("libsvm", "1 3:1e39", "a number of a feature must fit in float32"),
    "an endless value": ("libsvm", "1 3:1e999", "a number of a feature must fit in float32"),
    "a query": ("libsvm", "1 qid:7 3:1", "holds the id of a query ('qid:7'); lists to be ranked"),
    "encoding": ("libffm", b"1 0:\xff:1", "is not UTF-8 text"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_bad_line(tmp_path, what):
    form, line, said = BROKEN[what]
    lines = (FFM if form == "libffm" else SVM).encode().splitlines()
    lines[4:4] = [b"", line if isinstance(line, bytes) else line.encode()]
    path = write(tmp_path, b"\n".join(lines), "some.txt")
    with pytest.raises(DataError) as error:
        open_source(f"{form}:{path}")
    assert str(error.value).startswith(f"{path}: line 6: {said}")
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
    data = open_source(f"{form}:{path}", on_bad_row="skip")
    assert data.facts["lines"] == 20 and data.facts["rows skipped"] == 1
    times = [*data.train.time, *data.validation.time, *data.test.time]
    assert times == [n for n in range(1, 23) if n not in (5, 6)]


def test_what_no_field_can_hold(tmp_path):
    path = write(tmp_path, FFM + "1 2:9:0.5\n")
    with pytest.raises(DataError, match=r"field 2 has several features .* \(line 1: 2:8:1.25\)"):
        ffm.load_libffm(path)
    words = "".join(f"1 {n}:0.5 {n + 1}:0.25\n" for n in range(ffm.MAX_NUMBERS))
    with pytest.raises(DataError, match=r"more than 256 indices .* \(line 1: 0:0.5\)"):
        ffm.load_libsvm(write(tmp_path, words))
    words = "".join(f"1 {n}:0.5\n" for n in range(ffm.MAX_NUMBERS))
    assert len(ffm.load_libsvm(write(tmp_path, words)).schema.fields) == ffm.MAX_NUMBERS
    with pytest.raises(DataError, match="labels are 0 and -1"):
        ffm.load_libffm(write(tmp_path, FFM + "-1 0:5:1\n"))
    with pytest.raises(DataError, match="its lines hold no features"):
        ffm.load_libffm(write(tmp_path, "1\n0\n" * 10))
    with pytest.raises(DataError, match="holds 9 lines that can be read, needs 10"):
        ffm.load_libffm(write(tmp_path, "1 0:5:1\n" * 9))
    with pytest.raises(DataError, match="no such file"):
        ffm.load_libffm(tmp_path / "none.ffm")
    with pytest.raises(DataError, match="the file is empty"):
        ffm.load_libffm(write(tmp_path, ""))


def test_large_bags_are_cut_and_counted(tmp_path):
    bag = " ".join(f"{n}:1" for n in range(ffm.MAX_BAG + 3))
    data = ffm.load_libsvm(write(tmp_path, f"1 {bag}\n" * 20))
    assert data.schema.fields[0].width == ffm.MAX_BAG
    assert data.facts["features beyond the width of their field"] == "index: 60"


def test_fields_of_large_numbers(tmp_path):
    text = f"1 2147483647:2147483647:1 2147483647:5:1 2147483646:{2**31 - 1}:1\n" * 20
    data = ffm.load_libffm(write(tmp_path, text))
    kinds = {field.name: field.kind for field in data.schema.fields}
    assert kinds == {"f2147483647": "bag", "f2147483646": "id"}
    assert data.row_maps["f2147483646"](signatures("f2147483646", [2**31 - 1])).tolist() == [2]


def test_blocks_of_a_large_file(tmp_path, monkeypatch):
    path = write(tmp_path, FFM * 100)
    whole = ffm.load_libffm(path, min_count=1)
    monkeypatch.setattr("recjax.train.data.sources.ffm_lines._BLOCK_BYTES", 1000)
    parts = ffm.load_libffm(path, min_count=1)
    assert whole.schema == parts.schema
    for name, column in whole.train.context.items():
        assert np.array_equal(column, parts.train.context[name])
    assert np.array_equal(whole.test.time, parts.test.time)


def test_an_earlier_run_says_how_to_read(tmp_path):
    first = ffm.load_libffm(write(tmp_path), min_count=1)
    # No bag has two entries here, f9 is not there, f4 is new.
    text = "".join(
        f"{n % 2} 0:{n % 8}:1 1:{n % 3}:1 2:8:{n / 10 + 0.05} 4:1:1\n" for n in range(20)
    )
    path = write(tmp_path, text, "next.ffm")
    given = {f"context.{f.name}": f.transform for f in first.schema.fields if f.kind == "dense"}
    options = {"row_maps": first.row_maps, "transforms": given}
    again = ffm.load_libffm(path, schema=first.schema, **options)
    assert again.schema == first.schema
    assert again.facts["features of unknown fields"] == 20
    five = first.row_maps["f0"](signatures("f0", [5]))[0]
    assert again.train.context["f0"][:8].tolist() == [1] * 5 + [five] + [
        first.row_maps["f0"](signatures("f0", [6]))[0],
        1,
    ]
    assert set(again.train.context["f9"]) == {0}
    mean, deviation = (float(x) for x in given["context.f2"][7:].split(")")[0].split(", "))
    assert abs(again.train.context["f2"][3] - (0.35 - mean) / deviation) < 1e-5
    with pytest.raises(
        DataError, match="line 1: feature 5 has the value 0.5, must have 1: field 'f0'"
    ):
        ffm.load_libffm(write(tmp_path, "1 0:5:0.5\n" * 10), schema=first.schema, **options)


def test_dcn_learns_from_a_file(tmp_path):
    draws = np.random.default_rng(0)
    lines = []
    for _ in range(1500):
        kinds = draws.integers(0, 4, 6)
        label = int(draws.random() < (0.9 if kinds[0] < 2 else 0.1))
        features = " ".join(f"{field}:{kind}:1" for field, kind in enumerate(kinds))
        lines.append(f"{label} {features} 7:0:{draws.normal():.3f}\n")
    path = write(tmp_path, "".join(lines))
    run, results = launch.train(
        "dcn",
        data=f"libffm:{path}",
        out=tmp_path / "run",
        options={
            "epochs": 6,
            "batch_size": 128,
            "learning_rate": 0.01,
            "table_learning_rate": 0.05,
            "tower_units": 8,
            "cross_layers": 2,
        },
        quiet=True,
    )
    # P(click) is 0.9 for half of the lines and 0.1 for the others: the truth has AUC 0.9.
    assert results["test"]["auc"] > 0.75
    assert launch.evaluate_run(run)["test"]["auc"] == results["test"]["auc"]
