"""The contract of models: types, and the four names that a model module has.

    init(key, config)                                        -> variables
    apply(variables, config, batch)                          -> Output
    loss(variables, config, batch, *, key, axis_name=None)   -> (scalar, Aux)
    requirements(config), KIND

What a kind of model has besides is a Protocol of its own: `Retriever`, `Evaluator`, `Generator`. An
evaluator and a re-ranker (KIND "reranking") see all candidates of a request at once: the slots of a
slate, or what a slate is to be sorted from. A model of KIND "generator" gives a `Slate`; those that
are trained against evaluators, and that LAST can move, are `Generator`s.

`variables` are Flax's own collections, plain nested dicts: "tables" {name: (rows, dim)}, "params",
and "batch_stats" where a model keeps running statistics. Tables may be whole or pulled (the rows
that a batch names, ids renamed to positions): `apply` and `loss` never know which.

A batch is a dict nested by role, see `zoo.batch`.
"""

import dataclasses
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from .batch import Batch

Variables: TypeAlias = dict[str, Any]


class Output(NamedTuple):
    """Scores of a ranking model.

    `logit` ranks; `tasks` holds the log-odds of each task's label. A model that multiplies
    probabilities (ESMM) gives their logarithms too: they add where log-odds do not.
    """

    logit: Float[Array, "B C"]
    tasks: dict[str, Float[Array, "B C"]]
    log_probabilities: dict[str, Float[Array, "B C"]] | None = None


class Slate(NamedTuple):
    """Slates of a generator: indices of candidates, best slot first, and their log probability.

    -1 where a request has fewer candidates than slots.
    """

    order: Int[Array, "B M"]
    log_probability: Float[Array, "B M"]


class Aux(NamedTuple):
    """By-products of a loss: updated running statistics, and every term of the loss by name."""

    batch_stats: dict[str, Any]
    terms: dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Requirements:
    """Parts of a batch that a model needs beyond labelled candidates and a history.

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

    def apply(self, variables: Variables, config: Any, batch: Batch) -> Any:
        """An `Output`, or a `Slate`; pure, safe under jit, vmap and jax.export."""
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
        """The parts that the input pipeline must add."""
        ...


@runtime_checkable
class Retriever(Model, Protocol):
    """A model that finds items: its logit is the largest over a user's vectors."""

    def user_vectors(
        self, variables: Variables, config: Any, batch: Batch
    ) -> tuple[Float[Array, "B K D"], Bool[Array, "B K"]]:
        """Vectors of each user, and which of them exist."""
        ...

    def item_vectors(
        self, variables: Variables, config: Any, items: dict[str, Array]
    ) -> Float[Array, "N D"]:
        """Vectors of items {field: (N,)}."""
        ...


@runtime_checkable
class Evaluator(Model, Protocol):
    """A model that judges slates: the candidates are encoded once, whatever is made of them."""

    def encode(self, variables: Variables, config: Any, batch: Batch) -> Any:
        """The encoding that all slates of a request share."""
        ...

    def judge(
        self, variables: Variables, config: Any, encoded: Any, order: Int[Array, "B S M"]
    ) -> Float[Array, "B S M T"]:
        """Log-odds of each task for every slot of S slates."""
        ...


@runtime_checkable
class Generator(Model, Protocol):
    """A model that writes slates, and that LAST can move while it serves.

    `MOVED` names the activations of what `encode` gives that LAST moves. The config has `slots`
    and `discount`.
    """

    @property
    def MOVED(self) -> tuple[str, ...]:
        """Names of activations."""
        ...

    def encode(self, variables: Variables, config: Any, batch: Batch) -> Any:
        """The encoding that all slates of a request share: a NamedTuple."""
        ...

    def decode(
        self,
        variables: Variables,
        config: Any,
        encoded: Any,
        *,
        direction: Any = None,
        steps: Float[Array, " S"] | None = None,
        noise: Any = None,
        temperature: float = 1.0,
    ) -> Any:
        """`order` and `log_probability` (B, S, M): a slate for every step along `direction`."""
        ...

    def log_probability(
        self, variables: Variables, config: Any, encoded: Any, order: Int[Array, "B S M"]
    ) -> Float[Array, "B S M"]:
        """log pi of every choice of given slates."""
        ...


@runtime_checkable
class ParameterGenerator(Generator, Protocol):
    """A generator whose decoder's parameters LAST can move too."""

    def parts(self, variables: Variables, config: Any, encoded: Any) -> tuple[Any, Any]:
        """The decoder's inputs of a request, and its weights."""
        ...
