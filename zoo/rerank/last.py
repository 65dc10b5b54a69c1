r"""LAST: a generator that learns from the request at hand, while it is served.

Wang et al., "Do Not Wait: Learning Re-Ranking Model Without User Feedback At Serving Time in
E-Commerce", RecSys 2024, https://arxiv.org/abs/2406.14004.

The generator G was trained for all requests; this one deserves its own:

    slate = G(request; theta + delta),   delta = argmax of the evaluator's score of that slate

and delta is forgotten with the request. No feedback is waited for and no parameter is touched: the
functions here are pure, and a request's slate does not depend on its batch mates.

`last_parallel`: one greedy slate, one gradient d of  -sum_t A_t log pi(l_t)  with A_t what the
evaluator sees each slot gain over the upstream order, then S slates at once along d, at steps of
both signs and many sizes, and the evaluator picks among them and the greedy one. A step of s moves
each block of delta by s percent of the norm of what it moves.

`last_serial`: the same step T times in a row, each from where the last one led; the best slate
seen is shown. Its latency grows with T.

Differs from the authors' code, whose positive steps alone lead away from slates that are better
than the upstream order: both signs, step 0 always included, so that the evaluator's score never
falls; and the evaluator picks, where theirs picks by the labels of the test set. `OFFICIAL` are
their steps.
delta moves activations, the decoder's first state and the candidates' encodings, as in that code.
Shapes: `B` requests, `N` candidates, `S` slates per request, `M` slots.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray
import numpy as np

from ..contract import Batch, Variables
from . import evaluator as evaluators
from . import generator as generators
from .generator import Encoded, reward_to_go

_EPSILON = 1e-5


def both_signs(count: int, smallest: float = 1.0, largest: float = 20.0) -> tuple[float, ...]:
    """`count` steps in percent, evenly spread over the logarithm of their size, of both signs."""
    if count < 0 or count % 2:
        raise ValueError(f"count must be even and >= 0, got {count}.")
    sizes = np.geomspace(smallest, largest, count // 2)
    return tuple(float(x) for x in np.concatenate([-sizes[::-1], sizes]))


OFFICIAL = (6.0, 7.0, 8.0, 9.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """How to explore at serving time.

    Attributes:
      steps: of `last_parallel`, in percent; step 0 is always tried besides.
      normalize: of the gradient: each "block" by its own norm, all of them by their "global" one,
        or "none".
      sample: whether slates off the greedy one are drawn, instead of chosen greedily.
      temperature: of such draws.
      pessimism: what the score loses per standard deviation over several evaluators.
    """

    steps: tuple[float, ...] = both_signs(8)
    normalize: Literal["block", "global", "none"] = "block"
    sample: bool = False
    temperature: float = 1.0
    pessimism: float = 0.0

    def __post_init__(self):
        if self.normalize not in ("block", "global", "none"):
            raise ValueError(
                f"Config.normalize must be block, global or none, got {self.normalize!r}."
            )
        if not self.temperature > 0:
            raise ValueError(f"Config.temperature must be > 0, got {self.temperature}.")
        if not self.pessimism >= 0:
            raise ValueError(f"Config.pessimism must be >= 0, got {self.pessimism}.")


class Generator(NamedTuple):
    """A trained generator: any module with the names of `zoo.rerank.generator`."""

    variables: Variables
    config: Any
    module: Any = generators


class Evaluators(NamedTuple):
    """Trained evaluators of one configuration, and what their tasks are worth.

    Attributes:
      variables: of each; several make an ensemble, whose mean is the score.
      config: of all.
      worth: of a click, a purchase, ...: one number per task of the schema.
      module: with the names of `zoo.rerank.evaluator`.
    """

    variables: Sequence[Variables]
    config: Any
    worth: tuple[float, ...]
    module: Any = evaluators


class Chosen(NamedTuple):
    """What is shown, and what was tried.

    Attributes:
      order: the slate, indices of candidates.
      tried: all slates, the greedy one first.
      score: of each, as they were compared.
      best: which one is shown.
    """

    order: Int[Array, "B M"]
    tried: Int[Array, "B S M"]
    score: Float[Array, "B S"]
    best: Int[Array, " B"]


Judge = Callable[[Array], Array]


def judge_of(by: Evaluators, batch: Batch) -> Judge:
    """`judge(order (B, S, M)) -> (B, S, M, E)`: what each evaluator expects of each slot."""
    encoded = [by.module.encode(variables, by.config, batch) for variables in by.variables]
    worth = jnp.array(by.worth)

    def judge(order):
        each = [
            jax.nn.sigmoid(by.module.judge(variables, by.config, e, order)) @ worth
            for variables, e in zip(by.variables, encoded, strict=True)
        ]
        return jnp.where(order[..., None] >= 0, jnp.stack(each, axis=-1), 0.0)

    return judge


def upstream(batch: Batch, slots: int) -> Int[Array, "B M"]:
    """The order in which the candidates came; -1 where there is none."""
    mask = jnp.asarray(batch["candidate_mask"])
    # Real ones first, in their order.
    order = jnp.argsort(~mask, axis=1, stable=True)
    order = jnp.where(jnp.take_along_axis(mask, order, axis=1), order, -1)
    missing = max(slots - mask.shape[1], 0)
    return jnp.pad(order, [(0, 0), (0, missing)], constant_values=-1)[:, :slots].astype(jnp.int32)


def last_parallel(
    generator: Generator,
    by: Evaluators,
    batch: Batch,
    config: Config,
    *,
    key: PRNGKeyArray | None = None,
) -> Chosen:
    """The best of the greedy slate and one slate per step along the gradient.

    `key` is for `config.sample`; each request draws from its own.
    """
    judge = judge_of(by, batch)
    encoded = generator.module.encode(generator.variables, generator.config, batch)
    greedy = _decode(generator, encoded).order
    direction = _direction(generator, encoded, greedy, judge, batch, config)
    return explore(generator, encoded, greedy, direction, judge, config, key=key)


def explore(
    generator: Generator,
    encoded: Encoded,
    greedy: Int[Array, "B 1 M"],
    direction: Encoded,
    judge: Judge,
    config: Config,
    *,
    key: PRNGKeyArray | None = None,
) -> Chosen:
    """The best of the greedy slate and one slate per step along a direction."""
    if not config.steps:
        return choose(greedy, judge, config.pessimism)
    noise = None
    if config.sample:
        if key is None:
            raise ValueError("Config.sample needs a key.")
        shape = (len(config.steps), greedy.shape[2], encoded.mask.shape[1])
        noise = draws(key, greedy.shape[0], shape)
    found = _decode(
        generator,
        encoded,
        direction=direction,
        steps=jnp.array(config.steps),
        gumbel=noise,
        temperature=config.temperature if config.sample else 1.0,
    )
    return choose(jnp.concatenate([greedy, found.order], axis=1), judge, config.pessimism)


def best_of(
    generator: Generator,
    by: Evaluators,
    batch: Batch,
    count: int,
    *,
    key: PRNGKeyArray,
    temperature: float = 1.0,
    pessimism: float = 0.0,
) -> Chosen:
    """The best of the greedy slate and `count` drawn ones: what LAST has to beat ("multi-CMR")."""
    judge = judge_of(by, batch)
    encoded = generator.module.encode(generator.variables, generator.config, batch)
    tried = _decode(generator, encoded).order
    if count:
        shape = (count, tried.shape[2], encoded.mask.shape[1])
        noise = draws(key, tried.shape[0], shape)
        drawn = _decode(
            generator, encoded, steps=jnp.zeros(count), gumbel=noise, temperature=temperature
        )
        tried = jnp.concatenate([tried, drawn.order], axis=1)
    return choose(tried, judge, pessimism)


def last_serial(
    generator: Generator,
    by: Evaluators,
    batch: Batch,
    config: Config,
    *,
    rounds: int,
    step: float = 5.0,
) -> Chosen:
    """`rounds` steps of `step` percent down the loss, one after the other; the best slate seen."""
    judge = judge_of(by, batch)
    first = generator.module.encode(generator.variables, generator.config, batch)

    def body(encoded, _):
        order = _decode(generator, encoded).order
        way = _direction(generator, encoded, order, judge, batch, config)
        moved = encoded._replace(
            state=encoded.state - step * way.state, items=encoded.items - step * way.items
        )
        return moved, order[:, 0]

    # One more round than steps, whose own step is not used: it decodes where the last one led.
    _, tried = jax.lax.scan(body, first, length=rounds + 1)
    return choose(jnp.moveaxis(tried, 0, 1), judge, config.pessimism)


def choose(tried: Int[Array, "B S M"], judge: Judge, pessimism: float = 0.0) -> Chosen:
    """The slate of the highest score; the first of equals."""
    each = judge(tried).sum(axis=2)
    score = each.mean(axis=-1) - pessimism * each.std(axis=-1)
    best = jnp.argmax(score, axis=1)
    order = jnp.take_along_axis(tried, best[:, None, None], axis=1)[:, 0]
    return Chosen(order, tried, score, best)


def draws(key: PRNGKeyArray, size: int, shape: tuple[int, int, int]) -> Float[Array, "B S M N"]:
    """Gumbel noise; request b's depends on (key, b) alone, not on how many there are."""
    keys = jax.vmap(lambda b: jax.random.fold_in(key, b))(jnp.arange(size))
    return jax.vmap(lambda key: jax.random.gumbel(key, shape))(keys)


def gradient(
    generator: Generator,
    encoded: Encoded,
    order: Int[Array, "B 1 M"],
    judge: Judge,
    batch: Batch,
) -> tuple[Float[Array, "B H"], Float[Array, "B N A"]]:
    """Of -sum_t A_t log pi(l_t), by the state and the encodings; A against the upstream order."""
    both = jnp.concatenate([order, upstream(batch, order.shape[2])[:, None]], axis=1)
    reward = judge(both).mean(axis=-1)
    credit = reward_to_go(reward[:, 0] - reward[:, 1], generator.config.discount)

    def loss(state, items):
        here = encoded._replace(state=state, items=items)
        logp = generator.module.log_probability(generator.variables, generator.config, here, order)
        return -(jnp.where(order[:, 0] >= 0, credit, 0.0) * logp[:, 0]).sum()

    return jax.grad(loss, argnums=(0, 1))(encoded.state, encoded.items)


def direction_of(
    encoded: Encoded,
    state: Float[Array, "B H"],
    items: Float[Array, "B N A"],
    normalize: Literal["block", "global", "none"],
) -> Encoded:
    """What a step of 1 adds: one percent of the norm of what it moves; nothing where there is none.

    Masked candidates neither count nor move.
    """
    real = encoded.mask[:, :, None]
    items, there = jnp.where(real, items, 0.0), jnp.where(real, encoded.items, 0.0)
    if normalize != "none":
        lengths = [_norm(x) for x in (state, items)]
        sizes = [_norm(x) for x in (encoded.state, there)]
        if normalize == "global":
            lengths = [jnp.hypot(*lengths)] * 2
            sizes = [jnp.hypot(*sizes)] * 2
        scale = [
            0.01 * size / (length + _EPSILON) for size, length in zip(sizes, lengths, strict=True)
        ]
        state, items = state * scale[0][:, None], items * scale[1][:, None, None]
    return Encoded(state, items, jnp.zeros_like(encoded.rows), encoded.mask)


def _direction(generator, encoded, order, judge, batch, config) -> Encoded:
    state, items = gradient(generator, encoded, order, judge, batch)
    return direction_of(encoded, state, items, config.normalize)


def _norm(x: Array) -> Array:
    return jnp.sqrt(jnp.square(x).reshape(x.shape[0], -1).sum(axis=1))


def _decode(generator: Generator, encoded: Encoded, **options: Any):
    return generator.module.decode(generator.variables, generator.config, encoded, **options)
