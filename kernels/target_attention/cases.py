"""Shapes that matter, shared by the tests and the benchmarks."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from .._cost import Cost
from .reference import Layer, Weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One workload."""

    name: str
    batch: int
    candidates: int
    length: int
    width: int
    units: tuple[int, ...] = (80, 40)
    bench: bool = False  # Too big for tests; timed by bench/ only.

    def inputs(self, dtype=jnp.float32, seed=0):
        """Random (query, keys, mask, weights), the weights with all that an activation may need.

        Some 30% of the behaviours are masked, holes included; the last row has none left.
        """
        random = np.random.default_rng(seed)
        normal = lambda *shape, scale=1.0: jnp.asarray(scale * random.normal(size=shape), "float32")
        query = normal(self.batch, self.candidates, self.width).astype(dtype)
        keys = normal(self.batch, self.length, self.width).astype(dtype)
        mask = random.random((self.batch, self.length)) < 0.7
        mask[1:][-1:] = False
        layers, rows = [], 4 * self.width
        for units in self.units:
            kernel = normal(rows, units, scale=rows**-0.5)
            bias, alpha, mean = (normal(units, scale=0.2) for _ in range(3))
            layers.append(Layer(kernel, bias, alpha, mean, jnp.exp(normal(units, scale=0.3))))
            rows = units
        weights = Weights(tuple(layers), normal(rows, scale=rows**-0.5), jnp.float32(0.1))
        return query, keys, jnp.asarray(mask), weights

    def cost(self, itemsize: int = 4) -> Cost:
        """With the first layer as one product per (candidate, behaviour), as `chunked` has it."""
        pairs, width = self.batch * self.candidates, self.width
        first, *more = self.units
        layers = sum(2 * a * b for a, b in zip(self.units, more, strict=False))
        # Products, then a bias and a slope per unit; the score; the weighted sum.
        of_behaviour = 2 * width * first + layers + 4 * sum(self.units) + 2 * self.units[-1]
        of_behaviour += 2 * width
        of_candidate = 4 * width * first  # M_q, and its share of the first layer.
        kernels = 4 * width * first + layers // 2 + self.units[-1]
        keys = self.batch * self.length
        moved = itemsize * (keys * width + 2 * pairs * width) + keys + 4 * kernels
        return Cost(pairs * (self.length * of_behaviour + of_candidate), moved)


CASES = (
    Case(name="one_behaviour", batch=1, candidates=1, length=1, width=2, units=(3,)),
    Case(name="no_history", batch=2, candidates=3, length=0, width=2, units=(3, 2)),
    Case(name="ragged", batch=5, candidates=3, length=7, width=3, units=(5, 4)),
    Case(name="three_layers", batch=3, candidates=1, length=7, width=2, units=(4, 3, 2)),
    Case(name="long", batch=3, candidates=10, length=100, width=3, units=(6, 4)),
    Case(name="impressions", batch=1024, candidates=1, length=100, width=32, bench=True),
    Case(name="negatives", batch=256, candidates=4, length=100, width=32, bench=True),
    Case(name="page", batch=102, candidates=10, length=100, width=32, bench=True),
    Case(name="short_history", batch=512, candidates=4, length=50, width=32, bench=True),
    Case(name="ranking", batch=16, candidates=500, length=100, width=32, bench=True),
    Case(name="lifelong", batch=16, candidates=100, length=10_000, width=64, bench=True),
)
