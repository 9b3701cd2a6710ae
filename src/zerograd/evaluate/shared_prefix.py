"""Layers below the first trained one, run once: their result is the same for every branch of a step.

When only upper layers are trained, the hidden states that enter them do not depend on the perturbation. `Prefix` runs
the layers below once for the batch, and the branches ride from there. It asks only that a model keeps the layers that
follow each other in a `ModuleList` with a name of `BLOCKS`. An encoder-decoder has two such lists, and each is cut
where it can be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from zerograd.evaluate import half
from zerograd.evaluate.caught import Enough, caught
from zerograd.evaluate.tensors import tensors
from zerograd.machine.interrupts import uninterrupted

BLOCKS = ("layers", "layer", "block", "h")
"""Names under which models keep the layers that follow each other."""

Run = Callable[[], torch.Tensor]
"""Runs a model on a batch, up to the tensor that scores are made of."""


class Shared:
    """What the outputs of a model's cuts have beside tensors of rows: a batch is split and repeated without looking
    into it.

    leaves: of each cut, the parts of its output, with None in place of tensors of rows. specs: how the parts are put
    together.
    """

    def __init__(self, leaves: list[list[Any]], specs: list[TreeSpec]) -> None:
        self.leaves = leaves
        self.specs = specs

    @property
    def has_tensors(self) -> bool:
        """Whether layers hand on a tensor that is the same for every row, such as a relative position bias."""
        return any(isinstance(leaf, torch.Tensor) for leaves in self.leaves for leaf in leaves)


@dataclass(frozen=True)
class Entered:
    """A batch where it enters the rest of a model.

    states: (rows, ...) each, in the order of the cuts; of each cut the hidden states, (rows, tokens, width), stand
    first. A decoder may have more rows than its encoder, a multiple of them. shared: the rest of what the layers hand
    on.
    """

    states: tuple[torch.Tensor, ...]
    shared: Shared

    @staticmethod
    def joined(parts: Sequence[Entered]) -> Entered:
        """The same of all rows, from those of some after others. All are padded to the same length."""
        states = zip(*(part.states for part in parts), strict=True)
        return parts[0] if len(parts) == 1 else Entered(tuple(map(torch.cat, states)), parts[0].shared)


@dataclass(frozen=True)
class Cut:
    """One place where a model is cut.

    name: of `module`, whose output enters the rest. skipped: the modules that need not run when that output is known,
    with `module`. rows: which leaves of the output are tensors of rows.
    """

    name: str
    module: nn.Module
    skipped: tuple[nn.Module, ...]
    rows: tuple[int, ...]


class Prefix:
    """A model cut below its first trained layer; `prefix_of` makes one.

    cuts: in the order in which a pass comes to them.
    """

    def __init__(self, model: nn.Module, cuts: Sequence[Cut]) -> None:
        self.cuts = tuple(cuts)
        self.name = ", ".join(cut.name for cut in cuts)
        place = {id(module): i for i, cut in enumerate(cuts) for module in cut.skipped}
        self._places = [
            (parent, name, child, place[id(child)])
            for parent in model.modules()
            for name, child in parent.named_children()
            if id(child) in place
        ]

    def below(self, run: Run) -> Entered:
        """What enters the rest of the model, for the batch that `run` runs it on."""
        with torch.no_grad(), half.fast_products():
            outputs = caught(run, [cut.module for cut in self.cuts])
        states, leaves, specs = [], [], []
        for i, cut in enumerate(self.cuts):
            parts, spec = tree_flatten(outputs[i])
            states += [parts[place] for place in cut.rows]
            leaves.append([None if place in cut.rows else part for place, part in enumerate(parts)])
            specs.append(spec)
        return Entered(tuple(states), Shared(leaves, specs))

    def above(self, entered: Entered, run: Run) -> torch.Tensor:
        """What `run` gives, with `entered` in place of the layers below: embeddings and masks are made, layers are not
        run.
        """
        states = iter(entered.states)
        outputs = []
        for cut, leaves, spec in zip(self.cuts, entered.shared.leaves, entered.shared.specs, strict=True):
            parts = [next(states) if place in cut.rows else part for place, part in enumerate(leaves)]
            outputs.append(tree_unflatten(parts, spec))
        try:
            for parent, name, child, place in self._places:
                parent._modules[name] = _Known(child, outputs[place])
            return run()
        finally:
            with uninterrupted():  # a model left cut would be evaluated and saved so
                for parent, name, child, _ in self._places:
                    parent._modules[name] = child


def prefix_of(model: nn.Module, run: Run) -> Prefix | None:
    """The prefix of a model whose trained parameters all lie in upper layers, or None where there is none that can be
    used.

    run: runs the model on two rows or more, for which the cut model must give the bits of the whole one.
    """
    try:
        with torch.no_grad(), half.fast_products():
            cuts = cuts_of(model, run)
            if not cuts:
                return None
            prefix = Prefix(model, cuts)
            whole, cut = run(), prefix.above(prefix.below(run), run)
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError):
        return None  # this architecture cannot be cut so
    return prefix if torch.equal(whole, cut) else None


def cuts_of(model: nn.Module, run: Run) -> list[Cut]:
    """The places at which a pass can be cut: behind the last layer of each list that no trained parameter has touched,
    or behind the module that holds the list, where no parameter has touched that either.

    The pass needs no values: tensors may be fake.
    """
    lists = list(_lists(model))
    names = {module: name for name, module in model.named_modules()}
    modules = [module for owner, blocks in lists for module in (*blocks, owner)]
    with _UntilTrained(model) as until:
        reached = caught(run, modules, caller=until)
    outputs = {modules[place]: output for place, output in reached.items()}
    cuts = []
    for owner, blocks in lists:
        done = next((i for i, block in enumerate(blocks) if block not in outputs), len(blocks))
        ways = [(owner, (owner,))] * (owner in outputs) + [(blocks[done - 1], tuple(blocks)[:done])] * bool(done)
        for module, skipped in ways:
            rows = _rows(outputs[module])
            if rows and (len(rows) == 1 or module is not owner):  # an owner may give every layer's keys and values as well
                cuts.append(Cut(names[module], module, skipped, rows))
                break
    order = list(outputs)
    return sorted(cuts, key=lambda cut: order.index(cut.module))


def _lists(module: nn.Module) -> Iterator[tuple[nn.Module, nn.ModuleList]]:
    """(the module that holds it, the list) of each outermost list of layers."""
    for name, child in module.named_children():
        if name in BLOCKS and isinstance(child, nn.ModuleList) and len(child):
            yield module, child
        else:
            yield from _lists(child)


def _rows(output: Any) -> tuple[int, ...]:
    """The places of an output's tensors of rows: the hidden states, which come first, and all with as many rows."""
    found = [(place, leaf) for place, leaf in enumerate(tree_flatten(output)[0]) if isinstance(leaf, torch.Tensor)]
    rows = len(found[0][1]) if found and found[0][1].ndim > 1 else 0
    return tuple(place for place, leaf in found if rows and leaf.ndim and len(leaf) == rows)


class _UntilTrained(TorchFunctionMode):
    """Ends a pass when it comes to a trained parameter."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        value = isinstance(result, torch.Tensor) or getattr(function, "__name__", "") != "__get__"  # no dtype, device or shape
        if value and any(id(tensor) in self._trained for tensor in tensors((args, kwargs or {}))):
            raise Enough(self)
        return result


class _Known(nn.Module):
    """In place of a module: gives an output that is known, and answers for the module's attributes."""

    def __init__(self, module: nn.Module, output: Any) -> None:
        super().__init__()
        self.__dict__.update(_module=module, _output=output)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_module"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.__dict__["_output"]
