r"""Search-based Interest Model (SIM).

Pi et al., "Search-based User Interest Modeling with Lifelong Sequential Behavior Data for
Click-Through Rate Prediction", CIKM 2020, https://arxiv.org/abs/2006.05639.

A history of thousands of events is too long to attend to, and most of it says nothing about the
candidate. So the candidate first searches it, cheaply, and then attends to the few that it found:

    general search    soft: the K largest r_i = (W_b k_i) . (W_a q)     hard: the K newest events
                      that share the candidate's category
    exact search      z = [k, time interval]    head_h = sum_j softmax_j((W_bh z_j) . (W_ah q)) z_j
    x = [user, context, q, DIN over the newest events, heads, whether nothing was found]
    logit = tower(x)

Soft search has no gradient of its own; W_a and W_b learn from a click model that sums the history
by relevance, U = sum_i r_i k_i (section 3.2):

    L = alpha BCE(tower'([user, context, q, U])) + beta BCE(logit)

and without alpha for hard search, which has no parameters.

Differs from the paper: the search is exact instead of an approximate index; the newest events go
to DIN instead of DIEN; the tower is told when nothing was found; W_b and W_bh start as W_a and
W_ah, so that both searches start as similarity.
Differs from the public code (which covers soft search on Books): W_a and W_b, and no softmax in U;
K events are found, not K - 1; several heads; buckets of time intervals, not absolute time.
Events found by hard search come from the whole past, so one may also be among the newest.
Shapes: `B` requests, `L` history events, `C` candidates, `D` width of an item, `E` of a behaviour,
`K` events found, `A` width of a projection.
"""

import dataclasses
from typing import Literal, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..kernels.soft_search import soft_search
from ..kernels.target_attention import Normalize
from .batch import Batch
from .checks import require_choices, require_item_fields, require_positive, require_probability
from .contract import Aux, Output, Requirements, Variables
from .embeddings import (
    Embedded,
    as_arrays,
    compact,
    dropout,
    embed,
    embed_events,
    init_variables,
    read_tables,
    tower_input,
)
from .features import Schema
from .layers.activation_unit import ActivationUnit
from .layers.exact_search import Events, ExactSearch, pick, starting_as
from .layers.losses import click_loss, in_training
from .layers.tower import Activation, Tower

KIND = "ranking"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters of SIM; the defaults are the paper's structure.

    Attributes:
      schema: what the batches hold; its first task is the label.
      search: "soft" looks in the history, in all that is older than the short part; "hard" in
        what an index found in the whole past (`retrieved`).
      top_k: how many events are found; the paper has 50 for soft search, 200 for hard.
      group_by: the field that hard search matches.
      search_dim: width of W_a q and W_b k.
      subsample: random events that U sums in training, for histories that are too long for it; 0
        means all.
      alpha: weight of the loss of soft search.
      beta: weight of the loss of the model.
      heads: of exact search.
      head_dim: width of a head's queries and keys.
      interval_dim: width of the embedding of floor(log2(1 + hours)) since an event; 0 means none.
      project_value: whether a head projects what it sums.
      short_length: how many of the newest events DIN sees.
      attention_units: hidden layers of DIN's activation unit, with PReLU.
      normalize: of its weights, "none" or "softmax".
      tower_units: widths of the hidden layers of both towers.
      activation: of both towers.
      product: whether they also see q * v, for DIN's v, for U, and for heads that do not project.
      embedding_dropout: share of embedding values dropped in training.
    """

    schema: Schema
    search: Literal["soft", "hard"] = "soft"
    top_k: int = 50
    group_by: str = "category"
    search_dim: int = 16
    subsample: int = 0
    alpha: float = 1.0
    beta: float = 1.0
    heads: int = 2
    head_dim: int = 16
    interval_dim: int = 8
    project_value: bool = False
    short_length: int = 10
    attention_units: tuple[int, ...] = (80, 40)
    normalize: Normalize = "none"
    tower_units: tuple[int, ...] = (200, 80)
    activation: Activation = "prelu"
    product: bool = False
    embedding_dropout: float = 0.0

    def __post_init__(self):
        require_choices(self)
        require_positive(self, "top_k", "search_dim", "heads", "head_dim", "short_length")
        require_positive(self, "attention_units", "tower_units")
        require_probability(self, "embedding_dropout")
        for name in ("alpha", "beta"):
            if not getattr(self, name) > 0:
                raise ValueError(f"Config.{name} must be > 0, got {getattr(self, name)}.")
        for name in ("subsample", "interval_dim"):
            if getattr(self, name) < 0:
                raise ValueError(f"Config.{name} must be >= 0, got {getattr(self, name)}.")
        if not self.attention_units:
            raise ValueError("Config.attention_units must name at least one layer, got ().")
        require_item_fields(self)


def requirements(config: Config) -> Requirements:
    """Labelled candidates and a history; for hard search what the index found."""
    found = config.top_k if config.search == "hard" else 0
    return Requirements(retrieved=found, group_by=config.group_by)


def init(key: PRNGKeyArray, config: Config) -> Variables:
    """Fresh variables: whole tables, both searches, attention, towers."""
    return init_variables(key, SIM(config), config.schema, requirements(config))


def apply(variables: Variables, config: Config, batch: Batch) -> Output:
    """Scores each candidate. Pure."""
    return cast(Output, SIM(config).apply(variables, batch))


def loss(
    variables: Variables,
    config: Config,
    batch: Batch,
    *,
    key: PRNGKeyArray,
    axis_name: str | None = None,
) -> tuple[Float[Array, ""], Aux]:
    """alpha * click loss of the search ("search") + beta * click loss ("bce")."""
    batch, task = as_arrays(batch), config.schema.tasks[0]
    (output, search_logit), statistics = in_training(SIM(config, axis_name), variables, batch, key)
    terms = {"bce": click_loss(output.logit, batch, task, axis_name)}
    total = config.beta * terms["bce"]
    if config.search == "soft":
        terms["search"] = click_loss(search_logit, batch, task, axis_name)
        total = total + config.alpha * terms["search"]
    return total, Aux(statistics, terms)


class SIM(nn.Module):
    """General search, exact search, the short part, the tower (section 3)."""

    config: Config
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, batch: Batch, *, train: bool = False
    ) -> Output | tuple[Output, Float[Array, "B C"] | None]:
        """Scores each candidate; in training also by what soft search itself thinks of it."""
        config = self.config
        batch, older = split(as_arrays(batch, config.schema), config.short_length)
        tables = read_tables(self, config.schema)
        embedded = dropout(
            embed(tables, config.schema, batch), config.embedding_dropout, train=train
        )
        role, source = ("history", older) if config.search == "soft" else ("retrieved", batch)
        vectors = embed_events(tables, config.schema, source[role])
        vectors = nn.Dropout(config.embedding_dropout, deterministic=not train)(vectors)
        mask = source[f"{role}_mask"]
        vectors = jnp.where(mask[..., None], vectors, 0.0)
        past = Events(vectors, mask, source.get(f"{role}_age"))

        search_logit = None
        if config.search == "soft":
            found, search_logit = self._soft_search(embedded, past, batch["candidate_mask"], train)
        else:
            found = pick(past, batch["group"])
        exact = ExactSearch(
            config.heads, config.head_dim, config.interval_dim, config.project_value, name="exact"
        )
        heads = exact(embedded.candidate, found)
        short = self._short(embedded, batch, train)
        parts = [short, *heads, (~found.mask.any(axis=2, keepdims=True)).astype(jnp.float32)]
        if config.product and not config.project_value:
            width = embedded.candidate.shape[-1]
            parts += [embedded.candidate * head[..., :width] for head in heads]
        x = tower_input(embedded, jnp.concatenate(parts, axis=-1), product=config.product)
        tower = Tower(config.tower_units, config.activation, axis_name=self.axis_name, name="tower")
        logit = tower(x, batch["candidate_mask"], train=train)
        output = Output(logit, {config.schema.tasks[0]: logit})
        return (output, search_logit) if train else output

    def _soft_search(
        self, embedded: Embedded, past: Events, candidate_mask: Array, train: bool
    ) -> tuple[Events, Float[Array, "B C"] | None]:
        """The events that match best and, in training, the logit that W_a and W_b learn from."""
        config, query, width = self.config, embedded.candidate, past.vectors.shape[-1]
        glorot = nn.initializers.glorot_uniform()
        w_a = self.param("w_a", glorot, (query.shape[-1], config.search_dim))
        w_b = self.param("w_b", starting_as(w_a), (width, config.search_dim))
        queries = query @ w_a
        most = max(1, min(config.top_k, past.vectors.shape[1]))
        best = soft_search(past.vectors @ w_b, queries, past.mask, k=most)
        found = pick(past, best.indices)._replace(mask=best.mask)
        if not (train or self.is_mutable_collection("params")):
            return found, None

        vectors = past.vectors
        if train and 0 < config.subsample < vectors.shape[1]:
            order = jax.random.uniform(self.make_rng("dropout"), past.mask.shape)
            _, chosen = jax.lax.top_k(jnp.where(past.mask, order, -1.0), config.subsample)
            vectors = pick(past, chosen).vectors
        interest = relevance_pooling(queries, vectors @ w_b, vectors)
        tower = Tower(
            config.tower_units, config.activation, axis_name=self.axis_name, name="search_tower"
        )
        x = tower_input(embedded, interest, product=config.product)
        return found, tower(x, candidate_mask, train=train)

    def _short(self, embedded: Embedded, batch: Batch, train: bool) -> Float[Array, "B C E"]:
        """DIN over the newest events."""
        config, missing = self.config, embedded.history_only.shape[-1]
        unit = ActivationUnit(
            config.attention_units, "prelu", config.normalize, self.axis_name, name="attention"
        )
        return unit(
            jnp.pad(embedded.candidate, [(0, 0), (0, 0), (0, missing)]),
            embedded.behaviour,
            batch["history_mask"],
            batch["candidate_mask"],
            train=train,
        )


def relevance_pooling(
    queries: Float[Array, "B C A"], keys: Float[Array, "B L A"], values: Float[Array, "B L E"]
) -> Float[Array, "B C E"]:
    """U = sum_i (key_i . q) k_i = (sum_i key_i k_i^T) q: the history is summed once for all q."""
    return jnp.einsum("bca,bae->bce", queries, jnp.einsum("bla,ble->bae", keys, values))


def split(batch: Batch, short_length: int) -> tuple[Batch, Batch]:
    """The batch with its newest events as history, and the history of those that are older.

    There is room for one older event at least, as nothing can be picked from an empty axis.
    """
    batch = compact(batch, at_end=True)
    length = batch["history_mask"].shape[1]
    missing = max(short_length + 1 - length, 0)
    cut = length + missing - short_length

    def padded(x):
        return jnp.pad(x, [(0, 0), (missing, 0)] + [(0, 0)] * (x.ndim - 2))

    events = {role: batch[role] for role in batch if role.startswith("history")}
    events = jax.tree.map(padded, events)
    newest = jax.tree.map(lambda x: x[:, cut:], events)
    return {**batch, **newest}, jax.tree.map(lambda x: x[:, :cut], events)
