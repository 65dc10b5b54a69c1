"""Weights, gradients and batches of the libraries in our layout, and how to compare with them.

A map of weights is linear (names change, matrices are transposed), so the same map turns the
libraries' gradients into ours: `mapped(parameters(model))` and `mapped(gradients(model))`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from recjax.zoo.features import Field, Schema, Table, example_batch

SCHEMA = Schema(
    tables=(
        Table(name="item", rows=30, dim=4),
        Table(name="category", rows=7, dim=3),
        Table(name="user", rows=11, dim=5),
    ),
    fields=(
        Field(name="user", role="user"),
        Field(name="item", role="history"),
        Field(name="category", role="history"),
        Field(name="item", role="candidate"),
        Field(name="category", role="candidate"),
    ),
)
LENGTH, CANDIDATES, WIDTH = 6, 3, 4 + 3


def parameters(module):
    """Everything that the module has learned or kept, by its PyTorch name."""
    return {name: value.numpy(force=True).copy() for name, value in module.state_dict().items()}


def gradients(module):
    """Of what was last differentiated, by the same names; zero for what has none."""
    zero = {name: np.zeros_like(value) for name, value in parameters(module).items()}
    found = {
        name: value.grad.numpy(force=True).copy()
        for name, value in module.named_parameters(remove_duplicate=False)
        if value.grad is not None
    }
    return zero | found


def shake(module, seed=0):
    """The module with random weights, biases and statistics; only padding rows stay zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in module.parameters():
            scale = 0.5 if value.ndim < 2 else value.shape[-1] ** -0.5
            value.normal_(0.0, scale, generator=generator)
        for layer in module.modules():
            if isinstance(layer, torch.nn.Embedding) and layer.padding_idx is not None:
                layer.weight[layer.padding_idx] = 0.0
        for name, value in module.named_buffers():
            if name.endswith("running_mean"):
                value.normal_(0.0, 0.5, generator=generator)
            elif name.endswith("running_var"):
                value.uniform_(0.5, 2.0, generator=generator)
    return module


def dense(weights, name):
    """A `torch.nn.Linear` as a Flax Dense."""
    layer = {"kernel": weights[f"{name}.weight"].T}
    return layer | ({"bias": weights[f"{name}.bias"]} if f"{name}.bias" in weights else {})


def random_batch(lengths=(6, 1, 4, 3), *, schema=SCHEMA, seed=0, **options):
    """A batch with histories of these lengths, padded right as the libraries want them."""
    rng = np.random.default_rng(seed)
    mask = np.arange(LENGTH)[None] < np.array(lengths)[:, None]
    draw = lambda field: rng.integers(1, schema.table(field.table_name).rows, mask.shape)
    batch = example_batch(
        schema, batch=len(lengths), history=LENGTH, candidates=CANDIDATES, seed=seed, **options
    )
    batch["history_mask"] = mask
    for role in ("history", "history_negative"):
        if role in batch:
            names = batch[role]
            fields = [field for field in schema.role("history") if field.name in names]
            ids = {field.name: np.where(mask, draw(field), 0) for field in fields}
            batch[role] = {name: value.astype(np.int32) for name, value in ids.items()}
    return batch


def one_row_per_candidate(batch):
    """{(role, field): (B C,) or (B C, L)}: the libraries know one candidate per row."""
    rows = {}
    for role in ("user", "context", "history", "history_negative", "candidate"):
        for name, value in batch.get(role, {}).items():
            repeated = value if role == "candidate" else np.repeat(value, CANDIDATES, axis=0)
            rows[role, name] = repeated.reshape(-1, *value.shape[2 if role == "candidate" else 1 :])
    return rows


def assert_same(ours, theirs, tolerance=1e-5):
    """Leaf by leaf: |ours - theirs| <= tolerance * max(1, max|theirs|)."""
    ours, theirs = jax.tree.map(np.asarray, (ours, theirs))
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True
    ):
        name = jax.tree_util.keystr(path)
        assert a.shape == b.shape, f"{name}: shape {a.shape}, theirs {b.shape}"
        assert np.isfinite(b).all() and np.isfinite(a).all(), f"{name}: not finite"
        worst = np.max(np.abs(a - b), initial=0.0) / max(1.0, np.max(np.abs(b), initial=0.0))
        assert worst <= tolerance, f"{name}: off by {worst:.1e} (limit {tolerance:.0e})"


def assert_same_function(ours, theirs, *inputs, tolerance=1e-5):
    """Of arrays and of tensors: the same value, and the same gradient for every input."""
    tensors = [torch.tensor(x, requires_grad=True) for x in inputs]
    result = theirs(*tensors)
    (direction,) = random_arrays(tuple(result.shape), seed=9)
    result.backward(torch.tensor(direction))

    @jax.jit
    def both(direction, *inputs):
        value, pull = jax.vjp(ours, *inputs)
        return value, pull(direction)

    value, gradient = both(*arrays((direction, *inputs)))
    assert_same(value, result.numpy(force=True), tolerance)
    expected = tuple(x.grad.numpy(force=True) for x in tensors)
    assert_same(gradient, expected, tolerance)


def assert_same_model(model, config, batch, mapped, theirs, logit, more=0.0):
    """The same logits, click loss, and gradient of it for every weight and table.

    `mapped` makes our variables of the weights of `theirs`; `logit` is what it says of the batch,
    and `more` another term of its loss.
    """
    apply = jax.jit(lambda variables: model.apply(variables, config, batch).logit)
    assert_same(apply(arrays(mapped(parameters(theirs)))), per_candidate(logit))
    label = torch.tensor(batch["label"][config.schema.tasks[0]]).reshape(logit.shape)
    cost = torch.nn.functional.binary_cross_entropy_with_logits(logit, label)
    assert_same_training(training_loss(model, config, batch), mapped, theirs, cost + more)


def assert_same_output(ours, mapped, theirs, result):
    """`ours(variables)` is their result, and so is the gradient of a random mixture of it."""
    assert_same(jax.jit(ours)(arrays(mapped(parameters(theirs)))), result.numpy(force=True))
    (direction,) = random_arrays(tuple(result.shape), seed=9)
    mixture = lambda variables: jnp.sum(ours(variables) * direction)
    assert_same_training(mixture, mapped, theirs, (result * torch.tensor(direction)).sum())


def assert_same_training(loss, mapped, theirs, cost):
    """Our `loss(variables)` is their `cost`, and so is its gradient for every weight and table."""
    value, gradient = loss_and_gradient(loss, mapped(parameters(theirs)))
    assert_same(value, cost.numpy(force=True))
    cost.backward()
    expected = mapped(gradients(theirs))
    assert_same(gradient, {name: expected[name] for name in gradient})


def training_loss(model, config, batch):
    """Of the variables alone."""
    return lambda variables: model.loss(variables, config, batch, key=jax.random.key(0))[0]


def loss_and_gradient(loss, variables):
    """The gradient is for what can be learned: tables and parameters."""
    variables = arrays(variables)
    learned = {name: variables[name] for name in ("tables", "params")}
    return jax.jit(jax.value_and_grad(lambda learned: loss(variables | learned)))(learned)


def per_candidate(column):
    """One number per row of theirs, as (B, C)."""
    return column.numpy(force=True).reshape(-1, CANDIDATES)


def arrays(tree):
    """What our models take; weights come as NumPy's."""
    return jax.tree.map(jnp.asarray, tree)


def random_arrays(*shapes, seed=0):
    """Standard normal float32 arrays."""
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)
