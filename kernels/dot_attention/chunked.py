"""Dot attention in plain JAX, some requests and queries at a time: the path for CPUs.

Where queries are fewer than a key has numbers, so are their scores, and differentiation may keep
them; elsewhere each block is computed again. So temporary memory beyond copies of the inputs does
not grow with the batch.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._blocks import blocked
from .._mask import normalized
from . import reference

# Scores at a time: on CPUs what stays in a core's L2, else what keeps an accelerator busy.
SCORES = 2**17
SCORES_OF_ACCELERATORS = 2**22
FEW = 8


@dataclasses.dataclass(frozen=True)
class Config:
    """Block sizes: they change speed and memory and never the result."""

    requests: int
    queries: int


def heuristic(queries: int, length: int, scores: int = SCORES) -> Config:
    """A decent config without measuring: about so many scores at a time."""
    requests = max(1, scores // max(1, queries * length))
    return Config(requests, max(1, scores // max(1, length)))


def dot_attention(
    query: Float[Array, "B Q Z"],
    keys: Float[Array, "B L E"],
    mask: Bool[Array, "B L"],
    interval: Int[Array, "B L"] | None = None,
    table: Float[Array, "I T"] | None = None,
    *,
    config: Config | None = None,
) -> Float[Array, "B Q Z"]:
    """See `api.dot_attention`. `config` overrides the heuristic."""
    sizes = (*query.shape[:2], keys.shape[1])
    if not all(isinstance(size, int) for size in sizes):
        return reference.dot_attention(query, keys, mask, interval, table)
    args: tuple[Any, ...] = (query, keys, mask)
    if interval is not None:
        args += (interval, table)
    requests, queries, length = sizes
    small = heuristic(queries, length)
    if config or (requests <= small.requests and queries <= small.queries):
        return _in_blocks(config or small, *args)
    large = heuristic(queries, length, SCORES_OF_ACCELERATORS)
    of = lambda config: functools.partial(_in_blocks, config)
    return jax.lax.platform_dependent(*args, cpu=of(small), default=of(large))


def _in_blocks(config, query, keys, mask, interval=None, table=None):
    def block(query, keys, mask, *interval):
        z = jnp.where(mask[..., None], keys, 0).astype(jnp.float32)
        if interval and table is not None:
            index = jnp.where(mask, interval[0], -1)
            z = jnp.concatenate([z, _rows(table.astype(jnp.float32), index)], axis=-1)

        def part(query):
            return (), _attend(query.astype(jnp.float32), z, mask).astype(keys.dtype)

        return blocked(part, (query,), config.queries, axis=1)

    if query.shape[1] > keys.shape[2]:
        block = jax.checkpoint(block)
    arrays = (query, keys, mask) if interval is None else (query, keys, mask, interval)
    return blocked(block, arrays, config.requests, axis=0)[1]


def _attend(
    query: Float[Array, "B Q Z"], z: Float[Array, "B L Z"], mask: Bool[Array, "B L"]
) -> Float[Array, "B Q Z"]:
    """A few queries one by one: products of a matrix and a vector, which CPUs do much faster."""
    if 1 < query.shape[1] <= FEW:
        one = [_attend(query[:, i : i + 1], z, mask) for i in range(query.shape[1])]
        return jnp.concatenate(one, axis=1)
    score = jnp.einsum("bqz,blz->bql", query, z)
    attention = normalized(score, jnp.broadcast_to(mask[:, None], score.shape), "softmax")
    return jnp.einsum("bql,blz->bqz", attention, z)


@jax.custom_vjp
def _rows(table: Float[Array, "I T"], index: Int[Array, "B L"]) -> Float[Array, "B L T"]:
    """Rows of a table, zeros where there is no such row."""
    return table.at[index].get(mode="fill", fill_value=0, wrap_negative_indices=False)


def _rows_backward(kept, gradient):
    # A product adds in the same order every time; a scatter on a GPU does not.
    table, index = kept
    hot = jax.nn.one_hot(index, len(table), dtype=gradient.dtype)
    return jnp.einsum("bli,blt->it", hot, gradient, precision="highest"), None


_rows.defvjp(lambda table, index: (_rows(table, index), (table, index)), _rows_backward)
