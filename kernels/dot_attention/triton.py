"""Dot attention on NVIDIA GPUs: prepares the arguments of the kernels in `triton_kernels.py`,
calls them through jax-triton, and adds up what they give.

XLA does what is small: what each query says to each row of the table of intervals (`_prepare`) and
what comes of the weights that each row got (`_finish`); the derivatives of both are JAX's. The
kernels do what has the length of the history, and keep none of it.

float32 products are made of TF32 ones: of one each by default, of three each under
`jax.default_matmul_precision("highest")`.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .. import _triton
from .._dispatch import Kernel, exactness
from .._mask import real_range
from .._triton import padded

MAX_WIDTH = 128
MAX_INTERVALS = 32
MAX_EXACT_WIDTH = 64  # Of three products for one in the backward pass, on sm_90.


@dataclasses.dataclass(frozen=True)
class Config:
    """Tile sizes: they change the speed and never the result.

    Attributes:
      queries: at a time, a power of two >= 16.
      tile: keys at a time, a power of two >= 16.
      warps: of a program.
      parts: programs that share the history of a request.
    """

    queries: int
    tile: int
    warps: int
    parts: int


def unsupported(query, keys, mask, interval=None, table=None) -> str | None:
    """Why the kernels cannot run these arguments."""
    del mask, interval
    if reason := _triton.refusal(*query.shape[:2], keys.shape[1]):
        return reason
    if keys.shape[2] > MAX_WIDTH:
        return f"width must be <= {MAX_WIDTH}, got {keys.shape[2]}"
    if table is not None and table.shape[0] > MAX_INTERVALS:
        return f"intervals must be <= {MAX_INTERVALS}, got {table.shape[0]}"
    return None


def unsupported_backward(query, keys, mask, interval=None, table=None) -> str | None:
    """Why the kernels of the backward pass cannot run these arguments."""
    exactly = keys.dtype == jnp.float32 and exactness() == "highest"
    if exactly and keys.shape[2] > MAX_EXACT_WIDTH:
        return (
            f"float32 at the highest precision and wider than {MAX_EXACT_WIDTH} does not fit into "
            "registers"
        )
    return unsupported(query, keys, mask, interval, table)


def heuristic(query: Float[Array, "B Q Z"], keys: Float[Array, "B L E"]) -> Config:
    """A decent config without measuring; no kernel spills registers with it on sm_90."""
    requests, queries, _ = query.shape
    # 32 at a time spill: too many for one row of warps, too few for a product of four.
    exactly = keys.dtype == jnp.float32 and exactness() == "highest"
    large = keys.dtype == jnp.float32 and keys.shape[2] > MAX_EXACT_WIDTH
    at_once = 16 if queries <= 16 or large or exactly else 64
    tile = (16 if large else 32) if exactly else 64
    blocks = requests * -(-queries // at_once)
    return Config(at_once, tile, 4, _triton.parts(blocks, keys.shape[1] // tile))


class Kept(NamedTuple):
    """For the backward pass, in float32; zeros for requests without behaviours."""

    found: Float[Array, "B Q E"]  # sum_t a_t k_t
    spread: Float[Array, "B Q I"]  # the weight of each interval
    log_mass: Float[Array, "B Q"]  # log sum_t exp(s_t)


def forward(
    query: Float[Array, "B Q Z"],
    keys: Float[Array, "B L E"],
    mask: Bool[Array, "B L"],
    interval: Int[Array, "B L"] | None = None,
    table: Float[Array, "I T"] | None = None,
    *,
    config: Config | None = None,
) -> tuple[Float[Array, "B Q Z"], Kept]:
    """The result for each query, and the residuals of `backward`."""
    config = config or heuristic(query, keys)
    width, lead = keys.shape[2], (*query.shape[:2], config.parts)
    asked, said = _prepare(width, query, table)
    blocks = -(-lead[1] // config.queries)
    columns = (padded(width), said.shape[-1])
    found, spread, top, total = _launch(
        "forward",
        (lead[0] * blocks, config.parts),
        _arrays(keys, mask, interval, asked, said),
        out=((*lead, columns[0]), (*lead, columns[1]), lead, lead),
        constants=_constants(keys, query, table, config),
        config=config,
    )
    most = top.max(axis=2, keepdims=True)
    share = jnp.exp(top - most)
    mass = jnp.sum(share * total, axis=2)
    share = share / jnp.maximum(mass, 1e-30)[..., None]
    merged = lambda x, size: jnp.sum(share[..., None] * x, axis=2)[..., :size]
    log_mass = jnp.where(mass > 0, most[..., 0] + jnp.log(jnp.maximum(mass, 1e-30)), 0)
    rows = 0 if table is None else table.shape[0]
    kept = Kept(merged(found, width), merged(spread, rows), log_mass)
    return _finish(kept.found, kept.spread, table).astype(keys.dtype), kept


def backward(
    query: Float[Array, "B Q Z"],
    keys: Float[Array, "B L E"],
    mask: Bool[Array, "B L"],
    *rest,
    config: Config | None = None,
) -> tuple[Array | None, ...]:
    """Gradients of the arguments; `rest` ends with what was kept and the result's gradient."""
    *of_intervals, kept, gradient = rest
    interval, table = of_intervals or (None, None)
    config = config or heuristic(query, keys)
    width, lead = keys.shape[2], (*query.shape[:2], config.parts)
    prepare = lambda query, table: _prepare(width, query, table)
    (asked, said), pull_prepared = jax.vjp(prepare, query, table)
    _, pull_finished = jax.vjp(_finish, kept.found, kept.spread, table)
    to_found, to_spread, to_table = pull_finished(gradient.astype(jnp.float32))
    delta = jnp.sum(to_found * kept.found, -1) + jnp.sum(to_spread * kept.spread, -1)
    spread = jnp.pad(to_spread, ((0, 0), (0, 0), (0, said.shape[-1] - to_spread.shape[-1])))
    arrays = _arrays(keys, mask, interval, asked, said)
    arrays += (to_found.astype(keys.dtype), spread, kept.log_mass, delta)
    constants = _constants(keys, query, table, config)
    blocks, tiles = -(-lead[1] // config.queries), -(-keys.shape[1] // config.tile)
    call = lambda name, grid, out: _launch(
        name, grid, arrays, out=out, constants=constants, config=config
    )
    shapes = ((*lead, padded(width)), (*lead, said.shape[-1]))
    to_asked, to_said = call("backward_queries", (lead[0] * blocks, config.parts), shapes)
    (to_keys,) = call("backward_keys", (lead[0] * tiles,), (keys,))
    to_asked = to_asked.sum(axis=2)[..., :width].astype(asked.dtype)
    to_query, more = pull_prepared((to_asked, to_said.sum(axis=2)))
    if table is None:
        return to_query, to_keys, None
    return to_query, to_keys, None, None, (to_table + more).astype(table.dtype)


KERNEL = Kernel("cuda", forward, backward, unsupported_backward)


def dot_attention(*args) -> Float[Array, "B Q Z"]:
    """See `api.dot_attention`; without a derivative."""
    return forward(*args)[0]


def _prepare(
    width: int, query: Float[Array, "B Q Z"], table: Float[Array, "I T"] | None
) -> tuple[Float[Array, "B Q E"], Float[Array, "B Q NP"]]:
    """Query parts for keys, in their own dtype, and for each interval, padded with zeros."""
    rows = 0 if table is None else table.shape[0]
    said = jnp.zeros((*query.shape[:2], rows), jnp.float32)
    if table is not None:
        # A sum, not a product of matrices: it is small, and exact in float32 anywhere.
        of_interval = query[..., None, width:].astype(jnp.float32)
        said = jnp.sum(of_interval * table.astype(jnp.float32)[None, None], axis=-1)
    return query[..., :width], jnp.pad(said, ((0, 0), (0, 0), (0, padded(max(rows, 1)) - rows)))


def _finish(
    found: Float[Array, "B Q E"], spread: Float[Array, "B Q I"], table: Float[Array, "I T"] | None
) -> Float[Array, "B Q Z"]:
    """The result, in float32."""
    if table is None:
        return found
    return jnp.concatenate([found, spread @ table.astype(jnp.float32)], axis=-1)


def _arrays(keys, mask, interval, asked, said) -> tuple[Array, ...]:
    """The first arguments of every kernel; without intervals, none is read."""
    interval = jnp.zeros((1, 1), jnp.int32) if interval is None else interval
    return keys, mask, real_range(mask), interval, asked, said


def _constants(keys, query, table, config: Config) -> dict[str, int | str | bool]:
    """The constants of a kernel."""
    rows = 0 if table is None else table.shape[0]
    return {
        "Q": query.shape[1],
        "L": keys.shape[1],
        "S": config.parts,
        "D": keys.shape[2],
        "DP": padded(keys.shape[2]),
        "N": rows,
        "NP": padded(max(rows, 1)),
        "BQ": config.queries,
        "BL": config.tile,
        "PREC": _triton.precision(),
    }


def _launch(name: str, grid, arrays, *, out, constants, config: Config) -> tuple[Array, ...]:
    """Calls the kernel of this name; see `_triton.launch`."""
    from . import triton_kernels

    kernel = getattr(triton_kernels, name)
    return _triton.launch(kernel, grid, arrays, out=out, constants=constants, warps=config.warps)
