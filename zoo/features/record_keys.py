"""The keys of request records, level by level, and whether a schema knows them."""

from collections.abc import Iterable, Mapping
import difflib
from itertools import chain
import reprlib
from typing import Any

import numpy as np

from .schema import Role, Schema

_NAMED = 5  # Keys that a message shows.
Keys = dict[str, Iterable[Any]]
"""By level: "" (the record itself), "context", "user", "user.history", "items"."""


ROLE_OF: dict[str, Role] = {
    "context": "context",
    "user": "user",
    "user.history": "history",
    "items": "candidate",
}
"""The role whose fields stand at a level."""
Levels = dict[str, list[Any]]
"""The dicts at each level of records."""
_WHOLE = {int, bool, str, type(None)}


def keys_of_levels(levels: Levels) -> Keys:
    """The keys that stand at each level of the records."""
    return {name: dict.fromkeys(chain.from_iterable(parts)) for name, parts in levels.items()}


def require_whole_ids(schema: Schema, levels: Levels) -> None:
    """Raises ValueError for an integer id with a fraction, which Arrow would cut off."""
    for level, parts in levels.items():
        fields = schema.role(ROLE_OF[level]) if level in ROLE_OF else ()
        names = [f.raw_name for f in fields if f.kind != "dense" and f.value == "int"]
        for name in names:
            values = [part.get(name) for part in parts]
            if _WHOLE.issuperset(map(type, values)):
                continue
            for value in values:
                for one in value if isinstance(value, list | tuple) else (value,):
                    if isinstance(one, float) and not one.is_integer():
                        raise ValueError(f"{level}.{name} must be a whole number, got {one!r}.")


_READ_AS = {"int": "a whole number", "string": "text"}


def misfit(schema: Schema, levels: Levels) -> str | None:
    """What is wrong with the first id that is not of its field's type; None if it is not that."""
    for level, parts in levels.items():
        for field in schema.role(ROLE_OF[level]) if level in ROLE_OF else ():
            if field.kind != "id":
                continue
            fine = int if field.value == "int" else str
            for part in parts:
                value = part.get(field.raw_name)
                if value is not None and not isinstance(value, fine | float | np.generic):
                    kind = _READ_AS[field.value]
                    return (
                        f"{level}.{field.raw_name} must be {kind}, as in training, got {value!r}."
                    )
    return None


def levels_of(records: list[Any]) -> Levels:
    """The dicts at each level of the records; what is of another type is left out."""
    is_dict = lambda value: type(value) is dict or isinstance(value, Mapping)
    inner = lambda parts, key: filter(None, (part.get(key) for part in parts))
    listed = lambda parts, key: chain.from_iterable(
        value for value in inner(parts, key) if isinstance(value, list | tuple)
    )
    records = list(filter(is_dict, records))
    users = list(filter(is_dict, inner(records, "user")))
    levels: dict[str, Iterable[Any]] = {
        "": records,
        "context": inner(records, "context"),
        "user": users,
        "user.history": listed(users, "history"),
        "items": listed(records, "items"),
    }
    return {name: list(filter(is_dict, parts)) for name, parts in levels.items()}


def keys_of_table(records: Any) -> Keys:
    """The columns at each level of the table; what is of another type has none."""

    def inner(type_: Any, *names: str) -> Any:
        for name in names:
            index = type_.get_field_index(name) if hasattr(type_, "get_field_index") else -1
            if index < 0:
                return None
            type_ = type_.field(index).type
        # Lists of structs are meant as their structs.
        return getattr(type_, "value_type", type_)

    def names(type_: Any) -> list[str]:
        fields = getattr(type_, "num_fields", 0) if hasattr(type_, "get_field_index") else 0
        return [type_.field(i).name for i in range(fields)]

    schema = records.schema
    return {
        "": schema.names,
        "context": names(inner(schema, "context")),
        "user": names(inner(schema, "user")),
        "user.history": names(inner(schema, "user", "history")),
        "items": names(inner(schema, "items")),
    }


def require_known_keys(schema: Schema, found: Keys) -> None:
    """Raises ValueError if a key is not one that a record of this schema has at its level."""
    known = known_keys(schema)
    wrong = []
    for level, keys in found.items():
        allowed = set(known[level].values())
        for key in keys:
            if key not in allowed:
                name = reprlib.repr(f"{level}.{key}" if level else f"{key}")
                near = difflib.get_close_matches(str(key), known[level], 1)
                wrong.append(f"{name} ({_meant(known[level], near)})")
    if wrong:
        more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        raise ValueError(
            f"A request record has keys that the schema lacks: {', '.join(wrong[:_NAMED])}{more}; "
            'unknown="ignore" passes over them.'
        )


def known_keys(schema: Schema) -> dict[str, dict[str, str]]:
    """The keys of a record of this schema by level, each by its own name and by the batch's."""
    return {
        "": {name: name for name in ("context", "user", "items")},
        "context": {"time": "time", **_raw_names(schema, "context")},
        "user": {"history": "history", **_raw_names(schema, "user")},
        "user.history": {"time": "time", **_raw_names(schema, "history")},
        "items": _raw_names(schema, "candidate"),
    }


def _raw_names(schema: Schema, role: Any) -> dict[str, str]:
    """Names of a role's fields in a record, by the record's name and by the batch's."""
    read = [field for field in schema.role(role) if not field.cross]
    raw = {field.raw_name: field.raw_name for field in read}
    return {field.name: field.raw_name for field in read} | raw


def _meant(known: dict[str, str], near: list[str]) -> str:
    if near:
        return f"nearest: {known[near[0]]!r}"
    names = [repr(name) for name in dict.fromkeys(known.values())]
    return f"known: {', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''}"
