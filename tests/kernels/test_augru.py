import functools
import typing

import jax
from jax import export
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from recjax.kernels.augru import Cell, Weights, api, augru, gru
from recjax.kernels.augru.cases import CASES, Case
from testing import assert_close

SMALL = {case.name: case for case in CASES if not case.bench}
RAGGED = SMALL["ragged"]
CELLS = typing.get_args(Cell)


# The definition, in float64 NumPy, one request and candidate at a time. Shares no code with the
# package. Runs on complex numbers too, for gradients by a complex step.


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def exact_step(h, x, a, weights, cell):
    width = len(h)
    x = a * x if cell == "aigru" else x
    blocks = lambda w: [w[..., i : i + width] for i in range(0, w.shape[-1], width)]
    names = ("r", "n") if cell == "agru" else ("u", "r", "n")
    w, u, b = (dict(zip(names, blocks(part), strict=True)) for part in weights)
    reset = sigmoid(x @ w["r"] + h @ u["r"] + b["r"])
    new = np.tanh(x @ w["n"] + reset * (h @ u["n"]) + b["n"])
    if cell == "agru":
        return (1 - a) * h + a * new
    update = sigmoid(x @ w["u"] + h @ u["u"] + b["u"])
    if cell == "augru":
        return (1 - a * update) * h + a * update * new
    if cell == "augru_release":  # their gate keeps, and attention scales what it keeps
        keep = (1 - a) * (1 - update)
        return keep * h + (1 - keep) * new
    return (1 - update) * h + update * new


def exact(states, attention, mask, weights, cell):
    dtype = np.result_type(states, attention, *weights)
    out = np.zeros((*attention.shape[:2], weights.recurrent.shape[0]), dtype)
    for b, c in np.ndindex(*attention.shape[:2]):
        for t in np.flatnonzero(mask[b]):
            out[b, c] = exact_step(out[b, c], states[b, t], attention[b, c, t], weights, cell)
    return out


def exact_gru(inputs, mask, weights):
    out = np.zeros((*mask.shape, weights.recurrent.shape[0]))
    for b in range(len(inputs)):
        h = np.zeros(weights.recurrent.shape[0])
        for t in range(mask.shape[1]):
            h = exact_step(h, inputs[b, t], 1.0, weights, "aigru") if mask[b, t] else h
            out[b, t] = h
    return out


def float64(states, attention, mask, weights):
    to = lambda x: np.asarray(x, np.float64)
    return to(states), to(attention), np.asarray(mask), Weights(*map(to, weights))


def exact_gradients(states, attention, mask, weights, g, cell):
    """Of sum(out * g), each entry by a complex step: f(x + ih).imag / h has no cancellation."""
    leaves = [states, attention, *weights]
    gradients = [np.zeros_like(leaf) for leaf in leaves]
    for n, leaf in enumerate(leaves):
        for i in np.ndindex(leaf.shape):
            moved = [x.astype(np.complex128) if k == n else x for k, x in enumerate(leaves)]
            moved[n][i] += 1e-30j
            out = exact(*moved[:2], mask, Weights(*moved[2:]), cell)
            gradients[n][i] = np.sum(out.imag / 1e-30 * g)
    return *gradients[:2], Weights(*gradients[2:])


def inputs(name, cell, dtype=jnp.float32):
    return SMALL[name].inputs(dtype, blocks=2 if cell == "agru" else 3)


@functools.partial(jax.jit, static_argnums=2)
def value_and_gradients(args, g, cell):
    states, attention, mask, weights = args
    f = lambda s, a, w: augru(s, a, mask, w, cell=cell)
    out, pull = jax.vjp(f, states, attention, weights)
    return out, pull(g.astype(out.dtype))


def cotangent(args):
    shape = (*args[1].shape[:2], args[3].recurrent.shape[0])
    return jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("cell", CELLS)
def test_values_and_gradients_match_definition(cell):
    args = inputs("ragged", cell)
    g = cotangent(args)
    out, gradients = value_and_gradients(args, g, cell)
    assert_close(out, exact(*float64(*args), cell))
    # Through five steps of gates: 16 units.
    expected = exact_gradients(*float64(*args), np.asarray(g, np.float64), cell)
    assert_close(gradients, expected, ulps=16)


@pytest.mark.parametrize("name", ["one_step", "no_history", "long"])
def test_other_shapes(name):
    args = inputs(name, "augru")
    out, gradients = value_and_gradients(args, cotangent(args), "augru")
    assert_close(out, exact(*float64(*args), "augru"), ulps=16)  # a chain of 100 steps
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_gru_gives_every_state():
    states, _, mask, weights = RAGGED.inputs()
    exact_inputs, _, exact_mask, exact_weights = float64(*RAGGED.inputs())
    got = jax.jit(gru)(states, mask, weights)
    assert_close(got, exact_gru(exact_inputs, exact_mask, exact_weights), ulps=8)
    for cell in ("augru", "aigru"):  # the last one is theirs where all attention is 1
        last = augru(states, jnp.ones((4, 2, 5)), mask, weights, cell=cell)
        assert_close(last[:, 0], np.asarray(got[:, -1], np.float64), ulps=8)


def test_without_attention_the_state_stays_except_in_the_release():
    """The paper's gate ignores what a candidate does not attend to (models: a = 0 gives h'_0)."""
    for cell in CELLS:
        states, attention, mask, weights = inputs("ragged", cell)
        out = augru(states, jnp.zeros_like(attention), mask, weights, cell=cell)
        assert out.any() == (cell in ("augru_release", "aigru"))
        # From the middle of the sequence on: what was there before stays.
        until = attention.at[:, :, 2:].set(0.0)
        now = augru(states, until, mask, weights, cell=cell)
        then = augru(states[:, :2], attention[:, :, :2], mask[:, :2], weights, cell=cell)
        assert bool((now == then).all()) == (cell in ("augru", "agru"))


@pytest.mark.parametrize("cell", ["augru_release", "aigru"])
@pytest.mark.parametrize("poison", [1e9, np.nan])
def test_what_masked_steps_hold_goes_nowhere(cell, poison):
    """In these two cells a = 0 alone would not save the state."""
    states, attention, mask, weights = inputs("ragged", cell)
    args = (states, attention, mask, weights)
    poisoned = (
        jnp.where(mask[..., None], states, poison),
        jnp.where(mask[:, None], attention, poison),
        mask,
        weights,
    )
    g = cotangent(args)
    clean, got = (value_and_gradients(x, g, cell) for x in (args, poisoned))
    assert all(map(np.array_equal, jax.tree.leaves(got), jax.tree.leaves(clean)))
    assert not np.asarray(got[1][0])[~np.asarray(mask)].any()
    assert not got[0][-1].any()  # the last request has no step at all
    every_state = jax.jit(gru)(poisoned[0], mask, weights)
    assert np.array_equal(every_state, jax.jit(gru)(states, mask, weights))


def test_padding_holes_and_its_side_do_not_matter():
    states, attention, mask, weights = RAGGED.inputs()
    expected = np.asarray(augru(states, attention, mask, weights), np.float64)
    wide = [np.pad(x, ((0, 0), (2, 3), (0, 0))) for x in (states, attention.transpose(0, 2, 1))]
    real = np.pad(mask, ((0, 0), (2, 3)))
    wide, at = [jnp.asarray(x) for x in wide], jnp.asarray(real)
    assert_close(augru(wide[0], wide[1].transpose(0, 2, 1), at, weights), expected)
    order = np.argsort(~real, axis=1, kind="stable")  # holes closed
    assert not (np.take_along_axis(real, order, axis=1) == real).all()
    packed = [jnp.take_along_axis(x, jnp.asarray(order)[..., None], axis=1) for x in wide]
    at = jnp.take_along_axis(at, jnp.asarray(order), axis=1)
    assert_close(augru(packed[0], packed[1].transpose(0, 2, 1), at, weights), expected)


def test_candidates_at_once_equal_one_by_one():
    states, attention, mask, weights = RAGGED.inputs()
    at_once = augru(states, attention, mask, weights)
    for c in range(2):
        alone = augru(states, attention[:, c : c + 1], mask, weights)
        assert_close(alone, np.asarray(at_once[:, c : c + 1], np.float64))


def test_bfloat16_computes_in_float32():
    args = RAGGED.inputs(jnp.bfloat16)
    out = augru(*args)
    assert out.dtype == jnp.bfloat16
    # One rounding at the end: half a unit. Sums in bfloat16 would be off by several.
    assert_close(out, exact(*float64(*args), "augru"), ulps=0.51)


def test_export_with_a_symbolic_batch():
    args = RAGGED.inputs()
    size = export.symbolic_shape("batch")[0]
    shapes = [jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype) for x in args[:3]]
    f = jax.jit(lambda s, a, m: augru(s, a, m, args[3]))
    exported = export.export(f)(*shapes)
    for rows in (1, 4):
        part = [x[:rows] for x in args[:3]]
        assert_close(exported.call(*part), np.asarray(f(*part), np.float64))


def test_memory_holds_the_states_and_no_more():
    """A step is computed again in the backward pass: only its state is kept."""

    def temporary(length):
        case = Case(name="memory", batch=64, candidates=2, length=length, width=8, units=8)
        states, attention, mask, weights = case.inputs()
        loss = lambda s, a, w: jnp.sum(jnp.square(augru(s, a, mask, w)))
        f = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
        analysis = f.lower(states, attention, weights).compile().memory_analysis()
        return analysis.temp_size_in_bytes

    one_step = 4 * 64 * 2 * 8  # of (B, C, H)
    # The states, the inputs laid out by time (half of them) and their gradient, the masks. Gates
    # that are kept would be five more.
    assert (temporary(60) - temporary(20)) / 40 < 3.5 * one_step


@pytest.fixture
def unchecked_types():
    """In tests jaxtyping would refuse these calls first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cell": "lstm"}, r"cell must be one of .*, got 'lstm'"),
        ({"cell": "agru"}, r"weights.input must have shape \(3, 8\), got \(3, 12\)"),
        ({"implementation": "cuda"}, r"implementation must be None or one of .*, got 'cuda'"),
        ({"states": np.zeros((4, 5), "f")}, r"states must have 3 axes, got shape \(4, 5\)"),
        ({"states": np.zeros((4, 5, 3), "f2")}, "states must be float32 or bfloat16, got float16"),
        (
            {"attention": np.zeros((4, 2, 6), "f")},
            r"attention must have shape \(4, 2, 5\), got \(4, 2, 6\)",
        ),
        ({"mask": np.zeros((4, 5), "f")}, "mask must be bool, got float32"),
        ({"bias": np.zeros(9, "f")}, r"weights.bias must have shape \(12,\), got \(9,\)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_refusals_name_argument_rule_and_value(unchecked_types, change, message):
    states, attention, mask, weights = RAGGED.inputs()
    if "bias" in change:
        weights = weights._replace(bias=change.pop("bias"))
    arguments = {"states": states, "attention": attention, "mask": mask, "weights": weights}
    with pytest.raises(ValueError, match=message):
        augru(**(arguments | change))


def test_implementation_is_forced_by_name():
    states, attention, mask, weights = RAGGED.inputs()
    for name, entry in api.IMPLEMENTATIONS.items():
        got = augru(states, attention, mask, weights, implementation=name)
        assert np.array_equal(got, entry.fn(states, attention, mask, weights, cell="augru"))
    for name, entry in api.GRU_IMPLEMENTATIONS.items():
        got = gru(states, mask, weights, implementation=name)
        assert np.array_equal(got, entry.fn(states, mask, weights))
