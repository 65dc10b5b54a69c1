"""A model from outside the package: a dot product of the candidate with the summed history."""

import dataclasses
from types import SimpleNamespace

import flax.linen as nn
import jax.numpy as jnp

from recjax.zoo.contract import Output, Requirements
from recjax.zoo.embeddings import as_arrays, embed, init_variables, masked_sum, read_tables
from recjax.zoo.features import Schema
from recjax.zoo.layers.losses import ranking_loss


class Hashable(SimpleNamespace):
    """A namespace by identity: models are static arguments of jit."""

    __hash__ = object.__hash__


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    schema: Schema
    scale: float = 1.0


class Dot(nn.Module):
    config: Config
    axis_name: str | None = None

    @nn.compact
    def __call__(self, batch, *, train=False):
        batch, schema = as_arrays(batch), self.config.schema
        embedded = embed(read_tables(self, schema), schema, batch)
        interest = masked_sum(embedded.history, batch["history_mask"])
        bias = self.param("bias", nn.initializers.zeros, ())
        logit = bias + self.config.scale * jnp.einsum("bcd,bd->bc", embedded.candidate, interest)
        return Output(logit, {schema.tasks[0]: logit})


def loss(variables, config, batch, *, key, axis_name=None):
    task = config.schema.tasks[0]
    return ranking_loss(Dot(config, axis_name), variables, batch, task, key)


DOT = Hashable(
    __name__="dot",
    KIND="ranking",
    Config=Config,
    init=lambda key, config: init_variables(key, Dot(config), config.schema),
    apply=lambda variables, config, batch: Dot(config).apply(variables, batch),
    loss=loss,
    requirements=lambda config: Requirements(),
)
