"""Shapes that matter, shared by the tests and the benchmarks."""

import dataclasses
import functools

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
    heads: int = 1
    intervals: int = 0
    interval_width: int = 0
    bench: bool = False  # Too big for tests; timed by bench/ only.

    def inputs(self, dtype=jnp.float32, seed=0):
        """Random (query, keys, mask), and (interval, table) where there are intervals.

        Some 30% of the behaviours are masked, holes included; the last row has none left.
        """
        random = np.random.default_rng(seed)
        wide, queries = self.width + self.interval_width, self.candidates * self.heads
        normal = lambda *shape, scale=1.0: jnp.asarray(scale * random.normal(size=shape), "float32")
        query = normal(self.batch, queries, wide, scale=wide**-0.5).astype(dtype)
        keys = normal(self.batch, self.length, self.width).astype(dtype)
        mask = random.random((self.batch, self.length)) < 0.7
        mask[1:][-1:] = False
        args = (query, keys, jnp.asarray(mask))
        if not self.intervals:
            return args
        interval = random.integers(0, self.intervals, mask.shape)
        table = normal(self.intervals, self.interval_width)
        return *args, jnp.asarray(interval, jnp.int32), table

    def cost(self, itemsize: int = 4) -> Cost:
        """Two products and a softmax; of an interval, one row per behaviour."""
        queries = self.batch * self.candidates * self.heads
        keys, wide = self.batch * self.length, self.width + self.interval_width
        flops = queries * self.length * (4 * wide + 6)
        flops += 2 * keys * self.intervals * self.interval_width
        moved = itemsize * (keys * self.width + 2 * queries * wide) + keys
        if self.intervals:
            moved += 4 * (keys + self.intervals * self.interval_width)
        return Cost(flops, moved)


_aged = functools.partial(Case, heads=2, intervals=32, interval_width=8, bench=True)

CASES = (
    Case(name="one_behaviour", batch=1, candidates=1, length=1, width=2),
    Case(name="no_history", batch=2, candidates=3, length=0, width=2, heads=2),
    Case(name="ragged", batch=5, candidates=3, length=7, width=3, heads=2),
    _aged(
        name="with_intervals",
        batch=4,
        candidates=3,
        length=40,
        width=3,
        intervals=5,
        interval_width=2,
        bench=False,
    ),
    Case(name="long", batch=3, candidates=10, length=300, width=4),
    _aged(name="found", batch=512, candidates=1, length=100, width=32),
    _aged(name="page", batch=16, candidates=100, length=1000, width=32),
    _aged(name="lifelong", batch=16, candidates=100, length=10_000, width=64),
)
