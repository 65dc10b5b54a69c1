r"""Embedding & MLP: the base model that the others are measured against.

Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", KDD 2018, section 4.2,
https://arxiv.org/abs/1706.06978 (there "BaseModel").

The history is summed, whatever the candidate, and a tower scores the concatenation:

    v = sum_t k_t        x = [user, context, q, v]        logit = tower(x)

Differs from the paper: PReLU instead of Dice in the tower by default; mean pooling as an option.
Shapes: `B` requests, `L` history events, `C` candidates, `D` width of a behaviour.
"""

import dataclasses
from typing import Literal, cast

import flax.linen as nn
from jaxtyping import Array, Float, PRNGKeyArray

from .batch import Batch
from .checks import require_choices, require_fields, require_positive, require_probability
from .contract import Aux, Output, Requirements, Variables
from .embeddings import (
    as_arrays,
    dropout,
    embed,
    for_each_candidate,
    init_variables,
    pool,
    read_tables,
    tower_input,
)
from .features import Schema
from .layers.losses import ranking_loss
from .layers.tower import Activation, Tower

KIND = "ranking"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters of Embedding & MLP.

    Attributes:
      schema: what the batches hold; its first task is the label.
      tower_units: widths of the hidden layers.
      activation: of the tower.
      pooling: how the history becomes one vector.
      product: whether the tower also sees q * v.
      embedding_dropout: share of embedding values dropped in training.
    """

    schema: Schema
    tower_units: tuple[int, ...] = (200, 80)
    activation: Activation = "prelu"
    pooling: Literal["sum", "mean"] = "sum"
    product: bool = False
    embedding_dropout: float = 0.0

    def __post_init__(self):
        require_fields(self)
        require_positive(self, "tower_units")
        require_choices(self)
        require_probability(self, "embedding_dropout")


def requirements(config: Config) -> Requirements:
    """Labelled candidates and a history."""
    del config
    return Requirements()


def init(key: PRNGKeyArray, config: Config) -> Variables:
    """Fresh variables: whole tables and the tower."""
    return init_variables(key, MLP(config), config.schema)


def apply(variables: Variables, config: Config, batch: Batch) -> Output:
    """Scores each candidate. Pure."""
    return cast(Output, MLP(config).apply(variables, batch))


def loss(
    variables: Variables,
    config: Config,
    batch: Batch,
    *,
    key: PRNGKeyArray,
    axis_name: str | None = None,
) -> tuple[Float[Array, ""], Aux]:
    """Weighted binary cross-entropy of the first task."""
    return ranking_loss(MLP(config, axis_name), variables, batch, config.schema.tasks[0], key)


class MLP(nn.Module):
    """Pool, concatenate, score."""

    config: Config
    axis_name: str | None = None

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool = False) -> Output:
        """Scores each candidate."""
        config, batch = self.config, as_arrays(batch)
        tables = read_tables(self, config.schema)
        embedded = embed(tables, config.schema, batch)
        embedded = dropout(embedded, config.embedding_dropout, train=train)
        history = embedded.behaviour
        pooled = pool(history, batch["history_mask"], config.pooling)
        interest = for_each_candidate(pooled, embedded.candidate.shape[1])
        x = tower_input(embedded, interest, product=config.product)
        tower = Tower(config.tower_units, config.activation, axis_name=self.axis_name, name="tower")
        logit = tower(x, batch["candidate_mask"], train=train)
        return Output(logit, {config.schema.tasks[0]: logit})
