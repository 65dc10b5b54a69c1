r"""The personalised re-ranking model (PRM): a transformer over the candidates.

Pei et al., "Personalized Re-ranking for Recommendation", RecSys 2019,
https://arxiv.org/abs/1904.06813.

Every candidate sees all the others, in the order that the upstream ranker gave them:

    E   = ([x_1, ..., x_N] + [p_1, ..., p_N]) W_e + b_e       x all that is known, p by position
    E  <- LN(E + attention(E)),  E <- LN(E + W_2 relu(W_1 E + b_1) + b_2)          `blocks` times
    logit_n = w . E_n + b

    loss = -sum over clicked n of log softmax_n logit

over the candidates that were shown. Lists without a click weigh nothing.

The paper's personalised vector, what a trained click model says of user and item, is part of x:
give the schema a dense candidate field for it.

Differs from the authors' toolkit, whose loss is a binary cross-entropy on the softmax: the paper's
loss; several blocks and heads; layer normalisation; padding is seen nowhere; the score is linear.
Shapes: `B` requests, `N` candidates, `E` width of an encoding.
"""

import dataclasses
from typing import Literal, cast

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ..batch import Batch
from ..checks import require_choices, require_fields, require_positive, require_probability
from ..contract import Aux, Output, Requirements, Variables
from ..embeddings import as_arrays, dropout, embed, init_variables, read_tables
from ..features import Schema
from ..layers.losses import click_loss, in_training, mean_over
from .listwise import item_rows, log_softmax_over, shown

KIND = "reranking"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters of PRM.

    Attributes:
      schema: what the batches hold; its first task is the label.
      units: width of an encoding.
      heads: of self-attention; they share the units.
      blocks: how often attention and feed forward follow each other.
      feed_units: hidden width of the feed forward.
      positions: upstream positions that have an embedding; candidates further down share the
        last one. With 0 the model does not know the upstream order.
      objective: "softmax" over the list, or "pointwise" binary cross-entropy.
      dropout: share of what attention and feed forward add that is dropped in training.
      embedding_dropout: share of embedding values dropped in training.
    """

    schema: Schema
    units: int = 64
    heads: int = 4
    blocks: int = 2
    feed_units: int = 128
    positions: int = 50
    objective: Literal["softmax", "pointwise"] = "softmax"
    dropout: float = 0.1
    embedding_dropout: float = 0.0

    def __post_init__(self):
        require_fields(self)
        require_positive(self, "units", "heads", "blocks", "feed_units")
        require_choices(self)
        require_probability(self, "dropout", "embedding_dropout")
        if self.units % self.heads:
            raise ValueError(
                f"Config.units must be a multiple of heads, got {self.units} and {self.heads}."
            )
        if self.positions < 0:
            raise ValueError(f"Config.positions must be >= 0, got {self.positions}.")


def requirements(config: Config) -> Requirements:
    """Lists with labels."""
    del config
    return Requirements()


def init(key: PRNGKeyArray, config: Config) -> Variables:
    """Fresh variables: whole tables, positions, blocks."""
    return init_variables(key, PRM(config), config.schema)


def apply(variables: Variables, config: Config, batch: Batch) -> Output:
    """A score for each candidate that knows the others; sort by it. Pure."""
    return cast(Output, PRM(config).apply(variables, batch))


def loss(
    variables: Variables,
    config: Config,
    batch: Batch,
    *,
    key: PRNGKeyArray,
    axis_name: str | None = None,
) -> tuple[Float[Array, ""], Aux]:
    """Cross-entropy of the clicks, the mean of all clicks; or that of every candidate shown."""
    batch, task = as_arrays(batch), config.schema.tasks[0]
    output, statistics = in_training(PRM(config, axis_name), variables, batch, key)
    saw = shown(batch, task)
    if config.objective == "pointwise":
        seen = {**batch, "label": {task: saw.label}, "weight": {task: saw.weight}}
        value, term = click_loss(output.logit, seen, task, axis_name), "bce"
    else:
        clicks = saw.weight * saw.label
        each = -clicks * log_softmax_over(output.logit, saw.mask)
        value, term = mean_over(each, clicks, axis_name), "softmax"
    return value, Aux(statistics, {term: value})


class PRM(nn.Module):
    """Input, blocks, score."""

    config: Config
    axis_name: str | None = None

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool = False) -> Output:
        """Scores each candidate."""
        config, batch = self.config, as_arrays(batch)
        embedded = embed(read_tables(self, config.schema), config.schema, batch)
        embedded = dropout(embedded, config.embedding_dropout, train=train)
        mask = batch["candidate_mask"]
        x = item_rows(embedded, mask)
        if config.positions:
            shape = (config.positions, x.shape[-1])
            table = self.param("place", nn.initializers.normal(0.02), shape)
            x += table[upstream_position(mask, config.positions)]
        x = nn.Dense(config.units, name="input")(x)
        for i in range(config.blocks):
            block = Block(config.heads, config.feed_units, config.dropout, name=f"block_{i}")
            x = block(x, mask, train=train)
        logit = nn.Dense(1, name="logit")(x)[..., 0]
        return Output(logit, {config.schema.tasks[0]: logit})


class Block(nn.Module):
    """Self-attention among the candidates, then a feed forward of each."""

    heads: int
    feed_units: int
    dropout: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N E"], mask: Bool[Array, "B N"], *, train: bool
    ) -> Float[Array, "B N E"]:
        """As wide as it came."""
        drop = nn.Dropout(self.dropout, deterministic=not train)
        attention = nn.MultiHeadDotProductAttention(self.heads, use_bias=False, name="attention")
        found = attention(x, mask=mask[:, None, None])
        x = nn.LayerNorm(name="attention_norm")(x + drop(found))
        hidden = nn.relu(nn.Dense(self.feed_units, name="feed_0")(x))
        fed = nn.Dense(x.shape[-1], name="feed_1")(hidden)
        return nn.LayerNorm(name="feed_norm")(x + drop(fed))


def upstream_position(mask: Bool[Array, "B N"], positions: int) -> Int[Array, "B N"]:
    """0, 1, ... for the candidates, padding not counted, and no more than `positions` different."""
    return jnp.clip(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0, positions - 1)
