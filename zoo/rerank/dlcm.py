r"""The deep listwise context model (DLCM): a GRU reads the candidates, the worst one first.

Ai et al., "Learning a Deep Listwise Context Model for Ranking Refinement", SIGIR 2018,
https://arxiv.org/abs/1804.05936.

The best candidates are read last and leave the strongest trace in the context s:

    z_n = elu(W_2 elu(W_1 x_n + b_1) + b_2)       x'_n = [x_n, z_n]       x all that is known
    o_N, ..., o_1 = GRU(x'_N, ..., x'_1)          s = o_1
    logit_n = sum_k v_k o_n . tanh(W_k s + b_k)

    loss = -sum_n a_n log softmax_n logit         a_n = psi(y_n) / sum psi(y)
                                                  psi(y) = e^y where y > 0, else 0

over the candidates that were shown ("attention rank loss"); labels may be grades. Lists without
a click weigh nothing.

Differs from the paper: its loss adds (1 - a) log(1 - softmax), which the authors' code does not.
Differs from the authors' toolkit, which reads the best candidate first, has one v for each channel
of o * tanh(W s) instead of several W, and puts scores through psi: one that is not positive has no
gradient there.
Shapes: `B` requests, `N` candidates, `H` width of the context, `K` heads.
"""

import dataclasses
from typing import cast

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ...kernels.augru import gru
from ..batch import Batch
from ..checks import require_fields, require_positive, require_probability
from ..contract import Aux, Output, Requirements, Variables
from ..embeddings import as_arrays, dropout, embed, init_variables, read_tables
from ..features import Schema
from ..layers.losses import in_training, mean_over
from ..layers.recurrence import Recurrence
from .listwise import Shown, item_rows, log_softmax_over, shown

KIND = "reranking"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters of DLCM.

    Attributes:
      schema: what the batches hold; its first task is the label.
      expansion_units: widths of the layers that make z; with () the GRU sees x alone.
      units: width of the context.
      heads: K, the matrices that the context is compared through.
      embedding_dropout: share of embedding values dropped in training.
    """

    schema: Schema
    expansion_units: tuple[int, ...] = (64, 32)
    units: int = 64
    heads: int = 3
    embedding_dropout: float = 0.0

    def __post_init__(self):
        require_fields(self)
        require_positive(self, "expansion_units", "units", "heads")
        require_probability(self, "embedding_dropout")


def requirements(config: Config) -> Requirements:
    """Lists with labels."""
    del config
    return Requirements()


def init(key: PRNGKeyArray, config: Config) -> Variables:
    """Fresh variables: whole tables, expansion, GRU, heads."""
    return init_variables(key, DLCM(config), config.schema)


def apply(variables: Variables, config: Config, batch: Batch) -> Output:
    """A score for each candidate that knows the others; sort by it. Pure."""
    return cast(Output, DLCM(config).apply(variables, batch))


def loss(
    variables: Variables,
    config: Config,
    batch: Batch,
    *,
    key: PRNGKeyArray,
    axis_name: str | None = None,
) -> tuple[Float[Array, ""], Aux]:
    """Attention rank loss, the mean of the lists that have a click."""
    batch, task = as_arrays(batch), config.schema.tasks[0]
    output, statistics = in_training(DLCM(config, axis_name), variables, batch, key)
    saw = shown(batch, task)
    attention = label_attention(saw)
    each = -(attention * log_softmax_over(output.logit, saw.mask)).sum(axis=1)
    value = mean_over(each, attention.sum(axis=1), axis_name)
    return value, Aux(statistics, {"attention_rank": value})


def label_attention(saw: Shown) -> Float[Array, "B N"]:
    """w psi(y) / sum w psi(y), which sums to 1; all 0 where nothing was clicked."""
    share = saw.weight * jnp.where(saw.label > 0, jnp.exp(saw.label), 0.0)
    total = share.sum(axis=1, keepdims=True)
    return share / jnp.where(total > 0, total, 1.0)


class DLCM(nn.Module):
    """Expansion, GRU, comparison with the context."""

    config: Config
    axis_name: str | None = None

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool = False) -> Output:
        """Scores each candidate."""
        config, batch = self.config, as_arrays(batch)
        embedded = embed(read_tables(self, config.schema), config.schema, batch)
        embedded = dropout(embedded, config.embedding_dropout, train=train)
        mask = batch["candidate_mask"]
        x = z = item_rows(embedded, mask)
        for i, width in enumerate(config.expansion_units):
            z = nn.elu(nn.Dense(width, name=f"expansion_{i}")(z))
        if config.expansion_units:
            x = jnp.concatenate([x, z], axis=-1)
        weights = Recurrence(config.units, name="recurrence")(x)
        worst_first = gru(x[:, ::-1], mask[:, ::-1], weights)
        outputs, context = worst_first[:, ::-1], worst_first[:, -1]
        heads = nn.DenseGeneral((config.heads, config.units), name="context")
        vote = self.param("vote", nn.initializers.normal(config.heads**-0.5), (config.heads,))
        compared = jnp.einsum("bnh,bkh->bnk", outputs, jnp.tanh(heads(context)))
        logit = compared @ vote
        return Output(logit, {config.schema.tasks[0]: logit})
