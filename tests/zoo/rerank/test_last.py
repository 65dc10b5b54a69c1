"""LAST: what it may change, what it must not, and what happens where there is nothing to do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reranking import CONFIG, SCHEMA, evaluators_of, generator_of, requests

from recjax.zoo.rerank import generator, last
from testing import assert_close

BATCH = requests()


def run(batch=BATCH, config=None, *, by=None, made=None, key=None, serial=None):
    by, made, config = by or evaluators_of(), made or generator_of(), config or last.Config()

    def f(variables, judges, batch):
        generator_ = made._replace(variables=variables)
        by_ = by._replace(variables=judges)
        if serial is not None:
            return last.last_serial(generator_, by_, batch, config, rounds=serial)
        return last.last_parallel(generator_, by_, batch, config, key=key)

    return jax.jit(f)(made.variables, list(by.variables), batch)


def test_steps_of_both_signs():
    assert last.both_signs(0) == ()
    np.testing.assert_allclose(last.both_signs(4), [-20, -1, 1, 20])
    sizes = np.abs(last.both_signs(8))[4:]
    np.testing.assert_allclose(sizes[1:] / sizes[:-1], 20 ** (1 / 3))
    with pytest.raises(ValueError, match="count must be even and >= 0, got 3"):
        last.both_signs(3)


def test_the_score_never_falls_below_the_greedy_slates():
    for config in (last.Config(), last.Config(steps=last.both_signs(16, 1.0, 200.0))):
        found = run(config=config)
        greedy = generator.apply(generator_of().variables, CONFIG, BATCH).order
        np.testing.assert_array_equal(found.tried[:, 0], greedy)
        best = np.asarray(found.score).max(axis=1)
        assert (best >= np.asarray(found.score)[:, 0]).all()
        np.testing.assert_array_equal(np.asarray(found.score)[range(4), found.best], best)
        for b in range(4):
            np.testing.assert_array_equal(found.order[b], found.tried[b, found.best[b]])


def test_large_steps_explore_and_vanishing_ones_do_not():
    wide = run(config=last.Config(steps=last.both_signs(16, 20.0, 400.0)))
    assert any(len(np.unique(x, axis=0)) > 2 for x in np.asarray(wide.tried))
    still = run(config=last.Config(steps=(-1e-6, 1e-6)))
    np.testing.assert_array_equal(still.tried, still.tried[:, :1].repeat(3, axis=1))
    none = run(config=last.Config(steps=()))
    assert none.tried.shape == (4, 1, 3) and not none.best.any()


def test_the_gradient_is_that_of_the_loss():
    """Central differences along every number of the state, and of one candidate's encoding."""
    made, by = generator_of(), evaluators_of()
    encoded = generator.encode(made.variables, CONFIG, BATCH)
    order = generator.decode(made.variables, CONFIG, encoded).order
    judge = last.judge_of(by, BATCH)
    state, items = last.gradient(made, encoded, order, judge, BATCH)
    both = jnp.concatenate([order, last.upstream(BATCH, 3)[:, None]], axis=1)
    reward = judge(both)[..., 0]
    credit = generator.reward_to_go(reward[:, 0] - reward[:, 1], CONFIG.discount)

    def loss(encoded):
        logp = generator.log_probability(made.variables, CONFIG, encoded, order)
        return -(credit * logp[:, 0]).sum()

    def slope(name, at, step=1e-2):
        x = getattr(encoded, name)
        up, down = (encoded._replace(**{name: x.at[at].add(s)}) for s in (step, -step))
        return float(loss(up) - loss(down)) / (2 * step)

    for at in np.ndindex(2, 4):
        assert float(state[at]) == pytest.approx(slope("state", at), abs=2e-3)
    for unit in range(6):
        at = (0, 2, unit)
        assert float(items[at]) == pytest.approx(slope("items", at), abs=2e-3)
    assert not items[1, 1].any()  # It is masked.


def test_blocks_move_by_their_own_percent():
    encoded = generator.encode(generator_of().variables, CONFIG, BATCH)
    rng = np.random.default_rng(0)
    state, items = (
        jnp.asarray(rng.normal(size=x.shape), jnp.float32) for x in (encoded.state, encoded.items)
    )
    mask = BATCH["candidate_mask"]
    there = np.where(mask[..., None], encoded.items, 0)
    block = last.direction_of(encoded, state, items, "block")
    norm = lambda x: np.sqrt((np.asarray(x, np.float64) ** 2).reshape(4, -1).sum(axis=1))
    np.testing.assert_allclose(norm(block.state), 0.01 * norm(encoded.state), rtol=1e-4)
    np.testing.assert_allclose(norm(block.items), 0.01 * norm(there), rtol=1e-4)
    assert not np.asarray(block.items)[~mask].any() and not block.rows.any()
    whole = last.direction_of(encoded, state, items, "global")
    moved = np.hypot(norm(whole.state), norm(whole.items))
    np.testing.assert_allclose(moved, 0.01 * np.hypot(norm(encoded.state), norm(there)), rtol=1e-4)
    none = last.direction_of(encoded, state, items, "none")
    np.testing.assert_array_equal(none.state, state)
    still = last.direction_of(encoded, 0 * state, 0 * items, "block")
    assert not still.state.any() and not still.items.any()


def test_what_is_deployed_stays_as_it_is_and_a_request_stands_alone():
    made, by = generator_of(), evaluators_of()
    before = jax.tree.map(np.array, (made.variables, by.variables))
    together = run(key=jax.random.key(3), config=last.Config(sample=True))
    jax.tree.map(np.testing.assert_array_equal, before, (made.variables, by.variables))
    for b in range(4):
        # Noise belongs to a request's place in the batch: the first ones keep theirs.
        part = jax.tree.map(lambda x, b=b: x[: b + 1], BATCH)
        alone = run(part, key=jax.random.key(3), config=last.Config(sample=True))
        np.testing.assert_array_equal(alone.order[b], together.order[b])
        np.testing.assert_array_equal(alone.tried[b], together.tried[b])


def test_serial_exploration_goes_on_from_where_it_was():
    found = run(serial=6)
    assert found.tried.shape == (4, 7, 3)
    np.testing.assert_array_equal(
        found.tried[:, 0], generator.apply(generator_of().variables, CONFIG, BATCH).order
    )
    none = run(serial=0)
    np.testing.assert_array_equal(none.order, found.tried[:, 0])


def test_pessimism_prefers_what_evaluators_agree_on():
    tried = jnp.array([[[0], [1]]], jnp.int32)
    # Two evaluators agree on the first slate, and not on the second, better on average.
    opinions = jnp.array([[[[1.0, 1.0]], [[2.5, 0.0]]]])
    assert last.choose(tried, lambda order: opinions).order.tolist() == [[1]]
    assert last.choose(tried, lambda order: opinions, 1.0).order.tolist() == [[0]]
    three = run(by=evaluators_of(3), config=last.Config(pessimism=0.5))
    assert three.order.shape == (4, 3)


def test_best_of_draws():
    made, by = generator_of(), evaluators_of()
    found = last.best_of(made, by, BATCH, 5, key=jax.random.key(0))
    assert found.tried.shape == (4, 6, 3)
    assert len(np.unique(np.asarray(found.tried)[0], axis=0)) > 1
    none = last.best_of(made, by, BATCH, 0, key=jax.random.key(0))
    np.testing.assert_array_equal(none.order, found.tried[:, 0])


def test_upstream_order_passes_over_what_is_masked():
    assert last.upstream(BATCH, 3).tolist() == [[0, 1, 2], [0, 2, 3], [0, 1, 2], [0, 1, 2]]
    assert last.upstream(BATCH, 8)[1].tolist() == [0, 2, 3, 4, -1, -1, -1, -1]


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
        ({"temperature": 0.0}, "temperature must be > 0, got 0.0"),
        ({"pessimism": -1.0}, "pessimism must be >= 0, got -1.0"),
    ],
)
def test_config_rejects_nonsense(options, said):
    with pytest.raises(ValueError, match=said):
        last.Config(**options)


def test_draws_need_a_key():
    with pytest.raises(ValueError, match="Config.sample needs a key"):
        run(config=last.Config(sample=True))


def test_scores_are_sums_of_what_slots_are_worth():
    by = evaluators_of(2)
    order = last.upstream(BATCH, 3)[:, None]
    each = last.judge_of(by, BATCH)(order)
    logits = [
        by.module.judge(v, by.config, by.module.encode(v, by.config, BATCH), order)
        for v in by.variables
    ]
    expected = [jax.nn.sigmoid(x) @ jnp.array([1.0, 0.5]) for x in logits]
    assert_close(each, np.stack(expected, axis=-1))
