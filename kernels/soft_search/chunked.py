"""Soft search a block of requests at a time: never the scores of a whole batch at once.

The scores (B, C, L) are the only large array. Blocks of them go through the definition one after
the other, so temporary memory does not grow with the batch.
"""

import dataclasses

import jax
from jaxtyping import Array, Bool, Float

from . import reference
from .reference import Found


@dataclasses.dataclass(frozen=True)
class Config:
    """Block size: it changes speed and memory and never the result."""

    requests: int


def heuristic(candidates: int, length: int) -> Config:
    """A decent config without measuring."""
    # 16 MB of scores. On CPUs anything from one request to the whole batch takes the same time.
    scores = 2**22
    return Config(max(1, scores // max(1, candidates * length)))


def unsupported(
    keys: Float[Array, "B L A"],
    queries: Float[Array, "B C A"],
    mask: Bool[Array, "B L"],
    *,
    k: int,
) -> str | None:
    """Why these arguments cannot be searched in blocks."""
    del mask, k
    sizes = (*queries.shape[:2], keys.shape[1])
    if all(isinstance(size, int) for size in sizes):
        return None
    return f"blocks need known sizes, got {sizes}"


def soft_search(
    keys: Float[Array, "B L A"],
    queries: Float[Array, "B C A"],
    mask: Bool[Array, "B L"],
    *,
    k: int,
    config: Config | None = None,
) -> Found:
    """See `api.soft_search`. `config` overrides the heuristic."""
    config = config or heuristic(queries.shape[1], keys.shape[1])

    def one(request):
        found = reference.soft_search(*(x[None] for x in request), k=k)
        return jax.tree.map(lambda x: x[0], found)

    arrays = jax.lax.stop_gradient((keys, queries, mask))
    return jax.lax.map(one, arrays, batch_size=config.requests)
