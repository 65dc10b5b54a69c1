"""Shapes that matter, shared by the tests and the benchmarks."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from .._cost import Cost
from .reference import Weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One workload."""

    name: str
    batch: int
    candidates: int
    length: int
    width: int
    units: int
    bench: bool = False  # Too big for tests; timed by bench/ only.

    def inputs(self, dtype=jnp.float32, seed=0, blocks=3):
        """Random (states, attention, mask, weights).

        Some 30% of the steps are masked, holes included; the last row has none left.
        """
        random = np.random.default_rng(seed)
        normal = lambda *shape, scale=1.0: jnp.asarray(scale * random.normal(size=shape), "float32")
        states = normal(self.batch, self.length, self.width).astype(dtype)
        attention = random.random((self.batch, self.candidates, self.length))
        mask = random.random((self.batch, self.length)) < 0.7
        mask[1:][-1:] = False
        columns = blocks * self.units
        weights = Weights(
            normal(self.width, columns, scale=self.width**-0.5),
            normal(self.units, columns, scale=self.units**-0.5),
            normal(columns, scale=0.2),
        )
        return states, jnp.asarray(attention, dtype), jnp.asarray(mask), weights

    def cost(self, itemsize: int = 4) -> Cost:
        """The inputs' share of a step once per request, the state's once per candidate."""
        keys, pairs = self.batch * self.length, self.batch * self.candidates
        of_state = 6 * self.units**2 + 16 * self.units
        flops = keys * 6 * self.width * self.units + pairs * self.length * of_state
        moved = itemsize * (keys * self.width + pairs * (self.length + self.units)) + keys
        return Cost(flops, moved + 12 * self.units * (self.width + self.units + 1))


CASES = (
    Case(name="one_step", batch=1, candidates=1, length=1, width=2, units=1),
    Case(name="no_history", batch=2, candidates=3, length=0, width=2, units=3),
    Case(name="no_request", batch=0, candidates=2, length=3, width=2, units=3),
    Case(name="no_candidate", batch=2, candidates=0, length=3, width=2, units=3),
    Case(name="ragged", batch=4, candidates=2, length=5, width=3, units=4),
    Case(name="long", batch=3, candidates=4, length=100, width=3, units=2),
    Case(name="impressions", batch=512, candidates=1, length=100, width=32, units=32, bench=True),
    Case(name="negatives", batch=128, candidates=4, length=100, width=32, units=32, bench=True),
    Case(name="ranking", batch=1, candidates=500, length=100, width=32, units=32, bench=True),
)
