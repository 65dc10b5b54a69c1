r"""Seq2Slate: a pointer network that writes the slate item by item.

Bello et al., "Seq2Slate: Re-ranking and Slate Optimization with RNNs", 2018,
https://arxiv.org/abs/1810.02019.

An LSTM reads the candidates x_n in upstream order; another one points at what comes next, knowing
what stands above it:

    e_1, ..., e_N = LSTM_e(x_1, ..., x_N)          d_0 = LSTM_e's last state
    d_t = LSTM_d(x_{l_{t-1}}, d_{t-1})             in the first slot a learned vector instead of x
    p(l_t = n) = softmax_n v . tanh(W_e e_n + W_d d_t)                   over what is left

    loss = -sum_t 1 / log2(t + 1) sum_n a_tn log p(l_t = n)              a_t = y / sum y of those

over the candidates that were shown: every slot wants any of the clicked ones that are still left,
and costs nothing once there are none. Lists without a click weigh nothing. In training as in
serving l_t is what the model finds most probable; no gradient passes through that choice.

Differs from the paper: no REINFORCE (`zoo.rerank.generator` has it), no hinge loss, and no slate
is drawn. Differs from the authors' toolkit, whose candidates do not see each other before they are
chosen, and whose a_t is a softmax of the labels, so that it wants what was not clicked as well.
Shapes: `B` requests, `N` candidates, `M` slots, `H` width of a state, `G` = 4 H.
"""

import dataclasses
from typing import Literal, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray
import numpy as np

from ..batch import Batch
from ..checks import require_choices, require_fields, require_positive, require_probability
from ..contract import Aux, Requirements, Slate, Variables
from ..embeddings import as_arrays, dropout, embed, init_variables, read_tables
from ..features import Schema
from ..layers.losses import in_training, mean_over
from .listwise import Shown, item_rows, log_softmax_over, shown

KIND = "generator"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters of Seq2Slate.

    Attributes:
      schema: what the batches hold; its first task is the label.
      slots: M, length of the slates.
      units: width of the states of both LSTMs.
      pointer_units: width of the layer in which candidates and state meet.
      forcing: which items stand above a slot in training: the "own" choices of the model, or, as
        long as there are any, the "clicks" of the list (the most probable one first).
      embedding_dropout: share of embedding values dropped in training.
    """

    schema: Schema
    slots: int = 10
    units: int = 64
    pointer_units: int = 64
    forcing: Literal["own", "clicks"] = "own"
    embedding_dropout: float = 0.0

    def __post_init__(self):
        require_fields(self)
        require_positive(self, "slots", "units", "pointer_units")
        require_choices(self)
        require_probability(self, "embedding_dropout")


class Steps(NamedTuple):
    """Steps of a decoding: choices, and before each the candidates left and log probabilities."""

    order: Int[Array, "B M"]
    left: Bool[Array, "B M N"]
    log_share: Float[Array, "B M N"]


class State(NamedTuple):
    """Of an LSTM."""

    memory: Float[Array, "B H"]
    hidden: Float[Array, "B H"]


def requirements(config: Config) -> Requirements:
    """Lists with labels."""
    del config
    return Requirements()


def init(key: PRNGKeyArray, config: Config) -> Variables:
    """Fresh variables: whole tables, encoder, decoder, pointer."""
    return init_variables(key, Seq2Slate(config), config.schema)


def apply(variables: Variables, config: Config, batch: Batch) -> Slate:
    """The slate that is chosen greedily. Pure."""
    return cast(Slate, Seq2Slate(config).apply(variables, batch))


def loss(
    variables: Variables,
    config: Config,
    batch: Batch,
    *,
    key: PRNGKeyArray,
    axis_name: str | None = None,
) -> tuple[Float[Array, ""], Aux]:
    """Cross-entropy of the clicks that are left, slot by slot; mean of the lists with a click."""
    batch = as_arrays(batch)
    steps, statistics = in_training(
        Seq2Slate(config, axis_name), variables, batch, key, method="decode"
    )
    each, clicked = slate_cross_entropy(steps, shown(batch, config.schema.tasks[0]))
    value = mean_over(each, clicked.astype(jnp.float32), axis_name)
    return value, Aux(statistics, {"cross_entropy": value})


def slate_cross_entropy(steps: Steps, saw: Shown) -> tuple[Float[Array, " B"], Bool[Array, " B"]]:
    """The loss of each list, and whether it has a click."""
    clicks = saw.weight * saw.label
    wanted = jnp.where(steps.left, clicks[:, None], 0.0)
    total = wanted.sum(axis=2, keepdims=True)
    wanted /= jnp.where(total > 0, total, 1.0)
    discount = 1 / np.log2(np.arange(steps.order.shape[1]) + 2)
    each = -(wanted * steps.log_share).sum(axis=2) @ jnp.asarray(discount, jnp.float32)
    return each, (clicks > 0).any(axis=1)


class Seq2Slate(nn.Module):
    """Encoder and pointer decoder."""

    config: Config
    axis_name: str | None = None

    def __call__(self, batch: Batch) -> Slate:
        """The greedy slate."""
        steps = self.decode(batch)
        at = jnp.maximum(steps.order, 0)[..., None]
        return Slate(steps.order, jnp.take_along_axis(steps.log_share, at, axis=2)[..., 0])

    @nn.compact
    def decode(self, batch: Batch, *, train: bool = False) -> Steps:
        """Fills slot by slot; in training with what was shown alone."""
        config, batch = self.config, as_arrays(batch)
        embedded = embed(read_tables(self, config.schema), config.schema, batch)
        embedded = dropout(embedded, config.embedding_dropout, train=train)
        left = mask = batch["candidate_mask"]
        wish = None
        if train:
            saw = shown(batch, config.schema.tasks[0])
            left = saw.mask
            wish = saw.label * saw.weight > 0 if config.forcing == "clicks" else None
        x = item_rows(embedded, mask)
        glorot, units = nn.initializers.glorot_uniform(), config.units
        recurrent = lambda name: self.param(name, glorot, (units, 4 * units))
        encoded, state = read(
            nn.Dense(4 * units, name="encoder")(x), mask, recurrent("encoder_recurrent")
        )
        point = Pointer(
            items=nn.Dense(config.pointer_units, use_bias=False, name="key")(encoded),
            inputs=nn.Dense(4 * units, name="decoder")(x),
            recurrent=recurrent("decoder_recurrent"),
            query=self.param("query", glorot, (units, config.pointer_units)),
            score=self.param("score", nn.initializers.normal(0.1), (config.pointer_units,)),
        )
        first = self.param("first", nn.initializers.normal(0.1), (4 * units,))
        return write(point, state, first, left, wish, config.slots)


class Pointer(NamedTuple):
    """A decoder: the candidates as its LSTM and its pointer see them, and its weights."""

    items: Float[Array, "B N A"]
    inputs: Float[Array, "B N G"]
    recurrent: Float[Array, "H G"]
    query: Float[Array, "H A"]
    score: Float[Array, " A"]


def read(
    inputs: Float[Array, "B N G"], mask: Bool[Array, "B N"], recurrent: Float[Array, "H G"]
) -> tuple[Float[Array, "B N H"], State]:
    """Every state of the encoder, and its last; padding leaves the state alone."""

    def step(state, now):
        gates, real = now
        moved = lstm(state, gates + state.hidden @ recurrent)
        state = jax.tree.map(lambda new, old: jnp.where(real[:, None], new, old), moved, state)
        return state, state.hidden

    zeros = jnp.zeros_like(inputs[:, 0, : recurrent.shape[0]])
    state, hidden = jax.lax.scan(step, State(zeros, zeros), (inputs.swapaxes(0, 1), mask.T))
    return hidden.swapaxes(0, 1), state


def write(
    point: Pointer,
    state: State,
    first: Float[Array, " G"],
    left: Bool[Array, "B N"],
    wish: Bool[Array, "B N"] | None,
    slots: int,
) -> Steps:
    """Chooses slot by slot the most probable of what is left; of what is wished for, if any is."""

    def step(carry, _):
        state, gates, left = carry
        state = lstm(state, gates + state.hidden @ point.recurrent)
        score = jnp.tanh(point.items + (state.hidden @ point.query)[:, None]) @ point.score
        eligible = left
        if wish is not None:
            wished = left & wish
            eligible = jnp.where(wished.any(axis=1, keepdims=True), wished, left)
        best = jnp.argmax(jnp.where(eligible, score, -jnp.inf), axis=1)
        chosen = jnp.where(left.any(axis=1), best, -1).astype(jnp.int32)
        picked = jax.nn.one_hot(chosen, left.shape[1], dtype=bool)
        gates = jnp.where(picked[..., None], point.inputs, 0.0).sum(axis=1)
        return (state, gates, left & ~picked), (chosen, left, log_softmax_over(score, left))

    gates = jnp.zeros_like(point.inputs[:, 0]) + first[None]
    _, steps = jax.lax.scan(step, (state, gates, left), length=slots)
    return Steps(*(jnp.moveaxis(x, 0, 1) for x in steps))


def lstm(state: State, gates: Float[Array, "B G"]) -> State:
    """The next state, from [input, forget, new, output]; biased to keep what it has."""
    take, keep, new, show = jnp.split(gates, 4, axis=-1)
    memory = nn.sigmoid(keep + 1.0) * state.memory + nn.sigmoid(take) * jnp.tanh(new)
    return State(memory, nn.sigmoid(show) * jnp.tanh(memory))
