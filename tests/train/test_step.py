"""What a step draws: other noise at every step, and on every device."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from logs import random_dataset
from recjax.train.data.batches.pipeline import TrainingBatches
from recjax.train.settings import Settings
from recjax.train.step import initial_state, make_step
from recjax.zoo import mlp
from recjax.zoo.layers.losses import in_training

SETTINGS = Settings(batch_size=64, history=5)


def test_every_step_draws_its_own_noise():
    data = random_dataset()
    config = mlp.Config(schema=data.schema, tower_units=(4,), embedding_dropout=0.5)
    step = jax.jit(make_step(mlp, config, SETTINGS, total_steps=100))
    batches = TrainingBatches(data, batch_size=64, history=5)
    batch, pulled = next(batches.epoch(0))
    state = initial_state(mlp, config, SETTINGS, {})
    # Rows start small: larger ones, so that what is dropped is felt.
    state = state._replace(tables=jax.tree.map(lambda table: 50 * table, state.tables))
    loss = lambda number: float(
        step(state._replace(step=jnp.int32(number)), batch, pulled)[1]["bce"]
    )
    assert loss(0) == loss(0)
    assert len({loss(number) for number in range(4)}) == 4


class Dropped(nn.Module):
    axis_name: str | None = None

    @nn.compact
    def __call__(self, batch, *, train):
        return nn.Dropout(0.5, deterministic=not train)(batch["x"])


@pytest.mark.skipif(jax.local_device_count() < 2, reason="needs two (simulated) devices")
def test_every_device_drops_other_values():
    @functools.partial(jax.pmap, axis_name="devices", devices=jax.local_devices()[:2])
    def dropped(batch):
        return in_training(Dropped("devices"), {}, batch, jax.random.key(0))[0]

    first, second = np.asarray(dropped({"x": jnp.ones((2, 100))}))
    assert 20 < (first == 0).sum() < 80 and (first != second).any()
