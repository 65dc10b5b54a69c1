"""Case `cost` of the suite `last`: what exploring costs on this machine, step by step.

One evaluator; random parameters of the frozen sizes serve the same requests: time depends on shapes
alone. All methods of a block alternate, so that they see the same machine. Every method is one
compiled call.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...train.data.batches.assembly import whole_batch
from ...train.data.market import slate_log
from ...train.data.market.slates import SLATES, SlateWorld
from ...zoo.rerank import evaluator, generator, last
from ...zoo.rerank.last import TrainedGenerator
from ...zoo.rerank.rewards import Evaluators
from ..results import Row
from ..timing import in_turns

REQUESTS = 64
REPEATS = 100
STEPS = (0, 4, 8, 16, 32)
ROUNDS = (1, 2, 4, 8)


def cost(name: str, seeds: int) -> list[Row]:
    """Latency of a batch of requests against S and T, and LAST against as many draws."""
    del seeds  # Nothing is trained, and nothing is drawn that matters.
    methods: dict[str, Callable[..., Any]] = {}
    for count, (method, run) in zip(STEPS, parallel().items(), strict=True):
        methods[method] = run
        if count:  # Next to it, as the two are compared.
            methods[f"best of {count + 3} draws"] = functools.partial(_draws, count + 3)
    for rounds in ROUNDS:
        methods[f"LAST, serial, T = {rounds}"] = functools.partial(_serial, rounds)
    taken = seconds(methods, REQUESTS)
    rows = latencies(name, taken, REQUESTS)
    for count in STEPS[1:]:
        mine, theirs = taken[f"LAST, S = {count}"], taken[f"best of {count + 3} draws"]
        ratios = [one / other for one, other in zip(mine, theirs, strict=True)]
        rows.append(Row.of(name, f"LAST, S = {count}", "times best of S + 3 draws", ratios))
    return rows


def parallel() -> dict[str, Callable[..., Any]]:
    """The one-shot slate, and LAST at ever more steps, by name."""
    found = {}
    for count in STEPS:
        config = last.Config(steps=last.both_signs(count))
        found[f"LAST, S = {count}" if count else "one-shot"] = functools.partial(_parallel, config)
    return found


def seconds(methods: dict[str, Callable[..., Any]], requests: int) -> dict[str, list[float]]:
    """Seconds of each method's calls for so many requests: in turns, after one to compile."""
    made, by, batch = setting(requests)
    noise = last.seeds_of(jax.random.key(0), requests)
    calls = [_call(f, made, by, batch, noise) for f in methods.values()]
    return dict(zip(methods, in_turns(calls, REPEATS), strict=True))


def latencies(name: str, taken: dict[str, list[float]], requests: int) -> list[Row]:
    """Rows of each method."""
    return [
        row
        for method, times in taken.items()
        for row in (
            Row.of(name, method, "ms", [1e3 * t for t in times], "ms"),
            Row.of(name, method, "p99 ms", [1e3 * float(np.quantile(times, 0.99))], "ms"),
            Row.of(name, method, "requests/s", [requests / t for t in times], "1/s"),
        )
    ]


def draw(axes: Any, case: str, rows: list[Row]) -> None:
    """Latency against S and T."""
    found = {row.method: row.value for row in rows if row.case == case and row.metric == "ms"}
    for label, form, counts in (
        ("LAST, parallel, against S", "LAST, S = {}", STEPS[1:]),
        ("best of S + 3 draws, against S", "best of {} draws", STEPS[1:]),
        ("LAST, serial, against T", "LAST, serial, T = {}", ROUNDS),
    ):
        shift = 3 if "draws" in form else 0
        axes.plot(counts, [found[form.format(n + shift)] for n in counts], "o-", label=label)
    axes.set(xlabel="S or T", ylabel=f"ms for {REQUESTS} requests", ylim=(0, None), title=case)
    axes.legend()


def setting(requests: int) -> tuple[TrainedGenerator, Evaluators, dict[str, Any]]:
    """A generator, one evaluator and requests of the cascade market, untrained."""
    world = SlateWorld(SLATES["cascade"], 0)
    data = slate_log.load(world, name="slates:cascade", slates=REQUESTS)
    start, _, end = world.preset.market.starts
    truth = world.requests(np.random.default_rng(0), requests, range(start, end))
    asked = slate_log.to_requests(world, truth, data.row_maps)
    batch = jax.tree.map(jnp.asarray, whole_batch(data.schema, data.log, asked, history=1))
    judges = evaluator.Config(schema=data.schema)
    pointer = generator.Config(schema=data.schema, encoder_units=64, head_units=64)
    made = TrainedGenerator(generator.init(jax.random.key(1), pointer), pointer)
    return made, Evaluators([evaluator.init(jax.random.key(2), judges)], judges, (1.0, 0.0)), batch


def _parallel(config, made, by, batch, seeds):
    return last.last_parallel(made, by, batch, config, seeds=seeds)


def _draws(count, made, by, batch, seeds):
    return last.best_of(made, by, batch, count, seeds=seeds)


def _serial(rounds, made, by, batch, seeds):
    del seeds
    return last.last_serial(made, by, batch, rounds=rounds)


def _call(method, made, by, batch, seeds):
    def run(variables, judges, batch, seeds):
        mine = made._replace(variables=variables)
        return method(mine, by._replace(variables=judges), batch, seeds).order

    return functools.partial(jax.jit(run), made.variables, list(by.variables), batch, seeds)
