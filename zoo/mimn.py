r"""Multi-channel user Interest Memory Network (MIMN).

Pi et al., "Practice on Long Sequential User Behavior Modeling for Click-Through Rate Prediction",
KDD 2019, https://arxiv.org/abs/1905.09248.

A neural Turing machine reads the history once, event by event, into a memory M of fixed size, so
that what is kept of a user, and the cost of scoring, do not depend on the length of the history:

    h = GRU([e, r], h)      w(i) = softmax_i(strength * similarity(key, M(i)))      one w per head
    r = sum_i w_r(i) M(i)   M(i) <- (1 - w_w(i) erase) * M(i) + w_w(i) add

The memory induction unit (section 4.3) keeps one more channel S(i) per slot, GRU([e, M(i)], S(i)),
and moves those that the read head looks at. A candidate takes one more step of the controller:

    x = [user, context, q, sum_t e_t, r_q, attention of q over S, q * written]   logit = tower(x)

Memory utilisation regularisation (section 4.2, `mur`), g = sum_t w_w over the steps before:

    "paper"     w_w <- w_w P,  P = softmax_rows(W_g g / t + c I);  loss + sum_i (g(i) - mean g)^2
    "release"   g / 400 feeds the heads, and w_w is shifted and sharpened; same loss

Differs from the paper: P is an m x m matrix, so that no mass is lost, and takes the usage before
the step; learned strengths, from the authors' code, as are r's start, `key_memory`, the stopped
gradient from M into S, and q * written.
Differs from the authors' code: the candidate is never in the history; masked steps keep the whole
state; S is attended as it stands at the end (theirs lost all but the last step's slot); the loss
takes g as written (theirs was shifted and sharpened twice), over the requests, and not divided by
their number once more.
Shapes: `B` requests, `L` history events, `C` candidates, `D` width of an item, `E` of a behaviour,
`m` slots, `H` controller, `I` channel.
"""

import dataclasses
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ..kernels.target_attention import Normalize
from .batch import Batch
from .checks import require_choices, require_item_fields, require_positive, require_probability
from .contract import Aux, Output, Requirements, Variables
from .embeddings import (
    Embedded,
    Pooling,
    as_arrays,
    compact,
    embed,
    embed_field,
    embed_items,
    for_each_candidate,
    init_variables,
    read_tables,
    tower_input,
)
from .features import Schema
from .layers.activation_unit import ActivationUnit
from .layers.auxiliary import NextBehaviour, auxiliary_loss, negatives_of
from .layers.losses import click_loss, in_training
from .layers.memory import (
    Machine,
    Regularisation,
    State,
    encode,
    initial_state,
    look_up,
    step,
    unequal_usage,
)
from .layers.tower import Activation, Query, Tower

KIND = "ranking"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters of MIMN; the defaults are the paper's structure.

    Attributes:
      schema: what the batches hold; its first task is the label.
      slots: rows m of the memory; each is as wide as an item.
      controller_units: width of the controller.
      key_memory: whether a slot is also found by a learned key; without it all slots look alike
        at first.
      mur: memory utilisation regularisation: "paper", "release" or "none".
      mur_weight: of its loss, which grows with the square of the length of the history.
      induction_units: width of a channel of the memory induction unit; 0 means no such unit.
      induction_slots: channels that move at each event.
      auxiliary_weight: of the loss that asks each read what comes next; 0 means none.
      attention_units: hidden layers of the unit that attends over the channels.
      attention_activation: of that unit.
      normalize: of its weights, "none" or "softmax".
      pooling: whether the tower sees sums over the events, or means of them.
      tower_units: widths of the tower's hidden layers.
      activation: of the tower.
      product: whether the tower also sees q * sum_t e_t.
      embedding_dropout: share of embedding values dropped in training.
    """

    schema: Schema
    slots: int = 4
    controller_units: int = 32
    key_memory: bool = True
    mur: Regularisation = "paper"
    mur_weight: float = 1e-4
    induction_units: int = 32
    induction_slots: int = 1
    auxiliary_weight: float = 0.0
    attention_units: tuple[int, ...] = (80, 40)
    attention_activation: Activation = "prelu"
    normalize: Normalize = "none"
    pooling: Pooling = "sum"
    tower_units: tuple[int, ...] = (200, 80)
    activation: Activation = "prelu"
    product: bool = False
    embedding_dropout: float = 0.0

    def __post_init__(self):
        require_positive(self, "slots", "controller_units", "induction_slots")
        require_positive(self, "attention_units", "tower_units")
        require_choices(self)
        require_probability(self, "embedding_dropout")
        for name in ("induction_units", "mur_weight", "auxiliary_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"Config.{name} must be >= 0, got {getattr(self, name)}.")
        if self.induction_slots > self.slots:
            raise ValueError(
                f"Config.induction_slots must be <= slots ({self.slots}), "
                f"got {self.induction_slots}."
            )
        if not self.attention_units:
            raise ValueError("Config.attention_units must name at least one layer, got ().")
        require_item_fields(self)


def requirements(config: Config) -> Requirements:
    """Labelled candidates and a history; for the auxiliary loss an item that was not next."""
    return Requirements(history_negatives="uniform" if config.auxiliary_weight else "none")


def init(key: PRNGKeyArray, config: Config) -> Variables:
    """Fresh variables: whole tables, the machine, attention, auxiliary net, tower."""
    return init_variables(key, MIMN(config), config.schema, requirements(config))


def apply(variables: Variables, config: Config, batch: Batch) -> Output:
    """Scores each candidate: `apply_state` after an `update` for every event. Pure."""
    return cast(Output, MIMN(config).apply(variables, batch))


def init_state(variables: Variables, config: Config, batch_size: int) -> State:
    """The state of users without history."""
    return cast(State, MIMN(config).apply(variables, batch_size, method="init_state"))


def update(
    variables: Variables, config: Config, state: State, event: Batch, mask: Bool[ArrayLike, " B"]
) -> State:
    """The state after one more event {history field: (B,)}; where the mask is False, as before."""
    return cast(State, MIMN(config).apply(variables, state, event, mask, method="update"))


def apply_state(variables: Variables, config: Config, state: State, batch: Batch) -> Output:
    """Scores each candidate of a batch without history. Pure."""
    return cast(Output, MIMN(config).apply(variables, state, batch, method="apply_state"))


def loss(
    variables: Variables,
    config: Config,
    batch: Batch,
    *,
    key: PRNGKeyArray,
    axis_name: str | None = None,
) -> tuple[Float[Array, ""], Aux]:
    """Click loss + mur_weight * unequal usage of the slots + auxiliary_weight * auxiliary loss."""
    batch = as_arrays(batch)
    (output, terms), statistics = in_training(
        MIMN(config, axis_name), variables, batch, key, method="run"
    )
    task = config.schema.tasks[0]
    total = bce = click_loss(output.tasks[task], batch, task, axis_name)
    for name, weight in (("usage", config.mur_weight), ("auxiliary", config.auxiliary_weight)):
        total = total + weight * terms[name] if name in terms else total
    return total, Aux(statistics, {"bce": bce, **terms})


class MIMN(nn.Module):
    """The machine, which reads the history and sees no candidate, and what scores its state."""

    config: Config
    axis_name: str | None = None

    def setup(self):
        """All that has parameters."""
        config = self.config
        self.tables = read_tables(self, config.schema)
        self.dropout = nn.Dropout(config.embedding_dropout)
        self.machine = Machine(
            item=sum(map(config.schema.width, config.schema.item_fields)),
            event=sum(map(config.schema.width, config.schema.role("history"))),
            slots=config.slots,
            controller_units=config.controller_units,
            induction_units=config.induction_units,
            key_memory=config.key_memory,
            mur=config.mur,
        )
        self.query = Query(config.induction_units)
        self.attention = ActivationUnit(
            config.attention_units, config.attention_activation, config.normalize, self.axis_name
        )
        self.next_behaviour = NextBehaviour()
        self.tower = Tower(config.tower_units, config.activation, axis_name=self.axis_name)

    def __call__(self, batch: Batch) -> Output:
        """Scores each candidate."""
        return self.run(batch)[0]

    def run(
        self, batch: Batch, *, train: bool = False
    ) -> tuple[Output, dict[str, Float[Array, ""]]]:
        """Scores each candidate; also the terms of the loss that speak of the history."""
        config = self.config
        batch = as_arrays(batch, config.schema)
        if train and config.auxiliary_weight:
            batch = compact(batch)  # The auxiliary loss speaks of the next event.
        drop = lambda x: self.dropout(x, deterministic=not train)
        embedded = Embedded(*map(drop, embed(dict(self.tables), config.schema, batch)))
        events = embedded.behaviour
        mask = batch["history_mask"]
        state, reads = encode(
            self.machine(),
            initial_state(self.machine(), mask.shape[0]),
            events,
            mask,
            induction_slots=config.induction_slots,
        )
        terms = {}
        if config.mur != "none":
            terms["usage"] = unequal_usage(state.usage, batch["candidate_mask"], self.axis_name)
        if config.auxiliary_weight and (train or self.is_mutable_collection("params")):
            drawn = negatives_of(batch, train=train)
            negative = drop(embed_items(dict(self.tables), config.schema, drawn))
            terms["auxiliary"] = auxiliary_loss(
                self.next_behaviour, reads, embedded.history, negative, mask, self.axis_name
            )
        return self._score(state, embedded, batch["candidate_mask"], train), terms

    def init_state(self, batch_size: int) -> State:
        """The state of users without history."""
        return initial_state(self.machine(), batch_size)

    def update(self, state: State, event: Batch, mask: Bool[ArrayLike, " B"]) -> State:
        """The state after one more event."""
        schema, event = self.config.schema, as_arrays(event)
        others = [f for f in schema.role("history") if schema.find("candidate", f.name) is None]
        for field in schema.role("history"):
            if field.name not in event:
                raise ValueError(f"event must hold {field.name!r}, got {', '.join(event)}.")
        parts = [embed_items(dict(self.tables), schema, event)]
        parts += [embed_field(dict(self.tables), field, event[field.name]) for field in others]
        return step(
            self.machine(),
            jax.tree.map(jnp.asarray, state),
            jnp.concatenate(parts, axis=-1),
            jnp.asarray(mask),
            induction_slots=self.config.induction_slots,
        )

    def apply_state(self, state: State, batch: Batch) -> Output:
        """Scores each candidate, given a state."""
        schema = self.config.schema
        batch = as_arrays(batch, schema, ("user", "context", "candidate"))
        lead = (batch["candidate_mask"].shape[0], 0)
        dtype = lambda field: jnp.float32 if field.kind == "dense" else jnp.int32
        nothing = {
            f.name: jnp.zeros((*lead, *f.trailing), dtype(f)) for f in schema.role("history")
        }
        batch = {**batch, "history": nothing, "history_mask": jnp.zeros(lead, bool)}
        embedded = embed(dict(self.tables), schema, batch)
        state = jax.tree.map(jnp.asarray, state)
        return self._score(state, embedded, batch["candidate_mask"], train=False)

    def _score(self, state: State, embedded: Embedded, mask: Array, train: bool) -> Output:
        query, pooled, written = embedded.candidate, state.pooled, state.written
        if self.config.pooling == "mean":
            # Every event adds 1 to the usage of the slots, so this counts events.
            count = jnp.maximum(state.usage.sum(axis=-1, keepdims=True), 1.0)
            pooled, written = pooled / count, written / count
        interest = [
            for_each_candidate(pooled, query.shape[1]),
            look_up(self.machine(), state, query),
            query * written[:, None],
        ]
        if self.config.induction_units:
            everywhere = jnp.ones(state.channels.shape[:2], bool)
            like = self.query(query)
            interest.append(self.attention(like, state.channels, everywhere, mask, train=train))
        interest = jnp.concatenate(interest, axis=-1)
        x = tower_input(embedded, interest, product=self.config.product)
        logit = self.tower(x, mask, train=train)
        return Output(logit, {self.config.schema.tasks[0]: logit})
