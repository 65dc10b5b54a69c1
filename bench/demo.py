"""`recjax demo`: mlp against din on the built-in world, and on a world where din must not win.

One pass over fewer events than suite `accuracy` has, one seed: two minutes on two cores.
"""

import dataclasses
from pathlib import Path
import shutil

from .. import api
from ..train.data.market import PRESETS
from . import results
from .compare import Case, compare
from .suites import accuracy

SHORT = (
    "steps=1000",
    "history=50",
    *(text for text in accuracy.FEW_PASSES if not text.startswith(("epochs=", "history="))),
)
CASES = [
    dataclasses.replace(case, overrides=SHORT, exchanged=False)
    for case in (accuracy.MARKET, accuracy.CONTROL)
]


def run(out: Path | str) -> Path:
    """Trains both models on both worlds, writes and prints the table; then asks a run."""
    return show(out, CASES)


def show(out: Path | str, cases: list[Case]) -> Path:
    """The demonstration, on a world and its control; `out/din` is the run that stays."""
    for case in cases:
        purpose = PRESETS[case.source.partition(":")[2]].purpose
        print(f"{case.name} ({case.source}): {purpose}")
    print(f"both: {', '.join(cases[0].overrides)}", flush=True)
    folder = Path(out) / "din"
    if (folder / "config.json").is_file():  # of the last time
        shutil.rmtree(folder)
    rows = compare(cases, seeds=1, kept={(cases[0].name, "din"): folder})
    path = results.write(out, "demo", "recjax demo", 0, rows)
    print()
    print(results.markdown(rows, ["auc", "gauc", "logloss"]))
    print()
    for case in cases:
        auc = {
            row.method: row.value for row in rows if (row.case, row.metric) == (case.name, "auc")
        }
        print(f"{case.name}: din - mlp = {auc['din'] - auc['mlp']:+.4f} AUC")
    print(
        "\nIn the market a user's taste differs from category to category, so it should pay to\n"
        "look at the part of the history that concerns the candidate. In the control every user\n"
        "has one taste, the sum of the history says it all, and din must not win. This is one\n"
        "short training of each, and the truth is far ahead of both; `recjax bench accuracy`\n"
        f"trains longer, with three seeds. Written to {path}"
    )
    _ask(folder, cases[0].source)
    return path


def _ask(folder: Path, source: str) -> None:
    """What a user does next, done and shown."""
    print(
        f"\nThe trained din is in {folder}. The best three of a request, for instance:\n\n"
        f'    run = recjax.load("{folder}")\n'
        f'    request = recjax.read("{source}").examples[0]\n'
        "    run.recommend([request], k=3)\n"
    )
    request = api.read(source).examples[0]
    (best,) = api.load(folder).recommend([request], k=3)
    of = len(request["items"])
    for place, one in enumerate(best, start=1):
        chances = ", ".join(f"{task} {value:.4f}" for task, value in one.probabilities.items())
        print(f"{place} of {of}: item {one.item}, {chances}")
    print(
        "\nThe same with your own log (user_id, item_id and, if you have it, timestamp):\n\n"
        "    recjax inspect --data events:clicks.csv\n"
        "    recjax train din --data events:clicks.csv --out runs/din\n"
        "    recjax recommend runs/din --records requests.jsonl --k 3"
    )
