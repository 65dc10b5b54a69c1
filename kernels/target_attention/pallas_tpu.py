"""Target attention on TPUs, in Pallas. There is no kernel for the backward pass: the chunked form
computes everything again.

Everything is transposed, units in rows and keys in columns, so that 80 units fill ten sublanes to
the last place and scores come out as a row. A request's keys pass through VMEM tile by tile, and
every candidate of a block meets a tile while it is there; tiles before the first real key and
after the last are neither copied nor looked at. M_q of the block's candidates is built once per
block and stays.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .. import _tpu
from .._dispatch import Kernel, no_backward
from .._mask import MASKED, real_range
from .reference import Activation, Layer, Normalize, Weights, activate, as_float32
from .unit import factors

MAX_WIDTH = 512
MAX_UNITS = 256


@dataclasses.dataclass(frozen=True)
class Config:
    """Tile sizes: they change the speed and never the result.

    Attributes:
      tile: keys at a time, a multiple of 128.
      candidates: per block; a multiple of 8, or all of them.
    """

    tile: int
    candidates: int


def unsupported(
    query: Float[Array, "B C D"],
    keys: Float[Array, "B L D"],
    mask: Bool[Array, "B L"],
    weights: Weights,
    *,
    activation: Activation,
    normalize: Normalize,
) -> str | None:
    """Why the kernel cannot run these arguments."""
    del mask, activation, normalize
    if reason := _tpu.refusal(*query.shape[:2], keys.shape[1]):
        return reason
    units = tuple(layer.bias.shape[0] for layer in weights.layers)
    if len(units) != 2 or max(units) > MAX_UNITS:
        return f"needs two hidden layers of at most {MAX_UNITS} units, got {units}"
    if not 0 < query.shape[2] <= MAX_WIDTH:
        return f"width must be in 1..{MAX_WIDTH}, got {query.shape[2]}"
    return None


def heuristic(query: Float[Array, "B C D"], keys: Float[Array, "B L D"]) -> Config:
    """A decent config without measuring."""
    candidates, length = query.shape[1], keys.shape[1]
    return Config(_tpu.tile_of(length), candidates if candidates < 8 else 8)


def target_attention(
    query: Float[Array, "B C D"],
    keys: Float[Array, "B L D"],
    mask: Bool[Array, "B L"],
    weights: Weights,
    *,
    activation: Activation,
    normalize: Normalize,
    config: Config | None = None,
    interpret: bool | pltpu.InterpretParams = False,
) -> Float[Array, "B C D"]:
    """See `api.target_attention`; without a derivative. `config` overrides the heuristic."""
    config = config or heuristic(query, keys)
    (requests, candidates, width), length = query.shape, keys.shape[1]
    tile, block = config.tile, config.candidates
    columns = _columns(as_float32(weights), keys.dtype)
    units = weights.layers[0].bias.shape[0]

    of_candidates = pl.BlockSpec((1, block, width), lambda b, c, i, ends: (b, c, 0))
    return pl.pallas_call(
        functools.partial(_kernel, activation, normalize == "softmax", _tpu.precision(keys.dtype)),
        out_shape=jax.ShapeDtypeStruct(query.shape, keys.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(requests, pl.cdiv(candidates, block), pl.cdiv(length, tile)),
            in_specs=[
                of_candidates,
                *_tpu.of_history(tile, width),
                *(pl.BlockSpec(x.shape, lambda *_: (0, 0)) for x in columns),
            ],
            out_specs=of_candidates,
            scratch_shapes=[
                pltpu.VMEM((block, units, width), keys.dtype),
                pltpu.VMEM((block, units, 1), jnp.float32),
                pltpu.VMEM((block, width), jnp.float32),
                pltpu.VMEM((block, 1), jnp.float32),
                pltpu.VMEM((block, 1), jnp.float32),
            ],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        interpret=interpret,
        name="target_attention",
    )(real_range(mask).reshape(-1), query, keys, mask[:, None].astype(jnp.int32), *columns)


class _Columns(NamedTuple):
    """The weights, transposed: what belongs to a unit is a row."""

    from_q: Float[Array, "H D"]
    from_k: Float[Array, "H D"]
    from_product: Float[Array, "H D"]
    bias_1: Float[Array, "H 1"]
    alpha_1: Float[Array, "H 1"]
    mean_1: Float[Array, "H 1"]
    variance_1: Float[Array, "H 1"]
    kernel_2: Float[Array, "G H"]
    bias_2: Float[Array, "G 1"]
    alpha_2: Float[Array, "G 1"]
    mean_2: Float[Array, "G 1"]
    variance_2: Float[Array, "G 1"]
    out_kernel: Float[Array, "G 1"]
    out_bias: Float[Array, "1 1"]


def _columns(weights: Weights, dtype) -> _Columns:
    """Zeros for what the activation does not use."""
    first, second = weights.layers
    from_q, from_k, from_product = (x.T for x in factors(first.kernel))
    bias = jnp.zeros((), jnp.float32) if weights.out_bias is None else weights.out_bias
    return _Columns(
        from_q,
        from_k,
        from_product,
        *_of_units(first),
        second.kernel.T.astype(dtype),
        *_of_units(second),
        weights.out_kernel[:, None],
        bias.reshape(1, 1),
    )


def _of_units(layer: Layer) -> tuple[Array, Array, Array, Array]:
    """Bias, alpha, mean and variance as columns."""
    none = jnp.zeros_like(layer.bias)
    column = lambda x: (none if x is None else x)[:, None]
    return column(layer.bias), column(layer.alpha), column(layer.mean), column(layer.variance)


def _kernel(activation, soft, precision, ends, query, keys, mask, *refs):
    """One tile of keys against a block of candidates."""
    columns = _Columns(*refs[: len(_Columns._fields)])
    out, mixed, own, found, most, mass = refs[len(_Columns._fields) :]
    b, i = pl.program_id(0), pl.program_id(2)
    candidates, tile = query.shape[1], keys.shape[1]

    def for_each_candidate(body):
        step = lambda c, _: body(c, pl.ds(c, 1))
        jax.lax.fori_loop(0, candidates, step, None, unroll=True)

    @pl.when(i == 0)
    def _start():
        @for_each_candidate
        def _prepare(c, row):
            q = query[0, row].astype(jnp.float32)
            mixed[c] = (columns.from_k[...] + columns.from_product[...] * q).astype(mixed.dtype)
            share = jnp.sum(columns.from_q[...] * q, axis=1, keepdims=True)
            own[c] = share + columns.bias_1[...]

        found[...] = jnp.zeros_like(found)
        most[...] = jnp.full_like(most, MASKED)
        mass[...] = jnp.zeros_like(mass)

    @pl.when((ends[2 * b] < (i + 1) * tile) & (i * tile < ends[2 * b + 1]))
    def _meet():
        # Beyond the history there is nothing, not even zeros; masked keys may hold anything.
        t = _tpu.positions(i, tile)
        real = (mask[0] != 0) & (t < ends[2 * b + 1])
        k = jnp.where(_tpu.as_column(real), keys[0], 0).astype(keys.dtype)
        first = Layer(columns.from_k, *(x[...] for x in columns[3:7]))
        second = Layer(columns.kernel_2, *(x[...] for x in columns[8:12]))
        dot = functools.partial(
            jax.lax.dot_general, precision=precision, preferred_element_type=jnp.float32
        )

        @for_each_candidate
        def _attend(c, row):
            x = dot(mixed[c], k, (((1,), (1,)), ((), ()))) + own[c]
            y = activate(x, first, activation).astype(k.dtype)
            v = dot(columns.kernel_2[...], y, (((1,), (0,)), ((), ()))) + second.bias
            z = activate(v, second, activation) * columns.out_kernel[...]
            score = jnp.sum(z, axis=0, keepdims=True) + columns.out_bias[...]
            if soft:
                score = jnp.where(real, score, MASKED)
                new = jnp.maximum(most[row], jnp.max(score, axis=1, keepdims=True))
                weight = jnp.where(real, jnp.exp(score - new), 0)
                keep = jnp.exp(most[row] - new)
                most[row] = new
                mass[row] = mass[row] * keep + jnp.sum(weight, axis=1, keepdims=True)
                found[row] = found[row] * keep
            else:
                weight = jnp.where(real, score, 0)
            found[row] += dot(weight, k.astype(jnp.float32), (((1,), (0,)), ((), ())))

    @pl.when(i == pl.num_programs(2) - 1)
    def _finish():
        result = found[...] / jnp.maximum(mass[...], 1e-30) if soft else found[...]
        out[0] = result.astype(out.dtype)


def _forward(*args, **options):
    return target_attention(*args, **options), ()


KERNEL = Kernel("tpu", _forward, no_backward, no_backward)
