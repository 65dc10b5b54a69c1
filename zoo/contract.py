"""What every model of the zoo promises: its types, and the four names that a model module has.

    init(key, config)                                        -> variables
    apply(variables, config, batch)                          -> Output
    loss(variables, config, batch, *, key, axis_name=None)   -> (scalar, Aux)
    requirements(config), KIND

A model of KIND "retrieval" adds two, and its logit is the largest over a user's vectors:

    user_vectors(variables, config, batch)                   -> (B, K, d), mask (B, K)
    item_vectors(variables, config, items {field: (N,)})     -> (N, d)

An "evaluator" and a "reranking" model see all candidates of a request at once: the slots of a
slate, or what a slate is to be sorted from. A "generator" returns a `Slate` (see `zoo.rerank`).

`variables` are Flax's own collections, plain nested dicts: "tables" {name: (rows, dim)}, "params",
and "batch_stats" where a model keeps running statistics. Tables may be whole or pulled (the rows
that a batch names, ids renamed to positions): `apply` and `loss` never know which.

A batch is a dict nested by role. Shapes: `B` requests, `L` history events, `C` candidates.

    user, context {field: (B,)}          history {field: (B, L)}, history_mask, history_age (B, L)
    candidate {field: (B, C)}, candidate_mask (B, C)      label, weight {task: (B, C)}

and, where `requirements(config)` asks for them (the fields are those that stand in history):

    history_negative {field: (B, L)}     an item that is not the event's, fields of items only
    retrieved {field: (B, G, K)}, retrieved_mask, retrieved_age (B, G, K), group (B, C)
                                         what an index found in the whole past of the user, one
                                         group per distinct key of the candidates; group[b, c] is
                                         the candidate's, -1 where nothing matches
    sampled {field: (S,)}, sampled_log_q (S,), candidate_log_q (B, C)
                                         negatives shared by the batch, fields of items only, and
                                         the log of how many times S draws hold the item on
                                         average
    sampled_mask (B, S)                  which of them had appeared when the request was made; all,
                                         if it is absent
    preference (B, K)                    how much each of K objectives counts for the request
    slate {"order", "advantage": (B, M)} what a generator drew, and what each slot of it gained

`history_negative`, `sampled` and `slate` are for losses and absent when serving.

int32 = row id, float32 = dense, one more trailing axis = a bag or a dense vector. Row 0 is
padding and reads as zeros. Valid events stand oldest first; the mask may have holes.
"""

import dataclasses
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

from jaxtyping import Array, Float, Int, PRNGKeyArray

Batch: TypeAlias = dict[str, Any]
Variables: TypeAlias = dict[str, Any]


class Output(NamedTuple):
    """What a ranking model says of each candidate.

    `logit` ranks; `tasks` holds the log-odds of each task's label. A model that multiplies
    probabilities (ESMM) gives their logarithms too: they add where log-odds do not.
    """

    logit: Float[Array, "B C"]
    tasks: dict[str, Float[Array, "B C"]]
    log_probabilities: dict[str, Float[Array, "B C"]] | None = None


class Slate(NamedTuple):
    """What a generator shows: indices of candidates, best slot first, and their log probability.

    -1 where a request has fewer candidates than slots.
    """

    order: Int[Array, "B M"]
    log_probability: Float[Array, "B M"]


_FOR_LOSSES = (
    "label",
    "weight",
    "history_negative",
    "sampled",
    "sampled_log_q",
    "sampled_mask",
    "candidate_log_q",
    "slate",
)


def served(batch: Batch) -> Batch:
    """What is left of a batch when serving: the roles that `apply` may read."""
    return {role: value for role, value in batch.items() if role not in _FOR_LOSSES}


class Aux(NamedTuple):
    """By-products of a loss: updated running statistics, and every term of the loss by name."""

    batch_stats: dict[str, Any]
    terms: dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Requirements:
    """What the pipeline must put into a batch beyond labelled candidates and a history.

    Attributes:
      history_negatives: how `history_negative` is drawn among items that the user never touched:
        "uniform" or "log_popularity" (log-uniform over items by falling popularity).
      retrieved: newest events K per group of `retrieved`; 0 means no such role.
      group_by: the field whose value makes the groups.
      sampled: number S of shared negatives, drawn by log-uniform popularity. A model that has
        them gets positives only: requests whose candidates were not clicked are left out, and no
        negatives are added to them. 0 means none.
      preferences: number K of objectives whose weights a request brings.
    """

    history_negatives: Literal["none", "uniform", "log_popularity"] = "none"
    retrieved: int = 0
    group_by: str = "category"
    sampled: int = 0
    preferences: int = 0


NOTHING_MORE = Requirements()


@runtime_checkable
class Model(Protocol):
    """The shape of a model module; any module or object with these names can be trained."""

    Config: Any

    @property
    def KIND(self) -> str:
        """One of "ranking", "retrieval", "evaluator", "reranking", "generator"."""
        ...

    def init(self, key: PRNGKeyArray, config: Any) -> Variables:
        """Fresh variables, tables whole."""
        ...

    def apply(self, variables: Variables, config: Any, batch: Batch) -> Output:
        """Scores; pure, safe under jit, vmap and jax.export."""
        ...

    def loss(
        self,
        variables: Variables,
        config: Any,
        batch: Batch,
        *,
        key: PRNGKeyArray,
        axis_name: str | None = None,
    ) -> tuple[Float[Array, ""], Aux]:
        """The training loss, averaged over all devices of `axis_name`."""
        ...

    def requirements(self, config: Any) -> Requirements:
        """What the pipeline must draw."""
        ...
