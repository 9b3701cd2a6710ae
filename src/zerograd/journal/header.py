"""A journal's header: the fields that tell what a run is, and the method that they describe."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from zerograd.directions.family import Family
from zerograd.journal.format import Reader
from zerograd.journal.identity import WrongBase, table
from zerograd.noise import LAYOUT
from zerograd.optim import METHODS, options_of
from zerograd.optim.base import ZerothOrder
from zerograd.update.state import State
from zerograd.version import __version__

FORMAT = 2
"""Version of the header's fields."""

HIGHEST_RANK = 4096
"""The highest rank, and the most directions and steps of history, of a header: memory is taken by these numbers."""


def header_fields(optimizer: ZerothOrder, method: str, model: str, identity: str, lr: float) -> dict[str, Any]:
    """The fields from which weights can be replayed.

    method: its name in METHODS. model: where the base model was loaded from. identity: a hash of its weights. lr: the learning rate
    before schedule and back-offs.
    """
    return {
        "format": FORMAT,
        "layout": LAYOUT,
        "groups": len(optimizer.param_groups),
        "method": method,
        "parts": optimizer.chosen,
        "seed": optimizer.seed,
        "lr": lr,
        "base": {"model": model, "identity": identity},
        "tensors": table(optimizer.slots, optimizer.group_of),
        "versions": {"zerograd": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "threads": torch.get_num_threads(),
    }


def read_header(path: Path) -> Mapping[str, Any]:
    """The header of a journal. Raises FileNotFoundError, or ValueError for a header of another version."""
    if not path.exists():
        raise FileNotFoundError(f"journal {path} is not there; give a journal, or the folder of a run")
    with path.open("rb") as file:
        header = Reader(file, path.stat().st_size).header
    for name, own in (("format", FORMAT), ("layout", LAYOUT)):
        if header.get(name) != own:
            raise ValueError(
                f"journal {path} has {name} {header.get(name)!r}, and this zerograd {own}; use the version that wrote it"
            )
    return header


def method_of(header: Mapping[str, Any]) -> tuple[Family, State, int]:
    """(family, State, seed) of a header. Raises ValueError where it has none of these, or one that no run has."""
    method, parts, seed = header.get("method"), header.get("parts"), header.get("seed")
    if not isinstance(seed, int) or not 0 <= seed < 1 << 64:
        raise ValueError(f"the header's seed is {seed!r}")
    known = set(options_of(method)) - {"sensitivity"} if isinstance(method, str) and method in METHODS else set()
    if not isinstance(method, str) or method not in METHODS or not isinstance(parts, dict) or not known.issuperset(parts):
        raise ValueError(f"the header's method is {method!r} with parts {parts!r}")
    for name in ("rank", "directions", "history"):
        if isinstance(parts.get(name), int) and parts[name] > HIGHEST_RANK:
            raise ValueError(f"the header's {name} is {parts[name]:,}, more than {HIGHEST_RANK:,}")
    try:
        family, state = METHODS[method].parts(**parts)
    except (TypeError, KeyError, ArithmeticError) as error:
        raise ValueError(f"the header's method is {method!r} with parts {parts!r}: {error}") from None
    return family, state, seed


def require_base(header: Mapping[str, Any], identity: str, name: str) -> None:
    """Raises WrongBase where a journal is of another base model. name: how messages call the journal."""
    base = header.get("base")
    if not isinstance(base, dict) or base.get("identity") != identity:
        recorded = base.get("identity") if isinstance(base, dict) else None
        model = base.get("model") if isinstance(base, dict) else None
        raise WrongBase(
            f"{name} is of base {model} with identity {recorded}, and this one has identity {identity}; give the base it is of"
        )
