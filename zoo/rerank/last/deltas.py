r"""Directions of LAST: the gradient of a slate's loss by what moves, in steps of one percent.

    loss = -sum_t A_t log pi(l_t)

"activations": the fields of the generator's `Encoded` that its `MOVED` names.

"parameters": the decoder's, each request its own delta. No copy of a parameter is made: lane s
computes x (W + s D) as x W + s (x D), and for the maps of the candidates D itself is never made
either. With E a request's candidates and G the gradient by their keys E W, the gradient by W is
E^T G, so that what a step adds to the keys is E (E^T G) = (E E^T) G, and its norm is that of
<G, (E E^T) G>.

Every block (one array of one request) moves by one percent of its own norm per step, and not at
all where its gradient vanishes.
Shapes: `B` requests, `N` candidates, `M` slots.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from ....kernels.pointer_decode import Direction, Request, Weights, pointer_log_probability

Normalize = Literal["block", "global", "none"]
PARAMETERS = ("key", "context", "row", *Weights._fields)

_TINY = 1e-20


def activations(
    generator: Any,
    encoded: Any,
    order: Int[Array, "B 1 M"],
    credit: Float[Array, "B M"],
    normalize: Normalize,
) -> Any:
    """The change of `encoded` per step of 1: zero but for the fields that move.

    Masked candidates neither count nor move.
    """
    module, moved = generator.module, generator.module.MOVED

    def loss(*values):
        here = encoded._replace(**dict(zip(moved, values, strict=True)))
        logp = module.log_probability(generator.variables, generator.config, here, order)
        return _loss(order, credit, logp)

    sizes = [_real(name, getattr(encoded, name), encoded.mask) for name in moved]
    found = jax.grad(loss, argnums=tuple(range(len(moved))))(*(getattr(encoded, n) for n in moved))
    found = [_real(name, x, encoded.mask) for name, x in zip(moved, found, strict=True)]
    scale = _scales([norm(x) for x in found], [norm(x) for x in sizes], normalize)
    still = jax.tree.map(jnp.zeros_like, encoded)
    steps = {n: _times(x, s) for n, x, s in zip(moved, found, scale, strict=True)}
    return still._replace(**steps, mask=encoded.mask)


def parameters(
    generator: Any,
    encoded: Any,
    order: Int[Array, "B 1 M"],
    credit: Float[Array, "B M"],
    normalize: Normalize,
    names: tuple[str, ...] = PARAMETERS,
) -> Direction:
    """The change of the parameters of these names per step of 1, as the kernel takes it.

    For the pointer generator. The maps that only candidates pass through ("key", "context",
    "row") come multiplied by them.
    """
    request, weights = generator.module.parts(generator.variables, generator.config, encoded)
    size = encoded.mask.shape[0]
    own = weights
    if weights.bias.ndim == 1:
        own = jax.tree.map(lambda x: jnp.broadcast_to(x, (size, *x.shape)), weights)

    def loss(request, own):
        logp = pointer_log_probability(
            request,
            own,
            encoded.mask,
            order,
            rules=encoded.rules,
            context=generator.config.attention,
        )
        return _loss(order, credit, logp)

    by_request, by_own = jax.grad(loss, argnums=(0, 1))(request, own)
    items = jnp.where(encoded.mask[..., None], encoded.items, 0.0)
    rows = jnp.where(encoded.mask[..., None], encoded.rows, 0.0)
    gram = lambda x: jnp.einsum("bnd,bmd->bnm", x, x)
    params = generator.variables["params"]
    mapped = {
        "key": (by_request.keys, gram(items), params["key"]),
        "context": (by_request.context, gram(items), params["context"]),
        "row": (by_request.rows[:, None], gram(rows), params["row"]["kernel"]),
    }
    steps, lengths, norms = {}, {}, {}
    for name, (gradient, alike, kernel) in mapped.items():
        steps[name] = jnp.einsum("bnm,bhmw->bhnw", alike, gradient)
        square = (steps[name] * gradient).reshape(size, -1).sum(axis=1)
        lengths[name] = jnp.sqrt(jnp.maximum(square, 0.0))
        norms[name] = jnp.broadcast_to(jnp.linalg.norm(kernel.ravel()), (size,))
    for name in Weights._fields:
        steps[name] = getattr(by_own, name)
        lengths[name], norms[name] = norm(steps[name]), norm(getattr(own, name))
    # What does not move does not count in a norm of everything either.
    scale = _scales([lengths[n] for n in names], [norms[n] for n in names], normalize)
    scale = dict(zip(names, scale, strict=True))
    moved = {n: _times(x, scale.get(n, jnp.zeros(size))) for n, x in steps.items()}
    return Direction(
        Request(jnp.zeros_like(request.state), moved["key"], moved["context"], moved["row"][:, 0]),
        Weights(*(moved[name] for name in Weights._fields)),
    )


def norm(x: Float[Array, "B ..."]) -> Float[Array, " B"]:
    """Of each request's block."""
    return jnp.sqrt(jnp.square(x).reshape(x.shape[0], -1).sum(axis=1))


def random_like(direction: Any, moved: tuple[str, ...], seeds: UInt32[Array, " B"]) -> Any:
    """A direction whose blocks point anywhere, as far as those of `direction`: a control.

    Each request draws from its own seed.
    """
    keys = jax.vmap(jax.random.key)(seeds)
    found = {}
    for i, name in enumerate(moved):
        x = getattr(direction, name)
        draw = lambda key, x=x, i=i: jax.random.normal(jax.random.fold_in(key, i), x.shape[1:])
        drawn = _real(name, jax.vmap(draw)(keys), direction.mask)
        found[name] = _times(drawn, norm(x) / jnp.maximum(norm(drawn), _TINY))
    return direction._replace(**found)


def _loss(order, credit, logp):
    return -(jnp.where(order[:, 0] >= 0, credit, 0.0) * logp[:, 0]).sum()


def _real(name, x, mask):
    """Without what masked candidates hold; "items" are the field that has candidates."""
    return jnp.where(mask[..., None], x, 0.0) if name == "items" else x


def _scales(lengths, sizes, normalize):
    if normalize == "none":
        return [jnp.ones_like(length) for length in lengths]
    if normalize == "global":
        lengths = [norm(jnp.stack(lengths, axis=1))] * len(lengths)
        sizes = [norm(jnp.stack(sizes, axis=1))] * len(sizes)
    return [
        jnp.where(length > _TINY, 0.01 * size / jnp.maximum(length, _TINY), 0.0)
        for length, size in zip(lengths, sizes, strict=True)
    ]


def _times(x, scale):
    return x * scale.reshape(-1, *(1,) * (x.ndim - 1))
