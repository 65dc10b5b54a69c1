r"""The generator: an ordered slate from the candidates, in one pass.

Wang et al., "Do Not Wait: Learning Re-Ranking Model Without User Feedback At Serving Time in
E-Commerce" (LAST), RecSys 2024, https://arxiv.org/abs/2406.14004, after CMR,
https://arxiv.org/abs/2306.05118.

A policy pi(slate | request) = prod_t pi(l_t | l_<t). A set encoder reads the candidates x_n and a
pointer decoder chooses them one by one (`kernels.pointer_decode` has its equations):

    e_n = relu(W_e x_n + b_e)        h_0 = relu(W_s sum_n e_n + b_s)
    h_t = GRU([x_{l_{t-1}}, attention over e], h_{t-1})
    pi(l_t = n) = softmax_n mean_f v_f . tanh(W1_f e_n + W2_f h_t + b_f)   over what is left

It needs no feedback to learn: a slate l is drawn, an evaluator says how much better than another
slate each of its slots is, and

    loss = -sum_t A_t log pi(l_t)        A_t = sum_{k >= t} discount^(k-t) advantage_k

Differs from the authors' code: slates may be shorter than the list of candidates; padding is seen
nowhere; the loss takes the softmax over what is left, not over everything; the linear map of the
decoder's input is part of the gates that follow it; what attention finds is weighed by a softmax
(`attention="raw"` is theirs).
Shapes: `B` requests, `N` candidates, `S` slates per request, `M` slots, `D` width of a candidate,
`A` of an encoding, `H` of the state.
"""

import dataclasses
from typing import NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray
import numpy as np

from ...kernels.pointer_decode import (
    Context,
    Decoded,
    Direction,
    Request,
    Weights,
    pointer_decode,
    pointer_log_probability,
)
from ..checks import require_choice, require_positive, require_probability
from ..contract import Aux, Batch, Requirements, Slate, Variables
from ..embeddings import (
    Pooling,
    as_arrays,
    dropout,
    embed,
    init_variables,
    pool,
    read_tables,
    tower_input,
)
from ..features import Schema
from ..losses import in_training
from ..recurrence import GATE_BIAS

KIND = "generator"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters of the generator; the defaults are the authors' sizes.

    Attributes:
      schema: what the batches hold.
      slots: M, length of the slates.
      encoder_units: width of an encoding.
      hidden_units: width of the decoder's state.
      heads, head_units: of the pointer.
      pooling: whether the first state sees the sum of the encodings, or their mean.
      attention: whether attention over the encodings is a "softmax" or the "raw" scores.
      discount: of later slots' advantages.
      embedding_dropout: share of embedding values dropped in training.
    """

    schema: Schema
    slots: int = 10
    encoder_units: int = 200
    hidden_units: int = 32
    heads: int = 2
    head_units: int = 200
    pooling: Pooling = "sum"
    attention: Context = "softmax"
    discount: float = 0.3
    embedding_dropout: float = 0.0

    def __post_init__(self):
        require_positive(self, "slots", "encoder_units", "hidden_units", "heads", "head_units")
        require_choice(self, "pooling", ("sum", "mean"))
        require_choice(self, "attention", ("softmax", "raw"))
        require_probability(self, "embedding_dropout")
        if not 0 <= self.discount <= 1:
            raise ValueError(f"Config.discount must be in [0, 1], got {self.discount}.")


class Encoded(NamedTuple):
    """A request as the decoder gets it. LAST moves `state` and `items`, and nothing else."""

    state: Float[Array, "B H"]
    items: Float[Array, "B N A"]
    rows: Float[Array, "B N D"]
    mask: Bool[Array, "B N"]


def requirements(config: Config) -> Requirements:
    """Candidates."""
    del config
    return Requirements()


def init(key: PRNGKeyArray, config: Config) -> Variables:
    """Fresh variables: whole tables, encoder, decoder."""
    return init_variables(key, Generator(config), config.schema)


def apply(variables: Variables, config: Config, batch: Batch) -> Slate:
    """The slate that is chosen greedily. Pure."""
    return cast(Slate, Generator(config).apply(variables, batch))


def encode(variables: Variables, config: Config, batch: Batch) -> Encoded:
    """What is the same for every slate of a request. Pure."""
    return cast(Encoded, Generator(config).apply(variables, batch, method="encode"))


def decode(
    variables: Variables,
    config: Config,
    encoded: Encoded,
    *,
    direction: Encoded | None = None,
    steps: Float[Array, " S"] | None = None,
    gumbel: Float[Array, "B S M N"] | None = None,
    temperature: float = 1.0,
) -> Decoded:
    """One slate for every step along `direction`; see `kernels.pointer_decode`. Pure."""
    module = Generator(config)
    arguments = (encoded, direction, steps, gumbel)
    return cast(
        Decoded, module.apply(variables, *arguments, temperature=temperature, method="decode")
    )


def log_probability(
    variables: Variables, config: Config, encoded: Encoded, order: Int[Array, "B S M"]
) -> Float[Array, "B S M"]:
    """log pi of every choice of given slates. Pure, and differentiable by `encoded` too."""
    return cast(Array, Generator(config).apply(variables, encoded, order, method="log_probability"))


def loss(
    variables: Variables,
    config: Config,
    batch: Batch,
    *,
    key: PRNGKeyArray,
    axis_name: str | None = None,
) -> tuple[Float[Array, ""], Aux]:
    """Policy gradient: -sum_t A_t log pi(l_t), averaged over the requests that have candidates.

    `batch["slate"]` holds "order" (B, M), drawn slates, and "advantage" (B, M), what each slot
    gained.
    """
    batch = as_arrays(batch)
    order, advantage = batch["slate"]["order"], batch["slate"]["advantage"]
    logp, statistics = in_training(
        Generator(config, axis_name), variables, batch, key, method="of_batch"
    )
    real = order >= 0
    credit = reward_to_go(jnp.where(real, advantage, 0.0), config.discount)
    each = -jnp.where(real, credit * logp, 0.0).sum(axis=1)
    total, count = each.sum(), real.any(axis=1).sum(dtype=jnp.float32)
    if axis_name is not None:
        total, count = jax.lax.psum((total, count), axis_name)
    value = total / jnp.maximum(count, 1.0)
    return value, Aux(statistics, {"policy_gradient": value})


class Generator(nn.Module):
    """Set encoder and pointer decoder."""

    config: Config
    axis_name: str | None = None

    def setup(self):
        """All that has parameters."""
        config, glorot = self.config, nn.initializers.glorot_uniform(batch_axis=0)
        heads, units, width = config.heads, config.hidden_units, config.head_units
        self.tables = read_tables(self, config.schema)
        self.encoder = nn.Dense(config.encoder_units)
        self.start = nn.Dense(units)
        self.key = self.param("key", glorot, (heads, config.encoder_units, width))
        self.context = self.param("context", glorot, (heads, config.encoder_units, 3 * units))
        self.row = nn.Dense(3 * units, use_bias=False)
        flat = nn.initializers.glorot_uniform()
        biases = jnp.repeat(jnp.array(list(GATE_BIAS.values())), units)
        self.weights = Weights(
            self.param("query", glorot, (heads, units, width)),
            self.param("query_bias", nn.initializers.zeros, (heads, width)),
            self.param("score", nn.initializers.normal(width**-0.5), (heads, width)),
            self.param("recurrent", flat, (units, 3 * units)),
            self.param("bias", lambda key: biases),
        )

    def __call__(self, batch: Batch) -> Slate:
        """The greedy slate."""
        found = self.decode(self.encode(batch))
        return Slate(found.order[:, 0], found.log_probability[:, 0])

    def encode(self, batch: Batch, *, train: bool = False) -> Encoded:
        """Candidates and request, encoded."""
        config, batch = self.config, as_arrays(batch)
        embedded = embed(dict(self.tables), config.schema, batch)
        embedded = dropout(embedded, config.embedding_dropout, train=train)
        mask = batch["candidate_mask"]
        rows = tower_input(embedded, jnp.zeros((*mask.shape, 0)), product=False)
        items = nn.relu(self.encoder(rows))
        state = nn.relu(self.start(pool(items, mask, config.pooling)))
        return Encoded(state, items, rows, mask)

    def request(self, encoded: Encoded) -> Request:
        """The linear maps that every slot would repeat."""
        heads = lambda kernel: jnp.einsum("bna,haw->bhnw", encoded.items, kernel)
        return Request(encoded.state, heads(self.key), heads(self.context), self.row(encoded.rows))

    def decode(
        self,
        encoded: Encoded,
        direction: Encoded | None = None,
        steps: Float[Array, " S"] | None = None,
        gumbel: Float[Array, "B S M N"] | None = None,
        *,
        temperature: float = 1.0,
    ) -> Decoded:
        """One slate for every step along the direction."""
        return pointer_decode(
            self.request(encoded),
            self.weights,
            encoded.mask,
            slots=self.config.slots,
            # The maps are linear: those of the direction are the direction of those.
            direction=None if direction is None else Direction(self.request(direction)),
            steps=steps,
            noise=gumbel,
            temperature=temperature,
            context=self.config.attention,
        )

    def log_probability(
        self, encoded: Encoded, order: Int[Array, "B S M"]
    ) -> Float[Array, "B S M"]:
        """log pi of every choice of given slates."""
        return pointer_log_probability(
            self.request(encoded), self.weights, encoded.mask, order, context=self.config.attention
        )

    def of_batch(self, batch: Batch, *, train: bool = False) -> Float[Array, "B M"]:
        """log pi of the slates that the batch holds."""
        order = batch["slate"]["order"][:, None]
        return self.log_probability(self.encode(batch, train=train), order)[:, 0]


def reward_to_go(advantage: Float[Array, "*lead M"], discount: float) -> Float[Array, "*lead M"]:
    """A_t = sum_{k >= t} discount^(k-t) advantage_k: a choice answers for what follows it."""
    apart = np.arange(advantage.shape[-1])
    apart = apart[:, None] - apart[None]  # (k, t)
    share = np.where(apart >= 0, float(discount) ** np.maximum(apart, 0), 0.0)
    return advantage @ jnp.asarray(share, jnp.float32)
