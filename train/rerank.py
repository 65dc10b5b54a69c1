"""Training of generators: no feedback, only an evaluator's opinion of the slates that they draw.

Step after step a slate is drawn for every request, the evaluator says what each of its slots would
get and what those of the greedy slate would, and the generator's own loss (`zoo.rerank.generator`)
makes more of what is better. The requests of a step are a function of its number, so nothing is
stored and nothing repeats.
"""

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..zoo.contract import Batch, Variables
from ..zoo.features import Schema
from ..zoo.rerank import generator as generators
from ..zoo.rerank.last import Evaluators, Judge, draws, judge_of, upstream
from .data.event_log import EventLog, Requests
from .data.pipeline import pulled_batch, whole_batch
from .progress import Progress
from .settings import Settings
from .step import initial_state, make_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """What a drawn slate is compared with, and what counts.

    Attributes:
      baseline: "greedy" is the generator's own greedy slate, "upstream" the order that came.
      whole: weight of what the whole slate gained, given to each slot beside its own gain.
      temperature: of the draws.
    """

    baseline: str = "greedy"
    whole: float = 0.5
    temperature: float = 1.0

    def __post_init__(self):
        if self.baseline not in ("greedy", "upstream"):
            raise ValueError(
                f"Objective.baseline must be greedy or upstream, got {self.baseline!r}."
            )


def train_generator(
    config: generators.Config,
    log: EventLog,
    requests: Callable[[int], Requests],
    by: Evaluators,
    settings: Settings,
    *,
    objective: Objective | None = None,
    quiet: bool = False,
) -> Variables:
    """Trains a generator against evaluators for `settings.steps` steps; its variables.

    Args:
      config: of the generator; its schema is the evaluators'.
      log: users and items.
      requests: of a step, by its number: all candidates, in upstream order.
      by: who judges.
      settings: optimisers, rates, seed, steps.
      objective: what a slate is compared with.
      quiet: print nothing.

    Raises:
      ValueError: `settings.steps` is 0: there is no end of requests.
    """
    if settings.steps < 1:
        raise ValueError(f"steps must be >= 1 for a generator, got {settings.steps}.")
    objective = objective or Objective()
    state = initial_state(generators, config, settings, {})
    step = jax.jit(
        make_step(generators, config, settings, total_steps=settings.steps), donate_argnums=0
    )
    key = jax.random.key(settings.seed)
    draw = jax.jit(
        lambda variables, batch, key, evaluators: explore(
            config, variables, batch, by._replace(variables=evaluators), objective, key
        )
    )
    schema: Schema = config.schema
    with Progress("generator", settings.steps, quiet=quiet) as progress:
        for number in range(settings.steps):
            asked = requests(number)
            batch = whole_batch(schema, log, asked, history=1)
            slate, gain = draw(
                state.variables, batch, jax.random.fold_in(key, number), list(by.variables)
            )
            renamed, pulled = pulled_batch(schema, log, asked, history=1)
            state, _ = step(state, {**renamed, "slate": slate}, pulled)
            progress.advance(1)
            if number % 100 == 99:
                progress.print(f"step {number + 1}: drawn slates gain {float(gain):+.4f}")
    return state.variables


def explore(
    config: generators.Config,
    variables: Variables,
    batch: Batch,
    by: Evaluators,
    objective: Objective,
    key: PRNGKeyArray,
) -> tuple[dict[str, Array], Float[Array, ""]]:
    """A drawn slate per request, what each slot gained, and what slates gained on average."""
    encoded = generators.encode(variables, config, batch)
    size, candidates = encoded.mask.shape
    noise = draws(key, size, (1, config.slots, candidates))
    drawn = generators.decode(
        variables, config, encoded, gumbel=noise, temperature=objective.temperature
    ).order
    if objective.baseline == "greedy":
        other = generators.decode(variables, config, encoded).order
    else:
        other = upstream(batch, config.slots)[:, None]
    advantage = advantages(judge_of(by, batch), drawn, other, objective.whole)
    gain = advantage.sum(axis=1).mean() / (1 + objective.whole)
    return {"order": drawn[:, 0], "advantage": advantage}, gain


def advantages(
    judge: Judge, drawn: Int[Array, "B 1 M"], other: Int[Array, "B 1 M"], whole: float
) -> Float[Array, "B M"]:
    """What each slot of a slate gained over the same slot of the other, and its share of all."""
    reward = judge(jnp.concatenate([drawn, other], axis=1)).mean(axis=-1)
    each = reward[:, 0] - reward[:, 1]
    return each + whole * each.mean(axis=1, keepdims=True)
