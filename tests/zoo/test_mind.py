"""MIND against its equations, written out in NumPy float64."""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from recjax.zoo import mind
from recjax.zoo.features import Field, Schema, Table, example_batch
from recjax.zoo.layers import routing
from testing import assert_close

SCHEMA = Schema(
    tables=(
        Table(name="item", rows=30, dim=4),
        Table(name="brand", rows=9, dim=3),
        Table(name="kind", rows=5, dim=2),
    ),
    fields=(
        Field(name="kind", role="user"),
        Field(name="hour", role="context", table="kind"),
        Field(name="item", role="history"),
        Field(name="brand", role="history"),
        Field(name="price", role="history", kind="dense"),
        Field(name="behavior", role="history", table="kind"),
        Field(name="item", role="candidate"),
        Field(name="brand", role="candidate"),
        Field(name="price", role="candidate", kind="dense"),
        Field(name="position", role="candidate", table="kind"),
    ),
)
SMALL = dict(schema=SCHEMA, dim=4, tower_units=(6, 5), sampled=7)
BATCH = example_batch(SCHEMA, batch=5, history=17, candidates=2, sampled=7, seed=3)
LENGTHS = np.array([0, 1, 3, 9, 17])
BATCH["history_mask"] = np.arange(17) < LENGTHS[:, None]
BATCH["sampled"]["item"][:2] = BATCH["candidate"]["item"][4, 1]  # an accidental hit, twice
BATCH["label"]["click"][:] = [[1, 1], [0, 0], [1, 0], [0, 1], [1, 1]]
BATCH["weight"] = {"click": np.full((5, 2), 2, np.float32)}
BATCH["weight"]["click"][4, 1] = 3


def variables_of(config):
    """Initial variables with every number of the size of 1."""
    fresh = mind.init(jax.random.key(0), config)
    rng = np.random.default_rng(1)
    noisy = lambda x: x + rng.normal(0, 0.7, x.shape).astype(np.float32)
    return {**fresh, **jax.tree.map(noisy, {k: fresh[k] for k in ("tables", "params")})}


class Exact:
    """The paper, one user at a time."""

    def __init__(self, variables, config):
        exact = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)
        self.tables, self.params, self.config = exact["tables"], exact["params"], config
        for table in self.tables.values():
            table[0] = 0

    def item(self, values, at):
        price = values["price"][at] * self.params["number_price"]["kernel"][0]
        rows = [self.tables[name][values[name][at]] for name in ("item", "brand")]
        return (rows[0] + rows[1] + price) / 3

    def route(self, events, interests):
        """Algorithm 1; events oldest first."""
        draw = np.random.RandomState(self.config.routing_seed)
        table = draw.normal(0, self.config.routing_std, (17, self.config.interests))
        b = table[: len(events)][::-1][:, :interests].astype(np.float32).astype(np.float64)
        seen = events
        if self.config.agreement == "cosine" and len(events):
            apart = events - events.mean(axis=0)
            seen = apart / np.maximum(np.linalg.norm(apart, axis=1, keepdims=True), 1e-6)
        for i in range(self.config.rounds):
            last = i == self.config.rounds - 1
            u = self.interests(b, events if last else seen, interests)
            b = b + self.config.agreement_scale * seen @ u.T if len(events) else b
        return u

    def interests(self, b, events, interests):
        w = np.exp(b) / np.exp(b).sum(axis=1, keepdims=True)
        u = np.zeros((interests, self.config.dim))
        for j in range(interests):
            z = sum((w[i, j] * events[i] for i in range(len(events))), np.zeros(4))
            norm = np.linalg.norm(z)
            u[j] = norm / (1 + norm**2) * z
        return u

    def user(self, r):
        n = LENGTHS[r]
        interests = max(1, min(self.config.interests, int(np.floor(np.log2(max(n, 1))))))
        events = [
            self.item(BATCH["history"], (r, t))
            + self.tables["kind"][BATCH["history"]["behavior"][r, t]]
            for t in range(n)
        ]
        events = np.array(events).reshape(n, 4) @ self.params["bilinear"]["kernel"]
        kind, hour = BATCH["user"]["kind"][r], BATCH["context"]["hour"][r]
        profile = np.concatenate([self.tables["kind"][kind], self.tables["kind"][hour]])
        vectors = []
        for u in self.route(events, interests):
            x = np.concatenate([u, profile])
            for i in range(3):
                x = x @ self.params[f"layers_{i}"]["kernel"] + self.params[f"layers_{i}"]["bias"]
                x = np.maximum(x, 0) if i < 2 else x
            vectors.append(x)
        return np.array(vectors)


@functools.cache
def model(**options):
    config = mind.Config(**SMALL | options)
    variables = variables_of(config)
    return config, variables, Exact(variables, config)


@functools.partial(jax.jit, static_argnums=1)
def serve(variables, config, batch):
    vectors = mind.user_vectors(variables, config, batch)
    return *vectors, mind.apply(variables, config, batch).logit


@functools.partial(jax.jit, static_argnums=1)
def loss_of(variables, config, batch, seed=0):
    return mind.loss(variables, config, batch, key=jax.random.key(seed))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"interests": 1},
        {"rounds": 1, "routing_seed": 5},
        {"agreement": "cosine", "agreement_scale": 2.0},
    ],
    ids=str,
)
def test_users_and_scores_are_their_equations(options):
    config, variables, exact = model(**options)
    vectors, exists, got = serve(variables, config, BATCH)
    logit = np.zeros((5, 2))
    for r in range(5):
        expected = exact.user(r)
        assert exists[r].sum() == len(expected) and exists[r, : len(expected)].all()
        assert_close(vectors[r, : len(expected)], expected, ulps=64)  # rounds feed each other
        for c in range(2):
            logit[r, c] = max(expected @ exact.item(BATCH["candidate"], (r, c)))
    assert_close(got, logit, ulps=64)


def exact_loss(config, exact):
    total = mass = 0.0
    for r in range(5):
        users = exact.user(r)
        for c in range(2):
            e = exact.item(BATCH["candidate"], (r, c))
            score = users @ e
            if config.attention == "hard":
                v = users[np.argmax(score)]
            else:
                p = config.power
                x = p * score if config.attention == "soft" else np.sign(score) * abs(score) ** p
                v = (np.exp(x) / np.exp(x).sum()) @ users
            logits = [v @ e - BATCH["candidate_log_q"][r, c]]
            for s in range(7):
                if BATCH["sampled"]["item"][s] != BATCH["candidate"]["item"][r, c]:
                    own = users if config.nearest_draws else v[None]
                    draw = max(own @ exact.item(BATCH["sampled"], s))
                    logits.append(draw - BATCH["sampled_log_q"][s])
            weight = BATCH["label"]["click"][r, c] * BATCH["weight"]["click"][r, c]
            total += weight * (np.log(np.sum(np.exp(logits))) - logits[0])
            mass += weight
    return total / mass


@pytest.mark.parametrize(
    "options",
    [
        {"attention": "hard"},
        {"attention": "soft"},
        {"attention": "pow", "power": 1.5},
        {"attention": "hard", "nearest_draws": True},
        {"attention": "soft", "nearest_draws": True},
    ],
    ids=str,
)
def test_the_loss_is_its_equation(options):
    config, variables, exact = model(**options)
    value, aux = loss_of(variables, config, BATCH)
    assert_close(value, np.float64(exact_loss(config, exact)), ulps=64)
    assert aux.terms == {"sampled_softmax": value}


def test_dropout_only_in_training():
    config, variables, _ = model(embedding_dropout=0.5)
    assert len({float(loss_of(variables, config, BATCH, seed)[0]) for seed in (1, 1, 2)}) == 2
    plain, _, _ = model()
    np.testing.assert_allclose(
        serve(variables, config, BATCH)[2], serve(variables, plain, BATCH)[2], rtol=1e-6
    )


def test_the_number_of_interests_grows_with_the_history():
    counts = np.arange(70)
    got = np.asarray(routing.interest_mask(jnp.asarray(counts), 5)).sum(axis=1)
    expected = [max(1, min(5, n.bit_length() - 1)) for n in counts.tolist()]  # floor(log2 n)
    assert got.tolist() == expected
    many = routing.interest_mask(jnp.array([0, 1, 3, 9, 1000, 2**31 - 1]), 70).sum(axis=1)
    assert many.tolist() == [1, 1, 1, 3, 9, 30]


def test_squash_keeps_the_direction_and_bounds_the_length():
    z = jnp.array([[3.0, 4.0], [0.0, 0.0], [3e8, 4e8]])
    expected = [[25 / 26 * 3 / 5, 25 / 26 * 4 / 5], [0, 0], [3 / 5, 4 / 5]]
    assert_close(routing.squash(z), np.array(expected))
    at_zero = jax.jacobian(routing.squash)(jnp.zeros(3))
    assert jnp.isfinite(at_zero).all()


_route = jax.jit(routing.route, static_argnums=(4, 5, 6))


def routed(events, mask, exists, start, rounds=3, *how):
    return _route(*(jnp.asarray(x) for x in (events, mask, exists, start)), rounds, *how)


def test_one_interest_is_squash_of_the_sum():
    events = np.random.default_rng(0).normal(size=(2, 6, 3)).astype(np.float32)
    mask = np.arange(6) < np.array([[4], [6]])
    start = routing.routing_logits(6, 1, 1.0, 0)
    got = routed(events, mask, np.ones((2, 1), bool), start)[:, 0]
    total = np.where(mask[..., None], events, 0).astype(np.float64).sum(axis=1)
    norm = np.linalg.norm(total, axis=1, keepdims=True)
    assert_close(got, norm / (1 + norm**2) * total, ulps=8)


def test_padding_takes_no_part_in_routing():
    """A mask on the softmax over interests would leave every padded event 1/K of its weight."""
    rng = np.random.default_rng(0)
    events, start = rng.normal(size=(1, 4, 3)), rng.normal(size=(4, 2))
    events, start = events.astype(np.float32), start.astype(np.float32)
    mask, exists = np.array([[True, True, False, False]]), np.ones((1, 2), bool)
    expected = routed(events[:, :2], mask[:, :2], exists, start[:2])
    junk = np.where(mask[..., None], events, np.float32(np.nan))
    assert (routed(junk, mask, exists, start) == expected).all()


def test_an_interest_that_does_not_exist_takes_nothing():
    rng = np.random.default_rng(0)
    events, start = (rng.normal(size=s).astype(np.float32) for s in ((1, 4, 3), (4, 3)))
    mask = np.ones((1, 4), bool)
    got = routed(events, mask, np.array([[True, True, False]]), start)
    assert (got[:, 2] == 0).all()
    alone = np.asarray(routed(events, mask, np.ones((1, 2), bool), start[:, :2]), np.float64)
    assert_close(got[:, :2], alone)


def test_cosine_routing_finds_the_clusters_that_inner_products_miss():
    """Two kinds of short events that have most in common: one interest each, or both the same."""
    rng = np.random.default_rng(0)
    kind = np.array([0, 1] * 8)
    apart = np.array([[0.0, 0.2], [0.0, -0.2]])[kind] + 0.01 * rng.normal(size=(16, 2))
    events = (np.array([0.5, 0.0]) + apart).astype(np.float32)[None]
    mask, exists = np.ones((1, 16), bool), np.ones((1, 2), bool)
    start = routing.routing_logits(16, 2, 1.0, 0)
    angle = lambda u: abs(np.arctan2(u[0, 0, 1], u[0, 0, 0]) - np.arctan2(u[0, 1, 1], u[0, 1, 0]))
    whole = 2 * np.arctan2(0.2, 0.5)
    assert angle(np.asarray(routed(events, mask, exists, start))) < 0.2 * whole
    found = np.asarray(routed(events, mask, exists, start, 3, "cosine", 10.0))
    assert angle(found) > 0.95 * whole
    # Events that are all the same have no directions, and nothing is NaN, nor is any gradient.
    same = jnp.broadcast_to(jnp.asarray(events[:, :1]), events.shape)
    value = lambda e: routed(e, mask, exists, start, 3, "cosine", 10.0).sum()
    assert np.isfinite(value(same)) and np.isfinite(jax.grad(value)(same)).all()


def test_only_the_last_round_is_differentiated():
    """d u_j / d e_i = w_ij d squash(z_j), with w a constant."""
    rng = np.random.default_rng(2)
    events, start = (rng.normal(size=s).astype(np.float32) for s in ((1, 5, 3), (5, 2)))
    mask, exists = np.ones((1, 5), bool), np.ones((1, 2), bool)
    toward = rng.normal(size=(2, 3)).astype(np.float32)
    value = lambda e: jnp.sum(routed(e, mask, exists, start)[0] * toward)

    b = start.astype(np.float64)
    for _ in range(3):
        w = np.exp(b) / np.exp(b).sum(axis=1, keepdims=True)
        z = w.T @ events[0].astype(np.float64)
        norm = np.linalg.norm(z, axis=1, keepdims=True)
        b = b + events[0] @ (norm / (1 + norm**2) * z).T
    expected = np.zeros((5, 3))
    for j in range(2):
        n, u = norm[j, 0], z[j] / norm[j, 0]
        along, across = 2 * n / (1 + n**2) ** 2, n / (1 + n**2)  # of squash, by direction
        jacobian = across * (np.eye(3) - np.outer(u, u)) + along * np.outer(u, u)
        expected += w[:, j : j + 1] * (jacobian @ toward[j])
    assert_close(jax.grad(value)(jnp.asarray(events))[0], expected, ulps=16)  # three rounds


def test_routing_starts_alike_at_the_newest_event():
    logits = lambda length, std=1.0, seed=0: routing.routing_logits(length, 4, std, seed)
    long, short = logits(9), logits(4)
    assert (long[-4:] == short).all()
    assert abs(logits(4000).std() - 1.0) < 0.02
    np.testing.assert_allclose(logits(4, std=3.0), 3 * short, rtol=1e-6)
    assert not (logits(4, seed=1) == short).any()


def test_two_calls_give_the_same_bits():
    config, variables, _ = model()
    one, two = (serve(variables, config, BATCH)[0] for _ in range(2))
    assert (one == two).all()
    assert loss_of(variables, config, BATCH, 1)[0] == loss_of(variables, config, BATCH, 2)[0]


def attended(users, exists, items, attention, power=2.0):
    arrays = (jnp.asarray(x, jnp.float32) for x in (users, items))
    users, items = arrays
    return mind.label_aware_attention(users, jnp.asarray(exists), items, attention, power)


def test_the_candidate_takes_its_best_interest():
    users = [[[1.0, 0.0], [0.0, 1.0], [9.0, 9.0]]]  # the third does not exist
    items = [[[2.0, 1.0], [-3.0, -1.0]]]
    exists = [[True, True, False]]
    hard = attended(users, exists, items, "hard")
    assert hard.tolist() == [[[1.0, 0.0], [0.0, 1.0]]]  # dots 2, 1 and -3, -1
    np.testing.assert_allclose(attended(users, exists, items, "soft", 100.0), hard, atol=1e-6)
    np.testing.assert_allclose(attended(users, exists, items, "pow", 100.0), hard, atol=1e-6)
    one = attended(users, exists, items, "soft", 1.0)
    np.testing.assert_allclose(one, attended(users, exists, items, "pow", 1.0), rtol=1e-6)
    first = np.exp(2 * 2.0) / (np.exp(2 * 2.0) + np.exp(2 * 1.0))
    soft = attended(users, exists, items, "soft", 2.0)[0, 0]
    np.testing.assert_allclose(soft, [first, 1 - first], rtol=1e-6)


def test_powers_of_signed_dots_are_tame():
    """A bare power flips signs where p is even, is NaN where it is fractional, and overflows."""
    x = jnp.array([-3.0, -0.5, 0.0, 2.0])
    assert_close(mind.signed_power(x, 2.0), np.array([-9.0, -0.25, 0.0, 4.0]))
    assert_close(mind.signed_power(x, 1.5), np.array([-(3**1.5), -(0.5**1.5), 0.0, 2**1.5]))
    for power in (1.0, 1.5, 100.0):
        value, slope = jax.vmap(jax.value_and_grad(lambda v, p=power: mind.signed_power(v, p)))(x)
        assert jnp.isfinite(value).all() and jnp.isfinite(slope).all()


def test_a_user_without_history_has_one_interest_made_of_the_profile():
    config, variables, _ = model()
    _, exists, _ = serve(variables, config, BATCH)
    assert exists[0].tolist() == [True, False, False, False]
    nothing = {**BATCH, "history_mask": np.zeros_like(BATCH["history_mask"])}
    gradient = jax.jit(jax.grad(lambda v: loss_of(v, config, nothing)[0]))(variables)
    assert jax.tree.all(jax.tree.map(lambda g: bool(np.isfinite(g).all()), gradient))


def test_the_parameter_tree_is_stable():
    """Checkpoints depend on these names: changing them is a breaking change."""
    assert jax.tree.map(jnp.shape, mind.init(jax.random.key(0), mind.Config(**SMALL))) == {
        "tables": {"item": (30, 4), "brand": (9, 4), "kind": (5, 4)},
        "params": {
            "number_price": {"kernel": (1, 4)},
            "bilinear": {"kernel": (4, 4)},
            "layers_0": {"kernel": (12, 6), "bias": (6,)},
            "layers_1": {"kernel": (6, 5), "bias": (5,)},
            "layers_2": {"kernel": (5, 4), "bias": (4,)},
        },
        "batch_stats": {},
    }


@pytest.mark.parametrize(
    "options, said",
    [
        ({"interests": 0}, "Config.interests must be >= 1, got 0"),
        ({"attention": "max"}, "'max'"),
        ({"power": 0.5}, "Config.power must be >= 1, got 0.5"),
        ({"routing_std": 0.0}, "Config.routing_std must be > 0, got 0.0"),
        ({"embedding_dropout": 1.0}, r"embedding_dropout must be in \[0, 1\), got 1.0"),
    ],
)
def test_config_rejects_nonsense(options, said):
    with pytest.raises((ValueError, jaxtyping.TypeCheckError), match=said):
        mind.Config(**SMALL | options)
