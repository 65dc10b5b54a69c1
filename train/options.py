"""Options of a run by name: those of the model's `Config`, and the `Settings` of its training.

Values may be typed (from Python or JSON) or text (from a command line); either way they become what
the dataclass field is annotated as.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import difflib
import inspect
import math
import re
import types
import typing
from typing import Any, Literal, NamedTuple, TypeAlias

from .settings import Settings

# What others call them.
_ALSO = {
    "lr": "learning_rate",
    "embedding_lr": "table_learning_rate",
    "table_lr": "table_learning_rate",
    "bs": "batch_size",
    "num_epochs": "epochs",
    "n_epochs": "epochs",
    "max_steps": "steps",
    "dropout": "embedding_dropout",
    "hidden_units": "tower_units",
    "dnn_hidden_units": "tower_units",
    "weight_decay": "l2",
    "early_stopping": "patience",
    "max_len": "history",
    "maxlen": "history",
    "seq_len": "history",
    "max_seq_len": "history",
    "num_negatives": "negatives",
    "random_state": "seed",
    "gradient_clip": "clip_norm",
    "grad_clip": "clip_norm",
}
_ATTRIBUTE = re.compile(r"^\w[\w, ]*:\s")


Options: TypeAlias = Mapping[str, Any]


class Option(NamedTuple):
    """An option as people should know it.

    Attributes:
      name: the key.
      kind: its type, or the values to choose from.
      default: what it is by default.
      meaning: a sentence; empty where its dataclass says nothing.
      of: "model" or "training".
    """

    name: str
    kind: str
    default: Any
    meaning: str
    of: str


def options_of(texts: Iterable[str]) -> dict[str, str]:
    """Options from `key=value` texts; of equal keys the last one counts.

    Raises:
      ValueError: a text that is none.
    """
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set takes key=value, got {text!r}.")
        found[key.strip()] = value
    return found


def split(config: type, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of the model, and settings of the training, as they are annotated.

    Raises:
      ValueError: an unknown key, with the nearest one, or a value of another type.
    """
    of_model = names_of(config)
    result: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for key, value in options.items():
        if key in of_model:
            result[0][key] = as_annotated(config, key, value)
        elif key in names_of(Settings):
            result[1][key] = as_annotated(Settings, key, value)
        else:
            known = sorted(of_model | names_of(Settings))
            near = nearest(key, known)
            hint = f"did you mean {near!r}? There are" if near else "choose from"
            raise ValueError(f"unknown option {key!r}; {hint} {', '.join(known)}.")
    return result


def nearest(key: str, known: Sequence[str]) -> str | None:
    """The option that is probably meant by a key that is none."""
    key = key.lstrip("-").replace("-", "_").lower()
    if (also := _ALSO.get(key)) in known:
        return also
    if key in known:
        return key
    close = difflib.get_close_matches(key, known, 1, 0.6)
    return close[0] if close else None


def names_of(config: type) -> set[str]:
    """The options of a dataclass."""
    return {field.name for field in dataclasses.fields(config)} - {"schema"}


def listed(config: type, defaults: Mapping[str, Any], of: str) -> list[Option]:
    """Every option of a dataclass, `defaults` standing for its own defaults."""
    hints, meanings = typing.get_type_hints(config), _meanings(config)
    found = []
    for field in dataclasses.fields(config):
        if field.name in names_of(config):
            default = defaults.get(field.name, field.default)
            kind, meaning = _kind(hints[field.name]), meanings.get(field.name, "")
            found.append(Option(field.name, kind, default, meaning, of))
    return found


def _meanings(config: type) -> dict[str, str]:
    """What the docstrings of a dataclass and its bases say of each attribute."""
    found: dict[str, str] = {}
    for part in reversed(config.__mro__):
        text = inspect.getdoc(part) if "__doc__" in vars(part) else None
        _, heading, attributes = (text or "").partition("Attributes:\n")
        lines: list[str] = []
        for line in attributes.splitlines() if heading else ():
            if not line.strip() or not line.startswith("  "):
                break
            if line.startswith("   "):
                lines[-1] += f" {line.strip()}"
            else:
                lines.append(line.strip())
        for line in lines:
            if _ATTRIBUTE.match(line):
                names, _, meaning = line.partition(": ")
                found |= dict.fromkeys(names.split(", "), meaning)
    return found


def _kind(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "|".join(map(str, arguments))
    if origin is tuple:
        return f"{_kind(arguments[0])},..."
    if origin in (typing.Union, types.UnionType):
        return "|".join("none" if one is type(None) else _kind(one) for one in arguments)
    return {int: "N", float: "X", bool: "true|false", str: "TEXT"}.get(hint, str(hint))


def as_annotated(config: type, name: str, value: Any) -> Any:
    """`value` (from Python, JSON or text) as the dataclass field `name` of `config` wants it.

    Raises:
      ValueError: naming the field and the expected type.
    """
    return _as(typing.get_type_hints(config)[name], name, value)


def _as(hint: Any, name: str, value: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    fail = lambda kind: ValueError(f"{name} must be {kind}, got {value!r}.")
    if origin is Literal:
        if value not in arguments:
            raise fail("one of " + ", ".join(map(str, arguments)))
        return value
    if origin is tuple:
        parts = [p for p in value.split(",") if p] if isinstance(value, str) else value
        if not isinstance(parts, Iterable):
            parts = [parts]
        return tuple(_as(arguments[0], name, part) for part in parts)
    if origin in (typing.Union, types.UnionType):
        if value is None or value == "none":
            return None
        return _as(next(a for a in arguments if a is not type(None)), name, value)
    if hint is bool:
        lowered = str(value).lower()
        if lowered not in ("true", "false"):
            raise fail("true or false")
        return lowered == "true"
    if hint in (int, float):
        kind = "a whole number" if hint is int else "a number"
        if isinstance(value, bool):
            raise fail(kind)
        try:
            number = hint(value)
        except OverflowError as error:
            raise fail("finite") from error
        except (TypeError, ValueError) as error:
            raise fail(kind) from error
        if not math.isfinite(number):
            raise fail("finite")
        if isinstance(value, float) and number != value:
            raise fail("a whole number")
        return number
    if hint is str:
        return str(value)
    raise ValueError(f"{name} cannot be set from text.")
