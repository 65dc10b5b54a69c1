"""Suite `accuracy`: the zoo on the built-in world and on the real data at hand, three seeds.

Real data are used where `RECJAX_DATA` (default: `../shared/data`) holds them; they are trained with
the frozen defaults, nothing tuned per data set.
"""

import os
from pathlib import Path

from .compare import Case, Method, choose, compare
from .results import Row

METRICS = ["auc", "auc with others' histories", "gauc", "logloss", "examples/s"]

# Few passes over many impressions want larger steps, and one sum over histories of this length
# a mean. Chosen on the market's validation rounds.
FEW_PASSES = (
    "epochs=3",
    "history=100",
    "batch_size=512",
    "table_learning_rate=0.03",
    "embedding_dropout=0.2",
)
_PAIR = (Method("mlp", "mlp", ("pooling=mean",)), Method("din", "din", ("normalize=softmax",)))
_GAIN = (("din", "mlp", "auc"),)
MARKET = Case("market", "market:standard", _PAIR, FEW_PASSES, _GAIN)
CONTROL = Case("market, control", "market:single_taste", _PAIR, FEW_PASSES, _GAIN)

RANKERS = tuple(Method(name, name) for name in ("mlp", "din"))


def cases() -> list[Case]:
    """The built-in worlds, and the real data that are there."""
    found = [MARKET, CONTROL]
    data = Path(os.environ.get("RECJAX_DATA", "../shared/data"))
    beauty = data / "amazon-beauty" / "interactions.csv.gz"
    if beauty.is_file():
        found.append(Case("Amazon Beauty", f"events:{beauty}", RANKERS, gains=_GAIN))
    if (data / "ml-100k" / "u.data").is_file():
        source = f"movielens:{data / 'ml-100k'}"
        found.append(Case("MovieLens 100K", source, RANKERS, gains=_GAIN))
    return found


def run(only: list[str] | None = None, seeds: int = 3) -> list[Row]:
    """Cases by name (all of them by default), with seeds 0, 1, ..."""
    return compare(choose(cases(), only), seeds)
