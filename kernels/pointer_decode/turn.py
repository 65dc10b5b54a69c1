"""Filling one slot after the other: what every decoder of lists does with its scores.

Shapes: `R` requests, `S` lists, `N` candidates, `M` slots.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from .noise import gumbel
from .rules import Rules, allowed

# Of the scores (R, S, N) of a slot, -inf where nothing may be chosen, and its number.
Choose = Callable[[Array, Array], Array]


BROKEN = -1e30  # In place of a score that is no number.


class Left(NamedTuple):
    """Candidates that are left, and the lists so far, -1 where a slot is empty."""

    free: Bool[Array, "R S N"]
    order: Int[Array, "R S M"]

    @classmethod
    def all_of(cls, mask: Bool[Array, "R N"], lists: int, slots: int) -> "Left":
        """Before the first slot."""
        size, count = mask.shape
        free = jnp.broadcast_to(mask[:, None], (size, lists, count))
        return cls(free, jnp.full((size, lists, slots), -1, jnp.int32))


class Turn(NamedTuple):
    """One slot, filled."""

    left: Left
    picked: Bool[Array, "R S N"]
    log_probability: Float[Array, "R S"]


def fill(
    scores: Float[Array, "R S N"],
    left: Left,
    slot: Int[Array, ""],
    rules: Rules | None,
    choose: Choose,
) -> Turn:
    """The choice for `slot`, by the softmax over the candidates that are left and allowed.

    Where that is nothing, the slot stays empty and its log probability is 0. Scores that are no
    numbers come last, so that broken ones never let in what may not be chosen.
    """
    free, order = left
    fine = free if rules is None else allowed(rules, free, order, slot)
    scores = jnp.where(jnp.isfinite(scores), scores, BROKEN)
    scores = jnp.where(fine, scores, -jnp.inf)
    some = fine.any(axis=-1)
    chosen = jnp.where(some, choose(scores, slot), -1).astype(jnp.int32)
    picked = jax.nn.one_hot(chosen, free.shape[-1], dtype=bool)
    total = jax.nn.logsumexp(jnp.where(some[..., None], scores, 0.0), axis=-1)
    mine = jnp.where(picked, scores, 0.0).sum(axis=-1)
    # A list may name what there is not.
    mine = jnp.where(picked.any(axis=-1), mine, -jnp.inf)
    order = jax.lax.dynamic_update_index_in_dim(order, chosen, slot, 2)
    left = Left(free & ~picked, order)
    return Turn(left, picked, jnp.where(chosen >= 0, mine - total, 0.0))


def drawn(noise: Float[Array, "R S M N"] | UInt32[Array, " R"] | None, slots: int) -> Choose:
    """The largest score plus noise: given, made of a seed per request, or none at all.

    Of equals the first.
    """

    def choose(scores: Array, slot: Array) -> Array:
        noisy = scores
        if noise is not None and noise.ndim == 1:
            noisy = scores + gumbel(noise, scores.shape[1], slot, slots, scores.shape[2])
        elif noise is not None:
            now = jax.lax.dynamic_index_in_dim(noise, slot, 2, keepdims=False)
            noisy = scores + now.astype(jnp.float32)
        return jnp.argmax(jnp.where(scores > -jnp.inf, noisy, -jnp.inf), axis=-1)

    return choose


def given(order: Int[Array, "R S M"]) -> Choose:
    """The candidate that each list names, allowed or not."""
    return lambda scores, slot: jax.lax.dynamic_index_in_dim(order, slot, 2, keepdims=False)
