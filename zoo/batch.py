"""The batch: what a request looks like to a model, part by part.

A batch is a dict nested by role. `PARTS` has every part with its first axes:

    B requests    L history events    C candidates    G groups of K retrieved events
    S shared negatives                O objectives    M slots of a slate    P pulled rows

A part of fields is a dict {field: array}; of tasks {task: array}, of tables {table: array}; the
others are arrays. int32 is a
row id and float32 a dense number; one more trailing axis makes a bag or a dense vector. Row 0 is
padding and reads as zeros. Valid events stand oldest first; a mask may have holes.

What a model needs beside labelled candidates and a history, it says in its `Requirements`; parts
that nothing asks for are absent. `history_age` is absent where a log has no clock.
"""

from typing import Any, Literal, NamedTuple, TypeAlias

Batch: TypeAlias = dict[str, Any]


class Part(NamedTuple):
    """A part of a batch.

    Attributes:
      axes: its first axes, as in the module's legend.
      holds: the role whose fields it holds; "item" for those that stand both in history and in
        candidate; "task"; "table"; "" if it is an array.
      for_loss: whether only a loss reads it, so that it is absent when serving.
    """

    axes: str
    holds: Literal["user", "context", "history", "candidate", "item", "task", "table", ""] = ""
    for_loss: bool = False


PARTS: dict[str, Part] = {
    "user": Part("B", "user"),
    "context": Part("B", "context"),
    "history": Part("BL", "history"),
    "history_mask": Part("BL"),
    # Seconds before the request.
    "history_age": Part("BL"),
    "candidate": Part("BC", "candidate"),
    "candidate_mask": Part("BC"),
    "label": Part("BC", "task", for_loss=True),
    "weight": Part("BC", "task", for_loss=True),
    # An item that is not the event's (DIEN's auxiliary loss).
    "history_negative": Part("BL", "item", for_loss=True),
    # What an index found in the whole past of the user: one group per distinct key of the
    # candidates. group[b, c] is the candidate's group, -1 where nothing matches (SIM, hard search).
    "retrieved": Part("BGK", "history"),
    "retrieved_mask": Part("BGK"),
    "retrieved_age": Part("BGK"),
    "group": Part("BC"),
    # Negatives that the batch shares, the log of how many times S draws hold each item on average,
    # and which of them had appeared when the request was made (all, if the mask is absent).
    "sampled": Part("S", "item", for_loss=True),
    "sampled_log_q": Part("S", for_loss=True),
    "sampled_mask": Part("BS", for_loss=True),
    "candidate_log_q": Part("BC", for_loss=True),
    # How much each objective counts for the request.
    "preference": Part("BO"),
    # {table: (P, 0)}: ids are positions in pulled tables of so many rows, not rows of whole ones.
    "pulled": Part("P", "table", for_loss=True),
    # {"order", "advantage"}: what a generator drew, and what each slot of it gained.
    "slate": Part("BM", for_loss=True),
}
EVENT_PARTS = tuple(name for name, part in PARTS.items() if part.axes == "BL")
"""Parts that follow the history event by event."""


def served(batch: Batch) -> Batch:
    """The parts of a batch that `apply` may read; those of losses are left out."""
    return {name: value for name, value in batch.items() if not part_of(name).for_loss}


def part_of(name: str) -> Part:
    """The part of this name; one that the table does not have belongs to each request."""
    return PARTS.get(name, Part("B"))
