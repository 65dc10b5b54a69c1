"""Folders of runs that were never trained, for what only needs their files."""

import dataclasses

import jax
import numpy as np

from logs import hand_made_dataset
from recjax.train import checkpoints, run
from recjax.train.defaults import ALL
from recjax.train.settings import Settings
from recjax.zoo.features import KnownRows
from reranking import drawn


def fresh(module, config):
    """Variables of a model, none of them at its special start."""
    return drawn(jax.eval_shape(lambda: module.init(jax.random.key(0), config)))


def saved(folder, name, config, variables, history=1, module=None):
    """The folder of a run of the model `name`; row j is that of signature j - 2."""
    folder.mkdir()
    module = module or ALL[name]
    row_maps = {
        table.name: KnownRows(np.arange(table.rows - 2, dtype=np.uint64))
        for table in config.schema.tables
    }
    run.save_config(
        folder,
        model=name,
        module=module,
        config=config,
        settings=Settings(history=history),
        source="candidates:cascade",
        dataset=dataclasses.replace(hand_made_dataset(), schema=config.schema, row_maps=row_maps),
    )
    checkpoints.save(folder / "checkpoints" / "best", 1, variables, {}, keep=1)
    return folder
