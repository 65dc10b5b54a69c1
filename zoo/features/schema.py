"""The schema of batches: tables, fields, and the transforms that make rows of raw values.

A `Schema` names every embedding table, says which field of which role reads which table, and how
each raw value becomes a row id or a number. It is frozen and hashable, so a model's `Config` can
carry it as a static argument. Its content hash travels with every checkpoint and artifact.
"""

from collections.abc import Iterator
import dataclasses
import functools
import hashlib
import json
from typing import Any, Literal

from . import transforms

Role = Literal["user", "context", "history", "candidate"]
ROLES: tuple[Role, ...] = ("user", "context", "history", "candidate")
PADDING_ROW = 0
UNSEEN_ROW = 1
RESERVED_ROWS = 2
# Of a table, in characters: long enough for a cross of several columns, short enough to be shown.
_LONGEST_NAME = 1000
# What a request's record holds besides fields; see `record`.
_OF_THE_RECORD = {"context": ("time",), "history": ("time",), "user": ("history",)}
_ORDER = "order of fields"


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """One embedding table: `rows` x `dim`, row 0 padding, row 1 the unseen.

    `rows` includes the two reserved rows; it is not part of the schema's hash, so that a table
    may grow.
    """

    name: str
    rows: int
    dim: int

    def __post_init__(self):
        _require(bool(self.name), "Table.name must not be empty.")
        _require(
            len(self.name) <= _LONGEST_NAME,
            f"Table.name must have at most {_LONGEST_NAME} characters, got {len(self.name)} "
            f"({self.name[:20]!r}...).",
        )
        _require(
            RESERVED_ROWS <= self.rows < 2**31 - 2**24,
            f"Table.rows of {self.name!r} must be >= {RESERVED_ROWS} and fit in int32 with room "
            f"to pad, got {self.rows}.",
        )
        _require(self.dim >= 1, f"Table.dim of {self.name!r} must be >= 1, got {self.dim}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Field:
    """One named input of one role.

    Attributes:
      name: key in the batch.
      role: where it stands: "user" (B,), "context" (B,), "history" (B, L), "candidate" (B, C).
      kind: "id" looks up one row; "bag" sums the rows of `width` slots; "dense" is a number.
      table: the table an id or a bag reads; None means the table of the field's own name. Fields
        of the same name share a table unless this says otherwise.
      width: the trailing axis: slots of a bag (required), length of a dense vector (None: scalar).
      raw: name of the value in the raw record; None means `name`.
      value: how an id is read before it is signed, "int" or "string": a CSV that holds numbers
        and a service that sends text then agree.
      missing: what an id that is missing reads as: "padding" is zeros; "unseen" is row 1, for
        fields such as the user's segment, whose absence (not logged in) says something.
      transform: what happens to a number, for dense fields; see `transforms`.
      cross: "role.name" of two or more id fields whose combination this field is, see `cross`. It
        stands in "candidate" if a part does, else in "context"; with a history field among the
        parts it is a bag of the newest `width` events' combinations.
    """

    name: str
    role: Role
    kind: Literal["id", "bag", "dense"] = "id"
    table: str | None = None
    width: int | None = None
    raw: str | None = None
    value: Literal["int", "string"] = "int"
    missing: Literal["padding", "unseen"] = "padding"
    transform: str = "identity"
    cross: tuple[str, ...] = ()

    def __post_init__(self):
        where = f"Field {self.role}.{self.name}"
        _require(bool(self.name), "Field.name must not be empty.")
        _require(self.role in ROLES, f"{where}: role must be one of {ROLES}, got {self.role!r}.")
        _require(
            self.kind in ("id", "bag", "dense"),
            f"{where}: kind must be id, bag or dense, got {self.kind!r}.",
        )
        _require(
            self.value in ("int", "string"),
            f"{where}: value must be int or string, got {self.value!r}.",
        )
        _require(
            self.missing in ("padding", "unseen"),
            f"{where}: missing must be padding or unseen, got {self.missing!r}.",
        )
        _require(
            self.missing == "padding" or (self.kind == "id" and not self.cross),
            f"{where}: only ids that are read from a record may be missing as 'unseen'.",
        )
        try:
            transforms.parse(self.transform)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if self.kind == "dense":
            _require(self.table is None, f"{where}: a dense field reads no table.")
        else:
            _require(self.transform == "identity", f"{where}: transforms are for dense fields.")
        if self.kind == "bag":
            _require(self.width is not None, f"{where}: a bag needs its width (number of slots).")
        if self.kind == "id":
            _require(self.width is None, f"{where}: an id has no width; use kind='bag'.")
        if self.cross:
            self._check_cross(where)
        if self.width is not None:
            _require(self.width >= 1, f"{where}: width must be >= 1, got {self.width}.")

    def _check_cross(self, where: str) -> None:
        """Checks of a cross that need no schema."""
        _require(isinstance(self.cross, tuple), f"{where}: cross must be a tuple (to hash).")
        roles = [role for role, _ in self.parts]
        known = all(role in ROLES and name for role, name in self.parts)
        _require(
            len(roles) >= 2 and known,
            f"{where}: cross must name two or more fields as 'role.name', got {self.cross}.",
        )
        _require(
            len(set(self.cross)) == len(roles), f"{where}: a part stands twice in {self.cross}."
        )
        histories = roles.count("history")
        _require(histories <= 1, f"{where}: one part of a cross may be of the history, not more.")
        expected = (
            "candidate" if "candidate" in roles else "context",
            "bag" if histories else "id",
        )
        _require(
            (self.role, self.kind) == expected,
            f"{where}: the cross of {self.cross} must have role {expected[0]!r} and kind "
            f"{expected[1]!r}, got {self.role!r} and {self.kind!r}.",
        )

    @property
    def parts(self) -> tuple[tuple[Any, str], ...]:
        """(role, name) of the fields that a cross combines."""
        return tuple((role, name) for role, _, name in (x.partition(".") for x in self.cross))

    @property
    def table_name(self) -> str:
        """Name of the table that an id or a bag reads."""
        return self.table or self.name

    @property
    def raw_name(self) -> str:
        """Name of the value in the raw record."""
        return self.raw or self.name

    @property
    def trailing(self) -> tuple[int, ...]:
        """The axes behind the role's own."""
        return () if self.width is None else (self.width,)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schema:
    """Tables, fields and tasks. Order of `fields` is the order of concatenation.

    Attributes:
      tables: every embedding table.
      fields: every input; a (role, name) pair appears once.
      tasks: names of the labels, the first being the one that ranks.

    Examples:
      >>> from recjax.zoo.features import Field, Schema, Table
      >>> schema = Schema(
      ...     tables=(Table(name="item", rows=1000, dim=16),),
      ...     fields=(Field(name="item", role="candidate"), Field(name="item", role="history")),
      ... )
      >>> [field.role for field in schema.fields]
      ['candidate', 'history']
      >>> schema.hash == schema.with_rows({"item": 2000}).hash # tables may grow
      True
    """

    tables: tuple[Table, ...]
    fields: tuple[Field, ...]
    tasks: tuple[str, ...] = ("click",)

    def __post_init__(self):
        for name in ("tables", "fields", "tasks"):
            _require(
                isinstance(getattr(self, name), tuple), f"Schema.{name} must be a tuple (to hash)."
            )
        for field in self.fields:
            taken = _OF_THE_RECORD.get(field.role, ())
            _require(
                field.raw_name not in taken or bool(field.cross),
                f"Field {field.role}.{field.name}: a request's record has a {field.raw_name!r} of "
                "its own there; read it from another name (`raw`).",
            )
        names = [table.name for table in self.tables]
        _require(len(set(names)) == len(names), f"Schema.tables: a name appears twice: {names}.")
        keys = [(field.role, field.name) for field in self.fields]
        _require(len(set(keys)) == len(keys), f"Schema.fields: a field appears twice: {keys}.")
        _require(len(self.tasks) >= 1, "Schema.tasks must name at least one label.")
        for field in self.fields:
            if field.kind != "dense":
                _require(
                    field.table_name in names,
                    f"Field {field.role}.{field.name} reads table {field.table_name!r}, which is "
                    f"not among {names}.",
                )
            for role, name in field.parts:
                part = self.find(role, name)
                _require(
                    part is not None and part.kind == "id" and not part.cross,
                    f"Field {field.role}.{field.name}: {role}.{name} is no id field to cross.",
                )
        for field in self.role("history"):
            twin = self.find("candidate", field.name)
            if twin is not None:
                names = ["kind", "table_name", "width", "value", "missing", "transform"]
                if (field.kind, twin.kind) == ("id", "bag"):
                    names = ["table_name", "value"]  # A candidate that is a set of items.
                _require(
                    all(getattr(field, name) == getattr(twin, name) for name in names),
                    f"Field {field.name!r} stands in history and candidate and must be the same "
                    "there (kind, table, width, value, missing, transform), or an id in the "
                    "history and a bag of such ids in the candidate.",
                )

    def role(self, role: Role) -> tuple[Field, ...]:
        """The fields of one role, in order."""
        return tuple(field for field in self.fields if field.role == role)

    def find(self, role: Role, name: str) -> Field | None:
        """One field, or None."""
        for field in self.fields:
            if (field.role, field.name) == (role, name):
                return field
        return None

    def table(self, name: str) -> Table:
        """One table; raises KeyError naming those that exist."""
        for table in self.tables:
            if table.name == name:
                return table
        raise KeyError(f"No table {name!r}; the schema has {[t.name for t in self.tables]}.")

    def width(self, field: Field) -> int:
        """Width of a field after its look-up."""
        return (field.width or 1) if field.kind == "dense" else self.table(field.table_name).dim

    def with_rows(self, rows: dict[str, int]) -> "Schema":
        """The same schema with other table sizes (the hash stays)."""
        tables = tuple(
            dataclasses.replace(table, rows=rows.get(table.name, table.rows))
            for table in self.tables
        )
        return dataclasses.replace(self, tables=tables)

    def with_dim(self, dim: int) -> "Schema":
        """The same schema with tables of another width, for models that bring their own."""
        tables = tuple(dataclasses.replace(table, dim=dim) for table in self.tables)
        return dataclasses.replace(self, tables=tables)

    @property
    def item_fields(self) -> tuple[Field, ...]:
        """Fields that stand in candidate and history: what an item is, whoever looks at it.

        In the candidate's order, and as the history has them: a candidate may be a set of items.
        """
        twins = (self.find("history", field.name) for field in self.role("candidate"))
        return tuple(field for field in twins if field)

    @functools.cached_property
    def hash(self) -> str:
        """Hex digest of everything that must agree between training and serving (not `rows`)."""
        text = json.dumps(_without_rows(self.to_dict()), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def differences(self, other: "Schema") -> list[str]:
        """Differences that make the hashes differ, one line each; empty when they are equal."""
        mine, theirs = dict(self._facts()), dict(other._facts())
        names = sorted(
            name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name)
        )
        if sorted(mine[_ORDER]) != sorted(theirs[_ORDER]):
            names.remove(_ORDER)  # Other fields, each named already, have no order to compare.
        return [
            f"{name}: {_shown(mine.get(name))} against {_shown(theirs.get(name))}" for name in names
        ]

    def _facts(self) -> Iterator[tuple[str, Any]]:
        content = _without_rows(self.to_dict())
        for table in content["tables"]:
            yield f"table {table.pop('name')}", table
        for field in content["fields"]:
            yield f"field {field.pop('role')}.{field.pop('name')}", field
        yield "tasks", content["tasks"]
        yield _ORDER, [f"{field.role}.{field.name}" for field in self.fields]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready content; `from_dict` reads it back."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @staticmethod
    def from_dict(content: dict[str, Any]) -> "Schema":
        """Inverse of `to_dict`."""
        return Schema(
            tables=tuple(Table(**table) for table in content["tables"]),
            fields=tuple(
                Field(**{**field, "cross": tuple(field["cross"])}) for field in content["fields"]
            ),
            tasks=tuple(content["tasks"]),
        )


def _without_rows(content: dict[str, Any]) -> dict[str, Any]:
    """Content of the hash: tables without their sizes, by name (their order means nothing)."""
    content["tables"].sort(key=lambda table: table["name"])
    for table in content["tables"]:
        del table["rows"]
    return content


def _shown(value: Any) -> str:
    return "absent" if value is None else json.dumps(value, sort_keys=True)
