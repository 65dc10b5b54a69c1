"""Suite `fields`: what features are worth, and what they cost.

"co-clicks" is a planted world in which only pairs of items say anything, "popular" its control; a
linear model with and without the cross of the two, and a mean of embeddings. "same counts" is a
world in which everybody has equally many events: continuous features generalise, but only ids say
who is who. "granularity" gives a model the item, its category, or both, on real data where they are
at hand: the finer a field, the rarer its values are met again. "rare items" are candidates that
training shows at most three times.
"""

import functools
from pathlib import Path

from ..cases import choose
from ..compare import HIT_RATE, RARE, Case, Method, compare
from ..results import Row
from .accuracy import made, real_sources

METRICS = ["auc", "train auc", RARE, HIT_RATE]

_FAST = ("epochs=5", "batch_size=512", "history=3", "cross_history=1")
_CROSS = "crosses=history.item*candidate.item"
# Rare pairs want large steps; chosen on the validation requests.
_RATE = "table_learning_rate=10"
_LINEAR = Method("lr", "lr", (_RATE,))
_CROSSED = Method("lr, crossed", "lr", (_RATE, _CROSS))
_MEAN = Method("mlp", "mlp", ("pooling=mean",))
# What the user did in numbers, and the candidate, but not which items the user's events were of.
_COUNTS = Method(
    "counts",
    "mlp",
    ("leave_out=history.item", "statistics=count(user),count(item),since(user),count(user*item)"),
)
_GAINS = (("lr, crossed", "lr", "auc"),)
_GRAINS = (
    Method("category", "din", ("leave_out=item",)),
    Method("item", "din", ("leave_out=category",)),
    Method("item and category", "din"),
)


def cases() -> list[Case]:
    """The planted worlds, and the real data whose items have categories."""
    case = functools.partial(Case, fitted=True)
    found = [
        case("co-clicks", "planted:co_clicks", (_LINEAR, _CROSSED, _MEAN), _FAST, _GAINS),
        case("co-clicks, control", "planted:popular", (_LINEAR, _CROSSED, _MEAN), _FAST, _GAINS),
    ]
    found.append(case("same counts", "planted:two_tastes", (_COUNTS, _MEAN), _FAST))
    for name, source in real_sources().items():
        if name != "MovieLens 100K":  # its genres are a bag
            found.append(case(f"granularity, {name}", source, _GRAINS))
    return found


def run(only: list[str] | None = None, seeds: int = 3) -> list[Row]:
    """Cases by name (all of them by default), with seeds 0, 1, ..."""
    return compare(made(choose(cases(), only)), seeds)


def draw(rows: list[Row], path: Path) -> None:
    """AUC against hit rate: how fine should a field be?"""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    value = {(row.case, row.method, row.metric): row.value for row in rows}
    for name in dict.fromkeys(row.case for row in rows if row.case.startswith("granularity")):
        for metric, marker in (("auc", "o"), (RARE, "s")):
            found = [m.name for m in _GRAINS if (name, m.name, metric) in value]
            points = [(value[name, m, HIT_RATE], value[name, m, metric]) for m in found]
            if not points:
                continue
            label = f"{name.removeprefix('granularity, ')}, {metric}"
            axes.plot(*zip(*points, strict=True), marker, label=label)
            for method, point in zip(found, points, strict=True):
                axes.annotate(method, point, (6, -2), textcoords="offset points", fontsize=7)
    if not axes.has_data():
        return
    axes.set(xlabel="hit rate of the finest field", ylabel="AUC")
    axes.margins(x=0.2)  # Room for the names.
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
