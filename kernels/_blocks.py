"""Loops over slices, which bound the memory of an op. Shared by every op in this package."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._axes import all_vary, varying


def blocked(
    f: Callable,
    arrays: tuple[Array, ...],
    size: int | None,
    *,
    axis: int,
    merge: Callable | None = None,
):
    """Calls `f(*arrays) -> (merged, stacked)` on slices of at most `size` along `axis`.

    The first results are merged (added, by default), starting from zeros; the second are put
    side by side. Slices that do not come out even are padded with zeros. No size: one call.
    """
    total = arrays[0].shape[axis]
    if size is None or total <= size:
        return f(*arrays)
    least = -(-total // size)
    # Padding copies everything: better up to twice the blocks, if they come out even.
    count = min(range(least, 2 * least + 1), key=lambda n: -(-total // n) * n - total)
    size = -(-total // count)

    def split(x):
        pad = [(0, count * size - total if i == axis else 0) for i in range(x.ndim)]
        shape = (*x.shape[:axis], count, size, *x.shape[axis + 1 :])
        return jnp.moveaxis(jnp.pad(x, pad).reshape(shape), axis, 0)

    def join(x):
        x = jnp.moveaxis(x, 0, axis)
        x = x.reshape(*x.shape[:axis], count * size, *x.shape[axis + 2 :])
        return jax.lax.slice_in_dim(x, 0, total, axis=axis)

    def step(carry, block):
        more, stacked = f(*block)
        return (merge(carry[0], more), None) if merge else _add(carry, more), stacked

    blocks = tuple(split(x) for x in arrays)
    shapes = jax.eval_shape(f, *(x[0] for x in blocks))[0]
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    zeros = all_vary(zeros, varying(arrays))
    (merged, _), stacked = jax.lax.scan(step, (zeros, None if merge else zeros), blocks)
    return merged, jax.tree.map(join, stacked)


def _add(carry, more):
    """Adds to sums and to what they have lost so far (Kahan 1965): errors do not add up."""
    sums, lost = carry
    more = jax.tree.map(jnp.subtract, more, lost)
    new = jax.tree.map(jnp.add, sums, more)
    return new, jax.tree.map(lambda n, s, m: (n - s) - m, new, sums, more)
