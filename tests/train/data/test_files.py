import bz2
import datetime
import gzip
import io
import json
import lzma
import tarfile
import zipfile

import numpy as np
from published import PUBLISHED
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from recjax.train.data import files
from recjax.train.data.errors import DataError
from recjax.train.data.files import BadRow, read_table
from recjax.train.data.sources import open_source

ROWS = [(f"u{u}", str(i), str(1_600_000_000 + i)) for u in (1, 2) for i in range(4)]
NAMES = ["user_id", "item_id", "timestamp"]
COLUMNS = dict(zip(NAMES, map(list, zip(*ROWS, strict=True)), strict=True))


def as_csv(separator=",", header=True):
    lines = [NAMES, *ROWS] if header else ROWS
    return "".join(separator.join(line) + "\n" for line in lines)


CSV = as_csv()
COMPRESSED = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pa.compress(content, codec="zstd", asbytes=True),
}


def write(tmp_path, content, name="log.csv"):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def zipped(**members):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return content.getvalue()


def tarred(mode, **members):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=mode) as archive:
        for name, text in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return content.getvalue()


def check(raw, notes=()):
    """That a table of text holds ROWS, lines and notes."""
    assert raw.table.to_pydict() == COLUMNS
    assert all(field.type == pa.string() for field in raw.table.schema)
    assert raw.lines.tolist() == list(range(2, 10))
    assert raw.bad == []
    assert raw.notes == list(notes)


def refused(where, *reasons, **options):
    with pytest.raises(DataError) as caught:
        read_table(where, **options)
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and len(message) < 600
    for reason in reasons:
        assert reason in message
    return message


SEPARATORS = {",": [], "\t": ["tabs"], ";": ["semicolons"], "|": ["pipes"]}


@pytest.mark.parametrize("name", ["log.csv", "log.tsv", "log.txt", "log", "log.inter"])
@pytest.mark.parametrize("separator", SEPARATORS)
def test_separators(tmp_path, separator, name):
    path = write(tmp_path, as_csv(separator), name)
    check(read_table(path), [f"separated by {word}" for word in SEPARATORS[separator]])
    check(read_table(str(path)), [f"separated by {word}" for word in SEPARATORS[separator]])


def test_known_names_tell_the_separator_where_values_hold_others(tmp_path):
    content = "user_id;item_id;a,b,c\n" + "1;2;x,y,z\n1;3;x,y,z\n"
    raw = read_table(write(tmp_path, content))
    assert raw.table.column_names == ["user_id", "item_id", "a,b,c"]
    content = "user_id,item_id,genres|a|b|c\n" + "1,2,x|y|z|w\n"
    raw = read_table(write(tmp_path, content))
    assert raw.table.column_names == ["user_id", "item_id", "genres|a|b|c"]


def test_the_following_lines_tell_the_separator(tmp_path):
    raw = read_table(write(tmp_path, "person;thing, or things\n1;2\n2;3\n"))
    assert raw.table.column_names == ["person", "thing, or things"]
    refused(write(tmp_path, "a,b;c\nx,y;z\n"), "may be separated by commas or semicolons")


@pytest.mark.parametrize("mark", [" ", "::", "\x01"])
def test_other_separators_are_refused(tmp_path, mark):
    refused(write(tmp_path, as_csv(mark)), "none of the separators comma, tab", f"for {mark!r}")


FORMS = {
    "CRLF": (CSV.replace("\n", "\r\n"), []),
    "a CR too many": (CSV.replace("\n", "\r\r\n"), []),
    "CR": (CSV.replace("\n", "\r"), ["lines end in CR"]),
    "BOM": ("\ufeff" + CSV, []),
    "no newline at the end": (CSV.rstrip("\n"), []),
    "spaces in the header": (CSV.replace(",item_id,", ", item_id ,"), []),
    "quotes": ('"' + CSV.strip().replace(",", '","').replace("\n", '"\n"') + '"', []),
    "UTF-16": (CSV.encode("utf-16"), ["text in UTF-16"]),
    "UTF-16, big end first": (b"\xfe\xff" + CSV.encode("utf-16-be"), ["text in UTF-16"]),
    "UTF-32": (CSV.encode("utf-32"), ["text in UTF-32"]),
    "a separator at each end": (
        CSV.replace("\n", ",\n"),
        ["every line ends in a separator: the empty last column is left out"],
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_text(tmp_path, form):
    content, notes = FORMS[form]
    check(read_table(write(tmp_path, content)), notes)


def test_blank_lines_keep_the_numbers_of_others(tmp_path):
    lines = CSV.splitlines()
    content = "\n".join([*lines[:3], "", " ", "\t", *lines[3:], "", ""])
    raw = read_table(write(tmp_path, content))
    assert raw.table.to_pydict() == COLUMNS
    assert raw.lines.tolist() == [2, 3, 7, 8, 9, 10, 11, 12]


def test_empty_and_nan_are_null(tmp_path):
    content = 'user_id,item_id,t\n1,,nan\n"",2,NaN\n3,4,"nan"\n'
    for extra in ("", "1\n"):  # as Arrow reads it, and as it is read line by line
        raw = read_table(write(tmp_path, content + extra))
        assert raw.table.to_pydict() == {
            "user_id": ["1", None, "3"],
            "item_id": [None, "2", "4"],
            "t": [None, None, None],
        }


def test_values_stay_as_they_are_written(tmp_path):
    values = ["007", "1e5", "18446744073709551615", "3.0", "-0", " x", "NULL", "é😀", "0x1F"]
    content = "user_id,item_id\n" + "".join(f"{value},1\n" for value in values)
    raw = read_table(write(tmp_path, content))
    assert raw.table["user_id"].to_pylist() == values


QUOTED = 'user_id,item_id,t\n1,2,"a\nb"\n3,4,c\n5,6,"x""\r\n,y"\n7,"8,a",9\n10,11,5" disk\n'


def test_quotes(tmp_path):
    raw = read_table(write(tmp_path, QUOTED))
    assert raw.table["t"].to_pylist() == ["a\nb", "c", 'x"\n,y', "9", '5" disk']
    assert raw.lines.tolist() == [2, 4, 5, 7, 8]
    assert raw.bad == []


def test_an_open_quote_takes_no_other_line_along(tmp_path):
    content = 'user_id,item_id,t\n1,"2,3\n4,5,6\n7,8,"9\n10,11,12\n'
    raw = read_table(write(tmp_path, content))
    assert raw.table["user_id"].to_pylist() == ["4", "10"]
    assert [str(row) for row in raw.bad] == [
        "line 2: has 2 values, expected 3 (a quote is not closed)",
        "line 4: has a quote that is not closed",
    ]


def test_rows_of_another_width_and_no_text(tmp_path):
    content = CSV.encode() + b"1,2\n\n1,2,3,4\n1,\xe9t\xe9,3\nu9,9,9\n\xff\n7"
    raw = read_table(write(tmp_path, content))
    assert raw.table.num_rows == 9 and raw.lines[-1] == 14
    assert [row.line for row in raw.bad] == [10, 12, 13, 15, 16]
    reasons = [row.reason for row in raw.bad]
    assert reasons[0] == "has 2 values, expected 3"
    assert reasons[1] == "has 4 values, expected 3"
    assert reasons[2].startswith("is not UTF-8 text (b'1,\\xe9t\\xe9,3')")
    assert "Latin-1" in reasons[2]
    assert reasons[4] == "has 1 values, expected 3: '7'"


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_lines_count_over_parts_of_a_large_file(tmp_path, ending):
    # Some parts of a megabyte, read at once or line by line.
    lines = [f"{i % 5000},{i % 700},{i * 1000},{'x' * 20}" for i in range(150_000)]
    lines[10] = ""
    lines[60_000] = '1,2,3,"two'
    lines[60_001] = 'lines"'
    lines[100_000] = "1,9"
    raw = read_table(write(tmp_path, ending.join(["user_id,item_id,t,text", *lines])))
    assert raw.bad == [BadRow(100_002, "has 2 values, expected 4")]
    assert raw.table.num_rows == len(raw.lines) == 149_997
    kept = [i for i in range(150_000) if i not in (10, 60_000, 60_001, 100_000)]
    at = np.searchsorted(raw.lines, np.array(kept) + 2)
    assert np.array_equal(raw.lines[at], np.array(kept) + 2)
    times = raw.table["t"].take(pa.array(at)).cast(pa.int64()).to_numpy()
    assert np.array_equal(times, np.array(kept) * 1000)
    assert raw.table["text"][int(np.searchsorted(raw.lines, 60_002))].as_py() == "two\nlines"


HEADERLESS = {
    "numbers": "196\t242\t3\t881250949\n186\t302\t3\t891717742\n",
    "texts that repeat": "alice,b1,view\nbob,b2,view\n",
    "dates": "alice,b1,2020-01-01\nbob,b2,2020-01-02\n",
    "fractions": "a,b,1.5\nc,d,2\n",
    "one line": "1,2,3\n",
    "text and a number": "alice,b1,5\nbob,b2,4\n",
}


@pytest.mark.parametrize("case", HEADERLESS)
def test_without_header(tmp_path, case):
    path = write(tmp_path, HEADERLESS[case])
    message = refused(path, "the first line holds values, not names (")
    assert "--columns user_id,item_id,timestamp" in message
    lines = HEADERLESS[case].splitlines()
    width = len(lines[0].replace("\t", ",").split(","))
    names = ["user_id", "item_id", "rating", "timestamp"][:width]
    raw = read_table(path, names=names)
    assert raw.table.column_names == names
    assert raw.lines.tolist() == list(range(1, len(lines) + 1))
    assert raw.table["user_id"][0].as_py() == lines[0].replace("\t", ",").split(",")[0]
    shown = repr(lines[0])
    refused(
        path, f"2 names (a, b) for {width} columns; the first line is {shown}", names=("a", "b")
    )


def test_names_of_a_file_that_has_a_header(tmp_path):
    path = write(tmp_path, CSV)
    check(read_table(path, names=NAMES))
    raw = read_table(path, names=["user", "item", "when"])
    assert raw.table.column_names == ["user", "item", "when"]
    assert raw.table["user"].to_pylist() == COLUMNS["user_id"]
    first = "the first line 'user_id,item_id,timestamp' is a header: the given names replace it"
    assert raw.notes == [first]
    refused(path, "must be named once each, got a, a, b", names=["a", "a", "b"])


def test_headers_among_the_rows(tmp_path):
    raw = read_table(write(tmp_path, CSV + CSV))
    assert raw.table["item_id"].to_pylist() == COLUMNS["item_id"] * 2
    assert raw.bad == [BadRow(10, "repeats the header")]
    assert raw.lines[8] == 11


def with_first(name, values):
    lines = CSV.splitlines()
    cells = [name, *values]
    return "".join(f"{cell},{line}\n" for cell, line in zip(cells, lines, strict=True))


@pytest.mark.parametrize("order", [range(8), range(1, 9), [5, 3, 1, 0, 9, 8, 4, 2]])
@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
def test_an_index_without_a_name_is_left_out(tmp_path, name, order):
    raw = read_table(write(tmp_path, with_first(name, order)))
    check(raw, ["column '' numbers the rows: left out"])
    refused(write(tmp_path, with_first(name, "abcdefgh")), "does not number the rows")
    refused(write(tmp_path, with_first(name, [0, 1, 2, 3, 4, 5, 6, 6])), "does not number")


def test_an_index_with_a_name_is_one_if_it_counts(tmp_path):
    raw = read_table(write(tmp_path, with_first("index", range(8))))
    check(raw, ["column 'index' numbers the rows: left out"])
    raw = read_table(write(tmp_path, with_first("index", [5, 3, 1, 0, 9, 8, 4, 2])))
    assert raw.table.column_names == ["index", *NAMES]


ODD_NUMBERS = {
    "decimal commas": ["1,5", "2", "-3,25"],
    "thousands separators": ["1,234.5", "17", "1,234,567"],
    "thousands separators and decimal commas": ["1.234,50", "2,00", "3"],
}


@pytest.mark.parametrize("what", ODD_NUMBERS)
def test_numbers_written_otherwise_are_refused(tmp_path, what):
    values = ODD_NUMBERS[what]
    content = "user_id;item_id;price\n" + "".join(f"1;{i};{v}\n" for i, v in enumerate(values))
    refused(write(tmp_path, content), f"column 'price' is written with {what} ('")
    content = "user_id,item_id,price\n" + "".join(f'1,{i},"{v}"\n' for i, v in enumerate(values))
    refused(write(tmp_path, content), f"column 'price' is written with {what} ('")


@pytest.mark.parametrize("mark", [" ", "'", "\u00a0", "\u202f"])
def test_other_thousands_separators(tmp_path, mark):
    content = f"user_id,item_id,price\n1,1,1{mark}234\n1,2,12\n"
    refused(write(tmp_path, content), "column 'price' is written with thousands separators")


@pytest.mark.parametrize("values", [["1,2,3", "4"], ["a,b", "c"], ["1|2", "3"], ["1 2 3", "5 6"]])
def test_lists_are_no_odd_numbers(tmp_path, values):
    content = "user_id;item_id;tags\n" + "".join(f"1;{i};{v}\n" for i, v in enumerate(values))
    assert read_table(write(tmp_path, content)).table["tags"].to_pylist() == values


@pytest.mark.parametrize("suffix", COMPRESSED)
def test_compressed(tmp_path, suffix):
    packed = COMPRESSED[suffix](CSV.encode())
    check(read_table(write(tmp_path, packed, f"log.csv{suffix}")))
    check(read_table(write(tmp_path, packed, "log.csv")))
    check(read_table(write(tmp_path, packed, "log")))
    # Two of them joined end to end are one.
    half = CSV.encode()[:100], CSV.encode()[100:]
    check(read_table(write(tmp_path, b"".join(map(COMPRESSED[suffix], half)), f"two{suffix}")))
    with files.open_bytes(tmp_path / f"log.csv{suffix}") as stream:
        assert stream.readline() == b"user_id,item_id,timestamp\n"
        assert stream.read() == CSV.encode().split(b"\n", 1)[1]


@pytest.mark.parametrize("suffix", COMPRESSED)
def test_damaged_compression(tmp_path, suffix):
    content = "".join(f"{i % 50},{i * 7919 % 613}\n" for i in range(20_000)).encode()
    packed = COMPRESSED[suffix](b"user_id,item_id\n" + content)
    path = write(tmp_path, packed[: len(packed) // 2], f"log.csv{suffix}")
    refused(path, f"{path}: cannot be read")
    refused(
        write(tmp_path, CSV, f"plain.csv{suffix}"), "cannot be read as a table: ", "b'user_id,'"
    )


def test_zip(tmp_path):
    path = write(tmp_path, zipped(**{"a/log.csv": CSV, "__MACOSX/a/._log.csv": "x"}), "log.zip")
    check(read_table(path), ["member a/log.csv of log.zip"])
    check(read_table(path / "a" / "log.csv"))
    check(read_table(f"{path}/a/log.csv"))
    refused(path / "none.csv", "log.zip holds no such file; it holds a/log.csv")
    members = {"README.txt": "x", "log.csv.gz": gzip.compress(CSV.encode())}
    check(read_table(write(tmp_path, zipped(**members), "log")), ["member log.csv.gz of log"])


def test_zip_of_several_files(tmp_path):
    path = write(tmp_path, zipped(**{"one.csv": CSV, "b/two.csv": CSV}), "log.zip")
    refused(path, "holds 2 files (one.csv, b/two.csv); choose one", f"{path}/one.csv")
    check(read_table(path / "b/two.csv"))


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_tar(tmp_path, mode):
    path = write(tmp_path, tarred(mode, **{"a/log.csv": CSV}), "log.tar.gz" if ":" in mode else "t")
    if mode == "w:xz":
        path = path.rename(tmp_path / "log.tar.xz")
    check(read_table(path), [f"member a/log.csv of {path.name}"])
    several = tarred(mode, **{"one.csv": CSV, "two.csv": CSV})
    path.write_bytes(several)
    refused(path, "holds 2 files (one.csv, two.csv)")
    check(read_table(path / "two.csv"))


def encrypted():
    content = bytearray(zipped(**{"log.csv": CSV}))
    content[6] |= 1
    content[content.index(b"PK\1\2") + 8] |= 1
    return bytes(content)


REFUSED = {
    "empty": ("", "log.csv", "the file is empty"),
    "header only": ("user_id,item_id\n", "log.csv", "holds no events"),
    "header without newline": ("user_id,item_id", "log.csv", "holds no events"),
    "blank first line": ("\n" + CSV, "log.csv", "the first line must name the columns once each"),
    "a column twice": (CSV.replace("timestamp", "item_id"), "log.csv", "columns once each"),
    "an unnamed column": (CSV.replace("timestamp", ""), "log.csv", "columns once each"),
    "Latin-1 header": (CSV.replace("time", "é").encode("latin-1"), "log.csv", "not UTF-8"),
    "UTF-16 unmarked": (CSV.encode("utf-16-le"), "log.csv", "UTF-16 without a mark"),
    "UTF-16 broken": (CSV.encode("utf-16")[:-1], "log.csv", "broken UTF-16"),
    "zero bytes": (b"a\0b", "log.csv", "zero bytes"),
    "encrypted zip": (encrypted(), "log.zip", "log.csv is encrypted"),
    "half a zip": (zipped(**{"log.csv": CSV})[:-30], "log.zip", "cannot be read"),
    "an empty zip": (zipped(), "log.zip", "holds no file"),
    "zip in zip": (zipped(**{"log.zip": zipped(a=CSV)}), "log.zip", "an archive in an archive"),
    "Excel": (zipped(**{"[Content_Types].xml": "", "xl/a.xml": ""}), "log.xlsx", "Excel workbook"),
    "old Excel": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "log.xls", "old Excel"),
    "7-Zip": (b"7z\xbc\xaf\x27\x1c\0", "log.7z", "7-Zip archive"),
    "a web page": ("<!DOCTYPE html>\n<html>", "log.csv", "a web page"),
    "XML": ("\n<?xml version='1.0'?><rows/>", "log.csv", "a web page (HTML or XML)"),
    "PDF": ("%PDF-1.5\n\0", "log.csv", "a PDF document"),
    "SQLite": ("SQLite format 3\0", "log.db", "an SQLite database"),
    "pickle": (b"\x80\x04\x95\0", "log.pkl", "a Python pickle, which is never read"),
    "Git LFS": ("version https://git-lfs.github.com/spec/v1\n", "a.parquet", "no Parquet file"),
    "libsvm": ("1 3:1 5:0.5\n0 2:1\n", "log.txt", "use libsvm:"),
    "libffm": ("1 0:3:1 1:5:0.5\n0 0:2:1\n", "log.txt", "use libffm:"),
    "junk Parquet": (b"\x81\x92" * 50, "log.parquet", "it is no Parquet file"),
    "text called Parquet": (CSV, "log.parquet", "it is no Parquet file"),
    "text called Feather": (CSV, "log.feather", "it is no Arrow file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_table(tmp_path, case):
    content, name, reason = REFUSED[case]
    refused(write(tmp_path, content, name), reason, name)


def test_names_that_only_begin_as_other_formats_do(tmp_path):
    raw = read_table(write(tmp_path, "ORC,user_id,item_id\n1,2,3\n"))
    assert raw.table.column_names == ["ORC", "user_id", "item_id"]


def test_no_file(tmp_path):
    refused(tmp_path / "none.csv", "none.csv: no such file")
    refused(tmp_path, "not a file, and a folder without files")
    refused(f"{tmp_path}/*.csv", "no such file")
    refused(tmp_path / ("n" * 300), "cannot be read: File name too long")


JSON_ROWS = [
    {"user_id": 1, "item_id": 2**64 - 1, "price": 1.5, "tags": ["a", "b"], "mixed": 1},
    {"user_id": 2, "item_id": 10**18 + 1, "price": 2, "mixed": "1", "where": {"city": "Rome"}},
    {"user_id": None, "item_id": 3, "price": None, "tags": [], "where": {"zip": 7}, "ok": True},
]


def check_json(raw):
    assert raw.table.schema.field("item_id").type == pa.uint64()
    assert raw.table.to_pydict() == {
        "user_id": [1, 2, None],
        "item_id": [2**64 - 1, 10**18 + 1, 3],
        "price": [1.5, 2.0, None],
        "tags": [["a", "b"], None, []],
        "mixed": ["1", "1", None],
        "where": [None, {"city": "Rome", "zip": None}, {"city": None, "zip": 7}],
        "ok": [None, None, True],
    }


@pytest.mark.parametrize("name", ["log.jsonl", "log.ndjson", "log.json", "log.csv", "log"])
def test_json_lines(tmp_path, name):
    lines = [json.dumps(row) for row in JSON_ROWS]
    content = "\n".join([lines[0], "", lines[1], "oops", lines[2], "[1]", '{"a":', "7"])
    raw = read_table(write(tmp_path, "\ufeff" + content, name))
    check_json(raw)
    assert raw.lines.tolist() == [1, 3, 5]
    assert [row.line for row in raw.bad] == [4, 6, 7, 8]
    assert raw.bad[0].reason == "is not JSON (Expecting value at letter 1): 'oops'"
    assert raw.bad[1].reason == "must be an object, got [1]"
    assert raw.notes == ([] if "j" in name else ["JSON by its content"])


@pytest.mark.parametrize("indent", [None, 1])
def test_json_array(tmp_path, indent):
    raw = read_table(write(tmp_path, json.dumps(JSON_ROWS, indent=indent), "log.json"))
    check_json(raw)
    assert raw.lines.tolist() == ([1, 1, 1] if indent is None else [2, 12, 21])
    refused(write(tmp_path, '[{"a":1},\n{"a":', "a.json"), "line 2: is not JSON")
    refused(write(tmp_path, '[{"a":1}] {}', "a.json"), "more follows its array")
    refused(write(tmp_path, "[]", "a.json"), "holds no events")
    raw = read_table(write(tmp_path, '[{"a":1},\n2]', "a.json"))
    assert raw.bad == [BadRow(2, "must be an object, got 2")]


def test_json_that_is_no_rows(tmp_path):
    remedy = "orient='records', lines=True"
    refused(write(tmp_path, '{"user_id":{"0":1},"item_id":{"0":2}}', "a.json"), "all data", remedy)
    refused(write(tmp_path, '{\n"a": 1\n}\n{\n"a": 2\n}', "a.json"), "line 1: is not JSON", remedy)
    refused(write(tmp_path, "x\ny\n", "a.jsonl"), "line 1: is not JSON", remedy)
    refused(write(tmp_path, "{}\n", "a.jsonl"), "holds no events")


def test_json_numbers_do_not_pass_through_floats(tmp_path):
    # Far apart, so that the parts a file is read in have different types.
    values = [10**18 + i for i in range(70_000)] + [2**63 + 5] + [2**64 - 1]
    content = "\n".join(f'{{"a":{v},"b":[{v}]}}' for v in values)
    table = read_table(write(tmp_path, content, "a.jsonl")).table
    assert table["a"].to_pylist() == values
    assert table["b"].to_pylist() == [[v] for v in values]
    values = [2**53 + 1] * 70_000 + [0.5]
    table = read_table(write(tmp_path, "\n".join(f'{{"a":{v}}}' for v in values), "a.jsonl")).table
    assert table["a"].to_pylist() == [str(v) for v in values]
    table = read_table(write(tmp_path, f'{{"a":{2**53 + 1}}}\n{{"a":0.5}}\n', "a.jsonl")).table
    assert table["a"].to_pylist() == [str(2**53 + 1), "0.5"]
    table = read_table(write(tmp_path, f'{{"a":{-1}}}\n{{"a":{2**64}}}\n', "a.jsonl")).table
    assert table["a"].to_pylist() == ["-1", str(2**64)]


def test_json_columns_of_different_kinds(tmp_path):
    rows = [{"a": 1, "b": [1, "x"], "c": "2020-01-01"}, {"a": "x", "b": ["y"], "c": "2020"}]
    filler = [{"a": 7}] * 70_000
    content = "\n".join(map(json.dumps, rows[:1] + filler + rows[1:]))
    raw = read_table(write(tmp_path, content, "a.jsonl"))
    ends = raw.table.take([0, 70_001]).to_pydict()
    assert ends == {"a": ["1", "x"], "b": [["1", "x"], ["y"]], "c": ["2020-01-01", "2020"]}
    assert "column 'a' holds int64 and string: read as text" in raw.notes
    content = '{"a": NaN, "b": {}}\n{"a": 1, "b": "x"}\n'
    raw = read_table(write(tmp_path, content, "a.jsonl"))
    assert raw.table.to_pydict() == {"a": [None, 1.0], "b": ["{}", "x"]}


TYPED = {
    "user_id": pa.array(["a", "b", None]).dictionary_encode(),
    "item_id": pa.array([2**64 - 1, 10**18 + 1, 3], pa.uint64()),
    "text": pa.array(["x", "y", "z"], pa.large_string()),
    "bytes": pa.array([b"x", "é".encode(), None]),
    "day": pa.array([1, 2, None], pa.date32()),
    "when": pa.array([1, 2, 3], pa.timestamp("us", "UTC")),
    "price": pa.array([1.5, float("nan"), None], pa.float32()),
    "tags": pa.array([["a"], None, []], pa.large_list(pa.large_string())),
    "vector": pa.array([[1.5], [2.5], [3.5]], pa.list_(pa.float32(), 1)),
    "__index_level_0__": pa.array([4, 2, 9]),
}


def write_parquet(table, path):
    pyarrow.parquet.write_table(table, path)


def write_feather(table, path):
    pyarrow.feather.write_feather(table, path)


def write_stream(table, path):
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


COLUMNAR = {
    "log.parquet": write_parquet,
    "log.pq": write_parquet,
    "log.feather": write_feather,
    "log.arrow": write_feather,
    "log.ipc": write_stream,
    "log.csv": write_parquet,
    "log": write_feather,
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", COLUMNAR)
def test_columnar(tmp_path, name, packed):
    path = tmp_path / name
    COLUMNAR[name](pa.table(TYPED), path)
    if packed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    raw = read_table(path)
    schema = {field.name: field.type for field in raw.table.schema}
    assert schema == {
        "user_id": pa.string(),
        "item_id": pa.uint64(),
        "text": pa.string(),
        "bytes": pa.string(),
        "day": pa.date32(),
        "when": pa.timestamp("us", "UTC"),
        "price": pa.float64(),
        "tags": pa.list_(pa.string()),
        "vector": pa.list_(pa.float32(), 1),
    }
    assert raw.table["item_id"].to_pylist() == [2**64 - 1, 10**18 + 1, 3]
    assert raw.table["price"].to_pylist() == [1.5, None, None]
    assert raw.table["bytes"].to_pylist() == ["x", "é", None]
    assert raw.table["tags"].to_pylist() == [["a"], None, []]
    assert raw.table["day"].to_pylist()[0] == datetime.date(1970, 1, 2)
    assert raw.lines.tolist() == [2, 3, 4]
    assert "column '__index_level_0__' numbers the rows: left out" in raw.notes


@pytest.mark.parametrize("name", ["log.parquet", "log.feather", "log.ipc"])
def test_damaged_columnar(tmp_path, name):
    path = tmp_path / name
    COLUMNAR[name](pa.table({"a": [f"text {i}" for i in range(1000)]}), path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    refused(path, "cannot be read as a table: ")
    COLUMNAR[name](pa.table({"user_id": pa.array([], pa.int64())}), path)
    refused(path, "holds no events")
    refused(path, "holds no events", names=["a"])


def test_names_are_for_text(tmp_path):
    write_parquet(pa.table({"a": [1]}), tmp_path / "log.parquet")
    refused(tmp_path / "log.parquet", "names its columns itself", names=["b"])
    assert read_table(tmp_path / "log.parquet", names=["a"]).table.num_rows == 1
    refused(write(tmp_path, '{"a":1}', "log.jsonl"), "JSON names its columns itself", names=["b"])


def test_folder_of_csv(tmp_path):
    lines = CSV.splitlines(keepends=True)
    write(tmp_path, "".join([lines[0], *lines[1:4]]), "day/a.csv")
    write(tmp_path, gzip.compress("".join([lines[0], "1\n", *lines[4:]]).encode()), "day/b.csv.gz")
    write(tmp_path, "", "day/_SUCCESS")
    write(tmp_path, "", "day/.b.csv.crc")
    write(tmp_path, "what it is", "day/README.md")
    for where in (tmp_path / "day", f"{tmp_path}/day/*.csv*", f"{tmp_path}/da?"):
        raw = read_table(where)
        assert raw.table.to_pydict() == COLUMNS
        assert raw.lines.tolist() == [2, 3, 4, 3, 4, 5, 6, 7]
        (bad,) = raw.bad
        assert bad.line == 2 and bad.reason.endswith("b.csv.gz: has 1 values, expected 3: '1'")
        assert raw.notes == ["2 files"]
        assert raw.bad_row(2, "x").reason.endswith("a.csv: x") and raw.bad_row(2, "x").line == 4
        assert raw.bad_row(3, "x").reason.endswith("b.csv.gz: x") and raw.bad_row(3, "x").line == 3
    write(tmp_path, "user_id,item_id\n1,2\n", "day/c.csv")
    refused(tmp_path / "day", "c.csv: not the columns of a.csv: lacks timestamp")
    write(tmp_path, '{"user_id": 1}', "day/c.csv")
    refused(tmp_path / "day", "lacks item_id, timestamp")
    (tmp_path / "day/c.csv").rename(tmp_path / "day/c.jsonl")
    refused(tmp_path / "day", "of several formats (a.csv (delimited text), c.jsonl (JSON))")


def test_folder_of_parquet(tmp_path):
    parts = {
        "day=2020-01-01/p0.parquet": {"user_id": [1, 2], "x": pa.array([1, 2], pa.int32())},
        "day=2020-01-02/p0.parquet": {
            "x": [2.5, None],
            "user_id": pa.array([2**63, 4], pa.uint64()),
        },
    }
    for name, columns in parts.items():
        (tmp_path / name).parent.mkdir()
        write_parquet(pa.table(columns), tmp_path / name)
    for where in (tmp_path, f"{tmp_path}/*/*.parquet", f"{tmp_path}/day=2020-01-0[12]"):
        raw = read_table(where)
        assert raw.table.to_pydict() == {
            "user_id": [1, 2, 2**63, 4],
            "x": [1.0, 2.0, 2.5, None],
            "day": ["2020-01-01", "2020-01-01", "2020-01-02", "2020-01-02"],
        }
        assert raw.lines.tolist() == [2, 3, 2, 3]
    write_parquet(pa.table({"user_id": [[1]], "x": [1]}), tmp_path / "day=2020-01-01/p1.parquet")
    refused(tmp_path, "column 'user_id' holds int64 and list<", "write it in one of them")


def test_types_of_several_files(tmp_path):
    kinds = {
        "float": (pa.array([1.5]), pa.array([2**53]), pa.float64(), [1.5, 2.0**53]),
        "exact": (pa.array([1.5]), pa.array([2**53 + 1]), pa.string(), ["1.5", str(2**53 + 1)]),
        "signs": (pa.array([-1]), pa.array([2**63], pa.uint64()), pa.string(), ["-1", str(2**63)]),
        "text": (pa.array([1]), pa.array(["x"]), pa.string(), ["1", "x"]),
        "none": (pa.nulls(1), pa.array([5]), pa.int64(), [None, 5]),
    }
    for at in (0, 1):
        columns = {name: kind[at] for name, kind in kinds.items()}
        write_parquet(pa.table(columns), tmp_path / f"{at}.parquet")
    table = read_table(tmp_path).table
    for name, (_, _, kind, values) in kinds.items():
        assert table[name].type == kind and table[name].to_pylist() == values
    moments = [pa.array([5], pa.timestamp("s")), pa.array([5], pa.timestamp("ms"))]
    for at in (0, 1):
        write_parquet(pa.table({"t": moments[at]}), tmp_path / f"{at}.parquet")
    values = read_table(tmp_path).table["t"].cast(pa.int64()).to_pylist()
    assert values == [5000, 5]


def zip_folder(folder, path, inside=""):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, f"{inside}{file.name}")
    return path


def tar_folder(folder, path, inside=""):
    with tarfile.open(path, "w:gz") as archive:
        for file in sorted(folder.iterdir()):
            archive.add(file, f"{inside}{file.name}")
    return path


# The folders that some sources take: all files of one, as an archive or each compressed.
FOLDERS = [name for name, source in PUBLISHED.items() if source.kind in ("alibaba", "amazon")]
FOLDERS += [name for name, source in PUBLISHED.items() if source.kind == "movielens"]


@pytest.mark.parametrize("inside", ["", "a/b/"])
@pytest.mark.parametrize("archive", [zip_folder, tar_folder])
@pytest.mark.parametrize("name", FOLDERS)
def test_published_folders_as_archives(tmp_path, name, archive, inside):
    (tmp_path / "plain").mkdir()
    plain = PUBLISHED[name].write(tmp_path / "plain")
    kind = plain.partition(":")[0]
    path = archive(tmp_path / "plain", tmp_path / "packed", inside)
    one, two = open_source(plain), open_source(f"{kind}:{path}")
    assert same(one, two)
    assert same(one, open_source(f"{kind}:{path}/{inside}".rstrip("/")))


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".zip"])
@pytest.mark.parametrize("name", FOLDERS)
def test_published_folders_of_compressed_files(tmp_path, name, suffix):
    plain = PUBLISHED[name].write(tmp_path)
    one = open_source(plain)
    for path in list(tmp_path.iterdir()):
        if path.suffix != ".gz":
            content = path.read_bytes()
            packed = zipped(**{path.name: content}) if suffix == ".zip" else None
            path.with_name(path.name + suffix).write_bytes(packed or COMPRESSED[suffix](content))
            path.unlink()
    assert same(one, open_source(plain))


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".zip"])
def test_published_files_compressed(tmp_path, suffix):
    source = PUBLISHED["taobao"]
    one = open_source(source.write(tmp_path))
    content = (tmp_path / source.main).read_bytes()
    packed = zipped(**{source.main: content}) if suffix == ".zip" else COMPRESSED[suffix](content)
    path = write(tmp_path, packed, f"{source.main}{suffix}")
    assert same(one, open_source(f"taobao:{path}"))
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match=f"{path.name}: cannot be read"):
        open_source(f"taobao:{path}", on_bad_row="skip")


def same(one, two):
    """Whether two data sets hold the same events and targets."""
    arrays = lambda data: [
        data.log.offsets,
        data.log.item,
        data.log.time,
        *data.log.items.values(),
        *data.log.users.values(),
        data.train.candidate,
        data.test.candidate,
    ]
    pairs = zip(arrays(one), arrays(two), strict=True)
    return one.schema == two.schema and all(np.array_equal(*pair) for pair in pairs)


def test_an_archive_of_two_folders_of_the_kind(tmp_path):
    (tmp_path / "plain").mkdir()
    source = PUBLISHED["movielens 100k"]
    source.write(tmp_path / "plain")
    files_ = {
        f"{at}/{path.name}": path.read_bytes()
        for at in "ab"
        for path in (tmp_path / "plain").iterdir()
    }
    path = write(tmp_path, zipped(**files_), "two.zip")
    with pytest.raises(DataError, match=r"several folders hold such files \(a, b\); choose one"):
        open_source(f"movielens:{path}")
    assert open_source(f"movielens:{path}/a").facts["events"] > 0


def test_the_two_archives_of_aliccp(tmp_path):
    (tmp_path / "plain").mkdir()
    names = ("sample_skeleton", "common_features")
    for part in ("train", "test"):
        lines = [f"{part}{n},1,101\x02{n % 3}\x031.0\n" for n in range(20)]
        (tmp_path / "plain" / f"common_features_{part}.csv").write_text("".join(lines))
        lines = [f"{n},{n % 2},0,{part}{n},1,205\x02{n % 4}\x031.0\n" for n in range(20)]
        (tmp_path / "plain" / f"sample_skeleton_{part}.csv").write_text("".join(lines))
    one = open_source(f"aliccp:{tmp_path / 'plain'}")
    (tmp_path / "published").mkdir()
    for part in ("train", "test"):
        with tarfile.open(tmp_path / "published" / f"sample_{part}.tar.gz", "w:gz") as archive:
            for name in names:
                file = f"{name}_{part}.csv"
                archive.add(tmp_path / "plain" / file, file)
    for where in (
        tmp_path / "published",
        zip_folder(tmp_path / "plain", tmp_path / "all.zip", "x/"),
    ):
        two = open_source(f"aliccp:{where}")
        assert one.schema == two.schema
        assert np.array_equal(one.train.candidate, two.train.candidate)
        assert np.array_equal(one.train.label["click"], two.train.label["click"])


def test_the_archive_of_criteo(tmp_path):
    line = "\t".join(["1", *["2"] * 13, *["68fd1e64"] * 26]) + "\n"
    path = write(
        tmp_path, tarred("w:gz", **{"train.txt": line * 20, "test.txt": "x"}), "dac.tar.gz"
    )
    with pytest.raises(DataError, match="holds 2 files .train.txt, test.txt.; choose one"):
        open_source(f"criteo:{path}")
    assert open_source(f"criteo:{path}/train.txt").facts["lines"] == 20


def test_a_file_of_reviews_alone(tmp_path):
    source = PUBLISHED["amazon 2014"]
    one = open_source(source.write(tmp_path))
    two = open_source(f"amazon:{tmp_path / source.main}")
    assert np.array_equal(one.log.item, two.log.item) and two.facts == {
        name: count for name, count in one.facts.items() if name != "items without metadata"
    }
    assert set(two.log.items) == {"item"}
