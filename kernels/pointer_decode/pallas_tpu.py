"""Pointer decoding on TPUs, in Pallas. There is no kernel for the derivative of what was chosen:
plain JAX has it.

A program owns eight lanes of one request, rows of a register, and fills their slots one after the
other; candidates are its 128 columns. Keys come transposed, the width of a head in rows, so that
scores are sums of registers; what is done for one lane at a time is the tanh. Everything of a
request stays in VMEM meanwhile. The row of what was chosen is picked by a product with a one-hot.
"""

import functools

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt32

from .. import _tpu
from .._dispatch import Kernel, no_backward
from .._mask import normalized
from .limits import MAX_CANDIDATES, refusal
from .noise import STRIDE, of_counter
from .reference import Context, Decoded, Direction, Request, Weights
from .rules import Rules
from .turn import BROKEN

BLOCK = _tpu.SUBLANES  # Lanes at a time.


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
    reason = _tpu.refusal(mask.shape[0], steps.shape[0])
    return reason or refusal(request, weights, direction, rules)


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
    interpret: bool | pltpu.InterpretParams = False,
) -> Decoded:
    """See `api.pointer_decode`; without a derivative."""
    del rules
    (requests, candidates), lanes = mask.shape, steps.shape[0]
    wide = lambda x: jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, MAX_CANDIDATES - candidates)])

    def turned(request):
        """Without what masked candidates hold, and with keys transposed."""
        keep = lambda x, mask: jnp.where(mask, x, 0)
        return Request(
            request.state[:, None],
            wide(jnp.swapaxes(keep(request.keys, mask[:, None, :, None]), 2, 3)),
            keep(request.context, mask[:, None, :, None]),
            keep(request.rows, mask[..., None]),
        )

    whole = lambda x: pl.BlockSpec(x.shape, lambda r, s: (0,) * x.ndim)
    of_request = lambda x: pl.BlockSpec((1, *x.shape[1:]), lambda r, s: (r,) + (0,) * (x.ndim - 1))
    of_lanes = pl.BlockSpec((1, BLOCK, slots), lambda r, s: (r, s, 0))
    arguments = {
        "request": turned(request),
        "direction": None if direction is None else turned(direction.request),
        "mask": wide(mask.astype(jnp.int32))[:, None],
    }
    specs = jax.tree.map(of_request, arguments)
    arguments["weights"] = weights._replace(
        query_bias=weights.query_bias[..., None],
        score=weights.score[..., None],
        bias=weights.bias[None],
    )
    specs["weights"] = jax.tree.map(whole, arguments["weights"])
    arguments["steps"] = steps.astype(jnp.float32)[:, None]
    specs["steps"] = pl.BlockSpec((BLOCK, 1), lambda r, s: (s, 0))
    arguments["noise"], specs["noise"] = noise, None
    if noise is not None and noise.ndim == 1:
        arguments["noise"] = noise[:, None, None]
        specs["noise"] = of_request(arguments["noise"])
    elif noise is not None:
        # Slots in front: one can be taken by its number.
        arguments["noise"] = jnp.swapaxes(wide(noise), 1, 2)
        shape = (1, slots, BLOCK, MAX_CANDIDATES)
        specs["noise"] = pl.BlockSpec(shape, lambda r, s: (r, 0, s, 0))
    shape = (requests, lanes, slots)
    found = pl.pallas_call(
        functools.partial(_kernel, candidates, temperature, context),
        out_shape=(
            jax.ShapeDtypeStruct(shape, jnp.int32),
            jax.ShapeDtypeStruct(shape, jnp.float32),
        ),
        grid=(requests, pl.cdiv(lanes, BLOCK)),
        in_specs=(specs,),
        out_specs=(of_lanes, of_lanes),
        scratch_shapes=[pltpu.VMEM((BLOCK, MAX_CANDIDATES), jnp.float32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        interpret=interpret,
        name="pointer_decode",
    )(arguments)
    return Decoded(*found)


def _kernel(candidates, temperature, context, arguments, order, log_probability, score):
    """All slots of a block of lanes."""
    request, direction, weights, noise = (
        arguments[name] for name in ("request", "direction", "weights", "noise")
    )
    steps, real = arguments["steps"][...], arguments["mask"][0] != 0
    heads, units, _ = weights.query.shape
    slots = order.shape[2]
    rows = jax.lax.broadcasted_iota(jnp.int32, score.shape, 0) + pl.program_id(1) * BLOCK
    columns = jax.lax.broadcasted_iota(jnp.int32, score.shape, 1)
    dot = functools.partial(
        jax.lax.dot_general,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    single = lambda x: x.astype(jnp.float32)

    def of_lanes(name, weight, *at):
        """Sum of a request's rows by the weights of each lane."""
        found = dot(weight, single(getattr(request, name)[0, *at]), _ROWS)
        if direction is not None:
            found += steps * dot(weight, single(getattr(direction, name)[0, *at]), _ROWS)
        return found

    def scores(f, hidden):
        """Score of each candidate by one head, for each lane."""
        asked = dot(single(weights.query[f]), hidden, (((0,), (1,)), ((), ())))
        asked += single(weights.query_bias[f])
        for i in range(BLOCK):
            x = single(request.keys[0, f]) + asked[:, i : i + 1]
            if direction is not None:
                x += steps[i : i + 1] * single(direction.keys[0, f])
            x = single(weights.score[f]) * jnp.tanh(x)
            score[i : i + 1] = jnp.sum(x, axis=0, keepdims=True)
        return score[...]

    def fill(t, carry):
        hidden, gates, free = carry
        x, h = gates + single(weights.bias[...]), dot(hidden, single(weights.recurrent[...]), _ROWS)
        update, reset = (
            jax.nn.sigmoid(x[:, at] + h[:, at]) for at in (slice(units), slice(units, 2 * units))
        )
        new = jnp.tanh(x[:, 2 * units :] + reset * h[:, 2 * units :])
        hidden = (1 - update) * hidden + update * new
        total, gates = jnp.zeros_like(free), jnp.zeros_like(gates)
        for f in range(heads):
            liked = scores(f, hidden)
            total += liked
            weight = normalized(liked, real, "softmax" if context == "softmax" else "none")
            gates += of_lanes("context", weight[:, :candidates], f)
        able = free > 0
        total = jnp.where(jnp.abs(total) < jnp.inf, total / (heads * temperature), BROKEN)
        logit = jnp.where(able, total, -jnp.inf)
        noisy = logit
        if noise is not None and noise.ndim == 3:
            counter = ((rows * slots + t) * STRIDE + columns).astype(jnp.uint32)
            noisy = logit + of_counter(noise[0], counter)
        elif noise is not None:
            noisy = logit + single(noise[0, t])
        noisy = jnp.where(able, noisy, -jnp.inf)
        best = noisy == jnp.max(noisy, axis=1, keepdims=True)
        first = jnp.min(jnp.where(best, columns, MAX_CANDIDATES), axis=1, keepdims=True)
        some = jnp.max(free, axis=1, keepdims=True) > 0
        chosen = jnp.where(some, first, -1)
        picked = columns == chosen
        top = jnp.where(some, jnp.max(logit, axis=1, keepdims=True), 0)
        mass = jnp.sum(jnp.where(able, jnp.exp(logit - top), 0), axis=1, keepdims=True)
        mine = jnp.sum(jnp.where(picked, logit, 0), axis=1, keepdims=True)
        mine = jnp.where(some, mine - top - jnp.log(jnp.where(some, mass, 1)), 0)
        here = jax.lax.broadcasted_iota(jnp.int32, order.shape[1:], 1) == t
        order[0] = jnp.where(here, chosen, order[0])
        log_probability[0] = jnp.where(here, mine, log_probability[0])
        gates += of_lanes("rows", single(picked)[:, :candidates])
        return hidden, gates, jnp.where(picked, 0, free)

    hidden = jnp.broadcast_to(single(request.state[0]), (BLOCK, units))
    if direction is not None:
        hidden += steps * single(direction.state[0])
    gates = jnp.zeros((BLOCK, 3 * units), jnp.float32)
    free = jnp.broadcast_to(single(real), score.shape)
    jax.lax.fori_loop(0, slots, fill, (hidden, gates, free))


_ROWS = (((1,), (0,)), ((), ()))


def _forward(*args, **options):
    return pointer_decode(*args, **options), ()


KERNEL = Kernel("tpu", _forward, no_backward, no_backward)
