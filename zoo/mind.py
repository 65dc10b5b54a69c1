r"""Multi-Interest Network with Dynamic routing (MIND).

Li et al., "Multi-Interest Network with Dynamic Routing for Recommendation at Tmall", CIKM 2019,
https://arxiv.org/abs/1904.08030.

A user is several vectors, each a cluster of past behaviours, so that retrieval can serve several
needs at once. Behaviours S e_i are shared out among interests u_j by dynamic routing (section 3.3,
`zoo.layers.routing`); each u_j with the user's profile passes through layers and gives v_j. In
training the candidate picks its interest (label-aware attention, section 3.5) and sampled softmax
compares it with shared negatives (section 3.6); when serving, the score is max_j v_j . e. A user
with n behaviours has max(1, min(K, floor(log2 n))) interests; the others do not exist.

Differs from the paper: the starting logits are a fixed draw instead of a new one per call, so that
a user's vectors are the same at every call; the candidate takes its best interest alone, the
paper's p -> infinity, "soft" and "pow" being options; the last layer is linear, as a ReLU would
confine interests to one orthant; fields that only events have (the kind of behaviour, say) are
added to e_i; numbers are projected; context stands beside the profile. Options of our own: in
training the paper meets the negatives with the interest that the candidate picked, but serving
with the nearest of each, which `nearest_draws` does in training too; `agreement="cosine"`
routes by the directions in which a user's events differ.
Differs from reimplementations: the softmax runs over interests, not over behaviours.
A user without history has one interest, squash(0) = 0, which the profile makes a vector.
Shapes: `B` requests, `L` events, `C` candidates, `K` interests, `S` shared draws, `D` = dim.
"""

import dataclasses
import functools
from typing import Literal, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ..kernels.target_attention import MASKED
from .batch import Batch
from .checks import require_choices, require_positive, require_probability
from .contract import Aux, Output, Requirements, Variables
from .embeddings import (
    INIT_STD,
    as_arrays,
    compact,
    embed_field,
    for_each_candidate,
    init_variables,
    read_tables,
    require_drawn,
    require_own_ids,
)
from .features import Field, Schema
from .layers.retrieval import (
    identity_field,
    left_out_draws,
    nearest_interest,
    sampled_softmax_loss,
)
from .layers.routing import Agreement, interest_mask, route, routing_logits

KIND = "retrieval"

Attention = Literal["hard", "soft", "pow"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters of MIND.

    Attributes:
      schema: what the batches hold; its first task marks the positives.
      dim: width of every table (the schema's own widths do not count here) and of all vectors.
      interests: K, the most vectors a user has; 1 gives squash of the sum.
      rounds: of routing.
      agreement: what moves behaviours between interests: "inner" products, as in the paper, or
        the "cosine" of what is special about each.
      agreement_scale: of the same.
      routing_std: of the logits that routing starts from.
      routing_seed: of the same.
      attention: how a candidate weighs interests in training: "hard" takes the best, "soft" is
        softmax(p v.e), "pow" the paper's softmax(sign(v.e) |v.e|^p).
      power: p of label-aware attention; the larger, the more the nearest interest counts.
      nearest_draws: whether in training a draw meets its own best interest, as in serving, and not
        the one that the candidate has.
      tower_units: widths of the hidden layers over [interest, profile].
      embedding_dropout: share of embedding values dropped in training.
      sampled: shared negatives S.
    """

    schema: Schema
    dim: int = 64
    interests: int = 4
    rounds: int = 3
    agreement: Agreement = "inner"
    agreement_scale: float = 1.0
    routing_std: float = 1.0
    routing_seed: int = 0
    attention: Attention = "hard"
    power: float = 2.0
    nearest_draws: bool = False
    tower_units: tuple[int, ...] = (128,)
    embedding_dropout: float = 0.0
    sampled: int = 1024

    def __post_init__(self):
        require_positive(self, "dim", "interests", "rounds", "tower_units", "sampled")
        require_choices(self)
        require_probability(self, "embedding_dropout")
        for name in ("routing_std", "agreement_scale"):
            if not getattr(self, name) > 0:
                raise ValueError(f"Config.{name} must be > 0, got {getattr(self, name)}.")
        if not 0 <= self.routing_seed < 2**32:
            raise ValueError(f"Config.routing_seed must be in [0, 2**32), got {self.routing_seed}.")
        if not self.power >= 1:
            raise ValueError(f"Config.power must be >= 1, got {self.power}.")
        identity_field(self.schema)

    @property
    def own_schema(self) -> Schema:
        """The schema with every table `dim` wide: fields of items can be averaged."""
        return self.schema.with_dim(self.dim)


def requirements(config: Config) -> Requirements:
    """Positives, and negatives that the batch shares."""
    return Requirements(sampled=config.sampled)


def init(key: PRNGKeyArray, config: Config) -> Variables:
    """Fresh variables: whole tables of width `dim`, the bilinear map S, the layers."""
    return init_variables(key, MIND(config), config.own_schema, requirements(config))


def apply(variables: Variables, config: Config, batch: Batch) -> Output:
    """Scores each candidate by its nearest interest. Pure."""
    return cast(Output, MIND(config).apply(variables, batch))


def user_vectors(
    variables: Variables, config: Config, batch: Batch
) -> tuple[Float[Array, "B K D"], Bool[Array, "B K"]]:
    """The interests of each user, and which of them exist. Reads no candidates."""
    return cast(tuple, MIND(config).apply(variables, batch, method="user_vectors"))


def item_vectors(variables: Variables, config: Config, items: Batch) -> Float[Array, "*lead D"]:
    """The vector of each item, from the fields that stand in candidate and history."""
    return cast(Array, MIND(config).apply(variables, as_arrays(items), method="item_vectors"))


def loss(
    variables: Variables,
    config: Config,
    batch: Batch,
    *,
    key: PRNGKeyArray,
    axis_name: str | None = None,
) -> tuple[Float[Array, ""], Aux]:
    """Sampled softmax of the first task's positives, each against the interest it picks."""
    batch = as_arrays(batch, config.schema)
    require_drawn(batch, "sampled", "sampled_log_q", "candidate_log_q")
    if axis_name is not None:
        key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
    scores = MIND(config).apply(variables, batch, method="training_scores", rngs={"dropout": key})
    positive, negative = cast(tuple, scores)
    hit, task = left_out_draws(config.schema, batch), config.schema.tasks[0]
    value = sampled_softmax_loss(positive, negative, hit, batch, task, axis_name)
    return value, Aux({}, {"sampled_softmax": value})


class MIND(nn.Module):
    """Figure 2 of the paper: embed, route, join the profile, attend."""

    config: Config

    def setup(self):
        """Declares tables and layers."""
        config, schema = self.config, self.config.schema
        self.tables = read_tables(self, config.own_schema)
        self.embed = functools.partial(embed_field, dict(self.tables))
        names = {field.name for field in schema.item_fields}
        self.event_fields = [f for f in schema.role("history") if f.name not in names]
        # As small as fresh rows, with which they are averaged.
        small = nn.initializers.normal(INIT_STD)
        self.number = {
            field.name: nn.Dense(config.dim, use_bias=False, kernel_init=small)
            for field in (*schema.item_fields, *self.event_fields)
            if field.kind == "dense"
        }
        self.bilinear = nn.Dense(config.dim, use_bias=False)
        self.layers = [nn.Dense(width) for width in (*config.tower_units, config.dim)]
        self.dropout = nn.Dropout(config.embedding_dropout)

    def __call__(self, batch: Batch) -> Output:
        """max_j v_j . e for each candidate."""
        batch = as_arrays(batch, self.config.schema)
        logit = nearest_interest(*self.user_vectors(batch), self.item_vectors(batch["candidate"]))
        return Output(logit, {self.config.schema.tasks[0]: logit})

    def training_scores(self, batch: Batch) -> tuple[Float[Array, "B C"], Float[Array, "B C S"]]:
        """v . e of candidates, with the v that each picks, and of shared negatives."""
        config = self.config
        users, exists = self.user_vectors(batch, train=True)
        items, sampled = (self.item_vectors(batch[role]) for role in ("candidate", "sampled"))
        v = label_aware_attention(users, exists, items, config.attention, config.power)
        positive = jnp.sum(v * items, axis=-1)
        if not config.nearest_draws:
            return positive, jnp.einsum("bcd,sd->bcs", v, sampled)
        draws = jnp.einsum("bkd,sd->bks", users, sampled)
        draws = jnp.max(jnp.where(exists[..., None], draws, MASKED), axis=1)
        return positive, for_each_candidate(draws, items.shape[1])

    def item_vectors(self, items: dict[str, Array]) -> Float[Array, "*lead D"]:
        """The average of an item's fields."""
        fields = self.config.schema.item_fields
        return jnp.stack([self._vector(field, items) for field in fields]).mean(axis=0)

    def user_vectors(
        self, batch: Batch, *, train: bool = False
    ) -> tuple[Float[Array, "B K D"], Bool[Array, "B K"]]:
        """Routes the history into interests and joins each with the profile."""
        config = self.config
        batch = as_arrays(batch, config.schema, ("user", "context", "history"))
        require_own_ids(self.tables, batch)
        batch = compact(batch, at_end=True)
        mask = batch["history_mask"]
        events = self.item_vectors(batch["history"])
        for field in self.event_fields:
            events = events + self._vector(field, batch["history"])
        events = self.bilinear(self.dropout(events, deterministic=not train))

        exists = interest_mask(mask.sum(axis=1), config.interests)
        start = jnp.asarray(
            routing_logits(mask.shape[1], config.interests, config.routing_std, config.routing_seed)
        )
        interests = route(
            events, mask, exists, start, config.rounds, config.agreement, config.agreement_scale
        )

        profile = self.dropout(self._profile(batch), deterministic=not train)
        profile = jnp.repeat(profile[:, None], config.interests, axis=1)
        x = jnp.concatenate([interests, profile], axis=-1)
        for layer in self.layers[:-1]:
            x = nn.relu(layer(x))
        return self.layers[-1](x), exists

    def _vector(self, field: Field, values: dict[str, Array]) -> Float[Array, "*lead D"]:
        embedded = self.embed(field, values[field.name])
        return self.number[field.name](embedded) if field.kind == "dense" else embedded

    def _profile(self, batch: Batch) -> Float[Array, "B P"]:
        parts = [jnp.zeros((batch["history_mask"].shape[0], 0), jnp.float32)]
        for role in ("user", "context"):
            for field in self.config.schema.role(role):
                parts.append(self.embed(field, batch[role][field.name]))
        return jnp.concatenate(parts, axis=-1)


def label_aware_attention(
    users: Float[Array, "B K D"],
    exists: Bool[Array, "B K"],
    items: Float[Array, "B C D"],
    attention: Attention,
    power: float,
) -> Float[Array, "B C D"]:
    """sum_j softmax_j(pow(v_j . e, p)) v_j for each candidate; "hard" is p -> infinity."""
    score = jnp.einsum("bkd,bcd->bck", users, items)
    if attention == "hard":
        best = jnp.argmax(jnp.where(exists[:, None], score, MASKED), axis=-1)
        return jnp.take_along_axis(users, best[..., None], axis=1)
    score = power * score if attention == "soft" else signed_power(score, power)
    weight = nn.softmax(jnp.where(exists[:, None], score, MASKED), axis=-1)
    return jnp.einsum("bck,bkd->bcd", weight, users)


def signed_power(x: Float[Array, "*lead"], power: float) -> Float[Array, "*lead"]:
    """sign(x) |x|^p, kept below 1e30: a bare power loses signs, or is NaN, or overflows."""
    size = jnp.clip(jnp.abs(x), 1e-6, 1e30 ** (1.0 / power))
    return jnp.sign(x) * size**power
