"""The row of unknown items: a weighted mean of the known ones.

In a log of interactions every event that training sees is of a known item, so nothing trains the
unseen row by itself. Hiding some ids (`Settings.unseen_share`) teaches it what an item is worth in
its own context, where half of the candidates are positives; known items also learn that they are
rarely chosen in others'. An unknown item that is worth more than known ones makes every new item
win, one that is worth less makes it lose. So its row is the mean of the known ones, each weighted
by the square root of how often training chose it: between an item of the catalogue, and a choice.
"""

import jax.numpy as jnp
import numpy as np

from ..zoo.contract import Variables
from ..zoo.features import RESERVED_ROWS, UNSEEN_ROW
from .data.dataset import Dataset


def unseen_weights(dataset: Dataset) -> dict[str, np.ndarray]:
    """{table: (rows,) weights, which sum to 1} of tables whose unseen row training does not meet.

    Those of items in logs of interactions; a field that reads what is missing as unseen has values
    of its own in row 1.
    """
    if not dataset.samples_negatives:
        return {}
    log, train = dataset.log, dataset.train
    chosen = train.candidate[(train.label[dataset.schema.tasks[0]] > 0) & (train.candidate >= 0)]
    fields = [f for f in dataset.schema.fields if f.kind != "dense" and not f.cross]
    told = {f.table_name for f in fields if f.missing == "unseen"}
    found = {}
    for field in fields:
        name, rows = field.table_name, dataset.schema.table(field.table_name).rows
        if field.role not in ("candidate", "history") or name in told or rows <= RESERVED_ROWS:
            continue
        counts = np.zeros(rows)
        if field.name in log.items:
            counts = np.bincount(log.items[field.name][chosen].ravel(), minlength=rows)
        weight = np.sqrt(counts.astype(np.float64))
        weight[:RESERVED_ROWS] = 0
        if not weight.any():
            weight[RESERVED_ROWS:] = 1
        found[name] = (weight / weight.sum()).astype(np.float32)
    return found


def with_average_unseen(variables: Variables, weights: dict[str, np.ndarray]) -> Variables:
    """The variables with the weighted mean of the known rows in row 1 of these tables."""
    done = dict(variables["tables"])
    for name, weight in weights.items():
        if name in done:
            table = jnp.asarray(done[name])
            mean = jnp.einsum("r,rd->d", jnp.asarray(weight, table.dtype), table)
            done[name] = table.at[UNSEEN_ROW].set(mean)
    return {**variables, "tables": done}
