"""Exact search, the second stage of SIM: attention over the few events that were found.

Pi et al., "Search-based User Interest Modeling with Lifelong Sequential Behavior Data for
Click-Through Rate Prediction", CIKM 2020, section 3.3, https://arxiv.org/abs/2006.05639.
Shapes: `B` requests, `C` candidates, `K` events found, `D` width of an item, `E` of a behaviour,
`Z` of a behaviour with its time interval, `V` of what a head gives.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ..kernels.target_attention import normalized
from .embeddings import INIT_STD

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
        """What each head finds; zeros where there is no event."""
        z = found.vectors
        if self.interval_dim:
            table = self.param(
                "intervals", nn.initializers.normal(INIT_STD), (INTERVALS, self.interval_dim)
            )
            apart = jnp.zeros((*z.shape[:-1], self.interval_dim))
            if found.age is not None:
                apart = table[interval(found.age)]
            z = jnp.concatenate([z, apart], axis=-1)
        glorot = nn.initializers.glorot_uniform()
        heads = []
        for i in range(self.heads):
            w_a = self.param(f"w_a_{i}", glorot, (query.shape[-1], self.head_dim))
            w_b = self.param(f"w_b_{i}", starting_as(w_a), (z.shape[-1], self.head_dim))
            head = attend((query @ w_a) @ w_b.T, z, found.mask)
            if self.project_value:
                head = head @ self.param(f"w_v_{i}", glorot, (z.shape[-1], self.head_dim))
            heads.append(head)
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
    query: Float[Array, "B C Z"], keys: Float[Array, "B C K Z"], mask: Bool[Array, "B C K"]
) -> Float[Array, "B C Z"]:
    """sum_j softmax_j(q . z_j) z_j over the real events; zeros without one.

    The query comes as W_b^T W_a q, so that no projected key is ever built.
    """
    score = jnp.einsum("bcz,bckz->bck", query, keys)
    return jnp.einsum("bck,bckz->bcz", normalized(score, mask, "softmax"), keys)


def interval(age: Int[Array, "*lead"]) -> Int[Array, "*lead"]:
    """floor(log2(1 + hours)) of an age in seconds, in 0..31; in whole numbers, hence exact."""
    return 31 - jax.lax.clz(1 + jnp.maximum(age, 0) // 3600)
