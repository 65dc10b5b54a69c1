"""What an unknown item is worth: as much as the average of the known ones.

In a log of interactions every event that training sees is of a known item, so nothing trains the
unseen row by itself. Hiding some ids (`Settings.unseen_share`) teaches it what an item is worth in
its own context, where half of the candidates are positives; known items also learn that they are
rarely chosen in others'. An unknown item that is worth more than known ones makes every new item
win, one that is worth less makes it lose. The mean of the known rows does neither.
"""

import jax.numpy as jnp

from ..zoo.contract import Variables
from ..zoo.features import RESERVED_ROWS, UNSEEN_ROW
from .data.dataset import Dataset


def averaged_tables(dataset: Dataset) -> frozenset[str]:
    """The tables of items whose unseen row training does not meet: those of sampled negatives."""
    if not dataset.samples_negatives:
        return frozenset()
    fields = [f for f in dataset.schema.fields if f.kind != "dense" and not f.cross]
    of_items = {f.table_name for f in fields if f.role in ("candidate", "history")}
    told = {f.table_name for f in fields if f.missing == "unseen"}
    return frozenset(of_items - told)


def with_average_unseen(variables: Variables, tables: frozenset[str]) -> Variables:
    """The variables with the mean of the known rows in row 1 of these tables."""
    done = {}
    for name, table in variables["tables"].items():
        if name in tables and table.shape[0] > RESERVED_ROWS:
            table = jnp.asarray(table).at[UNSEEN_ROW].set(table[RESERVED_ROWS:].mean(axis=0))
        done[name] = table
    return {**variables, "tables": done}
