"""Dataclasses of settings, built from names and values and checked by their annotations.

An error names the field, its value, and the allowed values. A field's type may be `str`, `int`, `float`, `bool`,
`tuple[T, ...]`, `Mapping`, `Literal`, another dataclass, or a union of these; `None` stands for a default that depends
on other fields.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Settings = TypeVar("Settings")

_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}

_PLURALS = {str: "a list of texts", int: "a list of whole numbers", float: "a list of numbers"}


def setting(default: Any, help: str, choices: tuple[str, ...] = ()) -> Any:
    """A field with a help text for its flag. choices: the allowed values; any value of the field's type without
    choices.
    """
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


def from_mapping(kind: type[Settings], fields: Mapping[str, Any], where: str) -> Settings:
    """A dataclass of settings from fields by name, such as those of a YAML file.

    where: the source's name in messages.
    Raises ValueError for an unknown field, and for a missing field without default.
    """
    specs = dataclasses.fields(kind)  # type: ignore[arg-type]
    known = [spec.name for spec in specs]
    unknown = [name for name in fields if name not in known]
    if unknown:
        raise ValueError(f"{where} has a field {unknown[0]!r}; the fields are {', '.join(known)}")
    missing = dataclasses.MISSING
    for spec in specs:
        if spec.name not in fields and spec.default is missing and spec.default_factory is missing:
            raise ValueError(f"{where} has no {spec.name}; give {_words(kinds_of(kind)[spec.name])}")
    return kind(**fields)


def check_fields(settings: Any, prefix: str = "") -> None:
    """Turn lists into tuples, then raise ValueError for a value of another type than its field's, or outside the
    field's choices.

    prefix: text before a field's name in messages. Call it in `__post_init__`.
    """
    kinds = kinds_of(type(settings))
    for spec in dataclasses.fields(settings):
        value = getattr(settings, spec.name)
        if isinstance(value, list):
            value = tuple(value)
            object.__setattr__(settings, spec.name, value)
        if not any(_is_of(value, kind) for kind in kinds[spec.name]):
            given = list(value) if isinstance(value, tuple) else value
            raise ValueError(f"{prefix}{spec.name} is {given!r}; it must be {_words(kinds[spec.name])}")
        choices = spec.metadata.get("choices")
        if choices and value not in choices:
            raise ValueError(f"{prefix}{spec.name} is {value!r}; choose one of {', '.join(choices)}")


def require_at_least(name: str, value: float, least: float) -> None:
    """Raises ValueError naming a number that is too small, or not finite."""
    if not (math.isfinite(value) and value >= least):
        raise ValueError(f"{name} is {value}; it must be a number of at least {least}")


def kinds_of(settings: type[Any]) -> dict[str, tuple[Any, ...]]:
    """The types of each field by its annotation, several for a union."""
    hints = get_type_hints(settings)
    unions = (Union, types.UnionType)
    return {
        spec.name: get_args(hints[spec.name]) if get_origin(hints[spec.name]) in unions else (hints[spec.name],)
        for spec in dataclasses.fields(settings)
    }


def _is_of(value: Any, kind: Any) -> bool:
    origin = get_origin(kind)
    if kind is Any:
        return True
    if origin is Literal:
        return value in get_args(kind)
    if origin is tuple:
        return isinstance(value, tuple) and all(_is_of(item, get_args(kind)[0]) for item in value)
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return isinstance(value, origin or kind)


def _words(kinds: tuple[Any, ...]) -> str:
    """The types in words."""
    words: list[str] = []
    for kind in kinds:
        if get_origin(kind) is Literal:
            words += map(str, get_args(kind))
        elif get_origin(kind) is tuple:
            words.append(_PLURALS.get(get_args(kind)[0], "a list"))
        elif kind is not type(None):
            words.append(_WORDS.get(kind, "names and values"))
    return " or ".join(words)
