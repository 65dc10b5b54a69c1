r"""Mixed logistic regression, the large-scale piece-wise linear model (MLR, LS-PLM).

Gai et al., "Learning Piece-wise Linear Models from Large Scale Data for Ad Click Prediction",
2017, https://arxiv.org/abs/1704.05194.

Divide the space of features softly into m pieces, and fit a logistic regression in each:

    p = sum_i softmax_i(u_i . x) sigmoid(w_i . x)

An id has a row of 2m numbers, its u_1..u_m and w_1..w_m. The paper's objective adds
lambda |Theta|_{2,1} + beta |Theta|_1, where the first norm has a row as its group, so that whole
ids drop out: train with `table_optimizer="proximal"`, `l21` = lambda and `l1` = beta.

With the structured prior (section 3.1) the user divides and the ad is fitted: u sees what a
request has once (user, context, history), w sees the candidate.

Differs from the paper: AdaGrad with a proximal step over the rows of a batch, instead of a batch
quasi-Newton method with directional derivatives. The common-feature trick (section 3.2) comes for
free: a request's history is looked up and summed once for all of its candidates.
Shapes: `B` requests, `C` candidates, `M` pieces.
"""

import dataclasses
from typing import cast

import flax.linen as nn
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from .batch import Batch
from .checks import require_choices, require_positive
from .contract import Aux, Output, Requirements, Variables
from .embeddings import INIT_STD, Pooling, as_arrays, init_variables, read_tables
from .features import Schema
from .layers.losses import ranking_loss
from .lr import Linear, sum_terms

KIND = "ranking"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options of MLR.

    Attributes:
      schema: what the batches hold; its first task is the label. The dims of its tables do not
        matter: every id has 2 * `pieces` numbers.
      pieces: m; the paper takes 12.
      structured: whether requests divide and candidates are fitted.
      pooling: whether a history of n events counts each as 1/n ("mean") or as 1 ("sum").
    """

    schema: Schema
    pieces: int = 12
    structured: bool = False
    pooling: Pooling = "mean"

    def __post_init__(self):
        require_positive(self, "pieces")
        require_choices(self)


def requirements(config: Config) -> Requirements:
    """Labelled candidates and a history."""
    del config
    return Requirements()


def init(key: PRNGKeyArray, config: Config) -> Variables:
    """Small random numbers: from zeros all pieces would stay the same for ever."""
    return init_variables(key, MLR(config), config.schema.with_dim(2 * config.pieces))


def apply(variables: Variables, config: Config, batch: Batch) -> Output:
    """Scores each candidate. Pure."""
    return cast(Output, MLR(config).apply(variables, batch))


def loss(
    variables: Variables,
    config: Config,
    batch: Batch,
    *,
    key: PRNGKeyArray,
    axis_name: str | None = None,
) -> tuple[Float[Array, ""], Aux]:
    """Weighted binary cross-entropy of the first task; the norms belong to the tables."""
    return ranking_loss(MLR(config, axis_name), variables, batch, config.schema.tasks[0], key)


class MLR(nn.Module):
    """Divide and fit."""

    config: Config
    axis_name: str | None = None

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool = False) -> Output:
        """Scores each candidate."""
        del train
        config = self.config
        batch = as_arrays(batch, config.schema)
        schema = config.schema.with_dim(2 * config.pieces)
        kernel_init = nn.initializers.normal(INIT_STD)
        linear = Linear(schema, 2 * config.pieces, config.pooling, kernel_init, name="linear")
        terms = linear(read_tables(self, schema), batch)
        bias = self.param("bias", nn.initializers.zeros, (2 * config.pieces,))
        divide, fit = terms, terms
        if config.structured:
            fit = {name: term for name, term in terms.items() if name.startswith("candidate.")}
            divide = {name: term for name, term in terms.items() if name not in fit}
        u, a = (sum_terms({**side, "bias": bias[None, None]}, batch) for side in (divide, fit))
        logit = mixed_logit(u[..., : config.pieces], a[..., config.pieces :])
        return Output(logit, {config.schema.tasks[0]: logit})


def mixed_logit(u: Float[Array, "B C M"], a: Float[Array, "B C M"]) -> Float[Array, "B C"]:
    """Log-odds of p = sum_i softmax_i(u) sigmoid(a_i).

        log p       = logsumexp_i(u_i + log sigmoid(a_i)) - logsumexp(u)
        log (1 - p) = logsumexp_i(u_i + log sigmoid(-a_i)) - logsumexp(u)

    and in their difference the softmax's denominator cancels.
    """
    yes = jax.nn.logsumexp(u + nn.log_sigmoid(a), axis=-1)
    no = jax.nn.logsumexp(u + nn.log_sigmoid(-a), axis=-1)
    return yes - no
