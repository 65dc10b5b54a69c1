"""The one frozen set of settings that works untuned.

`Settings()` says how to train. `OPTIONS` says which options of the models to switch on when nobody
chooses, `MODEL_OPTIONS` of single ones; a model's own `Config()` stays the paper's. They were
selected on the validation set of Amazon Beauty and are used for every source: q * v in the tower, a
decaying rate with dropout of embeddings, several redrawn negatives per positive, a small activation
unit; in DIEN a light auxiliary loss, attention that need not choose, and means; in MIND draws that
meet their nearest interest, and routing by direction. The rate of the tables and the size of
batches were selected on the validation sets of Beauty, MovieLens 100K and two presets of the
market; `docs/results/search.md` says what they leave on the table.
`MODEL_SETTINGS` names the models that are not trained like the others: linear ones, whose rows an
optimiser of their own makes sparse; retrievers, whose negatives are the batch's; and re-rankers.
"""

import dataclasses
from typing import Any

from ..zoo import MODELS
from ..zoo.contract import Model
from ..zoo.features import Schema
from ..zoo.rerank import GENERATORS, RERANKERS
from .options import Option, listed
from .settings import Settings

ALL: dict[str, Any] = {**MODELS, **RERANKERS, **GENERATORS}

OPTIONS: dict[str, Any] = {
    "product": True,
    "embedding_dropout": 0.3,
    "attention_units": (32, 16),
}
MODEL_OPTIONS: dict[str, dict[str, Any]] = {
    "dien": {"auxiliary_weight": 0.1, "attn_scale": "sigmoid", "pooling": "mean"},
    "mind": {"nearest_draws": True, "agreement": "cosine", "agreement_scale": 10.0},
}
_RETRIEVERS = tuple(name for name, model in MODELS.items() if model.KIND == "retrieval")
_CALMER = {"batch_size": 2048, "table_learning_rate": 3e-3}
MODEL_SETTINGS: dict[str, dict[str, Any]] = {
    "lr": {"table_optimizer": "ftrl", "table_learning_rate": 1.0},
    "mlr": {"table_optimizer": "proximal", "table_learning_rate": 0.05},
    **dict.fromkeys(_RETRIEVERS, _CALMER),
    **dict.fromkeys((*RERANKERS, *GENERATORS), {"epochs": 3, **_CALMER}),
}


def settings(name: str, model: Model | None = None, **chosen: Any) -> Settings:
    """The settings for a model of the zoo, but for what is `chosen`.

    `model` is the module of that name, the zoo's by default; others have no settings of their own.
    """
    of_zoo = model is None or ALL.get(name) is model
    return Settings(**{**(MODEL_SETTINGS.get(name, {}) if of_zoo else {}), **chosen})


def model_options(name: str, model: Model) -> dict[str, Any]:
    """The options that these defaults switch on; none for models from outside the zoo."""
    if ALL.get(name) is not model:
        return {}
    # Dropout and products are answers to the zoo's small logs of one user's events.
    fields = dataclasses.fields(model.Config) if name in MODELS else ()
    known = {field.name for field in fields}
    shared = {option: value for option, value in OPTIONS.items() if option in known}
    return {**shared, **MODEL_OPTIONS.get(name, {})}


def options_with_defaults(name: str) -> list[Option]:
    """Every option of a model of the zoo and of its training, with what it is by default.

    Raises:
      ValueError: an unknown name.
    """
    if name not in ALL:
        raise ValueError(f"Unknown model {name!r}; choose from {', '.join(ALL)}.")
    of_training = dataclasses.asdict(settings(name))
    return [
        *listed(ALL[name].Config, model_options(name, ALL[name]), "model"),
        *listed(Settings, of_training, "training"),
    ]


def model_config(
    name: str, schema: Schema, overrides: dict[str, Any] | None = None, model: Model | None = None
) -> Any:
    """The config of a model: these defaults where it has such options, and `overrides`.

    `model` is the module of that name, the zoo's by default.
    """
    module: Model = ALL[name] if model is None else model
    return module.Config(schema=schema, **{**model_options(name, module), **(overrides or {})})
