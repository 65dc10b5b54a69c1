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
import importlib.util
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from .._blocks import blocked
from .._dispatch import Kernel, asked_precision
from .chunked import factors
from .reference import DICE_EPSILON, Activation, Layer, Normalize, Weights, as_float32

MAX_WIDTH = 128
MAX_UNITS = (80, 64)
MAX_SINGLE_WIDTH = 64  # Of float32 in the backward pass: what fits into registers on sm_90.
HOPPER = 90
# Programs that fill 132 multiprocessors several times over.
PROGRAMS = 1024
BLOCK_BYTES = 2**26


@dataclasses.dataclass(frozen=True)
class Config:
    """How the work is cut: performance only, never semantics.

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
    if reason := _missing():
        return reason
    (requests, candidates, width), length = query.shape, keys.shape[1]
    if not all(isinstance(size, int) for size in (requests, candidates, length)):
        return f"a launch needs known sizes, got {(requests, candidates, length)}"
    if not requests * candidates * length:
        return f"nothing to do for {(requests, candidates, length)}"
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
        if _precision(keys.dtype) == "tf32x3":
            return "float32 at the highest precision does not fit into registers"
    return unsupported(query, keys, mask, weights, activation=activation, normalize=normalize)


@functools.cache
def _missing() -> str | None:
    """What is not installed."""
    absent = [name for name in ("triton", "jax_triton") if importlib.util.find_spec(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (see recjax[gpu])"
    try:
        import jax_triton  # noqa: F401  # pyright: ignore[reportMissingImports]
    except (ImportError, AttributeError) as e:  # Without JAX's CUDA plugin.
        return f"jax_triton cannot be imported: {e}"
    return None


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
    busy = -(-PROGRAMS // (requests * candidates))
    parts = max(1, min(busy, keys.shape[1] // (8 * tile)))
    # Bytes per candidate: M_q, and in the backward pass M_q's gradient and the second layer's.
    held = MAX_UNITS[0] * _padded(width) * keys.dtype.itemsize
    if backward:
        held += parts * 4 * MAX_UNITS[0] * (_padded(width) + MAX_UNITS[1])
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
    """What each candidate finds, and what `backward` wants."""
    config = config or heuristic(query, keys, activation, backward=False)
    soft = normalize == "softmax"
    sizes = _Sizes.of(query, weights)

    def block(query, keys, mask):
        lead = (*query.shape[:2], config.parts)
        prepared = _prepare(sizes, activation, query, weights)
        pooled, top, total = _launch(
            "forward",
            (lead[1], lead[0], lead[2]),
            _history(keys, mask) + _cast(prepared, keys.dtype),
            out=((*lead, sizes.padded_width), lead, lead),
            constants=_constants(sizes, config, activation, soft, keys, lead),
            config=config,
        )
        pooled = pooled[..., : sizes.width]
        if not soft:
            return (), Kept(pooled.sum(axis=2), jnp.zeros(lead[:2]))
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
        arrays = _history(keys, mask) + _cast(prepared, keys.dtype)
        arrays += (gradient.astype(keys.dtype), log_mass, delta)
        constants = _constants(sizes, config, activation, soft, keys, lead)
        call = functools.partial(_launch, arrays=arrays, constants=constants, config=config)
        (to_keys,) = call("backward_keys", (lead[2], lead[0]), out=(keys,))
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
        part_b = _padded(max(first - part_a, 1))
        return cls(query.shape[2], _padded(query.shape[2]), part_a, part_b, _padded(second))

    @property
    def units(self) -> int:
        """Of the first layer, padded."""
        return self.part_a + self.part_b


def _padded(size: int) -> int:
    """The power of two >= 16 that holds `size`."""
    return max(16, 1 << (size - 1).bit_length())


class _Prepared(NamedTuple):
    """What the kernels take, padded with zeros and transposed; `H` and `G` are units."""

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
    """What the kernels take, in float32; its derivative turns their gradients into the op's."""
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


def _history(keys: Array, mask: Array) -> tuple[Array, Array, Int[Array, "B 2"]]:
    """Keys, mask, and where the real keys of a request begin and end; 0, 0 without any."""
    length = mask.shape[1]
    first, last = jnp.argmax(mask, axis=1), length - jnp.argmax(mask[:, ::-1], axis=1)
    ends = jnp.where(mask.any(axis=1)[:, None], jnp.stack([first, last], axis=1), 0)
    return keys, mask, ends.astype(jnp.int32)


def _precision(dtype) -> str:
    """Of float32 products."""
    exact = asked_precision() in ("highest", "float32")
    return "tf32x3" if exact and dtype == jnp.float32 else "tf32"


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
        "PREC": _precision(keys.dtype),
    }


def _launch(
    name: str,
    grid: tuple[int, ...],
    arrays: tuple[Shaped[Array, "..."], ...],
    *,
    out: tuple,
    constants: dict[str, int | str | bool],
    config: Config,
) -> tuple[Array, ...]:
    """Calls one kernel. `out` holds shapes, of float32 arrays, or arrays like those wanted."""
    import jax_triton  # pyright: ignore[reportMissingImports]

    from . import triton_kernels

    shapes = [
        jax.ShapeDtypeStruct(*((x, jnp.float32) if isinstance(x, tuple) else (x.shape, x.dtype)))
        for x in out
    ]

    @jax.custom_batching.sequential_vmap  # jax-triton itself has no rule for vmap.
    def call(*arrays):
        return tuple(
            jax_triton.triton_call(
                *arrays,
                kernel=getattr(triton_kernels, name),
                out_shape=shapes,
                grid=grid,
                num_warps=config.warps,
                num_stages=2,
                compute_capability=None if jax.default_backend() == "gpu" else HOPPER,
                **constants,
            )
        )

    return call(*arrays)
