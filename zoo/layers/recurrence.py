"""The parameters of gated recurrent units; the arithmetic is in `kernels.augru`.

Shapes: `B` requests, `L` steps, `X` width of an input.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...kernels.augru import Weights

# TensorFlow's start: remember. Its gate says how much to keep, ours how much to take.
GATE_BIAS = {"update": -1.0, "reset": 1.0, "new": 0.0}


class Recurrence(nn.Module):
    """Parameters of a GRU, or of one of its kin that lack gates."""

    units: int
    gates: tuple[str, ...] = tuple(GATE_BIAS)

    @nn.compact
    def __call__(self, inputs: Float[Array, "B L X"]) -> Weights:
        """Weights for inputs of this width."""

        def glorot(key, shape):
            one = lambda key: nn.initializers.glorot_uniform()(key, (shape[0], self.units))
            return jnp.concatenate([one(k) for k in jax.random.split(key, len(self.gates))], axis=1)

        def gate_bias(key, shape):
            del key
            return jnp.repeat(jnp.array([GATE_BIAS[gate] for gate in self.gates]), shape[0])

        columns = len(self.gates) * self.units
        return Weights(
            self.param("input", glorot, (inputs.shape[-1], columns)),
            self.param("recurrent", glorot, (self.units, columns)),
            self.param("bias", gate_bias, (self.units,)),
        )
