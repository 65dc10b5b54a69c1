r"""Logistic regression over sparse features (LR), the model to train with FTRL-proximal.

McMahan et al., "Ad Click Prediction: a View from the Trenches", KDD 2013,
https://doi.org/10.1145/2487575.2488200.

One weight per id, none of them multiplied with another:

    logit = bias + sum_i w_i x_i

The weights explain the features: row j of a field's table says what id j is worth, in log-odds,
and `contributions` says what each field adds to a candidate's score. Most of them are exact zeros
after training with `table_optimizer="ftrl"` (a `table_learning_rate` near 1 is usual there) and
`l1` > 0, see `train.tables.ftrl`; its state is in the checkpoint, so that training goes on from day
to day.

What a request has once (user, context, history) adds the same to each of its candidates: it moves
the probability and not the order. A linear model cannot match candidate and history; crosses of
features would have to come in as fields.

Differs from the paper: FTRL takes one step per batch, with the gradients of a row summed over
it, and not one per example; numbers have weights too, which FTRL leaves to the dense optimiser.
Shapes: `B` requests, `L` history events, `C` candidates, `K` outputs (here 1).
"""

import dataclasses
import functools
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .batch import Batch
from .checks import require_choices
from .contract import Aux, Output, Requirements, Variables
from .embeddings import (
    Pooling,
    as_arrays,
    embed_field,
    init_variables,
    pool,
    read_tables,
    require_own_ids,
)
from .features import Schema
from .layers.losses import ranking_loss

KIND = "ranking"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options of LR.

    Attributes:
      schema: what the batches hold; its first task is the label. The dims of its tables do not
        matter: every id has one weight.
      pooling: whether a history of n events counts each as 1/n ("mean") or as 1 ("sum"). A sum
        makes the objective as steep as the histories are long: it wants small rates.
    """

    schema: Schema
    pooling: Pooling = "mean"

    def __post_init__(self):
        require_choices(self)


def requirements(config: Config) -> Requirements:
    """Labelled candidates and a history."""
    del config
    return Requirements()


def init(key: PRNGKeyArray, config: Config) -> Variables:
    """Zeros, as FTRL wants them: the objective is convex, there is no symmetry to break."""
    variables = init_variables(key, LR(config), config.schema.with_dim(1))
    return {**variables, "tables": jax.tree.map(jnp.zeros_like, variables["tables"])}


def apply(variables: Variables, config: Config, batch: Batch) -> Output:
    """Scores each candidate. Pure."""
    return cast(Output, LR(config).apply(variables, batch))


def loss(
    variables: Variables,
    config: Config,
    batch: Batch,
    *,
    key: PRNGKeyArray,
    axis_name: str | None = None,
) -> tuple[Float[Array, ""], Aux]:
    """Weighted binary cross-entropy of the first task."""
    return ranking_loss(LR(config, axis_name), variables, batch, config.schema.tasks[0], key)


def contributions(
    variables: Variables, config: Config, batch: Batch
) -> dict[str, Float[Array, "B C"]]:
    """{"role.field" or "bias": what it adds to each candidate's logit}; they sum to the logit."""
    terms = cast(dict[str, Any], LR(config).apply(variables, batch, method="terms"))
    shape = batch["candidate_mask"].shape
    return {name: jnp.broadcast_to(term[..., 0], shape) for name, term in terms.items()}


class LR(nn.Module):
    """A sum."""

    config: Config
    axis_name: str | None = None

    def __call__(self, batch: Batch, *, train: bool = False) -> Output:
        """Scores each candidate."""
        del train
        logit = sum_terms(self.terms(batch), batch)[..., 0]
        return Output(logit, {self.config.schema.tasks[0]: logit})

    @nn.compact
    def terms(self, batch: Batch) -> dict[str, Float[Array, "B _ 1"]]:
        """Contribution of each field, and the bias."""
        schema = self.config.schema.with_dim(1)
        batch = as_arrays(batch, schema)
        tables = read_tables(self, schema)
        linear = Linear(schema, 1, self.config.pooling, nn.initializers.zeros, name="linear")
        bias = self.param("bias", nn.initializers.zeros, (1,))
        return {**linear(tables, batch), "bias": bias[None, None]}


class Linear(nn.Module):
    """The products w_i x_i by field: rows of tables for ids, a kernel of its own for numbers."""

    schema: Schema
    outputs: int
    pooling: Pooling
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(
        self, tables: dict[str, Float[Array, "rows K"]], batch: Batch
    ) -> dict[str, Float[Array, "B _ K"]]:
        """{"role.field": (B, C, K) for candidates, (B, 1, K) for what a request has once}."""
        require_own_ids(tables, batch)
        terms = {}
        for field in self.schema.fields:
            value = embed_field(tables, field, batch[field.role][field.name])
            if field.kind == "dense":
                shape = (self.schema.width(field), self.outputs)
                value = value @ self.param(f"{field.role}_{field.name}", self.kernel_init, shape)
            if field.role == "history":
                value = pool(value, batch["history_mask"], self.pooling)
            if field.role != "candidate":
                value = value[:, None]
            terms[f"{field.role}.{field.name}"] = value
        return terms


def sum_terms(terms: dict[str, Float[Array, "_ _ K"]], batch: Batch) -> Float[Array, "B C K"]:
    """All terms added up, for every candidate."""
    shape = batch["candidate_mask"].shape
    total = functools.reduce(jnp.add, terms.values())
    return jnp.broadcast_to(total, (*shape, total.shape[-1]))
