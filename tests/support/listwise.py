"""Lists with clicks for the re-rankers that learn from them, and what is done to such lists."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from recjax.zoo.features import Field, Schema, Table, example_batch
from reranking import SCHEMA, requests


def clicked_lists(seed=3):
    """Four requests of six candidates: two clicks, holes and one click, no click, nothing shown.

    The last candidate of the first request was not shown, though its label says clicked.
    """
    batch = requests(seed=seed)
    label = np.zeros((4, 6), np.float32)
    label[0, [1, 3, 5]] = 1
    label[1, 4] = 1
    label[3, 0] = 1
    weight = np.ones((4, 6), np.float32)
    weight[0, 3] = 0.5
    weight[0, 5] = 0
    weight[3] = 0
    every = {task: label for task in SCHEMA.tasks}
    return {**batch, "label": every, "weight": {task: weight for task in SCHEMA.tasks}}


def per_candidate(batch, change):
    """The batch with `change` made to every array that has one entry per candidate."""
    changed = {"candidate_mask": change(batch["candidate_mask"])}
    for role in ("candidate", "label", "weight"):
        if role in batch:
            changed[role] = {name: change(value) for name, value in batch[role].items()}
    return {**batch, **changed}


def moved(batch, rows):
    """Candidates in another order, the same for all requests."""
    return per_candidate(batch, lambda x: x[:, rows])


def worse_padding(batch, extra=0):
    """All of it holds NaN and ids that no table has, and there may be more at the end."""
    batch = per_candidate(batch, lambda x: np.pad(x, [(0, 0), (0, extra)]))
    mask = batch["candidate_mask"]

    def spoil(x):
        if x.dtype == bool:
            return x
        return np.where(mask, x, np.array(np.nan if x.dtype == np.float32 else 10**6, x.dtype))

    return per_candidate(batch, spoil)


ODD_SCHEMA = Schema(
    tables=(Table(name="kind", rows=6, dim=8),),
    fields=(Field(name="kind", role="candidate"),),
    tasks=("click",),
)


def odd_ones_out(length=4, kinds=4):
    """Every list of one kind with a single item of another, which is the one that is clicked.

    Each kind stands, and is clicked, as often as any other in each place: whatever a score makes
    of kind and place alone, the softmax loss cannot fall below log(length).
    """
    lists = [
        (common, odd, place)
        for common, odd in itertools.permutations(range(2, 2 + kinds), 2)
        for place in range(length)
    ]
    batch = example_batch(ODD_SCHEMA, batch=len(lists), history=1, candidates=length)
    for row, (common, odd, place) in enumerate(lists):
        batch["candidate"]["kind"][row] = common
        batch["candidate"]["kind"][row, place] = odd
        batch["label"]["click"][row] = np.arange(length) == place
    return batch


def fitted(model, config, batch, *, steps, rate=0.01):
    """What the model gives after some steps of Adam on one batch, and the loss before each."""
    variables = model.init(jax.random.key(0), config)
    # Tables start near 0, which takes long to leave.
    variables["tables"] = jax.tree.map(lambda x: 50 * x, variables["tables"])
    optimizer = optax.adam(rate)

    @jax.jit
    def run(variables):
        def step(carry, key):
            variables, state = carry
            of = lambda v: model.loss(v, config, batch, key=key)[0]
            value, gradient = jax.value_and_grad(of)(variables)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(variables, updates), state), value

        carry = (variables, optimizer.init(variables))
        (variables, _), losses = jax.lax.scan(
            step, carry, jax.random.split(jax.random.key(1), steps)
        )
        return model.apply(variables, config, batch), losses

    with jax.numpy_dtype_promotion("standard"):  # optax.adam mixes float32 and int32
        return run(variables)


def flat(tree):
    """All leaves as one vector: where one of them is 0 but for rounding, others give the scale."""
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])
