"""Exact search, the second stage of SIM: attention over the few events that were found.

Pi et al., "Search-based User Interest Modeling with Lifelong Sequential Behavior Data for
Click-Through Rate Prediction", CIKM 2020, section 3.3, https://arxiv.org/abs/2006.05639.
Shapes: `B` requests, `C` candidates, `K` events found, `D` width of an item, `E` of a behaviour,
`Z` of a behaviour with its time interval, `N` heads, `V` of what a head gives.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ...kernels.dot_attention import dot_attention
from ..embeddings import INIT_STD

INTERVALS = 32


class Events(NamedTuple):
    """Behaviours, zeros where there is none, and how long ago they were, where that is known.

    One axis or more behind the requests': the history, groups of events, or events per candidate.
    """

    vectors: Float[Array, "*lead E"]
    mask: Bool[Array, "*lead"]
    age: Int[Array, "*lead"] | None


def pick(events: Events, index: Int[Array, "B ..."]) -> Events:
    """Per request, the events or groups of events at `index`; none where it is -1."""

    def of_request(x, index):
        return x.at[index].get(mode="fill", fill_value=0, wrap_negative_indices=False)

    return jax.tree.map(lambda x: jax.vmap(of_request)(x, index), events)


class ExactSearch(nn.Module):
    """Multi-head target attention over the events found (section 3.3)."""

    heads: int
    head_dim: int
    interval_dim: int
    project_value: bool

    @nn.compact
    def __call__(self, query: Float[Array, "B C D"], found: Events) -> list[Float[Array, "B C V"]]:
        """Result of each head; zeros where there is no event."""
        width, more = found.vectors.shape[-1], ()
        if self.interval_dim:
            table = self.param(
                "intervals", nn.initializers.normal(INIT_STD), (INTERVALS, self.interval_dim)
            )
            # Where ages are not known, no row of the table is meant.
            unknown = jnp.full(found.mask.shape, -1, jnp.int32)
            more = (unknown if found.age is None else interval(found.age), table)
            width += self.interval_dim
        glorot = nn.initializers.glorot_uniform()
        asked = []
        for i in range(self.heads):
            w_a = self.param(f"w_a_{i}", glorot, (query.shape[-1], self.head_dim))
            w_b = self.param(f"w_b_{i}", starting_as(w_a), (width, self.head_dim))
            asked.append((query @ w_a) @ w_b.T)
        heads = attend(jnp.stack(asked, axis=2), found, *more)
        if self.project_value:
            w_v = [
                self.param(f"w_v_{i}", glorot, (width, self.head_dim)) for i in range(self.heads)
            ]
            heads = [head @ w for head, w in zip(heads, w_v, strict=True)]
        return heads


def starting_as(query_kernel: Float[Array, "D A"]) -> Callable[..., Float[Array, "E A"]]:
    """An initialiser for the keys' projection: that of the queries, where both see an item.

    So a search starts as similarity, which finds what is like the candidate. From two independent
    projections it starts as chance, and what chance finds teaches neither of them anything.
    """

    def init(key: PRNGKeyArray, shape: tuple[int, int]) -> Float[Array, "E A"]:
        rest = nn.initializers.glorot_uniform()(key, shape)[len(query_kernel) :]
        return jnp.concatenate([query_kernel, rest])

    return init


def attend(
    query: Float[Array, "B C N Z"],
    found: Events,
    intervals: Int[Array, "B C K"] | None = None,
    table: Float[Array, "I T"] | None = None,
) -> list[Float[Array, "B C Z"]]:
    """Result of each head over a candidate's own events: every candidate is a request."""
    merged = lambda x: x.reshape(-1, *x.shape[2:])
    more = () if intervals is None else (merged(intervals), table)
    out = dot_attention(merged(query), merged(found.vectors), merged(found.mask), *more)
    out = out.reshape(query.shape)
    return [out[:, :, i] for i in range(query.shape[2])]


def interval(age: Int[Array, "*lead"]) -> Int[Array, "*lead"]:
    """floor(log2(1 + hours)) of an age in seconds, in 0..31; in whole numbers, hence exact."""
    return 31 - jax.lax.clz(1 + jnp.maximum(age, 0) // 3600)
