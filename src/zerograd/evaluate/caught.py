"""Tensors inside a forward pass: caught where they enter or leave a module; the pass ends there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn


class Enough(Exception):
    """Raised inside a forward pass to leave it: nothing after that point is wanted.

    caller: what asked for the pass; a pass may be caught inside another one that is caught.
    """

    def __init__(self, caller: object) -> None:
        super().__init__()
        self.caller = caller


def caught(
    run: Callable[[], object], modules: Sequence[nn.Module], entering: bool = False, caller: object = None
) -> dict[int, Any]:
    """The outputs of modules in a forward pass, by their place in `modules`; or, with entering, their first arguments.

    run: does the pass. It ends as soon as every module is reached, or when an `Enough` of the caller is raised inside
    it. A module that the pass does not reach is not in the result.
    """
    caller = caller or object()
    values: dict[int, Any] = {}

    def keep(place: int, value: Any) -> None:
        values.setdefault(place, value)
        if len(values) == len(modules):
            raise Enough(caller)

    def before(place: int) -> Callable[..., None]:
        return lambda module, args: keep(place, args[0])

    def after(place: int) -> Callable[..., None]:
        return lambda module, args, output: keep(place, output)

    handles = [
        module.register_forward_pre_hook(before(place)) if entering else module.register_forward_hook(after(place))
        for place, module in enumerate(modules)
    ]
    try:
        run()
    except Enough as enough:
        if enough.caller is not caller:
            raise
    finally:
        for handle in handles:
            handle.remove()
    return values
