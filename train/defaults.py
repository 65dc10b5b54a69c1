"""The one frozen set of settings that works untuned.

`Settings()` says how to train. `MODEL` says which options of the models to switch on when nobody
chooses; a model's own `Config()` stays the paper's. They were selected on the validation set of
Amazon Beauty and are used for every model and every source. What mattered there, in validation
AUC: q * v in the tower +.010 to .013, a decaying rate with dropout of embeddings +.004, three
redrawn negatives instead of one +.004, softmax over no normalisation +.005 (short histories; on
long ones it costs 1 to 2 points: `--set normalize=none`).
"""

import dataclasses
from typing import Any

from ..zoo.contract import Model
from ..zoo.features import Schema

MODEL: dict[str, Any] = {
    "product": True,
    "embedding_dropout": 0.3,
    "normalize": "softmax",
}


def model_config(model: Model, schema: Schema, overrides: dict[str, Any] | None = None) -> Any:
    """The model's config with these defaults, where it has such options, and then `overrides`."""
    known = {field.name for field in dataclasses.fields(model.Config)}
    chosen = {name: value for name, value in MODEL.items() if name in known}
    return model.Config(schema=schema, **{**chosen, **(overrides or {})})
