r"""Item2vec: skip-gram with negative sampling, on what a user did.

Barkan, Koenigstein, "Item2vec: Neural Item Embedding for Collaborative Filtering", MLSP 2016,
https://arxiv.org/abs/1603.04259.

Items of one set are words of one sentence. Each has an input vector u and an output vector v; item
i is to tell the items j that it stands with from noise n:

    -(1 / pairs) sum_{(i, j)} [ log s(u_i . v_j) + sum_{m=1..N} log s(-u_i . v_n) ]

Then v is thrown away and items are compared by the cosine of their u. Here the centre i is the
candidate and the contexts j are the events before it, so each pair is met once, when its later
item is the candidate (the paper: both orders). All S draws of the batch serve every pair: their
mean times N is what N draws estimate. A draw that is j itself is left out.
A user, unknown to the paper, is the mean of the u of the history: new users need no training.
Differs from the paper: noise as the pipeline draws it, log-uniform by popularity, instead of
count^(3/4); frequent items are not thinned out; `window` as an option for long histories.
Only the item's identity is read: no other field, no profile, no order.
The tables hold [u, v] of a row: they are 2 dim wide, whatever the schema says.
A user without history has the vector 0: all items score alike.
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
    pool,
    read_tables,
    require_drawn,
    require_own_ids,
)
from .features import Schema
from .layers.retrieval import (
    identity_field,
    identity_schema,
    mean_over_positives,
    nearest_interest,
    newest,
)

KIND = "retrieval"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters of item2vec.

    Attributes:
      schema: what the batches hold; its first task marks the positives.
      dim: width of u and v.
      noise_weight: N, what noise weighs against a pair.
      window: so many of the newest events are the candidate's context; 0 means all.
      sampled: shared draws S that stand for the noise.
    """

    schema: Schema
    dim: int = 64
    noise_weight: int = 15
    window: int = 0
    sampled: int = 1024

    def __post_init__(self):
        require_positive(self, "dim", "noise_weight", "sampled")
        if self.window < 0:
            raise ValueError(f"Config.window must be >= 0, got {self.window}.")
        identity_field(self.schema)

    @property
    def own_schema(self) -> Schema:
        """The schema with tables that hold [u, v]."""
        return self.schema.with_dim(2 * self.dim)


def requirements(config: Config) -> Requirements:
    """Positives, and noise that the batch shares."""
    return Requirements(sampled=config.sampled)


def init(key: PRNGKeyArray, config: Config) -> Variables:
    """Fresh tables; there is nothing else."""
    return init_variables(key, Item2Vec(config), config.own_schema, requirements(config))


def apply(variables: Variables, config: Config, batch: Batch) -> Output:
    """The cosine of each candidate and the user. Pure."""
    return cast(Output, Item2Vec(config).apply(variables, batch))


def user_vectors(
    variables: Variables, config: Config, batch: Batch
) -> tuple[Float[Array, "B 1 D"], Bool[Array, "B 1"]]:
    """The mean u of each history, of length 1. Reads no candidates."""
    return cast(tuple, Item2Vec(config).apply(variables, batch, method="user_vectors"))


def item_vectors(variables: Variables, config: Config, items: Batch) -> Float[Array, "*lead D"]:
    """The u of each item, of length 1."""
    return cast(Array, Item2Vec(config).apply(variables, as_arrays(items), method="item_vectors"))


def loss(
    variables: Variables,
    config: Config,
    batch: Batch,
    *,
    key: PRNGKeyArray,
    axis_name: str | None = None,
) -> tuple[Float[Array, ""], Aux]:
    """Skip-gram with negatives over the pairs of the first task's positives and their contexts."""
    del key
    batch = as_arrays(batch, identity_schema(config.schema))
    require_drawn(batch, "sampled")
    task = config.schema.tasks[0]
    summed = Item2Vec(config).apply(variables, batch, method="training_terms")
    pairs, noise, count = cast(tuple, summed)
    mean = functools.partial(
        mean_over_positives, batch=batch, task=task, count=count, axis_name=axis_name
    )
    terms = {"pairs": mean(pairs), "noise": config.noise_weight * mean(noise)}
    return terms["pairs"] + terms["noise"], Aux({}, terms)


class Item2Vec(nn.Module):
    """Two vectors per item."""

    config: Config

    def setup(self):
        """Declares the tables."""
        config = self.config
        self.tables = read_tables(self, config.own_schema)
        table = self.tables[identity_field(config.schema).table_name]
        self.rows = functools.partial(lookup, table)

    def __call__(self, batch: Batch) -> Output:
        """cos(mean u of the history, u) for each candidate."""
        batch = as_arrays(batch, identity_schema(self.config.schema))
        logit = nearest_interest(*self.user_vectors(batch), self.item_vectors(batch["candidate"]))
        return Output(logit, {self.config.schema.tasks[0]: logit})

    def user_vectors(self, batch: Batch) -> tuple[Float[Array, "B 1 D"], Bool[Array, "B 1"]]:
        """The mean u of each history, of length 1."""
        batch = as_arrays(batch, identity_schema(self.config.schema), ("history",))
        require_own_ids(self.tables, batch)
        u, _ = self._vectors(batch["history"])
        user = unit(pool(u, batch["history_mask"], "mean"))
        return user[:, None], jnp.ones((user.shape[0], 1), bool)

    def item_vectors(self, items: dict[str, Array]) -> Float[Array, "*lead D"]:
        """u, of length 1."""
        return unit(self._vectors(items)[0])

    def training_terms(
        self, batch: Batch
    ) -> tuple[Float[Array, "B C"], Float[Array, "B C"], Float[Array, "B C"]]:
        """Of each candidate: the loss of its pairs, of the noise per draw, and how many pairs."""
        context = newest(batch["history_mask"], self.config.window)
        require_own_ids(self.tables, batch)
        u, _ = self._vectors(batch["candidate"])
        (_, v), (_, noise) = self._vectors(batch["history"]), self._vectors(batch["sampled"])
        pair = nn.softplus(-jnp.einsum("bcd,bld->bcl", u, v))
        other = context_draws(
            self._identity(batch["history"]), context, self._identity(batch["sampled"])
        )
        if "sampled_mask" in batch:
            other = jnp.where(batch["sampled_mask"], other, 0.0)
        draw = nn.softplus(jnp.einsum("bcd,sd->bcs", u, noise))
        pairs = jnp.sum(jnp.where(context[:, None], pair, 0.0), axis=-1)
        count = context.sum(axis=1, keepdims=True, dtype=jnp.float32)
        return (
            pairs,
            jnp.sum(other[:, None] * draw, axis=-1) / len(noise),
            jnp.broadcast_to(count, pairs.shape),
        )

    def _vectors(
        self, values: dict[str, Array]
    ) -> tuple[Float[Array, "*lead D"], Float[Array, "*lead D"]]:
        """u and v."""
        rows = self.rows(self._identity(values))
        return rows[..., : self.config.dim], rows[..., self.config.dim :]

    def _identity(self, values: dict[str, Array]) -> Int[Array, "*lead"]:
        return values[identity_field(self.config.schema).name]


def context_draws(
    history: Int[Array, "B L"], context: Bool[Array, "B L"], sampled: Int[Array, " S"]
) -> Float[Array, "B S"]:
    """For how many contexts of a request each draw is noise: those that are another item."""
    other = context[..., None] & (history[..., None] != sampled[None, None])
    return other.sum(axis=1, dtype=jnp.float32)


def unit(x: Float[Array, "*lead D"]) -> Float[Array, "*lead D"]:
    """x / |x|; 0 stays 0, with a finite gradient."""
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.maximum(square, 1e-18))
