r"""The evaluator: what users will do with a slate, slot by slot.

Wang et al., "Do Not Wait: Learning Re-Ranking Model Without User Feedback At Serving Time in
E-Commerce" (LAST), RecSys 2024, https://arxiv.org/abs/2406.14004, after CMR,
https://arxiv.org/abs/2306.05118.

Only the slate that was shown has feedback; the evaluator, trained on it, predicts what any other
slate would get. Each slot sees the whole slate through channels:

    e_t    encoding of its item, with the request's own fields
    s_t    self-attention over the slate, by content and by distance of the slots
    g_t    a GRU over the slots above it and its own
    p_t    inner products with the items up to `window` slots above and below
    logit_t = tower([e_t, s_t, g_t, p_t] + what slot t is like)        one output per task

All that depends on the item alone is computed once per candidate (`encode`), so that judging many
orders of the same candidates costs little more per order than the recurrence (`judge`).

Differs from the authors' code: every channel is masked; layer normalisation, as the moving
averages of their batch normalisation were never updated; channels stay with their slot instead of
being summed over the slate, and the slot's place is an input to one shared tower instead of one
output layer per slot; the inner products are those of near slots; clicks and purchases.
Shapes: `B` requests, `N` candidates, `S` slates per request, `M` slots, `E` width of an encoding.
"""

import dataclasses
from typing import Literal, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ...kernels.augru import gru
from ..batch import Batch
from ..checks import require_choices, require_positive, require_probability
from ..contract import Aux, Output, Requirements, Variables
from ..embeddings import Embedded, as_arrays, embed, init_variables, read_tables
from ..features import Schema
from ..layers.losses import click_loss, in_training
from ..layers.recurrence import Recurrence
from .listwise import item_rows

KIND = "evaluator"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters of the evaluator.

    Attributes:
      schema: what the batches hold; one output per task, the first of which is the click.
      slots: the most that a slate has.
      units: width of an item's encoding.
      heads, head_dim: of self-attention.
      gru_units: width of the recurrence.
      pair_units: width of the vectors whose inner products are taken.
      window: slots above and below that they are taken with.
      tower_units: widths of the tower's hidden layers.
      activation: of encoder and tower.
      embedding_dropout: share of embedding values dropped in training.
    """

    schema: Schema
    slots: int = 10
    units: int = 64
    heads: int = 4
    head_dim: int = 16
    gru_units: int = 64
    pair_units: int = 16
    window: int = 3
    tower_units: tuple[int, ...] = (128, 64)
    activation: Literal["relu", "sigmoid"] = "relu"
    embedding_dropout: float = 0.0

    def __post_init__(self):
        require_positive(self, "slots", "units", "heads", "head_dim", "gru_units", "pair_units")
        require_positive(self, "window", "tower_units")
        require_choices(self)
        require_probability(self, "embedding_dropout")
        if not self.tower_units:
            raise ValueError("Config.tower_units must name at least one layer, got ().")


class Encoded(NamedTuple):
    """Candidates as far as they can be judged one by one."""

    items: Float[Array, "B N E"]
    queries: Float[Array, "B N h d"]
    keys: Float[Array, "B N h d"]
    values: Float[Array, "B N h d"]
    pairs: Float[Array, "B N P"]
    mask: Bool[Array, "B N"]


def requirements(config: Config) -> Requirements:
    """Labelled slates."""
    del config
    return Requirements()


def init(key: PRNGKeyArray, config: Config) -> Variables:
    """Fresh variables: whole tables, encoder, channels, tower."""
    return init_variables(key, Evaluator(config), config.schema)


def apply(variables: Variables, config: Config, batch: Batch) -> Output:
    """Log-odds of every task for each slot; the candidates ARE the slate, in slot order. Pure."""
    return cast(Output, Evaluator(config).apply(variables, batch))


def encode(variables: Variables, config: Config, batch: Batch) -> Encoded:
    """The encoding that all slates of these candidates share. Pure."""
    return cast(Encoded, Evaluator(config).apply(variables, batch, method="encode"))


def judge(
    variables: Variables, config: Config, encoded: Encoded, order: Int[Array, "B S M"]
) -> Float[Array, "B S M T"]:
    """Log-odds of each task for every slot of many slates of the encoded candidates. Pure.

    `order` indexes candidates; -1 is an empty slot, whose log-odds mean nothing.
    """
    return cast(Array, Evaluator(config).apply(variables, encoded, order, method="judge"))


def loss(
    variables: Variables,
    config: Config,
    batch: Batch,
    *,
    key: PRNGKeyArray,
    axis_name: str | None = None,
) -> tuple[Float[Array, ""], Aux]:
    """Sum over the tasks of the weighted binary cross-entropy of their slots."""
    batch = as_arrays(batch)
    output, statistics = in_training(Evaluator(config, axis_name), variables, batch, key)
    terms = {
        task: click_loss(output.tasks[task], batch, task, axis_name) for task in config.schema.tasks
    }
    return sum(terms.values(), jnp.zeros(())), Aux(statistics, terms)


class Evaluator(nn.Module):
    """Encoder, channels, tower."""

    config: Config
    axis_name: str | None = None

    def setup(self):
        """All that has parameters."""
        config = self.config
        heads = (config.heads, config.head_dim)
        self.tables = read_tables(self, config.schema)
        self.dropped = nn.Dropout(config.embedding_dropout)
        self.encoder = nn.Dense(config.units)
        self.encoder_norm = nn.LayerNorm()
        self.query, self.key = (nn.DenseGeneral(heads, use_bias=False) for _ in range(2))
        self.query_norm, self.key_norm = nn.LayerNorm(), nn.LayerNorm()
        self.value = nn.DenseGeneral(heads, use_bias=False)
        self.distance = self.param(
            "distance", nn.initializers.zeros, (config.heads, 2 * config.slots - 1)
        )
        self.recurrence = Recurrence(config.gru_units)
        self.pair = nn.Dense(config.pair_units, use_bias=False)
        first, *rest = config.tower_units
        self.place = self.param("place", nn.initializers.normal(0.1), (config.slots, first))
        self.tower = [nn.Dense(first), *(nn.Dense(width) for width in rest)]
        self.logit = nn.Dense(len(config.schema.tasks))

    def __call__(self, batch: Batch, *, train: bool = False) -> Output:
        """Judges the slate that the candidates are."""
        encoded = self.encode(batch, train=train)
        size, slots = encoded.mask.shape
        order = jnp.broadcast_to(jnp.arange(slots, dtype=jnp.int32), (size, 1, slots))
        order = jnp.where(encoded.mask[:, None], order, -1)
        logits = self.judge(encoded, order)[:, 0]
        tasks = {task: logits[..., i] for i, task in enumerate(self.config.schema.tasks)}
        return Output(logits[..., 0], tasks)

    def encode(self, batch: Batch, *, train: bool = False) -> Encoded:
        """The encoding that all slates of these candidates share."""
        config = self.config
        batch = as_arrays(batch, config.schema, ("user", "context", "candidate"))
        embedded = embed(dict(self.tables), config.schema, batch)
        embedded = Embedded(*(self.dropped(part, deterministic=not train) for part in embedded))
        mask = batch["candidate_mask"]
        items = self._activate(self.encoder_norm(self.encoder(item_rows(embedded, mask))))
        return Encoded(
            items,
            self.query_norm(self.query(items)),
            self.key_norm(self.key(items)),
            self.value(items),
            self.pair(items),
            mask,
        )

    def judge(self, encoded: Encoded, order: Int[Array, "B S M"]) -> Float[Array, "B S M T"]:
        """Log-odds of each task for every slot of many slates."""
        slots = order.shape[2]
        if slots > self.config.slots:
            raise ValueError(f"A slate must have at most {self.config.slots} slots, got {slots}.")
        here = order >= 0
        at = jnp.where(here, order, 0)
        # Slates of all requests in one axis.
        take = lambda x: x[jnp.arange(x.shape[0])[:, None, None], at].reshape(
            -1, slots, *x.shape[2:]
        )
        parts, real = Encoded(*map(take, encoded)), here.reshape(-1, slots)
        channels = [
            parts.items,
            self._attend(parts, real),
            gru(parts.items, real, self.recurrence(parts.items)),
            near_products(parts.pairs, real, self.config.window),
        ]
        x = self.tower[0](jnp.concatenate(channels, axis=-1)) + self.place[None, :slots]
        for layer in self.tower[1:]:
            x = layer(self._activate(x))
        logits = self.logit(self._activate(x))
        return logits.reshape(*order.shape, -1)

    def _attend(self, parts: Encoded, real: Bool[Array, "n M"]) -> Float[Array, "n M V"]:
        slots = real.shape[1]
        score = jnp.einsum("nthd,nshd->nhts", parts.queries, parts.keys)
        apart = jnp.arange(slots)[:, None] - jnp.arange(slots)[None] + self.config.slots - 1
        score = score / self.config.head_dim**0.5 + self.distance[None, :, apart]
        some = real[:, None, None]
        weight = nn.softmax(jnp.where(some, score, jnp.finfo(jnp.float32).min), axis=-1)
        found = jnp.einsum("nhts,nshd->nthd", jnp.where(some, weight, 0.0), parts.values)
        return found.reshape(*real.shape, -1)

    def _activate(self, x: Float[Array, "*lead F"]) -> Float[Array, "*lead F"]:
        return {"relu": nn.relu, "sigmoid": nn.sigmoid}[self.config.activation](x)


def near_products(
    pairs: Float[Array, "n M P"], real: Bool[Array, "n M"], window: int
) -> Float[Array, "n M W"]:
    """<p_t, p_{t+k}> for k = -window..window but 0; 0 where there is no such slot."""
    pairs = jnp.where(real[..., None], pairs, 0.0)
    slots = pairs.shape[1]
    padded = jnp.pad(pairs, [(0, 0), (window, window), (0, 0)])
    others = [jax.lax.dynamic_slice_in_dim(padded, k, slots, 1) for k in range(2 * window + 1)]
    del others[window]
    return jnp.stack([(pairs * other).sum(axis=-1) for other in others], axis=-1)
