r"""LAST: a generator that learns from the request at hand, while it is served.

Wang et al., "Do Not Wait: Learning Re-Ranking Model Without User Feedback At Serving Time in
E-Commerce", RecSys 2024, https://arxiv.org/abs/2406.14004.

The generator G was trained for all requests; this one deserves its own:

    slate = G(request; theta + delta),   delta = argmax of the evaluators' score of that slate

and delta is forgotten with the request. No feedback is waited for and no parameter is touched: the
functions here are pure, and a request's slate does not depend on its batch mates.

`last_parallel`: one greedy slate, one gradient d of  -sum_t A_t log pi(l_t)  with A_t what the
evaluators see each slot gain over the upstream order, then S slates at once along d, at steps of
both signs and many sizes, and the evaluators pick among them and the greedy one. A step of s moves
each block of delta by s percent of the norm of what it moves. delta is one of activations or of
parameters, see `deltas`.

`last_serial`: the same step T times in a row, each from where the last one led; the best slate
seen is shown. Its latency grows with T.

An evaluator that is searched hard is searched for its errors too. `Config.pessimism` asks of a
slate that several evaluators agree it beats the greedy one, see `choose`.

Differs from the authors' code, whose positive steps alone lead away from slates that are better
than the upstream order: both signs, step 0 always included, so that the evaluators' score never
falls; and the evaluators pick, where theirs picks by the labels of the test set.
`PRESETS["official"]` has their steps.
Each of the three ways is one compiled program per configuration and shape of the batch; the first
call compiles it.
Shapes: `B` requests, `N` candidates, `S` slates per request, `M` slots, `E` evaluators.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any, Literal, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt32
import numpy as np

from ...batch import Batch
from ...checks import require_choices, require_tuple
from ...contract import Generator, ParameterGenerator, Variables
from .. import generator as generators
from ..rewards import Evaluators, Judge, judge_of, require_fit, reward_to_go, upstream
from . import deltas

_T = TypeVar("_T", bound=Callable[..., Any])


def both_signs(count: int, smallest: float = 1.0, largest: float = 20.0) -> tuple[float, ...]:
    """`count` steps in percent, evenly spread over the logarithm of their size, of both signs."""
    if count < 0 or count % 2:
        raise ValueError(f"count must be even and >= 0, got {count}.")
    if not 0 < smallest <= largest < np.inf:
        raise ValueError(f"smallest must be > 0 and <= largest, got {smallest} and {largest}.")
    sizes = np.geomspace(smallest, largest, count // 2)
    return tuple(float(x) for x in np.concatenate([-sizes[::-1], sizes]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options of exploration at serving time.

    Attributes:
      steps: of `last_parallel`, in percent; step 0 is always tried besides.
      delta: whether activations move, or parameters of the decoder.
      parameters: which ones, of `deltas.PARAMETERS`.
      normalize: of the gradient: each "block" by its own norm, all of them by their "global" one,
        or "none".
      sample: whether slates off the greedy one are drawn, instead of chosen greedily.
      temperature: of such draws.
      pessimism: what a slate's gain loses per standard deviation over several evaluators.
    """

    steps: tuple[float, ...] = both_signs(8)
    delta: Literal["activations", "parameters"] = "activations"
    parameters: tuple[str, ...] = deltas.PARAMETERS
    normalize: deltas.Normalize = "block"
    sample: bool = False
    temperature: float = 1.0
    pessimism: float = 0.0

    def __post_init__(self):
        require_tuple(self, "steps", "parameters")
        require_choices(self)
        unknown = [name for name in self.parameters if name not in deltas.PARAMETERS]
        if unknown or not self.parameters:
            raise ValueError(
                f"Config.parameters must name some of {', '.join(deltas.PARAMETERS)}, got "
                f"{self.parameters}."
            )
        if not all(isinstance(s, int | float) and np.isfinite(s) for s in self.steps):
            raise ValueError(f"Config.steps must be finite numbers, got {self.steps}.")
        if not 0 < self.temperature < np.inf:
            raise ValueError(f"Config.temperature must be > 0 and finite, got {self.temperature}.")
        if not 0 <= self.pessimism < np.inf:
            raise ValueError(f"Config.pessimism must be >= 0 and finite, got {self.pessimism}.")


# "official" has the steps of the authors' released script, drawn as there, and step 0 besides.
PRESETS = {
    "default": Config(),
    "official": Config(steps=(6.0, 7.0, 8.0, 9.0), sample=True),
    "cautious": Config(pessimism=1.0),
}


class TrainedGenerator(NamedTuple):
    """A trained generator, and the module that has its functions."""

    variables: Variables
    config: Any
    module: Generator = generators


class Chosen(NamedTuple):
    """The slate that is shown, and those that were tried.

    Attributes:
      order: the slate, indices of candidates.
      tried: all slates, the greedy one first.
      score: of each, by each evaluator.
      best: which one is shown.
    """

    order: Int[Array, "B M"]
    tried: Int[Array, "B S M"]
    score: Float[Array, "B S E"]
    best: Int[Array, " B"]


def _one_program(function: _T) -> _T:
    """Compiles a function of (generator, evaluators, batch, ...) once per configuration and shape.

    Only arrays are inputs of the program; configurations, modules and other options are part of it.
    """

    @functools.partial(jax.jit, static_argnames=("made", "by", "more", "options"))
    def program(variables, judges, batch, seeds, *, made, by, more, options):
        made, by = made._replace(variables=variables), by._replace(variables=judges)
        given = {} if seeds is None else {"seeds": seeds}
        return function(made, by, batch, *more, **dict(options), **given)

    @functools.wraps(function)
    def call(generator, by, batch, *more, seeds=None, **options):
        if isinstance(by.variables, dict):  # Else its keys would be taken for evaluators.
            return function(generator, by, batch, *more, **options)
        return program(
            generator.variables,
            list(by.variables),
            batch,
            seeds,
            made=generator._replace(variables=None),
            by=by._replace(variables=(), worth=_hashable(by.worth)),
            more=more,
            options=tuple(sorted(options.items())),
        )

    return cast(_T, call)


def _hashable(worth: Any) -> Any:
    """The same numbers as tuples."""
    return tuple(map(_hashable, worth)) if np.ndim(worth) else worth


@_one_program
def last_parallel(
    generator: TrainedGenerator,
    by: Evaluators,
    batch: Batch,
    config: Config = PRESETS["default"],
    *,
    seeds: UInt32[Array, " B"] | None = None,
) -> Chosen:
    """The best of the greedy slate and one slate per step along the gradient.

    `seeds`, one per request, are for `config.sample`; see `seeds_of`.

    Raises:
      ValueError: draws without seeds, pessimism without a second evaluator, or generator and
        evaluators that do not fit.
    """
    judge = _judge(generator, by, batch)
    encoded = generator.module.encode(generator.variables, generator.config, batch)
    greedy = _decode(generator, encoded).order
    if not config.steps:
        return choose(greedy, judge, config.pessimism)
    way = direction(generator, encoded, greedy, judge, batch, config)
    return explore(generator, encoded, greedy, way, judge, config, seeds=seeds)


def explore(
    generator: TrainedGenerator,
    encoded: Any,
    greedy: Int[Array, "B 1 M"],
    direction: Any,
    judge: Judge,
    config: Config,
    *,
    seeds: UInt32[Array, " B"] | None = None,
) -> Chosen:
    """The best of the greedy slate and one slate per step along a direction."""
    if config.sample:
        _require_seeds(seeds, greedy.shape[0])
    found = _decode(
        generator,
        encoded,
        direction=direction,
        steps=jnp.array(config.steps),
        noise=seeds if config.sample else None,
        temperature=config.temperature if config.sample else 1.0,
    )
    return choose(jnp.concatenate([greedy, found.order], axis=1), judge, config.pessimism)


@_one_program
def best_of(
    generator: TrainedGenerator,
    by: Evaluators,
    batch: Batch,
    count: int,
    *,
    seeds: UInt32[Array, " B"] | None = None,
    temperature: float = 1.0,
    pessimism: float = 0.0,
) -> Chosen:
    """The best of the greedy slate and `count` drawn ones: what LAST has to beat ("multi-CMR")."""
    if count < 0:
        raise ValueError(f"count must be >= 0, got {count}.")
    if count:
        _require_seeds(seeds, batch["candidate_mask"].shape[0])
    judge = _judge(generator, by, batch)
    encoded = generator.module.encode(generator.variables, generator.config, batch)
    tried = _decode(generator, encoded).order
    if count:
        still = jnp.zeros(count)
        drawn = _decode(generator, encoded, steps=still, noise=seeds, temperature=temperature)
        tried = jnp.concatenate([tried, drawn.order], axis=1)
    return choose(tried, judge, pessimism)


@_one_program
def last_serial(
    generator: TrainedGenerator,
    by: Evaluators,
    batch: Batch,
    config: Config = PRESETS["default"],
    *,
    rounds: int,
    step: float = 5.0,
) -> Chosen:
    """`rounds` steps of `step` percent down the loss, one after the other; the best slate seen.

    Moves activations; of `config` only how to normalise and to choose counts.
    """
    if not isinstance(rounds, int) or rounds < 0:
        raise ValueError(f"rounds must be a whole number >= 0, got {rounds}.")
    if not np.isfinite(step):
        raise ValueError(f"step must be finite, got {step}.")
    if config.delta != "activations":
        raise ValueError("last_serial moves activations, got Config.delta 'parameters'.")
    judge = _judge(generator, by, batch)
    first = generator.module.encode(generator.variables, generator.config, batch)
    moved = generator.module.MOVED

    def body(values, _):
        encoded = first._replace(**dict(zip(moved, values, strict=True)))
        order = _decode(generator, encoded).order
        way = direction(generator, encoded, order, judge, batch, config)
        values = [x - step * getattr(way, n) for x, n in zip(values, moved, strict=True)]
        return values, order[:, 0]

    start = [getattr(first, name) for name in moved]
    values, tried = jax.lax.scan(body, start, length=rounds)
    end = first._replace(**dict(zip(moved, values, strict=True)))
    tried = jnp.concatenate([jnp.moveaxis(tried, 0, 1), _decode(generator, end).order], axis=1)
    return choose(tried, judge, config.pessimism)


def choose(tried: Int[Array, "B S M"], judge: Judge, pessimism: float = 0.0) -> Chosen:
    """The slate whose gain over the first one is largest, by the mean of the evaluators.

        gain_s = mean_e (score_es - score_e0) - pessimism * std_e (score_es - score_e0)

    The first one's gain is 0, so that it stays where no other is surely better. Of equals the
    first. With one evaluator, or without pessimism, it is the slate of the highest score.
    Scores that are no numbers (of broken features) win nothing: the greedy slate stays.
    """
    if not 0 <= pessimism < np.inf:
        raise ValueError(f"pessimism must be >= 0 and finite, got {pessimism}.")
    score = judge(tried).sum(axis=2)
    if pessimism and score.shape[-1] < 2:
        raise ValueError("Pessimism needs several evaluators, got one.")
    best = most_gained(score, pessimism)
    order = jnp.take_along_axis(tried, best[:, None, None], axis=1)[:, 0]
    return Chosen(order, tried, score, best)


def most_gained(score: Float[Array, "B S E"], pessimism: float) -> Int[Array, " B"]:
    """Index of the slate that `choose` shows."""
    gain = score - score[:, :1]
    surely = gain.mean(axis=-1) - pessimism * gain.std(axis=-1)
    # A score that is no number wins nothing, and the first slate is what there is without any.
    surely = jnp.where(jnp.isfinite(surely), surely, -jnp.inf).at[:, 0].set(0.0)
    return jnp.argmax(surely, axis=1)


def seeds_of(key: PRNGKeyArray, count: int) -> UInt32[Array, " B"]:
    """A seed per request; request b's depends on (key, b) alone, not on how many there are."""
    one = lambda b: jax.random.bits(jax.random.fold_in(key, b), dtype=jnp.uint32)
    return jax.vmap(one)(jnp.arange(count))


def direction(
    generator: TrainedGenerator,
    encoded: Any,
    order: Int[Array, "B 1 M"],
    judge: Judge,
    batch: Batch,
    config: Config,
) -> Any:
    """The direction up the loss of `order`, for `generator.module.decode`."""
    both = jnp.concatenate([order, upstream(batch, order.shape[2])[:, None]], axis=1)
    reward = judge(both).mean(axis=-1)
    credit = reward_to_go(reward[:, 0] - reward[:, 1], generator.config.discount)
    if config.delta == "activations":
        return deltas.activations(generator, encoded, order, credit, config.normalize)
    if not isinstance(generator.module, ParameterGenerator):
        raise ValueError("This generator moves activations only, got Config.delta 'parameters'.")
    return deltas.parameters(generator, encoded, order, credit, config.normalize, config.parameters)


def _judge(generator: TrainedGenerator, by: Evaluators, batch: Batch) -> Judge:
    require_fit(generator.config, by)
    return judge_of(by, batch)


def _require_seeds(seeds: Any, count: Any) -> None:
    """Draws need a seed per request."""
    found = getattr(seeds, "dtype", None), np.shape(seeds)
    if found != (jnp.uint32, (count,)):
        what = "none" if seeds is None else f"{found[0] or type(seeds).__name__} {found[1]}"
        raise ValueError(
            f"Draws need seeds, uint32 ({count},), one per request (`seeds_of` makes them); got "
            f"{what}."
        )


def _decode(generator: TrainedGenerator, encoded: Any, **options: Any):
    return generator.module.decode(generator.variables, generator.config, encoded, **options)
