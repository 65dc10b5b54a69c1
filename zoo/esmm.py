r"""Entire Space Multi-task Model (ESMM), and the two-task models it is compared with.

Ma et al., "Entire Space Multi-Task Model: An Effective Approach for Estimating Post-Click
Conversion Rate", SIGIR 2018, https://arxiv.org/abs/1804.07931.

A purchase needs a click, so only clicked impressions say whether a click converts; but the model
must judge impressions nobody has clicked yet. ESMM never trains the conversion rate on clicks
alone: it is the factor that makes up the difference between two things seen on every impression,

    P(click, conversion | x) = P(click | x) * P(conversion | click, x)
            pCTCVR           =     pCTR     *         pCVR

    pCTR = sigmoid(a(x)),   pCVR = sigmoid(b(x)),   x = [user, context, q, sum_t k_t]
    loss = BCE(y, pCTR) + BCE(y * z, pCTCVR)   over all impressions, y = click, z = conversion

a and b are towers over shared embeddings. The losses are computed from log-odds, never from
probabilities: those of pCTCVR are -log(e^-a + e^-b + e^(-a-b)).

Tasks: the schema's first is the click, its second the conversion, a label of the impression and
not of the click. `Output.tasks` holds the log-odds of both over all impressions (the second is
pCTCVR), `logit` ranks by pCTCVR, and `log_probabilities` holds log pCTR and log pCTCVR by task,
and log pCVR as "<conversion>_given_<click>": it is to be judged on clicked impressions.

`mode` chooses the others. They train b on the clicked impressions, where only it is observed:
"click_only" is otherwise ESMM (the paper's base model, with shared embeddings); "shared_bottom"
(Caruana, 1997) also shares the hidden layers but the last; in "mmoe" each task mixes several such
bottoms by a gate of its own (Ma et al., KDD 2018, https://doi.org/10.1145/3219819.3220007).

Differs from the paper: the history is one of the bags; weights of examples. Differs from the
authors' code: the label of pCTCVR is y * z, whatever the column says; log-odds instead of logs of
probabilities; ReLU, as in the paper. `stop_click_gradient` is ours.
Shapes: `B` requests, `C` candidates, `I` width of x, `H` of a bottom, `E` experts.
"""

import dataclasses
from typing import Literal, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from .batch import Batch
from .checks import require_choices, require_fields, require_positive, require_probability
from .contract import Aux, Output, Requirements, Variables
from .embeddings import (
    Pooling,
    as_arrays,
    dropout,
    embed,
    for_each_candidate,
    init_variables,
    pool,
    read_tables,
    tower_input,
)
from .features import Schema
from .layers.losses import click_loss, in_training, label_of
from .layers.tower import Activation, Layers, Tower

KIND = "ranking"

Mode = Literal["esmm", "click_only", "shared_bottom", "mmoe"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters of ESMM; the defaults are the paper's.

    Attributes:
      schema: what the batches hold; its first two tasks are click and conversion.
      mode: "esmm", or what it is compared with.
      tower_units: widths of the hidden layers of each tower, shared ones included.
      activation: of the towers.
      pooling: how the history becomes one vector.
      experts: number of bottoms in mode "mmoe".
      stop_click_gradient: whether the loss of pCTCVR leaves the click tower alone.
      product: whether the towers also see q * v.
      embedding_dropout: share of embedding values dropped in training.
    """

    schema: Schema
    mode: Mode = "esmm"
    tower_units: tuple[int, ...] = (360, 200, 80)
    activation: Activation = "relu"
    pooling: Pooling = "sum"
    experts: int = 4
    stop_click_gradient: bool = False
    product: bool = False
    embedding_dropout: float = 0.0

    def __post_init__(self):
        require_fields(self)
        require_choices(self)
        require_positive(self, "tower_units", "experts")
        require_probability(self, "embedding_dropout")
        tasks, shares = self.schema.tasks, self.mode in ("shared_bottom", "mmoe")
        if len(tasks) < 2:
            raise ValueError(
                f"ESMM needs two tasks in Config.schema: click, conversion; got {tasks}."
            )
        if shares and len(self.tower_units) < 2:
            raise ValueError(
                f"Config.tower_units must name two layers or more in mode {self.mode!r}, which "
                f"shares all but the last, got {self.tower_units}."
            )
        if self.stop_click_gradient and self.mode != "esmm":
            raise ValueError(f"Config.stop_click_gradient needs mode 'esmm', got {self.mode!r}.")


def requirements(config: Config) -> Requirements:
    """Labelled candidates and a history."""
    del config
    return Requirements()


def init(key: PRNGKeyArray, config: Config) -> Variables:
    """Fresh variables: whole tables and the towers."""
    return init_variables(key, ESMM(config), config.schema)


def apply(variables: Variables, config: Config, batch: Batch) -> Output:
    """Scores each candidate. Pure."""
    return cast(Output, ESMM(config).apply(variables, batch))


def loss(
    variables: Variables,
    config: Config,
    batch: Batch,
    *,
    key: PRNGKeyArray,
    axis_name: str | None = None,
) -> tuple[Float[Array, ""], Aux]:
    """Terms "ctr" and "ctcvr" over all impressions; in other modes "ctr" and, of clicks, "cvr"."""
    batch = as_arrays(batch)
    (a, b), statistics = in_training(
        ESMM(config, axis_name), variables, batch, key, method="towers"
    )
    click, conversion = config.schema.tasks[:2]
    y, z = label_of(batch, click), label_of(batch, conversion)
    # Where there was no click nobody can know, and the column may say so by NaN.
    z = jnp.where(y > 0, z, 0.0)
    batch = {**batch, "label": {**batch["label"], conversion: z}}
    weight = batch.get("weight", {}).get(conversion, jnp.ones_like(z))
    terms = {"ctr": click_loss(a, batch, click, axis_name)}
    if config.mode == "esmm":
        bought = {**batch, "label": {conversion: y * z}}
        a = jax.lax.stop_gradient(a) if config.stop_click_gradient else a
        terms["ctcvr"] = click_loss(joint_logit(a, b), bought, conversion, axis_name)
    else:
        clicked = {**batch, "weight": {conversion: y * weight}}
        terms["cvr"] = click_loss(b, clicked, conversion, axis_name)
    total = jnp.sum(jnp.stack(list(terms.values())))
    return total, Aux(statistics, terms)


class ESMM(nn.Module):
    """Figure 2 of the paper: one lookup, two towers, one product."""

    config: Config
    axis_name: str | None = None

    def __call__(self, batch: Batch, *, train: bool = False) -> Output:
        """Scores each candidate."""
        a, b = self.towers(batch, train=train)
        click, conversion = self.config.schema.tasks[:2]
        log_ctr, log_cvr = nn.log_sigmoid(a), nn.log_sigmoid(b)
        both = joint_logit(a, b)
        return Output(
            logit=both,
            tasks={click: a, conversion: both},
            log_probabilities={
                click: log_ctr,
                f"{conversion}_given_{click}": log_cvr,
                conversion: log_ctr + log_cvr,
            },
        )

    @nn.compact
    def towers(
        self, batch: Batch, *, train: bool = False
    ) -> tuple[Float[Array, "B C"], Float[Array, "B C"]]:
        """a and b: log-odds of a click, and of a conversion given a click."""
        config, batch = self.config, as_arrays(batch)
        tables = read_tables(self, config.schema)
        embedded = embed(tables, config.schema, batch)
        embedded = dropout(embedded, config.embedding_dropout, train=train)
        history = embedded.behaviour
        pooled = pool(history, batch["history_mask"], config.pooling)
        interest = for_each_candidate(pooled, embedded.candidate.shape[1])
        x = tower_input(embedded, interest, product=config.product)
        mask, units = batch["candidate_mask"], config.tower_units
        inputs = (x, x)
        if config.mode in ("shared_bottom", "mmoe"):
            inputs, units = self._bottoms(x, mask, train), units[-1:]
        a, b = (
            Tower(units, config.activation, axis_name=self.axis_name, name=name)(
                value, mask, train=train
            )
            for name, value in zip(("click", "conversion"), inputs, strict=True)
        )
        return a, b

    def _bottoms(
        self, x: Float[Array, "B C I"], mask: Bool[Array, "B C"], train: bool
    ) -> tuple[Float[Array, "B C H"], Float[Array, "B C H"]]:
        """Inputs of the two towers: one bottom for both, or a mixture for each."""
        config = self.config

        def bottom(name: str) -> Float[Array, "B C H"]:
            layers = Layers(
                config.tower_units[:-1], config.activation, axis_name=self.axis_name, name=name
            )
            return layers(x, mask, train=train)

        if config.mode == "shared_bottom":
            shared = bottom("bottom")
            return shared, shared
        experts = jnp.stack([bottom(f"expert_{i}") for i in range(config.experts)], axis=2)
        click, conversion = (
            mixture(nn.Dense(config.experts, use_bias=False, name=f"{task}_gate")(x), experts)
            for task in ("click", "conversion")
        )
        return click, conversion


def joint_logit(a: Float[Array, "B C"], b: Float[Array, "B C"]) -> Float[Array, "B C"]:
    """Log-odds of p = sigmoid(a) * sigmoid(b): log p - log(1 - p).

    With log p = -s(-a) - s(-b), s = softplus, and
    log(1 - p) = logsumexp(-a, -b, -a-b) - s(-a) - s(-b), the softplus cancel.
    """
    return -jax.nn.logsumexp(jnp.stack([-a, -b, -a - b]), axis=0)


def mixture(gate: Float[Array, "B C E"], experts: Float[Array, "B C E H"]) -> Float[Array, "B C H"]:
    """sum_e softmax(gate)_e * expert_e."""
    return jnp.einsum("bce,bceh->bch", nn.softmax(gate), experts)
