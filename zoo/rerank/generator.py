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

With `preferences` (CMR), how much each objective counts is part of the request, and what encodes
and asks is a blend of weights, W_c + sum_k w_k W_k, so that it may change while it serves.

Differs from the authors' code: slates may be shorter than the list of candidates; padding is seen
nowhere; the loss takes the softmax over what is left, not over everything; the linear map of the
decoder's input is part of the gates that follow it; what attention finds is weighed by a softmax
(`attention="raw"` is theirs); their layer that makes weights from preferences is written as the
blend that it is.
Shapes: `B` requests, `N` candidates, `S` slates per request, `M` slots, `D` width of a candidate,
`A` of an encoding, `H` of the state, `W` of a head, `K` preferences.
"""

import dataclasses
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt32

from ...kernels.pointer_decode import (
    Context,
    Decoded,
    Direction,
    Request,
    Rules,
    Weights,
    pointer_decode,
    pointer_log_probability,
)
from ..batch import Batch
from ..checks import require_choices, require_positive, require_probability, require_tuple
from ..contract import Aux, Requirements, Slate, Variables
from ..embeddings import (
    Embedded,
    Pooling,
    as_arrays,
    embed,
    init_variables,
    pool,
    read_tables,
    require_drawn,
)
from ..features import Schema
from ..layers.losses import in_training, mean_over
from ..layers.recurrence import GATE_BIAS
from . import constraints
from .listwise import item_rows
from .rewards import reward_to_go

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
      preferences: names of the objectives whose weights a batch brings as "preference" (B, K).
      scatter, quota: hard constraints, see `constraints`.
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
    preferences: tuple[str, ...] = ()
    scatter: tuple[str, ...] = ()
    quota: tuple[str, ...] = ()
    embedding_dropout: float = 0.0

    def __post_init__(self):
        require_positive(self, "slots", "encoder_units", "hidden_units", "heads", "head_units")
        require_choices(self)
        require_probability(self, "embedding_dropout")
        if not 0 <= self.discount <= 1:
            raise ValueError(f"Config.discount must be in [0, 1], got {self.discount}.")
        require_tuple(self, "preferences")
        constraints.check(self)


class Encoded(NamedTuple):
    """A request as the decoder gets it: what LAST moves, candidates, and what is asked of slates.

    `query` is the request's own where preferences decide it.
    """

    state: Float[Array, "B H"]
    items: Float[Array, "B N A"]
    rows: Float[Array, "B N D"]
    mask: Bool[Array, "B N"]
    query: Float[Array, "B h H W"] | None
    rules: Rules | None


MOVED = ("state", "items")


def requirements(config: Config) -> Requirements:
    """Candidates, and preferences where they are asked for."""
    return Requirements(preferences=len(config.preferences))


def init(key: PRNGKeyArray, config: Config) -> Variables:
    """Fresh variables: whole tables, encoder, decoder."""
    return init_variables(key, Generator(config), config.schema, requirements(config))


def apply(variables: Variables, config: Config, batch: Batch) -> Slate:
    """The slate that is chosen greedily. Pure."""
    return cast(Slate, Generator(config).apply(variables, batch))


def encode(variables: Variables, config: Config, batch: Batch) -> Encoded:
    """The encoding that all slates of a request share. Pure."""
    return cast(Encoded, Generator(config).apply(variables, batch, method="encode"))


def decode(
    variables: Variables,
    config: Config,
    encoded: Encoded,
    *,
    direction: Encoded | Direction | None = None,
    steps: Float[Array, " S"] | None = None,
    noise: Float[Array, "B S M N"] | UInt32[Array, " B"] | None = None,
    temperature: float = 1.0,
) -> Decoded:
    """One slate for every step along `direction`; see `kernels.pointer_decode`. Pure.

    A direction of activations is an `Encoded`, of which `MOVED` counts; `deltas` makes those of
    parameters.
    """
    module, arguments = Generator(config), (encoded, direction, steps, noise)
    return cast(
        Decoded, module.apply(variables, *arguments, temperature=temperature, method="decode")
    )


def parts(variables: Variables, config: Config, encoded: Encoded) -> tuple[Request, Weights]:
    """Inputs of the kernel: all linear maps of a request's candidates, and the decoder."""
    return cast(Any, Generator(config).apply(variables, encoded, method="parts"))


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
    """Policy gradient on `batch["slate"]`, see `policy_loss`."""
    require_drawn(batch, "slate")
    logp, statistics = in_training(
        Generator(config, axis_name), variables, batch, key, method="of_batch"
    )
    value = policy_loss(logp, batch, config.discount, axis_name)
    return value, Aux(statistics, {"policy_gradient": value})


def policy_loss(
    logp: Float[Array, "B M"], batch: Batch, discount: float, axis_name: str | None
) -> Float[Array, ""]:
    """-sum_t A_t log pi(l_t) of `batch["slate"]`, averaged over the requests that have candidates.

    Empty slots earn nothing.
    """
    order, advantage = jnp.asarray(batch["slate"]["order"]), batch["slate"]["advantage"]
    real = order >= 0
    credit = reward_to_go(jnp.where(real, jnp.asarray(advantage), 0.0), discount)
    each = -jnp.where(real, credit * logp, 0.0).sum(axis=1)
    return mean_over(each, real.any(axis=1), axis_name)


class Generator(nn.Module):
    """Set encoder and pointer decoder."""

    config: Config
    axis_name: str | None = None

    def setup(self):
        """All that has parameters."""
        config, glorot = self.config, nn.initializers.glorot_uniform(batch_axis=0)
        heads, units, width = config.heads, config.hidden_units, config.head_units
        self.tables = read_tables(self, config.schema)
        self.dropped = nn.Dropout(config.embedding_dropout)
        objectives = len(config.preferences)
        self.encoder = Blend(config.encoder_units, objectives)
        self.start = Blend(units, objectives)
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
        if objectives:
            deltas = nn.initializers.glorot_uniform(batch_axis=(0, 1))
            shape = (objectives, heads, units, width)
            self.preferred_query = self.param("preferred_query", deltas, shape)

    def __call__(self, batch: Batch) -> Slate:
        """The greedy slate."""
        found = self.decode(self.encode(batch))
        return Slate(found.order[:, 0], found.log_probability[:, 0])

    def encode(self, batch: Batch, *, train: bool = False) -> Encoded:
        """Candidates and request, encoded."""
        config = self.config
        batch = as_arrays(batch, config.schema, ("user", "context", "candidate"))
        embedded = embed(dict(self.tables), config.schema, batch)
        embedded = Embedded(*(self.dropped(part, deterministic=not train) for part in embedded))
        mask = batch["candidate_mask"]
        rows = item_rows(embedded, mask)
        preference = query = None
        if config.preferences:
            preference = _preference(batch, config)
            query = jnp.einsum("bk,khuw->bhuw", preference, self.preferred_query)
            query = query + self.weights.query[None]
        items = nn.relu(self.encoder(rows, preference))
        pooled = pool(items, mask, config.pooling)
        state = nn.relu(self.start(pooled[:, None], preference)[:, 0])
        return Encoded(state, items, rows, mask, query, constraints.rules_of(config, batch))

    def request(self, encoded: Encoded) -> Request:
        """The linear maps that every slot would repeat."""
        heads = lambda kernel: jnp.einsum("bna,haw->bhnw", encoded.items, kernel)
        return Request(encoded.state, heads(self.key), heads(self.context), self.row(encoded.rows))

    def parts(self, encoded: Encoded) -> tuple[Request, Weights]:
        """Inputs of the kernel for a request."""
        if encoded.query is None:
            return self.request(encoded), self.weights
        size = encoded.mask.shape[0]
        own = jax.tree.map(lambda x: jnp.broadcast_to(x, (size, *x.shape)), self.weights)
        return self.request(encoded), own._replace(query=encoded.query)

    def decode(
        self,
        encoded: Encoded,
        direction: Encoded | Direction | None = None,
        steps: Float[Array, " S"] | None = None,
        noise: Float[Array, "B S M N"] | UInt32[Array, " B"] | None = None,
        *,
        temperature: float = 1.0,
    ) -> Decoded:
        """One slate for every step along the direction."""
        if isinstance(direction, Encoded):
            # The maps are linear: those of the direction are the direction of those.
            direction = Direction(self.request(direction))
        return pointer_decode(
            *self.parts(encoded),
            encoded.mask,
            slots=self.config.slots,
            direction=direction,
            steps=steps,
            noise=noise,
            rules=encoded.rules,
            temperature=temperature,
            context=self.config.attention,
        )

    def log_probability(
        self, encoded: Encoded, order: Int[Array, "B S M"]
    ) -> Float[Array, "B S M"]:
        """log pi of every choice of given slates."""
        return pointer_log_probability(
            *self.parts(encoded),
            encoded.mask,
            order,
            rules=encoded.rules,
            context=self.config.attention,
        )

    def of_batch(self, batch: Batch, *, train: bool = False) -> Float[Array, "B M"]:
        """log pi of the slates that the batch holds."""
        order = jnp.asarray(batch["slate"]["order"])[:, None]
        return self.log_probability(self.encode(batch, train=train), order)[:, 0]


class Blend(nn.Module):
    """x W_c + b_c + sum_k w_k (x W_k + b_k): a dense layer that preferences steer."""

    units: int
    objectives: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "B n D"], preference: Float[Array, "B K"] | None
    ) -> Float[Array, "B n U"]:
        """The blend of each request; a plain layer where there are no objectives."""
        found = nn.Dense(self.units, name="common")(x)
        if preference is None:
            return found
        each = nn.DenseGeneral((self.objectives, self.units), name="own")(x)
        return found + jnp.einsum("bk,bnku->bnu", preference, each)


def _preference(batch: Batch, config: Config) -> Float[Array, "B K"]:
    if "preference" not in batch:
        raise ValueError(
            f"A batch needs preference (B, {len(config.preferences)}), the weights of "
            f"{', '.join(config.preferences)}."
        )
    found, shape = jnp.asarray(batch["preference"]), (None, len(config.preferences))
    if found.ndim != 2 or found.shape[1] != shape[1]:
        raise ValueError(f"preference must have shape (B, {shape[1]}), got {found.shape}.")
    return found
