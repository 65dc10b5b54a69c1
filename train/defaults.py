"""The one frozen set of settings that works untuned.

`Settings()` says how to train. `MODEL` says which options of the models to switch on when nobody
chooses; a model's own `Config()` stays the paper's. They were selected on the validation set of
Amazon Beauty and are used for every model and every source: q * v in the tower, a decaying rate
with dropout of embeddings, several redrawn negatives per positive, a small activation unit; in MIND
draws that meet their nearest interest, and routing by direction.
`SETTINGS` names the few models that are not trained like the others: linear ones, whose rows an
optimiser of their own makes sparse.
"""

import dataclasses
from typing import Any

from ..zoo.contract import Model
from ..zoo.features import Schema
from .settings import Settings

MODEL: dict[str, Any] = {
    "product": True,
    "embedding_dropout": 0.3,
    "attention_units": (32, 16),
    "nearest_draws": True,
    "agreement": "cosine",
    "agreement_scale": 10.0,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "lr": {"table_optimizer": "ftrl", "table_learning_rate": 1.0},
    "mlr": {"table_optimizer": "proximal", "table_learning_rate": 0.05},
}


def settings(model: str, **chosen: Any) -> Settings:
    """The settings for a model of the zoo, but for what is `chosen`."""
    return Settings(**{**SETTINGS.get(model, {}), **chosen})


def model_config(model: Model, schema: Schema, overrides: dict[str, Any] | None = None) -> Any:
    """The model's config with these defaults, where it has such options, and then `overrides`."""
    known = {field.name for field in dataclasses.fields(model.Config)}
    chosen = {name: value for name, value in MODEL.items() if name in known}
    return model.Config(schema=schema, **{**chosen, **(overrides or {})})
