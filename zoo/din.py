r"""Deep Interest Network (DIN).

Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", KDD 2018,
https://arxiv.org/abs/1706.06978.

The candidate looks at every past behaviour and decides how much of it to take. The weights are
not normalised, so that the pooled interest keeps its intensity (section 4.3):

    v(q) = sum_t a(k_t, q) k_t        x = [user, context, q, v(q)]        logit = tower(x)

with a(.) the activation unit, an MLP over [q, k_t, q - k_t, q * k_t].

Differs from the paper: the unit takes difference and product, as the authors' code does, instead
of the paper's out product; PReLU by default, Dice (section 5.3) as an option. Mini-batch-aware
regularisation (section 5.1) belongs to the tables: `Settings.l2`.
Differs from the authors' code: no softmax over the weights by default (`normalize="softmax"`);
Dice's statistics are those of the real entries in training and running averages at inference
(theirs never moved); no item bias, no projected v; q * v in the tower only with `product=True`;
one sigmoid instead of a two-way softmax.
Shapes: `B` requests, `L` history events, `C` candidates, `D` width of a behaviour.
"""

import dataclasses
from typing import cast

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..kernels.target_attention import (
    Normalize,
)
from .batch import Batch
from .checks import require_choices, require_item_fields, require_positive, require_probability
from .contract import Aux, Output, Requirements, Variables
from .embeddings import as_arrays, dropout, embed, init_variables, read_tables, tower_input
from .features import Schema
from .layers.activation_unit import ActivationUnit
from .layers.losses import ranking_loss
from .layers.tower import Activation, Tower

KIND = "ranking"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters of DIN; the defaults are the paper's structure.

    Attributes:
      schema: what the batches hold; its first task is the label.
      attention_units: widths of the activation unit's hidden layers.
      attention_activation: of the activation unit.
      normalize: "none" keeps the intensity of interest (paper), "softmax" is the released code.
      tower_units: widths of the tower's hidden layers.
      activation: of the tower.
      product: whether the tower also sees q * v.
      embedding_dropout: share of embedding values dropped in training.
    """

    schema: Schema
    attention_units: tuple[int, ...] = (80, 40)
    attention_activation: Activation = "prelu"
    normalize: Normalize = "none"
    tower_units: tuple[int, ...] = (200, 80)
    activation: Activation = "prelu"
    product: bool = False
    embedding_dropout: float = 0.0

    def __post_init__(self):
        require_positive(self, "attention_units", "tower_units")
        require_choices(self)
        require_probability(self, "embedding_dropout")
        if not self.attention_units:
            raise ValueError("Config.attention_units must name at least one layer, got ().")
        require_item_fields(self)


def requirements(config: Config) -> Requirements:
    """Labelled candidates and a history."""
    del config
    return Requirements()


def init(key: PRNGKeyArray, config: Config) -> Variables:
    """Fresh variables: whole tables, activation unit, tower."""
    return init_variables(key, DIN(config), config.schema)


def apply(variables: Variables, config: Config, batch: Batch) -> Output:
    """Scores each candidate. Pure."""
    return cast(Output, DIN(config).apply(variables, batch))


def attention(variables: Variables, config: Config, batch: Batch) -> Float[Array, "B C L"]:
    """Attention weights of each candidate over each event, as `apply` sums with them. Pure."""
    return cast(Array, DIN(config).apply(variables, batch, attention_only=True))


def loss(
    variables: Variables,
    config: Config,
    batch: Batch,
    *,
    key: PRNGKeyArray,
    axis_name: str | None = None,
) -> tuple[Float[Array, ""], Aux]:
    """Weighted binary cross-entropy of the first task."""
    return ranking_loss(DIN(config, axis_name), variables, batch, config.schema.tasks[0], key)


class DIN(nn.Module):
    """Figure 2 of the paper, right: embed, activate, pool, concatenate, score."""

    config: Config
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, batch: Batch, *, train: bool = False, attention_only: bool = False
    ) -> Output | Float[Array, "B C L"]:
        """Scores each candidate; or stops at the weights of the history."""
        config, batch = self.config, as_arrays(batch)
        tables = read_tables(self, config.schema)
        embedded = dropout(
            embed(tables, config.schema, batch), config.embedding_dropout, train=train
        )
        unit = ActivationUnit(
            config.attention_units,
            config.attention_activation,
            config.normalize,
            self.axis_name,
            pooled=not attention_only,
            name="attention",
        )
        interest = unit(
            _like_behaviour(embedded.candidate, embedded.history_only.shape[-1]),
            embedded.behaviour,
            batch["history_mask"],
            batch["candidate_mask"],
            train=train,
        )
        if attention_only:
            return interest
        x = tower_input(embedded, interest, product=config.product)
        tower = Tower(config.tower_units, config.activation, axis_name=self.axis_name, name="tower")
        logit = tower(x, batch["candidate_mask"], train=train)
        return Output(logit, {config.schema.tasks[0]: logit})


def _like_behaviour(candidate: Float[Array, "B C D"], missing: int) -> Float[Array, "B C E"]:
    """Candidates as wide as behaviours: what only the history has is zero, as a padding row."""
    lead = candidate.shape[:2]
    return jnp.concatenate([candidate, jnp.zeros((*lead, missing), candidate.dtype)], axis=-1)
