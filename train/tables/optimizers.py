r"""Optimisers of the rows of embedding tables, in pairs of functions as optax has them.

Each function here returns a `RowOptimizer`. Its `update` gets the rows of one batch and their
state, and never sees the table; `pull_push.push` writes back what it returns. `chain` applies
several.

    optimizer = chain(adagrad(epsilon=1e-6), proximal(l1=1e-4))
    state = optimizer.init(table)                                          # one entry per row
    row, state = optimizer.update(row, gradient, state, learning_rate=r, step=t)

Symbols: `w` a row, `g` its gradient, `r` the learning rate, `t` = step + 1.
Shapes: `P` pulled rows, `d` width.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ScalarLike

RowState = dict[str, Array]


class RowOptimizer(NamedTuple):
    """An optimiser of the rows of a batch.

    Attributes:
      init: (rows, d) table -> its state; every array of it has the shape (rows, ...).
      update: (row (P, d), gradient (P, d), state of these rows, *, learning_rate, step) -> new rows
        and their new state; `step` counts pushes from 0.
    """

    init: Callable[[Array], RowState]
    update: Callable[..., tuple[Array, RowState]]


def chain(*optimizers: RowOptimizer) -> RowOptimizer:
    """Updates by each of the optimisers in turn; their states must have different names.

    Examples:
      >>> import jax.numpy as jnp
      >>> from recjax.train import tables
      >>> optimizer = tables.chain(tables.sgd(), tables.proximal(l1=0.5))
      >>> row, gradient = jnp.array([[1.0, 0.25]]), jnp.array([[0.5, 0.0]])
      >>> state = optimizer.init(row)
      >>> optimizer.update(row, gradient, state, learning_rate=0.5, step=0)[0]
      Array([[0.5, 0. ]], dtype=float32)
    """

    def init(table):
        states = [optimizer.init(table) for optimizer in optimizers]
        merged = {name: array for state in states for name, array in state.items()}
        if len(merged) < sum(map(len, states)):
            raise ValueError("chain: two optimisers have state of the same name.")
        return merged

    def update(row, gradient, state, *, learning_rate, step):
        for optimizer in optimizers:
            row, changed = optimizer.update(
                row, gradient, state, learning_rate=learning_rate, step=step
            )
            state = {**state, **changed}
        return row, state

    return RowOptimizer(init, update)


def sgd() -> RowOptimizer:
    """w - r g. Equals dense SGD: a zero gradient changes nothing there."""

    def update(row, gradient, state, *, learning_rate, step):
        return row - learning_rate * gradient, state

    return RowOptimizer(_stateless, update)


def adagrad(*, initial_accumulator: float = 0.1, epsilon: float = 1e-7) -> RowOptimizer:
    """a + g^2 accumulates per weight; w - r g / sqrt(a + epsilon).

    Equals dense Adagrad (`optax.adagrad`): a zero gradient changes nothing there either.
    Duchi et al., JMLR 2011, https://jmlr.org/papers/v12/duchi11a.html.
    """
    _at_least_zero("adagrad", initial_accumulator=initial_accumulator, epsilon=epsilon)

    def init(table):
        return {"accumulator": jnp.full_like(table, initial_accumulator)}

    def update(row, gradient, state, *, learning_rate, step):
        accumulator = state["accumulator"] + gradient * gradient
        scale = jnp.where(accumulator > 0.0, jax.lax.rsqrt(accumulator + epsilon), 0.0)
        return row - learning_rate * scale * gradient, {"accumulator": accumulator}

    return RowOptimizer(init, update)


def row_wise_adagrad(*, initial_accumulator: float = 0.0, epsilon: float = 1e-8) -> RowOptimizer:
    """One accumulator per row: a + mean(g^2) over the row; w - r g / (sqrt(a) + epsilon).

    State is 1/d of Adagrad's. This is the form of FBGEMM's `EXACT_ROWWISE_ADAGRAD`, where the
    accumulator starts at 0 and epsilon stands outside the root.
    """
    _at_least_zero("row_wise_adagrad", initial_accumulator=initial_accumulator)
    _positive("row_wise_adagrad", epsilon=epsilon)

    def init(table):
        return {"accumulator": jnp.full(table.shape[:1], initial_accumulator, table.dtype)}

    def update(row, gradient, state, *, learning_rate, step):
        accumulator = state["accumulator"] + jnp.mean(gradient * gradient, axis=1)
        rate = learning_rate / (jnp.sqrt(accumulator) + epsilon)
        return row - rate[:, None] * gradient, {"accumulator": accumulator}

    return RowOptimizer(init, update)


def proximal(*, l1: float = 0.0, l21: float = 0.0) -> RowOptimizer:
    """A step towards zeros, of single weights and of whole rows; to be chained behind another.

        w' = sign(w) max(|w| - r l1, 0)
        w" = w' max(1 - r l21 / |w'|_2, 0)

    These are the proximal operators of r l1 |w|_1 and of r l21 |w|_2, one after the other, which
    together is that of their sum. A row costs its penalty when a batch names it, so frequent rows
    pay more often than they would in an objective over the whole data. For `zoo.mlr`, in place of
    the directional derivatives of Gai et al. 2017, https://arxiv.org/abs/1704.05194.
    """
    _at_least_zero("proximal", l1=l1, l21=l21)

    def update(row, gradient, state, *, learning_rate, step):
        row = _soft_threshold(row, learning_rate * l1)
        norm = jnp.sqrt(jnp.sum(row * row, axis=1, keepdims=True))
        shrink = 1.0 - learning_rate * l21 / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny)
        return row * jnp.maximum(shrink, 0.0), {}

    return RowOptimizer(_stateless, update)


def ftrl(*, beta: float = 1.0, l1: float = 0.0, l2: float = 0.0) -> RowOptimizer:
    r"""FTRL-proximal: per-weight rates, and zeros that are exact (McMahan et al., KDD 2013).

    Algorithm 1 of https://doi.org/10.1145/2487575.2488200, with the learning rate as alpha:

        s = (sqrt(n + g^2) - sqrt(n)) / alpha
        z = z + g - s w
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
    _at_least_zero("ftrl", l1=l1, l2=l2)
    _positive("ftrl", beta=beta)

    def init(table):
        return {"z": jnp.zeros_like(table), "n": jnp.zeros_like(table)}

    def update(row, gradient, state, *, learning_rate, step):
        n = state["n"] + gradient * gradient
        inverse_rate = (beta + jnp.sqrt(n)) / learning_rate + l2
        z = jnp.where(row == 0.0, state["z"], -inverse_rate * row - l1 * jnp.sign(row))
        z = z + gradient
        return -_soft_threshold(z, l1) / inverse_rate, {"z": z, "n": n}

    return RowOptimizer(init, update)


def lazy_adam(*, b1: float = 0.9, b2: float = 0.999, epsilon: float = 1e-8) -> RowOptimizer:
    """Adam on the rows of the batch; all others, with their moments, stand still.

        m = b1 m + (1 - b1) g        v = b2 v + (1 - b2) g^2
        w - r (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + epsilon)

    Not dense Adam, which goes on moving a row by its momentum, and decays its moments, in steps
    that do not name it. As in TensorFlow's `LazyAdam`, t counts all steps and not the updates of
    the row: a row first seen late gets (1 - b1) g / sqrt((1 - b2) g^2), about 3.2 times a usual
    step. Where every row is touched every step, it is `optax.adam`; epsilon stands where Kingma &
    Ba's Algorithm 1 has it (https://arxiv.org/abs/1412.6980).
    """
    for name, value in (("b1", b1), ("b2", b2)):
        if not 0.0 <= value < 1.0:
            raise ValueError(f"lazy_adam: {name} must be in [0, 1), got {value}.")
    _positive("lazy_adam", epsilon=epsilon)

    def init(table):
        return {"m": jnp.zeros_like(table), "v": jnp.zeros_like(table)}

    def update(row, gradient, state, *, learning_rate, step):
        t = step.astype(jnp.float32) + 1.0
        m = b1 * state["m"] + (1.0 - b1) * gradient
        v = b2 * state["v"] + (1.0 - b2) * gradient * gradient
        m_hat, v_hat = m / (1.0 - b1**t), v / (1.0 - b2**t)
        return row - learning_rate * m_hat / (jnp.sqrt(v_hat) + epsilon), {"m": m, "v": v}

    return RowOptimizer(init, update)


def _stateless(table: Array) -> RowState:
    return {}


def _soft_threshold(x: Array, by: ScalarLike) -> Array:
    """sign(x) max(|x| - by, 0)."""
    return jnp.sign(x) * jnp.maximum(jnp.abs(x) - by, 0.0)


def _at_least_zero(function: str, **options: float) -> None:
    for name, value in options.items():
        if value < 0.0:
            raise ValueError(f"{function}: {name} must be >= 0, got {value}.")


def _positive(function: str, **options: float) -> None:
    for name, value in options.items():
        if value <= 0.0:
            raise ValueError(f"{function}: {name} must be > 0, got {value}.")
