import gzip
import json

import numpy as np
import pytest

from recjax.train.data.errors import DataError
from recjax.train.data.protocol import Protocol
from recjax.train.data.sources import amazon
from recjax.zoo.features import signatures

# (user, product, second), in no order; A1's first review was published twice.
REVIEWS = [
    ("A2", "B003", 100_000),
    ("A1", "B001", 300),
    ("A1", "B002", 100),
    ("A2", "B001", 50),
    ("A1", "B004", 400),
    ("A1", "B002", 100),
    ("A1", "B003", 200),
    ("A3", "B001", 50),
    ("A2", "B005", 200_000),
]
# What the metadata say, whatever their form: {product: (path of categories, brand, price)}.
PRODUCTS = {
    "B003": (["Beauty", "Hair"], "Acme", 12.99),
    "B001": (["Beauty", "Skin"], 'O\'Neil "x"', None),
    "B005": ([], None, 1000.0),
    "B999": (["Beauty", "Nails"], "Nobody", 5.0),
}


def reviews_2014():
    return [
        json.dumps({"reviewerID": u, "asin": p, "overall": 5.0, "unixReviewTime": t})
        for u, p, t in REVIEWS
    ]


def reviews_2023():
    return [
        json.dumps(
            {"user_id": u, "asin": "x", "parent_asin": p, "timestamp": 1000 * t + 7, "rating": 5}
        )
        for u, p, t in REVIEWS
    ]


def meta_2014():
    lines = []
    for product, (path, brand, price) in PRODUCTS.items():
        line = {"asin": product, "categories": [path, ["Other", "Path"]]}
        line |= {"brand": brand} if brand else {}
        line |= {"price": price} if price else {}
        lines.append(repr(line))  # how the authors wrote it
    return lines


def meta_2018():
    return [
        json.dumps(
            {
                "asin": product,
                "category": path,
                "main_cat": "All Beauty",
                "brand": brand or "",
                "price": f"${price:,.2f}" if price else ".a-box-inner{background-color:#fff}",
            }
        )
        for product, (path, brand, price) in PRODUCTS.items()
    ]


def meta_2023():
    return [
        json.dumps(
            {
                "parent_asin": product,
                "main_category": "All Beauty",
                "categories": path,
                "store": brand,
                "price": price,
            }
        )
        for product, (path, brand, price) in PRODUCTS.items()
    ]


GENERATIONS = {
    "2014": ("reviews_Beauty_5.json.gz", reviews_2014, "meta_Beauty.json.gz", meta_2014),
    "2018": ("All_Beauty.json.gz", reviews_2014, "meta_All_Beauty.json.gz", meta_2018),
    "2023": ("All_Beauty.jsonl", reviews_2023, "meta_All_Beauty.jsonl", meta_2023),
}


def put(path, lines):
    content = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write(folder, generation="2023"):
    reviews, make_reviews, meta, make_meta = GENERATIONS[generation]
    put(folder / reviews, make_reviews())
    put(folder / meta, make_meta())
    return folder


def rows(dataset, table, *values):
    return dataset.row_maps[table](signatures(table, list(values))).tolist()


@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_generation(tmp_path, generation):
    dataset = amazon.load(write(tmp_path, generation))
    log = dataset.log
    assert dataset.name == f"amazon:{GENERATIONS[generation][0].partition('.')[0]}"
    assert dataset.facts == {
        "users": 2,
        "items": 5,
        "events": 7,
        "users dropped (fewer than 3 events)": 1,
        "repeated reviews left out": 1,
        "items without metadata": 2,
        # A1 reviewed all that training knows.
        "training targets left out (their users touched all that training knows)": 2,
    }
    assert log.offsets.tolist() == [0, 4, 7]
    assert log.item.tolist() == [1, 2, 0, 3, 0, 2, 4]
    assert log.time.tolist() == [100, 200, 300, 400, 50, 100_000, 200_000]
    # Training sees products 2 and 3 of A1, and 1 of A2.
    known = rows(dataset, "item", "B001", "B002", "B003")
    assert sorted(known) == [2, 3, 4]
    assert log.items["item"].tolist() == [*known, 1, 1]
    hair, skin = rows(dataset, "category", "Hair", "Skin")
    assert sorted([hair, skin]) == [2, 3]
    # Of B005 the department is known, but not in 2014.
    assert log.items["category"].tolist() == [skin, 0, hair, 0, 0 if generation == "2014" else 1]
    acme, neil = rows(dataset, "brand", "Acme", 'O\'Neil "x"')
    assert sorted([acme, neil]) == [2, 3]
    assert log.items["brand"].tolist() == [neil, 0, acme, 0, 0]
    expected = np.log1p([0, 0, 12.99, 0, 1000])
    np.testing.assert_allclose(log.items["price"], expected, rtol=3e-7)
    kinds = {field.name: field.kind for field in dataset.schema.role("candidate")}
    assert kinds == {"item": "id", "category": "id", "brand": "id", "price": "dense"}


def test_without_metadata(tmp_path):
    put(tmp_path / "reviews_Beauty_5.json", reviews_2014())
    dataset = amazon.load(tmp_path)
    assert [field.name for field in dataset.schema.role("candidate")] == ["item"]
    assert "items without metadata" not in dataset.facts
    assert dataset.log.item.tolist() == [1, 2, 0, 3, 0, 2, 4]


def test_attributes_that_no_product_has_are_no_fields(tmp_path):
    write(tmp_path)
    put(tmp_path / "meta_All_Beauty.jsonl", ['{"parent_asin": "B001"}'])
    dataset = amazon.load(tmp_path)
    assert [field.name for field in dataset.schema.role("candidate")] == ["item", "category"]
    assert dataset.log.items["category"].tolist() == [0] * 5


def test_first_metadata_of_a_product_count(tmp_path):
    write(tmp_path)
    path = tmp_path / "meta_All_Beauty.jsonl"
    lines = path.read_text().splitlines()
    once = amazon.load(tmp_path)
    put(path, [*lines, lines[0].replace("Hair", "Skin").replace("12.99", "3")])
    twice = amazon.load(tmp_path)
    for name in ("category", "brand", "price"):
        assert once.log.items[name].tolist() == twice.log.items[name].tolist()


def test_columns_in_parts(tmp_path, monkeypatch):
    whole = amazon.load(write(tmp_path))
    monkeypatch.setattr(amazon, "_ROWS_AT_ONCE", 2)
    parts = amazon.load(tmp_path)
    for name in ("item", "time"):
        np.testing.assert_array_equal(getattr(parts.log, name), getattr(whole.log, name))
    for name, column in whole.log.items.items():
        np.testing.assert_array_equal(parts.log.items[name], column)
    assert parts.facts == whole.facts


@pytest.mark.parametrize(
    ("value", "price"),
    [
        (12.99, 12.99),
        (5, 5.0),
        ("12.99", 12.99),
        ("$12.99", 12.99),
        ("$1,299.00", 1299.0),
        ("$12.99 - $15.00", 12.99),
        ("from 12.99", 12.99),
        ("from $12.99", 12.99),
        (" $3 ", 3.0),
        (0, 0.0),
        (None, None),
        ("", None),
        ("—", None),
        ("12.99 EUR", None),
        (".a-box-inner{background-color:#fff}", None),
        (-1, None),
        (float("nan"), None),
        (float("inf"), None),
        (1e9, None),
        (10**400, None),
        (True, None),
        ([1], None),
    ],
)
def test_prices(value, price):
    assert amazon._price(value) == price


BAD_REVIEWS = {
    "cut": ('{"user_id": "A1", "parent_a', "is neither JSON nor a literal: "),
    "no object": ("[1, 2]", "must be an object, got [1, 2]"),
    "code": ("__import__('os').getcwd()", "is neither JSON nor a literal: "),
    "deep": ("[" * 100_000, "is neither JSON nor a literal: "),
    "no user": ('{"asin": "B001", "unixReviewTime": 5}', "reviewerID must be text, got None"),
    "no product": ('{"user_id": "A1", "timestamp": 5}', "parent_asin must be text, got None"),
    "a number for a user": (
        '{"user_id": 1, "parent_asin": "B001", "timestamp": 5}',
        "user_id must be text, got 1",
    ),
    "an empty product": (
        '{"user_id": "A1", "parent_asin": "", "timestamp": 5}',
        "parent_asin must be text, got ''",
    ),
    "a word for a time": (
        '{"user_id": "A1", "parent_asin": "B001", "timestamp": "soon"}',
        "timestamp must be whole milliseconds, got 'soon'",
    ),
    "a fraction": (
        '{"reviewerID": "A1", "asin": "B001", "unixReviewTime": 5.5}',
        "unixReviewTime must be whole seconds, got 5.5",
    ),
    "true": (
        '{"reviewerID": "A1", "asin": "B001", "unixReviewTime": true}',
        "unixReviewTime must be whole seconds, got True",
    ),
    "beyond all time": (
        '{"reviewerID": "A1", "asin": "B001", "unixReviewTime": 1' + "0" * 50 + "}",
        "unixReviewTime must be whole seconds, got 1000",
    ),
    "half a letter": (
        '{"user_id": "A1", "parent_asin": "\\ud800", "timestamp": 5}',
        "'\\ud800' is not text that UTF-8 can hold",
    ),
}
BAD_METADATA = {
    "no product": ('{"categories": ["a"]}', "asin must be text, got None"),
    "categories of another kind": (
        '{"asin": "B1", "categories": "a"}',
        "categories must be a list of texts, got 'a'",
    ),
    "categories of numbers": (
        '{"asin": "B1", "categories": [1]}',
        "categories must be a list of texts, got [1]",
    ),
    "a brand of another kind": ('{"asin": "B1", "brand": 3}', "brand must be text, got 3"),
}


@pytest.mark.parametrize(
    ("name", "line", "reason"),
    [("All_Beauty.jsonl", *case) for case in BAD_REVIEWS.values()]
    + [("meta_All_Beauty.jsonl", *case) for case in BAD_METADATA.values()],
    ids=[*BAD_REVIEWS, *(f"metadata: {case}" for case in BAD_METADATA)],
)
def test_bad_lines(tmp_path, name, line, reason):
    clean = amazon.load(write(tmp_path))
    path = tmp_path / name
    lines = path.read_text().splitlines()
    put(path, [lines[0], "", line, *lines[1:]])
    with pytest.raises(DataError) as caught:
        amazon.load(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{path}: line 3: {reason}")
    assert len(message.splitlines()) == 1 and len(message) < 400
    dataset = amazon.load(tmp_path, on_bad_row="skip")
    assert dataset.facts["rows skipped"] == 1
    assert dataset.log.item.tolist() == clean.log.item.tolist()
    assert dataset.log.items["category"].tolist() == clean.log.items["category"].tolist()


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ((), "nothing"),
        (("notes.txt",), "nothing"),
        (("meta_A.json",), "meta_A.json"),
        (("a.json", "b.jsonl.gz"), "a.json, b.jsonl.gz"),
        (("a.json", "meta_a.json", "meta_b.json.gz"), "a.json, meta_a.json, meta_b.json.gz"),
    ],
)
def test_which_files(tmp_path, names, found):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(DataError) as caught:
        amazon.load(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: expected one file of reviews and at most one")
    assert str(caught.value).endswith(f"found {found}.")


def test_no_folder_and_empty_files(tmp_path):
    with pytest.raises(DataError, match="none: no such folder"):
        amazon.load(tmp_path / "none")
    write(tmp_path)
    with pytest.raises(DataError, match="not a folder"):
        amazon.load(tmp_path / "All_Beauty.jsonl")
    (tmp_path / "All_Beauty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="All_Beauty.jsonl: the file is empty"):
        amazon.load(tmp_path)
    (tmp_path / "All_Beauty.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match="holds no review that can be read .All_Beauty.jsonl: line"):
        amazon.load(tmp_path, on_bad_row="skip")


@pytest.mark.parametrize("key", ["overall", "rating"])
def test_reviews_of_few_stars_are_left_out(tmp_path, key):
    lines = [json.loads(x) for x in (reviews_2014() if key == "overall" else reviews_2023())]
    user, product = ("reviewerID", "asin") if key == "overall" else ("user_id", "parent_asin")
    lines += [{**line, user: "A4", product: f"B10{n}"} for n, line in enumerate(lines[:4])]
    for number, line in enumerate(lines):
        line[key] = 1.0 if number == 4 else 4
    del lines[8][key]  # Nobody knows how many.
    put(tmp_path / "All_Beauty.jsonl", [json.dumps(line) for line in lines])
    assert amazon.load(tmp_path).facts["events"] == 7 + 4
    facts = amazon.load(tmp_path, protocol=Protocol(min_rating=4.0)).facts
    assert facts["events rated below 4 left out"] == 2
    assert facts["events"] == 3 + 4 and facts["users"] == 2
    lines[0][key] = "5"
    put(tmp_path / "All_Beauty.jsonl", [json.dumps(line) for line in lines])
    with pytest.raises(DataError, match="the rating must be a number, got '5'"):
        amazon.load(tmp_path)
