import gzip

import numpy as np
import pyarrow as pa
import pytest

from recjax.train.data.errors import DataError
from recjax.train.data.files import lines
from recjax.train.data.files.lines import BadRows, read_blocks, read_lines

COLUMNS = {"id": pa.int32(), "name": pa.string(), "price": pa.float32()}
CODED = pa.dictionary(pa.int32(), pa.string())


def write(tmp_path, content, name="some.csv"):
    path = tmp_path / name
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


def read(path, columns=None, *, bad=None, **options):
    """The rows of all batches, as tuples."""
    batches = read_blocks(path, columns or COLUMNS, bad=bad or BadRows(), **options)
    return [tuple(row.values()) for batch in batches for row in batch.to_pylist()]


ROWS = [(1, "a", 0.5), (-2, 'say "b"', 2.0), (3, "'c", 40.0)]
TEXT = '1,a,.5\n-2,say "b",2\n3,\'c,4e1\n'
FORMS = {
    "plain": (TEXT, {}),
    "CRLF": (TEXT.replace("\n", "\r\n"), {}),
    "blank lines": ("\n" + TEXT.replace("\n", "\n\r\n\n  \n"), {}),
    "no newline at the end": (TEXT.rstrip("\n"), {}),
    "BOM": ("\ufeff" + TEXT, {}),
    "spaces around numbers": (TEXT.replace("1,", " 1\t,").replace(".5", " .5 "), {}),
    "tabs": (TEXT.replace(",", "\t"), {"separator": "\t"}),
    "several letters": (TEXT.replace(",", "::"), {"separator": "::"}),
    "header": ("id, name ,price\r\n" + TEXT, {"header": True}),
    "header and BOM": ("\ufeffid,name,price\n" + TEXT, {"header": True}),
    "quoted": ('"1",a,.5\n-2,"say ""b""",2\n3,\'c,"4e1"\n', {"quoted": True}),
}


@pytest.mark.parametrize("block_bytes", [16, 2**20])
@pytest.mark.parametrize("name", ["some.csv", "some.csv.gz"])
@pytest.mark.parametrize("form", FORMS)
def test_forms(tmp_path, form, name, block_bytes):
    text, options = FORMS[form]
    bad = BadRows()
    assert read(write(tmp_path, text, name), bad=bad, block_bytes=block_bytes, **options) == ROWS
    assert bad.facts() == {}


def test_types_are_those_asked_for(tmp_path):
    path = write(tmp_path, TEXT)
    (batch,) = read_blocks(path, COLUMNS | {"name": CODED}, bad=BadRows(), numbered=True)
    names = dict(zip(batch.schema.names, batch.schema.types, strict=True))
    assert names == COLUMNS | {"name": CODED, "line": pa.int64()}


def test_separators_of_several_letters_leave_their_letters_to_values(tmp_path):
    path = write(tmp_path, "1::Alien: the third::3\n2::\x1f::4\n3:::x::5\n")
    expected = [(1, "Alien: the third", 3.0), (2, "\x1f", 4.0), (3, ":x", 5.0)]
    assert read(path, separator="::") == expected


def test_latin_1(tmp_path):
    # 0x85 is a letter there, and the end of a line to Python.
    path = write(tmp_path, b"1,Caf\xe9\x85,3\n2,b,x\n")
    bad = BadRows("skip")
    assert read(path, encoding="latin-1", bad=bad) == [(1, "Café\x85", 3.0)]
    assert bad.count == 1


def test_optional_values_may_be_missing(tmp_path):
    path = write(tmp_path, "1,,\n2,b,3\n")
    assert read(path, optional=("name", "price")) == [(1, None, None), (2, "b", 3.0)]
    with pytest.raises(DataError, match="line 1: price is missing"):
        read(path, optional=("name",))


@pytest.mark.parametrize("kind", [pa.string(), CODED], ids=str)
def test_choices(tmp_path, kind):
    columns = {"id": pa.int32(), "name": kind}
    path = write(tmp_path, "1,pv\n2,\n3,pv\n4,buy\n")
    options = dict(choices={"name": ("pv", "buy")}, optional=("name",))
    assert read(path, columns, **options) == [(1, "pv"), (2, None), (3, "pv"), (4, "buy")]
    path = write(tmp_path, "1,pv\n2,PV\n")
    with pytest.raises(DataError, match="line 2: name must be one of buy, pv, got 'PV'"):
        read(path, columns, **options)


BAD = {
    "too few": ("1,a", "has 2 values, expected 3 split by ','"),
    "too many": ("1,a,2,3", "has 4 values, expected 3 split by ','"),
    "a word": ("one,a,2", "id must be a whole number, got 'one'"),
    "a fraction": ("1.5,a,2", "id must be a whole number, got '1.5'"),
    "a plus": ("+1,a,2", "id must be a whole number, got '+1'"),
    "another base": ("0x1F,a,2", "id must be a whole number, got '0x1F'"),
    "other digits": ("١,a,2", "id must be a whole number, got '١'"),
    "out of range": ("2147483648,a,2", "id must fit in int32, got '2147483648'"),
    "endless": ("9" * 5000 + ",a,2", "id must fit in int32, got '99999"),
    "no id": (",a,2", "id is missing"),
    "no name": ("1,,2", "name is missing"),
    "a price of letters": ("1,a,two", "price must be a finite number, got 'two'"),
    "nan": ("1,a,nan", "price must be a finite number, got 'nan'"),
    "too large": ("1,a,1e39", "price must be a finite number, got '1e39'"),
    "no text": (b"1,\xff\xfe,2", "is not UTF-8 text"),
    "a lone CR": ("1,a,2\r3,b,4", "has 5 values, expected 3"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("name", ["some.csv", "some.csv.gz"])
def test_bad_rows_stop_or_are_skipped(tmp_path, case, name):
    line, reason = BAD[case]
    line = line if isinstance(line, bytes) else line.encode()
    path = write(tmp_path, b"1,a,.5\n\n" + line + b"\n2,b,1\n" + line, name)
    with pytest.raises(DataError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: line 3: {reason}")
    assert message.endswith("(--on-bad-row skip passes over it).")
    assert "\n" not in message and len(message) < 300
    bad = BadRows("skip")
    rows = read(path, bad=bad, numbered=True)
    assert rows == [(1, "a", 0.5, 1), (2, "b", 1.0, 4)]
    assert bad.facts()["rows skipped"] == 2
    assert bad.facts()["first row skipped"].startswith(f"{name}: line 3: {reason}")


def test_a_bad_first_line_asks_for_the_layout(tmp_path):
    path = write(tmp_path, b"id,name,price\n1,a,.5\n", "some.csv")
    wanted = "line 1: id must be a whole number, got 'id' .is the file of this source's layout, wi"
    with pytest.raises(DataError, match=wanted) as caught:
        read(path)
    assert "skip" not in str(caught.value)
    assert read(path, bad=BadRows("skip")) == [(1, "a", 0.5)]


def test_an_open_quote_is_a_bad_row(tmp_path):
    path = write(tmp_path, '1,"a,2\n2,"b,\n c",3\n4,"d, e",5\n')
    with pytest.raises(DataError, match="line 1: cannot be split into values"):
        read(path, quoted=True)
    bad = BadRows("skip")
    assert read(path, quoted=True, bad=bad) == [(4, "d, e", 5.0)]
    assert bad.count == 3


def test_values_do_not_go_on_in_the_next_line(tmp_path):
    path = write(tmp_path, '1,"a\nb",2\n4,"d",5\n')
    with pytest.raises(DataError, match="line 1: "):
        read(path, quoted=True)
    bad = BadRows("skip")
    assert read(path, quoted=True, bad=bad, numbered=True) == [(4, "d", 5.0, 3)]
    assert bad.count == 2


def test_spaces_are_the_value_of_a_single_column(tmp_path):
    for end in ("c", "\xff"):
        path = write(tmp_path, f"a\n \n\n{end}\n".encode("latin-1"))
        rows = read(path, {"word": pa.string()}, bad=BadRows("skip"), numbered=True)
        assert rows[:2] == [("a", 1), (" ", 2)]


def test_a_long_last_line(tmp_path):
    """Longer than what is looked at line by line, and bad."""
    long = "x" * 100_000
    path = write(tmp_path, f"1,a,2\n2,b,3\n3,{long},x\n")
    with pytest.raises(DataError, match="line 3: price must be a finite number, got 'x'"):
        read(path)
    assert read(path, bad=BadRows("skip")) == [(1, "a", 2.0), (2, "b", 3.0)]
    path = write(tmp_path, f"3,{long},x\n1,a,2\n")
    assert read(path, bad=BadRows("skip")) == [(1, "a", 2.0)]


@pytest.mark.parametrize("block_bytes", [1000, 2**18, 2**25])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_lines_keep_their_numbers_across_blocks(tmp_path, block_bytes, ending):
    text = [f"{i},name {i % 7},{i / 8}" for i in range(1, 60_001)]
    expected = {i: (i, f"name {i % 7}", i / 8) for i in range(1, 60_001)}
    for number, line in ((1, "x"), (777, "1,2"), (778, "1,b,"), (59_999, "1,b,c"), (60_000, "")):
        text[number - 1] = line
        del expected[number]
    for number in (10_000, 10_001, 50_000):
        text[number - 1] = ""
        del expected[number]
    path = write(tmp_path, ending.join(text))
    bad = BadRows("skip")
    rows = read(path, bad=bad, numbered=True, block_bytes=block_bytes)
    assert {row[-1]: row[:-1] for row in rows} == expected
    assert [row[-1] for row in rows] == sorted(expected)
    assert bad.count == 4
    assert bad.first == "some.csv: line 1: has 1 values, expected 3 split by ','"


def test_codes_of_any_block_are_those_of_its_own_dictionary(tmp_path):
    names = np.random.default_rng(0).integers(0, 300, 20_000)
    path = write(tmp_path, "".join(f"{i},n{n}\n" for i, n in enumerate(names)) + "x,y\n")
    columns = {"id": pa.int32(), "name": CODED}
    rows = read(path, columns, bad=BadRows("skip"), block_bytes=2**17)
    assert rows == [(i, f"n{n}") for i, n in enumerate(names)]


@pytest.mark.parametrize(
    ("content", "name", "options", "reason"),
    [
        ("", "some.csv", {}, "the file is empty"),
        ("", "some.csv.gz", {}, "the file is empty"),
        ("\n\r\n\n", "some.csv", {}, "the file is empty"),
        ("", "some.csv", {"header": True}, "holds only a header"),
        ("id,name,price", "some.csv", {"header": True}, "holds only a header"),
        (
            TEXT,
            "some.csv",
            {"header": True},
            "the first line must be 'id,name,price', got '1,a,.5'",
        ),
        ("id,price,name\n", "some.csv", {"header": True}, "the first line must be 'id,name,price'"),
        ("1," + "a" * 99, "some.csv", {"block_bytes": 40}, "line 1 is longer than 40 bytes"),
    ],
)
def test_bad_files(tmp_path, content, name, options, reason):
    path = write(tmp_path, content, name)
    for on_bad_row in ("stop", "skip"):
        with pytest.raises(DataError) as caught:
            read(path, bad=BadRows(on_bad_row), **options)
        assert str(caught.value).startswith(f"{path}: {reason}")
        assert "\n" not in str(caught.value)


def test_nothing_left_to_read(tmp_path):
    path = write(tmp_path, "1,2\n3\n")
    with pytest.raises(DataError, match="holds no row that can be read .some.csv: line 1: has 2"):
        read(path, bad=BadRows("skip"))


def test_no_file(tmp_path):
    with pytest.raises(DataError, match="none.csv: no such file"):
        read(tmp_path / "none.csv")
    with pytest.raises(DataError, match="not a file"):
        read(tmp_path)
    with pytest.raises(DataError, match="no such file"):
        list(read_lines(tmp_path / "none.csv"))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "plain"])
def test_damaged_gzip(tmp_path, damage):
    text = "".join(f"{i},{i * 7919 % 613},{i}\n" for i in range(20_000)).encode()
    packed = bytearray(gzip.compress(text))
    if damage == "truncated":
        packed = packed[: len(packed) // 2]
    elif damage == "flipped":
        middle = len(packed) // 2
        packed[middle : middle + 50] = bytes(255 - b for b in packed[middle : middle + 50])
    else:
        packed = text
    (path := tmp_path / "some.csv.gz").write_bytes(packed)
    # What was flipped may still unpack, to lines that are skipped, until the checksum tells.
    with pytest.raises(DataError, match="cannot be read after line") as caught:
        read(path, bad=BadRows("skip"), block_bytes=1000)
    assert str(path) in str(caught.value) and len(str(caught.value).splitlines()) == 1
    with pytest.raises(DataError, match=str(path)):
        read(path, block_bytes=1000)


def test_progress_of_large_files(tmp_path, monkeypatch):
    advanced = []
    monkeypatch.setattr(lines, "_PROGRESS_FROM_BYTES", 10**6)
    monkeypatch.setattr(lines.Progress, "advance", lambda _, steps: advanced.append(steps))
    text = "".join(f"{i},name,1\n" for i in range(200_000))
    assert len(read(write(tmp_path, text), block_bytes=2**20)) == 200_000
    assert sum(advanced) == len(text) // 10**6 == 2
    assert len(advanced) == 3


@pytest.mark.parametrize("block_bytes", [20, 2**20])
@pytest.mark.parametrize("name", ["some.json", "some.json.gz"])
def test_lines(tmp_path, name, block_bytes):
    path = write(tmp_path, '{"a": 1}\r\n\n  \n{"b": "\xe9"}\n{}', name)
    one, two, three = b'{"a": 1}', '{"b": "\xe9"}'.encode(), b"{}"
    found = list(read_lines(path, block_bytes=block_bytes))
    assert found == [(1, one), (4, two), (5, three)]
    with pytest.raises(DataError, match="the file is empty"):
        list(read_lines(write(tmp_path, "\n\n", name)))


def test_misuse():
    with pytest.raises(NotImplementedError, match="Column 'id' cannot be of type bool"):
        read("none", {"id": pa.bool_()})
