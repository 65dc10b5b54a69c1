"""The README of an artifact: what a request holds, how it is read, and how to serve it."""

from typing import Any

from ..zoo.features import HashedRows, RowMap, Schema
from ..zoo.features.record_keys import ROLE_OF

_LISTS = {"user.history": "user.history[]", "items": "items[]"}
_TEMPLATE = """\
# {model}

Exported by recjax {version}, {date}, for {platforms}. Trained on {data}.
It gives {gives}. The newest {history} events of a history are read.

## A request

One JSON object; what is left out counts as unknown.

| key | value | read as |
|---|---|---|
{rows}

`context.time` and `user.history[].time` are whole seconds since 1970; the oldest event of a history
comes first. A table finds the row of a value by its 64-bit signature: `rows/<table>.npy` holds the
sorted signatures of the values that training knew, which have rows 2, 3, ... in this order; row 0
is nothing, row 1 any other value. A hashed table knows every value, and several may share a row.
Transforms of numbers are written as in `recjax.zoo.features.transforms`, first to last.

## Serving

```python
from recjax.export.artifact import load

artifact = load("{name}").warm_up(candidates=200)
for best in artifact.recommend([request], k=10)[0]:
    print(best.item, best.score, best.probabilities)
```
"""


def readme(name: str, manifest: dict[str, Any], schema: Schema, row_maps: dict[str, RowMap]) -> str:
    """The text, in Markdown; `name` is the artifact's folder."""
    rows = [
        f"| `{_key(level, field)}` | {_value(field)} | {_reading(field, row_maps)} |"
        for level, role in ROLE_OF.items()
        for field in schema.role(role)
        if not field.cross
    ]
    return _TEMPLATE.format(
        model=manifest["model"],
        version=manifest["versions"]["recjax"],
        date=manifest["date"][:10],
        platforms=", ".join(manifest["platforms"]),
        data=manifest["data"],
        gives=_gives(manifest),
        history=manifest["history"],
        rows="\n".join(rows),
        name=name,
    )


def _gives(manifest: dict[str, Any]) -> str:
    if "order" in manifest["outputs"]["apply"]:
        return "a slate: an order of the candidates"
    if manifest["kind"] == "retrieval":
        return "a score of every candidate, and vectors of users and items"
    found = f"the probability of {', '.join(manifest['tasks'])} for every candidate"
    if manifest["calibration"]:
        return f"{found}, calibrated on validation (`calibration` in manifest.json)"
    return found


def _key(level: str, field: Any) -> str:
    return f"{_LISTS.get(level, level)}.{field.raw_name}"


def _value(field: Any) -> str:
    if field.kind == "dense":
        return f"{field.width} numbers" if field.width else "number"
    one = "whole number" if field.value == "int" else "text"
    return f"list of {one}s" if field.kind == "bag" else one


def _reading(field: Any, row_maps: dict[str, RowMap]) -> str:
    if field.kind == "dense":
        return f"transform `{field.transform}`"
    rows = row_maps[field.table_name]
    if isinstance(rows, HashedRows):
        return f"hashed table `{field.table_name}` of {rows.rows} rows"
    return f"table `{field.table_name}`, {rows.rows - 2} known values"
