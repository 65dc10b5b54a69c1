"""Checks of configurations: name, rule, value, before anything is traced."""

from typing import Any, Literal, get_args, get_origin, get_type_hints


def require_positive(config: Any, *names: str) -> None:
    """Each named attribute is an int, or a tuple of ints, >= 1."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, list):
            raise ValueError(f"Config.{name} must be a tuple, so that it can be hashed: {value}.")
        for number in value if isinstance(value, tuple) else (value,):
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise ValueError(f"Config.{name} must be >= 1, got {value}.")


def require_tuple(config: Any, *names: str) -> None:
    """Each named attribute is a tuple: configurations are hashed."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, tuple):
            raise ValueError(f"Config.{name} must be a tuple, so that it can be hashed: {value!r}.")


def require_probability(config: Any, *names: str) -> None:
    """Each named attribute lies in [0, 1)."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int | float) or not 0.0 <= value < 1.0:
            raise ValueError(f"Config.{name} must be in [0, 1), got {value!r}.")


def require_item_fields(config: Any) -> None:
    """The schema has a field that stands in history and candidate, so that they can be compared."""
    if not config.schema.item_fields:
        raise ValueError("Config.schema must have a field of history and candidate, got none.")


def require_fields(config: Any) -> None:
    """The schema has a field."""
    if not config.schema.fields:
        raise ValueError("Config.schema must have a field, got none.")


def require_choices(config: Any) -> None:
    """Each attribute that is annotated as a Literal is one of its values."""
    for name, hint in get_type_hints(type(config)).items():
        choices = get_args(hint) if get_origin(hint) is Literal else ()
        value = getattr(config, name)
        if choices and value not in choices:
            raise ValueError(f"Config.{name} must be one of {', '.join(choices)}, got {value!r}.")
