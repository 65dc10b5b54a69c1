"""A small generator, a small evaluator and requests for them, shared by the tests."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from recjax.zoo.features import Field, Schema, Table, example_batch
from recjax.zoo.rerank import evaluator, generator, last, rewards

SCHEMA = Schema(
    tables=(Table(name="item", rows=30, dim=4), Table(name="kind", rows=5, dim=3)),
    fields=(
        Field(name="kind", role="user"),
        Field(name="item", role="candidate"),
        Field(name="price", role="candidate", kind="dense"),
    ),
    tasks=("click", "purchase"),
)
CONFIG = generator.Config(
    schema=SCHEMA, slots=3, encoder_units=6, hidden_units=4, heads=2, head_units=5
)
JUDGES = evaluator.Config(
    schema=SCHEMA, slots=3, units=6, heads=2, head_dim=3, gru_units=4, tower_units=(7,)
)


def requests(batch=4, candidates=6, seed=0):
    """Requests; the second has a hole and an end that are masked."""
    found = example_batch(SCHEMA, batch=batch, history=1, candidates=candidates, seed=seed)
    found["candidate_mask"][:] = True
    if batch > 1 and candidates > 2:
        found["candidate_mask"][1, [1, -1]] = False
    return found


def drawn(shapes, seed=1, scale=0.5):
    """Numbers of these shapes, none of them at its special start."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, scale, x.shape), jnp.float32), shapes)


@functools.cache
def generator_of(config=CONFIG, seed=1, module=generator):
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), config))
    return last.TrainedGenerator(drawn(shapes, seed), config, module)


@functools.cache
def evaluators_of(count=1, config=JUDGES, worth=(1.0, 0.5), more=()):
    shapes = jax.eval_shape(lambda: evaluator.init(jax.random.key(0), config))
    return rewards.Evaluators([drawn(shapes, 10 + i) for i in range(count)], config, worth, more)
