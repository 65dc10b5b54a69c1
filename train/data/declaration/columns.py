"""The declaration itself: one line of JSON for each column, written by hand or by a run.

{"columns": [
  {"name": "user_id", "role": "user_id", "value": "int"},
  {"name": "ts", "role": "time", "unit": "ms"},
  {"name": "genres", "role": "item", "kind": "bag", "separator": "|", "width": 4},
  {"name": "price", "role": "item", "per": "event", "kind": "number"},
  {"name": "city", "role": "user", "per": "event"},
  {"name": "note", "role": "ignored"}
]}
"""

from collections.abc import Iterator, Sequence
import dataclasses
import difflib
import json
from pathlib import Path
from typing import Any, Literal, get_args

from ....zoo.features import Schema
from ..errors import DataError

Role = Literal[
    "user_id",
    "item_id",
    "time",
    "behavior",
    "rating",
    "label",
    "weight",
    "position",
    "request",
    "user",
    "item",
    "context",
    "history",
    "ignored",
]
Kind = Literal["id", "bag", "number", "vector"]
Value = Literal["int", "string", "bool"]
Per = Literal["user", "item", "event"]
Unit = Literal["s", "ms", "us", "ns", "iso", "yyyymmdd", "order"]

FEATURES = ("user", "item", "context", "history")
# Roles that one column has at most.
_SINGLE = ("user_id", "item_id", "time", "behavior", "rating", "position", "request")
_PER: dict[str, tuple[str, ...]] = {
    "user": ("user", "event"),
    "item": ("item", "event"),
    "context": ("event",),
    "history": ("event",),
}
# The field that a column becomes, where that is not the column's own name.
_FIELDS = {"category_id": "category"}
_CONTEXT = "context_"
_RESERVED = ("time", "history")
_IDS = ("user_id", "item_id", "behavior", "request")  # Roles of one id in each row.
_WIDEST = 8192  # Slots of a bag, numbers of a vector, or columns of a table.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """Declaration of one column of a file.

    Attributes:
      name: in the file.
      role: "user_id", "item_id", "time", "behavior", "rating"; in files of impressions also
        "label", "weight", "position" and "request" (what was shown together). A feature is of the
        "user", of the "item", of the "context" (known before the event, such as its hour) or of
        the "history" (what came of an event, such as its dwell time: seen of past events only).
        "ignored" columns are not read.
      per: of a feature of users or items: "user" or "item" if it never changes, "event" if it
        does; then it is read as of the event (the item's price now, the user's city last known).
      kind: "id" is looked up in a table, "bag" is several ids, "number" and "vector" are dense.
      value: how an id is read, so that 7, "7" and 7.0 are one id ("int"), or text ("string").
      unit: of the time: "s", "ms", "us", "ns" since 1970, "iso" texts, "yyyymmdd" (days), or
        "order" for numbers that only count.
      separator: of a bag that is written as text, such as "|"; "[]" for a list written as JSON.
      width: slots of a bag, length of a vector.
      field: the field that the column becomes; its own name by default.
      task: of a label or a weight; "click" by default.
      dim: of the table of an id or a bag; a default by role.
      transform: of a number; learnt from what training sees by default.
      why: how it came to be known; said, and of no meaning.
    """

    name: str
    role: Role
    per: Per | None = None
    kind: Kind = "id"
    value: Value = "string"
    unit: Unit | None = None
    separator: str | None = None
    width: int | None = None
    field: str | None = None
    task: str | None = None
    dim: int | None = None
    transform: str | None = None
    why: str = dataclasses.field(default="", compare=False)

    def __post_init__(self):
        where = f"column {self.name!r}"
        for name, choices in (("role", Role), ("kind", Kind), ("value", Value)):
            self._one_of(where, name, getattr(self, name), get_args(choices))
        if self.unit is not None:
            self._one_of(where, "unit", self.unit, get_args(Unit))
        if self.role in FEATURES:
            given = self.per or _PER[self.role][0]
            self._one_of(where, f"per of a feature of the {self.role}", given, _PER[self.role])
            object.__setattr__(self, "per", given)
        elif self.per is not None:
            raise DataError(f"{where}: per is for features, not for role {self.role!r}.")
        if self.role in _IDS and self.kind != "id":
            raise DataError(f"{where}: kind of role {self.role!r} must be id, got {self.kind!r}.")
        for name, fine in (
            ("width", self.kind in ("bag", "vector")),
            ("separator", self.kind in ("bag", "vector")),
            ("unit", self.role == "time"),
            ("task", self.role in ("label", "weight")),
            ("transform", self.kind in ("number", "vector")),
        ):
            if getattr(self, name) is not None and not fine:
                raise DataError(f"{where}: {name} makes no sense for {self.role} of {self.kind}.")
        for name in ("width", "dim"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and value >= 1):
                raise DataError(f"{where}: {name} must be >= 1, got {value!r}.")
            if value is not None and value > _WIDEST:
                raise DataError(f"{where}: {name} must be <= {_WIDEST}, got {value}.")
        for name in ("field", "task", "separator"):
            if getattr(self, name) == "":
                raise DataError(f"{where}: {name} must not be empty.")
        if self.role in FEATURES and self.field_name in _RESERVED:
            raise DataError(
                f"{where} must be renamed: the request itself takes its name; or declare another "
                "'field'."
            )

    @staticmethod
    def _one_of(where: str, name: str, value: Any, choices: Sequence[str]) -> None:
        if value not in choices:
            raise DataError(f"{where}: {name} must be one of {', '.join(choices)}, got {value!r}.")

    @property
    def field_name(self) -> str:
        """Name of the field that a feature becomes."""
        return self.field or _FIELDS.get(self.name, self.name.removeprefix(_CONTEXT) or self.name)

    def to_dict(self) -> dict[str, Any]:
        """Only what differs from the defaults, in the order of the attributes."""
        result: dict[str, Any] = {"name": self.name, "role": self.role}
        for field in dataclasses.fields(self)[2:]:
            value = getattr(self, field.name)
            default = _PER.get(self.role, (None,))[0] if field.name == "per" else field.default
            if field.name != "why" and value != default:
                result[field.name] = value
        if self.kind in ("id", "bag") and self.role != "ignored" and self.role != "time":
            result["value"] = self.value
        return result


@dataclasses.dataclass(frozen=True)
class Columns:
    """The declaration of a file: its columns, in any order, each name once."""

    columns: tuple[Column, ...]

    def __post_init__(self):
        names = [column.name for column in self.columns]
        for name in names:
            if names.count(name) > 1:
                raise DataError(f"The declaration names column {name!r} twice.")
        for role in _SINGLE:
            some = self.of(role)
            if len(some) > 1:
                raise DataError(
                    f"The declaration has two columns of role {role!r}: "
                    f"{some[0].name!r} and {some[1].name!r}."
                )
        taken: dict[str, str] = {"item": "item_id"}
        for column in self.columns:
            if column.role not in FEATURES and column.role != "behavior":
                continue
            other = taken.setdefault(column.field_name, column.name)
            if other != column.name:
                raise DataError(
                    f"column {column.name!r} must be renamed: {other!r} takes its name "
                    f"({column.field_name!r})."
                )

    def __iter__(self) -> Iterator[Column]:
        return iter(self.columns)

    def of(self, *roles: str) -> list[Column]:
        """The columns of these roles."""
        return [column for column in self.columns if column.role in roles]

    def one(self, role: str) -> Column | None:
        """The only column of a role, if there is one."""
        return next(iter(self.of(role)), None)

    def get(self, name: str) -> Column | None:
        """The column of a name, if it is declared."""
        return next((column for column in self.columns if column.name == name), None)

    def text(self) -> str:
        """The content of a file that `load` reads: a line per column."""
        lines = (json.dumps(column.to_dict(), ensure_ascii=False) for column in self.columns)
        return '{"columns": [\n  ' + ",\n  ".join(lines) + "\n]}\n"

    def save(self, path: Path | str) -> None:
        """Writes the file aside, then renames it."""
        path = Path(path)
        aside = path.with_name(path.name + ".partial")
        aside.write_text(self.text(), encoding="utf-8")
        aside.rename(path)

    @staticmethod
    def load(path: Path | str) -> "Columns":
        """Reads a declaration. Raises DataError naming the file and what is wrong with it."""
        path = Path(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise DataError(f"{path}: {error.strerror or error}.") from error
        except ValueError as error:
            raise DataError(f"{path}: is no JSON: {error}.") from error
        try:
            return Columns.from_dict(content)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error

    @staticmethod
    def from_dict(content: Any) -> "Columns":
        """From the content of a file; a plain list of columns is read as well."""
        if isinstance(content, dict):
            if set(content) != {"columns"}:
                raise DataError(f"a declaration holds 'columns' only, got {sorted(content)}.")
            content = content["columns"]
        if not isinstance(content, list) or not content:
            raise DataError("'columns' must be a list of columns, got none.")
        known = [field.name for field in dataclasses.fields(Column)]
        columns = []
        for entry in content:
            if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
                raise DataError(f"a column must be an object with a 'name', got {entry!r}.")
            for key in entry:
                if key not in known:
                    near = difflib.get_close_matches(key, known, 1)
                    hint = f"; did you mean {near[0]!r}?" if near else f" ({', '.join(known)})."
                    raise DataError(f"column {entry['name']!r}: unknown key {key!r}{hint}")
            if "role" not in entry:
                raise DataError(f"column {entry['name']!r}: needs a role.")
            _check_values(entry)
            columns.append(Column(**{**entry, "why": "declared"}))
        return Columns(tuple(columns))


def _check_values(entry: dict[str, Any]) -> None:
    """Raises DataError for a value that a file of columns may hold and a `Column` may not."""
    where = f"column {entry['name']!r}"
    for key, choices in (("role", Role), ("kind", Kind), ("value", Value)):
        if key in entry:
            Column._one_of(where, key, entry[key], get_args(choices))
    for key, choices in (("per", Per), ("unit", Unit)):
        if entry.get(key) is not None:
            Column._one_of(where, key, entry[key], get_args(choices))
    for key in ("separator", "field", "task", "transform"):
        if not isinstance(entry.get(key), str | None):
            raise DataError(f"{where}: {key} must be text, got {entry[key]!r}.")
    for key in ("width", "dim"):
        value = entry.get(key)
        if not isinstance(value, int | None) or isinstance(value, bool):
            raise DataError(f"{where}: {key} must be >= 1, got {value!r}.")


def of_schema(schema: Schema) -> Columns:
    """The fields of a source whose columns its publisher defines, as a declaration.

    Naming one "ignored" leaves the field out.
    """
    roles = {"candidate": "item", "user": "user", "context": "context", "history": "history"}
    found: dict[str, Column] = {}
    for field in schema.fields:
        if field.cross or field.name in found:
            continue
        dense = field.kind == "dense"
        kind: Any = field.kind if not dense else "vector" if field.width else "number"
        try:
            found[field.name] = Column(
                name=field.name,
                role="item_id" if field.name == "item" else roles[field.role],  # type: ignore[arg-type]
                kind=kind,
                value=field.value,
                width=field.width,
            )
        except DataError:  # A name that a file of columns could not have.
            continue
    return Columns(tuple(found.values()))
