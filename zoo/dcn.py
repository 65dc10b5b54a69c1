r"""Deep & Cross Network, first and second version (DCN, DCN-v2).

Wang et al., "Deep & Cross Network for Ad Click Predictions", ADKDD 2017,
https://arxiv.org/abs/1708.05123, and Wang et al., "DCN V2: Improved Deep & Cross Network and
Practical Lessons for Web-scale Learning to Rank Systems", WWW 2021,
https://arxiv.org/abs/2008.13535.

Each cross layer multiplies what it is given with the input once more, so that l layers hold all
products of up to l + 1 features, at a cost that is linear in l. From x_0 = [user, context, q,
sum_t k_t], by `cross`,

    v1         x_{l+1} = x_0 (x_l . w) + b + x_l                               2017
    full       x_{l+1} = x_0 * (W x_l + b) + x_l                               2021, equation 1
    low_rank   x_{l+1} = x_0 * (U (V^T x_l) + b) + x_l                         equation 3
    mixture    x_{l+1} = sum_i G_i(x_l) E_i(x_l) + x_l                         equations 4, 5
               E_i(x)  = x_0 * (U_i g(C_i g(V_i^T x)) + b)

and beside them (`structure` "parallel": logit = linear([x_L, deep(x_0)])) or behind them
("stacked": logit = tower(x_L)) fully connected layers. v1 is `full` with W = 1 w^T, up to where b
stands.

Differs from the papers: the history, summed, is one of the features; no BatchNorm; sizes and
activation of the deep part are those of the zoo's other towers (Criteo wanted 6 cross layers and
1024, 1024; v2 there 2 and 768, 768). `rank` is that of one expert; the paper's r is the sum.
Differs from libraries: gate and g are options, where they fix softmax and tanh; on Criteo a
constant gate with hard tanh was best. As there, all layers share one gate; the paper does not
say: `gate_per_layer`.
A cross network is a polynomial of degree l + 1: dense fields must come in with a scale near 1
(`transform` of the schema's fields), or it explodes.
Shapes: `B` requests, `C` candidates, `I` width of x_0, `K` experts, `R` rank.
"""

import dataclasses
from typing import Literal, cast

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .batch import Batch
from .checks import require_choices, require_fields, require_positive, require_probability
from .contract import Aux, Output, Requirements, Variables
from .embeddings import (
    Pooling,
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
from .layers.tower import Activation, Layers, Tower

KIND = "ranking"

Cross = Literal["v1", "full", "low_rank", "mixture"]
Structure = Literal["parallel", "stacked"]
Gate = Literal["const", "softmax", "sigmoid"]
Nonlinearity = Literal["identity", "tanh", "hard_tanh"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters of DCN.

    Attributes:
      schema: what the batches hold; its first task is the label.
      cross: the form of a cross layer.
      cross_layers: how many.
      structure: whether the tower stands beside the cross layers or on them.
      tower_units: widths of the deep part's hidden layers; () for cross layers alone (stacked).
      activation: of the deep part.
      rank: of each low-rank matrix.
      experts: of a mixture.
      gate: how a mixture weighs its experts; "const" adds them up.
      gate_per_layer: whether each layer has a gate of its own.
      g: nonlinearity inside a mixture's experts.
      pooling: how the history becomes one vector.
      product: whether x_0 also holds q * v.
      embedding_dropout: share of embedding values dropped in training.
    """

    schema: Schema
    cross: Cross = "v1"
    cross_layers: int = 3
    structure: Structure = "parallel"
    tower_units: tuple[int, ...] = (200, 80)
    activation: Activation = "relu"
    rank: int = 16
    experts: int = 4
    gate: Gate = "const"
    gate_per_layer: bool = False
    g: Nonlinearity = "hard_tanh"
    pooling: Pooling = "sum"
    product: bool = False
    embedding_dropout: float = 0.0

    def __post_init__(self):
        require_fields(self)
        require_positive(self, "cross_layers", "tower_units", "rank", "experts")
        require_choices(self)
        require_probability(self, "embedding_dropout")
        if self.structure == "parallel" and not self.tower_units:
            raise ValueError("Config.tower_units must name a layer where structure is 'parallel'.")


def requirements(config: Config) -> Requirements:
    """Labelled candidates and a history."""
    del config
    return Requirements()


def init(key: PRNGKeyArray, config: Config) -> Variables:
    """Fresh variables: whole tables, cross layers, deep part."""
    return init_variables(key, DCN(config), config.schema)


def apply(variables: Variables, config: Config, batch: Batch) -> Output:
    """Scores each candidate. Pure."""
    return cast(Output, DCN(config).apply(variables, batch))


def loss(
    variables: Variables,
    config: Config,
    batch: Batch,
    *,
    key: PRNGKeyArray,
    axis_name: str | None = None,
) -> tuple[Float[Array, ""], Aux]:
    """Weighted binary cross-entropy of the first task."""
    return ranking_loss(DCN(config, axis_name), variables, batch, config.schema.tasks[0], key)


class DCN(nn.Module):
    """Figure 1 of both papers: embed, cross, and go deep beside it or behind it."""

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
        x0 = tower_input(embedded, interest, product=config.product)
        crossed = CrossNetwork(config, name="cross")(x0)
        mask, units = batch["candidate_mask"], config.tower_units
        if config.structure == "stacked":
            tower = Tower(units, config.activation, axis_name=self.axis_name, name="tower")
            logit = tower(crossed, mask, train=train)
        else:
            layers = Layers(units, config.activation, axis_name=self.axis_name, name="deep")
            deep = layers(x0, mask, train=train)
            both = jnp.concatenate([crossed, deep], axis=-1)
            logit = nn.Dense(1, name="logit")(both)[..., 0]
        return Output(logit, {config.schema.tasks[0]: logit})


class CrossNetwork(nn.Module):
    """The parameters of the cross layers; the arithmetic is below."""

    options: Config

    @nn.compact
    def __call__(self, x0: Float[Array, "B C I"]) -> Float[Array, "B C I"]:
        """x_L."""
        x, gates = x0, self._gates(x0.shape[-1])
        for layer in range(self.options.cross_layers):
            x = self._layer(layer, x0, x, gates[layer])
        return x

    def _layer(self, layer: int, x0: Array, x: Array, gate: Array | None) -> Array:
        options, width = self.options, x0.shape[-1]
        matrix = lambda name, *shape: self.param(
            f"{name}_{layer}",
            nn.initializers.glorot_uniform(batch_axis=range(len(shape) - 2)),
            shape,
        )
        b = self.param(f"b_{layer}", nn.initializers.zeros, (width,))
        if options.cross == "v1":
            return cross_v1(x0, x, matrix("w", width, 1)[:, 0], b)
        if options.cross == "full":
            return cross_full(x0, x, matrix("w", width, width), b)
        low = (width, options.rank)
        if options.cross == "low_rank":
            return cross_low_rank(x0, x, matrix("u", *low), matrix("v", *low), b)
        u, v = (matrix(name, options.experts, *low) for name in ("u", "v"))
        c = matrix("c", options.experts, options.rank, options.rank)
        weights = gate_weights(x, gate, options.gate, options.experts)
        return cross_mixture(x0, x, weights, u, c, v, b, options.g)

    def _gates(self, width: int) -> list[Array | None]:
        """The gate's matrix for every layer, where there is one."""
        options = self.options
        if options.cross != "mixture" or options.gate == "const":
            return [None] * options.cross_layers
        matrix = lambda name: self.param(
            name, nn.initializers.glorot_uniform(), (width, options.experts)
        )
        if options.gate_per_layer:
            return [matrix(f"gate_{layer}") for layer in range(options.cross_layers)]
        return [matrix("gate")] * options.cross_layers


def gate_weights(
    x: Float[Array, "B C I"], kernel: Float[Array, "I K"] | None, gate: Gate, experts: int
) -> Float[Array, "B C K"]:
    """G_i(x): one for every expert, or a function of x's product with a matrix."""
    if kernel is None:
        return jnp.ones((*x.shape[:2], experts))
    return nn.softmax(x @ kernel) if gate == "softmax" else nn.sigmoid(x @ kernel)


def cross_v1(
    x0: Float[Array, "B C I"],
    x: Float[Array, "B C I"],
    w: Float[Array, " I"],
    b: Float[Array, " I"],
) -> Float[Array, "B C I"]:
    """x_0 (x . w) + b + x: a dot product and a scaling, never the outer product x_0 x^T."""
    return x0 * (x @ w)[..., None] + b[None, None] + x


def cross_full(
    x0: Float[Array, "B C I"],
    x: Float[Array, "B C I"],
    w: Float[Array, "I I"],
    b: Float[Array, " I"],
) -> Float[Array, "B C I"]:
    """x_0 * (W x + b) + x."""
    return x0 * (x @ w.T + b[None, None]) + x


def cross_low_rank(
    x0: Float[Array, "B C I"],
    x: Float[Array, "B C I"],
    u: Float[Array, "I R"],
    v: Float[Array, "I R"],
    b: Float[Array, " I"],
) -> Float[Array, "B C I"]:
    """x_0 * (U (V^T x) + b) + x."""
    return x0 * (x @ v @ u.T + b[None, None]) + x


def cross_mixture(
    x0: Float[Array, "B C I"],
    x: Float[Array, "B C I"],
    gate: Float[Array, "B C K"],
    u: Float[Array, "K I R"],
    c: Float[Array, "K R R"],
    v: Float[Array, "K I R"],
    b: Float[Array, " I"],
    g: Nonlinearity,
) -> Float[Array, "B C I"]:
    """sum_i G_i x_0 * (U_i g(C_i g(V_i^T x)) + b) + x."""
    nonlinear = {"identity": lambda h: h, "tanh": jnp.tanh, "hard_tanh": nn.hard_tanh}[g]
    h = nonlinear(jnp.einsum("bci,kir->bckr", x, v))
    h = nonlinear(jnp.einsum("bckr,ksr->bcks", h, c))
    # All experts share x_0 and b: nothing of shape (B, C, K, I) is made.
    mixed = jnp.einsum("bckr,kir->bci", gate[..., None] * h, u)
    return x0 * (mixed + gate.sum(axis=-1, keepdims=True) * b[None, None]) + x
