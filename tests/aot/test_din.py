"""DIN's steps compiled for an H100: the kernels are in them, and nothing as long as a history."""

import jax
import jax.numpy as jnp
import pytest

from aot.devices import compiled, temporary
from recjax.zoo import din
from recjax.zoo.features import Field, Schema, Table, example_batch

SCHEMA = Schema(
    tables=(Table(name="item", rows=10_000, dim=32), Table(name="category", rows=100, dim=32)),
    fields=(
        Field(name="item", role="candidate"),
        Field(name="category", role="candidate"),
        Field(name="item", role="history"),
        Field(name="category", role="history"),
    ),
)
BATCH, HISTORY = 64, 2000
ONE_HIDDEN_LAYER = BATCH * HISTORY * 80 * 4 / 2**20  # MiB, of float32


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


@pytest.mark.parametrize("normalize", ["none", "softmax"])
def test_steps(normalize):
    config = din.Config(schema=SCHEMA, attention_activation="prelu", normalize=normalize)
    batch = example_batch(SCHEMA, batch=BATCH, candidates=1, history=HISTORY)
    batch = abstract(jax.tree.map(jnp.asarray, batch))
    variables = jax.eval_shape(lambda key: din.init(key, config), jax.random.key(0))

    def serve(variables, batch):
        return din.apply(variables, config, batch)

    def train(params, tables, batch):
        def loss(params, tables):
            held = {**variables, "params": params, "tables": tables}
            return din.loss(held, config, batch, key=jax.random.key(0))[0]

        return jax.value_and_grad(loss, (0, 1))(params, tables)

    gathered = BATCH * HISTORY * 64 * 4 / 2**20  # The history itself, embedded.
    step = compiled("cuda", serve, variables, batch)
    assert "triton_kernel_call" in step.as_text()
    assert temporary(step) < 2 * gathered + ONE_HIDDEN_LAYER
    step = compiled("cuda", train, variables["params"], variables["tables"], batch)
    assert step.as_text().count("triton_kernel_call") >= 4
    assert temporary(step) < 6 * gathered + ONE_HIDDEN_LAYER
