"""Pictures of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .evaluation.reliability import Reliability


def learning_curve(
    history: list[dict[str, Any]], path: Path, *, title: str, measure: str = "AUC"
) -> None:
    """Training loss and the validation `measure` by epoch, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    epochs = [entry["epoch"] for entry in history]
    left = figure.subplots()
    left.plot(
        epochs, [e["train_loss"] for e in history], "o-", color="tab:gray", label="train loss"
    )
    left.set(xlabel="epoch", ylabel="train loss", title=title)
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    right = left.twinx()
    right.plot(epochs, [e["score"] for e in history], "s-", color="tab:blue", label="validation")
    right.set_ylabel(f"validation {measure}", color="tab:blue")
    best = max(history, key=lambda entry: entry["score"])
    right.axvline(best["epoch"], linestyle=":", color="tab:blue")
    aside = path.with_name("partial-" + path.name)
    figure.savefig(aside, dpi=120)
    aside.rename(path)


def reliability_diagram(
    found: Mapping[str, Mapping[str, Reliability]], path: Path, *, title: str
) -> None:
    """Observed share against predicted probability, and how often each is predicted, as a PNG.

    Args:
      found: {logit: {legend: bins}}, see `evaluation.scoring.reliabilities`; a column each.
      path: of the PNG.
      title: of the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = {
        name: forms for name, forms in found.items() if all(len(b.mass) for b in forms.values())
    }
    if not found:  # No examples.
        return
    figure = Figure(figsize=(5 * len(found), 6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    upper, lower = figure.subplots(2, len(found), squeeze=False, height_ratios=(3, 1))
    for above, below, (name, forms) in zip(upper, lower, found.items(), strict=True):
        above.axline((0, 0), slope=1, color="tab:gray", linestyle=":")
        for (form, bins), color in zip(forms.items(), ("tab:orange", "tab:blue"), strict=False):
            above.errorbar(
                bins.predicted,
                bins.observed,
                yerr=2 * bins.deviation,
                fmt="o-",
                markersize=4,
                linewidth=1,
                color=color,
                label=f"{form}: error {bins.error:.4f}, by chance {bins.noise:.4f}",
            )
            edges = np.linspace(0, 1, len(bins.spread) + 1)
            below.stairs(bins.spread, edges, color=color, fill=form != "calibrated")
        above.set(title=name, ylabel="observed share", xlim=_limits(forms), ylim=_limits(forms))
        above.legend(loc="upper left")
        below.set(xlabel="predicted probability", ylabel="share of examples", xlim=_limits(forms))
    aside = path.with_name("partial-" + path.name)
    figure.savefig(aside, dpi=120)
    aside.rename(path)


def _limits(forms: Mapping[str, Reliability]) -> tuple[float, float]:
    """From 0 to a little beyond the largest share, so that rare positives can be seen."""
    largest = max(max(bins.predicted.max(), bins.observed.max()) for bins in forms.values())
    return 0.0, min(1.0, 1.1 * float(largest) + 1e-3)
