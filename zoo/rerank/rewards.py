r"""Worth of a slate, slot by slot: what evaluators expect, and what a shop wants besides.

    reward_t = sum_c worth_c component_ct

Components are the probability of each task of the evaluators (click, purchase), then any functions
of the slate alone: `diversity`, `feature`. With preferences (CMR), `worth` has one row per
objective and each request brings how much each objective counts:

    reward_t = sum_k w_k sum_c worth_kc component_ct

Shapes: `B` requests, `N` candidates, `S` slates per request, `M` slots, `E` evaluators.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from ..batch import Batch
from ..contract import Evaluator, Variables
from . import evaluator as evaluators

Judge = Callable[[Array], Array]
Reward = Callable[[Batch, Array], Array]


class Evaluators(NamedTuple):
    """Trained evaluators of one configuration, and what counts.

    Attributes:
      variables: of each; several make an ensemble, whose mean is the score.
      config: of all.
      worth: of each component: the tasks of the schema, then those of `more`. One such tuple per
        objective where requests have preferences.
      more: components that need no evaluator.
      module: that has the evaluators' functions.
    """

    variables: Sequence[Variables]
    config: Any
    worth: tuple[float, ...] | tuple[tuple[float, ...], ...]
    more: tuple[Reward, ...] = ()
    module: Evaluator = evaluators


def judge_of(by: Evaluators, batch: Batch) -> Judge:
    """`judge(order (B, S, M)) -> (B, S, M, E)`: what each evaluator expects of each slot.

    Candidates are encoded once, however many slates are judged. Empty slots get nothing.

    Raises:
      ValueError: `worth` does not fit the tasks and `more`, or there is no evaluator.
    """
    if isinstance(by.variables, dict):
        raise ValueError("Evaluators.variables must be a sequence, one entry per evaluator.")
    if "candidate_mask" not in batch:
        raise ValueError("A batch needs candidate_mask (B, N).")
    if not by.variables:
        raise ValueError("Evaluators.variables must hold at least one, got none.")
    worth = _worth(by, batch)
    encoded = [by.module.encode(variables, by.config, batch) for variables in by.variables]

    def judge(order):
        others = [reward(batch, order)[..., None] for reward in by.more]

        def each(variables, encoded):
            tasks = jax.nn.sigmoid(by.module.judge(variables, by.config, encoded, order))
            components = jnp.concatenate([tasks, *others], axis=-1)
            return jnp.einsum("bsmc,bc->bsm", components, worth)

        found = [each(v, e) for v, e in zip(by.variables, encoded, strict=True)]
        return jnp.where(order[..., None] >= 0, jnp.stack(found, axis=-1), 0.0)

    return judge


def require_fit(config: Any, by: Evaluators) -> None:
    """Raises ValueError unless these evaluators can judge what this generator writes.

    Ids must mean the same, no slate be too long, and preferences decide what counts.
    """
    if config.schema != by.config.schema:
        lines = "; ".join(config.schema.differences(by.config.schema)) or "table sizes"
        raise ValueError(f"Generator and evaluators must have one schema: {lines}.")
    if config.slots > by.config.slots:
        raise ValueError(
            f"The generator's slots must be at most the evaluators' {by.config.slots}, got "
            f"{config.slots}."
        )
    names = getattr(config, "preferences", ())
    if names and (np.ndim(by.worth) != 2 or len(by.worth) != len(names)):
        raise ValueError(
            f"Evaluators.worth must have a row for each of the preferences {', '.join(names)}, got "
            f"{by.worth}."
        )


def _worth(by: Evaluators, batch: Batch) -> Float[Array, "B C"]:
    tasks = by.config.schema.tasks
    worth, count = jnp.array(by.worth, jnp.float32), len(tasks) + len(by.more)
    if worth.ndim not in (1, 2) or worth.shape[-1] != count or not np.isfinite(by.worth).all():
        raise ValueError(
            f"Evaluators.worth must have a number for each of {', '.join(tasks)} and "
            f"{len(by.more)} more, got {by.worth}."
        )
    if worth.ndim == 2:
        shape = (batch["candidate_mask"].shape[0], len(worth))
        if "preference" not in batch or jnp.shape(batch["preference"]) != shape:
            raise ValueError(f"A batch needs preference {shape}, one per row of worth.")
        return jnp.asarray(batch["preference"]) @ worth
    return jnp.broadcast_to(worth, (batch["candidate_mask"].shape[0], count))


def diversity(field: str, alpha: float = 0.5) -> Reward:
    """(1 - alpha)^(how many of the kind stand above) / log2(slot + 1), slots from 1.

    The gain of alpha-nDCG (Clarke et al., "Novelty and Diversity in Information Retrieval
    Evaluation", SIGIR 2008), a candidate being of the kind that its id in `field` names.
    """

    def reward(batch: Batch, order: Int[Array, "B S M"]) -> Float[Array, "B S M"]:
        kind = jnp.where(order >= 0, at(_field(batch, field), order), -1)
        above = jnp.tril(jnp.ones(order.shape[-1:] * 2, bool), -1)[None, None]
        same = (kind[..., :, None] == kind[..., None, :]) & above
        slot = jnp.arange(order.shape[-1], dtype=jnp.float32) + 2
        return (1 - alpha) ** same.sum(axis=-1).astype(jnp.float32) / jnp.log2(slot)[None, None]

    return reward


def feature(field: str) -> Reward:
    """Reward from a dense field of the candidate: a price, a freshness, a flag."""

    def reward(batch: Batch, order: Int[Array, "B S M"]) -> Float[Array, "B S M"]:
        return at(_field(batch, field), order)

    return reward


def _field(batch: Batch, name: str) -> Array:
    if name not in batch["candidate"]:
        names = ", ".join(batch["candidate"])
        raise ValueError(f"A reward needs candidate field {name!r}, got {names}.")
    return jnp.asarray(batch["candidate"][name])


def at(x: Array, order: Int[Array, "B S M"]) -> Array:
    """(B, S, M) of x (B, N); empty slots read candidate 0."""
    return x[jnp.arange(x.shape[0])[:, None, None], jnp.where(order >= 0, order, 0)]


def upstream(batch: Batch, slots: int) -> Int[Array, "B M"]:
    """The order in which the candidates came; -1 where there is none."""
    mask = jnp.asarray(batch["candidate_mask"])
    # Real ones first, in their order.
    order = jnp.argsort(~mask, axis=1, stable=True)
    order = jnp.where(jnp.take_along_axis(mask, order, axis=1), order, -1)
    padded = jnp.pad(order, [(0, 0), (0, slots)], constant_values=-1)
    return padded[:, :slots].astype(jnp.int32)


def reward_to_go(advantage: Float[Array, "*lead M"], discount: float) -> Float[Array, "*lead M"]:
    """A_t = sum_{k >= t} discount^(k-t) advantage_k: a choice answers for what follows it."""
    apart = np.arange(advantage.shape[-1])
    apart = apart[:, None] - apart[None]  # (k, t)
    share = np.where(apart >= 0, float(discount) ** np.maximum(apart, 0), 0.0)
    return advantage @ jnp.asarray(share, jnp.float32)
