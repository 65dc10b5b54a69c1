"""Layers that two models or more use: activations and the tower.

Shapes: a leading mask says which entries are real; statistics never see the others.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ...kernels.target_attention import DICE_EPSILON, Activation

DICE_MOMENTUM = 0.99
PRELU_ALPHA = 0.25


def prelu(x: Float[Array, "*lead H"], alpha: Float[Array, " H"]) -> Float[Array, "*lead H"]:
    """max(0, x) + alpha * min(0, x), one alpha per channel."""
    # As rows: sums over several axes, one of them short, take XLA many times as long on CPUs.
    rows = x.reshape(-1, x.shape[-1])
    return (jnp.maximum(rows, 0.0) + alpha[None] * jnp.minimum(rows, 0.0)).reshape(x.shape)


def dice(
    x: Float[Array, "*lead H"],
    alpha: Float[Array, " H"],
    mean: Float[Array, " H"],
    variance: Float[Array, " H"],
) -> Float[Array, "*lead H"]:
    """p * x + (1 - p) * alpha * x with p = sigmoid((x - mean) / sqrt(variance + 1e-8)).

    DIN (Zhou et al. 2018), section 5.3, equation 5.
    """
    p = jax.nn.sigmoid((x - row(mean, x)) * jax.lax.rsqrt(row(variance, x) + DICE_EPSILON))
    return p * x + (1.0 - p) * row(alpha, x) * x


def masked_moments(
    x: Float[Array, "*lead H"], mask: Bool[Array, "*lead"], axis_name: str | None = None
) -> tuple[Float[Array, " H"], Float[Array, " H"]]:
    """Mean and biased variance of the real entries, over all devices; zeros if there are none."""
    axes = tuple(range(x.ndim - 1))
    kept = mask[..., None]
    total = _psum(jnp.where(kept, x, 0.0).sum(axes), axis_name)
    count = jnp.maximum(_psum(mask.sum(dtype=jnp.float32), axis_name), 1.0)
    mean = total / count
    square = jnp.where(kept, jnp.square(x - row(mean, x)), 0.0).sum(axes)
    return mean, _psum(square, axis_name) / count


def _psum(x: Array, axis_name: str | None) -> Array:
    return x if axis_name is None else jax.lax.psum(x, axis_name)


def row(vector: Float[Array, " G"], like: Float[Array, "*lead _"]) -> Float[Array, "*ones G"]:
    """The vector with as many axes as another array has: ranks are not promoted in silence."""
    return vector.reshape((1,) * (like.ndim - 1) + vector.shape)


class Dice(nn.Module):
    """Dice over real entries: batch statistics in training, running averages at inference.

    Differs from the DIEN and MIMN code, which normalises by the batch at inference too, so that a
    prediction depends on its batch mates; and from the DIN code, whose statistics never move.
    """

    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "*lead H"], mask: Bool[Array, "*lead"], train: bool
    ) -> Float[Array, "*lead H"]:
        """`dice` with the statistics that apply."""
        width = x.shape[-1]
        alpha = self.param("alpha", nn.initializers.zeros, (width,))
        running = RunningMoments(width, name="running")
        moments = running(masked_moments(x, mask, self.axis_name) if train else None)
        return dice(x, alpha, *moments)


class RunningMoments(nn.Module):
    """Keeps running averages of a mean and a variance; gives the new ones when there are any."""

    width: int

    @nn.compact
    def __call__(
        self, moments: tuple[Float[Array, " H"], Float[Array, " H"]] | None
    ) -> tuple[Float[Array, " H"], Float[Array, " H"]]:
        """The given moments, which also move the averages; the averages, if none are given."""
        mean = self.variable("batch_stats", "mean", jnp.zeros, (self.width,))
        variance = self.variable("batch_stats", "variance", jnp.ones, (self.width,))
        if moments is None:
            return mean.value, variance.value
        if not self.is_initializing():
            for kept, new in zip((mean, variance), moments, strict=True):
                kept.value = DICE_MOMENTUM * kept.value + (1 - DICE_MOMENTUM) * new
        return moments


class Layers(nn.Module):
    """Fully connected layers, each with its activation."""

    units: tuple[int, ...]
    activation: Activation = "prelu"
    dropout: float = 0.0
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "B C I"], mask: Bool[Array, "B C"], *, train: bool
    ) -> Float[Array, "B C H"]:
        """The last layer's activations; `x` itself if there are no layers."""
        return self._hidden(x, mask, train)

    def _hidden(self, x, mask, train):
        for i, width in enumerate(self.units):
            x = nn.Dense(width, name=f"dense_{i}")(x)
            x = self._activate(x, mask, train, f"{self.activation}_{i}")
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return x

    def _activate(self, x, mask, train, name):
        if self.activation == "dice":
            return Dice(self.axis_name, name=name)(x, mask, train)
        if self.activation == "prelu":
            initial = nn.initializers.constant(PRELU_ALPHA)
            return prelu(x, self.param(name, initial, (x.shape[-1],)))
        return {"relu": nn.relu, "sigmoid": nn.sigmoid}[self.activation](x)


class Tower(Layers):
    """Fully connected layers to one logit. Most Alibaba papers: 200, 80, 1."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "B C I"], mask: Bool[Array, "B C"], *, train: bool
    ) -> Float[Array, "B C"]:
        """One logit per candidate."""
        return nn.Dense(1, name="logit")(self._hidden(x, mask, train))[..., 0]


class Query(nn.Module):
    """PReLU(W q + b): the candidate, made as wide as the states that attention compares it with.

    From the authors' code of DIEN and MIMN; the papers do not say.
    """

    units: int

    @nn.compact
    def __call__(self, x: Float[Array, "B C Q"]) -> Float[Array, "B C H"]:
        """One query per candidate."""
        alpha = self.param("alpha", nn.initializers.constant(PRELU_ALPHA), (self.units,))
        return prelu(nn.Dense(self.units, name="dense")(x), alpha)
