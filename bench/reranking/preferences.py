"""Case `preferences` of the suite `last`: one generator, and what each request weighs (CMR).

Trained once, with weights drawn anew for every request; then the weights alone move from clicks
to variety. What users click is the market's word; variety is a fact of the slate.
"""

from typing import Any

import numpy as np

from ...train.data.market.slates import SLATES, SlateWorld
from ...zoo.rerank import rewards
from ..countdown import each_seed
from ..results import Row
from . import slates
from .slates import ONCE, Regime

REGIME = Regime(preset="cascade", logs=100_000, evaluators=1, settings=ONCE, steps=800)
OBJECTIVES = ("clicks", "variety")
LABELS = ("one-shot", "LAST, S = 8")
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
_VARIETY = rewards.diversity("category")
# Rows: objectives. Columns: the click, the purchase, the variety of the categories.
_WORTH = ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0))


def preferences(name: str, seeds: int) -> list[Row]:
    """True clicks and the number of categories against the weight of variety."""
    found = []
    for seed in each_seed(name, seeds):
        found.append(_swept(seed))
    return [
        Row.of(name, method, metric, [one[method][metric] for one in found])
        for method, figures in found[0].items()
        for metric in figures
    ]


def draw(axes: Any, case: str, rows: list[Row]) -> None:
    """Picture of the clicks that variety costs."""
    found = {(row.method, row.metric): row.value for row in rows if row.case == case}
    for label in LABELS:
        methods = [f"{label}, variety weighs {weight:g}" for weight in WEIGHTS]
        of = lambda metric, methods=methods: [found[method, metric] for method in methods]
        axes.plot(of("categories per slate"), of("clicks at this weight"), "o-", label=label)
    axes.set(xlabel="categories per slate", ylabel="clicks per slate", title=case)
    axes.legend()


def _swept(seed: int) -> dict[str, dict[str, float]]:
    world = SlateWorld(SLATES[REGIME.preset], seed)
    data, by = slates.train_evaluators(world, REGIME, seed)
    by = by._replace(worth=_WORTH, more=(_VARIETY,))
    made = slates.train_pointer(
        world, data, by, steps=REGIME.steps, seed=seed, preferences=OBJECTIVES
    )
    ask = slates.asked_last(world, data, seed)
    found = {}
    for weight in WEIGHTS:
        wanted = np.tile(np.array([1 - weight, weight], np.float32), (len(ask.truth), 1))
        given = ask._replace(batch={**ask.batch, "preference": wanted})
        for label, method in zip(LABELS, (slates.steps(0), slates.steps(8)), strict=True):
            order = slates.serve(method, made, by, given, seed).order
            worth = slates.worth_of(world, ask.truth, order)
            category = np.sort(np.take_along_axis(ask.truth.category, order, axis=1), axis=1)
            found[f"{label}, variety weighs {weight:g}"] = {
                "clicks at this weight": float(worth.clicks.mean()),
                "purchases": float(worth.purchases.mean()),
                "categories per slate": 1 + float((np.diff(category) > 0).sum(axis=1).mean()),
            }
    return found
