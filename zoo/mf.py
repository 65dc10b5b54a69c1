r"""Matrix factorisation of implicit feedback, with users made of their items.

Paterek, "Improving Regularized Singular Value Decomposition for Collaborative Filtering", KDD Cup
and Workshop 2007 (NSVD1), https://www.cs.uic.edu/~liub/KDD-cup-2007/proceedings/Regular-Paterek.pdf;
Kabbur, Ning, Karypis, "FISM: Factored Item Similarity Models for Top-N Recommender Systems",
KDD 2013, https://doi.org/10.1145/2487575.2487589.

The matrix of users and items is factored, a user's factor being the sum of one set of vectors of
the n items of the history, against another set of the candidates, and a bias:

    score(u, i) = n^-alpha sum_{j in history} p_j . q_i + b_i

Differs from textbook factorisation: no vector per user, hence none to learn for a new user or to
learn anew after a click; the history holds what came before the candidate, so that an item never
explains itself. Differs from NSVD1 (ratings) and FISM (all unobserved pairs): sampled softmax over
shared negatives; no user bias, which cannot change an order. FISM's alpha is tuned in 0.4..1.
Only the item's identity is read: no other field, no profile, no order.
The tables hold [p, q, b] of a row: they are 2 dim + 1 wide, whatever the schema says.
A user without history is ranked for by the biases.
Shapes: `B` requests, `L` events, `C` candidates, `S` shared draws, `D` = dim.
"""

import dataclasses
import functools
from typing import cast

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from .batch import Batch
from .checks import require_positive
from .contract import Aux, Output, Requirements, Variables
from .embeddings import (
    as_arrays,
    init_variables,
    lookup,
    masked_sum,
    read_tables,
    require_drawn,
    require_own_ids,
)
from .features import Schema
from .layers.retrieval import (
    identity_field,
    identity_schema,
    left_out_draws,
    nearest_interest,
    sampled_softmax_loss,
)

KIND = "retrieval"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters of matrix factorisation.

    Attributes:
      schema: what the batches hold; its first task marks the positives.
      dim: width of p and q.
      alpha: 0 sums the history, 1 takes its mean.
      sampled: shared negatives S.
    """

    schema: Schema
    dim: int = 64
    alpha: float = 0.5
    sampled: int = 1024

    def __post_init__(self):
        require_positive(self, "dim", "sampled")
        if not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"Config.alpha must be in [0, 1], got {self.alpha}.")
        identity_field(self.schema)

    @property
    def own_schema(self) -> Schema:
        """The schema with tables that hold [p, q, b]."""
        return self.schema.with_dim(2 * self.dim + 1)


def requirements(config: Config) -> Requirements:
    """Positives, and negatives that the batch shares."""
    return Requirements(sampled=config.sampled)


def init(key: PRNGKeyArray, config: Config) -> Variables:
    """Fresh tables; there is nothing else."""
    return init_variables(key, MF(config), config.own_schema, requirements(config))


def apply(variables: Variables, config: Config, batch: Batch) -> Output:
    """Scores each candidate. Pure."""
    return cast(Output, MF(config).apply(variables, batch))


def user_vectors(
    variables: Variables, config: Config, batch: Batch
) -> tuple[Float[Array, "B 1 E"], Bool[Array, "B 1"]]:
    """[n^-alpha sum_j p_j, 1] of each user. Reads no candidates."""
    return cast(tuple, MF(config).apply(variables, batch, method="user_vectors"))


def item_vectors(variables: Variables, config: Config, items: Batch) -> Float[Array, "*lead E"]:
    """[q, b] of each item."""
    return cast(Array, MF(config).apply(variables, as_arrays(items), method="item_vectors"))


def loss(
    variables: Variables,
    config: Config,
    batch: Batch,
    *,
    key: PRNGKeyArray,
    axis_name: str | None = None,
) -> tuple[Float[Array, ""], Aux]:
    """Sampled softmax of the first task's positives."""
    del key
    batch = as_arrays(batch, identity_schema(config.schema))
    require_drawn(batch, "sampled", "sampled_log_q", "candidate_log_q")
    users, _ = user_vectors(variables, config, batch)
    items = item_vectors(variables, config, batch["candidate"])
    sampled = item_vectors(variables, config, batch["sampled"])
    hit, task = left_out_draws(config.schema, batch), config.schema.tasks[0]
    positive = jnp.einsum("bkd,bcd->bc", users, items)
    negative = jnp.broadcast_to(jnp.einsum("bkd,sd->bks", users, sampled), hit.shape)
    value = sampled_softmax_loss(positive, negative, hit, batch, task, axis_name)
    return value, Aux({}, {"sampled_softmax": value})


class MF(nn.Module):
    """Two lookups and an inner product."""

    config: Config

    def setup(self):
        """Declares the tables."""
        config = self.config
        self.tables = read_tables(self, config.own_schema)
        table = self.tables[identity_field(config.schema).table_name]
        self.rows = functools.partial(lookup, table)

    def __call__(self, batch: Batch) -> Output:
        """(n^-alpha sum_j p_j) . q_i + b_i for each candidate."""
        batch = as_arrays(batch, identity_schema(self.config.schema))
        logit = nearest_interest(*self.user_vectors(batch), self.item_vectors(batch["candidate"]))
        return Output(logit, {self.config.schema.tasks[0]: logit})

    def user_vectors(self, batch: Batch) -> tuple[Float[Array, "B 1 E"], Bool[Array, "B 1"]]:
        """[n^-alpha sum_j p_j, 1]."""
        batch = as_arrays(batch, identity_schema(self.config.schema), ("history",))
        require_own_ids(self.tables, batch)
        mask = batch["history_mask"]
        p = self.rows(self._identity(batch["history"]))[..., : self.config.dim]
        count = jnp.maximum(mask.sum(axis=1, keepdims=True, dtype=jnp.float32), 1.0)
        user = masked_sum(p, mask) * count**-self.config.alpha
        user = jnp.concatenate([user, jnp.ones_like(count)], axis=1)
        return user[:, None], jnp.ones((user.shape[0], 1), bool)

    def item_vectors(self, items: dict[str, Array]) -> Float[Array, "*lead E"]:
        """[q, b]."""
        return self.rows(self._identity(items))[..., self.config.dim :]

    def _identity(self, values: dict[str, Array]) -> Int[Array, "*lead"]:
        return values[identity_field(self.config.schema).name]
