"""Shapes that matter, shared by the tests and the benchmarks."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from .._cost import Cost


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One workload."""

    name: str
    batch: int
    candidates: int
    length: int
    width: int
    k: int
    bench: bool = False  # Too big for tests; timed by bench/ only.

    def inputs(self, dtype=jnp.float32, seed=0):
        """Random (keys, queries, mask). Whole numbers: exact scores, and many that are equal.

        Some 30% of the behaviours are masked, holes included; the last row has none left.
        """
        random = np.random.default_rng(seed)
        whole = lambda *shape: jnp.asarray(random.integers(-3, 4, shape), dtype)
        keys = whole(self.batch, self.length, self.width)
        queries = whole(self.batch, self.candidates, self.width)
        mask = random.random((self.batch, self.length)) < 0.7
        mask[1:][-1:] = False
        return keys, queries, jnp.asarray(mask)

    def cost(self, itemsize: int = 4) -> Cost:
        """All scores; what finding the largest takes is comparisons, which do not count."""
        pairs = self.batch * self.candidates
        keys = self.batch * self.length
        moved = itemsize * self.width * (keys + pairs) + keys + 9 * pairs * self.k
        return Cost(2 * pairs * self.length * self.width, moved)


CASES = (
    Case(name="one_behaviour", batch=1, candidates=1, length=1, width=1, k=1),
    Case(name="no_history", batch=2, candidates=3, length=0, width=2, k=2),
    Case(name="ragged", batch=5, candidates=3, length=11, width=3, k=4),
    Case(name="more_than_there_are", batch=3, candidates=2, length=5, width=2, k=9),
    Case(name="long", batch=4, candidates=10, length=300, width=4, k=50),
    Case(name="impressions", batch=1024, candidates=1, length=500, width=16, k=50, bench=True),
    Case(name="negatives", batch=128, candidates=4, length=10_000, width=16, k=50, bench=True),
    Case(name="ranking", batch=4, candidates=500, length=10_000, width=16, k=50, bench=True),
    Case(name="lifelong", batch=1, candidates=500, length=54_000, width=16, k=100, bench=True),
)
