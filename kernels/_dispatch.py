"""Chooses which implementation of an op runs. Shared by every op in this package."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np

from ._axes import all_vary, explicit_axes, varying


@dataclasses.dataclass(frozen=True)
class Implementation:
    """One way to compute an op.

    Attributes:
      fn: the op itself; a kernel's has no derivative, but for `forward` and `backward`.
      unsupported: why it cannot run these arguments, or None if it can. It looks only at shapes,
        dtypes and options, so that it works on tracers too.
      kernel: for one platform only; None means written in plain JAX, which runs everywhere.
    """

    fn: Callable[..., Any]
    unsupported: Callable[..., str | None] = lambda *args, **kwargs: None
    kernel: "Kernel | None" = None


@dataclasses.dataclass(frozen=True)
class Kernel:
    """An op and its derivative on one platform.

    Attributes:
      platform: as in `jax.lax.platform_dependent`, "cuda" or "tpu".
      forward: `(*args, **options) -> (result, kept)`, any arrays that `backward` wants.
      backward: `(*args, kept, gradient, **options)` -> a gradient per argument, None for those
        that are not floating.
      unsupported_backward: as in `Implementation`; where it objects, plain JAX differentiates.
    """

    platform: str
    forward: Callable[..., Any]
    backward: Callable[..., Any]
    unsupported_backward: Callable[..., str | None] = lambda *args, **kwargs: None


def no_backward(*args, **options) -> str:
    """For kernels whose derivative plain JAX computes."""
    del args, options
    return "the backward pass has no kernel"


def dispatch(table: Mapping[str, Implementation], name: str | None, *args, **options):
    """Runs `table[name]`, or if `name` is None what is best.

    The first entry in plain JAX that supports the arguments is best, but for the platforms that
    have a kernel which does: those are told apart when the computation is lowered, so that an
    export for another platform is right. Kernels know one platform each: an export for several at
    once has to force one in plain JAX, and so do arguments that vary over the axes of a
    `shard_map`. A forced name never falls back: it raises NotImplementedError with the reason, or
    runs, a kernel on its own platform; for another one JAX refuses to lower it.
    """
    if name is not None and name not in table:
        raise ValueError(f"implementation must be None or one of {list(table)}, got {name!r}.")
    if axes := explicit_axes(args):
        raise NotImplementedError(
            f"arguments must not be sharded over explicit axes of a mesh, got {', '.join(axes)}: "
            "call the op inside jax.sharding.auto_axes, or make the mesh with AxisType.Auto."
        )
    reasons, kernels, plain = [], [], None
    axes = varying(args)
    args = all_vary(args, axes)
    for candidate in table if name is None else [name]:
        entry = table[candidate]
        reason = entry.unsupported(*args, **options)
        if reason is None and entry.kernel is not None and axes:
            reason = "a kernel does not say over which axes of a shard_map its result varies"
        if reason is not None:
            reasons.append(f"{candidate}: {reason}")
        elif entry.kernel is not None:
            kernels.append(entry.kernel)
        else:
            plain = entry.fn
            break
    if name is not None and kernels:
        # Only for what its backward pass may leave to it; nothing else lowers to plain JAX.
        plain = next(x.fn for x in table.values() if x.kernel is None)
    if plain is None:
        raise NotImplementedError(
            f"no implementation can run these arguments ({'; '.join(reasons)})."
        )
    if not kernels:
        return plain(*args, **options)
    return _on_platforms(kernels, plain, args, options, forced=name is not None)


Exactness = Literal["default", "high", "highest"]
_EXACTNESS: dict[str | None, Exactness] = {
    None: "default",
    "default": "default",
    "fastest": "default",
    "bfloat16": "default",
    "high": "high",
    "tensorfloat32": "high",
    "highest": "highest",
    "float32": "highest",
}


def matmul_precision() -> str | None:
    """The name that `jax.default_matmul_precision` has in force."""
    return cast(Any, jax.config).jax_default_matmul_precision


def exactness() -> Exactness | None:
    """The exactness that `jax.default_matmul_precision` asks for; None for an unknown name."""
    return _EXACTNESS.get(matmul_precision())


def unknown_precision() -> str | None:
    """The reason why a kernel cannot multiply as asked."""
    if exactness():
        return None
    return f"kernels do not know the matrix precision {matmul_precision()!r}"


def _on_platforms(kernels, plain, args, options, *, forced):
    """The op with one derivative for all platforms, so that nothing is kept for a branch not taken.

    A derivative of `platform_dependent` would keep what every branch wants, whole histories among
    it.
    """
    plain = functools.partial(plain, **options)
    backwards = [x for x in kernels if x.unsupported_backward(*args, **options) is None]

    @jax.custom_vjp
    def run(*args):
        return forward(*args)[0]

    def forward(*args):
        if forced:
            (kernel,) = kernels
            result, kept = kernel.forward(*args, **options)
            return result, {kernel.platform: kept}
        kept = {
            x.platform: jax.tree.map(
                lambda s: jnp.zeros(s.shape, s.dtype),
                jax.eval_shape(functools.partial(x.forward, **options), *args)[1],
            )
            for x in kernels
        }

        def branch(kernel, *args):
            result, own = kernel.forward(*args, **options)
            return result, {**kept, kernel.platform: own}

        branches = {x.platform: functools.partial(branch, x) for x in kernels}
        default = lambda *args: (plain(*args), kept)
        return jax.lax.platform_dependent(*args, **branches, default=default)

    def forward_and_keep(*args):
        result, kept = forward(*args)
        return result, (args, kept)

    asked = matmul_precision()

    def backward(residuals, gradient):
        # float0, the gradient of whole numbers, is nothing that a branch could take.
        gradient = jax.tree.map(lambda g: None if g.dtype == jax.dtypes.float0 else g, gradient)
        # A derivative is traced later, when what was asked for may no longer be in force.
        with jax.default_matmul_precision(asked):
            return derive(residuals, gradient)

    def derive(residuals, gradient):
        def branch(kernel, args, kept, gradient):
            return kernel.backward(*args, kept[kernel.platform], gradient, **options)

        def default(args, kept, gradient):
            del kept
            out, pull = jax.vjp(plain, *args)
            of_whole = lambda x: np.zeros(x.shape, jax.dtypes.float0)
            gradient = jax.tree.map(lambda x, g: of_whole(x) if g is None else g, out, gradient)
            return _floating(pull(gradient), args)

        branches = {x.platform: functools.partial(branch, x) for x in backwards}
        args, kept = residuals
        if forced and backwards:
            return branch(backwards[0], args, kept, gradient)
        return jax.lax.platform_dependent(args, kept, gradient, **branches, default=default)

    run.defvjp(forward_and_keep, backward)
    return run(*args)


def _floating(gradients, args):
    """None for arguments that have no gradient."""
    first = [next(iter(jax.tree.leaves(x)), None) for x in args]
    keep = [x is not None and jnp.issubdtype(x.dtype, jnp.floating) for x in first]
    return tuple(g if kept else None for g, kept in zip(gradients, keep, strict=True))
