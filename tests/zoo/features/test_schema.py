import dataclasses
import json

import pytest

from recjax.zoo.features import Field, Schema, Table

ITEM = Table(name="item", rows=100, dim=8)
SHOP = Table(name="shop", rows=10, dim=4)
PRICE = Field(name="price", role="candidate", kind="dense", transform="log1p")
SCHEMA = Schema(
    tables=(ITEM, SHOP),
    fields=(
        Field(name="item", role="candidate"),
        Field(name="item", role="history"),
        Field(name="tags", role="user", kind="bag", table="shop", width=3, value="string"),
        Field(name="vector", role="context", kind="dense", width=5, raw="v"),
        PRICE,
    ),
    tasks=("click", "buy"),
)


def changed(name, **changes):
    """SCHEMA with changes to the field or table of that name (the last one)."""
    swap = lambda parts: tuple(
        dataclasses.replace(part, **changes) if part.name == name else part for part in parts
    )
    part = "tables" if name in ("item", "shop") else "fields"
    return dataclasses.replace(SCHEMA, **{part: swap(getattr(SCHEMA, part))})


DIFFERENT = {
    "dim": (changed("item", dim=9), ["table item"]),
    "transform": (changed("price", transform="identity"), ["field candidate.price"]),
    "width": (changed("tags", width=4), ["field user.tags"]),
    "kind": (changed("vector", kind="bag", table="item"), ["field context.vector"]),
    "raw": (changed("price", raw="cents"), ["field candidate.price"]),
    "value": (changed("tags", value="int"), ["field user.tags"]),
    "table read": (changed("tags", table="item"), ["field user.tags"]),
    "role": (
        changed("price", role="user"),
        ["field candidate.price", "field user.price"],
    ),
    "one field less": (
        dataclasses.replace(SCHEMA, fields=SCHEMA.fields[:-1]),
        ["field candidate.price"],
    ),
    "one table more": (
        dataclasses.replace(SCHEMA, tables=(ITEM, SHOP, Table(name="city", rows=5, dim=2))),
        ["table city"],
    ),
    "order of fields": (
        dataclasses.replace(SCHEMA, fields=SCHEMA.fields[::-1]),
        ["order of fields"],
    ),
    "tasks": (dataclasses.replace(SCHEMA, tasks=("buy", "click")), ["tasks"]),
    "tasks and order": (
        dataclasses.replace(SCHEMA, tasks=("buy", "click"), fields=SCHEMA.fields[::-1]),
        ["order of fields", "tasks"],
    ),
}


@pytest.mark.parametrize("change", DIFFERENT)
def test_hash_and_differences_see_every_change(change):
    other, names = DIFFERENT[change]
    assert other.hash != SCHEMA.hash
    lines = SCHEMA.differences(other)
    assert [line.split(":")[0] for line in lines] == sorted(names)
    assert all(" against " in line and "\n" not in line for line in lines)


@pytest.mark.parametrize(
    "same",
    [SCHEMA.with_rows({"item": 5000}), dataclasses.replace(SCHEMA, tables=(SHOP, ITEM))],
    ids=["rows", "order of tables"],
)
def test_hash_ignores_what_may_differ(same):
    assert same.hash == SCHEMA.hash
    assert SCHEMA.differences(same) == []


def test_differences_show_both_values():
    assert SCHEMA.differences(changed("item", dim=9)) == [
        'table item: {"dim": 8} against {"dim": 9}'
    ]
    (line,) = SCHEMA.differences(dataclasses.replace(SCHEMA, fields=SCHEMA.fields[:-1]))
    assert line.endswith("against absent")


def test_a_tables_name_may_be_long_but_has_an_end():
    Table(name=1000 * "\u7528", rows=5, dim=2)
    with pytest.raises(ValueError, match="Table.name must have at most 1000 characters, got 1001"):
        Table(name=1001 * "a", rows=5, dim=2)


def test_with_rows_changes_only_the_named_tables():
    grown = SCHEMA.with_rows({"item": 5000})
    assert [(table.name, table.rows) for table in grown.tables] == [("item", 5000), ("shop", 10)]
    assert grown.fields == SCHEMA.fields and grown.tasks == SCHEMA.tasks
    assert SCHEMA.table("item").rows == 100


def test_dict_round_trip_through_json():
    copy = Schema.from_dict(json.loads(json.dumps(SCHEMA.to_dict())))
    assert copy == SCHEMA
    assert copy.hash == SCHEMA.hash
    assert SCHEMA.to_dict()["tables"][0] == {"name": "item", "rows": 100, "dim": 8}


def test_hashable_by_value():
    copy = Schema.from_dict(SCHEMA.to_dict())
    assert {SCHEMA: 1}[copy] == 1
    assert SCHEMA.with_rows({"item": 5000}) != SCHEMA


@pytest.mark.parametrize(
    ("role", "name"), [("context", "time"), ("history", "time"), ("user", "history")]
)
def test_names_of_the_record_are_taken(role, name):
    field = Field(name=name, role=role, kind="dense")
    with pytest.raises(ValueError, match=f"Field {role}.{name}: a request's record has"):
        Schema(tables=(), fields=(field,))
    renamed = dataclasses.replace(field, raw="other")
    assert Schema(tables=(), fields=(renamed,)).find(role, name) is renamed


def test_lookups():
    assert [field.name for field in SCHEMA.role("candidate")] == ["item", "price"]
    assert SCHEMA.find("candidate", "price") is PRICE
    assert SCHEMA.find("user", "price") is None
    assert [SCHEMA.width(field) for field in SCHEMA.fields] == [8, 8, 4, 5, 1]
    with pytest.raises(KeyError, match="No table 'city'.*'item', 'shop'"):
        SCHEMA.table("city")
    tags, vector = SCHEMA.fields[2], SCHEMA.fields[3]
    assert (tags.table_name, tags.raw_name, tags.trailing) == ("shop", "tags", (3,))
    assert (vector.raw_name, vector.trailing, PRICE.trailing) == ("v", (5,), ())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(name="", rows=5, dim=1), "Table.name must not be empty"),
        (dict(name="t", rows=1, dim=1), "rows of 't' must be >= 2 .* got 1"),
        (dict(name="t", rows=2**31, dim=1), "fit in int32"),
        (dict(name="t", rows=5, dim=0), "dim of 't' must be >= 1, got 0"),
    ],
)
def test_table_validation(options, message):
    with pytest.raises(ValueError, match=message):
        Table(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(name="", role="user"), "Field.name must not be empty"),
        (dict(name="f", role="user", kind="dense", transform="exp"), "unknown transform 'exp'"),
        (dict(name="f", role="user", kind="dense", table="t"), "a dense field reads no table"),
        (dict(name="f", role="user", transform="log1p"), "transforms are for dense fields"),
        (dict(name="f", role="user", kind="bag"), "a bag needs its width"),
        (dict(name="f", role="user", width=2), "an id has no width"),
        (dict(name="f", role="user", kind="bag", width=0), "width must be >= 1, got 0"),
    ],
)
def test_field_validation(options, message):
    with pytest.raises(ValueError, match=message):
        Field(**options)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("role", "item", "Field item.f: role must be one of .*, got 'item'"),
        ("kind", "sparse", "Field user.f: kind must be id, bag or dense, got 'sparse'"),
        ("value", "float", "Field user.f: value must be int or string, got 'float'"),
    ],
)
def test_field_validation_of_choices(name, value, message):
    field = Field(name="f", role="user")
    # Through the constructor, the type checker of the tests would refuse these values first.
    object.__setattr__(field, name, value)
    with pytest.raises(ValueError, match=message):
        field.__post_init__()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(tables=(ITEM, ITEM)), "tables: a name appears twice"),
        (dict(fields=(PRICE, PRICE)), "fields: a field appears twice"),
        (dict(tasks=()), "must name at least one label"),
        (dict(fields=(Field(name="city", role="user"),)), "user.city reads table 'city'"),
    ],
)
def test_schema_validation(options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SCHEMA, **options)


@pytest.mark.parametrize(
    "twin",
    [
        Field(name="item", role="history", table="shop"),
        Field(name="item", role="history", value="string"),
        Field(name="item", role="history", kind="bag", width=2),
        Field(name="item", role="history", kind="dense"),
    ],
    ids=["table", "value", "kind and width", "kind"],
)
def test_a_behaviour_is_the_same_in_history_and_candidate(twin):
    with pytest.raises(ValueError, match="stands in history and candidate"):
        Schema(tables=(ITEM, SHOP), fields=(Field(name="item", role="candidate"), twin))
