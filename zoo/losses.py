"""Losses shared by models. All are means over the real candidates of all devices."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray
import optax

from .contract import Aux, Batch, Variables
from .embeddings import as_arrays


def click_loss(
    logit: Float[Array, "B C"], batch: Batch, task: str, axis_name: str | None = None
) -> Float[Array, ""]:
    """Weighted binary cross-entropy: sum(w * bce) / sum(w) over unmasked candidates.

    One logit instead of the authors' two-way softmax averaged over both classes, which is half of
    this: an auxiliary weight of 1 there is 2 here.
    """
    mask = batch["candidate_mask"]
    label = batch["label"][task]
    weight = batch.get("weight", {}).get(task, jnp.ones_like(label))
    weight = jnp.where(mask, weight, 0.0)
    each = optax.sigmoid_binary_cross_entropy(jnp.where(mask, logit, 0.0), label)
    total, mass = jnp.sum(weight * each), jnp.sum(weight)
    if axis_name is not None:
        total, mass = jax.lax.psum((total, mass), axis_name)
    return total / jnp.maximum(mass, 1e-12)


def ranking_loss(
    module: nn.Module, variables: Variables, batch: Batch, task: str, key: PRNGKeyArray
) -> tuple[Float[Array, ""], Aux]:
    """Applies a single-task ranker in training mode and takes its click loss.

    `module` has an `axis_name`; dropout differs between the devices of that axis.
    """
    axis_name, batch = module.axis_name, as_arrays(batch)
    if axis_name is not None:
        key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
    output, updated = module.apply(
        variables, batch, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
    )
    bce = click_loss(output.tasks[task], batch, task, axis_name)
    return bce, Aux(dict(updated).get("batch_stats", {}), {"bce": bce})
