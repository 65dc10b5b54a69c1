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
different mathematics from a dense optimiser wherever the state decays: see `LazyAdam`.

Under `pmap` every replica pulls the same rows of its copy and, given averaged gradients, pushes
the same update.

Shapes: `P` pulled rows, `d` width; `rows` differs between tables, and so may `d`.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int, Int32, Real, ScalarLike

from .data.deduplicate import Pulled as Pulled

Tables = dict[str, Float32[Array, "_ _"]]
RowState = dict[str, Array]


@runtime_checkable
class RowOptimizer(Protocol):
    """How the rows of a batch change. Every array of the state has one entry per row in front."""

    def init(self, table: Float32[Array, "rows d"]) -> RowState:
        """State of a whole table; arrays of shape (rows, ...)."""
        ...

    def update(
        self,
        row: Float32[Array, "P d"],
        gradient: Float32[Array, "P d"],
        state: RowState,
        *,
        learning_rate: Float32[Array, ""],
        step: Int32[Array, ""],
    ) -> tuple[Float32[Array, "P d"], RowState]:
        """New rows and their new state; `state` holds the same P rows, `step` counts from 0."""
        ...


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
    """Where each position's update goes: its row, or an id that no table has, distinct for each."""
    outside = table.shape[0] + jnp.arange(rows.shape[0], dtype=jnp.int32)
    return jnp.where(touched, rows, outside)


def _read(array: Array, target: Int[Array, " P"]) -> Array:
    return array.at[target].get(mode="fill", fill_value=0)


def _write(array: Array, target: Int[Array, " P"], values: Array) -> Array:
    return array.at[target].set(values, mode="drop", unique_indices=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SGD:
    """w - r * g, with learning rate r. Equals dense SGD: a zero gradient changes nothing there."""

    def init(self, table: Float32[Array, "rows d"]) -> RowState:
        """No state."""
        del table
        return {}

    def update(
        self,
        row: Float32[Array, "P d"],
        gradient: Float32[Array, "P d"],
        state: RowState,
        *,
        learning_rate: Float32[Array, ""],
        step: Int32[Array, ""],
    ) -> tuple[Float32[Array, "P d"], RowState]:
        """See the class."""
        del step
        return row - learning_rate * gradient, state


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adagrad:
    """a + g^2 accumulates per weight; w - r * g / sqrt(a + epsilon).

    Equals dense Adagrad (`optax.adagrad`): a zero gradient changes nothing there either.
    Duchi et al., JMLR 2011, https://jmlr.org/papers/v12/duchi11a.html.
    """

    initial_accumulator: float = 0.1
    epsilon: float = 1e-7

    def __post_init__(self):
        _at_least_zero(self, "initial_accumulator", "epsilon")

    def init(self, table: Float32[Array, "rows d"]) -> RowState:
        """One accumulator per weight."""
        return {"accumulator": jnp.full_like(table, self.initial_accumulator)}

    def update(
        self,
        row: Float32[Array, "P d"],
        gradient: Float32[Array, "P d"],
        state: RowState,
        *,
        learning_rate: Float32[Array, ""],
        step: Int32[Array, ""],
    ) -> tuple[Float32[Array, "P d"], RowState]:
        """See the class."""
        del step
        accumulator = state["accumulator"] + gradient * gradient
        scale = jnp.where(accumulator > 0.0, jax.lax.rsqrt(accumulator + self.epsilon), 0.0)
        return row - learning_rate * scale * gradient, {"accumulator": accumulator}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowWiseAdagrad:
    """One accumulator per row: a + mean(g^2) over the row; w - r * g / (sqrt(a) + epsilon).

    State is 1/d of Adagrad's. This is the form of FBGEMM's `EXACT_ROWWISE_ADAGRAD`, where the
    accumulator starts at 0 and epsilon stands outside the root.
    """

    initial_accumulator: float = 0.0
    epsilon: float = 1e-8

    def __post_init__(self):
        _at_least_zero(self, "initial_accumulator")
        if self.epsilon <= 0.0:
            raise ValueError(f"RowWiseAdagrad.epsilon must be > 0, got {self.epsilon}.")

    def init(self, table: Float32[Array, "rows d"]) -> RowState:
        """One accumulator per row."""
        return {"accumulator": jnp.full(table.shape[:1], self.initial_accumulator, table.dtype)}

    def update(
        self,
        row: Float32[Array, "P d"],
        gradient: Float32[Array, "P d"],
        state: RowState,
        *,
        learning_rate: Float32[Array, ""],
        step: Int32[Array, ""],
    ) -> tuple[Float32[Array, "P d"], RowState]:
        """See the class."""
        del step
        accumulator = state["accumulator"] + jnp.mean(gradient * gradient, axis=1)
        rate = learning_rate / (jnp.sqrt(accumulator) + self.epsilon)
        return row - rate[:, None] * gradient, {"accumulator": accumulator}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProximalAdagrad(Adagrad):
    """Adagrad, then a step towards zeros: of single weights, and of whole rows.

        w' = Adagrad(w)
        w" = sign(w') max(|w'| - r * l1, 0)
        w"' = w" max(1 - r * l21 / |w"|_2, 0)

    The last two are the proximal operators of r * l1 |w|_1 and of r * l21 |w|_2, one after the
    other, which together is that of their sum. A row costs its penalty when a batch names it, so
    frequent rows pay more often than they would in an objective over the whole data. For
    `zoo.mlr`, in place of the directional derivatives of Gai et al. 2017,
    https://arxiv.org/abs/1704.05194.
    """

    l1: float = 0.0
    l21: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        _at_least_zero(self, "l1", "l21")

    def update(
        self,
        row: Float32[Array, "P d"],
        gradient: Float32[Array, "P d"],
        state: RowState,
        *,
        learning_rate: Float32[Array, ""],
        step: Int32[Array, ""],
    ) -> tuple[Float32[Array, "P d"], RowState]:
        """See the class."""
        row, state = super().update(row, gradient, state, learning_rate=learning_rate, step=step)
        row = _soft_threshold(row, learning_rate * self.l1)
        norm = jnp.sqrt(jnp.sum(row * row, axis=1, keepdims=True))
        shrink = 1.0 - learning_rate * self.l21 / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny)
        return row * jnp.maximum(shrink, 0.0), state


@dataclasses.dataclass(frozen=True, kw_only=True)
class FTRL:
    r"""FTRL-proximal: per-weight rates, and zeros that are exact (McMahan et al., KDD 2013).

    Algorithm 1 of https://doi.org/10.1145/2487575.2488200, with the learning rate as alpha:

        s = (sqrt(n + g^2) - sqrt(n)) / alpha
        z = z + g - s * w
        n = n + g^2
        w = 0 if |z| <= l1, otherwise -(z - sign(z) l1) / ((beta + sqrt(n)) / alpha + l2)

    One step per batch, not per example: g is the gradient of the batch's mean loss, so l1 and
    beta are to be chosen smaller, by up to the batch size, than for sums over examples.

    The last line gives z back from any w other than 0, so here z is read only where w is 0. For
    a constant rate and a table of zeros that is Algorithm 1. It also makes sense of a rate that
    falls (each step then moves by the rate of its own) and of tables that do not start at zero
    (they are where the first step starts from), where the algorithm above would pull weights to
    zero for no reason. `l2` is the paper's, and slows the steps down; to decay weights, use the
    penalty of `push`.
    """

    beta: float = 1.0
    l1: float = 0.0
    l2: float = 0.0

    def __post_init__(self):
        _at_least_zero(self, "l1", "l2")
        if self.beta <= 0.0:
            raise ValueError(f"FTRL.beta must be > 0, got {self.beta}.")

    def init(self, table: Float32[Array, "rows d"]) -> RowState:
        """z and n of every weight."""
        return {"z": jnp.zeros_like(table), "n": jnp.zeros_like(table)}

    def update(
        self,
        row: Float32[Array, "P d"],
        gradient: Float32[Array, "P d"],
        state: RowState,
        *,
        learning_rate: Float32[Array, ""],
        step: Int32[Array, ""],
    ) -> tuple[Float32[Array, "P d"], RowState]:
        """See the class."""
        del step
        n = state["n"] + gradient * gradient
        inverse_rate = (self.beta + jnp.sqrt(n)) / learning_rate + self.l2
        z = jnp.where(row == 0.0, state["z"], -inverse_rate * row - self.l1 * jnp.sign(row))
        z = z + gradient
        return -_soft_threshold(z, self.l1) / inverse_rate, {"z": z, "n": n}


def _soft_threshold(x: Array, by: ScalarLike) -> Array:
    """sign(x) max(|x| - by, 0)."""
    return jnp.sign(x) * jnp.maximum(jnp.abs(x) - by, 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LazyAdam:
    """Adam on the rows of the batch; all others, with their moments, stand still.

        m = b1 * m + (1 - b1) * g        v = b2 * v + (1 - b2) * g^2
        w - r * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + epsilon)

    Not dense Adam, which goes on moving a row by its momentum, and decays its moments, in steps
    that do not name it. As in TensorFlow's `LazyAdam`, t = step + 1 counts all steps and not the
    updates of the row: a row first seen late gets (1 - b1) * g / sqrt((1 - b2) * g^2), about 3.2
    times a usual step. Where every row is touched every step, it is `optax.adam`; epsilon stands
    where Kingma & Ba's Algorithm 1 has it (https://arxiv.org/abs/1412.6980).
    """

    b1: float = 0.9
    b2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self):
        for name in ("b1", "b2"):
            value = getattr(self, name)
            if not 0.0 <= value < 1.0:
                raise ValueError(f"LazyAdam.{name} must be in [0, 1), got {value}.")
        if self.epsilon <= 0.0:
            raise ValueError(f"LazyAdam.epsilon must be > 0, got {self.epsilon}.")

    def init(self, table: Float32[Array, "rows d"]) -> RowState:
        """First and second moment of every weight."""
        return {"m": jnp.zeros_like(table), "v": jnp.zeros_like(table)}

    def update(
        self,
        row: Float32[Array, "P d"],
        gradient: Float32[Array, "P d"],
        state: RowState,
        *,
        learning_rate: Float32[Array, ""],
        step: Int32[Array, ""],
    ) -> tuple[Float32[Array, "P d"], RowState]:
        """See the class."""
        t = step.astype(jnp.float32) + 1.0
        m = self.b1 * state["m"] + (1.0 - self.b1) * gradient
        v = self.b2 * state["v"] + (1.0 - self.b2) * gradient * gradient
        m_hat, v_hat = m / (1.0 - self.b1**t), v / (1.0 - self.b2**t)
        row = row - learning_rate * m_hat / (jnp.sqrt(v_hat) + self.epsilon)
        return row, {"m": m, "v": v}


def _at_least_zero(optimizer: Any, *names: str) -> None:
    for name in names:
        value = getattr(optimizer, name)
        if value < 0.0:
            raise ValueError(f"{type(optimizer).__name__}.{name} must be >= 0, got {value}.")
