"""Suite `worlds`: what each model is for, in a world that has it and in one that does not.

Every case names a world of `train.data.market`, frozen before the model existed, and the control
in which the richer method must not win. Settings were chosen on the worlds' validation rounds.
"""

from ..cases import choose
from ..compare import Case, Method, compare
from ..results import Row
from .accuracy import FEW_PASSES

METRICS = ["auc", "conversion_given_click auc", "recall@50"]

_SOFTMAX = ("normalize=softmax",)
_SHORT = ("short_length=50", *_SOFTMAX)
# Interests that pass are seen in the newest events; DIN too is better off without the others.
_PASSING = (*FEW_PASSES, "history=30")
_RETRIEVAL = ("epochs=4", "history=100", "batch_size=256", "table_learning_rate=0.01", "dim=32")


def _pair(
    name: str,
    worlds: tuple[str, str],
    methods: tuple[Method, ...],
    gains: tuple[tuple[str, str, str], ...],
    overrides: tuple[str, ...] = FEW_PASSES,
) -> list[Case]:
    shown, control = (f"market:{world}" for world in worlds)
    return [
        Case(name, shown, methods, overrides, gains),
        Case(f"{name}, control", control, methods, overrides, gains),
    ]


def cases() -> list[Case]:
    """A world and its control for every model that claims something."""
    mlp = Method("mlp", "mlp", ("pooling=mean",))
    din = Method("din", "din", _SOFTMAX)
    newest = Method("din, newest 100", "din", _SOFTMAX)
    return [
        *_pair(
            "evolving interests",
            ("evolving", "no_evolution"),
            (din, Method("dien", "dien")),
            (("dien", "din", "auc"),),
            _PASSING,
        ),
        *_pair(
            "lasting interests",
            ("long_interest", "no_long_interest"),
            (
                newest,
                Method("sim, hard", "sim", ("search=hard", "top_k=100", *_SHORT)),
                Method(
                    "sim, soft",
                    "sim",
                    ("search=soft", "search_dim=64", "head_dim=64", "history=1000", *_SHORT),
                ),
            ),
            (("sim, hard", newest.name, "auc"), ("sim, soft", newest.name, "auc")),
        ),
        *_pair(
            "memory",
            ("standard", "single_taste"),
            (mlp, Method("mimn", "mimn", ("pooling=mean",))),
            (("mimn", "mlp", "auc"),),
        ),
        *_pair(
            "selection bias",
            ("selection_bias", "no_selection_bias"),
            (
                Method("click only", "esmm", ("mode=click_only", "pooling=mean")),
                Method("esmm", "esmm", ("pooling=mean",)),
            ),
            (("esmm", "click only", "conversion_given_click auc"),),
        ),
        *_pair(
            "feature crosses",
            ("crosses", "no_crosses"),
            (mlp, Method("dcn", "dcn", ("cross=full", "pooling=mean"))),
            (("dcn", "mlp", "auc"),),
        ),
        *_pair(
            "many interests",
            ("standard", "single_taste"),
            (
                Method("mind, K = 1", "mind", ("interests=1",)),
                Method("mind", "mind"),
            ),
            (("mind", "mind, K = 1", "recall@50"),),
            _RETRIEVAL,
        ),
    ]


def run(only: list[str] | None = None, seeds: int = 3) -> list[Row]:
    """Cases by name (all of them by default), with seeds 0, 1, ..."""
    return compare(choose(cases(), only), seeds)
