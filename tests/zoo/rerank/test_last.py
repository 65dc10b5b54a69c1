"""LAST: what it may change, what it must not, and what happens where there is nothing to do."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax.zoo.rerank import generator, last, rewards
from recjax.zoo.rerank.last import deltas, exploration
from reranking import CONFIG, JUDGES, SCHEMA, evaluators_of, generator_of, requests
from testing import assert_close

BATCH = requests()


SEEDS = jnp.array([3, 1, 4, 1], jnp.uint32)


@functools.cache
def compiled(made, by, config, serial, sample):
    """One program per kind of exploring, whatever the numbers."""

    def f(variables, judges, batch, seeds):
        generator_ = last.TrainedGenerator(variables, *made)
        by_ = rewards.Evaluators(judges, *by)
        if serial is not None:
            return last.last_serial(generator_, by_, batch, config, rounds=serial)
        return last.last_parallel(generator_, by_, batch, config, seeds=seeds if sample else None)

    return jax.jit(f)


def run(batch=BATCH, config=None, *, by=None, made=None, seeds=None, serial=None):
    by, made, config = by or evaluators_of(), made or generator_of(), config or last.Config()
    f = compiled(made[1:], by[1:], config, serial, seeds is not None)
    return f(made.variables, list(by.variables), batch, seeds)


def test_steps_of_both_signs():
    assert last.both_signs(0) == ()
    np.testing.assert_allclose(last.both_signs(4), [-20, -1, 1, 20])
    sizes = np.abs(last.both_signs(8))[4:]
    np.testing.assert_allclose(sizes[1:] / sizes[:-1], 20 ** (1 / 3))
    with pytest.raises(ValueError, match="count must be even and >= 0, got 3"):
        last.both_signs(3)
    with pytest.raises(ValueError, match="smallest must be > 0 and <= largest, got -1.0 and"):
        last.both_signs(4, -1.0, 20.0)


def test_the_score_never_falls_below_the_greedy_slates():
    for config in (last.Config(), last.Config(steps=last.both_signs(16, 1.0, 200.0))):
        found = run(config=config)
        greedy = generator.apply(generator_of().variables, CONFIG, BATCH).order
        np.testing.assert_array_equal(found.tried[:, 0], greedy)
        best = np.asarray(found.score).mean(axis=-1).max(axis=1)
        assert (best >= np.asarray(found.score).mean(axis=-1)[:, 0]).all()
        np.testing.assert_array_equal(
            np.asarray(found.score).mean(axis=-1)[range(4), found.best], best
        )
        for b in range(4):
            np.testing.assert_array_equal(found.order[b], found.tried[b, found.best[b]])


def test_large_steps_explore_and_vanishing_ones_do_not():
    wide = run(config=last.Config(steps=last.both_signs(16, 20.0, 400.0)))
    assert any(len(np.unique(x, axis=0)) > 2 for x in np.asarray(wide.tried))
    still = run(config=last.Config(steps=(-1e-6, 1e-6)))
    np.testing.assert_array_equal(still.tried, still.tried[:, :1].repeat(3, axis=1))
    none = run(config=last.Config(steps=()))
    assert none.tried.shape == (4, 1, 3) and not none.best.any()


@functools.cache
def explored():
    """What the tests of directions need: encoded requests, their greedy slates, credits."""
    made = generator_of()
    module, by = made.module, evaluators_of()

    @jax.jit
    def f(variables, judges):
        encoded = module.encode(variables, made.config, BATCH)
        order = module.decode(variables, made.config, encoded).order
        both = jnp.concatenate([order, rewards.upstream(BATCH, 3)[:, None]], axis=1)
        reward = rewards.judge_of(by._replace(variables=judges), BATCH)(both)[..., 0]
        return encoded, order, rewards.reward_to_go(reward[:, 0] - reward[:, 1], CONFIG.discount)

    return f(made.variables, list(by.variables))


def test_the_gradient_is_that_of_the_loss():
    """Central differences along every number of the state, and of one candidate's encoding."""
    made = generator_of()
    encoded, order, credit = explored()
    way = deltas.activations(made, encoded, order, credit, "none")

    @jax.jit
    def loss(encoded):
        logp = generator.log_probability(made.variables, CONFIG, encoded, order)
        return -(credit * logp[:, 0]).sum()

    def slope(name, at, step=1e-2):
        x = getattr(encoded, name)
        up, down = (encoded._replace(**{name: x.at[at].add(s)}) for s in (step, -step))
        return float(loss(up) - loss(down)) / (2 * step)

    for at in np.ndindex(2, 4):
        assert float(way.state[at]) == pytest.approx(slope("state", at), abs=2e-3)
    for unit in range(6):
        at = (0, 2, unit)
        assert float(way.items[at]) == pytest.approx(slope("items", at), abs=2e-3)
    assert not way.items[1, 1].any()  # It is masked.
    assert not way.rows.any()


def norm(x):
    return np.sqrt((np.asarray(x, np.float64) ** 2).reshape(4, -1).sum(axis=1))


def test_blocks_move_by_their_own_percent():
    made = generator_of()
    encoded, order, credit = explored()
    mask = BATCH["candidate_mask"]
    there = np.where(mask[..., None], encoded.items, 0)
    block = deltas.activations(made, encoded, order, credit, "block")
    some = np.asarray(norm(credit) > 0)
    np.testing.assert_array_equal(some, [True, True, True, False])  # The last shows what came.
    np.testing.assert_allclose(norm(block.state), 0.01 * norm(encoded.state) * some, rtol=1e-4)
    np.testing.assert_allclose(norm(block.items), 0.01 * norm(there) * some, rtol=1e-4)
    whole = deltas.activations(made, encoded, order, credit, "global")
    moved = np.hypot(norm(whole.state), norm(whole.items))
    expected = 0.01 * np.hypot(norm(encoded.state), norm(there)) * some
    np.testing.assert_allclose(moved, expected, rtol=1e-4)
    still = deltas.activations(made, encoded, order, 0 * credit, "block")
    assert not still.state.any() and not still.items.any()


def dense_gradients(made, encoded, order, credit):
    """Of each request's loss by the decoder's own parameters."""

    def loss(params, b):
        variables = {**made.variables, "params": params}
        # What candidates pass through before stays: only the decoder moves.
        logp = generator.log_probability(variables, CONFIG, encoded, order)[b, 0]
        return -(credit[b] * logp).sum()

    of_one = jax.jit(jax.grad(loss))
    return [of_one(made.variables["params"], b) for b in range(4)]


def test_factored_deltas_of_parameters_are_the_dense_ones():
    """Each request, each step: a copy of the parameters, moved, decodes the same slate."""
    made = generator_of()
    encoded, order, credit = explored()
    steps = jnp.array([-60.0, -7.0, 0.0, 9.0, 60.0])
    way = jax.jit(lambda e: deltas.parameters(made, e, order, credit, "block"))(encoded)
    found = generator.decode(made.variables, CONFIG, encoded, direction=way, steps=steps)
    decode = jax.jit(lambda variables: generator.decode(variables, CONFIG, encoded))
    for b, gradient in enumerate(dense_gradients(made, encoded, order, credit)):
        for s, step in enumerate(steps):
            params = dict(made.variables["params"])
            for name in deltas.PARAMETERS:
                value, slope = (
                    tree[name]["kernel"] if name == "row" else tree[name]
                    for tree in (params, gradient)
                )
                length = float(jnp.linalg.norm(slope.ravel()))
                size = float(jnp.linalg.norm(value.ravel()))
                moved = value + step * 0.01 * size / max(length, 1e-20) * slope
                params[name] = {"kernel": moved} if name == "row" else moved
            copy = {**made.variables, "params": params}
            alone = decode(copy)
            np.testing.assert_array_equal(alone.order[b, 0], found.order[b, s])
            assert_close(
                np.asarray(found.log_probability[b, s]),
                np.asarray(alone.log_probability[b, 0]),
                ulps=256,  # Steps of 60 percent, and products in another order.
            )
    assert len(np.unique(np.asarray(found.order)[0], axis=0)) > 1


def test_parameters_that_are_not_named_stay():
    made = generator_of()
    encoded, order, credit = explored()
    way = deltas.parameters(made, encoded, order, credit, "block", ("score", "key"))
    assert way.weights.score.any() and way.request.keys.any()
    for still in (way.weights.query, way.weights.bias, way.request.rows, way.request.context):
        assert not still.any()


def test_a_random_direction_is_as_long():
    made = generator_of()
    encoded, order, credit = explored()
    way = deltas.activations(made, encoded, order, credit, "block")
    other = deltas.random_like(way, generator.MOVED, SEEDS)
    np.testing.assert_allclose(norm(other.state), norm(way.state), rtol=1e-4)
    np.testing.assert_allclose(norm(other.items), norm(way.items), rtol=1e-4)
    assert not other.items[1, 1].any()
    alike = np.abs(np.sum(np.asarray(other.state * way.state), axis=1))[:3]
    assert (alike < 0.99 * norm(way.state)[:3] ** 2).all()


def test_both_kinds_of_delta_explore():
    found = run(config=last.Config(delta="parameters", steps=last.both_signs(8, 5.0, 200.0)))
    assert any(len(np.unique(x, axis=0)) > 1 for x in np.asarray(found.tried))


def test_a_request_stands_alone():
    together = run(seeds=SEEDS, config=last.Config(sample=True))
    for b in range(4):
        part = jax.tree.map(lambda x, b=b: x[b : b + 1], BATCH)
        alone = run(part, seeds=SEEDS[b : b + 1], config=last.Config(sample=True))
        np.testing.assert_array_equal(alone.order[0], together.order[b])
        np.testing.assert_array_equal(alone.tried[0], together.tried[b])


def test_serial_exploration_goes_on_from_where_it_was():
    found = run(serial=6)
    made, judge = generator_of(), rewards.judge_of(evaluators_of(), BATCH)
    encoded = generator.encode(made.variables, CONFIG, BATCH)
    for t in range(7):  # 5 percent down the loss of the slate that was just written, six times.
        order = generator.decode(made.variables, CONFIG, encoded).order
        np.testing.assert_array_equal(found.tried[:, t], order[:, 0])
        way = last.direction(made, encoded, order, judge, BATCH, last.Config())
        assert loss_of(encoded, order, judge, moved=-0.01, way=way) < loss_of(encoded, order, judge)
        encoded = moved_by(encoded, way, -5.0)
    assert (found.tried[:, 0] != found.tried[:, -1]).any(), "no slate ever changed"
    none = run(serial=0)
    np.testing.assert_array_equal(none.order, found.tried[:, 0])


def moved_by(encoded, way, step):
    return encoded._replace(
        state=encoded.state + step * way.state, items=encoded.items + step * way.items
    )


def loss_of(encoded, order, judge, moved=0.0, way=None):
    """-sum_t A_t log pi(l_t), the advantage being that over the order in which items came."""
    if way is not None:
        encoded = moved_by(encoded, way, moved)
    both = jnp.concatenate([order, rewards.upstream(BATCH, 3)[:, None]], axis=1)
    reward = judge(both).mean(axis=-1)
    credit = rewards.reward_to_go(reward[:, 0] - reward[:, 1], CONFIG.discount)
    logp = generator.log_probability(generator_of().variables, CONFIG, encoded, order)
    return -float((credit * logp[:, 0]).sum())


def test_pessimism_prefers_what_evaluators_agree_on():
    tried = jnp.array([[[0], [1]]], jnp.int32)  # (B, S, M); opinions are (B, S, M, E).
    # Two evaluators agree on the first slate, and not on the second, better on average.
    opinions = jnp.array([[[[1.0, 1.0]], [[2.5, 0.0]]]])
    assert last.choose(tried, lambda order: opinions).order.tolist() == [[1]]
    assert last.choose(tried, lambda order: opinions, 1.0).order.tolist() == [[0]]
    three = run(by=evaluators_of(3), config=last.Config(pessimism=0.5))
    assert three.order.shape == (4, 3)


def test_best_of_draws():
    made, by = generator_of(), evaluators_of()
    found = last.best_of(made, by, BATCH, 5, seeds=SEEDS)
    assert found.tried.shape == (4, 6, 3)
    assert len(np.unique(np.asarray(found.tried)[0], axis=0)) > 1
    none = last.best_of(made, by, BATCH, 0, seeds=SEEDS)
    np.testing.assert_array_equal(none.order, found.tried[:, 0])


def test_upstream_order_passes_over_what_is_masked():
    assert rewards.upstream(BATCH, 3).tolist() == [[0, 1, 2], [0, 2, 3], [0, 1, 2], [0, 1, 2]]
    assert rewards.upstream(BATCH, 8)[1].tolist() == [0, 2, 3, 4, -1, -1, -1, -1]


@pytest.mark.parametrize("candidates", [1, 2, 3])
def test_few_candidates(candidates):
    batch = requests(batch=3, candidates=candidates)
    batch["candidate_mask"][2] = np.arange(candidates) == 0  # a single one is left
    batch["candidate_mask"][1] = False  # and here none
    found = run(batch)
    for b, row in enumerate(found.order.tolist()):
        count = batch["candidate_mask"][b].sum()
        assert [x for x in row if x >= 0] == row[: min(count, 3)]
        assert len(set(row[:count])) == min(count, 3)
    assert jnp.isfinite(found.score).all()


def test_one_slot():
    config = generator.Config(
        schema=SCHEMA, slots=1, encoder_units=6, hidden_units=4, heads=2, head_units=5
    )
    found = run(made=generator_of(config))
    assert found.order.shape == (4, 1)


def test_nothing_to_gain_means_nothing_to_explore():
    """All candidates alike: every advantage is zero, and so is the direction."""
    batch = requests(batch=2, candidates=4)
    batch["candidate_mask"][:] = True
    batch["candidate"] = {name: np.repeat(x[:, :1], 4, 1) for name, x in batch["candidate"].items()}
    found = run(batch)
    np.testing.assert_array_equal(found.order, [[0, 1, 2]] * 2)
    np.testing.assert_array_equal(found.tried, np.tile([0, 1, 2], (2, 9, 1)))


@pytest.mark.parametrize(
    "options, said",
    [
        ({"temperature": 0.0}, "temperature must be > 0 and finite, got 0.0"),
        ({"pessimism": -1.0}, "pessimism must be >= 0 and finite, got -1.0"),
        ({"steps": (float("nan"),)}, "steps must be finite numbers, got"),
        ({"parameters": ("keys",)}, "parameters must name some of key, context, row"),
        ({"parameters": ()}, "parameters must name some of"),
    ],
)
def test_config_rejects_nonsense(options, said):
    with pytest.raises(ValueError, match=said):
        last.Config(**options)


def test_draws_need_seeds():
    with pytest.raises(ValueError, match="Draws need seeds"):
        run(config=last.Config(sample=True))
    with pytest.raises(ValueError, match="Draws need seeds"):
        last.best_of(generator_of(), evaluators_of(), BATCH, 2)
    for seeds, said in (
        (None, "got none"),
        (SEEDS[:3], r"got uint32 \(3,\)"),
        (SEEDS.astype(jnp.int32), r"got int32 \(4,\)"),
        ([1, 2, 3, 4], r"got list \(4,\)"),
    ):
        with pytest.raises(ValueError, match=rf"uint32 \(4,\), one per request .*; {said}"):
            exploration._require_seeds(seeds, 4)


def test_serial_exploration_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="rounds must be a whole number >= 0, got -1"):
        run(serial=-1)
    with pytest.raises(ValueError, match="last_serial moves activations"):
        run(serial=1, config=last.Config(delta="parameters"))


def test_presets():
    assert last.PRESETS["official"].steps == (6.0, 7.0, 8.0, 9.0)
    assert last.PRESETS["default"] == last.Config()
    for config in last.PRESETS.values():
        found = run(config=config, seeds=SEEDS, by=evaluators_of(2))
        assert found.order.shape == (4, 3)


def test_scores_are_sums_of_what_slots_are_worth():
    by = evaluators_of(2)
    order = rewards.upstream(BATCH, 3)[:, None]
    each = rewards.judge_of(by, BATCH)(order)
    logits = [
        by.module.judge(v, by.config, by.module.encode(v, by.config, BATCH), order)
        for v in by.variables
    ]
    expected = [jax.nn.sigmoid(x) @ jnp.array([1.0, 0.5]) for x in logits]
    assert_close(each, np.stack(expected, axis=-1))


def test_a_score_that_is_no_number_wins_nothing():
    score = jnp.array(
        [[[1.0, 1.0], [jnp.nan, 2.0], [1.5, 1.5]], [[1.0, 1.0], [jnp.inf, 0.0], [0.0, 0.0]]]
    )
    assert last.most_gained(score, 0.0).tolist() == [2, 0]
    assert last.most_gained(jnp.full((1, 3, 2), jnp.nan), 1.0).tolist() == [0]


def test_pessimism_needs_several_opinions():
    with pytest.raises(ValueError, match="Pessimism needs several evaluators, got one"):
        run(config=last.PRESETS["cautious"])


def test_generator_and_evaluators_must_speak_of_the_same_ids():
    other = dataclasses.replace(JUDGES, schema=SCHEMA.with_rows({"item": 7, "kind": 5}))
    by = evaluators_of()._replace(config=other)
    for explore in (
        lambda: last.last_parallel(generator_of(), by, BATCH),
        lambda: last.last_serial(generator_of(), by, BATCH, rounds=1),
        lambda: last.best_of(generator_of(), by, BATCH, 2, seeds=SEEDS),
    ):
        with pytest.raises(ValueError, match="must have one schema: table sizes"):
            explore()


def test_evaluators_must_fit_what_is_written():
    short = evaluators_of()._replace(config=dataclasses.replace(JUDGES, slots=2))
    with pytest.raises(ValueError, match="slots must be at most the evaluators' 2, got 3"):
        last.last_parallel(generator_of(), short, BATCH)
    steered = generator_of(dataclasses.replace(CONFIG, preferences=("clicks", "variety")))
    batch = {**BATCH, "preference": np.full((4, 2), 0.5, np.float32)}
    with pytest.raises(ValueError, match="a row for each of the preferences clicks, variety, got"):
        last.last_parallel(steered, evaluators_of(), batch)
    found = last.last_parallel(steered, evaluators_of(worth=((1.0, 0.0), (0.0, 1.0))), batch)
    assert found.order.shape == (4, 3)


def test_masked_candidates_do_not_matter_where_slates_are_short():
    batch = requests(batch=2, candidates=4)
    batch["candidate_mask"][:] = [[False, True, False, False], [True, True, True, True]]
    spoilt = jax.tree.map(np.copy, batch)
    spoilt["candidate"]["price"][0, 0] = np.nan
    for one, other in zip(run(batch), run(spoilt), strict=True):
        np.testing.assert_array_equal(one, other)


def traces(monkeypatch):
    """Where every tracing of a judge is noted."""
    seen, whole = [], exploration._judge
    monkeypatch.setattr(exploration, "_judge", lambda *given: seen.append(1) or whole(*given))
    return seen


def test_equal_configurations_share_a_program(monkeypatch):
    """Tasks count in numbers that nothing else here uses: these programs are of this test alone."""
    seen = traces(monkeypatch)
    worth = (0.37, 0.11)
    explore = {
        "parallel": lambda by, batch, **how: last.last_parallel(generator_of(), by, batch, **how),
        "serial": lambda by, batch, **how: last.last_serial(
            generator_of(), by, batch, rounds=1, **how
        ),
        "best": lambda by, batch, **how: last.best_of(generator_of(), by, batch, 2, seeds=SEEDS),
    }
    for name, way in explore.items():
        seen.clear()
        first = way(evaluators_of(worth=worth), BATCH)
        others = [
            evaluators_of(worth=worth)._replace(variables=tuple(evaluators_of(2).variables[:1])),
            evaluators_of(worth=worth)._replace(worth=list(worth)),
            evaluators_of(worth=worth)._replace(worth=np.array(worth)),
        ]
        for by in others:
            again = way(by, requests())
            np.testing.assert_array_equal(again.order, first.order)
            np.testing.assert_array_equal(again.score, first.score)
        assert len(seen) == 1, name
        other = way(evaluators_of(worth=(0.11, 0.37)), BATCH)
        assert len(seen) == 2 and (other.score != first.score).any(), name
    seen.clear()
    for _ in range(2):
        explore["parallel"](evaluators_of(worth=worth), BATCH, config=last.Config(steps=(3.0,)))
    assert len(seen) == 1


def test_rows_of_worth_may_be_lists():
    steered = generator_of(dataclasses.replace(CONFIG, preferences=("clicks", "variety")))
    batch = {**BATCH, "preference": np.full((4, 2), 0.5, np.float32)}
    rows = ((1.0, 0.0), (0.0, 1.0))
    tuples, lists = (
        last.last_parallel(steered, evaluators_of()._replace(worth=worth), batch)
        for worth in (rows, [list(row) for row in rows])
    )
    np.testing.assert_array_equal(tuples.order, lists.order)
