"""MLR against its equation, written out in NumPy float64."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from recjax.zoo import lr, mlr
from recjax.zoo.features import Field, Schema, Table, example_batch
from testing import assert_close

SCHEMA = Schema(
    tables=(Table(name="item", rows=30, dim=8), Table(name="small", rows=5, dim=3)),
    fields=(
        Field(name="kind", role="user", table="small"),
        Field(name="age", role="user", kind="dense"),
        Field(name="item", role="history"),
        Field(name="dwell", role="history", kind="dense"),
        Field(name="item", role="candidate"),
        Field(name="tags", role="candidate", kind="bag", width=2, table="small"),
        Field(name="image", role="candidate", kind="dense", width=3),
    ),
)
BATCH = example_batch(SCHEMA, batch=4, history=5, candidates=3, seed=4)
PIECES = 3


def variables_of(config):
    """Numbers of the shapes of `init`, none of them at its special start."""
    shapes = jax.eval_shape(lambda: mlr.init(jax.random.key(0), config))
    rng = np.random.default_rng(1)
    draw = lambda x: jnp.asarray(rng.normal(0, 1.0, x.shape), jnp.float32)
    return jax.tree.map(draw, shapes)


def sides(variables, pooling):
    """Theta x of the request (B, 1, 2m) and of the candidate (B, C, 2m), and the bias."""
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)
    item, small = exact["tables"]["item"], exact["tables"]["small"]
    item[0] = small[0] = 0
    kernel, request = exact["params"]["linear"], []
    for b in range(4):
        real = BATCH["history_mask"][b]
        events = item[BATCH["history"]["item"][b][real]].sum(axis=0)
        events = events + BATCH["history"]["dwell"][b][real].sum() * kernel["history_dwell"][0]
        events = events / (max(real.sum(), 1) if pooling == "mean" else 1)
        user = small[BATCH["user"]["kind"][b]] + BATCH["user"]["age"][b] * kernel["user_age"][0]
        request.append([user + events])
    ads = BATCH["candidate"]
    candidate = item[ads["item"]] + small[ads["tags"]].sum(axis=2)
    candidate = candidate + ads["image"] @ kernel["candidate_image"]
    return np.array(request), candidate, exact["params"]["bias"]


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_mlr_is_its_equation(structured, pooling):
    config = mlr.Config(schema=SCHEMA, pieces=PIECES, structured=structured, pooling=pooling)
    variables = variables_of(config)
    request, candidate, bias = sides(variables, pooling)
    u, a = (side[..., s] for side, s in zip(
        (request, candidate) if structured else (request + candidate,) * 2,
        (slice(None, PIECES), slice(PIECES, None)), strict=True,
    ))  # fmt: skip
    u, a = u + bias[:PIECES], a + bias[PIECES:]
    gate = np.exp(u) / np.exp(u).sum(axis=-1, keepdims=True)
    p = (gate / (1 + np.exp(-a))).sum(axis=-1)
    assert p.shape == (4, 3)
    got = jax.jit(lambda v: mlr.apply(v, config, BATCH))(variables).logit
    assert_close(got, np.log(p / (1 - p)), ulps=16)  # sums of a dozen numbers
    value, aux = jax.jit(lambda v: mlr.loss(v, config, BATCH, key=jax.random.key(0)))(variables)
    y = BATCH["label"]["click"]
    assert_close(value, -np.mean(np.where(y == 1, np.log(p), np.log(1 - p))), ulps=8)
    assert aux.terms.keys() == {"bce"}


def test_one_piece_is_logistic_regression():
    config = mlr.Config(schema=SCHEMA, pieces=1)
    variables = variables_of(config)
    linear = jax.tree.map(lambda x: x[..., 1:], variables)
    got = mlr.apply(variables, config, BATCH).logit
    expected = lr.apply(linear, lr.Config(schema=SCHEMA), BATCH).logit
    assert_close(got, np.asarray(expected, np.float64), ulps=16)


def test_extreme_pieces_stay_finite():
    """p = 1 to the last bit of float32 in a piece that has nearly all the weight."""
    u = jnp.array([[[60.0, -60.0]]])
    for a, expected in (([60.0, 0.0], 60.0), ([-60.0, 0.0], -60.0), ([200.0, -200.0], 120.0)):
        a = jnp.array([[a]])
        np.testing.assert_allclose(mlr.mixed_logit(u, a), [[expected]], rtol=1e-6)
        slopes = jax.grad(lambda *x: mlr.mixed_logit(*x).sum(), argnums=(0, 1))(u, a)
        assert all(np.isfinite(slope).all() for slope in slopes)


def test_pieces_start_different_and_learn_apart():
    """From zeros every piece has the same gradient, for ever."""
    config = mlr.Config(schema=SCHEMA, pieces=PIECES)
    fresh = mlr.init(jax.random.key(0), config)
    assert fresh["tables"]["item"].shape == (30, 2 * PIECES)
    slope = jax.jit(jax.grad(lambda v: mlr.loss(v, config, BATCH, key=jax.random.key(0))[0]))
    pieces = slope(fresh)["tables"]["item"][:, PIECES:]
    assert not np.allclose(pieces[:, :1], pieces, rtol=1e-4, atol=0)
    nothing = slope(jax.tree.map(jnp.zeros_like, fresh))["tables"]["item"][:, PIECES:]
    np.testing.assert_allclose(nothing, np.repeat(nothing[:, :1], PIECES, axis=1), rtol=1e-6)


def test_divided_by_requests_and_fitted_by_candidates():
    """With the structured prior, candidates that are alike get alike pieces of any request."""
    config = mlr.Config(schema=SCHEMA, pieces=PIECES, structured=True)
    slope = jax.jit(jax.grad(lambda v: mlr.loss(v, config, BATCH, key=jax.random.key(0))[0]))
    gradient = np.asarray(slope(variables_of(config))["tables"]["item"])
    request = np.unique(BATCH["history"]["item"][BATCH["history_mask"]])
    candidate = np.unique(BATCH["candidate"]["item"])
    only_request, only_candidate = (
        np.setdiff1d(request, candidate),
        np.setdiff1d(candidate, request),
    )
    assert gradient[only_request, :PIECES].any() and not gradient[only_request, PIECES:].any()
    assert gradient[only_candidate, PIECES:].any() and not gradient[only_candidate, :PIECES].any()


@pytest.mark.parametrize("options, said", [({"pieces": 0}, ">= 1"), ({"pooling": "max"}, "'max'")])
def test_config_rejects_nonsense(options, said):
    with pytest.raises((ValueError, jaxtyping.TypeCheckError), match=said):
        mlr.Config(schema=SCHEMA, **options)
