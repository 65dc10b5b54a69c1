"""Case `rivals` of the suite `last`: other ways to re-rank, on logs of one size, by the same judge.

PRM, DLCM and Seq2Slate learn from the clicks of what was shown; the two generators learn without
feedback from evaluators that saw as many logs. LAST moves either generator.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from ...train import defaults
from ...train.data.market import slate_log
from ...train.data.market.slates import SLATES, SlateWorld
from ...train.rerank import train_generator
from ...zoo.contract import Slate
from ...zoo.rerank import dlcm, nar, prm, seq2slate
from ...zoo.rerank.last import TrainedGenerator
from ..countdown import each_seed
from ..results import Row
from . import slates
from .slates import ONCE, Regime

REGIME = Regime(preset="cascade", logs=200_000, settings=ONCE, steps=800)
_LEARNT = {"prm": prm, "dlcm": dlcm, "seq2slate": seq2slate}


def rivals(name: str, seeds: int) -> list[Row]:
    """True clicks of each method, and what they are above the upstream order."""
    found: list[dict[str, np.ndarray]] = []
    for seed in each_seed(name, seeds):
        found.append(_judged(seed))
    rows = []
    for method in found[0]:
        gains = [one[method] - one["upstream order"] for one in found]
        rows += [
            Row.of(name, method, "clicks", [one[method].mean() for one in found]),
            Row.of(name, method, "above upstream", [gain.mean() for gain in gains]),
            Row.of(name, method, "s.e.", [gain.std() / np.sqrt(len(gain)) for gain in gains]),
        ]
    return rows


def draw(axes: Any, case: str, rows: list[Row]) -> None:
    """Picture of each way's gain over the upstream order, seed by seed."""
    found = [row for row in rows if row.case == case and row.metric == "above upstream"][::-1]
    value = np.array([row.value for row in found])
    spread = [value - [row.low for row in found], [row.high for row in found] - value]
    axes.barh([row.method for row in found], value, xerr=spread, height=0.6)
    axes.axvline(0, color="gray", linewidth=0.8)
    axes.set(xlabel="clicks per slate above the upstream order", title=case)


def _judged(seed: int) -> dict[str, np.ndarray]:
    world = SlateWorld(SLATES[REGIME.preset], seed)
    data, by = slates.train_evaluators(world, REGIME, seed)
    ask = slates.asked_last(world, data, seed)
    worth = lambda order: slates.worth_of(world, ask.truth, order).clicks
    found = {
        "upstream order": worth(world.upstream(ask.truth)),
        "pointwise sort by the truth": worth(world.pointwise(ask.truth)),
    }
    made = {"pointer": slates.train_pointer(world, data, by, steps=REGIME.steps, seed=seed)}
    config = nar.Config(schema=data.schema)
    settings = defaults.settings("nar", steps=REGIME.steps, seed=seed)
    stream = slates.requests_of(world, data, seed)
    variables = train_generator(config, data.log, stream, by, settings, module=nar, quiet=True)
    made["nar"] = TrainedGenerator(variables, config, nar)
    for kind, generator in made.items():
        for label, method in (("one-shot", slates.steps(0)), ("LAST, S = 8", slates.steps(8))):
            chosen = slates.serve(method, generator, by, ask, seed)
            found[f"{kind}, {label}"] = worth(chosen.order)
    # As many logs as all evaluators saw, of requests and feedback of their own.
    log = slate_log.load(
        world,
        name=f"candidates:{REGIME.preset}",
        slates=REGIME.logs * REGIME.evaluators,
        inverse_temperature=REGIME.inverse_temperature,
        seed=1_000 + seed,
        view="candidates",
    )
    # A batch counts candidates, shown or not, of which there are twice as many as slots.
    ours = dataclasses.replace(ONCE, batch_size=2 * ONCE.batch_size, seed=seed)
    for kind, module in _LEARNT.items():
        config = module.Config(schema=data.schema)
        variables = slates.fitted(module, config, log, ours)
        found[kind] = worth(_sorted(module, config, variables, ask))
        print(f"  {kind}: {found[kind].mean():.4f}", flush=True)
    return found


def _sorted(module: Any, config: Any, variables: Any, ask: slates.Asked) -> np.ndarray:
    """The best slots of a scorer's order, or a generator's slate."""
    run, found = jax.jit(lambda v, b: module.apply(v, config, b)), []
    for batch in slates.chunks(ask.batch):
        output = run(variables, {k: v for k, v in batch.items() if k != "label"})
        if isinstance(output, Slate):
            found.append(np.asarray(output.order))
        else:
            found.append(np.argsort(-np.asarray(output.logit), axis=1, kind="stable")[:, :10])
    return np.concatenate(found)
