"""Losses shared by models. All are means over the real candidates of all devices."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Shaped
import optax

from ..batch import Batch
from ..contract import Aux, Variables
from ..embeddings import as_arrays


def click_loss(
    logit: Float[Array, "B C"], batch: Batch, task: str, axis_name: str | None = None
) -> Float[Array, ""]:
    """Weighted binary cross-entropy: sum(w * bce) / sum(w) over unmasked candidates.

    One logit instead of the authors' two-way softmax averaged over both classes, which is half of
    this: an auxiliary weight of 1 there is 2 here.
    """
    mask = batch["candidate_mask"]
    label = label_of(batch, task)
    if label.shape != logit.shape:
        raise ValueError(f"label {task!r} must have shape {logit.shape}, got {label.shape}.")
    weight = batch.get("weight", {}).get(task, jnp.ones_like(label))
    weight = jnp.where(mask, weight, 0.0)
    each = optax.sigmoid_binary_cross_entropy(jnp.where(mask, logit, 0.0), label)
    return mean_over(weight * each, weight, axis_name)


def mean_over(
    value: Float[Array, "..."], weight: Shaped[Array, "..."], axis_name: str | None = None
) -> Float[Array, ""]:
    """sum(value) / sum(weight) over all devices, `value` being weighted already; or 0."""
    total, mass = value.sum(), weight.sum(dtype=jnp.float32)
    if axis_name is not None:
        total, mass = jax.lax.psum((total, mass), axis_name)
    return total / jnp.where(mass > 0, mass, 1.0)


def label_of(batch: Batch, task: str) -> Float[Array, "B C"]:
    """The labels of a task. Raises ValueError if the batch has none."""
    labels = batch.get("label", {})
    if task not in labels:
        raise ValueError(
            f"A loss needs batch['label'][{task!r}], got {', '.join(labels) or 'no label'}."
        )
    return jnp.asarray(labels[task])


def in_training(
    module: nn.Module,
    variables: Variables,
    batch: Batch,
    key: PRNGKeyArray,
    method: str | None = None,
) -> tuple[Any, dict[str, Any]]:
    """Result of `module` in training mode, and its updated running statistics.

    `module` has an `axis_name`; dropout differs between the devices of that axis.
    """
    if module.axis_name is not None:
        key = jax.random.fold_in(key, jax.lax.axis_index(module.axis_name))
    result, updated = module.apply(
        variables,
        batch,
        train=True,
        rngs={"dropout": key},
        mutable=["batch_stats"],
        method=method,
    )
    return result, dict(updated).get("batch_stats", {})


def ranking_loss(
    module: nn.Module, variables: Variables, batch: Batch, task: str, key: PRNGKeyArray
) -> tuple[Float[Array, ""], Aux]:
    """Applies a single-task ranker in training mode and takes its click loss."""
    batch = as_arrays(batch)
    output, statistics = in_training(module, variables, batch, key)
    bce = click_loss(output.tasks[task], batch, task, module.axis_name)
    return bce, Aux(statistics, {"bce": bce})
