import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from recjax.train.data.files import BadRow, read_table
from tables_of_text import COLUMNS, CSV, NAMES, as_csv, check, refused, write

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


@pytest.mark.parametrize("word", ["NULL", "None", "NA", "NaT", "\\N"])
def test_words_for_nothing_among_numbers_and_dates(tmp_path, word):
    rows = [
        f"{word},1,{word},a\n",
        f"2,{word},2020-01-01,{word}\n",
        "3,4.5,2020-01-02 10:00:00,c\n",
    ]
    raw = read_table(write(tmp_path, "user_id,item_id,day,brand\n" + "".join(rows)))
    assert raw.table.to_pydict() == {
        "user_id": [None, "2", "3"],
        "item_id": ["1", None, "4.5"],
        "day": [None, "2020-01-01", "2020-01-02 10:00:00"],
        "brand": ["a", word, "c"],
    }
    assert raw.notes[0] == f"column 'user_id' says {word!r} where it has no value"
    assert len(raw.notes) == 3


def test_spaces_around_values(tmp_path):
    content = "user_id, item_id, name, t\n" + "".join(
        f"  {u}, {10 * u}, x y, {u}\n" for u in (9, 10)
    )
    raw = read_table(write(tmp_path, content))
    assert raw.table.to_pydict() == {
        "user_id": ["9", "10"],
        "item_id": ["90", "100"],
        "name": ["x y", "x y"],
        "t": ["9", "10"],
    }
    assert raw.notes[1] == "column 'item_id' has spaces around its values: left out"
    # Right-aligned numbers; and words, where a space may mean something.
    raw = read_table(write(tmp_path, "user_id,item_id\n  7, x\n100,x\n"))
    assert raw.table.to_pydict() == {"user_id": ["7", "100"], "item_id": [" x", "x"]}


def test_quotes(tmp_path):
    raw = read_table(write(tmp_path, QUOTED))
    assert raw.table["t"].to_pylist() == ["a\nb", "c", 'x"\n,y', "9", '5" disk']
    assert raw.lines.tolist() == [2, 4, 5, 7, 8]
    assert raw.bad == []


def test_rows_that_are_no_lines(tmp_path):
    # Of each line the quotes are even, and yet two of them are one row.
    raw = read_table(write(tmp_path, 'user_id,item_id,a,b\n5",x,"a\nb",7"\n1,2,3,4\n'))
    assert raw.table.slice(0, 1).to_pylist() == [
        {"user_id": '5"', "item_id": "x", "a": "a\nb", "b": '7"'}
    ]
    assert raw.lines.tolist() == [2, 4] and raw.bad == []
    # As many lines as Arrow finds rows, but not the same.
    raw = read_table(write(tmp_path, "user_id,item_id\n1,2\r3,4\n\r\r\n5,6\n"))
    assert raw.table.to_pydict() == {"user_id": ["5"], "item_id": ["6"]}
    assert raw.lines.tolist() == [4] and raw.bad == [BadRow(2, "has 3 values, expected 2")]
    raw = read_table(write(tmp_path, 'user_id,item_id\n1,2\n3,"4'))
    assert raw.lines.tolist() == [2] and raw.bad[0].line == 3


@pytest.mark.parametrize("size", [20, 30, 40, 60, 80])
def test_parts_never_end_within_quotes(tmp_path, monkeypatch, size):
    monkeypatch.setattr("recjax.train.data.files.rows._PART_BYTES", size)
    raw = read_table(write(tmp_path, QUOTED + '1\n12,"13\n\n14",15\n'))
    assert raw.table["t"].to_pylist() == ["a\nb", "c", 'x"\n,y', "9", '5" disk', "15"]
    assert raw.table["item_id"].to_pylist() == ["2", "4", "6", "8,a", "11", "13\n\n14"]
    assert raw.lines.tolist() == [2, 4, 5, 7, 8, 10]
    assert raw.bad == [BadRow(9, "has 1 values, expected 3: '1'")]


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


def test_types_in_the_header(tmp_path):
    content = CSV.replace(
        "user_id,item_id,timestamp", "user_id:token,item_id:token,timestamp:float"
    )
    raw = read_table(write(tmp_path, content.replace(",", "\t"), "log.inter"))
    check(raw, ["separated by tabs", "types in the first line (user_id:token): left out"])
    raw = read_table(write(tmp_path, content.replace("timestamp:float", "at:noon")))
    assert raw.table.column_names == ["user_id:token", "item_id:token", "at:noon"]


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


def test_decimal_commas_late_in_a_file(tmp_path):
    content = "user_id;item_id;price\n" + "1;2;3\n" * 5000 + "1;2;3,5\n"
    refused(write(tmp_path, content), "column 'price' is written with decimal commas ('3,5')")


@pytest.mark.parametrize("mark", [" ", "'", "\u00a0", "\u202f"])
def test_other_thousands_separators(tmp_path, mark):
    content = f"user_id,item_id,price\n1,1,1{mark}234\n1,2,12\n"
    refused(write(tmp_path, content), "column 'price' is written with thousands separators")


@pytest.mark.parametrize("values", [["1,2,3", "4"], ["a,b", "c"], ["1|2", "3"], ["1 2 3", "5 6"]])
def test_lists_are_no_odd_numbers(tmp_path, values):
    content = "user_id;item_id;tags\n" + "".join(f"1;{i};{v}\n" for i, v in enumerate(values))
    assert read_table(write(tmp_path, content)).table["tags"].to_pylist() == values
