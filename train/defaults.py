"""The one frozen set of settings that works untuned.

`Settings()` says how to train. `MODEL` says which options of the models to switch on when nobody
chooses; a model's own `Config()` stays the paper's. They were selected on the validation set of
Amazon Beauty and are used for every model and every source: q * v in the tower, a decaying rate
with dropout of embeddings, several redrawn negatives per positive, a softmax over short histories
(on long ones, such as MovieLens', `--set normalize=none` is worth a try).
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
