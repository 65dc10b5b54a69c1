"""Variables of an earlier run, as those of new data begin with."""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from ..zoo.contract import Model, Variables
from ..zoo.features import RESERVED_ROWS, HashedRows, KnownRows
from . import run
from .data.dataset import Dataset

if TYPE_CHECKING:
    from .launch import Trained


def warm_variables(
    before: "Trained", module: Model, config: Any, dataset: Dataset, *, seed: int
) -> Variables:
    """Fresh variables in which everything that an earlier run knew is as it left it.

    Rows of a table with a vocabulary are found by what they stand for: the vocabulary of the new
    data may hold other ids, in other rows. Ids that only the new data have begin as in any new run;
    those that they lack are left behind.

    Args:
      before: the earlier run.
      module, config: of the new one.
      dataset: the new data.
      seed: of what is new.

    Raises:
      RunError: the runs differ in options or schema (the differences are named), or a hashed table
        has another number of rows.
    """
    options = run.options_of(config)
    if options != before.saved.options:
        both = {**before.saved.options, **options}
        changed = [key for key in both if options.get(key) != before.saved.options.get(key)]
        raise run.RunError(f"warm_start: the earlier run has other options: {', '.join(changed)}.")
    before.saved.require_schema(config.schema)
    fresh = module.init(jax.random.key(seed), config)
    old = before.variables
    tables = {}
    for name, table in fresh["tables"].items():
        was, now = before.saved.row_maps[name], dataset.row_maps[name]
        if isinstance(was, KnownRows) and isinstance(now, KnownRows):
            rows = np.asarray(was(now.signatures))
            known = np.flatnonzero(rows >= RESERVED_ROWS)
            to = np.concatenate([np.arange(RESERVED_ROWS), known + RESERVED_ROWS])
            of = np.concatenate([np.arange(RESERVED_ROWS), rows[known]])
            tables[name] = jnp.asarray(table).at[to].set(jnp.asarray(old["tables"][name])[of])
        elif isinstance(was, HashedRows) and was == now:
            tables[name] = old["tables"][name]
        else:
            raise run.RunError(f"warm_start: table {name!r} finds its rows in another way.")
    return {**old, "tables": tables}
