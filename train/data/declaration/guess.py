"""Guesses what the columns of a log mean, from their names and their values.

A feature of a candidate must be a property of the item, not of the event that the item stands in:
what came of an event (a rating), who caused it (a buyer's city) or which visit it was part of (a
session id) would tell the answer. Where every item is bought once, all of these have one value per
item. So a column is an item's only if events of one item by *different users* agree, and enough of
them to be no coincidence; likewise a user's, over different items. What changes slowly (a price, a
city) is read as of the event: the value last seen before it. Everything else is ignored, with the
reason, until a declaration says what it is.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute

from ....zoo.features.signature import mix
from .clock import looks_like_epoch, looks_like_time
from .columns import Column, Columns
from .values import (
    as_lists,
    as_numbers,
    as_text,
    is_boolean,
    is_fraction,
    is_list,
    is_whole,
    parse_list,
)

pc: Any = pyarrow.compute  # its functions are made when it is imported

CONTEXT = "context_"
_TIME_NAMES = ("time", "date", "day", "ts", "stamp", "created", "updated", "when", "epoch")
_WIDEST_BAG = 64
# Evidence: pairs of events that agree, as a share of all; and how likely a coincidence may be.
_SUPPORT, _FEWEST, _COINCIDENCE = 0.01, 2, 0.2
# What changes: how often, or how closely, a value resembles the one before it.
_STEADY, _FEWEST_CHANGING = 0.5, 20
_UNIQUE, _FEWEST_UNIQUE = 0.9, 20
_OUTCOME = "differs from event to event and may be its outcome: declare it, if it is not"
_CLOCK = "looks like a time; if it is the clock: rename it to timestamp, or declare it"


class Events(NamedTuple):
    """Whose each event of a table is: codes of users and items, (n,), and its time, (n,) int64."""

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray


def named(table: pa.Table) -> list[Column]:
    """The columns whose name says what they are; of those, how the values are to be read."""
    found = []
    roles = {"user_id": "user_id", "item_id": "item_id", "behavior": "behavior"}
    for name in table.column_names:
        values = _whole_column(table, name)
        if name in roles:
            why = "name"
            found.append(Column(name=name, role=roles[name], why=why, **_id_of(values)))  # type: ignore[arg-type]
        elif name == "timestamp":
            found.append(Column(name=name, role="time", why="name"))
        elif name == "rating":
            found.append(Column(name=name, role="rating", kind="number", why="name"))
        elif name == "category_id":
            found.append(Column(name=name, role="item", why="name", **_id_of(values)))
        elif name.startswith(CONTEXT):
            read = kind_of(values)
            if isinstance(read, str):
                found.append(Column(name=name, role="ignored", why=read))
            else:
                found.append(Column(name=name, role="context", why="name", **read))
    return found


def guess(
    table: pa.Table, events: Events, known: list[Column], *, has_clock: bool = True
) -> Columns:
    """A declaration of every column.

    Args:
      table: of events.
      events: whose each row is.
      known: what is settled already, such as by `named`.
      has_clock: whether times of different users can be compared.
    """
    settled = {column.name: column for column in known}
    has_time = any(column.role == "time" for column in known)
    pairs = _Pairs.of(events)
    found = []
    for name in table.column_names:
        if name in settled:
            found.append(settled[name])
            continue
        values = _whole_column(table, name)
        found.append(_guess_one(name, values, events, pairs, has_clock, has_time))
    return Columns(tuple(found))


class _Pairs(NamedTuple):
    """Events that follow each other: of one item by different users, of one user on others."""

    item: tuple[np.ndarray, np.ndarray]
    user: tuple[np.ndarray, np.ndarray]

    @staticmethod
    def of(events: Events) -> "_Pairs":
        def following(owner: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            order = np.lexsort((events.time, owner))
            first, second = order[:-1], order[1:]
            useful = (owner[first] == owner[second]) & (other[first] != other[second])
            return first[useful], second[useful]

        return _Pairs(following(events.item, events.user), following(events.user, events.item))


def _guess_one(
    name: str, values: pa.Array, events: Events, pairs: _Pairs, has_clock: bool, has_time: bool
) -> Column:
    ignored = lambda why: Column(name=name, role="ignored", why=why)
    if values.null_count == len(values):
        return ignored("is empty")
    if looks_like_time(values) or (_named_like_time(name) and looks_like_epoch(values)):
        return ignored("looks like a time; if it is a feature declare it" if has_time else _CLOCK)
    read = kind_of(values)
    if isinstance(read, str):
        return ignored(read)
    code = codes_of(values)
    there = code >= 0
    counts = np.bincount(code[there])
    if len(counts) < 2:
        return ignored("has one value only")
    column = lambda role, why, **more: Column(name=name, role=role, why=why, **read, **more)
    evidence = {
        owner: _evidence(code, values, read, getattr(events, owner), getattr(pairs, owner))
        for owner in ("user", "item")
    }
    for owner in ("user", "item"):
        facts = evidence[owner]
        if not facts.constant:
            continue
        owners = len(np.unique(getattr(events, owner)[there]))
        unique = read["kind"] == "id" and owners >= _FEWEST_UNIQUE
        unique = unique and len(counts) >= _UNIQUE * owners
        if facts.is_supported(int(there.sum()), counts):
            if owner == "user" and unique:
                return ignored("has one value per user: no more than user_id says")
            why = f"one value per {owner}; {facts.pairs} pairs of events agree"
            return column(owner, f"{why}; nearly unique" if unique else why)
    item, user = evidence["item"], evidence["user"]
    if item.constant and not user.constant:
        return ignored(
            f"has one value per item, but only {item.pairs} pairs of events of one item by "
            "different users show that it is the item's: declare it, if it is"
        )
    steady = {
        owner: facts.steadiness
        for owner, facts in evidence.items()
        if facts.pairs >= max(_FEWEST_CHANGING, _SUPPORT * there.sum())
        and (read["kind"] != "id" or _is_shared(code, getattr(events, owner)))
        and (owner == "user" or has_clock)
    }
    best = max(steady, key=lambda owner: steady[owner], default="")
    if best and steady[best] >= _STEADY and read["kind"] in ("id", "number"):
        why = f"changes; {steady[best]:.0%} like the {best}'s last value: read as of the event"
        return column(best, why, per="event")
    if not has_time and looks_like_epoch(values):
        return ignored(_CLOCK)
    return ignored(_OUTCOME)


class _Evidence(NamedTuple):
    """Relation of a column to its owners.

    Attributes:
      constant: every owner has one value.
      pairs: how many pairs of events could have shown otherwise.
      steadiness: how alike the values of a pair are, 0 being chance and 1 the same.
    """

    constant: bool
    pairs: int
    steadiness: float

    def is_supported(self, events: int, counts: np.ndarray) -> bool:
        """True if so many agreeing pairs are no coincidence."""
        if self.pairs < max(_FEWEST, _SUPPORT * events):
            return False
        by_chance = float(np.sum((counts / counts.sum()) ** 2))
        return by_chance**self.pairs <= _COINCIDENCE


def _evidence(
    code: np.ndarray,
    values: pa.Array,
    read: dict[str, Any],
    owner: np.ndarray,
    pairs: tuple[np.ndarray, np.ndarray],
) -> _Evidence:
    there = code >= 0
    first = np.full(int(owner.max(initial=-1)) + 1, -1)
    first[owner[there][::-1]] = code[there][::-1]
    constant = bool((first[owner[there]] == code[there]).all())
    a, b = pairs
    both = there[a] & there[b]
    a, b = a[both], b[both]
    if not len(a):
        return _Evidence(constant, 0, 0.0)
    if read["kind"] == "number":
        number = as_numbers(values)[0].fill_null(0).to_numpy(zero_copy_only=False)
        rank = np.searchsorted(np.sort(number[there]), number) / max(int(there.sum()), 1)
        # Ranks of two values drawn at random differ by a third on average.
        return _Evidence(constant, len(a), float(1 - 3 * np.abs(rank[a] - rank[b]).mean()))
    share = np.bincount(code[there]) / there.sum()
    chance = float(np.sum(share**2))
    agree = float((code[a] == code[b]).mean())
    return _Evidence(constant, len(a), (agree - chance) / max(1 - chance, 1e-9))


def _is_shared(code: np.ndarray, owner: np.ndarray) -> bool:
    """True if most events have a value that more than one owner has."""
    there = code >= 0
    key = code[there].astype(np.int64) * (int(owner.max(initial=0)) + 1) + owner[there]
    owners = np.bincount(np.unique(key) // (int(owner.max(initial=0)) + 1))
    return bool((owners[code[there]] > 1).mean() > 0.5)


def kind_of(values: pa.Array) -> dict[str, Any] | str:
    """Options of `Column` by which the values are read; or the reason why they cannot be."""
    kind = values.type
    if is_list(kind):
        return _kind_of_lists(values, None)
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_duration(kind):
        return f"is of type {kind}, which no field holds"
    if is_boolean(values):
        return {"kind": "id", "value": "bool"}
    if is_fraction(values):
        return {"kind": "number"}
    if pa.types.is_string(kind):
        separator = _separator(values)
        if separator:
            return _kind_of_lists(as_lists(values, separator)[0], separator)
    return _id_of(values)


def _kind_of_lists(lists: pa.Array, separator: str | None) -> dict[str, Any] | str:
    flat, sizes = lists.flatten(), lists.value_lengths().drop_null()
    if pa.types.is_nested(flat.type):
        return f"holds lists of {flat.type}, which no field holds"
    widest = int(pc.max(sizes).as_py() or 1)
    same = bool(pc.all(pc.equal(sizes, widest), min_count=0).as_py())
    floating = pa.types.is_floating(flat.type) or is_fraction(flat)
    more = {"separator": separator} if separator else {}
    if floating and same:
        return {"kind": "vector", "width": widest, **more}
    if floating and not is_whole(flat):
        return "holds lists of numbers of different lengths"
    value = "int" if is_whole(flat) else "string"
    return {"kind": "bag", "value": value, "width": min(widest, _WIDEST_BAG), **more}


def _separator(texts: pa.Array) -> str | None:
    """`|` if it splits texts into numbers or parts used again, `[]` if all are written lists."""
    distinct = texts.drop_null().unique()
    sample = distinct.slice(0, 1000).to_pylist()
    if sample and all(text.startswith("[") and text.endswith("]") for text in sample):
        if all(parse_list(text) is not None for text in distinct.to_pylist()):
            return "[]"
    if not pc.any(pc.match_substring(distinct, "|"), min_count=0).as_py():
        return None
    parts = pc.split_pattern(distinct, "|").flatten()
    return "|" if len(parts.unique()) < len(parts) or is_fraction(parts) else None


def _id_of(values: pa.Array) -> dict[str, Any]:
    return {"kind": "id", "value": "int" if is_whole(values) else "string"}


def _named_like_time(name: str) -> bool:
    lowered = name.lower()
    words = lowered.replace("-", "_").split("_")
    return any(word in words or lowered.endswith(word) for word in _TIME_NAMES)


def codes_of(values: pa.Array) -> np.ndarray:
    """(n,) int64, one for each distinct value, -1 for null."""
    null = values.is_null().to_numpy(zero_copy_only=False)
    if is_list(values.type):
        lists = as_lists(values, None)[0]
        sizes = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        flat = codes_of(lists.flatten()).astype(np.uint64)
        within = np.arange(len(flat)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        with np.errstate(over="ignore"):
            each = mix(mix(flat + np.uint64(1)) ^ within.astype(np.uint64))
            total = np.concatenate([[np.uint64(0)], np.cumsum(each, dtype=np.uint64)])
            ends = np.cumsum(sizes)
            values_ = total[ends] - total[ends - sizes]
        code = np.unique(values_, return_inverse=True)[1]
        return np.where(null, -1, code)
    if pa.types.is_floating(values.type):
        values = values.cast(pa.float64())
    elif not pa.types.is_integer(values.type):
        values = as_text(values)
    coded = values.dictionary_encode()
    return coded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)


def _whole_column(table: pa.Table, name: str) -> pa.Array:
    return table[name].combine_chunks()


def replaced(columns: Columns, name: str, **changes: Any) -> Columns:
    """The declaration with one column changed."""
    return Columns(
        tuple(dataclasses.replace(c, **changes) if c.name == name else c for c in columns)
    )
