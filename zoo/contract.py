"""What every model of the zoo promises: its types, and the four names that a model module has.

    init(key, config)                                        -> variables
    apply(variables, config, batch)                          -> Output
    loss(variables, config, batch, *, key, axis_name=None)   -> (scalar, Aux)
    requirements(config), KIND

`variables` are Flax's own collections, plain nested dicts: "tables" {name: (rows, dim)}, "params",
and "batch_stats" where a model keeps running statistics. Tables may be whole or pulled (the rows
that a batch names, ids renamed to positions): `apply` and `loss` never know which.

A batch is a dict nested by role. Shapes: `B` requests, `L` history events, `C` candidates.

    user, context {field: (B,)}          history {field: (B, L)}, history_mask, history_age (B, L)
    candidate {field: (B, C)}, candidate_mask (B, C)      label, weight {task: (B, C)}

int32 = row id, float32 = dense, one more trailing axis = a bag or a dense vector. Row 0 is
padding and reads as zeros. Valid events stand oldest first; the mask may have holes.
"""

import dataclasses
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

from jaxtyping import Array, Float, PRNGKeyArray

Batch: TypeAlias = dict[str, Any]
Variables: TypeAlias = dict[str, Any]


class Output(NamedTuple):
    """What a ranking model says of each candidate. `logit` ranks; `tasks` holds one per task."""

    logit: Float[Array, "B C"]
    tasks: dict[str, Float[Array, "B C"]]


class Aux(NamedTuple):
    """By-products of a loss: updated running statistics, and every term of the loss by name."""

    batch_stats: dict[str, Any]
    terms: dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Requirements:
    """What the pipeline must put into a batch for this model, beyond labelled candidates."""

    history: bool = True


@runtime_checkable
class Model(Protocol):
    """The shape of a model module; any module or object with these names can be trained."""

    Config: Any

    @property
    def KIND(self) -> str:
        """One of "ranking", "retrieval", "evaluator", "generator"."""
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
