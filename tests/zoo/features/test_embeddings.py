import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax.zoo.embeddings import embed, init_tables, lookup
from recjax.zoo.features import Field, Schema, Table

BLOCK = 65536
KEY = jax.random.key(3)


def drawn(*, key=KEY, **tables):
    """Fresh tables; each argument is (rows, dim)."""
    described = (Table(name=name, rows=rows, dim=dim) for name, (rows, dim) in tables.items())
    return init_tables(key, Schema(tables=tuple(described), fields=()))


@pytest.mark.parametrize(
    ("small", "large"), [(10, 300), (300, BLOCK), (BLOCK, BLOCK + 1), (70_000, 2 * BLOCK + 5)]
)
def test_a_grown_table_keeps_its_rows(small, large):
    old, new = drawn(item=(small, 2))["item"], drawn(item=(large, 2))["item"]
    assert new.shape == (large, 2)
    np.testing.assert_array_equal(new[:small], old)
    # Nothing repeats where the blocks of a large table meet.
    assert len(np.unique(np.asarray(new)[1:, 0])) > 0.99 * large


def test_rows_depend_on_nothing_else_in_the_schema():
    alone = drawn(item=(50, 4))["item"]
    among = drawn(shop=(30, 4), item=(50, 4), city=(20, 7), big=(BLOCK + 1, 4))["item"]
    np.testing.assert_array_equal(among, alone)


def test_tables_and_keys_differ():
    tables = drawn(item=(50, 4), shop=(50, 4))
    other = drawn(key=jax.random.key(4), item=(50, 4))["item"]
    assert not np.any(tables["item"][1:] == tables["shop"][1:])
    assert not np.any(tables["item"][1:] == other[1:])


@pytest.mark.parametrize("rows", [20_000, BLOCK + 1000])
def test_distribution(rows):
    table = np.asarray(drawn(item=(rows, 4))["item"])
    assert table.dtype == np.float32
    assert np.all(table[0] == 0) and np.all(table[1] != 0)
    # A standard normal cut at 2 has variance 1 - 4 phi(2) / (Phi(2) - Phi(-2)) = 0.7737.
    assert abs(table[1:].std() / 0.01 - 0.7737**0.5) < 0.01
    assert abs(table.mean()) < 0.01 * 5 / (4 * rows) ** 0.5
    assert 0.0199 < np.abs(table).max() <= 0.02


def test_lookup():
    table = jnp.arange(8.0).reshape(4, 2) + 1.0
    rows = lookup(table, jnp.array([[0, 1], [3, 4], [-1, -4]]))
    nan = np.nan
    expected = [[[0, 0], [3, 4]], [[7, 8], [nan, nan]], [[nan, nan], [nan, nan]]]
    np.testing.assert_array_equal(rows, expected)


def test_padding_has_no_gradient():
    table = jnp.ones((3, 2))
    gradient = jax.grad(lambda table: lookup(table, jnp.array([0, 0, 2, 2])).sum())(table)
    np.testing.assert_array_equal(gradient, [[0, 0], [0, 0], [2, 2]])


SCHEMA = Schema(
    tables=(
        Table(name="item", rows=4, dim=2),
        Table(name="tag", rows=4, dim=1),
    ),
    fields=(
        Field(name="price", role="candidate", kind="dense"),
        # History names its fields in another order than candidates do.
        Field(name="tags", role="history", kind="bag", table="tag", width=3),
        Field(name="item", role="candidate"),
        Field(name="item", role="history"),
        Field(name="when", role="history", table="tag"),
        Field(name="tags", role="candidate", kind="bag", table="tag", width=3),
        Field(name="vector", role="user", kind="dense", width=2),
        Field(name="age", role="user", table="tag"),
    ),
)
# Row 0 is not zero on purpose: it reads as zeros all the same.
TABLES = {
    "item": jnp.array([[99.0, 99.0], [1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]),
    "tag": jnp.array([[99.0], [10.0], [20.0], [40.0]]),
}
BATCH = {
    "user": {"vector": jnp.array([[0.5, 0.25]]), "age": jnp.array([3])},
    "context": {},
    "history": {
        "item": jnp.array([[3, 0]]),
        "tags": jnp.array([[[1, 2, 3], [0, 0, 0]]]),
        "when": jnp.array([[2, 0]]),
    },
    "history_mask": jnp.array([[True, False]]),
    "candidate": {
        "item": jnp.array([[1, 2, 0]]),
        "tags": jnp.array([[[2, 0, 2], [0, 3, 0], [0, 0, 0]]]),
        "price": jnp.array([[7.0, 8.0, 9.0]]),
    },
    "candidate_mask": jnp.array([[True, True, True]]),
}


def test_embed_concatenates_in_the_order_of_the_schema():
    embedded = embed(TABLES, SCHEMA, BATCH)
    np.testing.assert_array_equal(embedded.user, [[0.5, 0.25, 40]])
    assert embedded.context.shape == (1, 0)
    np.testing.assert_array_equal(embedded.candidate, [[[1, 2, 40], [3, 4, 40], [0, 0, 0]]])
    np.testing.assert_array_equal(embedded.candidate_only, [[[7], [8], [9]]])
    np.testing.assert_array_equal(embedded.history, [[[5, 6, 70], [0, 0, 0]]])
    np.testing.assert_array_equal(embedded.history_only, [[[20], [0]]])


@pytest.mark.parametrize(
    ("lacking", "message"),
    [
        (("user",), r"batch\['user'\] must hold 'vector', which the schema has .* got nothing"),
        (("history", "when"), r"batch\['history'\] must hold 'when', .* got item, tags"),
        (("candidate_mask",), "batch must hold 'candidate_mask', got user, "),
    ],
)
def test_a_batch_that_lacks_a_field_says_which(lacking, message):
    batch = {role: dict(x) if isinstance(x, dict) else x for role, x in BATCH.items()}
    *roles, name = lacking
    del (batch[roles[0]] if roles else batch)[name]
    with pytest.raises(ValueError, match=message):
        embed(TABLES, SCHEMA, batch)
