"""Pointer decoding on NVIDIA GPUs: calls the kernel in `triton_kernels.py` through jax-triton.

There is no kernel for the derivative of what was chosen: plain JAX has it.

Products of float32 matrices are of three TF32 ones each, whatever is asked for: the choices are to
be those of the definition, and beside the tanh they cost little.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt32

from .. import _triton
from .._dispatch import Kernel, no_backward
from .._triton import padded
from .limits import refusal
from .reference import Context, Decoded, Direction, Request, Weights
from .rules import Rules


@dataclasses.dataclass(frozen=True)
class Config:
    """Tile sizes: they change the speed and never the result.

    Attributes:
      lanes: of a request at a time, a power of two.
      columns: of a head at a time, a power of two >= 16.
      warps: of a program.
    """

    lanes: int
    columns: int
    warps: int


def unsupported(
    request: Request,
    weights: Weights,
    mask: Bool[Array, "R N"],
    direction: Direction | None,
    steps: Float[Array, " S"],
    noise: Float[Array, "R S M N"] | UInt32[Array, " R"] | None,
    rules: Rules | None,
    *,
    slots: int,
    temperature: float,
    context: Context,
) -> str | None:
    """Why the kernel cannot run these arguments."""
    del noise, slots, temperature, context
    reason = _triton.refusal(mask.shape[0], steps.shape[0])
    return reason or refusal(request, weights, direction, rules)


def heuristic(request: Request, lanes: int) -> Config:
    """A decent config without measuring.

    A block of lanes takes about as long as two more would: for what all of them share, and for
    products, which come in rows of 16. With seeds and a direction it spills no registers on sm_90;
    otherwise the assembler may spill some dozens of bytes, to fit in one more block.
    """
    block = min((8, 4), key=lambda block: -(-lanes // block) * (block + 2))
    return Config(block, min(padded(request.keys.shape[3]), 64), 4)


def pointer_decode(
    request: Request,
    weights: Weights,
    mask: Bool[Array, "R N"],
    direction: Direction | None,
    steps: Float[Array, " S"],
    noise: Float[Array, "R S M N"] | UInt32[Array, " R"] | None,
    rules: Rules | None,
    *,
    slots: int,
    temperature: float,
    context: Context,
    config: Config | None = None,
) -> Decoded:
    """See `api.pointer_decode`; without a derivative. `config` overrides the heuristic."""
    del rules
    (requests, heads, candidates, width), lanes = request.keys.shape, steps.shape[0]
    units = request.state.shape[1]
    config = config or heuristic(request, lanes)
    # What is not there is not read.
    toward = request if direction is None else direction.request
    given = "none" if noise is None else "seeded" if noise.ndim == 1 else "given"
    arrays = (*request, *toward, *weights, mask, steps.astype(jnp.float32))
    arrays += (steps if noise is None else noise,)
    shape = requests, lanes, slots
    found = _launch(
        "decode",
        (requests * -(-lanes // config.lanes),),
        arrays,
        out=(jax.ShapeDtypeStruct(shape, jnp.int32), shape),
        constants={
            "S": lanes,
            "M": slots,
            "N": candidates,
            "NP": padded(candidates),
            "F": heads,
            "A": width,
            "H": units,
            "HP": padded(units),
            "BS": config.lanes,
            "BA": config.columns,
            "MOVED": direction is not None,
            "NOISE": given,
            "SOFT": context == "softmax",
            "SCALE": 1 / (heads * temperature),
            "PREC": "tf32x3",
        },
        config=config,
    )
    return Decoded(*found)


def _launch(name: str, grid, arrays, *, out, constants, config: Config) -> tuple[Array, ...]:
    """Calls the kernel of this name; see `_triton.launch`."""
    from . import triton_kernels

    kernel = getattr(triton_kernels, name)
    return _triton.launch(kernel, grid, arrays, out=out, constants=constants, warps=config.warps)


def _forward(*args, **options):
    return pointer_decode(*args, **options), ()


KERNEL = Kernel("cuda", _forward, no_backward, no_backward)
