r"""A generator that scores all slots at once: no recurrence, two passes of attention.

Ren et al., "Non-autoregressive Generative Models for Reranking Recommendation" (NAR4Rec), KDD
2024, https://arxiv.org/abs/2402.06871.

Candidates see each other, learned slots see the candidates, and how well they fit is a product:

    X = block(candidates, candidates)        T = block(slots, candidates)
    pi(l_t = n) = softmax_n (t_t . x_n / sqrt(d))     over what is left when slot t's turn comes

with block(a, b) = LayerNorm(h + feed(h)), h = LayerNorm(a + attention(a to b)). Choosing is all
that goes slot by slot. It has the names of `zoo.rerank.generator`, so that it is trained against
evaluators in the same way, and LAST can move its `slots` and `items`.

Differs from the paper: trained by the policy gradient of evaluators where theirs takes the
likelihood of slates that were received well and the unlikelihood of those that were not; variety
is left to evaluators and to hard constraints where theirs has contrastive search.
Shapes: `B` requests, `N` candidates, `S` slates per request, `M` slots, `d` width.
"""

import dataclasses
from typing import NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt32

from ...kernels.pointer_decode import Choose, Decoded, Left, Rules, drawn, fill, given
from ..batch import Batch
from ..checks import require_positive, require_probability
from ..contract import Aux, Requirements, Slate, Variables
from ..embeddings import (
    as_arrays,
    dropout,
    embed,
    init_variables,
    read_tables,
    require_drawn,
)
from ..features import Schema
from ..layers.losses import in_training
from . import constraints
from .generator import policy_loss
from .listwise import item_rows

KIND = "generator"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters.

    Attributes:
      schema: what the batches hold.
      slots: M, length of the slates.
      units: width d of the encodings.
      heads: of attention; they share d.
      feed_units: of the feed-forward layer.
      discount: of later slots' advantages.
      scatter, quota: hard constraints, see `constraints`.
      embedding_dropout: share of embedding values dropped in training.
    """

    schema: Schema
    slots: int = 10
    units: int = 64
    heads: int = 4
    feed_units: int = 128
    discount: float = 0.3
    scatter: tuple[str, ...] = ()
    quota: tuple[str, ...] = ()
    embedding_dropout: float = 0.0

    def __post_init__(self):
        require_positive(self, "slots", "units", "heads", "feed_units")
        require_probability(self, "embedding_dropout")
        if self.units % self.heads:
            raise ValueError(f"Config.units must be a multiple of heads, got {self.units}.")
        if not 0 <= self.discount <= 1:
            raise ValueError(f"Config.discount must be in [0, 1], got {self.discount}.")
        constraints.check(self)


class Encoded(NamedTuple):
    """A request: what LAST moves, and what is asked of slates."""

    slots: Float[Array, "B M d"]
    items: Float[Array, "B N d"]
    mask: Bool[Array, "B N"]
    rules: Rules | None


MOVED = ("slots", "items")


def requirements(config: Config) -> Requirements:
    """Candidates."""
    del config
    return Requirements()


def init(key: PRNGKeyArray, config: Config) -> Variables:
    """Fresh variables: whole tables, both blocks, slots."""
    return init_variables(key, Nar(config), config.schema)


def apply(variables: Variables, config: Config, batch: Batch) -> Slate:
    """The slate that is chosen greedily. Pure."""
    found = decode(variables, config, encode(variables, config, batch))
    return Slate(found.order[:, 0], found.log_probability[:, 0])


def encode(variables: Variables, config: Config, batch: Batch) -> Encoded:
    """The encoding that all slates of a request share. Pure."""
    return cast(Encoded, Nar(config).apply(variables, batch))


def decode(
    variables: Variables,
    config: Config,
    encoded: Encoded,
    *,
    direction: Encoded | None = None,
    steps: Float[Array, " S"] | None = None,
    noise: Float[Array, "B S M N"] | UInt32[Array, " B"] | None = None,
    temperature: float = 1.0,
) -> Decoded:
    """One slate for every step along `direction`, greedy without noise. Pure."""
    del variables, config  # All of them went into the encoding.
    if not 0 < temperature < jnp.inf:
        raise ValueError(f"temperature must be > 0 and finite, got {temperature}.")
    steps = jnp.zeros(1) if steps is None else steps
    scores = _scores(encoded, direction, steps) / temperature
    if noise is not None and noise.shape not in (scores.shape[:1], scores.shape):
        raise ValueError(f"noise must have shape {scores.shape} or (B,), got {noise.shape}.")
    if noise is not None and noise.ndim == 1 and noise.dtype != jnp.uint32:
        raise ValueError(f"Seeds of noise must be uint32, got {noise.dtype}.")
    return in_turn(scores, encoded, drawn(noise, scores.shape[2]))


def log_probability(
    variables: Variables, config: Config, encoded: Encoded, order: Int[Array, "B S M"]
) -> Float[Array, "B S M"]:
    """log pi of every choice of given slates. Pure, and differentiable by `encoded` too."""
    del variables, config
    scores = _scores(encoded, None, jnp.zeros(order.shape[1]))
    return in_turn(scores, encoded, given(order)).log_probability


def loss(
    variables: Variables,
    config: Config,
    batch: Batch,
    *,
    key: PRNGKeyArray,
    axis_name: str | None = None,
) -> tuple[Float[Array, ""], Aux]:
    """Policy gradient on `batch["slate"]`, see `generator.policy_loss`."""
    require_drawn(batch, "slate")
    encoded, statistics = in_training(Nar(config, axis_name), variables, batch, key)
    order = jnp.asarray(batch["slate"]["order"])[:, None]
    logp = log_probability(variables, config, encoded, order)[:, 0]
    value = policy_loss(logp, batch, config.discount, axis_name)
    return value, Aux(statistics, {"policy_gradient": value})


class Nar(nn.Module):
    """Candidates and slots, each after one block of attention to the candidates."""

    config: Config
    axis_name: str | None = None

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool = False) -> Encoded:
        """Both, encoded."""
        config = self.config
        tables = read_tables(self, config.schema)
        batch = as_arrays(batch, config.schema, ("user", "context", "candidate"))
        embedded = embed(tables, config.schema, batch)
        embedded = dropout(embedded, config.embedding_dropout, train=train)
        mask = batch["candidate_mask"]
        items = nn.relu(nn.Dense(config.units, name="encoder")(item_rows(embedded, mask)))
        items = jnp.where(mask[..., None], items, 0.0)
        items = Block(config, name="items")(items, items, mask)
        start = self.param("slots", nn.initializers.normal(1.0), (config.slots, config.units))
        start = jnp.broadcast_to(start, (mask.shape[0], *start.shape))
        slots = Block(config, name="reading")(start, items, mask)
        return Encoded(slots, items, mask, constraints.rules_of(config, batch))


class Block(nn.Module):
    """LayerNorm(h + feed(h)), h = LayerNorm(a + attention(a to b))."""

    config: Config

    @nn.compact
    def __call__(
        self, a: Float[Array, "B Q d"], b: Float[Array, "B N d"], mask: Bool[Array, "B N"]
    ) -> Float[Array, "B Q d"]:
        """Attention of `a` over `b`; zeros where all of it is masked."""
        config = self.config
        attention = nn.MultiHeadDotProductAttention(config.heads)
        found = attention(a, b, mask=mask[:, None, None])
        found = jnp.where(mask.any(axis=1)[:, None, None], found, 0.0)
        h = nn.LayerNorm()(a + found)
        wide = nn.relu(nn.Dense(config.feed_units, name="widen")(h))
        fed = nn.Dense(config.units, name="narrow")(wide)
        return nn.LayerNorm()(h + fed)


def in_turn(scores: Float[Array, "B S M N"], encoded: Encoded, choose: Choose) -> Decoded:
    """Slots filled one after the other."""

    def body(left, slot):
        mine = jax.lax.dynamic_index_in_dim(scores, slot, 2, keepdims=False)
        turn = fill(mine, left, slot, encoded.rules, choose)
        return turn.left, turn.log_probability

    left = Left.all_of(encoded.mask, *scores.shape[1:3])
    left, logp = jax.lax.scan(body, left, jnp.arange(scores.shape[2]))
    return Decoded(left.order, jnp.moveaxis(logp, 0, 2))


def _scores(encoded, direction, steps):
    """(T + s dT) (X + s dX)^T / sqrt(d) of every step, from three products."""
    product = lambda slots, items: jnp.einsum("bmd,bnd->bmn", slots, items)[:, None]
    scores = product(encoded.slots, encoded.items)
    if direction is not None:
        s = steps[None, :, None, None]
        mixed = product(encoded.slots, direction.items) + product(direction.slots, encoded.items)
        scores = scores + s * (mixed + s * product(direction.slots, direction.items))
    shape = (scores.shape[0], steps.shape[0], *scores.shape[2:])
    return jnp.broadcast_to(scores, shape) / encoded.items.shape[-1] ** 0.5
