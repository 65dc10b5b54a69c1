"""Parts common to calls of Triton kernels. Shared by every op in this package."""

import functools
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._dispatch import exactness, unknown_precision

HOPPER = 90
# Programs that fill 132 multiprocessors several times over.
PROGRAMS = 1024


@functools.cache
def missing() -> str | None:
    """The reason why Triton kernels cannot run: a missing package or device."""
    absent = [name for name in ("triton", "jax_triton") if importlib.util.find_spec(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (see recjax[gpu])"
    try:
        import jax_triton  # noqa: F401  # pyright: ignore[reportMissingImports]
    except (ImportError, AttributeError) as e:  # Without JAX's CUDA plugin.
        return f"jax_triton cannot be imported: {e}"
    if jax.default_backend() == "gpu":
        has = str(getattr(jax.devices()[0], "compute_capability", "0"))
        if int(has.replace(".", "")) < HOPPER:
            return f"made for compute capability {HOPPER / 10} and above, this GPU has {has}"
    return None


def refusal(*sizes: Any) -> str | None:
    """Why nothing can be launched for an op of these sizes, whatever it is."""
    if reason := missing() or unknown_precision():
        return reason
    if not all(isinstance(size, int) for size in sizes):
        return f"a launch needs known sizes, got {sizes}"
    return None if all(sizes) else f"nothing to do for {sizes}"


def padded(size: int) -> int:
    """The power of two >= 16 that holds `size`: what tensor cores take."""
    return max(16, 1 << (size - 1).bit_length())


def precision() -> str:
    """Of float32 products: one TF32 product each, or three where the highest is asked for."""
    return "tf32x3" if exactness() == "highest" else "tf32"


def parts(programs: int, tiles: int) -> int:
    """Number of programs per history, so that all are busy and none has less than 8 tiles."""
    return max(1, min(-(-PROGRAMS // programs), tiles // 8))


def launch(
    kernel,
    grid: tuple[int, ...],
    arrays: tuple[Array, ...],
    *,
    out: tuple,
    constants: dict[str, int | float | str | bool],
    warps: int,
) -> tuple[Array, ...]:
    """Calls a kernel. `out` holds shapes, of float32 arrays, or arrays like those wanted."""
    import jax_triton  # pyright: ignore[reportMissingImports]

    shapes = [
        jax.ShapeDtypeStruct(*((x, jnp.float32) if isinstance(x, tuple) else (x.shape, x.dtype)))
        for x in out
    ]

    @jax.custom_batching.sequential_vmap  # jax-triton itself has no rule for vmap.
    def call(*arrays):
        return tuple(
            jax_triton.triton_call(
                *arrays,
                kernel=kernel,
                out_shape=shapes,
                grid=grid,
                num_warps=warps,
                num_stages=2,
                compute_capability=None if jax.default_backend() == "gpu" else HOPPER,
                **constants,
            )
        )

    return call(*arrays)
