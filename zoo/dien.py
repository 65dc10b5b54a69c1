r"""Deep Interest Evolution Network (DIEN).

Zhou et al., "Deep Interest Evolution Network for Click-Through Rate Prediction", AAAI 2019,
https://arxiv.org/abs/1809.03672.

Behaviours come in an order. A GRU turns them into interests, each of which has to know what comes
next (section 4.2); a second GRU, AUGRU, follows those that the candidate attends to (section 4.3):

    h_t = GRU(k_t, h_{t-1})          a_t = softmax_t(score(h_t, q))
    u~ = a_t u_t                     h'_t = (1 - u~) * h'_{t-1} + u~ * new_t
    x = [user, context, q, h'_T]     logit = tower(x)
    loss = bce - auxiliary_weight * mean_t [log s(h_t, k_{t+1}) + log(1 - s(h_t, k-_{t+1}))]

The first GRU and the loss see no candidate: their cost is per request.

Differs from the paper: DIN's activation unit scores h_t against a projected q, as in the authors'
code (`attention="bilinear"` is the paper's h_t W q); s is an MLP, not an inner product; PReLU.
Differs from the authors' code: the update gate of AUGRU, which never ignores a step there
(`evolution="augru_release"`; see `kernels.augru`); reset after the product, as in the paper; means
over real steps only; sum_t k_t and q * sum_t k_t in the tower only with `product=True`; one sigmoid
instead of a two-way softmax averaged over its halves, so that an auxiliary weight of 1 there is 2
here; no user id, no batch normalisation.
Shapes: `B` requests, `L` history events, `C` candidates, `D` width of a behaviour, `Q` of a
candidate, `H` of an interest.
"""

import dataclasses
from typing import Literal, cast

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ..kernels.augru import augru, gru
from ..kernels.target_attention import normalized
from .batch import Batch
from .checks import require_choices, require_item_fields, require_positive, require_probability
from .contract import Aux, Output, Requirements, Variables
from .embeddings import (
    Pooling,
    as_arrays,
    compact,
    dropout,
    embed,
    embed_items,
    for_each_candidate,
    init_variables,
    pool,
    read_tables,
    tower_input,
)
from .features import Schema
from .layers.activation_unit import ActivationUnit
from .layers.auxiliary import NextBehaviour, auxiliary_loss, negatives_of
from .layers.losses import click_loss, in_training
from .layers.recurrence import GATE_BIAS, Recurrence
from .layers.tower import Activation, Query, Tower

KIND = "ranking"

Evolution = Literal["augru", "augru_release", "agru", "aigru", "gru"]
Scale = Literal["softmax", "softmax_length", "sigmoid"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters of DIEN; the defaults are the paper's structure.

    Attributes:
      schema: what the batches hold; its first task is the label.
      hidden_units: width of an interest, in both GRUs; None means as wide as a behaviour.
      evolution: where attention enters the second GRU: its update gate ("augru", or the authors'
        code's "augru_release"), instead of that gate ("agru"), its input ("aigru"), or after it,
        pooling its states ("gru").
      attention: "mlp" is DIN's activation unit, "bilinear" the paper's h_t W q.
      attention_units: widths of the activation unit's hidden layers.
      attention_activation: of the activation unit.
      attn_scale: what becomes of the scores: "softmax"; "softmax_length", times the number of
        events, as long histories leave each a small share; or a "sigmoid" each.
      auxiliary_weight: of the loss that asks each interest what comes next; 0 means none.
      auxiliary_units: widths of the hidden layers of s.
      auxiliary_negatives: how that loss's negatives are drawn, "uniform" or "log_popularity".
      tower_units: widths of the tower's hidden layers.
      activation: of the tower.
      product: whether the tower also sees sum_t k_t and q * sum_t k_t.
      pooling: whether those are sums over the events, or means of them.
      embedding_dropout: share of embedding values dropped in training.
    """

    schema: Schema
    hidden_units: int | None = None
    evolution: Evolution = "augru"
    attention: Literal["mlp", "bilinear"] = "mlp"
    attention_units: tuple[int, ...] = (80, 40)
    attention_activation: Activation = "prelu"
    attn_scale: Scale = "softmax"
    auxiliary_weight: float = 1.0
    auxiliary_units: tuple[int, ...] = (100, 50)
    auxiliary_negatives: Literal["uniform", "log_popularity"] = "uniform"
    tower_units: tuple[int, ...] = (200, 80)
    activation: Activation = "prelu"
    product: bool = False
    pooling: Pooling = "sum"
    embedding_dropout: float = 0.0

    def __post_init__(self):
        require_positive(self, "attention_units", "auxiliary_units", "tower_units")
        if self.hidden_units is not None:
            require_positive(self, "hidden_units")
        require_choices(self)
        require_probability(self, "embedding_dropout")
        if not self.auxiliary_weight >= 0:
            raise ValueError(f"Config.auxiliary_weight must be >= 0, got {self.auxiliary_weight}.")
        for name in ("attention_units", "auxiliary_units"):
            if not getattr(self, name):
                raise ValueError(f"Config.{name} must name at least one layer, got ().")
        require_item_fields(self)


def requirements(config: Config) -> Requirements:
    """Labelled candidates and a history; for the auxiliary loss an item that was not next."""
    return Requirements(
        history_negatives=config.auxiliary_negatives if config.auxiliary_weight else "none"
    )


def init(key: PRNGKeyArray, config: Config) -> Variables:
    """Fresh variables: whole tables, both GRUs, attention, auxiliary net, tower."""
    return init_variables(key, DIEN(config), config.schema, requirements(config))


def apply(variables: Variables, config: Config, batch: Batch) -> Output:
    """Scores each candidate. Pure."""
    return cast(Output, DIEN(config).apply(variables, batch))


def loss(
    variables: Variables,
    config: Config,
    batch: Batch,
    *,
    key: PRNGKeyArray,
    axis_name: str | None = None,
) -> tuple[Float[Array, ""], Aux]:
    """Weighted binary cross-entropy of the first task + auxiliary_weight * auxiliary loss."""
    batch = as_arrays(batch)
    (output, terms), statistics = in_training(
        DIEN(config, axis_name), variables, batch, key, method="run"
    )
    task = config.schema.tasks[0]
    bce = click_loss(output.tasks[task], batch, task, axis_name)
    total = bce
    if "auxiliary" in terms:
        total = total + config.auxiliary_weight * terms["auxiliary"]
    return total, Aux(statistics, {"bce": bce, **terms})


class DIEN(nn.Module):
    """Figure 1 of the paper: behaviour layer, interest extractor, interest evolution, tower."""

    config: Config
    axis_name: str | None = None

    def __call__(self, batch: Batch) -> Output:
        """Scores each candidate."""
        return self.run(batch)[0]

    @nn.compact
    def run(
        self, batch: Batch, *, train: bool = False
    ) -> tuple[Output, dict[str, Float[Array, ""]]]:
        """Scores each candidate; in training also the auxiliary loss, if there is one."""
        config = self.config
        batch = as_arrays(batch, config.schema)
        if train:
            batch = compact(batch)  # The auxiliary loss speaks of the next event.
        tables = read_tables(self, config.schema)
        embedded = dropout(
            embed(tables, config.schema, batch), config.embedding_dropout, train=train
        )
        behaviour = embedded.behaviour
        mask, width = batch["history_mask"], config.hidden_units or behaviour.shape[-1]
        interests = gru(behaviour, mask, Recurrence(width, name="extractor")(behaviour))

        terms = {}
        if config.auxiliary_weight and (train or self.is_mutable_collection("params")):
            drawn = negatives_of(batch, train=train)
            negative = embed_items(tables, config.schema, drawn)
            # As the events themselves, from which it could be told by its zeros otherwise.
            negative = nn.Dropout(config.embedding_dropout, deterministic=not train)(negative)
            net = NextBehaviour(config.auxiliary_units, name="next_behaviour")
            terms["auxiliary"] = auxiliary_loss(
                net, interests, embedded.history, negative, mask, self.axis_name
            )

        evolved = self._evolve(embedded.candidate, interests, batch, train)
        if config.product:
            pooled = pool(behaviour, mask, config.pooling)
            pooled = for_each_candidate(pooled, evolved.shape[1])
            evolved = jnp.concatenate([pooled, evolved], axis=-1)
        x = tower_input(embedded, evolved, product=config.product)
        tower = Tower(config.tower_units, config.activation, axis_name=self.axis_name, name="tower")
        logit = tower(x, batch["candidate_mask"], train=train)
        return Output(logit, {config.schema.tasks[0]: logit}), terms

    def _evolve(
        self,
        query: Float[Array, "B C Q"],
        interests: Float[Array, "B L H"],
        batch: Batch,
        train: bool,
    ) -> Float[Array, "B C H"]:
        """Evolution of the interests that each candidate attends to (section 4.3)."""
        evolution, mask = self.config.evolution, batch["history_mask"]
        gates = ("reset", "new") if evolution == "agru" else tuple(GATE_BIAS)
        weights = Recurrence(interests.shape[-1], gates, name="evolution")(interests)
        if evolution == "gru":
            states = gru(interests, mask, weights)
            return jnp.einsum("bcl,blh->bch", self._attend(query, states, batch, train), states)
        attention = self._attend(query, interests, batch, train)
        return augru(interests, attention, mask, weights, cell=evolution)

    def _attend(
        self,
        query: Float[Array, "B C Q"],
        states: Float[Array, "B L H"],
        batch: Batch,
        train: bool,
    ) -> Float[Array, "B C L"]:
        """Attention of each candidate to each step; 0 where there is none."""
        config, mask, width = self.config, batch["history_mask"], states.shape[-1]
        normalize = "none" if config.attn_scale == "sigmoid" else "softmax"
        if config.attention == "bilinear":
            query = nn.Dense(width, use_bias=False, name="query")(query)
            score = jnp.einsum("bch,blh->bcl", query, states)
            score = normalized(score, jnp.broadcast_to(mask[:, None], score.shape), normalize)
        else:
            query = Query(width, name="query")(query)
            unit = ActivationUnit(
                config.attention_units,
                config.attention_activation,
                normalize,
                self.axis_name,
                pooled=False,
                name="attention",
            )
            score = unit(query, states, mask, batch["candidate_mask"], train=train)
        return scaled(score, mask, config.attn_scale)


def scaled(
    score: Float[Array, "B C L"], mask: Bool[Array, "B L"], scale: Scale
) -> Float[Array, "B C L"]:
    """Attention from scores, which are a softmax already unless `scale` is "sigmoid"."""
    if scale == "sigmoid":
        return jnp.where(mask[:, None], nn.sigmoid(score), 0.0)
    if scale == "softmax_length":
        return score * mask.sum(axis=1, dtype=jnp.float32)[:, None, None]
    return score
