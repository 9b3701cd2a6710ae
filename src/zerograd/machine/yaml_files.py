"""YAML by the core schema of its version 1.2: 1e-3 is a number, and yes, no, on and off are words.

PyYAML follows version 1.1, which reads 1e-3 as a text, `no` as false, 1:30 as 90 and 010 as 8.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

YAMLError = yaml.YAMLError

_RESOLVERS = {
    "tag:yaml.org,2002:bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "tag:yaml.org,2002:null": (r"~|null|Null|NULL|", "~nN\0"),
    "tag:yaml.org,2002:int": (r"[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+", "-+0123456789"),
    "tag:yaml.org,2002:float": (
        r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
    "tag:yaml.org,2002:merge": (r"<<", "<"),
}
"""Of each type, the texts that are it without quotes, and the characters that these begin with."""


class Loader(yaml.SafeLoader):
    """Reads plain values alone."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012


class Dumper(yaml.SafeDumper):
    """Quotes what `Loader` would not read as a text."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012


for _kind in (Loader, Dumper):
    for _tag, (_pattern, _first) in _RESOLVERS.items():
        _kind.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), [c if c != "\0" else "" for c in _first])


def load(text: str) -> Any:
    """The value of a text. Raises YAMLError."""
    try:
        return yaml.load(text, Loader)
    except (ValueError, RecursionError) as error:  # of a number that is too long, or of too much depth
        raise YAMLError(str(error)) from None


def dump(value: Any, **how: Any) -> str:
    """A value as YAML. how: as of `yaml.dump`."""
    return str(yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, **how))


def has_alias(text: str) -> bool:
    """Whether a text names a value that is used again, by which a short text can stand for a huge one. Raises YAMLError."""
    return any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader))


def read_yaml(path: Path, kind: str, otherwise: str) -> dict[str, Any]:
    """The fields of a YAML file.

    kind: the file's name in messages. otherwise: a hint for a file that is not there.
    Raises FileNotFoundError or ValueError.
    """
    if not path.exists():
        raise FileNotFoundError(f"{kind} {path} is not there; {otherwise}")
    try:
        fields = load(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{kind} {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{kind} {path} is a {type(fields).__name__}; it must be fields and values")
    return fields
