"""Flags of a verb from the fields of its settings, and the same fields from a YAML file; flags take precedence."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from zerograd.machine import yaml_files
from zerograd.settings.fields import Settings, from_mapping, kinds_of


def add(parser: argparse.ArgumentParser, settings: type[Any]) -> None:
    """Add a flag for each field, `--batch-size` for batch_size, with default and choices in --help; and --config and
    --show-config.
    """
    parser.add_argument("--config", metavar="FILE", default="", help="a YAML file of the same settings; flags take precedence")
    parser.add_argument("--show-config", action="store_true", help="print the settings as such a file, and exit")
    for field in dataclasses.fields(settings):
        kind, *others = kinds_of(settings)[field.name]
        flag = "--" + field.name.replace("_", "-")
        common: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS, "help": _help(field)}
        if kind is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, **common)
        elif get_origin(kind) is tuple:
            parser.add_argument(flag, nargs="+", metavar="NAME", **common)
        else:
            words = [word for other in others if get_origin(other) is Literal for word in get_args(other)]
            parser.add_argument(
                flag, type=_value_or_word(kind, words), metavar=kind.__name__.upper().replace("STR", "NAME"), **common
            )


def read(kind: type[Settings], parsed: argparse.Namespace) -> Settings:
    """The settings of the file and the flags. Raises ValueError or FileNotFoundError."""
    fields = yaml_files.read_yaml(Path(parsed.config), "config", "--show-config writes one") if parsed.config else {}
    return from_mapping(kind, fields | given(kind, parsed), f"config {parsed.config}")


def given(kind: type[Any], parsed: argparse.Namespace) -> dict[str, Any]:
    """The fields that were given as flags."""
    return {field.name: value for field in dataclasses.fields(kind) if (value := getattr(parsed, field.name, None)) is not None}


def to_yaml(settings: Any) -> str:
    """Settings as YAML, each with its help as a comment."""
    lines = []
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        plain = yaml_files.dump(list(value) if isinstance(value, tuple) else value, default_flow_style=True, width=10**6).strip()
        lines.append(f"{field.name}: {plain.removesuffix('...').strip()}  # {field.metadata['help']}")
    return "\n".join(lines)


def _value_or_word(kind: type[Any], words: Sequence[str]) -> Callable[[str], Any]:
    """A converter of a flag's text: one of the words as it is, any other text to the kind."""

    def read(text: str) -> Any:
        return text if text in words else kind(text)

    read.__name__ = kind.__name__  # the name in argparse's messages
    return read


def _help(field: dataclasses.Field[Any]) -> str:
    choices = field.metadata["choices"]
    text = field.metadata["help"] + (f"; one of {', '.join(choices)}" if choices else "")
    default = "" if field.default in (None, "", (), False) else f" (default: {field.default})"
    return f"{text}{default}".replace("%", "%%")
