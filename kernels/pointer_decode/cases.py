"""Shapes that matter, shared by the tests and the benchmarks."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from .._cost import Cost
from .reference import Direction, Request, Weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One workload: `batch` requests of `candidates`, `slots` of which every lane orders."""

    name: str
    batch: int
    candidates: int
    slots: int
    lanes: int
    width: int = 64
    units: int = 32
    heads: int = 2
    bench: bool = False  # Too big for tests; timed by bench/ only.

    def inputs(self, dtype=jnp.float32, seed=0):
        """Random (request, weights, mask, direction, steps, noise).

        Some 20% of the candidates are masked, holes included; the last request has none left.
        """
        random = np.random.default_rng(seed)
        normal = lambda *shape: jnp.asarray(random.normal(0, 1, shape), dtype)
        gates = 3 * self.units

        def request():
            heads = (self.batch, self.heads, self.candidates)
            return Request(
                normal(self.batch, self.units),
                normal(*heads, self.width),
                normal(*heads, gates),
                normal(self.batch, self.candidates, gates),
            )

        shrunk = lambda x, rows: x * rows**-0.5
        weights = Weights(
            shrunk(normal(self.heads, self.units, self.width), self.units),
            normal(self.heads, self.width),
            shrunk(normal(self.heads, self.width), self.width),
            shrunk(normal(self.units, gates), self.units),
            normal(gates),
        )
        mask = random.random((self.batch, self.candidates)) < 0.8
        mask[1:][-1:] = False
        steps = jnp.linspace(-0.2, 0.2, self.lanes, dtype=jnp.float32)
        noise = random.gumbel(size=(self.batch, self.lanes, self.slots, self.candidates))
        direction = Direction(request())
        return request(), weights, jnp.asarray(mask), direction, steps, jnp.asarray(noise, dtype)

    def cost(self, itemsize: int = 4) -> Cost:
        """Each slot of each lane: the queries, the scores, the gates; a tanh counts as one."""
        decoded = self.batch * self.lanes * self.slots
        gates, scored = 3 * self.units, self.heads * self.candidates
        one = 2 * self.units * (self.heads * self.width + gates)
        one += scored * (4 * self.width + 2 * gates)
        kept = self.batch * (self.units + scored * (self.width + gates) + self.candidates * gates)
        weights = self.heads * self.width * (self.units + 2) + gates * (self.units + 1)
        moved = itemsize * (2 * kept + weights + decoded * self.candidates)
        return Cost(one * decoded, moved + self.batch * self.candidates + 8 * decoded)


CASES = (
    Case(name="one", batch=1, candidates=1, slots=1, lanes=1, width=4, units=2, heads=1),
    Case(name="few", batch=3, candidates=5, slots=3, lanes=4, width=8, units=4),
    Case(name="more_slots", batch=2, candidates=3, slots=6, lanes=2, width=8, units=4),
    Case(name="page", batch=4, candidates=20, slots=10, lanes=9, width=24, units=16),
    Case(name="requests", batch=64, candidates=20, slots=10, lanes=17, bench=True),
    Case(name="many", batch=256, candidates=20, slots=10, lanes=33, width=200, bench=True),
    Case(name="long", batch=4, candidates=100, slots=50, lanes=64, width=200, bench=True),
)
