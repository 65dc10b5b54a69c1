"""MIMN against its equations, written out user by user in NumPy float64, and its promises."""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from recjax.zoo import mimn
from recjax.zoo.features import Field, Schema, Table, example_batch
from recjax.zoo.layers import heads, memory
from testing import assert_close

SCHEMA = Schema(
    tables=(
        Table(name="item", rows=30, dim=4),
        Table(name="kind", rows=6, dim=3),
    ),
    fields=(
        Field(name="kind", role="user"),
        Field(name="kind", role="history"),  # only events have one: not what an item is
        Field(name="item", role="history"),
        Field(name="item", role="candidate"),
        Field(name="price", role="candidate", kind="dense"),
    ),
)
SMALL = {
    "slots": 3,
    "controller_units": 6,
    "induction_units": 5,
    "attention_units": (7,),
    "tower_units": (6,),
}
D, B, L, C = 4, 4, 5, 2
BATCH = example_batch(SCHEMA, batch=B, history=L, candidates=C, seed=4, history_negatives=True)
BATCH["history_mask"] = np.array([[1, 1, 0, 1, 1], [1, 1, 1, 0, 0], [0] * 5, [0, 1, 1, 1, 1]], bool)


def config_of(**options):
    return mimn.Config(schema=SCHEMA, **{**SMALL, **options})


def variables_of(config):
    """Variables of the right shapes, every number at random."""
    shapes = jax.eval_shape(lambda key: mimn.init(key, config), jax.random.key(0))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.4, x.shape), x.dtype), shapes)


@functools.cache
def compiled(function, config):
    return jax.jit(lambda variables, *batches: getattr(mimn, function)(variables, config, *batches))


@functools.cache
def compiled_loss(config):
    return jax.jit(lambda v, batch: mimn.loss(v, config, batch, key=jax.random.key(0)))


# The oracle: one user, one event, one candidate at a time; no axis but the equation's own.


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    return np.exp(x - x.max()) / np.exp(x - x.max()).sum()


def leaky(x, alpha):
    return np.maximum(x, 0) + alpha * np.minimum(x, 0)


class User:
    """The machine of one user."""

    def __init__(self, config, params):
        self.config, self.p, m = config, params, config.slots
        self.M = np.asarray(memory_noise(config), np.float64)
        self.S = np.zeros((m, config.induction_units))
        self.h, self.r = np.zeros(config.controller_units), np.tanh(params["read"])
        self.g, self.t = np.zeros(m), 0
        self.all_written = np.zeros((m, D))
        self.pooled = np.zeros(D + 3)

    def gru(self, name, x, h):
        n = len(h)
        a, b = (
            x @ self.p[f"{name}_kernel"] + self.p[f"{name}_bias"],
            h @ self.p[f"{name}_recurrent"],
        )
        u, reset = sigmoid(a[:n] + b[:n]), sigmoid(a[n : 2 * n] + b[n : 2 * n])
        return (1 - u) * h + u * np.tanh(a[2 * n :] + reset * b[2 * n :])

    def heads(self, h):
        out = h @ self.p["heads_kernel"] + self.p["heads_bias"]
        if self.config.mur == "release":
            out = out + self.g / 400 @ self.p["heads_usage"]
        return np.clip(out, -20, 20)

    def address(self, key, strength):
        key, beta, w = np.tanh(key), 2 * (np.log1p(np.exp(strength)) + 1), []
        norm = lambda x: np.sqrt(x @ x + 1e-12)
        cosine = lambda x: key @ x / norm(key) / norm(x)
        for i in range(self.config.slots):
            similarity = cosine(self.M[i])
            if self.config.key_memory:
                similarity = (similarity + cosine(np.tanh(self.p["keys"][i]))) / 2
            w.append(beta * similarity)
        return softmax(np.array(w))

    def step(self, event):
        m, mur = self.config.slots, self.config.mur
        self.h = self.gru("controller", np.concatenate([event, self.r]), self.h)
        out = self.heads(self.h)
        reading = self.address(out[:D], out[D])
        writing = self.address(out[D + 1 : 2 * D + 1], out[2 * D + 1])
        erase, add = sigmoid(out[2 * D + 2 : 3 * D + 2]), np.tanh(out[3 * D + 2 : 4 * D + 2])
        self.t += 1
        if mur == "paper":
            moved = np.zeros(m)
            for i in range(m):
                weights = [self.p["transfer"][:, i, j] @ (self.g / self.t) for j in range(m)]
                moved += writing[i] * softmax(np.array(weights) + self.p["keep"] * np.eye(m)[i])
            writing = moved
        if mur == "release":
            s, gamma = softmax(out[-4:-1]), 4 * (np.log1p(np.exp(out[-1])) + 1)
            moved = [
                s[0] * writing[(i + 1) % m] + s[1] * writing[i] + s[2] * writing[(i - 1) % m]
                for i in range(m)
            ]
            writing = np.array(moved) ** gamma / (np.array(moved) ** gamma).sum()
        if self.config.induction_units:
            for i in np.argsort(-reading)[: self.config.induction_slots]:
                seen = np.concatenate([event, self.M[i]])
                self.S[i] = self.gru("induction", seen, self.S[i])
        self.r = reading @ self.M
        for i in range(m):
            self.M[i] = (1 - writing[i] * erase) * self.M[i] + writing[i] * add
            self.all_written[i] += writing[i] * add
        self.g = self.g + writing
        self.pooled = self.pooled + event

    def look_up(self, query):
        h = self.gru("controller", np.concatenate([query, np.zeros(3), self.r]), self.h)
        out = self.heads(h)
        return self.address(out[:D], out[D]) @ self.M

    def state(self):
        written = self.all_written.mean(axis=0)
        return memory.State(self.M, self.S, self.h, self.r, self.g, written, self.pooled)


def memory_noise(config):
    # The constant itself: what it must be like is tested below.
    return mimn.init_state(variables_of(config), config, 1).memory[0]


def read_history(config, variables):
    """Every user after all events, and what the read head found at each of them."""
    params, item, kind = in_float64(variables)
    users, reads = [], []
    for b in range(B):
        user, found = User(config, params["machine"]), []
        for t in np.flatnonzero(BATCH["history_mask"][b]):
            names = BATCH["history"]["item"][b, t], BATCH["history"]["kind"][b, t]
            user.step(np.concatenate([item[names[0]], kind[names[1]]]))
            found.append(user.r)
        users.append(user)
        reads.append(found)
    return users, reads


def in_float64(variables):
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)
    item, kind = exact["tables"]["item"], exact["tables"]["kind"]
    item[0] = kind[0] = 0
    return exact["params"], item, kind


def exact_scores(config, variables, users):
    params, item, kind = in_float64(variables)
    logits = np.zeros((B, C))
    for b, user in enumerate(users):
        count = max(user.t, 1) if config.pooling == "mean" else 1
        pooled, written = user.pooled / count, user.all_written.mean(axis=0) / count
        for c in range(C):
            query = item[BATCH["candidate"]["item"][b, c]]
            parts = [kind[BATCH["user"]["kind"][b]], query, [BATCH["candidate"]["price"][b, c]]]
            parts += [pooled, user.look_up(query), query * written]
            if config.induction_units:
                wide, unit = params["query"], params["attention"]
                like = query @ wide["dense"]["kernel"] + wide["dense"]["bias"]
                like = leaky(like, wide["alpha"])
                interest = np.zeros(config.induction_units)
                for row in user.S:
                    z, unit = (
                        np.concatenate([like, row, like - row, like * row]),
                        params["attention"],
                    )
                    z = leaky(z @ unit["kernel_0"] + unit["bias_0"], unit["alpha_0"])
                    interest += (z @ unit["out_kernel"][:, 0] + unit["out_bias"]) * row
                parts.append(interest)
            if config.product:
                parts.append(query * pooled[:D])
            tower = params["tower"]
            x = np.concatenate(parts) @ tower["dense_0"]["kernel"] + tower["dense_0"]["bias"]
            x = leaky(x, tower["prelu_0"])
            logits[b, c] = (x @ tower["logit"]["kernel"] + tower["logit"]["bias"])[0]
    return logits


OPTIONS = {
    "paper": {},
    "release": {"mur": "release", "induction_slots": 2},
    "none": {"mur": "none", "key_memory": False, "induction_units": 0, "product": True},
    "mean": {"pooling": "mean", "product": True},
    "one_slot": {"slots": 1, "controller_units": 1, "induction_units": 1},
}


def incremental(variables, config, upto=L):
    """The state by one update per event, as a service has them: stored in between."""
    state = mimn.init_state(variables, config, B)
    for t in range(upto):
        event = {name: value[:, t] for name, value in BATCH["history"].items()}
        state = jax.tree.map(np.array, state)  # NumPy, as a store gives it back
        state = compiled("update", config)(variables, state, event, BATCH["history_mask"][:, t])
    return state


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_it_is_its_equations(options):
    config = config_of(**options)
    variables = variables_of(config)
    users, _ = read_history(config, variables)
    state = incremental(variables, config)
    exact = [np.stack(parts) for parts in zip(*(user.state() for user in users), strict=True)]
    assert_close(list(state), exact, ulps=64)  # four steps of five products, exponents to 20
    whole = compiled("apply", config)(variables, BATCH).logit
    assert_close(whole, exact_scores(config, variables, users), ulps=64)
    # One update per event and a score from the stored state: the same numbers.
    rest = {k: v for k, v in BATCH.items() if not k.startswith(("history", "label"))}
    served = compiled("apply_state", config)(variables, state, rest).logit
    np.testing.assert_allclose(served, whole, rtol=1e-6, atol=1e-6)


def test_a_user_without_an_event_keeps_the_state_bit_by_bit():
    config = config_of()
    variables = variables_of(config)
    state = incremental(variables, config, upto=2)
    event = {name: value[:, 3] for name, value in BATCH["history"].items()}
    mask = np.array([True, False, False, True])
    new = compiled("update", config)(variables, state, event, mask)
    for name, before, after in zip(state._fields, state, new, strict=True):
        before, after = np.asarray(before), np.asarray(after)
        assert (before[~mask] == after[~mask]).all(), name
        assert (before[0] != after[0]).any(), name  # and one with an event does not
    # What stands in a masked event does not matter, not even in a gradient.
    junk = jnp.where(mask[:, None], jnp.ones((B, D + 3)), jnp.nan)
    params = mimn.MIMN(config).bind(variables).machine()
    score = lambda p: sum(x.sum() for x in memory.step(p, state, junk, jnp.asarray(mask)))
    gradients = jax.jit(jax.grad(score))(params)
    assert all(jnp.isfinite(x).all() for x in gradients.values())


def test_the_memory_starts_as_the_same_tiny_noise_for_everybody():
    config = config_of()
    one = variables_of(config)
    other = jax.tree.map(lambda x: x + 1, one)
    state, same = mimn.init_state(one, config, 3), mimn.init_state(other, config, 2)
    assert (state.memory == same.memory[:1]).all()
    assert len(np.unique(state.memory[0])) == 3 * D  # slots can be told apart
    assert 0 < np.abs(state.memory).max() < 1e-4
    assert not (state.read[0] == same.read[0]).all()  # learned
    rest = (state.channels, state.controller, state.usage, state.written, state.pooled)
    assert not any(np.asarray(x).any() for x in rest)


def test_a_state_does_not_see_the_candidates():
    config = config_of(mur_weight=0.3, auxiliary_weight=0.7)
    terms = lambda batch: compiled_loss(config)(variables_of(config), batch)[1].terms
    other = {
        **BATCH,
        "candidate": example_batch(SCHEMA, batch=B, candidates=C, seed=9)["candidate"],
    }
    one, two = terms(BATCH), terms(other)
    assert one["usage"] == two["usage"] and one["auxiliary"] == two["auxiliary"]
    assert one["bce"] != two["bce"]


def test_weights_sum_to_one():
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.normal(0, 20, shape), jnp.float32)
    params = {"keys": normal(3, 4), "transfer": normal(3, 3, 3), "keep": jnp.float32(3.0)}
    w = jax.jit(heads.addressing)(params, normal(8, 2, 4), normal(8, 2, 1), normal(8, 3, 4))
    np.testing.assert_allclose(w.sum(axis=-1), 1.0, rtol=1e-6)
    usage = jnp.abs(normal(8, 3))
    np.testing.assert_allclose(heads.transfer(params, w[:, 0], usage).sum(-1), 1, rtol=1e-6)
    sharp = heads.shift_and_sharpen(w[:, 0], normal(8, 3), normal(8, 1))
    np.testing.assert_allclose(sharp.sum(axis=-1), 1.0, rtol=1e-6)


def test_the_regularisation_starts_as_almost_nothing():
    """c = 3: a slot keeps e^3 / (e^3 + m - 1) of its weight, whatever the usage."""
    params = {"transfer": jnp.zeros((3, 3, 3)), "keep": jnp.float32(memory.KEEP)}
    w, usage = jnp.eye(3), jnp.array([[5.0, 1.0, 0.0]] * 3)
    moved = heads.transfer(params, w, usage)
    assert_close(moved, (np.eye(3) * (np.exp(3) - 1) + 1) / (np.exp(3) + 2))


def test_sharpening_is_a_power_and_bears_zeros():
    w = jnp.array([[0.1, 0.0, 0.7, 0.2]])
    stay = jnp.array([[-100.0, 100.0, -100.0]])
    gamma = 4 * (np.log1p(np.exp(-1.0)) + 1)
    sharpen = jax.jit(heads.shift_and_sharpen)
    got = sharpen(w, stay, jnp.array([[-1.0]]))
    expected = np.array([[0.1, 0.0, 0.7, 0.2]]) ** gamma
    assert_close(got, expected / expected.sum(), ulps=32)  # a logarithm, times gamma
    score = lambda w: sharpen(w, stay, jnp.array([[20.0]]))[0, 0]
    assert jnp.isfinite(jax.grad(score)(jnp.array([[1.0, 0.0, 0.0, 0.0]]))).all()
    # One step on: what was in slot i stands in slot i + 1.
    on = sharpen(w, jnp.array([[-100.0, -100.0, 100.0]]), jnp.array([[20.0]]))
    assert on.argmax() == 3


def test_gradients_are_finite_where_memory_or_key_are_zero():
    zeros, ones = jnp.zeros((1, 2, 4)), jnp.ones((1, 2, 4))
    score = lambda key, rows: heads.addressing({}, key, jnp.ones((1, 2, 1)), rows)[0, 0, 0]
    gradients = jax.jit(jax.grad(score, argnums=(0, 1)))
    for arguments in ((ones, zeros), (zeros, ones), (zeros, zeros)):
        for gradient in gradients(*arguments):
            assert jnp.isfinite(gradient).all()
    x = jnp.array([3e-5, -4e-5])  # what a memory starts from is seen: norm 5e-5 against 1e-6
    np.testing.assert_allclose(heads.unit(x), [0.6, -0.8], rtol=1e-3)


def test_only_the_slots_looked_at_move_and_memory_is_not_taught_by_them():
    config = config_of(induction_slots=2)
    variables = variables_of(config)
    params = mimn.MIMN(config).bind(variables).machine()
    state = incremental(variables, config)
    event = jnp.ones((B, D + 3))
    reading = jnp.array([[0.2, 0.5, 0.3], [1 / 3] * 3, [0.0, 0.0, 1.0], [0.4, 0.2, 0.4]])
    induce = lambda state: memory.induce(params, event, reading, state, 2)
    moved = jax.jit(induce)(state)
    changed = np.asarray((moved != state.channels).any(axis=-1))
    expected = [[0, 1, 1], [1, 1, 0], [1, 0, 1], [1, 0, 1]]  # of equals the first
    np.testing.assert_array_equal(changed, np.array(expected, bool))
    of_memory = lambda M: induce(state._replace(memory=M)).sum()
    assert not jax.jit(jax.grad(of_memory))(state.memory).any()


def test_unequal_usage_is_the_squared_deviation_from_the_mean():
    usage = jnp.array([[3.0, 1.0], [2.0, 2.0], [9.0, 1.0]])
    mask = jnp.array([[True, False], [True, True], [False, False]])
    # ((3 - 2)^2 + (1 - 2)^2 + 0) / 2: the third request has no candidate.
    assert memory.unequal_usage(usage, mask) == 1.0
    assert memory.unequal_usage(usage, jnp.zeros_like(mask)) == 0.0


def test_every_term_is_in_the_loss():
    config = config_of(mur_weight=0.3, auxiliary_weight=0.7)
    variables = variables_of(config)
    total, aux = compiled_loss(config)(variables, BATCH)
    assert set(aux.terms) == {"bce", "usage", "auxiliary"}
    users, reads = read_history(config, variables)
    logit, label = exact_scores(config, variables, users), BATCH["label"]["click"]
    bce = np.mean(np.log1p(np.exp(logit)) - label * logit)
    usage = np.mean([((user.g - user.g.mean()) ** 2).sum() for user in users])
    auxiliary = exact_auxiliary(variables, reads)
    assert min(bce, usage, auxiliary) > 1e-3
    for name, exact in (("bce", bce), ("usage", usage), ("auxiliary", auxiliary)):
        assert_close(aux.terms[name], exact, ulps=64)
    assert_close(total, bce + 0.3 * usage + 0.7 * auxiliary, ulps=64)


def exact_auxiliary(variables, reads):
    params, item, _ = in_float64(variables)
    net, each = params["next_behaviour"], []

    def logit(read, vector):
        x = np.concatenate([read, vector])
        for i in range(2):
            x = sigmoid(x @ net[f"dense_{i}"]["kernel"] + net[f"dense_{i}"]["bias"])
        return (x @ net["logit"]["kernel"] + net["logit"]["bias"])[0]

    for b in range(B):
        real = np.flatnonzero(BATCH["history_mask"][b])
        for read, t in zip(reads[b], real[1:], strict=False):
            right = item[BATCH["history"]["item"][b, t]]
            wrong = item[BATCH["history_negative"]["item"][b, t]]
            each.append(
                np.log1p(np.exp(-logit(read, right))) + np.log1p(np.exp(logit(read, wrong)))
            )
    return np.mean(each)


def test_terms_that_are_off_are_absent():
    config = config_of(mur="none")
    batch = {k: v for k, v in BATCH.items() if k != "history_negative"}
    _, aux = jax.eval_shape(compiled_loss(config), variables_of(config), batch)
    assert set(aux.terms) == {"bce"}
    assert mimn.requirements(config).history_negatives == "none"
    assert mimn.requirements(config_of(auxiliary_weight=1.0)).history_negatives == "uniform"


def test_update_and_apply_state_export_with_a_symbolic_batch():
    config = config_of()
    variables = variables_of(config)
    size = jax.export.symbolic_shape("b")[0]
    held = lambda tree, lead: jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((*lead, *x.shape[len(lead) :]), x.dtype), tree
    )
    rest = {k: BATCH[k] for k in ("user", "context", "candidate", "candidate_mask")}
    event = {name: value[:, 0] for name, value in BATCH["history"].items()}
    state = incremental(variables, config, upto=1)

    def serve(variables, state, event, mask, batch):
        state = mimn.update(variables, config, state, event, mask)
        return mimn.apply_state(variables, config, state, batch).logit

    mask = np.ones(B, bool)
    spec = held((state, event, mask, rest), (size,))
    exported = jax.export.export(jax.jit(serve))(held(variables, ()), *spec)
    got = exported.call(variables, state, event, mask, rest)
    expected = jax.jit(serve)(variables, state, event, mask, rest)
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_the_parameter_tree_is_stable():
    """Checkpoints depend on these names: changing them is a breaking change."""
    shapes = jax.eval_shape(lambda key: mimn.init(key, config_of()), jax.random.key(0))
    machine = jax.tree.map(jnp.shape, shapes["params"])["machine"]
    assert machine == {
        "heads_kernel": (6, 18),
        "heads_bias": (18,),
        "read": (4,),
        "keys": (3, 4),
        "transfer": (3, 3, 3),
        "keep": (),
        "controller_kernel": (11, 18),
        "controller_recurrent": (6, 18),
        "controller_bias": (18,),
        "induction_kernel": (11, 15),
        "induction_recurrent": (5, 15),
        "induction_bias": (15,),
    }
    assert set(shapes["params"]) == {"machine", "query", "attention", "tower"}


@pytest.mark.parametrize(
    "options, said",
    [
        ({"slots": 0}, "slots must be >= 1, got 0"),
        ({"induction_slots": 4}, r"induction_slots must be <= slots \(3\), got 4"),
        ({"induction_units": -1}, "induction_units must be >= 0, got -1"),
        ({"mur_weight": -0.5}, "mur_weight must be >= 0, got -0.5"),
        ({"auxiliary_weight": float("nan")}, "auxiliary_weight must be >= 0, got nan"),
        ({"attention_units": ()}, "attention_units must name at least one layer"),
        # Behind this stand the type checks of the tests; users meet our own message.
        ({"mur": "some"}, "'some'"),
    ],
)
def test_config_rejects_nonsense(options, said):
    with pytest.raises((ValueError, jaxtyping.TypeCheckError), match=said):
        config_of(**options)


def test_config_needs_a_field_that_makes_an_item():
    alone = Schema(
        tables=SCHEMA.tables,
        fields=(
            Field(name="item", role="candidate"),
            Field(name="kind", role="history"),
        ),
    )
    with pytest.raises(ValueError, match="must have a field of history and candidate, got none"):
        mimn.Config(schema=alone)
