"""Suite `accuracy`: the zoo on the built-in world and on the real data at hand, three seeds.

Real data are used where `RECJAX_DATA` (default: `../shared/data`) holds them; they are trained with
the frozen defaults, nothing tuned per data set.
"""

import os
from pathlib import Path

from .. import alibaba
from ..cases import choose
from ..compare import BOUND, Case, Method, compare
from ..results import Row

METRICS = [
    "auc",
    BOUND,
    "auc with others' histories",
    "gauc",
    "logloss",
    "calibration_loss",
    "calibration_error",
    "recall@50",
]

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

RANKERS = tuple(Method(name, name) for name in ("mlp", "din", "sim", "dien", "mimn"))
_BOUNDS = tuple(("din", name) for name in ("sim", "dien", "mimn"))
_RETRIEVERS = (
    Method("item2vec", "item2vec"),
    Method("mf", "mf"),
    Method("mind, K = 1", "mind", ("interests=1",)),
    Method("mind", "mind"),
)
_RETRIEVED = (("mind", "mf", "recall@50"), ("mind", "item2vec", "recall@50"))


_ALIBABA = Path("runs") / "data" / "alibaba-ecomm.csv.gz"


def _data() -> Path:
    return Path(os.environ.get("RECJAX_DATA", "../shared/data"))


def real_sources() -> dict[str, str]:
    """The real data that are there, by name."""
    data = _data()
    beauty = data / "amazon-beauty" / "interactions.csv.gz"
    real = {}
    if beauty.is_file():
        real["Amazon Beauty"] = f"events:{beauty}"
    if (data / "ml-100k" / "u.data").is_file():
        real["MovieLens 100K"] = f"movielens:{data / 'ml-100k'}"
    if alibaba.is_there(data / "alibaba-ecomm"):
        real["Alibaba sample"] = f"events:{_ALIBABA}"
    return real


def cases() -> list[Case]:
    """The built-in worlds, and the real data that are there."""
    found = [MARKET, CONTROL]
    for name, source in real_sources().items():
        found.append(Case(name, source, RANKERS, gains=_GAIN, bounds=_BOUNDS))
        found.append(Case(f"{name}, retrieval", source, _RETRIEVERS, gains=_RETRIEVED))
    return found


def run(only: list[str] | None = None, seeds: int = 3) -> list[Row]:
    """Cases by name (all of them by default), with seeds 0, 1, ..."""
    return compare(made(choose(cases(), only)), seeds)


def made(chosen: list[Case]) -> list[Case]:
    """The same cases, once the files that they read and nobody ships are written."""
    if any(case.source == f"events:{_ALIBABA}" for case in chosen) and not _ALIBABA.is_file():
        alibaba.write_events(_data() / "alibaba-ecomm", _ALIBABA)
    return chosen
