"""Settings of a run: what data it sees, and how it is trained."""

from collections.abc import Callable
import dataclasses
import math
from pathlib import Path
from typing import Literal

import optax

from ..zoo.features import RESERVED_ROWS
from . import tables
from .data.protocol import POPULARITY, UNIFORM, Protocol

TABLE_OPTIMIZERS: dict[str, Callable[..., tables.RowOptimizer]] = {
    "sgd": tables.sgd,
    "adagrad": tables.adagrad,
    "rowwise_adagrad": tables.row_wise_adagrad,
    "lazy_adam": tables.lazy_adam,
    "ftrl": tables.ftrl,
    "proximal": lambda **penalties: tables.chain(tables.adagrad(), tables.proximal(**penalties)),
}
# Which settings an optimiser of rows takes as options of its own.
TABLE_PENALTIES = {"ftrl": ("l1",), "proximal": ("l1", "l21")}

OPTIMIZERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "sgd": optax.identity,
    "adagrad": optax.scale_by_rss,
    "adam": optax.scale_by_adam,
}

_MOST = 2**31


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSettings(Protocol):
    """Settings of the data: the protocol of a log of interactions, and fields added or left out.

    Attributes:
      negatives: drawn per positive, where the source holds only positives.
      point_in_time: whether negatives are only items that had appeared when a request was made,
        instead of all that training knows.
      history: newest events of a user that the model sees.
      leave_out: fields that the model is not to see, NAME or ROLE.NAME.
      crosses: combinations of id fields to add, e.g. user.city*candidate.category.
      cross_rows: rows of each cross's table.
      cross_history: newest events that are crossed.
      statistics: counts of past events to add, e.g. count(item;7d); see `data.fields.statistics`.
    """

    negatives: int = 3
    point_in_time: bool = False
    history: int = 50
    leave_out: tuple[str, ...] = ()
    crosses: tuple[str, ...] = ()
    cross_rows: int = 2**16
    cross_history: int = 10
    statistics: tuple[str, ...] = ()

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int):
                self._require(field.name, value < _MOST, f"< {_MOST}")
            elif isinstance(value, float):
                self._require(field.name, math.isfinite(value), "finite")
        if self.evaluation_negatives not in (UNIFORM, POPULARITY):
            # What a run remembers must be there from any folder.
            path = str(Path(self.evaluation_negatives).expanduser().absolute())
            object.__setattr__(self, "evaluation_negatives", path)
        super().__post_init__()
        for name in ("history", "negatives", "cross_history"):
            self._require(name, getattr(self, name) >= 1, ">= 1")
        self._require("cross_rows", self.cross_rows > RESERVED_ROWS, f"> {RESERVED_ROWS}")

    def _require(self, name: str, fine: bool, rule: str) -> None:
        if not fine:
            raise ValueError(f"{name} must be {rule}, got {getattr(self, name)}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(DataSettings):
    """Settings of a run; the values here and above are the frozen defaults (see `defaults`).

    Attributes:
      epochs: passes over the training requests.
      steps: stop after so many steps even if epochs remain; 0 means no such limit.
      batch_size: labelled candidates per step; 0 takes what suits their number, see
        `data.batches.pipeline.fitting_batch`.
      seed: of initial parameters, order, negatives and dropout.
      table_optimizer: for the rows of tables: sgd, adagrad, rowwise_adagrad, lazy_adam, ftrl (for
        lr; its alpha is the rate) or proximal (for mlr).
      table_learning_rate: for the rows of tables.
      optimizer: for all other parameters: sgd, adagrad or adam.
      learning_rate: for all other parameters.
      schedule: "linear" lets both rates fall to zero at the last step, "constant" does not.
      clip_norm: largest global norm of the gradient of the other parameters; 0 means no limit.
      l2: mini-batch-aware L2 of the rows (DIN, section 5.1); 0 means none.
      l1: makes single weights of the rows zero; for ftrl and proximal.
      l21: makes whole rows zero; for proximal.
      patience: stop after so many epochs without a better validation AUC; 0 means never.
      unseen_share: share of ids shown as unknown in training, so that row 1 learns.
      checkpoint_every: steps between checkpoints; there is one at the end of every epoch anyway.
      positive_rate: share of positives of the first task where the model serves, if negatives were
        sampled: shifts the probabilities that are served, no metric; 0 means as in validation.
    """

    epochs: int = 10
    steps: int = 0
    batch_size: int = 0
    seed: int = 0
    table_optimizer: str = "lazy_adam"
    table_learning_rate: float = 1e-2
    optimizer: str = "adam"
    learning_rate: float = 2e-3
    schedule: Literal["linear", "constant"] = "linear"
    clip_norm: float = 10.0
    l2: float = 0.0
    l1: float = 0.0
    l21: float = 0.0
    patience: int = 2
    unseen_share: float = 0.002
    checkpoint_every: int = 1000
    positive_rate: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        for name in ("epochs", "checkpoint_every"):
            self._require(name, getattr(self, name) >= 1, ">= 1")
        for name in ("batch_size", "steps", "patience", "l2", "l1", "l21", "clip_norm", "seed"):
            self._require(name, getattr(self, name) >= 0, ">= 0")
        for name in ("table_learning_rate", "learning_rate"):
            self._require(name, getattr(self, name) > 0, "> 0")
        for name in ("unseen_share", "positive_rate"):
            self._require(name, 0 <= getattr(self, name) < 1, "in [0, 1)")
        for name, known in (("table_optimizer", TABLE_OPTIMIZERS), ("optimizer", OPTIMIZERS)):
            self._require(name, getattr(self, name) in known, f"one of {', '.join(known)}")
        self._require("schedule", self.schedule in ("linear", "constant"), "linear or constant")
        for name in ("l1", "l21"):
            able = [key for key, names in TABLE_PENALTIES.items() if name in names]
            fine = not getattr(self, name) or self.table_optimizer in able
            self._require(name, fine, f"0 unless table_optimizer is {' or '.join(able)}")

    def row_optimizer(self) -> tables.RowOptimizer:
        """The optimiser of the rows, with its options."""
        names = TABLE_PENALTIES.get(self.table_optimizer, ())
        return TABLE_OPTIMIZERS[self.table_optimizer](**{n: getattr(self, n) for n in names})
