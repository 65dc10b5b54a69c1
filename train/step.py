"""One training step: pull, differentiate the model's own loss, push.

The same function runs under `jit` and, given an `axis_name`, under `pmap`: the loss is global
already, every replica holds the same rows and makes the same update.
"""

from collections.abc import Callable
import contextlib
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32
import numpy as np
import optax

from ..zoo.batch import Batch, part_of
from ..zoo.contract import Model, Variables
from . import tables
from .data.batches.deduplicate import Pulled
from .settings import OPTIMIZERS, Settings

AXIS = "devices"


class TrainState(NamedTuple):
    """Everything that a run carries from step to step, and that a checkpoint holds.

    `occurrences` counts every row in the training set where the row penalty needs it.
    """

    tables: dict[str, Array]
    table_state: dict[str, dict[str, Array]]
    params: dict[str, Any]
    optimizer_state: Any
    batch_stats: dict[str, Any]
    step: Int32[Array, ""]
    occurrences: dict[str, Array]

    @property
    def variables(self) -> Variables:
        """The variables for the model's `apply`."""
        return {"tables": self.tables, "params": self.params, "batch_stats": self.batch_stats}


def initial_state(
    model: Model,
    config: Any,
    settings: Settings,
    occurrences: dict[str, Array],
    start: Variables | None = None,
) -> TrainState:
    """Fresh optimiser states, and variables that are a function of `settings.seed`.

    `occurrences` may be empty where `settings.l2` is 0. Variables to `start` from are copied: a
    step gives its buffers away.
    """
    if start is None:
        variables = model.init(jax.random.key(settings.seed), config)
    else:
        variables = jax.tree.map(jnp.array, start)
    return TrainState(
        tables=variables["tables"],
        table_state=tables.init(settings.row_optimizer(), variables["tables"]),
        params=variables["params"],
        optimizer_state=_optimizer(settings).init(variables["params"]),
        batch_stats=variables.get("batch_stats", {}),
        step=jnp.zeros((), jnp.int32),
        occurrences=occurrences,
    )


def make_step(
    model: Model,
    config: Any,
    settings: Settings,
    *,
    total_steps: int,
    axis_name: str | None = None,
) -> Callable[[TrainState, Batch, Pulled], tuple[TrainState, dict[str, Array]]]:
    """The step as a pure function of (state, batch, pulled); gives the loss's terms.

    Args:
      model: what to train.
      config: its configuration.
      settings: optimisers, rates, seed.
      total_steps: where a linear schedule reaches zero.
      axis_name: of the devices, under pmap; the batch is sharded over them, the rest is equal.
    """
    optimizer = _optimizer(settings)
    row_optimizer = settings.row_optimizer()

    def step(
        state: TrainState, batch: Batch, pulled: Pulled
    ) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(settings.seed, impl="rbg"), state.step)

        def loss(rows, params):
            variables = {"tables": rows, "params": params, "batch_stats": state.batch_stats}
            return model.loss(variables, config, batch, key=key, axis_name=axis_name)

        rows = tables.pull(state.tables, pulled.rows)
        differentiate = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        (value, aux), (row_gradients, gradients) = differentiate(rows, state.params)
        if axis_name is not None:
            # The loss is a global mean, and the transpose of psum under pmap is psum.
            row_gradients, gradients = jax.lax.pmean((row_gradients, gradients), axis_name)

        decay = _decay(settings, state.step, total_steps)
        new_tables, table_state = tables.push(
            row_optimizer,
            state.tables,
            state.table_state,
            pulled,
            row_gradients,
            learning_rate=settings.table_learning_rate * decay,
            step=state.step,
            l2=settings.l2,
            occurrences=state.occurrences or None,
        )
        # Adam's bias correction is float ** int32, which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            updates, optimizer_state = optimizer.update(gradients, state.optimizer_state)
        rate = settings.learning_rate * decay
        params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
        new = TrainState(
            tables=new_tables,
            table_state=table_state,
            params=params,
            optimizer_state=optimizer_state,
            batch_stats=aux.batch_stats,
            step=state.step + 1,
            occurrences=state.occurrences,
        )
        return new, {"loss": value, **aux.terms}

    return step


def _optimizer(settings: Settings) -> optax.GradientTransformation:
    scale = OPTIMIZERS[settings.optimizer]()
    if settings.clip_norm:
        return optax.chain(optax.clip_by_global_norm(settings.clip_norm), scale)
    return scale


def _decay(settings: Settings, step: Int32[Array, ""], total_steps: int) -> Array:
    if settings.schedule == "constant":
        return jnp.ones((), jnp.float32)
    return jnp.maximum(1.0 - step.astype(jnp.float32) / total_steps, 0.0)


def shard(batch: Batch, devices: int) -> Batch:
    """Splits the requests of a batch over devices: (B, ...) becomes (devices, B / devices, ...).

    Shared negatives belong to no request: every device gets them all.
    """
    split = lambda x: x.reshape(devices, x.shape[0] // devices, *x.shape[1:])
    copy = lambda x: np.broadcast_to(x, (devices, *x.shape))
    return {
        name: jax.tree.map(split if part_of(name).axes.startswith("B") else copy, value)
        for name, value in batch.items()
    }


def replicate(state: TrainState, devices: int) -> TrainState:
    """A copy of the state for each device, (devices, ...)."""
    copies = lambda x: np.broadcast_to(np.asarray(x), (devices, *x.shape))
    return jax.tree.map(copies, state)


def offer_devices(count: int) -> None:
    """Lets a CPU stand for `count` devices, a thread for each; too late once JAX has started.

    XLA runs most of a step on one core of a CPU: replicas use the others. Whoever has set the
    number by `XLA_FLAGS` is left alone. Where other work keeps the cores busy, XLA may end the
    process, as a replica keeps the others waiting for more than 40 seconds; `--resume` goes on.
    """
    if count > 1 and "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", count)


def parallel_step(
    model: Model, config: Any, settings: Settings, *, total_steps: int
) -> Callable[[TrainState, Batch, Pulled], tuple[TrainState, dict[str, Array]]]:
    """`make_step` under pmap: a replicated state, a sharded batch, the same pulled rows for all."""
    step = make_step(model, config, settings, total_steps=total_steps, axis_name=AXIS)
    return jax.pmap(step, axis_name=AXIS, in_axes=(0, 0, None), donate_argnums=0)
