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
from typing import Literal, cast

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ..kernels.target_attention import (
    Layer,
    Weights,
    attention_scores,
    moments,
    target_attention,
)
from .checks import require_choice, require_item_fields, require_positive, require_probability
from .contract import Aux, Batch, Output, Requirements, Variables
from .embeddings import as_arrays, dropout, embed, init_variables, read_tables, tower_input
from .features import Schema
from .layers.losses import ranking_loss
from .layers.tower import ACTIVATIONS, PRELU_ALPHA, Activation, RunningMoments, Tower

KIND = "ranking"

Normalize = Literal["none", "softmax"]


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
        require_choice(self, "attention_activation", ACTIVATIONS)
        require_choice(self, "activation", ACTIVATIONS)
        require_choice(self, "normalize", ("none", "softmax"))
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
    """What each candidate takes of each event: the weights that `apply` sums with. Pure."""
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
            jnp.concatenate([embedded.history, embedded.history_only], axis=-1),
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


class ActivationUnit(nn.Module):
    """Local activation and pooling: parameters here, arithmetic in `kernels.target_attention`.

    Without `pooled` it gives the weights themselves, (B, C, L).
    """

    units: tuple[int, ...]
    activation: Activation
    normalize: Normalize
    axis_name: str | None = None
    pooled: bool = True

    @nn.compact
    def __call__(
        self,
        query: Float[Array, "B C D"],
        keys: Float[Array, "B L D"],
        mask: Bool[Array, "B L"],
        candidate_mask: Bool[Array, "B C"],
        *,
        train: bool,
    ) -> Float[Array, "B C V"]:
        """The interest that each candidate finds in the history."""
        layers, width = [], 4 * keys.shape[-1]
        for i, unit in enumerate(self.units):
            layers.append(self._layer(i, width, unit))
            width = unit
        glorot = nn.initializers.glorot_uniform()
        out_kernel = self.param("out_kernel", glorot, (width, 1))[:, 0]
        # Softmax ignores a constant: the bias would have no gradient but rounding noise.
        out_bias = None
        if self.normalize == "none":
            # From 1 on, v starts as the base model's sum and learns what to leave out; from 0 on it
            # starts as nothing.
            out_bias = self.param("out_bias", nn.initializers.ones, ())
        weights = Weights(tuple(layers), out_kernel, out_bias)
        if self.activation == "dice":
            weights = self._with_statistics(weights, query, keys, mask, candidate_mask, train)
        attend = target_attention if self.pooled else attention_scores
        return attend(
            query, keys, mask, weights, activation=self.activation, normalize=self.normalize
        )

    def _layer(self, i: int, width: int, unit: int) -> Layer:
        kernel = self.param(f"kernel_{i}", nn.initializers.glorot_uniform(), (width, unit))
        bias = self.param(f"bias_{i}", nn.initializers.zeros, (unit,))
        alpha = None
        if self.activation in ("prelu", "dice"):
            start = PRELU_ALPHA if self.activation == "prelu" else 0.0
            alpha = self.param(f"alpha_{i}", nn.initializers.constant(start), (unit,))
        return Layer(kernel, bias, alpha, None, None)

    def _with_statistics(
        self, weights: Weights, query, keys, mask, candidate_mask, train: bool
    ) -> Weights:
        """Dice's statistics: of this batch in training, running averages otherwise."""
        batch_moments = [None] * len(self.units)
        if train:
            batch_moments = moments(
                query, keys, mask, candidate_mask, weights, axis_name=self.axis_name
            )
        layers = []
        for i, layer in enumerate(weights.layers):
            running = RunningMoments(self.units[i], name=f"running_{i}")
            mean, variance = running(batch_moments[i])
            layers.append(layer._replace(mean=mean, variance=variance))
        return weights._replace(layers=tuple(layers))


def _like_behaviour(candidate: Float[Array, "B C D"], missing: int) -> Float[Array, "B C E"]:
    """Candidates as wide as behaviours: what only the history has is zero, as a padding row."""
    lead = candidate.shape[:2]
    return jnp.concatenate([candidate, jnp.zeros((*lead, missing), candidate.dtype)], axis=-1)
