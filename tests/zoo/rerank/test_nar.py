"""The non-autoregressive generator."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax.zoo.rerank import last, nar
from recjax.zoo.rerank.last import deltas
from reranking import SCHEMA, evaluators_of, generator_of, requests
from testing import assert_close

BATCH = requests()
CONFIG = nar.Config(schema=SCHEMA, slots=3, units=8, heads=2, feed_units=10)


def made(config=CONFIG):
    return generator_of(config, module=nar)


def encoded():
    return nar.encode(made().variables, CONFIG, BATCH)


def normalised(x, p):
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def exact_block(a, b, p):
    """One block in float64, a and b of one request and without padding."""
    attend = p["MultiHeadDotProductAttention_0"]
    q, k, v = (
        np.einsum("nd,dhw->hnw", x, attend[name]["kernel"]) + attend[name]["bias"][:, None]
        for x, name in ((a, "query"), (b, "key"), (b, "value"))
    )
    score = np.einsum("hqw,hkw->hqk", q, k) / np.sqrt(q.shape[-1])
    weight = np.exp(score) / np.exp(score).sum(axis=-1, keepdims=True)
    found = np.einsum("hqk,hkw->qhw", weight, v)
    found = np.einsum("qhw,hwd->qd", found, attend["out"]["kernel"]) + attend["out"]["bias"]
    h = normalised(a + found, p["LayerNorm_0"])
    fed = np.maximum(h @ p["widen"]["kernel"] + p["widen"]["bias"], 0)
    return normalised(h + fed @ p["narrow"]["kernel"] + p["narrow"]["bias"], p["LayerNorm_1"])


def test_it_is_its_equations():
    v = jax.tree.map(lambda x: np.asarray(x, np.float64), made().variables)
    p, item, kind = v["params"], v["tables"]["item"], v["tables"]["kind"]
    item[0] = kind[0] = 0
    slate = jax.jit(lambda v, b: nar.apply(v, CONFIG, b))(made().variables, BATCH)
    for b in range(4):
        real = np.flatnonzero(BATCH["candidate_mask"][b])
        rows = np.concatenate(
            [
                np.broadcast_to(kind[BATCH["user"]["kind"][b]], (len(real), 3)),
                item[BATCH["candidate"]["item"][b, real]],
                BATCH["candidate"]["price"][b, real, None],
            ],
            axis=1,
        )
        x = np.maximum(rows @ p["encoder"]["kernel"] + p["encoder"]["bias"], 0)
        x = exact_block(x, x, p["items"])
        t = exact_block(p["slots"], x, p["reading"])
        score, left = t @ x.T / np.sqrt(8), list(range(len(real)))
        for slot in range(3):
            best = max(left, key=lambda n, slot=slot: score[slot, n])
            logp = score[slot, best] - np.log(np.exp(score[slot, left]).sum())
            assert slate.order[b, slot] == real[best]
            assert float(slate.log_probability[b, slot]) == pytest.approx(logp, abs=1e-5)
            left.remove(best)


def test_a_step_moves_slots_and_items():
    """Scores along a direction are those of what was moved."""
    here = encoded()
    rng = np.random.default_rng(0)
    drawn = lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32)
    way = here._replace(slots=drawn(here.slots), items=drawn(here.items))
    steps = jnp.array([-0.7, 0.0, 0.4])
    found = nar.decode(made().variables, CONFIG, here, direction=way, steps=steps)
    for s, step in enumerate(steps):
        moved = here._replace(
            slots=here.slots + step * way.slots, items=here.items + step * way.items
        )
        alone = nar.decode(made().variables, CONFIG, moved)
        np.testing.assert_array_equal(alone.order[:, 0], found.order[:, s])
        assert_close(found.log_probability[:, s], np.asarray(alone.log_probability[:, 0]), ulps=16)


def test_given_slates_have_the_probability_they_were_drawn_with():
    seeds = jnp.arange(4, dtype=jnp.uint32)
    v, here = made().variables, encoded()
    drawn = nar.decode(v, CONFIG, here, steps=jnp.zeros(5), noise=seeds)
    given = nar.log_probability(v, CONFIG, here, drawn.order)
    assert_close(given, np.asarray(drawn.log_probability))
    assert len(np.unique(np.asarray(drawn.order)[0], axis=0)) > 1


def test_masked_candidates_do_not_matter():
    spoilt = jax.tree.map(np.copy, BATCH)
    hidden = ~BATCH["candidate_mask"]
    spoilt["candidate"]["price"][hidden] = np.nan
    spoilt["candidate"]["item"][hidden] = 7
    for a, b in zip(
        nar.apply(made().variables, CONFIG, BATCH),
        nar.apply(made().variables, CONFIG, spoilt),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_no_candidates_no_slate_and_no_nan():
    batch = requests(batch=2, candidates=4)
    batch["candidate_mask"][1] = False
    slate = nar.apply(made().variables, CONFIG, batch)
    assert slate.order[1].tolist() == [-1, -1, -1]
    batch["slate"] = {"order": np.asarray(slate.order), "advantage": np.ones((2, 3), np.float32)}
    gradient = jax.grad(lambda v: nar.loss(v, CONFIG, batch, key=jax.random.key(0))[0])(
        made().variables
    )
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(gradient))
    assert jnp.abs(gradient["params"]["slots"]).max() > 0


def test_last_moves_it_like_any_generator():
    config = last.Config(steps=last.both_signs(8, 5.0, 100.0))
    found = last.last_parallel(made(), evaluators_of(), BATCH, config)
    greedy = nar.apply(made().variables, CONFIG, BATCH).order
    np.testing.assert_array_equal(found.tried[:, 0], greedy)
    assert any(len(np.unique(x, axis=0)) > 1 for x in np.asarray(found.tried))
    assert last.last_serial(made(), evaluators_of(), BATCH, rounds=2).order.shape == (4, 3)
    with pytest.raises(ValueError, match="moves activations only"):
        last.last_parallel(made(), evaluators_of(), BATCH, last.Config(delta="parameters"))


def test_constraints_hold():
    config = dataclasses.replace(CONFIG, scatter=("item:3:1",))
    batch = requests(batch=4, candidates=6)
    batch["candidate_mask"][:] = True
    batch["candidate"]["item"] = np.array([[3, 3, 3, 4, 4, 5]] * 4, np.int32)
    here = nar.encode(made(config).variables, config, batch)
    seeds = jnp.arange(4, dtype=jnp.uint32)
    order = nar.decode(made().variables, config, here, steps=jnp.zeros(30), noise=seeds).order
    kinds = np.sort(np.asarray([3, 3, 3, 4, 4, 5])[np.asarray(order)], axis=-1)
    np.testing.assert_array_equal(kinds, np.broadcast_to([3, 4, 5], kinds.shape))


def test_directions_leave_masks_alone():
    here = encoded()
    credit = jnp.ones((4, 3))
    order = nar.decode(made().variables, CONFIG, here).order
    way = deltas.activations(made(), here, order, credit, "block")
    np.testing.assert_array_equal(way.mask, here.mask)
    assert not way.items[1, 1].any() and way.slots.any()


@pytest.mark.parametrize(
    "options, said",
    [
        ({"units": 9}, "units must be a multiple of heads, got 9"),
        ({"discount": -0.1}, r"discount must be in \[0, 1\], got -0.1"),
        ({"scatter": ("price:2:1",)}, "scatter needs a candidate field of kind id"),
    ],
)
def test_config_rejects_nonsense(options, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(CONFIG, **options)


def test_wrong_draws_are_named():
    decode = lambda **options: nar.decode(made().variables, CONFIG, encoded(), **options)
    with pytest.raises(ValueError, match="temperature must be > 0 and finite, got 0.0"):
        decode(temperature=0.0)
    with pytest.raises(
        ValueError, match=r"noise must have shape \(4, 1, 3, 6\) or \(B,\), got \(1,\)"
    ):
        decode(noise=jnp.zeros(1, jnp.uint32))
