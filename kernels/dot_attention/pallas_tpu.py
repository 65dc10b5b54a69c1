"""Dot attention on TPUs, in Pallas. There is no kernel for the backward pass: the chunked form
computes everything again.

A request's keys pass through VMEM tile by tile, and a block of queries meets each; tiles before the
first real key and after the last are neither copied nor looked at. What the queries say to each
row of the table of intervals is computed outside, and reaches the keys through one-hot columns.
"""

import dataclasses
import functools

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .. import _tpu
from .._dispatch import Kernel, no_backward
from .._mask import MASKED, real_range

MAX_WIDTH = 512
MAX_INTERVALS = 256


@dataclasses.dataclass(frozen=True)
class Config:
    """Tile sizes: they change the speed and never the result.

    Attributes:
      tile: keys at a time, a multiple of 128.
      queries: per block; a multiple of 8, or all of them.
    """

    tile: int
    queries: int


def unsupported(query, keys, mask, interval=None, table=None) -> str | None:
    """Why the kernel cannot run these arguments."""
    del mask, interval
    if reason := _tpu.refusal(*query.shape[:2], keys.shape[1]):
        return reason
    if not 0 < keys.shape[2] <= MAX_WIDTH:
        return f"width must be in 1..{MAX_WIDTH}, got {keys.shape[2]}"
    if table is not None and table.shape[0] > MAX_INTERVALS:
        return f"intervals must be <= {MAX_INTERVALS}, got {table.shape[0]}"
    return None


def heuristic(query: Float[Array, "B Q Z"], keys: Float[Array, "B L E"]) -> Config:
    """A decent config without measuring."""
    queries, length = query.shape[1], keys.shape[1]
    return Config(_tpu.tile_of(length), min(queries, 128))


def dot_attention(
    query: Float[Array, "B Q Z"],
    keys: Float[Array, "B L E"],
    mask: Bool[Array, "B L"],
    interval: Int[Array, "B L"] | None = None,
    table: Float[Array, "I T"] | None = None,
    *,
    config: Config | None = None,
    interpret: bool | pltpu.InterpretParams = False,
) -> Float[Array, "B Q Z"]:
    """See `api.dot_attention`; without a derivative. `config` overrides the heuristic."""
    config = config or heuristic(query, keys)
    (requests, queries, _), (length, width) = query.shape, keys.shape[1:]
    tile, block = config.tile, config.queries
    rows = _tpu.SUBLANES if table is None else -(-table.shape[0] // _tpu.SUBLANES) * _tpu.SUBLANES
    said = jnp.zeros((requests, queries, rows), jnp.float32)
    if table is not None:
        weights = jnp.pad(table.astype(jnp.float32), ((0, rows - table.shape[0]), (0, 0)))
        said = query[..., width:].astype(jnp.float32) @ weights.T
    # -1 says masked; a behaviour without an interval gets a row that there is not.
    index = jnp.zeros(mask.shape, jnp.int32) if interval is None else interval
    index = jnp.where(mask, jnp.where((index >= 0) & (index < rows), index, rows), -1)

    of_queries = lambda size: pl.BlockSpec((1, block, size), lambda b, n, i, ends: (b, n, 0))
    found, spread = pl.pallas_call(
        functools.partial(_kernel, table is not None, _tpu.precision(keys.dtype)),
        out_shape=(
            jax.ShapeDtypeStruct((requests, queries, width), jnp.float32),
            jax.ShapeDtypeStruct((requests, queries, rows), jnp.float32),
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(requests, pl.cdiv(queries, block), pl.cdiv(length, tile)),
            in_specs=[
                of_queries(width),
                of_queries(rows),
                *_tpu.of_history(tile, width),
            ],
            out_specs=(of_queries(width), of_queries(rows)),
            scratch_shapes=[
                pltpu.VMEM((block, width), jnp.float32),
                pltpu.VMEM((block, rows), jnp.float32),
                pltpu.VMEM((block, 1), jnp.float32),
                pltpu.VMEM((block, 1), jnp.float32),
            ],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        interpret=interpret,
        name="dot_attention",
    )(real_range(mask).reshape(-1), query[..., :width], said, keys, index[:, None])
    if table is not None:
        found = jnp.concatenate([found, spread[..., : len(table)] @ table.astype("float32")], -1)
    return found.astype(keys.dtype)


def _kernel(intervals, precision, ends, query, said, keys, index, *refs):
    """One tile of keys against a block of queries."""
    found_out, spread_out, found, spread, most, mass = refs
    b, i, tile = pl.program_id(0), pl.program_id(2), keys.shape[1]

    @pl.when(i == 0)
    def _start():
        found[...], spread[...] = jnp.zeros_like(found), jnp.zeros_like(spread)
        most[...], mass[...] = jnp.full_like(most, MASKED), jnp.zeros_like(mass)

    @pl.when((ends[2 * b] < (i + 1) * tile) & (i * tile < ends[2 * b + 1]))
    def _meet():
        # Beyond the history there is nothing, not even zeros; masked keys may hold anything.
        t = _tpu.positions(i, tile)
        real = (index[0] >= 0) & (t < ends[2 * b + 1])
        k = jnp.where(_tpu.as_column(real), keys[0], 0).astype(keys.dtype)
        row = jax.lax.broadcasted_iota(jnp.int32, (spread.shape[1], tile), 0)
        hot = ((row == index[0]) & real).astype(jnp.float32)
        dot = functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32)
        rows, columns = ((1,), (0,)), ((1,), (1,))
        exact = jax.lax.Precision.HIGHEST  # What is multiplied by a one-hot column stays as it is.
        score = dot(query[0], k, (columns, ((), ())), precision=precision)
        if intervals:
            score += dot(said[0], hot, (rows, ((), ())), precision=exact)
        score = jnp.where(real, score, MASKED)
        new = jnp.maximum(most[...], jnp.max(score, axis=1, keepdims=True))
        weight = jnp.where(real, jnp.exp(score - new), 0)
        keep = jnp.exp(most[...] - new)
        most[...] = new
        mass[...] = mass[...] * keep + jnp.sum(weight, axis=1, keepdims=True)
        more = dot(weight.astype(k.dtype), k, (rows, ((), ())), precision=precision)
        found[...] = found[...] * keep + more
        if intervals:
            more = dot(weight, hot, (columns, ((), ())), precision=exact)
            spread[...] = spread[...] * keep + more

    @pl.when(i == pl.num_programs(2) - 1)
    def _finish():
        share = jnp.maximum(mass[...], 1e-30)
        found_out[0] = found[...] / share
        spread_out[0] = spread[...] / share


def _forward(*args):
    return dot_attention(*args), ()


KERNEL = Kernel("tpu", _forward, no_backward, no_backward)
