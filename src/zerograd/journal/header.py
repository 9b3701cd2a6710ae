"""A journal's header: the fields that tell what a run is, and the method that they describe."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from zerograd.directions import Draws
from zerograd.errors import WrongBase
from zerograd.journal.identity import table
from zerograd.journal.steps import Reader
from zerograd.noise import LAYOUT
from zerograd.optim import METHODS, Method, ZerothOrder, method_of, options_of
from zerograd.spaces import Space
from zerograd.update import Memory
from zerograd.version import __version__

FORMAT = 3
"""Version of the header's fields and of the records of steps."""

READ_BY = {"1": "0.1", "2": "0.1"}
"""The version of zerograd that reads an older format."""

HIGHEST_RANK = 4096
"""The highest rank, and the most directions and steps of history, of a header: memory is taken by these numbers."""


def header_fields(optimizer: ZerothOrder, method: str, model: str, identity: str, lr: float) -> dict[str, Any]:
    """The fields from which weights can be replayed.

    method: its name in METHODS. model: where the base model was loaded from. identity: a hash of its weights. lr: the
    learning rate before schedule and back-offs.
    """
    return {
        "format": FORMAT,
        "layout": LAYOUT,
        "groups": len(optimizer.param_groups),
        "method": method,
        "options": optimizer.settings.saved(),
        "seed": optimizer.draws.seed,
        "lr": lr,
        "base": {"model": model, "identity": identity},
        "tensors": table(optimizer.spaces, optimizer.group_of),
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
            reader = READ_BY.get(str(header.get(name))) if name == "format" else None
            mend = f"use zerograd {reader}, which reads it" if reader else "use the version that wrote it"
            raise ValueError(f"journal {path} has {name} {header.get(name)!r}, and zerograd {__version__} reads {own}; {mend}")
    return header


def recorded_method(header: Mapping[str, Any]) -> tuple[Method, int]:
    """(method, seed) of a header. Raises ValueError where it has none of these, or one that no run has."""
    method, options, seed = header.get("method"), header.get("options"), header.get("seed")
    if not isinstance(seed, int) or not 0 <= seed < 1 << 64:
        raise ValueError(f"the header's seed is {seed!r}")
    known = set(options_of(method)) if isinstance(method, str) and method in METHODS else set()
    if not isinstance(method, str) or method not in METHODS or not isinstance(options, dict) or not known.issuperset(options):
        raise ValueError(f"the header's method is {method!r} with options {options!r}")
    if options.get("sensitivity") is not None:  # tensors, which no header has
        raise ValueError(f"the header's sensitivity is {options['sensitivity']!r}")
    for name in ("rank", "directions", "history"):
        if isinstance(options.get(name), int) and options[name] > HIGHEST_RANK:
            raise ValueError(f"the header's {name} is {options[name]:,}, more than {HIGHEST_RANK:,}")
    try:
        return method_of(method, options), seed
    except (TypeError, ArithmeticError) as error:
        raise ValueError(f"the header's method is {method!r} with options {options!r}: {error}") from None


def recorded_memory(
    header: Mapping[str, Any], spaces: Sequence[Space], groups: Sequence[int], trained: Sequence[Space] | None = None
) -> Memory:
    """The memory of a header's method before the first step. groups: the parameter group of each space. trained: all
    spaces of the run, where `spaces` are some of them.
    """
    method, seed = recorded_method(header)
    method.draw.init(spaces if trained is None else trained)
    return Memory(method.rule, method.query, Draws(method.draw, seed), spaces, groups, header["groups"])


def require_base(header: Mapping[str, Any], identity: str, name: str) -> None:
    """Raises WrongBase where a journal is of another base model. name: how messages call the journal."""
    base = header.get("base")
    if not isinstance(base, dict) or base.get("identity") != identity:
        recorded = base.get("identity") if isinstance(base, dict) else None
        model = base.get("model") if isinstance(base, dict) else None
        raise WrongBase(
            f"{name} is of base {model} with identity {recorded}, and this one has identity {identity}; "
            "give the base model that the journal names"
        )
