"""`recjax demo`: mlp against din on the built-in world, and on a world where din must not win."""

from pathlib import Path

from ..train.data.market import PRESETS
from . import results
from .compare import compare
from .suites import accuracy


def run(out: Path | str) -> Path:
    """Trains both models on both worlds (one seed), writes and prints the table."""
    for case in (accuracy.MARKET, accuracy.CONTROL):
        purpose = PRESETS[case.source.partition(":")[2]].purpose
        print(f"{case.name} ({case.source}): {purpose}")
    print(f"both: {', '.join(accuracy.FEW_PASSES)}", flush=True)
    rows = compare([accuracy.MARKET, accuracy.CONTROL], seeds=1)
    path = results.write(out, "demo", "recjax demo", 0, rows)
    print()
    print(results.markdown(rows, ["auc", "gauc", "logloss"]))
    print()
    for case in (accuracy.MARKET.name, accuracy.CONTROL.name):
        auc = {row.method: row.value for row in rows if (row.case, row.metric) == (case, "auc")}
        print(f"{case}: din - mlp = {auc['din'] - auc['mlp']:+.4f} AUC")
    print(
        "\nIn the market a user's taste differs from category to category, so it pays to look at\n"
        "the part of the history that concerns the candidate. In the control every user has one\n"
        f"taste, the sum of the history says it all, and din must not win. Written to {path}"
    )
    return path
