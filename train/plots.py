"""Pictures of a run."""

from pathlib import Path
from typing import Any


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
