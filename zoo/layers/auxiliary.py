"""The auxiliary loss that teaches a state what comes next.

Zhou et al., "Deep Interest Evolution Network for Click-Through Rate Prediction", AAAI 2019,
section 4.2, https://arxiv.org/abs/1809.03672. Used by DIEN and, as an option, by MIMN.

    L_aux = -mean_t [ log s(h_t, e_{t+1}) + log(1 - s(h_t, e^-_{t+1})) ]

over the valid t that have a valid successor. The score is a small MLP on [h_t, e], as in the
authors' code (the paper writes the sigmoid of an inner product); without their BatchNorm, and
averaged over valid steps instead of over all slots.
Shapes: `B` requests, `L` events, `H` width of a state, `D` width of an item.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..batch import Batch
from ..embeddings import require_drawn
from .losses import mean_over


class NextBehaviour(nn.Module):
    """Scores whether an item is what comes after a state."""

    units: tuple[int, ...] = (100, 50)

    @nn.compact
    def __call__(
        self, state: Float[Array, "N H"], items: tuple[Float[Array, "N D"], ...]
    ) -> list[Float[Array, " N"]]:
        """For each of the items one logit per step: is the item what follows the state?"""
        hidden = StateAndItem(self.units[0], name="dense_0")(state, items)
        layers = [nn.Dense(width, name=f"dense_{i}") for i, width in enumerate(self.units) if i]
        for layer in layers:
            hidden = [layer(nn.sigmoid(x)) for x in hidden]
        logit = nn.Dense(1, name="logit")
        return [logit(nn.sigmoid(x))[..., 0] for x in hidden]


class StateAndItem(nn.Module):
    """A dense layer on [state, item], for several items; the state's share is computed once."""

    units: int

    @nn.compact
    def __call__(
        self, state: Float[Array, "N H"], items: tuple[Float[Array, "N D"], ...]
    ) -> list[Float[Array, "N U"]]:
        """[state, item] @ kernel + bias for each of the items."""
        shape = (state.shape[-1] + items[0].shape[-1], self.units)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, shape[1:])
        to_state, to_item = jnp.split(kernel, [state.shape[-1]])
        shared = state @ to_state + bias[None]
        return [shared + item @ to_item for item in items]


def negatives_of(batch: Batch, *, train: bool) -> dict[str, Array]:
    """Items that are not the events; an initialisation, which only needs widths, has the events."""
    if not train:
        return batch["history"]
    require_drawn(batch, "history_negative")
    return batch["history_negative"]


def auxiliary_loss(
    net: NextBehaviour,
    state: Float[Array, "B L H"],
    item: Float[Array, "B L D"],
    negative: Float[Array, "B L D"],
    mask: Bool[Array, "B L"],
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Mean over the steps that have a successor; 0 where there is none. Histories are compact.

    `item[:, t]` is the event of step t, `negative[:, t]` an item that is not; `net` is called
    inside a compact module.
    """
    follows = mask[:, :-1] & mask[:, 1:]
    # One axis of steps: XLA's CPU backend takes a quarter longer over two.
    flat = lambda x: x.reshape(-1, x.shape[-1])
    before = flat(state[:, :-1])
    yes, no = net(before, (flat(item[:, 1:]), flat(negative[:, 1:])))
    each = jnp.where(follows.reshape(-1), nn.softplus(-yes) + nn.softplus(no), 0.0)
    return mean_over(each, follows, axis_name)
