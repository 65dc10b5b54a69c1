"""Tables and their lookups: the only place where a model turns ids into vectors.

Shapes: `B` requests, `L` history events, `C` candidates, `D` width of a behaviour.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any, Literal, NamedTuple
import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray
import numpy as np

from .batch import EVENT_PARTS, Batch
from .contract import NOTHING_MORE, Requirements, Variables
from .features import (
    PADDING_ROW,
    RESERVED_ROWS,
    ROLES,
    Field,
    Role,
    Schema,
    Table,
    example_batch,
    require_batch,
)

INIT_STD = 0.01
Pooling = Literal["sum", "mean"]
_BLOCK = 65536


def init_tables(key: PRNGKeyArray, schema: Schema) -> dict[str, Float[Array, "rows dim"]]:
    """Fresh tables: N(0, 0.01^2) cut at 2 sigma; the padding row is zero.

    Row j depends on (key, table name, j) alone, so a table that grows keeps its old rows. Rows
    of large tables are drawn a block at a time: the peak is the table itself.
    """
    tables = {}
    for dim in sorted({table.dim for table in schema.tables}):
        alike = [table for table in schema.tables if table.dim == dim]
        small = [table for table in alike if table.rows <= _BLOCK]
        # One draw for all small tables: there are many of them, and each draw compiles for long.
        owners = [(_table_key(key, table), table.rows) for table in small]
        keys = [jnp.repeat(owner[None], rows, axis=0) for owner, rows in owners]
        ids = [jnp.arange(rows) for _, rows in owners]
        if small:
            drawn = _draw(jnp.concatenate(keys), jnp.concatenate(ids), dim)
            ends = np.cumsum([rows for _, rows in owners])[:-1]
            tables |= zip((table.name for table in small), jnp.split(drawn, ends), strict=True)
        large = [table for table in alike if table.rows > _BLOCK]
        tables |= {table.name: _draw_in_blocks(_table_key(key, table), table) for table in large}
    return {table.name: tables[table.name].at[PADDING_ROW].set(0.0) for table in schema.tables}


def _table_key(key: PRNGKeyArray, table: Table) -> PRNGKeyArray:
    return jax.random.fold_in(key, zlib.crc32(table.name.encode()))


def _draw(
    keys: Key[Array, " rows"], ids: Int[Array, " rows"], dim: int
) -> Float[Array, "rows dim"]:
    """One row per (key, id)."""

    def row(key, j):
        key = jax.random.fold_in(key, j)
        return INIT_STD * jax.random.truncated_normal(key, -2.0, 2.0, (dim,), jnp.float32)

    return jax.vmap(row)(keys, ids)


def _draw_in_blocks(key: PRNGKeyArray, table: Table) -> Float[Array, "rows dim"]:
    def write(i, rows):
        # The last block starts early rather than running over the end: same ids, same rows.
        start = jnp.minimum(i * _BLOCK, table.rows - _BLOCK)
        keys = jnp.repeat(key[None], _BLOCK, axis=0)
        block = _draw(keys, start + jnp.arange(_BLOCK), table.dim)
        return jax.lax.dynamic_update_slice(rows, block, (start, 0))

    rows = jnp.zeros((table.rows, table.dim), jnp.float32)
    return jax.lax.fori_loop(0, -(-table.rows // _BLOCK), write, rows)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def init_variables(
    key: PRNGKeyArray,
    module: nn.Module,
    schema: Schema,
    requirements: Requirements = NOTHING_MORE,
) -> Variables:
    """Tables, then everything else that `module` declares when it sees a training batch."""
    table_key, param_key = jax.random.split(key)
    # Shapes decide parameters, and pulled tables have the same widths: few rows are enough.
    small = {table.name: jnp.zeros((RESERVED_ROWS, table.dim)) for table in schema.tables}
    batch = example_batch(
        schema.with_rows(dict.fromkeys(small, RESERVED_ROWS)),
        history_negatives=requirements.history_negatives != "none",
        retrieved=requirements.retrieved,
        sampled=requirements.sampled,
        preferences=requirements.preferences,
    )
    _, rest = module.apply(
        {"tables": small}, batch, rngs={"params": param_key}, mutable=["params", "batch_stats"]
    )
    return {"tables": init_tables(table_key, schema), "params": {}, "batch_stats": {}, **rest}


def read_tables(module: nn.Module, schema: Schema) -> dict[str, Float[Array, "rows dim"]]:
    """The tables that the top module was given, whole or pulled; fresh ones under its `init`."""

    def fresh(table: Table) -> Float[Array, "rows dim"]:
        alone = dataclasses.replace(schema, tables=(table,), fields=())
        return init_tables(module.make_rng("params"), alone)[table.name]

    return {t.name: module.variable("tables", t.name, fresh, t).value for t in schema.tables}


def require_own_ids(tables: Mapping[str, Float[Array, "rows dim"]], batch: Batch) -> None:
    """Raises ValueError if ids that are positions in pulled tables would be looked up in others.

    A batch of training says how many rows it pulls (`zoo.batch`); whole tables have another number.
    """
    for name, rows in batch.get("pulled", {}).items():
        if name in tables and tables[name].shape[0] != rows.shape[0]:
            raise ValueError(
                f"The ids of this batch are positions in a pulled table {name!r} of "
                f"{rows.shape[0]} rows, but the variables hold one of {tables[name].shape[0]}: "
                "pull the batch's rows (train.tables.pull), or take an evaluation batch."
            )


def as_arrays(batch: Batch, schema: Schema | None = None, roles: Sequence[Role] = ROLES) -> Batch:
    """The batch as JAX arrays; pipelines and records deliver NumPy's.

    With a schema, ValueError says what these roles of the batch lack, or hold in another shape.
    """
    if schema is not None:
        require_batch(schema, batch, roles)
    return jax.tree.map(jnp.asarray, batch)


def require_drawn(batch: Batch, *roles: str) -> None:
    """Raises ValueError unless the batch holds these roles, which losses need and serving lacks."""
    for role in roles:
        if role not in batch:
            raise ValueError(f"A loss needs batch[{role!r}], got {', '.join(batch)}.")


def compact(batch: Batch, *, at_end: bool = False) -> Batch:
    """The batch with real events moved to the front of the history, or to its end, in order.

    For models that speak of the next event or of the newest ones: a mask may have holes.
    """
    mask = batch["history_mask"]
    order = jnp.argsort(mask if at_end else ~mask, axis=1, stable=True)

    def move(value: Array) -> Array:
        index = order.reshape(order.shape + (1,) * (value.ndim - 2))
        return jnp.take_along_axis(value, index, axis=1)

    moved = {name: jax.tree.map(move, batch[name]) for name in EVENT_PARTS if name in batch}
    return {**batch, **moved}


class Embedded(NamedTuple):
    """A batch after its lookups, fields concatenated in the schema's order.

    `candidate` and `history` hold the fields that stand in both roles, in the same order, so that
    they can be compared; what only one of them has follows in `candidate_only`, `history_only`.
    Axes of a role without fields have width 0.
    """

    user: Float[Array, "B U"]
    context: Float[Array, "B X"]
    candidate: Float[Array, "B C D"]
    candidate_only: Float[Array, "B C E"]
    history: Float[Array, "B L D"]
    history_only: Float[Array, "B L F"]

    @property
    def behaviour(self) -> Float[Array, "B L E"]:
        """All that is known of each event: [`history`, `history_only`]."""
        return jnp.concatenate([self.history, self.history_only], axis=-1)


def embed(tables: dict[str, Float[Array, "rows dim"]], schema: Schema, batch: Batch) -> Embedded:
    """Looks up every field of the batch.

    Raises ValueError if it lacks one of the schema's, or its ids are those of other tables.
    """
    require_batch(schema, batch)
    require_own_ids(tables, batch)
    size = batch["candidate_mask"].shape[0]
    lead = {
        "user": (size,),
        "context": (size,),
        "candidate": batch["candidate_mask"].shape,
        "history": batch["history_mask"].shape,
    }
    shared = {f.name for f in schema.role("candidate")} & {f.name for f in schema.role("history")}

    def gather(role, wanted=lambda field: True):
        fields = [field for field in schema.role(role) if wanted(field)]
        parts = [embed_field(tables, field, batch[role][field.name]) for field in fields]
        return jnp.concatenate([jnp.zeros((*lead[role], 0), jnp.float32), *parts], axis=-1)

    order = {field.name: i for i, field in enumerate(schema.role("candidate"))}
    history_fields = sorted(
        (field for field in schema.role("history") if field.name in shared),
        key=lambda field: order[field.name],
    )
    history = [embed_field(tables, f, batch["history"][f.name]) for f in history_fields]
    return Embedded(
        user=gather("user"),
        context=gather("context"),
        candidate=gather("candidate", lambda field: field.name in shared),
        candidate_only=gather("candidate", lambda field: field.name not in shared),
        history=jnp.concatenate([jnp.zeros((*lead["history"], 0), jnp.float32), *history], axis=-1),
        history_only=gather("history", lambda field: field.name not in shared),
    )


def embed_items(
    tables: dict[str, Float[Array, "rows dim"]], schema: Schema, items: dict[str, Array]
) -> Float[Array, "*lead D"]:
    """Items of `history_negative` or `sampled`, as wide as `Embedded.candidate`."""
    parts = [embed_field(tables, field, items[field.name]) for field in schema.item_fields]
    return jnp.concatenate(parts, axis=-1)


def embed_events(
    tables: dict[str, Float[Array, "rows dim"]], schema: Schema, events: dict[str, Array]
) -> Float[Array, "*lead E"]:
    """Events of `history` or `retrieved`: [`Embedded.history`, `Embedded.history_only`]."""
    only = [f for f in schema.role("history") if schema.find("candidate", f.name) is None]
    fields = [*schema.item_fields, *only]
    return jnp.concatenate([embed_field(tables, f, events[f.name]) for f in fields], axis=-1)


def embed_field(
    tables: dict[str, Float[Array, "rows dim"]], field: Field, value: Array
) -> Float[Array, "*lead width"]:
    """One field: a row, the sum of a bag's rows, or the number itself."""
    if field.kind == "dense":
        return value if field.width else value[..., None]
    rows = lookup(tables[field.table_name], value)
    return rows.sum(axis=-2) if field.kind == "bag" else rows


def lookup(table: Float[Array, "rows dim"], ids: Int[Array, "*lead"]) -> Float[Array, "*lead dim"]:
    """Rows by id; the padding row reads as zeros whatever it holds, a bad id as NaN."""
    # `jnp.take` would count negative ids from the end.
    at = table.at[ids]
    rows = at.get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
    return jnp.where((ids == PADDING_ROW)[..., None], jnp.zeros((), table.dtype), rows)


def dropout(embedded: Embedded, rate: float, *, train: bool) -> Embedded:
    """Drops single numbers of every role; call inside a compact module."""
    if rate == 0.0 or not train:
        return embedded
    return Embedded(*(nn.Dropout(rate, deterministic=False)(part) for part in embedded))


def tower_input(
    embedded: Embedded, interest: Float[Array, "B C V"], *, product: bool
) -> Float[Array, "B C I"]:
    """[user, context, q, what only candidates have, v] and, if asked, q * v.

    The product is in the authors' DIN and DIEN code, not in the papers. A tower matches poorly
    from concatenation alone.
    """
    query = embedded.candidate
    per_request = jnp.concatenate([embedded.user, embedded.context], axis=-1)
    repeated = for_each_candidate(per_request, query.shape[1])
    parts = [repeated, query, embedded.candidate_only, interest]
    if product:
        parts.append(query * interest[..., : query.shape[-1]])
    return jnp.concatenate(parts, axis=-1)


def for_each_candidate(interest: Float[Array, "B V"], candidates: Any) -> Float[Array, "B C V"]:
    """The same interest for every candidate; C is an int, or symbolic under `jax.export`."""
    lead = (interest.shape[0], candidates, interest.shape[1])
    return jnp.broadcast_to(interest[:, None, :], lead)


def masked_sum(values: Float[Array, "B L D"], mask: Bool[Array, "B L"]) -> Float[Array, "B D"]:
    """Sum over the real events; what stands in the others does not matter, not even NaN."""
    return jnp.where(mask[..., None], values, 0.0).sum(axis=1)


def pool(
    history: Float[Array, "B L D"], mask: Bool[Array, "B L"], pooling: Pooling
) -> Float[Array, "B D"]:
    """Sum or mean of the real events; zeros for an empty history."""
    total = masked_sum(history, mask)
    if pooling == "sum":
        return total
    return total / jnp.maximum(mask.sum(axis=1, keepdims=True, dtype=jnp.float32), 1.0)
