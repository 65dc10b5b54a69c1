"""Exact retrieval over a whole catalogue, and how good it is.

No index, no approximation: every user vector meets every item, a block at a time, so memory stays
bounded whatever the catalogue. This is the truth that approximate indices are measured against.
Shapes: `R` requests, `K` vectors per user, `N` items, `D` width, `k` retrieved, `E` excluded.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped
import numpy as np

from ...zoo.contract import Model, Variables
from ...zoo.features import PADDING_ROW, require_rows
from ...zoo.layers.retrieval import identity_field
from ..data.batches.pipeline import evaluation_batches
from ..data.dataset import Dataset
from ..data.event_log import EventLog, Requests
from . import lists

NOTHING = -1
SERIES = (20, 50)
_USERS, _ITEMS, _CANDIDATES = 256, 16384, 8192
# Past items of a block of requests: at least so many for each, about so many in all.
_NARROWEST, _EXCLUDED = 64, 2**20
_SORTED_EVENTS = 2**22

_Numbers = np.ndarray | Array


class Top(NamedTuple):
    """Items by falling score, each at most once; -1 with score -inf where there are no more."""

    item: Int[np.ndarray, "R k"]
    score: Float[np.ndarray, "R k"]


def top_items(
    users: Float[_Numbers, "R K D"],
    mask: Bool[_Numbers, "R K"],
    items: Float[_Numbers, "N D"],
    k: int,
    *,
    exclude: Int[np.ndarray, "R E"] | None = None,
    valid: Bool[np.ndarray, " N"] | None = None,
    user_block: int = _USERS,
    item_block: int = _ITEMS,
) -> Top:
    """The k items with the largest max_j v_j . e over a user's real vectors; ties by item.

    Args:
      users: the vectors of each user.
      mask: which of them are real; a user without any gets nothing.
      items: one vector per item.
      k: how many to find.
      exclude: items that a user must not get; -1 fills the rows up.
      valid: which items exist; all by default.
      user_block, item_block: scores of K x user_block x item_block pairs are held at a time.
    """
    if k < 1:
        raise ValueError(f"top_items: k must be >= 1, got {k}.")
    exclude = np.full((len(users), 0), NOTHING, np.int32) if exclude is None else exclude
    blocks = _in_blocks(items, valid, item_block)
    user_block = max(1, min(user_block, len(users)))
    found = []
    for start in range(0, len(users), user_block):
        some = slice(start, start + user_block)
        found.append(_best(users[some], mask[some], exclude[some], blocks, k, user_block))
    if not found:
        return Top(np.zeros((0, k), np.int32), np.zeros((0, k), np.float32))
    return Top(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def _in_blocks(items: _Numbers, valid: np.ndarray | None, size: int = _ITEMS) -> tuple[Any, Any]:
    """Items and whether each exists, (blocks, size, ...), on the device."""
    valid = np.ones(len(items), bool) if valid is None else valid
    size = max(1, min(size, len(items)))
    missing = -len(items) % size
    return (
        jnp.pad(jnp.asarray(items), ((0, missing), (0, 0))).reshape(-1, size, items.shape[1]),
        jnp.pad(jnp.asarray(valid), (0, missing)).reshape(-1, size),
    )


def _best(
    users: _Numbers, mask: _Numbers, exclude: np.ndarray, blocks: Any, k: int, rows: int
) -> Top:
    """The top items of at most `rows` users; always computed for so many, that shapes repeat."""
    item, score = _search(*(_padded(x, rows) for x in (users, mask, exclude)), *blocks, k)
    return Top(np.asarray(item)[: len(users)], np.asarray(score)[: len(users)])


def _padded(array: Any, rows: int) -> Array:
    array = jnp.asarray(array)
    return jnp.pad(array, ((0, rows - len(array)), *[(0, 0)] * (array.ndim - 1)))


@functools.partial(jax.jit, static_argnames="k")
def _search(users, mask, exclude, items, valid, k):
    """Scans blocks of items, keeping the best k of each user so far."""
    rows, block = jnp.arange(len(users))[:, None], items.shape[1]

    def visit(best, at):
        start, items, valid = at
        # Exact is exact: no bfloat16 or TF32 passes.
        pairs = jnp.einsum("rkd,nd->rkn", users, items, precision=jax.lax.Precision.HIGHEST)
        score = jnp.max(pairs, axis=1, where=mask[:, :, None], initial=-jnp.inf)
        score = jnp.where(valid[None], score, -jnp.inf)
        inside = (exclude >= start) & (exclude < start + block)
        score = score.at[rows, jnp.where(inside, exclude - start, block)].set(-jnp.inf, mode="drop")
        index = jnp.broadcast_to(start + jnp.arange(block, dtype=jnp.int32), score.shape)
        # Earlier items stand first, and top_k prefers what stands first among equals.
        index = jnp.concatenate([best[0], index], axis=1)
        score = jnp.concatenate([best[1], score], axis=1)
        score, place = jax.lax.top_k(score, k)
        return (jnp.take_along_axis(index, place, axis=1), score), None

    nobody = jnp.full((len(users), k), NOTHING, jnp.int32)
    best = nobody, jnp.full((len(users), k), -jnp.inf, jnp.float32)
    starts = jnp.arange(len(items), dtype=jnp.int32) * block
    (index, score), _ = jax.lax.scan(visit, best, (starts, items, valid))
    return jnp.where(score == -jnp.inf, NOTHING, index), score


def evaluate_retrieval(
    model: Model,
    config: Any,
    variables: Variables,
    dataset: Dataset,
    requests: Requests,
    *,
    history: int,
    category: str = "category",
) -> dict[str, Any]:
    """Metrics of a retrieval model that ranks the whole catalogue for each request.

    Relevant are the candidates with label 1 of the first task; requests without any are left out.
    What a user has had before the cut, in the whole past and not only in the newest `history`
    events, is not offered again, unless it is relevant: a repeated purchase counts. Items whose
    identity is padding (a null id) are never offered.

    Returns:
      See `measure`; `category` names the field of items that `categories@50` counts.
    """
    log, judged = dataset.log, Judged.of(dataset, requests)
    items = _item_vectors(model, config, variables, log)
    users, mask = _user_vectors(model, config, variables, log, judged.requests, history)
    if not (np.isfinite(users[mask]).all() and np.isfinite(items).all()):
        raise FloatingPointError(
            "Some vectors are not finite: lower the learning rates, or check dense inputs."
        )
    return measure(retrieve(dataset, judged, users, mask, items), judged, category)


class Judged(NamedTuple):
    """Requests with something relevant, and what metrics need to know of the items.

    Attributes:
      requests: `R` of them.
      relevant: distinct relevant items of each; -1 fills the rows up.
      popularity: how often each item is a positive of training.
      items: the columns of the items.
    """

    requests: Requests
    relevant: Int[np.ndarray, "R M"]
    popularity: Int[np.ndarray, " N"]
    items: dict[str, np.ndarray]

    @staticmethod
    def of(dataset: Dataset, requests: Requests) -> "Judged":
        """Relevant items of `requests`; ValueError if nothing is relevant."""
        task = dataset.schema.tasks[0]
        relevant = _positives(requests, task)
        some = np.flatnonzero((relevant >= 0).any(axis=1))
        if not len(some):
            raise ValueError(
                f"Retrieval cannot be judged: of {len(requests)} requests of {dataset.name!r} none "
                f"has a candidate with {task!r}."
            )
        trained = _positives(dataset.train, task)
        popularity = np.bincount(trained[trained >= 0], minlength=dataset.log.num_items)
        return Judged(requests.take(some), relevant[some], popularity, dataset.log.items)


def _positives(requests: Requests, task: str) -> np.ndarray:
    """Candidates with label 1, each once per request; -1 elsewhere."""
    positive = (requests.label[task] > 0) & (requests.candidate >= 0)
    items = -np.sort(-np.where(positive, requests.candidate, NOTHING), axis=1)
    items[:, 1:][items[:, 1:] == items[:, :-1]] = NOTHING
    return items


def measure(top: Top, judged: Judged, category: str = "category") -> dict[str, Any]:
    """Metrics of retrieved items, ready for JSON; undefined ones are None.

    Returns:
      "requests", "recall@20", "recall@50", "ndcg@50", "coverage@50" (share of the catalogue that
      anybody is offered), "recall@50 by popularity" (see `recall_by_popularity`) and, where items
      have the field `category`, "categories@50" (distinct ones per request).
    """
    relevant, last = judged.relevant, SERIES[-1]
    hit = hits(top.item, relevant)
    # What was retrieved has an order: its ties are broken.
    order = np.where(np.isnan(top.score), np.nan, -np.arange(top.item.shape[1], dtype=np.float64))
    count = (relevant >= 0).sum(axis=1)
    result: dict[str, Any] = {"requests": len(relevant)}
    for k in SERIES:
        result[f"recall@{k}"] = lists.recall_at_k(order, hit, k=k, relevant=count)
    result[f"ndcg@{last}"] = lists.ndcg_at_k(order, hit, k=last, relevant=count)
    shown = top.item[:, :last]
    result[f"coverage@{last}"] = coverage(shown, len(judged.popularity))
    result[f"recall@{last} by popularity"] = recall_by_popularity(
        shown, relevant, judged.popularity
    )
    column = judged.items.get(category)
    if column is not None and column.ndim == 1:
        result[f"categories@{last}"] = categories_covered(shown, column)
    return _finite(result)


def hits(item: Int[np.ndarray, "R k"], relevant: Int[np.ndarray, "R M"]) -> Bool[np.ndarray, "R k"]:
    """True where a retrieved item is relevant."""
    # Sought among the pairs that are real: most requests have fewer than the widest.
    span = 1 + max(int(item.max(initial=0)), int(relevant.max(initial=0)))
    row, _ = np.nonzero(relevant >= 0)
    pairs = row * span + relevant[relevant >= 0]
    sought = np.arange(len(item))[:, None] * span + item
    return (item >= 0) & np.isin(sought, pairs)


def coverage(item: Int[np.ndarray, "R k"], num_items: int) -> float:
    """Share of the catalogue that is retrieved for anybody."""
    return len(np.unique(item[item >= 0])) / num_items


def recall_by_popularity(
    item: Int[np.ndarray, "R k"],
    relevant: Int[np.ndarray, "R M"],
    popularity: Int[np.ndarray, " N"],
) -> dict[str, float]:
    """Share of relevant items that are retrieved: of the head, the middle and the tail.

    Each third holds a third of all positives of training: few popular items in the head, many in
    the tail, among them those that training never saw. NaN where nothing of a third is relevant.
    """
    order = np.argsort(-popularity, kind="stable")
    before = np.cumsum(popularity[order]) - popularity[order]
    third = np.empty(len(order), int)
    third[order] = np.minimum(3 * before // max(popularity.sum(), 1), 2)
    found = hits(relevant, item)
    asked = third[relevant[relevant >= 0]]
    got = np.bincount(third[relevant[found]], minlength=3)
    return {
        name: float(got[i] / n) if (n := np.sum(asked == i)) else np.nan
        for i, name in enumerate(("head", "middle", "tail"))
    }


def categories_covered(item: Int[np.ndarray, "R k"], category: Shaped[np.ndarray, " N"]) -> float:
    """Distinct categories among the items retrieved for a request, mean over requests.

    One vector finds one neighbourhood; several find several (MIND, section 1).
    """
    value = np.where(item >= 0, category[np.maximum(item, 0)], PADDING_ROW)
    value = np.sort(value, axis=1)
    fresh = np.diff(value, axis=1, prepend=PADDING_ROW) != 0
    return float(fresh.sum(axis=1).mean()) if len(item) else np.nan


def retrieve(
    dataset: Dataset, judged: Judged, users: np.ndarray, mask: np.ndarray, items: np.ndarray
) -> Top:
    """The top items of every judged request; see `evaluate_retrieval`.

    Requests are searched for beside others of about as many distinct past items, fewer at a time
    the more these are: one user with a long past is one row of a block of its own.
    """
    valid = dataset.log.items[identity_field(dataset.schema).name] != PADDING_ROW
    blocks, past = _in_blocks(items, valid), _Past(dataset.log, judged.requests)
    count = len(judged.requests)
    top = Top(np.empty((count, SERIES[-1]), np.int32), np.empty((count, SERIES[-1]), np.float32))
    width = np.maximum(_NARROWEST, _power_of_two(past.size))
    for wide in np.unique(width):
        alike = np.flatnonzero(width == wide)
        rows = max(1, min(_USERS, _EXCLUDED // int(wide), int(_power_of_two(len(alike)))))
        for start in range(0, len(alike), rows):
            some = alike[start : start + rows]
            exclude = past.items(some, int(wide))
            exclude = np.where(hits(exclude, judged.relevant[some]), NOTHING, exclude)
            found = _best(users[some], mask[some], exclude, blocks, SERIES[-1], rows)
            top.item[some], top.score[some] = found
    return top


def _power_of_two(size: Any) -> Any:
    """The smallest power of two that is not smaller."""
    return 1 << np.ceil(np.log2(np.maximum(size, 1))).astype(np.int64)


class _Past:
    """The distinct items before the cut of each request.

    Where each user first met each item is found once. It is in order of time, so the past of any
    of the user's requests is the beginning of one list.

    Attributes:
      size: (R,) how many distinct items each request's past holds.
    """

    def __init__(self, log: EventLog, requests: Requests):
        first = _first_meetings(log, np.unique(requests.user))
        self._item = log.item[first]
        begin = log.offsets[requests.user]
        self._start = np.searchsorted(first, begin)
        self.size = np.searchsorted(first, begin + requests.cut) - self._start

    def items(self, request: np.ndarray, width: int) -> np.ndarray:
        """(len(request), width) int32 items of these requests; -1 fills the rows up."""
        column = np.arange(width)
        real = column < self.size[request][:, None]
        at = np.where(real, self._start[request][:, None] + column, 0)
        if not len(self._item):
            return np.full(at.shape, NOTHING, np.int32)
        return np.where(real, self._item[at], np.int32(NOTHING))


def _first_meetings(log: EventLog, users: np.ndarray) -> np.ndarray:
    """Indices into the log, ascending: where each of the users meets an item for the first time."""
    length = log.offsets[users + 1] - log.offsets[users]
    # A few users at a time, so that sorting takes little memory beside the log itself.
    part = np.cumsum(length) // _SORTED_EVENTS
    found = [np.zeros(0, np.int64)]
    for some in np.split(users, np.flatnonzero(np.diff(part)) + 1):
        length = log.offsets[some + 1] - log.offsets[some]
        row = np.repeat(np.arange(len(some)), length)
        at = np.arange(len(row)) + np.repeat(log.offsets[some] - np.cumsum(length) + length, length)
        # `unique` gives the first of equals.
        _, first = np.unique(row * log.num_items + log.item[at], return_index=True)
        found.append(np.sort(at[first]))
    return np.concatenate(found)


@functools.lru_cache(maxsize=16)
def _towers(model: Any, config: Any):
    user = jax.jit(lambda variables, batch: model.user_vectors(variables, config, batch))
    return user, jax.jit(lambda variables, items: model.item_vectors(variables, config, items))


def _item_vectors(model: Any, config: Any, variables: Variables, log: EventLog) -> np.ndarray:
    columns = {field.name: log.items[field.name] for field in config.schema.item_fields}
    require_rows(config.schema, {"candidate": columns}, ["candidate"])
    vectors = [
        _towers(model, config)[1](
            variables, {n: c[start : start + _ITEMS] for n, c in columns.items()}
        )
        for start in range(0, log.num_items, _ITEMS)
    ]
    return np.concatenate(vectors)


def _user_vectors(
    model: Any, config: Any, variables: Variables, log: EventLog, requests: Requests, history: int
) -> tuple[np.ndarray, np.ndarray]:
    batches = evaluation_batches(
        config.schema,
        log,
        requests,
        batch_size=_CANDIDATES,
        history=history,
        requirements=model.requirements(config),
    )
    unknown = ("label", "weight", "candidate", "candidate_mask")
    parts = []
    for batch in batches:
        require_rows(config.schema, batch)
        known = {role: value for role, value in batch.items() if role not in unknown}
        parts.append(_towers(model, config)[0](variables, known))
    users, mask = (np.concatenate(column)[: len(requests)] for column in zip(*parts, strict=True))
    return users, mask


def _finite(result: Any) -> Any:
    if isinstance(result, dict):
        return {name: _finite(value) for name, value in result.items()}
    return result if np.isfinite(result) else None
