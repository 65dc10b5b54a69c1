"""Hard rules of a list: what may not be chosen for the next slot. Shared by all decoders.

A slot for which the rules leave no candidate stays empty: a rule is never broken to fill it.
Shapes: `R` requests, `S` lists, `N` candidates, `M` slots.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


class Scatter(NamedTuple):
    """At most `most` of one kind among any `window` neighbouring slots.

    Attributes:
      same: whether two candidates are of one kind.
      window, most: integers >= 1.
    """

    same: Bool[Array, "R N N"]
    window: Int[Array, ""] | int
    most: Int[Array, ""] | int


class Quota(NamedTuple):
    """At least `least` and at most `most` slots for the members.

    The last slots are kept for members as soon as they are needed, for as long as there are some.
    Quotas that have no members in common are kept together, as far as there are slots; what other
    rules forbid may leave less than `least`.
    """

    member: Bool[Array, "R N"]
    least: Int[Array, ""] | int
    most: Int[Array, ""] | int


class Rules(NamedTuple):
    """All rules hold at once."""

    scatters: tuple[Scatter, ...] = ()
    quotas: tuple[Quota, ...] = ()


def allowed(
    rules: Rules, free: Bool[Array, "R S N"], order: Int[Array, "R S M"], slot: Int[Array, ""]
) -> Bool[Array, "R S N"]:
    """The free candidates that the rules allow for `slot`, given those of `order` before it."""
    slots = order.shape[-1]
    at_slot = jnp.arange(slots)[None, None]
    filled = (order >= 0) & (at_slot < slot)
    near = lambda window: filled & (at_slot > slot - window)
    rows, at = jnp.arange(order.shape[0])[:, None, None], jnp.where(order >= 0, order, 0)
    fine = free
    for scatter in rules.scatters:
        # (R, S, M, N): whether candidate n is of the kind of what stands in slot m.
        alike = scatter.same[rows, at] & near(scatter.window)[..., None]
        fine &= alike.sum(axis=2) < scatter.most
    needed, wanted = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
    for quota in rules.quotas:
        used = (quota.member[rows, at] & filled).sum(axis=-1)[..., None]
        member = quota.member[:, None]
        fine &= ~member | (used < quota.most)
        # What there still is of what is needed.
        need = jnp.minimum(quota.least - used, (free & member).sum(axis=-1, keepdims=True))
        needed, wanted = needed + jnp.maximum(need, 0), wanted | (member & (need > 0))
    # Whatever helps no quota must leave them as many slots as they still need.
    return fine & (wanted | (needed < slots - slot)) if rules.quotas else fine
