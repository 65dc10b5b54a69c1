"""The activation unit of DIN: how much each behaviour matters for each candidate."""

import flax.linen as nn
from jaxtyping import Array, Bool, Float

from ...kernels.target_attention import (
    Layer,
    Normalize,
    Weights,
    attention_scores,
    moments,
    target_attention,
)
from .tower import PRELU_ALPHA, Activation, RunningMoments


class ActivationUnit(nn.Module):
    """Local activation and pooling: parameters here, arithmetic in `kernels.target_attention`.

    Without `pooled` it gives the weights themselves, (B, C, L).
    """

    units: tuple[int, ...]
    activation: Activation
    normalize: Normalize
    axis_name: str | None = None
    pooled: bool = True

    @nn.compact
    def __call__(
        self,
        query: Float[Array, "B C D"],
        keys: Float[Array, "B L D"],
        mask: Bool[Array, "B L"],
        candidate_mask: Bool[Array, "B C"],
        *,
        train: bool,
    ) -> Float[Array, "B C V"]:
        """The interest that each candidate finds in the history."""
        layers, width = [], 4 * keys.shape[-1]
        for i, unit in enumerate(self.units):
            layers.append(self._layer(i, width, unit))
            width = unit
        glorot = nn.initializers.glorot_uniform()
        out_kernel = self.param("out_kernel", glorot, (width, 1))[:, 0]
        # Softmax ignores a constant: the bias would have no gradient but rounding noise.
        out_bias = None
        if self.normalize == "none":
            # From 1 on, v starts as the base model's sum and learns what to leave out; from 0 on it
            # starts as nothing.
            out_bias = self.param("out_bias", nn.initializers.ones, ())
        weights = Weights(tuple(layers), out_kernel, out_bias)
        if self.activation == "dice":
            weights = self._with_statistics(weights, query, keys, mask, candidate_mask, train)
        attend = target_attention if self.pooled else attention_scores
        return attend(
            query, keys, mask, weights, activation=self.activation, normalize=self.normalize
        )

    def _layer(self, i: int, width: int, unit: int) -> Layer:
        kernel = self.param(f"kernel_{i}", nn.initializers.glorot_uniform(), (width, unit))
        bias = self.param(f"bias_{i}", nn.initializers.zeros, (unit,))
        alpha = None
        if self.activation in ("prelu", "dice"):
            start = PRELU_ALPHA if self.activation == "prelu" else 0.0
            alpha = self.param(f"alpha_{i}", nn.initializers.constant(start), (unit,))
        return Layer(kernel, bias, alpha, None, None)

    def _with_statistics(
        self, weights: Weights, query, keys, mask, candidate_mask, train: bool
    ) -> Weights:
        """Dice's statistics: of this batch in training, running averages otherwise."""
        batch_moments = [None] * len(self.units)
        if train:
            batch_moments = moments(
                query, keys, mask, candidate_mask, weights, axis_name=self.axis_name
            )
        layers = []
        for i, layer in enumerate(weights.layers):
            running = RunningMoments(self.units[i], name=f"running_{i}")
            mean, variance = running(batch_moments[i])
            layers.append(layer._replace(mean=mean, variance=variance))
        return weights._replace(layers=tuple(layers))
