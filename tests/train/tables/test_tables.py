import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from recjax.train.data.batches.deduplicate import deduplicate, distinct, padded_size
from recjax.train.settings import Settings
from recjax.train.tables import (
    adagrad,
    chain,
    ftrl,
    init,
    lazy_adam,
    proximal,
    pull,
    push,
    row_wise_adagrad,
    sgd,
)
from testing import assert_close

ROWS, DIM = {"item": 40, "user": 17}, {"item": 4, "user": 3}
OPTIMIZERS = {
    "sgd": sgd(),
    "adagrad": adagrad(),
    "row-wise adagrad": row_wise_adagrad(initial_accumulator=0.01),
    "lazy adam": lazy_adam(),
    "ftrl": ftrl(l1=0.1),
    "proximal": chain(adagrad(), proximal(l1=0.1, l21=0.1)),
}


def tables_of(seed=0):
    random = np.random.default_rng(seed)
    tables = {name: random.normal(size=(ROWS[name], DIM[name])) for name in ROWS}
    for table in tables.values():
        table[0] = 0.0
    return {name: jnp.asarray(table, jnp.float32) for name, table in tables.items()}


def ids_of(seed, *, low=0):
    """Two fields that share a table, with many repeats, and one more table."""
    random = np.random.default_rng(seed)
    return {
        "item": [
            random.integers(low, ROWS["item"], (5, 6), dtype=np.int32),
            random.integers(low, 9, (5,), dtype=np.int32),
        ],
        "user": [random.integers(low, ROWS["user"], (5,), dtype=np.int32)],
    }


def loss(tables, names):
    """Some function in which every use of a row has a gradient of its own."""
    history, candidate = (tables["item"][ids] for ids in names["item"])
    user = tables["user"][names["user"][0]]
    weight = jnp.cos(jnp.arange(6.0))[None, :, None]
    pooled = jnp.sum(weight * jnp.tanh(history + candidate[:, None]), axis=1)
    return jnp.sum(pooled * candidate) + jnp.sum(jnp.sin(user) * pooled[:, :3])


def named(ids):
    """The rows an optimiser may change: those named, except padding."""
    return {name: np.setdiff1d(np.concatenate([*map(np.ravel, a)]), [0]) for name, a in ids.items()}


jit_push = jax.jit(push, static_argnames=("optimizer", "l2"))


@jax.jit
def gradients_of(tables, pulled, names):
    return jax.grad(loss)(pull(tables, pulled.rows), names)


@functools.partial(jax.jit, static_argnames="optimizer")
def step(optimizer, tables, state, pulled, names, t):
    return push(
        optimizer,
        tables,
        state,
        pulled,
        gradients_of(tables, pulled, names),
        learning_rate=0.05,
        step=t,
    )


# deduplicate


def test_deduplicate_by_hand():
    ids = [np.array([[7, 0, 5], [5, 1, 7]], np.int32), np.array([9], np.int32)]
    pulled, names = deduplicate({"item": ids}, {"item": 10}, quantum=4)
    np.testing.assert_array_equal(pulled.rows["item"], [0, 1, 5, 7, 9, 10, 11, 12])
    np.testing.assert_array_equal(
        pulled.touched["item"], [False, True, True, True, True, False, False, False]
    )
    np.testing.assert_array_equal(names["item"][0], [[3, 0, 2], [2, 1, 3]])
    np.testing.assert_array_equal(names["item"][1], [4])
    assert pulled.rows["item"].dtype == names["item"][0].dtype == np.int32


def test_deduplicate_touches_the_unseen_row_only_if_named():
    pulled, _ = deduplicate({"item": [np.array([0, 3], np.int32)]}, {"item": 4}, quantum=4)
    np.testing.assert_array_equal(pulled.rows["item"], [0, 1, 3, 4])
    np.testing.assert_array_equal(pulled.touched["item"], [False, False, True, False])


@pytest.mark.parametrize("seed", range(5))
def test_deduplicate_renames_every_id_to_the_position_of_its_row(seed):
    ids = ids_of(seed)
    pulled, names = deduplicate(ids, ROWS, quantum=8)
    for table, arrays in ids.items():
        rows = pulled.rows[table]
        assert len(rows) % 8 == 0
        np.testing.assert_array_equal(rows, np.unique(rows))  # ascending and distinct
        np.testing.assert_array_equal(rows[pulled.touched[table]], named(ids)[table])
        for array, renamed in zip(arrays, names[table], strict=True):
            np.testing.assert_array_equal(rows[renamed], array)
            np.testing.assert_array_equal(array <= 1, renamed <= 1)


def test_deduplicate_of_nothing_pulls_the_reserved_rows():
    empty = np.zeros((0, 3), np.int32)
    pulled, names = deduplicate({"item": [empty]}, {"item": 2, "user": 5}, quantum=2)
    np.testing.assert_array_equal(pulled.rows["item"], [0, 1])
    np.testing.assert_array_equal(pulled.rows["user"], [0, 1])
    assert not pulled.touched["item"].any()
    assert names["item"][0].shape == (0, 3) and names["user"] == []


def test_deduplicate_keeps_the_largest_size_so_far():
    ids = {"item": [np.array([3], np.int32)]}
    pulled, _ = deduplicate(ids, {"item": 4}, quantum=4, at_least={"item": 8})
    np.testing.assert_array_equal(pulled.rows["item"], [0, 1, 3, 4, 5, 6, 7, 8])


@pytest.mark.parametrize("value", [-1, 10, 2**31 - 1, -(2**31)])
def test_deduplicate_names_an_id_out_of_range(value):
    ids = {"item": [np.array([3, value], np.int32)]}
    with pytest.raises(ValueError, match=rf"'item' must be in \[0, 10\), got {value}"):
        deduplicate(ids, {"item": 10})


def test_deduplicate_rejects_other_dtypes_and_tables():
    with pytest.raises(ValueError, match="'item' must be int32, got int64"):
        deduplicate({"item": [np.array([3])]}, {"item": 10})
    with pytest.raises(ValueError, match=r"\['shop'\]"):
        deduplicate({"shop": [np.array([3], np.int32)]}, {"item": 10})
    with pytest.raises(ValueError, match="quantum must be >= 2, got 1"):
        deduplicate({}, {"item": 10}, quantum=1)


@pytest.mark.parametrize("other", [4, 30, 2**31 - 1, -3])
def test_distinct(other):
    arrays = [
        np.array([[7, other], [5, 7]], np.int32),
        np.zeros((0, 2), np.int32),
        np.array(5, np.int32),
    ]
    values, positions = distinct(*arrays)
    np.testing.assert_array_equal(values, sorted([5, 7, other]))
    for array, at in zip(arrays, positions, strict=True):
        np.testing.assert_array_equal(values[at], array)
        assert at.dtype == values.dtype == np.int32
    assert distinct(np.zeros(0, np.int32))[0].shape == (0,)


@pytest.mark.parametrize("spread", [1, 1000])
def test_distinct_of_many(spread):
    array = spread * np.random.default_rng(0).integers(0, 900, (40, 50)).astype(np.int32)
    values, (positions,) = distinct(array)
    np.testing.assert_array_equal(values, np.unique(array))
    np.testing.assert_array_equal(values[positions], array)


def test_padded_sizes_are_few_and_waste_little():
    sizes = np.array([padded_size(n, 4) for n in range(1, 5000)])
    assert list(np.unique(sizes)[:13] // 4) == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20]
    wanted = np.arange(1, 5000)
    assert (sizes >= wanted).all() and (sizes[16:] <= 1.25 * wanted[16:]).all()
    assert len(np.unique(sizes)) < 45


# pull


def test_pull_reads_rows_and_zeros_elsewhere():
    tables = {"item": jnp.arange(10.0).reshape(5, 2)}  # row 0 is not zero here
    small = pull(tables, {"item": jnp.array([0, 1, 4, 5, 6])})
    np.testing.assert_array_equal(small["item"], [[0, 0], [2, 3], [8, 9], [0, 0], [0, 0]])


def test_gradients_of_pulled_rows_are_the_dense_gradients_of_those_rows():
    tables, ids = tables_of(), ids_of(1)
    pulled, names = deduplicate(ids, ROWS, quantum=64)
    merged = gradients_of(tables, pulled, names)
    dense = jax.jit(jax.grad(loss))(tables, ids)
    for name in tables:
        rows = pulled.rows[name][pulled.touched[name]]
        assert_close(merged[name][pulled.touched[name]], dense[name][rows])
        others = np.setdiff1d(np.arange(ROWS[name]), [*rows, 0])
        assert not np.asarray(dense[name][others]).any()


# push


def run(optimizer, batches):
    tables = tables_of()
    state = init(optimizer, tables)
    for t, ids in enumerate(batches):
        pulled, names = deduplicate(ids, ROWS, quantum=64)
        tables, state = step(optimizer, tables, state, pulled, names, jnp.int32(t))
    return tables, state


def dense_run(optimizer, batches):
    """The same training with whole tables and an optax optimiser; row 0 is held at zero."""
    tables = tables_of()
    state = optimizer.init(tables)

    @jax.jit
    def dense_step(tables, state, ids):
        gradients = jax.tree.map(lambda g: g.at[0].set(0.0), jax.grad(loss)(tables, ids))
        with jax.numpy_dtype_promotion("standard"):  # optax.adam mixes float32 and int32
            updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(tables, updates), state

    for ids in batches:
        tables, state = dense_step(tables, state, ids)
    return tables


def everything(seed):
    """Ids that name every row, in an order of their own."""
    random = np.random.default_rng(seed)
    return {
        "item": [random.permutation(np.arange(120, dtype=np.int32) % 40).reshape(20, 6)]
        + [random.integers(0, 40, 20, dtype=np.int32)],
        "user": [random.permutation(np.arange(20, dtype=np.int32) % 17)],
    }


# Several steps of a nonlinear loss: rounding of one step is fed into the next.
@pytest.mark.parametrize(
    "lazy, dense",
    [
        (sgd(), optax.sgd(0.05)),
        (adagrad(), optax.adagrad(0.05)),
        (
            adagrad(initial_accumulator=0.0, epsilon=1e-3),
            optax.adagrad(0.05, initial_accumulator_value=0.0, eps=1e-3),
        ),
    ],
)
def test_equals_the_dense_optimiser_on_any_ids(lazy, dense):
    batches = [ids_of(seed) for seed in range(5)]
    assert_close(run(lazy, batches)[0], dense_run(dense, batches), ulps=8)


def test_lazy_adam_equals_adam_where_every_row_is_touched():
    batches = [everything(seed) for seed in range(5)]
    lazy, _ = run(lazy_adam(), batches)
    dense = dense_run(optax.adam(0.05), batches)
    # Adam divides tiny gradients by themselves, which magnifies their rounding.
    assert_close(lazy, dense, ulps=64)


def test_lazy_adam_counts_all_steps_and_leaves_moments_alone():
    optimizer = lazy_adam(b1=0.8, b2=0.9, epsilon=1e-6)
    tables = {"item": jnp.full((4, 1), 2.0)}
    state = init(optimizer, tables)
    expected, m, v = 2.0, 0.0, 0.0
    for t, gradient in [(0, 3.0), (4, -1.0)]:  # row 3 is in the batches of steps 0 and 4
        pulled, _ = deduplicate({"item": [np.array([3], np.int32)]}, {"item": 4}, quantum=4)
        tables, state = jit_push(
            optimizer,
            tables,
            state,
            pulled,
            {"item": jnp.full((4, 1), gradient)},
            learning_rate=0.1,
            step=t,
        )
        m = 0.8 * m + 0.2 * gradient
        v = 0.9 * v + 0.1 * gradient**2
        expected -= 0.1 * (m / (1 - 0.8 ** (t + 1))) / ((v / (1 - 0.9 ** (t + 1))) ** 0.5 + 1e-6)
    assert_close(tables["item"], np.array([[2.0], [2.0], [2.0], [expected]]))
    assert_close(state["item"]["m"][3], np.array([m]))
    assert_close(state["item"]["v"][3], np.array([v]))


def test_row_wise_adagrad_against_a_loop():
    optimizer = row_wise_adagrad(initial_accumulator=0.01, epsilon=1e-4)
    tables = tables_of()
    state = init(optimizer, tables)
    assert state["item"]["accumulator"].shape == (40,)
    expected = {name: np.asarray(table, np.float64) for name, table in tables.items()}
    sums = {name: np.full(ROWS[name], 0.01) for name in ROWS}
    for t in range(4):
        ids = ids_of(t)
        pulled, names = deduplicate(ids, ROWS, quantum=64)
        gradients = gradients_of(tables, pulled, names)
        for name in ROWS:
            for position, row in enumerate(pulled.rows[name]):
                if row in named(ids)[name]:
                    g = np.asarray(gradients[name][position], np.float64)
                    sums[name][row] += np.mean(g**2)
                    expected[name][row] -= 0.05 * g / (np.sqrt(sums[name][row]) + 1e-4)
        tables, state = step(optimizer, tables, state, pulled, names, jnp.int32(t))
    assert_close(tables, expected, ulps=8)
    assert_close({name: state[name]["accumulator"] for name in ROWS}, sums, ulps=8)


def pushes(optimizer, start, gradients, rates):
    """The table and state after one push per gradient, each (rows, d) and for every row but 0."""
    tables = {"item": jnp.asarray(start, jnp.float32)}
    state = init(optimizer, tables)
    rows = np.arange(len(start), dtype=np.int32)
    pulled, _ = deduplicate({"item": [rows]}, {"item": len(rows)}, quantum=len(rows))
    for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True)):
        gradient = {"item": jnp.asarray(gradient, jnp.float32)}
        tables, state = jit_push(
            optimizer, tables, state, pulled, gradient, learning_rate=rate, step=t
        )
    return np.asarray(tables["item"]), state["item"]


# Rows of a few gradients, at every scale; the first ones small, so that weights wake up late.
GRADIENTS = np.random.default_rng(0).normal(size=(12, 6, 3)) * np.logspace(-2, 0, 12)[:, None, None]


@pytest.mark.parametrize(
    "beta, l1, l2", [(1.0, 0.0, 0.0), (1.0, 0.3, 0.0), (0.5, 0.3, 2.0), (2.0, 100.0, 0.0)]
)
def test_ftrl_is_algorithm_1_weight_by_weight(beta, l1, l2):
    alpha, number = 0.3, lambda x: float(np.float32(x))
    optimizer = ftrl(beta=beta, l1=l1, l2=l2)
    table, state = pushes(optimizer, np.zeros((6, 3)), GRADIENTS, [alpha] * 12)
    expected = {"w": np.zeros((6, 3)), "z": np.zeros((6, 3)), "n": np.zeros((6, 3))}
    for row, column in np.ndindex(6, 3):
        w = z = n = 0.0
        for g in GRADIENTS[:, row, column] if row else []:
            s = (np.sqrt(n + number(g) ** 2) - np.sqrt(n)) / alpha
            z += number(g) - s * w
            n += number(g) ** 2
            w = 0.0
            if abs(z) > l1:
                w = -(z - np.sign(z) * l1) / ((beta + np.sqrt(n)) / alpha + l2)
        for name, value in (("w", w), ("z", z), ("n", n)):
            expected[name][row, column] = value
    np.testing.assert_array_equal(table == 0.0, expected["w"] == 0.0)
    assert_close(table, expected["w"], ulps=16)  # twelve steps, each rounding
    assert_close(state, {"n": expected["n"], "z": expected["z"]}, ulps=16)
    zeros = (table[1:] == 0.0).mean()
    assert {0.0: zeros == 0, 0.3: 0 < zeros < 0.9, 100.0: zeros == 1}[l1]


def test_ftrl_zeros_grow_with_l1():
    share = [
        (pushes(ftrl(l1=l1), np.zeros((6, 3)), GRADIENTS, [0.3] * 12)[0][1:] == 0).mean()
        for l1 in (0.0, 0.2, 0.5, 1.0, 2.0, 10.0)
    ]
    assert share == sorted(share) and share[0] == 0 and share[-1] == 1 and len(set(share)) > 3


def test_ftrl_with_a_falling_rate_from_anywhere_steps_by_the_rate_of_the_step():
    """w - g / ((beta + sqrt(n)) / rate + l2): nothing is forgotten, nothing drawn to zero."""
    rates = np.linspace(0.3, 0.01, 12, dtype=np.float32)
    start = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)
    table, _ = pushes(ftrl(beta=2.0, l2=3.0), start, GRADIENTS, rates)
    w, n = start.astype(np.float64), np.zeros((6, 3))
    for g, rate in zip(GRADIENTS.astype(np.float32), rates, strict=True):
        n += g**2
        w -= g / ((2.0 + np.sqrt(n)) / rate + 3.0)
    assert_close(table[1:], w[1:], ulps=16)
    # And with l1, weights at zero stay there when the rate falls.
    table, state = pushes(
        ftrl(l1=0.5), np.zeros((6, 3)), [*GRADIENTS, 0 * start], [0.3] * 12 + [1e-3]
    )
    before, _ = pushes(ftrl(l1=0.5), np.zeros((6, 3)), GRADIENTS, [0.3] * 12)
    assert_close(table, before.astype(np.float64))
    np.testing.assert_array_equal(table == 0.0, before == 0.0)
    assert (table[1:] == 0.0).any() and state["z"][1:].all()


@pytest.mark.parametrize("l1, l21", [(0.0, 0.0), (0.4, 0.0), (0.0, 2.5), (0.4, 2.5)])
def test_proximal_is_adagrad_then_two_shrinkages(l1, l21):
    start = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)
    optimizer = chain(adagrad(initial_accumulator=0.1, epsilon=1e-4), proximal(l1=l1, l21=l21))
    table, state = pushes(optimizer, start, GRADIENTS[:4], [0.2, 0.1, 0.2, 0.1])
    expected, sums = start.astype(np.float64), np.full((6, 3), 0.1)
    for g, rate in zip(GRADIENTS[:4].astype(np.float32), [0.2, 0.1, 0.2, 0.1], strict=True):
        for row in range(1, 6):
            sums[row] += g[row] ** 2
            w = expected[row] - rate * g[row] / np.sqrt(sums[row] + 1e-4)
            w = np.array([np.sign(x) * max(abs(x) - rate * l1, 0) for x in w])
            norm = np.linalg.norm(w)
            expected[row] = w * max(0, 1 - rate * l21 / norm) if norm else w
    assert_close(table, expected, ulps=8)
    assert_close(state["accumulator"], sums, ulps=8)
    zero = table[1:] == 0.0
    assert zero.any() == (l1 + l21 > 0)
    assert zero.all(axis=1).any() == (l21 > 0)  # whole rows


def test_settings_give_the_optimizer_its_penalties():
    start = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)
    for asked, expected in (
        ({}, lazy_adam()),
        ({"table_optimizer": "ftrl", "l1": 0.5}, ftrl(l1=0.5)),
        (
            {"table_optimizer": "proximal", "l1": 0.5, "l21": 2.0},
            chain(adagrad(), proximal(l1=0.5, l21=2.0)),
        ),
    ):
        given = pushes(Settings(**asked).row_optimizer(), start, GRADIENTS[:4], [0.1] * 4)
        jax.tree.map(
            np.testing.assert_array_equal, given, pushes(expected, start, GRADIENTS[:4], [0.1] * 4)
        )
    with pytest.raises(ValueError, match="chain: two optimisers have state of the same name"):
        chain(adagrad(), row_wise_adagrad()).init(jnp.zeros((2, 3)))
    for options, said in (
        ({"l1": 1.0}, "l1 must be 0 unless table_optimizer is ftrl or proximal, got 1.0"),
        ({"table_optimizer": "ftrl", "l21": 1.0}, "l21 must be 0 unless .* is proximal, got 1.0"),
        ({"table_optimizer": "ftrl", "l1": -1.0}, "l1 must be >= 0, got -1.0"),
    ):
        with pytest.raises(ValueError, match=said):
            Settings(**options)


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_rows_outside_the_batch_keep_their_bits(optimizer):
    tables, state = run(optimizer, [ids_of(seed) for seed in range(3)])
    ids = {  # the last item but not the one before it, not row 1, and no user at all
        "item": [np.array([[39, 5, 5, 0, 0, 7]] * 5, np.int32), np.full(5, 7, np.int32)],
        "user": [np.zeros(5, np.int32)],
    }
    pulled, names = deduplicate(ids, ROWS, quantum=64)
    after, after_state = step(optimizer, tables, state, pulled, names, jnp.int32(3))
    for name, touched in named(ids).items():
        before = [tables[name], *state[name].values()]
        for old, new in zip(before, [after[name], *after_state[name].values()], strict=True):
            others = np.setdiff1d(np.arange(ROWS[name]), touched)
            np.testing.assert_array_equal(np.asarray(old)[others], np.asarray(new)[others])
            changed = np.asarray(old)[touched] != np.asarray(new)[touched]
            assert all(row.any() for row in changed)
    assert not np.asarray(after["item"][0]).any()


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_fill_ids_change_nothing(optimizer):
    tables, ids = tables_of(), ids_of(3)
    state = init(optimizer, tables)
    results = []
    for quantum in (2, 64):
        pulled, names = deduplicate(ids, ROWS, quantum=quantum)
        gradients = gradients_of(tables, pulled, names)
        # Even if the untouched positions had gradients, they would go nowhere.
        gradients = {
            name: jnp.where(pulled.touched[name][:, None], g, 1e6) for name, g in gradients.items()
        }
        results.append(
            jit_push(optimizer, tables, state, pulled, gradients, learning_rate=0.05, step=0)
        )
    # Another length is vectorised in other places, where a product and a sum may round once.
    assert_close(*results, ulps=1)


def test_penalty_decays_each_row_by_its_share():
    tables = {"item": jnp.array([[0.0], [5.0], [6.0], [7.0], [8.0]])}
    pulled, _ = deduplicate({"item": [np.array([2, 4, 2], np.int32)]}, {"item": 5}, quantum=8)
    after, _ = jit_push(
        sgd(),
        tables,
        {"item": {}},
        pulled,
        {"item": jnp.full((8, 1), 3.0)},
        learning_rate=0.5,
        step=0,
        l2=0.1,
        occurrences={"item": jnp.array([9, 9, 4, 9, 0])},  # never counted is taken as once
    )
    assert_close(
        after["item"],
        np.array([[0], [5], [6 - 0.5 * (3 + 0.1 * 6 / 4)], [7], [8 - 0.5 * (3 + 0.1 * 8 / 1)]]),
    )


def test_push_leaves_tables_without_gradients_alone():
    tables = tables_of()
    pulled, _ = deduplicate(ids_of(0), ROWS)
    after, _ = push(sgd(), tables, init(sgd(), tables), pulled, {}, learning_rate=1.0, step=0)
    jax.tree.map(np.testing.assert_array_equal, after, tables)


def test_settings_are_checked():
    for wrong in (
        lambda: adagrad(epsilon=-1.0),
        lambda: row_wise_adagrad(epsilon=0.0),
        lambda: lazy_adam(b1=1.0),
        lambda: lazy_adam(epsilon=0.0),
        lambda: ftrl(beta=0.0),
        lambda: ftrl(l1=-1.0),
        lambda: adagrad(initial_accumulator=-1.0),
        lambda: proximal(l21=-1.0),
    ):
        with pytest.raises(ValueError, match="must be"):
            wrong()
    tables = tables_of()
    pulled, _ = deduplicate(ids_of(0), ROWS)
    push_nothing = functools.partial(
        push, sgd(), tables, init(sgd(), tables), pulled, {}, learning_rate=1.0, step=0
    )
    with pytest.raises(ValueError, match="l2 = 0.1 needs occurrences"):
        push_nothing(l2=0.1)
    with pytest.raises(ValueError, match="l2 must be >= 0, got -1.0"):
        push_nothing(l2=-1.0)


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_works_in_place(optimizer):
    """Donated tables are written where they lie; scratch memory does not know their size."""

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def in_place(tables, state, pulled, ids):
        gradients = jax.grad(lambda small: jnp.sum(small["item"][ids] ** 2))(
            pull(tables, pulled.rows)
        )
        return push(optimizer, tables, state, pulled, gradients, learning_rate=0.1, step=0)

    def memory(rows):
        pulled, names = deduplicate({"item": [np.arange(300, dtype=np.int32)]}, {"item": rows})
        tables = {"item": jnp.zeros((rows, 8))}
        state = init(optimizer, tables)
        compiled = in_place.lower(tables, state, pulled, names["item"][0]).compile()
        size = sum(array.nbytes for array in jax.tree.leaves((tables, state)))
        assert compiled.memory_analysis().alias_size_in_bytes == size
        return compiled.memory_analysis().temp_size_in_bytes

    assert memory(1_000_000) == memory(1_000) < 300_000


def test_pmap_equals_one_device():
    """Every replica holds the tables, sees its share of the requests, and pushes the mean."""
    optimizer, devices = lazy_adam(), jax.local_devices()[:2]
    batches = [ids_of(seed) for seed in range(3)]
    batches = [{n: [np.concatenate([x, x[:1]]) for x in a] for n, a in b.items()} for b in batches]

    @functools.partial(
        jax.pmap,
        axis_name="i",
        devices=devices,
        in_axes=(0, 0, None, 0, None),
        donate_argnums=(0, 1),
    )
    def parallel_step(tables, state, pulled, names, t):
        def global_loss(small):
            return jax.lax.psum(loss(small, names), "i")

        gradients = jax.lax.pmean(jax.grad(global_loss)(pull(tables, pulled.rows)), "i")
        return push(optimizer, tables, state, pulled, gradients, learning_rate=0.05, step=t)

    tables = tables_of()
    copies = lambda x: jnp.stack([x] * len(devices))
    tables, state = jax.tree.map(copies, (tables, init(optimizer, tables)))
    for t, ids in enumerate(batches):
        pulled, names = deduplicate(ids, ROWS, quantum=64)
        shares = jax.tree.map(lambda x: x.reshape(len(devices), -1, *x.shape[1:]), names)
        tables, state = parallel_step(tables, state, pulled, shares, jnp.int32(t))
    for table in tables.values():
        np.testing.assert_array_equal(table[0], table[1])
    alone, _ = run(optimizer, batches)
    assert_close(jax.tree.map(lambda x: x[0], tables), alone, ulps=32)
