"""Target attention on NVIDIA GPUs: prepares the arguments of the kernels in `triton_kernels.py`,
calls them through jax-triton, and adds up what they give.

XLA does what is small: M_q and the candidate's own share of the first layer (`_prepare`, whose
derivative is JAX's), sums over the parts of a history and over requests. The kernels do what has
the length of the history, and keep none of it: besides the results, memory holds M_q of a block of
requests and, in the backward pass, what each program adds to the gradients of the weights.

float32 products are made of TF32 ones: of one each by default, of three each under
`jax.default_matmul_precision("highest")`, where the backward pass has no kernel.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .. import _triton
from .._blocks import blocked
from .._dispatch import Kernel, exactness
from .._mask import real_range
from .._triton import padded
from .reference import DICE_EPSILON, Activation, Layer, Normalize, Weights, as_float32
from .unit import factors

MAX_WIDTH = 128
MAX_UNITS = (80, 64)
MAX_SINGLE_WIDTH = 64  # Of float32 in the backward pass: what fits into registers on sm_90.
BLOCK_BYTES = 2**26


@dataclasses.dataclass(frozen=True)
class Config:
    """Tile sizes: they change the speed and never the result.

    Attributes:
      tile: keys at a time, a power of two >= 16.
      warps: of a program.
      parts: programs that share the history of a request.
      requests: per launch.
    """

    tile: int
    warps: int
    parts: int
    requests: int


def unsupported(
    query: Float[Array, "B C D"],
    keys: Float[Array, "B L D"],
    mask: Bool[Array, "B L"],
    weights: Weights,
    *,
    activation: Activation,
    normalize: Normalize,
) -> str | None:
    """Why the kernels cannot run these arguments."""
    del mask, activation, normalize
    width = query.shape[2]
    if reason := _triton.refusal(*query.shape[:2], keys.shape[1]):
        return reason
    if width > MAX_WIDTH:
        return f"width must be <= {MAX_WIDTH}, got {width}"
    units = tuple(layer.bias.shape[0] for layer in weights.layers)
    if len(units) != 2 or any(n > most for n, most in zip(units, MAX_UNITS, strict=True)):
        return f"needs two hidden layers of at most {MAX_UNITS} units, got {units}"
    return None


def unsupported_backward(query, keys, mask, weights, *, activation, normalize) -> str | None:
    """Why the kernels of the backward pass cannot run these arguments."""
    if keys.dtype == jnp.float32:
        if activation == "dice" or query.shape[2] > MAX_SINGLE_WIDTH:
            return f"float32 with Dice or wider than {MAX_SINGLE_WIDTH} does not fit into registers"
        if exactness() == "highest":
            return "float32 at the highest precision does not fit into registers"
    return unsupported(query, keys, mask, weights, activation=activation, normalize=normalize)


def heuristic(
    query: Float[Array, "B C D"],
    keys: Float[Array, "B L D"],
    activation: Activation,
    *,
    backward: bool,
) -> Config:
    """A decent config without measuring; no kernel spills registers with it on sm_90."""
    requests, candidates, width = query.shape
    tile = 32 if keys.dtype == jnp.float32 else 64
    if backward:
        tile = 16 if activation == "dice" else tile // 2
    parts = _triton.parts(requests * candidates, keys.shape[1] // tile)
    # Bytes per candidate: M_q, and in the backward pass M_q's gradient and the second layer's.
    held = MAX_UNITS[0] * padded(width) * keys.dtype.itemsize
    if backward:
        held += parts * 4 * MAX_UNITS[0] * (padded(width) + MAX_UNITS[1])
    return Config(tile, 4, parts, max(1, min(2**15, BLOCK_BYTES // (held * candidates))))


class Kept(NamedTuple):
    """For the backward pass: the result in float32, log sum_t exp(s_t) (zeros without softmax)."""

    found: Float[Array, "B C D"]
    log_mass: Float[Array, "B C"]


def forward(
    query: Float[Array, "B C D"],
    keys: Float[Array, "B L D"],
    mask: Bool[Array, "B L"],
    weights: Weights,
    *,
    activation: Activation,
    normalize: Normalize,
    config: Config | None = None,
) -> tuple[Float[Array, "B C D"], Kept]:
    """The result for each candidate, and the residuals of `backward`."""
    config = config or heuristic(query, keys, activation, backward=False)
    soft = normalize == "softmax"
    sizes = _Sizes.of(query, weights)

    def block(query, keys, mask):
        lead = (*query.shape[:2], config.parts)
        prepared = _prepare(sizes, activation, query, weights)
        pooled, top, total = _launch(
            "forward",
            (lead[1], lead[0], lead[2]),
            (keys, mask, real_range(mask)) + _cast(prepared, keys.dtype),
            out=((*lead, sizes.padded_width), lead, lead),
            constants=_constants(sizes, config, activation, soft, keys, lead),
            config=config,
        )
        pooled = pooled[..., : sizes.width]
        if not soft:
            return (), Kept(pooled.sum(axis=2), jnp.zeros(lead[:2], jnp.float32))
        most = top.max(axis=2, keepdims=True)
        share = jnp.exp(top - most)
        mass = jnp.sum(share * total, axis=2)
        found = jnp.sum(share[..., None] * pooled, axis=2) / jnp.maximum(mass, 1e-30)[..., None]
        log_mass = jnp.where(mass > 0, most[..., 0] + jnp.log(jnp.maximum(mass, 1e-30)), 0)
        return (), Kept(found, log_mass)

    _, kept = blocked(block, (query, keys, mask), config.requests, axis=0)
    return kept.found.astype(keys.dtype), kept


def backward(
    query: Float[Array, "B C D"],
    keys: Float[Array, "B L D"],
    mask: Bool[Array, "B L"],
    weights: Weights,
    kept: Kept,
    gradient: Float[Array, "B C D"],
    *,
    activation: Activation,
    normalize: Normalize,
    config: Config | None = None,
) -> tuple[Float[Array, "B C D"], Float[Array, "B L D"], None, Weights]:
    """Gradients of the arguments."""
    config = config or heuristic(query, keys, activation, backward=True)
    soft = normalize == "softmax"
    sizes = _Sizes.of(query, weights)
    rest = as_float32(weights)

    def block(query, keys, mask, found, log_mass, gradient):
        lead = (*query.shape[:2], config.parts)
        prepared, pull = jax.vjp(functools.partial(_prepare, sizes, activation), query, rest)
        delta = jnp.sum(gradient.astype(jnp.float32) * found, axis=-1)
        arrays = (keys, mask, real_range(mask)) + _cast(prepared, keys.dtype)
        arrays += (gradient.astype(keys.dtype), log_mass, delta)
        constants = _constants(sizes, config, activation, soft, keys, lead)
        call = functools.partial(_launch, arrays=arrays, constants=constants, config=config)
        tiles = -(-keys.shape[1] // config.tile)
        (to_keys,) = call("backward_keys", (tiles, lead[0]), out=(keys,))
        units, more, width = sizes.units, sizes.more_units, sizes.padded_width
        grid = (lead[1], lead[0], lead[2])
        shapes = ((*lead, units, width), (*lead, units), (*lead, 3, units))
        mixed, own, act1 = call("backward_first", grid, out=shapes)
        shapes = ((*lead, more, units), (*lead, more), (*lead, 3, more), (*lead, more), (*lead, 1))
        w2, b2, act2, w3, b3 = call("backward_second", grid, out=shapes)
        everywhere = lambda x: x.sum(axis=(0, 1, 2))
        to_query, to_weights = pull(
            _Prepared(
                mixed.sum(axis=2),
                own.sum(axis=2),
                *map(everywhere, (act1, w2, b2, act2, w3, b3)),
            )
        )
        return to_weights, (to_query, to_keys)

    arrays = (query, keys, mask, kept.found, kept.log_mass, gradient)
    to_weights, (to_query, to_keys) = blocked(block, arrays, config.requests, axis=0)
    to_weights = jax.tree.map(lambda x, like: x.astype(like.dtype), to_weights, weights)
    return to_query, to_keys, None, to_weights


KERNEL = Kernel("cuda", forward, backward, unsupported_backward)


def target_attention(*args, **options) -> Float[Array, "B C D"]:
    """See `api.target_attention`; without a derivative."""
    return forward(*args, **options)[0]


class _Sizes(NamedTuple):
    """Widths of the arguments, and what they are padded to."""

    width: int
    padded_width: int
    part_a: int
    part_b: int
    more_units: int

    @classmethod
    def of(cls, query: Array, weights: Weights) -> "_Sizes":
        """Those of some arguments."""
        first, second = (layer.bias.shape[0] for layer in weights.layers)
        part_a = max(16, 1 << (first.bit_length() - 1))
        part_b = padded(max(first - part_a, 1))
        return cls(query.shape[2], padded(query.shape[2]), part_a, part_b, padded(second))

    @property
    def units(self) -> int:
        """Of the first layer, padded."""
        return self.part_a + self.part_b


class _Prepared(NamedTuple):
    """Arguments of the kernels, padded with zeros and transposed; `H` and `G` are units."""

    mixed: Float[Array, "B C H D"]
    own: Float[Array, "B C H"]
    act1: Float[Array, "3 H"]
    w2: Float[Array, "G H"]
    b2: Float[Array, " G"]
    act2: Float[Array, "3 G"]
    w3: Float[Array, " G"]
    b3: Float[Array, " 1"]


def _prepare(
    sizes: _Sizes, activation: Activation, query: Float[Array, "B C D"], weights: Weights
) -> _Prepared:
    """Arguments of the kernels in float32; the derivative turns their gradients into the op's."""
    first, second = as_float32(weights).layers
    query = query.astype(jnp.float32)
    from_q, from_k, from_product = factors(first.kernel)
    mixed = from_k.T[None, None] + query[:, :, None] * from_product.T[None, None]
    own = jnp.einsum("bcd,dh->bch", query, from_q) + first.bias[None, None]
    bias = 0.0 if weights.out_bias is None else weights.out_bias
    units, more = sizes.units, sizes.more_units
    return _Prepared(
        _pad(mixed, units, sizes.padded_width),
        _pad(own, units),
        _pad(_parameters(first, activation), units),
        _pad(second.kernel.T, more, units),
        _pad(second.bias, more),
        _pad(_parameters(second, activation), more),
        _pad(weights.out_kernel.astype(jnp.float32), more),
        jnp.asarray(bias, jnp.float32)[None],
    )


def _parameters(layer: Layer, activation: Activation) -> Float[Array, "3 H"]:
    """Alpha, scale and shift, zeros where the activation has none."""
    none = jnp.zeros_like(layer.bias)
    if activation in ("sigmoid", "relu"):
        return jnp.stack([none] * 3)
    assert layer.alpha is not None
    if activation == "prelu":
        return jnp.stack([layer.alpha, none, none])
    assert layer.mean is not None and layer.variance is not None
    scale = jax.lax.rsqrt(layer.variance + DICE_EPSILON)
    return jnp.stack([layer.alpha, scale, -layer.mean * scale])


def _pad(x: Array, *sizes: int) -> Array:
    """The last axes up to these sizes."""
    lead = [(0, 0)] * (x.ndim - len(sizes))
    more = [(0, size - had) for size, had in zip(sizes, x.shape[-len(sizes) :], strict=True)]
    return jnp.pad(x, lead + more)


def _cast(prepared: _Prepared, dtype) -> tuple[Array, ...]:
    """With what enters products in the dtype of the keys."""
    mixed, w2 = prepared.mixed.astype(dtype), prepared.w2.astype(dtype)
    return tuple(prepared._replace(mixed=mixed, w2=w2))


def _constants(sizes, config, activation, soft, keys, lead) -> dict[str, int | str | bool]:
    """The constants of a kernel."""
    return {
        "C": lead[1],
        "L": keys.shape[1],
        "S": lead[2],
        "D": sizes.width,
        "DP": sizes.padded_width,
        "HA": sizes.part_a,
        "HB": sizes.part_b,
        "G": sizes.more_units,
        "BL": config.tile,
        "ACT": ("sigmoid", "relu", "prelu", "dice").index(activation),
        "SOFT": soft,
        "PREC": _triton.precision(),
    }


def _launch(name: str, grid, arrays, *, out, constants, config: Config) -> tuple[Array, ...]:
    """Calls the kernel of this name; see `_triton.launch`."""
    from . import triton_kernels

    kernel = getattr(triton_kernels, name)
    return _triton.launch(kernel, grid, arrays, out=out, constants=constants, warps=config.warps)
