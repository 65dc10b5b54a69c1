"""The ops as the benchmarks call them: implementations, cases, and definitions in float64 NumPy."""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..kernels.augru import api as augru
from ..kernels.augru import cases as augru_cases
from ..kernels.dot_attention import api as dot_attention
from ..kernels.dot_attention import cases as dot_attention_cases
from ..kernels.pointer_decode import api as pointer_decode
from ..kernels.pointer_decode import cases as pointer_decode_cases
from ..kernels.pointer_decode.reference import Request
from ..kernels.soft_search import api as soft_search
from ..kernels.soft_search import cases as soft_search_cases
from ..kernels.target_attention import api as target_attention
from ..kernels.target_attention import cases as target_attention_cases

FAR = 1e9  # What an error is that has no number.


def part(inputs: tuple, case: Any) -> tuple:
    """One request with at most four candidates, for float64 to keep up; weights stay."""

    def cut(x):
        if getattr(x, "ndim", 0) < 2 or x.shape[0] != case.batch:
            return x
        few = x[:1]
        return few[:, :4] if few.ndim > 2 and few.shape[1] == case.candidates else few

    return tuple(cut(x) for x in inputs)


def spoilt(inputs: tuple) -> tuple:
    """The same, but that masked keys hold NaN."""
    query, keys, mask, *rest = inputs
    return query, jnp.where(mask[..., None], keys, jnp.nan), mask, *rest


@dataclasses.dataclass(frozen=True)
class Op:
    """An op and all that there is to compare it with.

    Attributes:
      run: `run(*inputs, implementation=..., **options(case))`.
      api: the module that names its implementations.
      exact: the same in float64 NumPy.
      cases: the module of its cases.
      largest: bytes of the largest array of the definition, in float32, by case.
      options: of `run` and `exact`, by case.
      shown: what of the result is compared.
      plain: the implementation in plain JAX that kernels are compared with.
      part: as much of the inputs as float64 can keep up with, by case.
      spoilt: the inputs with NaN where they are masked.
    """

    run: Callable[..., Any]
    api: Any
    exact: Callable[..., np.ndarray]
    cases: Any
    largest: Callable[[Any], int]
    options: Callable[[Any], dict[str, Any]] = lambda case: {}
    shown: Callable[[Any], jax.Array] = lambda out: out
    plain: str = "chunked"
    part: Callable[[tuple, Any], tuple] = part
    spoilt: Callable[[tuple], tuple] = spoilt

    def call(self, case: Any, implementation: str | None) -> Callable[..., Any]:
        """The op on this case's inputs, by one implementation."""
        return functools.partial(self.run, implementation=implementation, **self.options(case))

    def units_off(self, case: Any, inputs: tuple, out: Any, eps: float) -> float:
        """The error of `out` against float64, in units of `eps` times the largest number."""
        expected = self.exact(*jax.tree.map(_float64, inputs), **self.options(case))
        return units_off(self.shown(out), expected, eps)


def units_off(actual: Any, expected: Any, eps: float, floor: float = 0.0) -> float:
    """The largest difference in units of `eps` times the largest number expected; NaN is FAR."""
    actual, expected = (np.asarray(x, np.float64) for x in (actual, expected))
    scale = max(float(np.max(np.abs(expected), initial=0.0)), floor) or 1.0
    off = np.abs(actual - expected) / scale / eps
    return float(np.max(np.where(off < FAR, off, FAR), initial=0.0))


def _float64(x):
    x = np.asarray(x)
    return x if x.dtype == bool or np.issubdtype(x.dtype, np.integer) else x.astype(np.float64)


def _exact_attention(query, keys, mask, weights):
    out = np.zeros(query.shape)
    for c in range(query.shape[1]):
        q = np.broadcast_to(query[:, c : c + 1], keys.shape)
        x = np.concatenate([q, keys, q - keys, q * keys], axis=-1)
        for layer in weights.layers:
            x = x @ layer.kernel + layer.bias
            x = np.where(x > 0, x, layer.alpha * x)
        score = (x @ weights.out_kernel + weights.out_bias) * mask
        out[:, c] = np.einsum("bl,bld->bd", score, keys)
    return out


def _exact_dot_attention(query, keys, mask, interval, table):
    z = np.concatenate([keys, table[interval]], axis=-1)
    score = np.where(mask[:, None], np.einsum("bqz,blz->bql", query, z), -np.inf)
    top = np.max(score, axis=-1, keepdims=True)
    weight = np.where(mask[:, None], np.exp(score - np.where(np.isfinite(top), top, 0)), 0)
    mass = np.maximum(np.sum(weight, axis=-1, keepdims=True), 1e-300)
    return np.einsum("bql,blz->bqz", weight / mass, z)


def _exact_search(keys, queries, mask, *, k):
    scores = np.where(mask[:, None], np.einsum("bla,bca->bcl", keys, queries), -np.inf)
    best = -np.sort(-scores, axis=-1)[..., :k]
    return np.where(np.isfinite(best), best, 0)


def _exact_augru(states, attention, mask, weights):
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    h = np.zeros((*attention.shape[:2], weights.recurrent.shape[0]))
    for t in range(states.shape[1]):
        x = (states[:, t] @ weights.input + weights.bias)[:, None]
        x_u, x_r, x_n = np.split(x, 3, axis=-1)
        h_u, h_r, h_n = np.split(h @ weights.recurrent, 3, axis=-1)
        step = attention[:, :, t, None] * sigmoid(x_u + h_u)
        new = np.tanh(x_n + sigmoid(x_r + h_r) * h_n)
        h = np.where(mask[:, t, None, None], (1 - step) * h + step * new, h)
    return h


def _decode(request, weights, mask, direction, steps, noise, **options):
    more = {"direction": direction, "steps": steps, "noise": noise}
    return pointer_decode.pointer_decode(request, weights, mask, **more, **options)


def _exact_decode(request, weights, mask, direction, steps, noise, *, slots):
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    along = lambda x, d: x[:, None] + steps.reshape(-1, *(1,) * (x.ndim - 1)) * d[:, None]
    h, keys, context, rows = (along(*x) for x in zip(request, direction.request, strict=True))
    free = np.broadcast_to(mask[:, None], rows.shape[:3])
    g, found = np.zeros((*h.shape[:2], rows.shape[-1])), []
    for slot in range(slots):
        x_u, x_r, x_n = np.split(g + weights.bias, 3, axis=-1)
        h_u, h_r, h_n = np.split(h @ weights.recurrent, 3, axis=-1)
        step = sigmoid(x_u + h_u)
        h = (1 - step) * h + step * np.tanh(x_n + sigmoid(x_r + h_r) * h_n)
        query = np.einsum("rsh,fha->rsfa", h, weights.query) + weights.query_bias
        score = np.einsum("rsfna,fa->rsfn", np.tanh(keys + query[..., None, :]), weights.score)
        logit = np.where(free, score.mean(axis=2), -1e300)
        chosen = np.argmax(np.where(free, logit + noise[:, :, slot], -np.inf), axis=-1)
        picked = free & (np.arange(free.shape[-1]) == chosen[..., None])
        total = np.logaddexp.reduce(logit, axis=-1)
        found.append(np.where(picked, logit - total[..., None], 0).sum(axis=-1))
        weight = np.where(mask[:, None, None], np.exp(score), 0)
        weight /= np.maximum(weight.sum(axis=-1, keepdims=True), 1e-300)
        g = np.einsum("rsfn,rsfng->rsg", weight, context)
        g += np.einsum("rsn,rsng->rsg", picked, rows)
        free = free & ~picked
    return np.stack(found, axis=-1)


def _one_request(inputs, case):
    del case
    request, weights, mask, direction, steps, noise = inputs
    first = lambda tree: jax.tree.map(lambda x: x[:1], tree)
    return first(request), weights, first(mask), first(direction), steps, first(noise)


def _spoilt_request(inputs):
    request, weights, mask, direction, *rest = inputs

    def spoil(request):
        heads = lambda x: jnp.where(mask[:, None, :, None], x, jnp.nan)
        rows = jnp.where(mask[..., None], request.rows, jnp.nan)
        return Request(request.state, heads(request.keys), heads(request.context), rows)

    return (
        spoil(request),
        weights,
        mask,
        direction._replace(request=spoil(direction.request)),
        *rest,
    )


def _pairs(case: Any) -> int:
    """Bytes of a number per (request, candidate, behaviour)."""
    return 4 * case.batch * case.candidates * case.length


OPS = {
    "target_attention": Op(
        functools.partial(target_attention.target_attention, activation="prelu", normalize="none"),
        target_attention,
        _exact_attention,
        target_attention_cases,
        largest=lambda case: _pairs(case) * max(4 * case.width, *case.units),
    ),
    "dot_attention": Op(
        dot_attention.dot_attention,
        dot_attention,
        _exact_dot_attention,
        dot_attention_cases,
        largest=lambda case: _pairs(case) * case.heads,
    ),
    "soft_search": Op(
        soft_search.soft_search,
        soft_search,
        _exact_search,
        soft_search_cases,
        largest=_pairs,
        options=lambda case: {"k": case.k},
        shown=lambda found: jnp.where(found.mask, found.scores, 0),
    ),
    "pointer_decode": Op(
        _decode,
        pointer_decode,
        _exact_decode,
        pointer_decode_cases,
        largest=lambda case: (
            4 * case.batch * case.lanes * case.candidates * case.width * case.heads
        ),
        options=lambda case: {"slots": case.slots},
        shown=lambda found: found.log_probability,
        plain="reference",
        part=_one_request,
        spoilt=_spoilt_request,
    ),
    "augru": Op(augru.augru, augru, _exact_augru, augru_cases, largest=_pairs),
}
