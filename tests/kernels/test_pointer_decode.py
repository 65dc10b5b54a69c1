"""Pointer decoding against a loop in NumPy float64."""

import jax
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from recjax.kernels.pointer_decode import (
    Direction,
    Quota,
    Request,
    Rules,
    Scatter,
    Weights,
    api,
    noise,
    pallas_tpu,
    pointer_decode,
    pointer_log_probability,
    reference,
)
from recjax.kernels.pointer_decode.cases import CASES, Case
from testing import assert_close

SMALL = {case.name: case for case in CASES if not case.bench}
FEW = SMALL["few"]


def in_float64(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def exact_list(request, w, mask, noise, slots, temperature=1.0, context="softmax", forced=None):
    """One list of one request: (order, log probabilities), the equations slot by slot."""
    units, g = len(request.state), np.zeros(3 * len(request.state))
    h, free, order, logp = request.state, mask.copy(), [], []
    for slot in range(slots):
        x, y = g + w.bias, h @ w.recurrent
        u, r = sigmoid(x[:units] + y[:units]), sigmoid(x[units:-units] + y[units:-units])
        h = (1 - u) * h + u * np.tanh(x[-units:] + r * y[-units:])
        score = np.stack(
            [
                np.tanh(keys + (h @ query + bias)) @ v
                for keys, query, bias, v in zip(
                    request.keys, w.query, w.query_bias, w.score, strict=True
                )
            ]
        )
        logit = np.where(free, score.mean(axis=0) / temperature, -np.inf)
        chosen = -1
        if forced is not None:
            chosen = forced[slot]
        elif free.any():
            chosen = int(np.argmax(logit + (0 if noise is None else noise[slot])))
        g = np.zeros(3 * units)
        if mask.any():
            weight = score
            if context == "softmax":
                weight = np.exp(np.where(mask, score, -np.inf))
                weight = weight / weight.sum(axis=1, keepdims=True)
            g = np.einsum("fn,fng->g", np.where(mask, weight, 0), request.context)
        if chosen >= 0:
            logp.append(logit[chosen] - np.log(np.exp(logit[free]).sum()))
            g = g + request.rows[chosen]
            free[chosen] = False
        else:
            logp.append(0.0)
        order.append(chosen)
    return order, logp


def exact(case, inputs, **options):
    request, weights, mask, direction, steps, noise = in_float64(inputs)
    shape = (case.batch, case.lanes, case.slots)
    order, logp = np.zeros(shape, int), np.zeros(shape)
    for r, s in np.ndindex(shape[:2]):
        along = lambda x, d, r=r, s=s: x + steps[s] * d[r]
        lane = Request(*(along(x[r], d) for x, d in zip(request, direction.request, strict=True)))
        own = weights
        if direction.weights is not None:
            own = Weights(*(along(x, d) for x, d in zip(weights, direction.weights, strict=True)))
        found = exact_list(lane, own, np.asarray(inputs[2])[r], noise[r, s], case.slots, **options)
        order[r, s], logp[r, s] = found
    return order, logp


def decode(case, inputs, **options):
    def run(request, weights, mask, direction, steps, noise):
        more = {"direction": direction, "steps": steps, "noise": noise}
        return pointer_decode(request, weights, mask, slots=case.slots, **more, **options)

    return jax.jit(run)(*inputs)


@pytest.mark.parametrize("context", ["softmax", "raw"])
@pytest.mark.parametrize("case", SMALL)
def test_it_is_its_equations(case, context):
    case = SMALL[case]
    inputs = case.inputs()
    found = decode(case, inputs, context=context, temperature=0.7)
    order, logp = exact(case, inputs, context=context, temperature=0.7)
    np.testing.assert_array_equal(found.order, order)
    assert_close(found.log_probability, logp, ulps=16)  # Ten steps of a recurrence.
    assert [x.dtype for x in found] == [jnp.int32, jnp.float32]


def test_every_list_is_a_choice_without_repetition():
    case = SMALL["page"]
    inputs = case.inputs()
    order, mask = np.asarray(decode(case, inputs).order), np.asarray(inputs[2])
    for r, s in np.ndindex(order.shape[:2]):
        chosen = order[r, s][order[r, s] >= 0]
        assert len(set(chosen)) == len(chosen) == min(case.slots, mask[r].sum())
        assert mask[r][chosen].all()
    assert (order[-1] == -1).all()  # It has no candidate.


def test_draws_follow_the_softmax():
    """Four candidates, two slots: the 12 orders are drawn as often as their probabilities say."""
    case = Case(name="", batch=1, candidates=4, slots=2, lanes=1, width=8, units=4)
    request, weights, _, _, _, _ = case.inputs()
    mask, lanes = jnp.ones((1, 4), bool), 40_000
    noise = jax.random.gumbel(jax.random.key(0), (1, lanes, 2, 4))
    order = pointer_decode(
        request, weights, mask, slots=2, steps=jnp.zeros(lanes), noise=noise
    ).order[0]
    every = jnp.array([[[i, j] for i in range(4) for j in range(4) if i != j]], jnp.int32)
    share = jnp.exp(pointer_log_probability(request, weights, mask, every).sum(axis=-1))[0]
    assert_close(share.sum(), 1.0)
    counts = (np.asarray(order)[:, None] == np.asarray(every[0])).all(axis=-1).sum(axis=0)
    expected = lanes * np.asarray(share)
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert chi_squared < 31.3  # 0.1 % of 11 degrees of freedom


def moved_weights(case, seed=4):
    """A direction of the weights for every request."""
    rng = np.random.default_rng(seed)
    _, weights, *_ = case.inputs()
    drawn = lambda x: jnp.asarray(rng.normal(0, 0.3, (case.batch, *x.shape)), jnp.float32)
    return jax.tree.map(drawn, weights)


@pytest.mark.parametrize("case", SMALL)
def test_weights_move_too(case):
    case = SMALL[case]
    request, weights, mask, direction, steps, noise = case.inputs()
    direction = direction._replace(weights=moved_weights(case))
    inputs = (request, weights, mask, direction, 5 * steps, noise)
    found = decode(case, inputs)
    order, logp = exact(case, inputs)
    np.testing.assert_array_equal(found.order, order)
    assert_close(found.log_probability, logp, ulps=16)


def test_each_request_may_have_weights_of_its_own():
    request, weights, mask, direction, steps, noise = FEW.inputs()
    own = jax.tree.map(lambda x, d: x[None] + d, weights, moved_weights(FEW))
    found = decode(FEW, (request, own, mask, direction, steps, noise))
    for r in range(FEW.batch):
        one = jax.tree.map(lambda x, r=r: x[r : r + 1], (request, mask, direction, noise))
        mine = jax.tree.map(lambda x, r=r: x[r], own)
        alone = decode(FEW, (one[0], mine, one[1], one[2], steps, one[3]))
        np.testing.assert_array_equal(alone.order[0], found.order[r])
        assert_close(alone.log_probability[0], np.asarray(found.log_probability[r]))


def seeded(seeds, lanes=2, slots=6, count=5):
    each = [noise.gumbel(seeds, lanes, jnp.array(t), slots, count) for t in range(slots)]
    return np.stack(each, axis=2)


def test_noise_of_a_seed_is_that_noise():
    request, weights, mask, direction, steps, _ = FEW.inputs()
    seeds = jnp.array([1, 2, 2**32 - 1], jnp.uint32)
    array = jnp.asarray(seeded(seeds, FEW.lanes, FEW.slots, FEW.candidates))
    for a, b in zip(
        decode(FEW, (request, weights, mask, direction, steps, seeds)),
        decode(FEW, (request, weights, mask, direction, steps, array)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_noise_of_seeds_is_gumbel():
    """Its distribution, and that neighbours in any of the four axes have nothing in common."""
    drawn = seeded(jnp.arange(50, dtype=jnp.uint32), lanes=16, slots=10, count=20)
    uniform = np.exp(-np.exp(-drawn.astype(np.float64)))
    counts = np.histogram(uniform, bins=64, range=(0, 1))[0]
    assert ((counts - uniform.size / 64) ** 2 / (uniform.size / 64)).sum() < 103.4  # 0.1 % of 63
    for axis in range(4):
        one, next_one = (
            np.take(uniform, range(k, uniform.shape[axis] - 1 + k), axis) for k in (0, 1)
        )
        correlation = np.corrcoef(one.ravel(), next_one.ravel())[0, 1]
        assert abs(correlation) < 3.3 / np.sqrt(one.size)


def ruled(rules, slots=6, lanes=50, batch=3, candidates=8):
    """Drawn lists under rules, and under none."""
    case = Case(
        name="", batch=batch, candidates=candidates, slots=slots, lanes=lanes, width=4, units=3
    )
    request, weights, _, _, _, noise = case.inputs()
    mask = jnp.ones((batch, candidates), bool)
    options = {"slots": slots, "steps": jnp.zeros(lanes), "noise": noise}
    found = pointer_decode(request, weights, mask, rules=rules, **options)
    again = pointer_log_probability(request, weights, mask, found.order, rules=rules)
    assert_close(again, np.asarray(found.log_probability))
    free = pointer_decode(request, weights, mask, **options)
    return np.asarray(found.order), np.asarray(free.order)


KIND = np.array([0, 0, 0, 1, 1, 2, 2, 2])


@pytest.mark.parametrize("window, most", [(2, 1), (3, 1), (3, 2), (6, 2)])
def test_one_kind_is_scattered(window, most):
    same = jnp.asarray(np.broadcast_to(KIND[:, None] == KIND, (3, 8, 8)))
    found, free = ruled(Rules(scatters=(Scatter(same, window, most),)))

    def broken(order):
        kind = np.where(order >= 0, KIND[order], -1)
        views = np.lib.stride_tricks.sliding_window_view(kind, window, axis=-1)
        return max(int((views == k).sum(axis=-1).max()) for k in range(3)) > most

    assert not broken(found)
    assert broken(free)


def test_slots_stay_empty_rather_than_break_a_rule():
    same = jnp.ones((3, 8, 8), bool)
    found, _ = ruled(Rules(scatters=(Scatter(same, 3, 1),)))
    np.testing.assert_array_equal(found >= 0, np.broadcast_to(np.arange(6) % 3 == 0, found.shape))


@pytest.mark.parametrize("least, most", [(0, 1), (2, 2), (3, 3), (0, 0)])
def test_quotas_are_kept(least, most):
    member = jnp.asarray(np.broadcast_to(KIND == 0, (3, 8)))
    found, free = ruled(Rules(quotas=(Quota(member, least, most),)))
    used = lambda order: ((order >= 0) & (KIND[order] == 0)).sum(axis=-1)
    assert (used(found) >= least).all() and (used(found) <= most).all()
    assert not ((used(free) >= least) & (used(free) <= most)).all()


def test_a_quota_takes_what_there_is():
    member = jnp.asarray(np.broadcast_to(KIND == 1, (3, 8)))  # Two of them, four wanted.
    found, _ = ruled(Rules(quotas=(Quota(member, 4, 4),)))
    assert (found >= 0).all()
    assert ((KIND[found] == 1).sum(axis=-1) == 2).all()


def test_two_quotas_are_kept_together():
    member = lambda kind: jnp.asarray(np.broadcast_to(KIND == kind, (3, 8)))
    rules = Rules(quotas=(Quota(member(0), 2, 4), Quota(member(1), 2, 4)))
    found, _ = ruled(rules, slots=4)
    assert (found >= 0).all()
    for kind in (0, 1):
        assert ((KIND[found] == kind).sum(axis=-1) == 2).all()


def test_broken_numbers_never_let_in_what_may_not_be():
    """Scores of NaN or infinity come last; no candidate stands twice, no masked one at all."""
    request, weights, _, _, _, _ = FEW.inputs()
    mask = jnp.array([[False, True, True, True, True]] * 3)
    broken = request.keys.at[:, :, 2].set(jnp.nan).at[:, :, 4].set(jnp.inf)
    for implementation in (None, "reference"):
        order = pointer_decode(
            request._replace(keys=broken), weights, mask, slots=4, implementation=implementation
        ).order
        assert (np.sort(order[:, 0], axis=1) == [1, 2, 3, 4]).all()
    everything = request._replace(keys=jnp.full_like(request.keys, jnp.nan))
    assert pointer_decode(everything, weights, mask, slots=4).order[0, 0].tolist() == [1, 2, 3, 4]


def test_noise_does_not_depend_on_padding():
    seeds = jnp.array([5, 6], jnp.uint32)
    np.testing.assert_array_equal(seeded(seeds, count=5), seeded(seeds, count=9)[..., :5])


def test_noise_is_finite_whatever_the_bits():
    """The hash runs over all counters; 2^22 of them hold the ends that matter."""
    counters = jnp.arange(2**22, dtype=jnp.uint32)
    drawn = noise.of_counter(jnp.uint32(0), counters)
    assert jnp.isfinite(drawn).all()
    top = (jnp.uint32(2**23 - 1).astype(jnp.float32) + 0.5) * jnp.float32(2**-23)
    assert top < 1 and jnp.isfinite(-jnp.log(-jnp.log(top)))


def test_a_step_of_zero_is_no_step():
    inputs = FEW.inputs()
    request, weights, mask, direction, _, _ = inputs
    one = pointer_decode(request, weights, mask, slots=3)
    zero = pointer_decode(
        request, weights, mask, slots=3, direction=direction, steps=jnp.array([0.3, 0.0])
    )
    np.testing.assert_array_equal(one.order[:, 0], zero.order[:, 1])
    np.testing.assert_array_equal(one.log_probability[:, 0], zero.log_probability[:, 1])
    assert not np.array_equal(zero.log_probability[:, 0], zero.log_probability[:, 1])


def test_a_request_does_not_see_its_batch_mates():
    inputs = FEW.inputs()
    both = decode(FEW, inputs)
    take = lambda x: x[:1] if x.ndim > 1 and x.shape[0] == FEW.batch else x
    # The mean of the heads, say, is not computed in the same order for another batch size.
    alone = decode(
        FEW, (*jax.tree.map(take, inputs[:1]), inputs[1], *jax.tree.map(take, inputs[2:]))
    )
    np.testing.assert_array_equal(alone.order, both.order[:1])
    assert_close(alone.log_probability, both.log_probability[:1])


def test_what_masked_candidates_hold_does_not_matter():
    request, weights, mask, direction, steps, noise = FEW.inputs()

    def spoilt(x):
        real = mask[:, None, :, None] if x.ndim == 4 else mask[:, :, None]
        return x if x.ndim == 2 else jnp.where(real, x, jnp.nan)

    clean = decode(FEW, (request, weights, mask, direction, steps, noise))
    worse = jax.tree.map(spoilt, request), weights, mask, jax.tree.map(spoilt, direction)
    found = decode(FEW, (*worse, steps, jnp.where(mask[:, None, None], noise, jnp.nan)))
    for a, b in zip(clean, found, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("case", SMALL)
def test_given_lists_have_the_probability_they_were_drawn_with(case):
    case = SMALL[case]
    request, weights, mask, _, _, drawn_by = case.inputs()
    drawn = decode(case, (request, weights, mask, None, jnp.zeros(case.lanes), drawn_by))
    given = jax.jit(pointer_log_probability)(request, weights, mask, drawn.order)
    assert_close(given, np.asarray(drawn.log_probability))


def test_lists_that_cannot_be_have_no_probability():
    request, weights, _, _, _, _ = FEW.inputs()
    mask = jnp.array([[True, True, True, False, True]] * 3)
    order = jnp.array([[[0, 0, 1]], [[3, 1, 2]], [[4, -1, 1]]], jnp.int32)
    unknown = pointer_log_probability(request, weights, mask, order.at[2, 0, 2].set(9))
    assert unknown[2, 0, 2] == -jnp.inf
    found = pointer_log_probability(request, weights, mask, order)[:, 0]
    np.testing.assert_array_equal(
        jnp.isfinite(found), [[True, False, True], [False, True, True], [True, True, True]]
    )
    assert found[2, 1] == 0


def test_gradients_are_those_of_float64():
    """By central differences of the exact equations, along a random direction."""
    request, weights, mask, _, _, _ = FEW.inputs()
    order = decode(FEW, (request, weights, mask, None, jnp.zeros(1), None)).order
    score = lambda request, weights: pointer_log_probability(request, weights, mask, order).sum()
    gradient = jax.jit(jax.grad(score, argnums=(0, 1)))(request, weights)
    for leaf in jax.tree.leaves(gradient):
        assert jnp.isfinite(leaf).all() and jnp.abs(leaf).max() > 0
    rng = np.random.default_rng(3)
    exact_inputs = in_float64((request, weights))
    way = jax.tree.map(lambda x: rng.normal(size=x.shape), exact_inputs)

    def exact_score(at):
        request, weights = jax.tree.map(lambda x, d: x + at * d, exact_inputs, way)
        total = 0.0
        for r in range(FEW.batch):
            one = Request(*(x[r] for x in request))
            chosen = np.asarray(order)[r, 0]
            total += sum(exact_list(one, weights, np.asarray(mask)[r], None, 3, forced=chosen)[1])
        return total

    step = 1e-4
    slope = (exact_score(step) - exact_score(-step)) / (2 * step)
    mine = sum(
        (np.asarray(g, np.float64) * d).sum()
        for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(way), strict=True)
    )
    np.testing.assert_allclose(mine, slope, rtol=1e-4)


def test_gradients_are_finite_without_candidates():
    request, weights, mask, _, _, _ = FEW.inputs()
    order = pointer_decode(request, weights, mask, slots=3).order
    assert (order[-1] == -1).all()
    score = lambda request: pointer_log_probability(request, weights, mask, order).sum()
    for leaf in jax.grad(score)(request):
        assert jnp.isfinite(leaf).all()
        assert not leaf[-1].any()


@pytest.mark.parametrize("noise", ["given", "seeded", "none"])
def test_gradients_are_those_of_the_definition(noise):
    """Whatever kernels there are: none has a derivative, and what was chosen has none either."""
    request, weights, mask, direction, steps, given = FEW.inputs()
    if noise == "seeded":
        given = jnp.arange(3, dtype=jnp.uint32)
    elif noise == "none":
        direction, given = None, None

    def gradients(implementation):
        def score(request, weights, steps):
            found = pointer_decode(
                request,
                weights,
                mask,
                slots=3,
                direction=direction,
                steps=steps,
                noise=given,
                implementation=implementation,
            )
            return found.log_probability.sum()

        return jax.jit(jax.grad(score, argnums=(0, 1, 2)))(request, weights, steps)

    expected = gradients("reference")
    assert all(jnp.abs(x).max() > 0 for x in jax.tree.leaves(expected)[:-1])
    assert_close(gradients(None), expected)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"rules": Rules()}, "rules are for plain JAX"),
        ({"weights": jax.tree.map(lambda x: x[None].repeat(3, 0), FEW.inputs()[1])}, "of all requ"),
        ({"direction": Direction(FEW.inputs()[0], moved_weights(FEW))}, "weights must not move"),
    ],
)
def test_kernels_say_what_they_leave_to_plain_jax(change, said):
    request, weights, mask, _, _, _ = FEW.inputs()
    arguments = {"weights": weights, **change}
    run = lambda name: pointer_decode(request, mask=mask, slots=3, implementation=name, **arguments)
    with pytest.raises(NotImplementedError, match=said):
        run("pallas_tpu")
    np.testing.assert_array_equal(run(None).order, run("reference").order)


@pytest.mark.parametrize(
    "sizes, said",
    [
        ({"candidates": 129}, "candidates must be <= 128, got 129"),
        ({"units": 129}, "units must be <= 128, got 129"),
        ({"width": 513}, "width must be <= 512, got 513"),
    ],
)
def test_kernels_say_what_is_too_large(sizes, said):
    sizes = {"batch": 1, "candidates": 2, "slots": 1, "lanes": 1, "width": 4, "units": 2, **sizes}
    case = Case(name="", **sizes)
    with pytest.raises(NotImplementedError, match=said):
        decode(case, case.inputs(), implementation="pallas_tpu")


def test_a_forced_kernel_never_falls_back():
    with pytest.raises(NotImplementedError, match="triton"):  # Not installed, or no GPU.
        decode(FEW, FEW.inputs(), implementation="triton")
    with pytest.raises(ValueError, match="interpret mode"):  # There is no TPU to run it on.
        decode(FEW, FEW.inputs(), implementation="pallas_tpu")


# The kernel for TPUs, interpreted: memory starts as NaN, and races are found.


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "case, noise, context",
    [
        ("one", "given", "softmax"),
        ("few", "none", "raw"),
        ("more_slots", "seeded", "softmax"),
        ("lanes", "given", "raw"),
        ("lanes", "seeded", "softmax"),
    ],
)
def test_the_kernel_for_tpus(case, noise, context, dtype):
    # More lanes than a program owns. It is interpreted slot by slot: few are enough.
    lanes = Case(name="lanes", batch=3, candidates=20, slots=3, lanes=9, width=24, units=16)
    case = {**SMALL, "lanes": lanes}[case]
    request, weights, mask, direction, steps, given = case.inputs(dtype)
    if noise == "seeded":
        given = jnp.arange(case.batch, dtype=jnp.uint32)
    elif noise == "none":
        direction, given = None, None
    options = {"slots": case.slots, "temperature": 0.7, "context": context}
    args = (mask, direction, steps, given, None)
    expected = reference.pointer_decode(request, weights, *args, **options)
    spoilt = request._replace(rows=jnp.where(mask[..., None], request.rows, jnp.nan))
    interpret = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
    got = pallas_tpu.pointer_decode(spoilt, weights, *args, **options, interpret=interpret)
    np.testing.assert_array_equal(got.order, expected.order)
    assert_close(got.log_probability, expected.log_probability, ulps=16)


@pytest.fixture
def no_type_checks():
    """In tests jaxtyping would refuse these calls first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("no_type_checks")
@pytest.mark.parametrize(
    "change, said",
    [
        ({"slots": 0}, "slots must be >= 1, got 0"),
        ({"temperature": 0.0}, "temperature must be > 0 and finite, got 0.0"),
        ({"noise": jnp.zeros((3, 1, 3, 4))}, r"noise must have shape \(3, 1, 3, 5\)"),
        ({"noise": jnp.zeros(3)}, "noise must be uint32, got float32"),
        (
            {"rules": Rules(quotas=(Quota(jnp.zeros((3, 4), bool), 0, 1),))},
            r"rules.quotas\[0\].member must have shape \(3, 5\)",
        ),
        ({"steps": jnp.zeros((2, 2))}, r"steps must have 1 axes, got shape \(2, 2\)"),
        ({"implementation": "cudnn"}, "implementation must be None or one of"),
    ],
)
def test_wrong_arguments_are_named(change, said):
    request, weights, mask, _, _, _ = FEW.inputs()
    with pytest.raises(ValueError, match=said):
        api.pointer_decode(request, weights, mask, **{"slots": 3, **change})


@pytest.mark.usefixtures("no_type_checks")
def test_wrong_shapes_are_named():
    request, weights, mask, _, _, _ = FEW.inputs()
    rows = request._replace(rows=request.rows[..., :-1])
    direction = Direction(request, jax.tree.map(lambda x: x[None], weights))
    with pytest.raises(ValueError, match=r"direction.weights.query must have shape \(3, 2, 4, 8"):
        api.pointer_decode(request, weights, mask, slots=3, direction=direction)
    with pytest.raises(ValueError, match=r"request.rows must have shape \(3, 5, 12\)"):
        api.pointer_decode(rows, weights, mask, slots=3)
    whole = jnp.zeros(mask.shape, jnp.int32)
    with pytest.raises(ValueError, match="mask must be bool, got int32"):
        api.pointer_decode(request, weights, whole, slots=3)
    order = jnp.zeros((3, 1, 3), jnp.float32)
    with pytest.raises(ValueError, match="order must be int32, got float32"):
        api.pointer_log_probability(request, weights, mask, order)
