import datetime
import gzip
import json
import struct

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from recjax.train.data.files import BadRow, read_table
from tables_of_text import COLUMNS, CSV, refused, write, zipped


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


def test_text_that_is_damaged(tmp_path):
    table = pa.table({"user_id": ["abcdefg"] * 100})
    path = tmp_path / "log.parquet"
    pyarrow.parquet.write_table(table, path, compression="none", use_dictionary=False)
    path.write_bytes(path.read_bytes().replace(b"abcdefg", b"abc\xff\xfefg"))
    refused(path, "cannot be read as a table: ", "Invalid UTF8")
    path = tmp_path / "log.feather"
    pyarrow.feather.write_feather(table, path, compression="uncompressed")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"abcdefg", b"abc\xff\xfefg"))
    refused(path, "cannot be read as a table: ", "Invalid UTF8")
    # Where each text starts.
    before, after = (struct.pack("<101i", *range(0, 101 * n, n)) for n in (7, 10**6))
    assert before in content
    path.write_bytes(content.replace(before, after))
    refused(path, "cannot be read as a table: ")


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
        left_out = [] if "*.csv*" in str(where) else ["left out, of no known format: README.md"]
        assert raw.notes == [*left_out, "2 files"]
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


@pytest.mark.parametrize("folder", ["_delta_log", ".hoodie"])
def test_tables_whose_files_are_not_all_current(tmp_path, folder):
    (tmp_path / folder).mkdir()
    write_parquet(pa.table({"user_id": [1]}), tmp_path / "a.parquet")
    refused(tmp_path, "some of whose files may be deleted rows")


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_an_index_of_other_formats(tmp_path, name):
    def wrote(**columns):
        columns = {key.replace("Unnamed", "Unnamed: 0"): value for key, value in columns.items()}
        if name == "a.parquet":
            write_parquet(pa.table(columns), tmp_path / name)
        else:
            rows = [
                dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
            ]
            write(tmp_path, "\n".join(map(json.dumps, rows)), name)
        return read_table(tmp_path / name).table.column_names

    assert wrote(index=[0, 1, 2], user_id=[5, 6, 6]) == ["user_id"]
    assert wrote(index=[2, 1, 0], user_id=[5, 6, 6]) == ["index", "user_id"]
    assert wrote(Unnamed=[2, 7, 0], user_id=[5, 6, 6]) == ["user_id"]
    assert wrote(Unnamed=[2, 2, 0], user_id=[5, 6, 6]) == ["Unnamed: 0", "user_id"]
    assert wrote(index=[0.0, 1.0], user_id=[5, 6]) == ["index", "user_id"]


def test_parquet_that_names_a_column_twice(tmp_path):
    write_parquet(pa.table([[1], [2]], names=["user_id", "user_id"]), tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", "column 'user_id' appears twice; found user_id, user_id")


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
