"""Flags of a verb from the fields of its settings."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any, TypeVar

Settings = TypeVar("Settings")


def add(parser: argparse.ArgumentParser, settings: type[Any]) -> None:
    """One flag a field, `--batch-size` for batch_size, with its default and its choices in --help."""
    for field in dataclasses.fields(settings):
        kind = field.metadata["kind"]
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            dest=field.name,
            type=kind,
            default=field.default,
            metavar=kind.__name__.upper().replace("STR", "NAME"),
            help=_help(field),
        )


def read(settings: type[Settings], parsed: argparse.Namespace) -> Settings:
    """The settings that the flags give. Raises the ValueError of the settings."""
    return settings(**{field.name: getattr(parsed, field.name) for field in dataclasses.fields(settings)})  # type: ignore[arg-type]


def _help(field: dataclasses.Field[Any]) -> str:
    choices = field.metadata["choices"]
    text = field.metadata["help"] + (f"; one of {', '.join(choices)}" if choices else "")
    default = "" if field.default is None else f" (default: {field.default})"
    return f"{text}{default}".replace("%", "%%")
