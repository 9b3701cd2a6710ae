"""Parameter groups as torch's optimisers take them, with the names that a run's table of tensors needs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import nn

from zerograd.spaces.collect import named_parameters


def grouped(params: nn.Module | Iterable[Any]) -> list[dict[str, Any]]:
    """torch's parameter groups; each also carries its (name, parameter, owner) triples under "named".

    Raises ValueError where there are no parameters, one is in two groups, or two share a name.
    """
    items: list[Any] = [params] if isinstance(params, nn.Module) else list(params)
    if not items:
        raise ValueError("no parameters were given; pass a module, or its named_parameters()")
    if not isinstance(items[0], dict):
        items = [{"params": params if isinstance(params, nn.Module) else items}]
    groups: list[dict[str, Any]] = []
    count = 0
    group_of: dict[int, int] = {}
    names: set[str] = set()
    for i, item in enumerate(items):
        named = list(named_parameters(item["params"], count))
        count += len(named)
        owners: dict[str, int] = {}
        alike = [name for name, p, _ in named if owners.setdefault(name, id(p)) != id(p)]
        if alike:
            raise ValueError(f"{alike[0]} names two parameters; give them names that differ, one prefix a module")
        twice = [name for name, p, _ in named if group_of.setdefault(id(p), i) != i]
        if twice:
            raise ValueError(f"{twice[0]} is in two parameter groups; leave it in one of them")
        if any(name in names for name, _, _ in named):  # modules given group by group may use the same names
            named = [(f"group {i}.{name}", p, owner) for name, p, owner in named]
        names |= {name for name, _, _ in named}
        unique = {id(p): p for _, p, _ in named}
        groups.append({**item, "params": list(unique.values()), "named": named})
    return groups


def require_in_range(group: dict[str, Any]) -> None:
    """Raises ValueError where a group's eps, lr or weight_decay cannot be one."""
    if not (math.isfinite(group["eps"]) and group["eps"] > 0):
        raise ValueError(f"eps is {group['eps']}; it must be above 0")
    for name in ("lr", "weight_decay"):
        if not (math.isfinite(group[name]) and group[name] >= 0):
            raise ValueError(f"{name} is {group[name]}; it must be a number of at least 0")
