import gzip

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from recjax.train.data.errors import DataError
from recjax.train.data.protocol import Protocol
from recjax.train.data.sources import events
from recjax.zoo.features import signatures

# Three users; "u2" has too few events. City is the user's, brand and price are the item's, and
# note belongs to neither.
COLUMNS = "user_id,item_id,category_id,timestamp,behavior,brand,price,city,note"
ROWS = """\
u0,10,1,100,view,acme,1.5,Rome,a
u1,20,2,200000,buy,beta,,Oslo,b
u0,30,,300,view,acme,2,Rome,c
u0,20,2,50,view,beta,,Rome,d
u1,10,1,-5,view,acme,1.5,Oslo,e
u1,40,1,7,view,,-.5,,f
u2,10,1,8,view,acme,1.5,Bonn,g
u0,50,3,400,buy,beta,4e1,Rome,h
u1,60,3,200000,view,beta,3.,Oslo,i
u3,70,3,1,view,beta,6,Rome,j
"""
CSV = f"{COLUMNS}\n{ROWS}"
SHORT = "user_id,item_id\n" + "".join(f"{u},{i}\n" for u in (1, 2) for i in range(u, u + 4))


def write(tmp_path, content, name="log.csv"):
    path = tmp_path / name
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


def as_parquet(tmp_path, *, text=None, **columns):
    """CSV's content with Parquet's types; a column given here replaces or adds one."""
    text = text or pa.string()
    names = COLUMNS.split(",")
    cells = zip(*(line.split(",") for line in ROWS.splitlines()), strict=True)
    values = {
        name: [cell or None for cell in column] for name, column in zip(names, cells, strict=True)
    }
    types = {"item_id": int, "category_id": int, "timestamp": int, "price": float}
    arrays = {
        name: pa.array([x if x is None else types[name](x) for x in column])
        if name in types
        else pa.array(column).cast(text)
        for name, column in values.items()
    }
    path = tmp_path / "log.parquet"
    pyarrow.parquet.write_table(pa.table(arrays | columns), path)
    return path


def rows(dataset, table, *values):
    return dataset.row_maps[table](signatures(table, list(values))).tolist()


def check(dataset):
    """That a data set holds what CSV says."""
    log = dataset.log
    assert log.lengths().tolist() == [4, 4]
    assert log.time.tolist() == [50, 100, 300, 400, -5, 7, 200_000, 200_000]
    ids = [10, 20, 30, 20, 10, 40]
    assert log.has_clock
    assert log.items["item"][log.item].tolist() == (
        rows(dataset, "item", 20, 10) + [1, 1] + rows(dataset, "item", 10, 40, 20) + [1]
    )
    assert rows(dataset, "item", *ids).count(1) == 1  # 30: only a target of validation
    view, buy = rows(dataset, "behavior", "view", "buy")
    assert (view, buy) == (2, 1)
    assert log.event["behavior"].tolist() == [2, 2, 2, 1, 2, 2, 1, 2]
    acme, beta = rows(dataset, "brand", "acme", "beta")
    assert log.items["brand"].tolist() == [acme, beta, acme, 0, beta, beta]
    one, two = rows(dataset, "category", 1, 2)
    assert log.items["category"].tolist() == [one, two, 0, one, 1, 1]
    # 1.5, none, 2, -0.5, 40, 3 (70 left with its user), of which training sees 1.5 and -0.5: their
    # median is 0.5, and their quartiles, 0 and 1, lie apart like those of a normal distribution of
    # this deviation.
    deviation = 1 / 1.349
    transform = dataset.schema.find("candidate", "price").transform
    assert transform.startswith("robust(0.5, 0.741") and transform.endswith(" | clip(-5, 5)")
    expected = [1 / deviation, 0, 1.5 / deviation, -1 / deviation, 5, 2.5 / deviation]
    np.testing.assert_allclose(log.items["price"], expected, rtol=1e-6)
    assert log.users["city"].tolist() == rows(dataset, "city", "Rome", "Oslo")
    assert dataset.schema.find("candidate", "price").kind == "dense"
    assert dataset.schema.find("candidate", "item").value == "int"
    assert dataset.schema.find("user", "city").value == "string"
    assert dataset.schema.find("history", "behavior") is not None
    assert dataset.facts["users dropped (fewer than 3 events)"] == 2
    assert dataset.facts["columns left out"] == "note"


FORMS = {
    "plain": (CSV, "log.csv"),
    "gzip": (CSV, "log.csv.gz"),
    "CRLF": (CSV.replace("\n", "\r\n"), "log.csv"),
    "BOM": ("\ufeff" + CSV, "log.csv"),
    "blank lines": (CSV.replace("\nu1", "\n\nu1") + "\n\n", "log.csv"),
    "no newline at the end": (CSV.rstrip("\n"), "log.csv"),
    "tabs": (CSV.replace(",", "\t"), "log.csv"),
    "semicolons": (CSV.replace(",", ";"), "log.csv"),
    "UTF-16": (CSV.encode("utf-16"), "log.csv"),
    "a plus and a fraction of a second": (
        CSV.replace(",2,50,", ",2,+50,").replace(",1,7,", ",1,7.25,"),
        "log.csv",
    ),
    "spaces in the header": (CSV.replace(",timestamp,", ", timestamp ,"), "log.csv"),
    "quotes": (
        "\n".join(
            ",".join(f'"{cell}"' for cell in line.split(",")) for line in CSV.split("\n") if line
        ),
        "log.csv",
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_csv(tmp_path, form):
    dataset = events.load(write(tmp_path, *FORMS[form]))
    check(dataset)
    assert dataset.name == f"events:{FORMS[form][1]}"
    assert "rows skipped" not in dataset.facts


@pytest.mark.parametrize(
    "text", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=str
)
def test_parquet(tmp_path, text):
    check(events.load(as_parquet(tmp_path, text=text)))


def test_parquet_with_clock_times_and_not_a_number(tmp_path):
    table = pyarrow.parquet.read_table(as_parquet(tmp_path))
    time = table["timestamp"].cast(pa.timestamp("s")).cast(pa.timestamp("us"))
    category = table["category_id"].cast(pa.float64()).fill_null(float("nan"))
    price = table["price"].fill_null(float("nan"))
    check(events.load(as_parquet(tmp_path, timestamp=time, category_id=category, price=price)))


def test_parquet_columns_that_hold_lists_are_left_out(tmp_path):
    lists = pa.array([[1, 2]] * 10)
    dataset = events.load(as_parquet(tmp_path, tags=lists))
    assert dataset.facts["columns left out"] == "note, tags"


def test_without_optional_columns(tmp_path):
    dataset = events.load(write(tmp_path, SHORT))
    assert not dataset.log.has_clock
    assert dataset.log.lengths().tolist() == [4, 4]
    # Items 1, 2, 3, 4 and 2, 3, 4, 5 as the file has them; 4 and 5 are no training targets of
    # user 1, but 4 of user 2 is only a validation target.
    assert dataset.log.item.tolist() == [0, 1, 2, 3, 1, 2, 3, 4]
    assert [field.name for field in dataset.schema.fields] == ["item", "item"]


def test_timestamps_that_only_number_events_are_no_clock(tmp_path):
    lines = SHORT.splitlines()[1:]
    numbered = "user_id,item_id,timestamp\n" + "".join(
        f"{line},{9 - i}\n" for i, line in enumerate(lines)
    )
    dataset = events.load(write(tmp_path, numbered))
    assert not dataset.log.has_clock
    assert dataset.log.item.tolist() == [3, 2, 1, 0, 4, 3, 2, 1]


def test_max_train_per_user(tmp_path):
    lines = [f"{u},{i}\n" for u in (1, 2, 3) for i in range(2 * u, 2 * u + 4)]
    path = write(tmp_path, "user_id,item_id\n" + "".join(lines))
    assert len(events.load(path).train) == 6
    assert len(events.load(path, protocol=Protocol(max_train_per_user=1)).train) == 3


def table_of(tmp_path, **columns):
    """SHORT with more columns, each a function of the item."""
    lines = [line.split(",") for line in SHORT.splitlines()[1:]]
    head = ",".join(["user_id", "item_id", *columns])
    body = (",".join([u, i, *(f(int(i)) for f in columns.values())]) for u, i in lines)
    return events.load(write(tmp_path, "\n".join([head, *body])))


@pytest.mark.parametrize(
    ("of_item", "kind", "value"),
    [
        (lambda i: str(i), "id", "int"),
        (lambda i: str(-i), "id", "int"),
        (lambda i: f"{i}.5", "dense", "int"),
        (lambda i: f"{i}" if i % 2 else f".{i}e-2", "dense", "int"),
        (lambda i: f"x{i}", "id", "string"),
        (lambda i: f"0{i}", "id", "string"),  # a zip code
        (lambda i: f"+{i}", "dense", "int"),
        (lambda i: "9" * 30 + str(i), "id", "string"),
        (lambda i: "" if i == 3 else str(i), "id", "int"),
        (lambda i: "nan" if i == 3 else str(i), "id", "int"),  # none, as some write it
        (lambda i: "nan" if i == 3 else f"{i}.5", "dense", "int"),
    ],
)
def test_types_of_further_columns(tmp_path, of_item, kind, value):
    field = table_of(tmp_path, extra=of_item).schema.find("candidate", "extra")
    assert (field.kind, field.value) == (kind, value)


def test_first_value_that_is_there_counts(tmp_path):
    lines = ["user_id,item_id,brand,mixed"]
    lines += ["1,1,,", "1,2,b,b", "1,3,c,c", "2,1,a,a", "2,2,,", "2,4,d,d", "3,1,,z", "3,5,e,e"]
    lines += ["4,6,f,f", "4,2,,b", "4,3,c,c", "5,2,b,b", "5,3,,c", "5,4,d,d", "5,7,g,g"]
    dataset = events.load(write(tmp_path, "\n".join(lines)))
    a = rows(dataset, "brand", "a")[0]
    assert dataset.log.items["brand"][0] == a > 1
    assert dataset.facts["columns left out"] == "mixed"


@pytest.mark.parametrize("column", ["item_id", "category_id", "behavior"])
def test_known_columns_are_ids_even_if_they_look_like_numbers(tmp_path, column):
    text = CSV.split("\n")
    at = COLUMNS.split(",").index(column)
    for n in range(1, len(text) - 1):
        cells = text[n].split(",")
        cells[at] = f"{n % 4}.5"
        text[n] = ",".join(cells)
    dataset = events.load(write(tmp_path, "\n".join(text)))
    name = column.removesuffix("_id")
    assert dataset.schema.find("history", name).kind == "id"
    assert dataset.schema.find("history", name).value == "string"


def test_huge_ids(tmp_path):
    # Beyond 18 digits they are texts; nothing is rounded together.
    lines = ["user_id,item_id"]
    lines += [f"{10**30 + u},{10**30 + i}" for u in (1, 2) for i in range(u, u + 4)]
    lines += [f"{'long' * 1000},{'x' * 10_000}"]
    dataset = events.load(write(tmp_path, "\n".join(lines)))
    assert dataset.log.lengths().tolist() == [4, 4]
    assert dataset.log.num_items == 5  # The long one left with its user.
    assert len(set(rows(dataset, "item", str(10**30 + 1), str(10**30 + 2)))) == 2


def test_ids_with_leading_zeros_stay_apart(tmp_path):
    lines = ["user_id,item_id", "1,7", "1,07", "1,8", "1,9", "2,007", "2,7", "2,8"]
    dataset = events.load(write(tmp_path, "\n".join(lines)))
    assert dataset.log.num_items == 5


def bad_csv(*lines, columns="user_id,item_id,timestamp"):
    good = [f"{u},{i},{100000 * i}" for u in (1, 2) for i in range(u, u + 4)]
    return "\n".join([columns, *good[:3], *lines, *good[3:]]) + "\n"


BAD_ROWS = {
    "a word for a time": ("1,9,soon", "timestamp must be a time, got 'soon'"),
    "a date among numbers": ("1,9,2020-01-02", "timestamp must be a time, got '2020-01-02'"),
    "another unit": ("1,9,1600000000000", "timestamp must be a time, got '1600000000000'"),
    "too many digits": ("1,9," + "9" * 19, "timestamp must be a time, got '9999"),
    "no number": ("1,9,nan", "timestamp is missing"),
    "no time": ("1,9,", "timestamp is missing"),
    "no user": (",9,5", "user_id is missing"),
    "no item": ("1,,5", "item_id is missing"),
    "one value too few": ("1,9", "has 2 values, expected 3"),
    "one value too many": ("1,9,5,5", "has 4 values, expected 3"),
    "invalid UTF-8": (b"1,\xff\xfe,5", "is not UTF-8 text"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz"])
def test_bad_rows_stop_or_are_skipped(tmp_path, case, name):
    line, reason = BAD_ROWS[case]
    marker = bad_csv("BAD", "", "BAD").encode()
    content = marker.replace(b"BAD", line if isinstance(line, bytes) else line.encode())
    path = write(tmp_path, content, name)
    with pytest.raises(DataError) as caught:
        events.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: line 5: {reason}")
    assert message.endswith(" (--on-bad-row skip passes over it); and 1 more bad row.")
    assert "\n" not in message and len(message) < 300
    dataset = events.load(path, on_bad_row="skip")
    assert dataset.facts["rows skipped"] == 2
    assert dataset.facts["first row skipped"].startswith(f"line 5: {reason}")
    clean = events.load(write(tmp_path, bad_csv(), "clean.csv"))
    assert np.array_equal(dataset.log.item, clean.log.item)
    assert np.array_equal(dataset.test.candidate, clean.test.candidate)


def test_many_kinds_of_bad_rows_keep_their_lines(tmp_path):
    content = bad_csv("1,9", "", "1,BAD,5", "1,9,soon", ",9,5").encode().replace(b"BAD", b"\xff")
    path = write(tmp_path, content)
    with pytest.raises(DataError, match="line 5: has 2 values"):
        events.load(path)
    assert events.load(path, on_bad_row="skip").facts["rows skipped"] == 4
    content = content.replace(b"1,9\n", b"")
    with pytest.raises(DataError, match="line 6: is not UTF-8"):
        events.load(write(tmp_path, content))
    content = content.replace(b"\xff", b"9")
    with pytest.raises(DataError, match="line 7: timestamp must be a time, got 'soon'"):
        events.load(write(tmp_path, content))


def test_lines_count_across_the_reader_s_blocks(tmp_path):
    # More than two blocks of a megabyte.
    lines = [f"{i % 5000},{i % 700},{i * 1000}" for i in range(150_000)]
    lines[100_000], lines[140_000] = "1,9", "1,9,soon"
    path = write(tmp_path, "\n".join(["user_id,item_id,timestamp", *lines]))
    assert path.stat().st_size > 2 * 2**20
    with pytest.raises(DataError, match="line 100002: has 2 values"):
        events.load(path)
    lines[100_000] = "1,9,5"
    with pytest.raises(DataError, match="line 140002: timestamp"):
        events.load(write(tmp_path, "\n".join(["user_id,item_id,timestamp", *lines])))


WHOLE = "\n".join(f"1,{i},5" for i in range(5))
JUNK = np.random.default_rng(0).integers(128, 256, 5000).astype(np.uint8).tobytes()
BAD_FILES = {
    "empty": ("", "log.csv", "the file is empty"),
    "empty gzip": ("", "log.csv.gz", "the first line must name the columns once each, got ''"),
    "header only": ("user_id,item_id\n", "log.csv", "holds no events"),
    "header without newline": ("user_id,item_id", "log.csv", "holds no events"),
    "blank first line": (f"\n{SHORT}", "log.csv", "the first line must name the columns"),
    "no item column": (f"user_id,item,t\n{WHOLE}", "log.csv", "column 'item_id' is missing"),
    "a column twice": (
        f"user_id,item_id,item_id\n{WHOLE}",
        "log.csv",
        "must name the columns once",
    ),
    "an unnamed column": (f"user_id,item_id,\n{WHOLE}", "log.csv", "name the columns once"),
    "a name that is taken": (
        "user_id,item_id,item\n"
        + "".join(f"{u},{i},x{i % 2}\n" for u in (1, 2) for i in range(u, u + 4)),
        "log.csv",
        "column 'item' must be renamed: 'item_id' takes its name",
    ),
    "junk": (JUNK, "log.csv", "cannot be read as a table: "),
    "junk after a header": (b"user_id,item_id\n" + JUNK, "log.csv", "line 2: "),
    "gzip that is none": (None, "log.csv.gz", "cannot be read as a table: "),
    "junk Parquet": (JUNK, "log.parquet", "cannot be read as a table: "),
    "an open quote": (f'user_id,item_id,t\n1,"2,3\n{WHOLE}', "log.csv", "line 2: has 2 values"),
    "too few events": ("user_id,item_id\n1,1\n1,2\n2,1\n", "log.csv", "fewer than 3 events"),
    "one user who has it all": (f"user_id,item_id,t\n{WHOLE}", "log.csv", "touched all items (1)"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_end_with_one_line(tmp_path, case):
    content, name, reason = BAD_FILES[case]
    if content is None:
        (path := tmp_path / name).write_text(SHORT)
    else:
        path = write(tmp_path, content, name)
    with pytest.raises(DataError) as caught:
        events.load(path)
    message = str(caught.value)
    assert reason in message and path.name in message
    assert len(message.splitlines()) == 1 and len(message) < 400


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
@pytest.mark.parametrize("size", [30, 20_000])
def test_damaged_gzip(tmp_path, damage, size):
    lines = "".join(f"{i % 50},{i * 7919 % 613}\n" for i in range(size))
    packed = bytearray(gzip.compress(f"user_id,item_id\n{lines}".encode()))
    if damage == "truncated":
        packed = packed[: len(packed) // 2]
    else:
        packed[15 : len(packed) // 2] = bytes(255 - b for b in packed[15 : len(packed) // 2])
    (path := tmp_path / "log.csv.gz").write_bytes(packed)
    with pytest.raises(DataError) as caught:
        events.load(path)
    assert str(path) in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_truncated_parquet(tmp_path):
    path = as_parquet(tmp_path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="cannot be read as a table"):
        events.load(path)


def test_no_file_and_no_file_but_a_folder(tmp_path):
    with pytest.raises(DataError, match="none.csv: no such file"):
        events.load(tmp_path / "none.csv")
    with pytest.raises(DataError, match="not a file"):
        events.load(tmp_path)


def test_parquet_with_bad_values(tmp_path):
    time = pa.array([1, 2, None, 4, 5, 6, 7, 8, 9, 10])
    with pytest.raises(DataError, match="line 4: timestamp is missing"):
        events.load(as_parquet(tmp_path, timestamp=time))
    fractions = time.cast(pa.float64())
    with pytest.raises(DataError, match="line 4: timestamp is missing"):
        events.load(as_parquet(tmp_path, timestamp=fractions))
    endless = pa.array([1, 2, float("inf"), *range(4, 11)], pa.float64())
    with pytest.raises(DataError, match="line 4: timestamp must be a time, got inf"):
        events.load(as_parquet(tmp_path, timestamp=endless))
    user = pa.array([1.0, float("nan")] * 5)
    with pytest.raises(DataError, match="line 3: user_id is missing"):
        events.load(as_parquet(tmp_path, user_id=user))
    message = "column 'item_id' must hold one id per row, got list<"
    with pytest.raises(DataError, match=message):
        events.load(as_parquet(tmp_path, item_id=pa.array([[1]] * 10)))


def test_all_rows_bad(tmp_path):
    path = write(tmp_path, "user_id,item_id\n1\n2\n")
    with pytest.raises(
        DataError, match="line 2: has 1 values, expected 2: '1'; and 1 more bad row.$"
    ):
        events.load(path, on_bad_row="skip")


def test_row_maps_of_an_earlier_run(tmp_path):
    first = events.load(write(tmp_path, CSV))
    other = CSV.replace("u0,10,", "u0,99,")
    second = events.load(write(tmp_path, other, "other.csv"), row_maps=first.row_maps)
    assert second.schema.table("item").rows == first.schema.table("item").rows
    # Items 10 to 60 and 99, in the order of their ids.
    assert second.log.items["item"][:2].tolist() == rows(first, "item", 10, 20)
    assert (second.log.items["item"][:2] > 1).all() and second.log.items["item"][-1] == 1
