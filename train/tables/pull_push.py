r"""Embedding tables in training: pull the rows of a batch, push their update back in place.

A gradient with respect to a whole table is as large as the table, and a dense optimiser walks all
of it every step. Instead a step pulls the distinct rows that its batch names into a small table,

    pulled[p] = table[rows[p]],

differentiates the model's own loss with respect to `pulled` (several uses of one row share one
position, so their gradients arrive summed), and pushes a row-wise optimiser's update to exactly
those rows. With the tables' buffers donated, the cost follows the batch and not the table:

    pulled, names = deduplicate(ids, num_rows)                   # on the host
    small = pull(tables, pulled.rows)
    gradients = jax.grad(loss)(small)                            # ids are positions in `small`
    tables, state = push(optimizer, tables, state, pulled, gradients, learning_rate=r, step=t)

Rows that a batch does not name keep their values and their optimiser's state, bit for bit. That is
different mathematics from a dense optimiser wherever the state decays: see `lazy_adam`.

Under `pmap` every replica pulls the same rows of its copy and, given averaged gradients, pushes
the same update.

Shapes: `P` pulled rows, `d` width; `rows` differs between tables, and so may `d`.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float32, Int, Int32, Real, ScalarLike

from ..data.batches.deduplicate import Pulled
from .optimizers import RowOptimizer, RowState

Tables = dict[str, Float32[Array, "_ _"]]


def init(optimizer: RowOptimizer, tables: Tables) -> dict[str, RowState]:
    """The optimiser's state for every table."""
    return {name: optimizer.init(table) for name, table in tables.items()}


def pull(tables: Tables, rows: Mapping[str, Int32[Any, " _"]]) -> Tables:
    """The named rows of every table: `(P, d)` each, zeros at position 0 and at fill ids."""
    return {name: _pull(tables[name], ids) for name, ids in rows.items()}


def push(
    optimizer: RowOptimizer,
    tables: Tables,
    state: dict[str, RowState],
    pulled: Pulled,
    gradients: Tables,
    *,
    learning_rate: ScalarLike,
    step: ScalarLike,
    l2: float = 0.0,
    occurrences: Mapping[str, Real[Array, " _"]] | None = None,
) -> tuple[Tables, dict[str, RowState]]:
    r"""Updates the touched rows of every table, and their state, and nothing else.

    Donate `tables` and `state` to the jitted step, and the update happens in place.

    With `l2` > 0 the gradient of row j gains the mini-batch-aware penalty of the DIN paper
    (Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", KDD 2018, section
    5.1, https://arxiv.org/abs/1706.06978),

        g_j + l2 * w_j / n_j,

    where n_j counts how often row j occurs in the whole training set: a row that comes at most
    once a batch is decayed by `l2` once an epoch, be it frequent or rare, and rows outside the
    batch cost nothing. An L2 over whole tables at every step is a different regulariser.

    Args:
      optimizer: how rows change.
      tables: whole tables.
      state: `init(optimizer, tables)`, or what the last push returned.
      pulled: which rows `gradients` belong to, and which of them may change.
      gradients: of the loss, with respect to `pull(tables, pulled.rows)`.
      learning_rate: a number, or an array of shape ().
      step: number of pushes before this one, counted from 0.
      l2: strength of the penalty, a Python number.
      occurrences: n_j per table, shape (rows,); counts below 1 are taken as 1.

    Raises:
      ValueError: `l2` without `occurrences`, or negative.
    """
    if l2 < 0.0:
        raise ValueError(f"push: l2 must be >= 0, got {l2}.")
    if l2 > 0.0 and occurrences is None:
        raise ValueError(f"push: l2 = {l2} needs occurrences, the count of every row in the data.")
    rate, step = jnp.asarray(learning_rate, jnp.float32), jnp.asarray(step, jnp.int32)
    new_tables, new_state = dict(tables), dict(state)
    for name, gradient in gradients.items():
        target = _targets(tables[name], pulled.rows[name], pulled.touched[name])
        # The very operations of `pull`, so that a step that pulls and pushes reads its rows once.
        row = _pull(tables[name], pulled.rows[name])
        if l2 > 0.0 and occurrences is not None:
            count = jnp.maximum(_read(occurrences[name], target).astype(jnp.float32), 1.0)
            gradient = gradient + l2 * row / count[:, None]
        row, row_state = optimizer.update(
            row,
            gradient,
            {key: _read(array, target) for key, array in state[name].items()},
            learning_rate=rate,
            step=step,
        )
        new_tables[name] = _write(tables[name], target, row)
        new_state[name] = {
            key: _write(array, target, row_state[key]) for key, array in state[name].items()
        }
    return new_tables, new_state


def _pull(table: Array, rows: Any) -> Array:
    """The rows of one table, zeros at position 0."""
    # Position 0 gets the id of no row, rather than its zeros afterwards: that would be a copy.
    return _read(table, jnp.asarray(rows).at[0].set(table.shape[0]))


def _targets(table: Array, rows: Any, touched: Any) -> Int32[Array, " P"]:
    """Row that each position updates; a distinct id that no table has where none may change."""
    outside = table.shape[0] + jnp.arange(rows.shape[0], dtype=jnp.int32)
    return jnp.where(touched, rows, outside)


def _read(array: Array, target: Int[Array, " P"]) -> Array:
    return array.at[target].get(mode="fill", fill_value=0)


def _write(array: Array, target: Int[Array, " P"], values: Array) -> Array:
    return array.at[target].set(values, mode="drop", unique_indices=True)
