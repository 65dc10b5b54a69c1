"""Parts common to Pallas kernels for TPUs. Shared by every op in this package."""

from typing import Any

import jax
from jax.experimental import pallas as pl
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from ._dispatch import exactness, unknown_precision

LANES = 128
SUBLANES = 8
MAX_REQUESTS = 2**16  # Where their keys end has to fit into a megabyte of scalar memory.


def tile_of(length: int, most: int = 512) -> int:
    """Keys at a time for histories of this length."""
    return min(most, -(-length // LANES) * LANES)


def refusal(*sizes: Any) -> str | None:
    """Why there is no grid for an op of these sizes, whatever it is."""
    if reason := unknown_precision():
        return reason
    if not all(isinstance(size, int) for size in sizes):
        return f"a grid needs known sizes, got {sizes}"
    if sizes[0] > MAX_REQUESTS:
        return f"needs at most {MAX_REQUESTS} requests, got {sizes[0]}"
    return None if all(sizes) else f"nothing to do for {sizes}"


def precision(dtype) -> jax.lax.Precision | None:
    """Of products: what is asked for, where it makes a difference."""
    if dtype != jnp.float32 or exactness() == "default":
        return None
    return jax.lax.Precision.HIGHEST  # There is nothing between.


def of_history(tile: int, width: int) -> list[pl.BlockSpec]:
    """Keys (B, L, width) and a row of what is said of them (B, 1, L), tile by tile.

    For grids (request, anything, tile) that know where the real keys begin and end (`ends`, two
    numbers per request). Instead of a tile without any, the nearest that has some: it is there
    already, and nothing is copied.
    """

    def live(b, i, ends):
        low = jax.lax.div(ends[2 * b], jnp.int32(tile))
        high = jax.lax.div(ends[2 * b + 1] + (tile - 1), jnp.int32(tile))
        return jnp.clip(i, low, jnp.maximum(high - 1, low))

    return [
        pl.BlockSpec((1, tile, width), lambda b, _, i, ends: (b, live(b, i, ends), 0)),
        pl.BlockSpec((1, 1, tile), lambda b, _, i, ends: (b, 0, live(b, i, ends))),
    ]


def positions(i: Any, tile: int) -> Int[Array, "1 T"]:
    """Positions of the i-th tile's keys in the history."""
    return i * tile + jax.lax.broadcasted_iota(jnp.int32, (1, tile), 1)


def as_column(row: Bool[Array, "1 T"]) -> Bool[Array, "T 1"]:
    """A row of lanes as a column of sublanes."""
    return jnp.broadcast_to(row.astype(jnp.float32), (SUBLANES, row.shape[1])).T[:, :1] > 0
