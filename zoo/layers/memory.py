r"""The memory of MIMN: a neural Turing machine that reads events one by one.

Pi et al., "Practice on Long Sequential User Behavior Modeling for Click-Through Rate Prediction",
KDD 2019, sections 4.2 and 4.3, https://arxiv.org/abs/1905.09248, after Graves et al., "Neural
Turing Machines", 2014, https://arxiv.org/abs/1410.5401. `zoo.mimn` has the equations, and says
where they differ from the paper and from the authors' code.

Which options are on is told by the parameters that there are. Everything is float32.
Shapes: `B` users, `L` events, `C` candidates, `D` width of an item, `E` of an event, `m` slots,
`H` controller, `I` channel.
"""

from typing import Any, Literal, NamedTuple
import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
import numpy as np

from .heads import Params, addressing, head_outputs, shift_and_sharpen, transfer
from .losses import mean_over
from .recurrence import GATE_BIAS
from .tower import row

KEEP = 3.0
NOISE = 1e-5

Regularisation = Literal["paper", "release", "none"]


class State(NamedTuple):
    """The state of a user, however long the history: about 400 numbers with the defaults.

    Attributes:
      memory: M.
      channels: S, of the memory induction unit.
      controller: h.
      read: r, what the read head found last.
      usage: g, the sum of the write weights.
      written: sum_t add_t / m, the mean over slots of all that was added to them.
      pooled: sum_t e_t.
    """

    memory: Float[Array, "B m D"]
    channels: Float[Array, "B m I"]
    controller: Float[Array, "B H"]
    read: Float[Array, "B D"]
    usage: Float[Array, "B m"]
    written: Float[Array, "B D"]
    pooled: Float[Array, "B E"]


class Machine(nn.Module):
    """Declares the parameters of the machine; the functions below are its arithmetic.

    The columns of `heads`: key and strength to read; key and strength to write; erase; add; and
    with "release" three shifts and a sharpness.
    """

    item: int
    event: int
    slots: int
    controller_units: int
    induction_units: int
    key_memory: bool
    mur: Regularisation

    @nn.compact
    def __call__(self) -> Params:
        """The parameters, and the noise that memories start from."""
        item, event, slots, units = self.item, self.event, self.slots, self.controller_units
        outputs = 4 * item + 2 + (4 if self.mur == "release" else 0)
        glorot, zeros = nn.initializers.glorot_uniform(), nn.initializers.zeros
        spread = nn.initializers.normal(0.5)
        declared = {
            "heads_kernel": (glorot, (units, outputs)),
            "heads_bias": (zeros, (outputs,)),
            "read": (spread, (item,)),
            **_gru_shapes("controller", event + item, units),
        }
        if self.key_memory:
            declared["keys"] = (spread, (slots, item))
        if self.mur == "paper":
            declared["transfer"] = (zeros, (slots, slots, slots))
            declared["keep"] = (nn.initializers.constant(KEEP), ())
        if self.mur == "release":
            declared["heads_usage"] = (glorot, (slots, outputs))
        if self.induction_units:
            declared |= _gru_shapes("induction", event + item, self.induction_units)
        # The same for everybody and for ever: states are stored.
        noise = np.random.RandomState(zlib.crc32(b"memory")).normal(0.0, NOISE, (slots, item))
        params = {name: self.param(name, *how) for name, how in declared.items()}
        return {**params, "noise": jnp.asarray(noise, jnp.float32)}


def _gru_shapes(name: str, inputs: int, units: int) -> dict[str, Any]:
    glorot = nn.initializers.glorot_uniform()
    bias = lambda key, shape: jnp.repeat(jnp.array(list(GATE_BIAS.values())), units)
    return {
        f"{name}_kernel": (glorot, (inputs, 3 * units)),
        f"{name}_recurrent": (glorot, (units, 3 * units)),
        f"{name}_bias": (bias, (3 * units,)),
    }


def initial_state(params: Params, batch_size: Any) -> State:
    """Noise in M, the learned first read, zeros elsewhere; the size may be symbolic (export)."""
    slots, width = params["noise"].shape
    units = params["controller_recurrent"].shape[0]
    channel = params["induction_recurrent"].shape[0] if "induction_recurrent" in params else 0
    zeros = lambda *shape: jnp.zeros((batch_size, *shape), jnp.float32)
    return State(
        memory=zeros(slots, width) + params["noise"][None],
        channels=zeros(slots, channel),
        controller=zeros(units),
        read=zeros(width) + jnp.tanh(params["read"])[None],
        usage=zeros(slots),
        written=zeros(width),
        pooled=zeros(params["controller_kernel"].shape[0] - width),
    )


def encode(
    params: Params,
    state: State,
    events: Float[Array, "B L E"],
    mask: Bool[Array, "B L"],
    *,
    induction_slots: int = 1,
) -> tuple[State, Float[Array, "B L D"]]:
    """The state after the events, and what the read head found at each of them."""

    @jax.checkpoint  # The backward pass keeps a state per event, not what a step computes.
    def body(state, now):
        state = step(params, state, *now, induction_slots=induction_slots)
        return state, state.read

    # The events' share of the GRUs stays inside: reading a precomputed one costs more on a CPU.
    state, reads = jax.lax.scan(body, state, (jnp.moveaxis(events, 1, 0), mask.T))
    return state, jnp.moveaxis(reads, 0, 1)


def step(
    params: Params,
    state: State,
    event: Float[Array, "B E"],
    mask: Bool[Array, " B"],
    *,
    induction_slots: int = 1,
) -> State:
    """One event: address, read, write. Masked users keep the whole state."""
    slots, width = params["noise"].shape
    event = jnp.where(mask[:, None], event, 0.0)
    controller = gru(params, "controller", (event, state.read), state.controller)
    heads = head_outputs(params, controller, state.usage)
    *pairs, erase, add, rest = jnp.split(heads, np.cumsum([width, 1, width, 1, width, width]), -1)
    keys, strengths = jnp.stack(pairs[::2], axis=1), jnp.stack(pairs[1::2], axis=1)
    weights = addressing(params, keys, strengths, state.memory)
    reading, writing = weights[:, 0], weights[:, 1]
    if "transfer" in params:
        writing = transfer(params, writing, state.usage)
    elif "heads_usage" in params:
        writing = shift_and_sharpen(writing, rest[:, :3], rest[:, 3:])
    channels = state.channels
    if "induction_kernel" in params:
        channels = induce(params, event, reading, state, induction_slots)
    erase, add = nn.sigmoid(erase), jnp.tanh(add)
    kept = 1.0 - writing[..., None] * erase[:, None]
    new = State(
        memory=kept * state.memory + writing[..., None] * add[:, None],
        channels=channels,
        controller=controller,
        read=(reading[..., None] * state.memory).sum(axis=1),
        usage=state.usage + writing,
        written=state.written + add / slots,  # as the write weights sum to 1
        pooled=state.pooled + event,
    )
    has_one = lambda x: mask.reshape(-1, *(1,) * (x.ndim - 1))
    return jax.tree.map(lambda new, old: jnp.where(has_one(new), new, old), new, state)


def look_up(params: Params, state: State, query: Float[Array, "B C D"]) -> Float[Array, "B C D"]:
    """r_q: what the read head would find, were the candidate the next event."""
    lead, width = query.shape[:2], query.shape[-1]
    wide = lambda x: jnp.broadcast_to(x[:, None], (*lead, x.shape[-1]))
    missing = jnp.zeros((*lead, state.pooled.shape[-1] - width))  # what only events have
    inputs = (query, missing, wide(state.read))
    controller = gru(params, "controller", inputs, wide(state.controller))
    heads = head_outputs(params, controller, wide(state.usage), width + 1)
    reading = addressing(params, heads[..., :width], heads[..., width:], state.memory)
    return reading @ state.memory


def gru(
    params: Params,
    name: str,
    inputs: tuple[Float[Array, "*lead _"], ...],
    hidden: Float[Array, "*lead H"],
) -> Float[Array, "*lead H"]:
    """(1 - u) h + u tanh(W x + b + r * (U h)), with u, r = sigmoid(W x + b + U h)."""
    kernel, recurrent, bias = (params[f"{name}_{x}"] for x in ("kernel", "recurrent", "bias"))
    x = jnp.concatenate(inputs, axis=-1) @ kernel + row(bias, hidden)
    x_update, x_reset, x_new = jnp.split(x, 3, axis=-1)
    h_update, h_reset, h_new = jnp.split(hidden @ recurrent, 3, axis=-1)
    update = nn.sigmoid(x_update + h_update)
    new = jnp.tanh(x_new + nn.sigmoid(x_reset + h_reset) * h_new)
    return hidden + update * (new - hidden)


def induce(
    params: Params,
    event: Float[Array, "B E"],
    reading: Float[Array, "B m"],
    state: State,
    k: int,
) -> Float[Array, "B m I"]:
    """S(i) <- GRU([e, M(i)], S(i)) for the k slots that the read head looks at most."""
    slot = jnp.arange(reading.shape[-1])
    # Ranks without a sort; of equal slots the first comes first.
    mine, other = reading[:, :, None], reading[:, None, :]
    earlier = (slot[None, :] < slot[:, None])[None]
    rank = ((other > mine) | ((other == mine) & earlier)).sum(axis=-1)
    chosen = (rank[:, None] == jnp.arange(k)[None, :, None])[..., None]  # (B, k, m, 1)
    # Rows of one matrix: the extra axis would cost a transposition.
    pick = lambda x: jnp.where(chosen, x[:, None], 0.0).sum(axis=2).reshape(-1, x.shape[-1])
    inputs = (jnp.repeat(event, k, axis=0), pick(jax.lax.stop_gradient(state.memory)))
    moved = gru(params, "induction", inputs, pick(state.channels))
    moved = moved.reshape(-1, k, 1, moved.shape[-1])
    return jnp.where(chosen.any(axis=1), jnp.where(chosen, moved, 0.0).sum(axis=1), state.channels)


def unequal_usage(
    usage: Float[Array, "B m"], candidate_mask: Bool[Array, "B C"], axis_name: str | None = None
) -> Float[Array, ""]:
    """sum_i (g(i) - mean g)^2, averaged over the requests of all devices that have candidates."""
    each = jnp.square(usage - usage.mean(axis=-1, keepdims=True)).sum(axis=-1)
    real = candidate_mask.any(axis=-1)
    return mean_over(jnp.where(real, each, 0.0), real, axis_name)
