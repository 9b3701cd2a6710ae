"""What an evaluation knows of tensors: which are perturbed, which depend on the batch, and which rows see which variant.

Three kinds of tensors matter:

    space     an optimised parameter
    derived   a tensor that depends on a space but not on the batch (`-exp(A_log)`, a relative position bias): it carries a
              recipe that makes its value for a variant
    batched   a tensor that depends on the batch; its leading dimension is examples, or examples x k, in order, or is
              mapped to examples explicitly after an operation that selected rows (experts do)

Derived and batched tensors carry a mark, as an attribute. A `Trace` sets and reads the marks of one evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from zerograd.directions import Directions
from zerograd.errors import UnresolvedOperation
from zerograd.evaluate.tensors import arguments
from zerograd.queries import Plan, Variant
from zerograd.spaces import Space

MARK = "_zerograd"
"""The attribute of a tensor that holds its mark."""

UNWRITTEN = -2
"""In place of an example: this row of a buffer holds nothing of the batch yet."""


class MatrixPart(NamedTuple):
    """Rows of one matrix of a space.

    first, stop: the flat rows of the space from `first` to before `stop`, within one matrix of its stack.
    ids: numbers of rows of a single matrix, which then are the rows of this part.
    """

    space: Space
    first: int
    stop: int
    ids: torch.Tensor | None = None

    @property
    def rows(self) -> int:
        return self.stop - self.first if self.ids is None else len(self.ids)

    def weight(self) -> torch.Tensor:
        """The unperturbed matrix: (rows, columns), a view unless ids name its rows."""
        return self.space.weight(slice(self.first, self.stop) if self.ids is None else self.ids)


class Stack(NamedTuple):
    """All matrices of a space, in order. transposed: each is transposed."""

    space: Space
    transposed: bool


class Batched:
    """Mark of a tensor that depends on the batch.

    axis: the dimension along which examples lie: the leading one, where rules work and most models keep it, or a later one.
    rows: None when that dimension is examples x k in order, as always along a later one; else int64 (leading dimension,), each
    row's example, or UNWRITTEN for a row of a buffer that nothing of the batch has been written into.
    lost: the rows cannot be told apart by example.
    """

    __slots__ = ("axis", "lost", "owner", "rows", "written")

    def __init__(self, owner: Trace, rows: torch.Tensor | None = None, *, lost: bool = False, axis: int = 0) -> None:
        self.owner = owner
        self.rows = rows
        self.lost = lost
        self.axis = axis
        owner.has_later_axes |= axis > 0
        self.written = rows is None  # whether every row is known to be of an example


class Derived:
    """Mark of a tensor that depends on spaces but not on the batch.

    value: makes the tensor for a variant. name: of a space it comes from. part: the rows of one space that it is, if any.
    stack: the matrices of one space that it is, if any.
    """

    __slots__ = ("name", "owner", "part", "stack", "value")

    def __init__(
        self,
        owner: Trace,
        name: str,
        value: Callable[[Variant], torch.Tensor],
        part: MatrixPart | None = None,
    ) -> None:
        self.owner = owner
        self.name = name
        self.value = value
        self.part = part
        self.stack: Stack | None = None


class Trace:
    """The spaces, directions and plan of one evaluation, and the marks of its tensors.

    spaces: the optimised tensors. directions: where their noise comes from. plan: which example sees which direction.
    radii: the smoothing radius of each space, by its id.
    whole: every operation sees the plan's only variant, and no example is told from another (closures).
    examples: of the expanded batch. ordered, lost: the marks of a tensor whose rows are in order, and of one whose are unknown.
    """

    def __init__(
        self, spaces: Sequence[Space], directions: Directions, plan: Plan, radii: Mapping[int, float], *, whole: bool = False
    ) -> None:
        if whole and len(plan) != 1:
            raise ValueError(f"a whole evaluation has one variant, this plan has {len(plan)}")
        self.radii = radii
        self.directions = directions
        self.plan = plan.to(spaces[0].device) if spaces else plan
        self.examples = len(plan)
        self.whole = whole
        self.has_later_axes = False
        self.spaces = {id(space.parameter): space for space in spaces}
        self._orders: dict[int, torch.Tensor] = {}
        self.ordered, self.lost = Batched(self), Batched(self, lost=True)

    # What a tensor is

    def space(self, value: Any) -> Space | None:
        """The space of a parameter, or None."""
        return self.spaces.get(id(value))

    def batched(self, value: Any) -> Batched | None:
        """The mark of a tensor that depends on the batch, or None."""
        mark = getattr(value, MARK, None)
        return mark if type(mark) is Batched and mark.owner is self else None

    def derived(self, value: Any) -> Derived | None:
        """The recipe of a derived tensor, or None."""
        mark = getattr(value, MARK, None)
        return mark if type(mark) is Derived and mark.owner is self else None

    def name(self, value: Any) -> str | None:
        """The name of the space that a tensor is or comes from, or None."""
        space = self.space(value)
        if space is not None:
            return space.name
        derived = self.derived(value)
        return derived.name if derived else None

    def lies_later(self, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
        """Whether examples lie along a later dimension of one of the arguments."""
        if not self.has_later_axes:  # of no tensor of this evaluation so far
            return False
        marks = (getattr(value, MARK, None) for value in arguments(args, kwargs))
        return any(type(mark) is Batched and mark.axis and mark.owner is self for mark in marks)

    def meets(self, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[torch.Tensor | None, bool]:
        """The first argument that is a space or derived from one, and whether an argument depends on the batch."""
        ours, batched = None, False
        for value in arguments(args, kwargs):
            if id(value) in self.spaces:
                ours = value if ours is None else ours
                continue
            mark = getattr(value, MARK, None)
            if mark is not None and mark.owner is self:
                if type(mark) is Derived:
                    ours = value if ours is None else ours
                else:
                    batched = True
        return ours, batched

    def mark(self, tensor: torch.Tensor, to: torch.Tensor | None = None, *, lost: bool = False) -> torch.Tensor:
        """Mark a tensor as dependent on the batch, and return it.

        to: each row's example; by default the leading dimension is examples x k in order. lost: the rows' examples are unknown.
        """
        setattr(tensor, MARK, self.ordered if to is None and not lost else Batched(self, to, lost=lost))
        return tensor

    # What a perturbed tensor is

    def amplitude(self, space: Space) -> float:
        """What multiplies raw z, or the product of its raw factors, in a perturbation of coefficient 1."""
        return self.radii[space.id] * self.directions.length(space)

    def perturbed(
        self, space: Space, variant: Variant, rows: slice | torch.Tensor | None = None, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """A space's tensor for a variant, formed in float32 and rounded once.

        rows: a slice of its flat rows, all by default: the result is (rows, columns). Or ids of the rows of a single matrix: the
        result is (*ids.shape, columns). dtype: the parameter's own by default.
        """
        coefficient = variant.coefficient * self.radii[space.id]
        if isinstance(rows, torch.Tensor):
            return self.directions.perturbed_rows(space, variant.direction, coefficient, rows, dtype)
        return self.directions.perturbed(space, variant.direction, [coefficient], rows, dtype)[0]

    def value(self, value: Any, variant: Variant) -> Any:
        """An argument as one variant sees it."""
        space = self.space(value)
        if space is not None:
            return self.perturbed(space, variant).view(space.shape)
        derived = self.derived(value)
        return derived.value(variant) if derived else value

    # Which rows see which variant

    def repeat(self, tensor: torch.Tensor, name: str) -> int | torch.Tensor:
        """How a batched tensor's leading dimension maps to examples: k rows an example, or each row's example."""
        mark = self.batched(tensor)
        if mark is not None:
            mark = self.settled(mark)
        if mark is not None and (mark.lost or mark.axis):
            raise UnresolvedOperation(
                f"{name} meets a tensor of shape {tuple(tensor.shape)} whose leading dimension can no longer be told apart by "
                "example; keep the batch first and unmixed, or pass a closure"
            )
        if mark is not None and mark.rows is not None:
            return mark.rows
        leading = tensor.shape[0] if tensor.ndim else 1
        if leading % self.examples or not leading:
            raise UnresolvedOperation(
                f"{name} meets a tensor of shape {tuple(tensor.shape)}, whose leading dimension is not a multiple of "
                f"the {self.examples} examples of the expanded batch; put the batch first, or pass a closure"
            )
        return leading // self.examples

    def settled(self, mark: Batched) -> Batched:
        """A mark without unwritten rows: they hold constants, so they may be of any example that order asks for."""
        if mark.written or mark.rows is None or not bool((mark.rows == UNWRITTEN).any()):
            mark.written = True
            return mark
        if len(mark.rows) % self.examples == 0:
            order = self.in_order(len(mark.rows))
            if torch.equal(torch.where(mark.rows == UNWRITTEN, order, mark.rows), order):
                return self.ordered
        return self.lost

    def in_order(self, rows: int) -> torch.Tensor:
        """The example of each of so many rows that are examples x k in order: int64 (rows,)."""
        if rows not in self._orders:
            each = torch.arange(self.examples, device=self.plan.device)
            self._orders[rows] = each.repeat_interleave(rows // self.examples)
        return self._orders[rows]

    def per_row(self, values: torch.Tensor, repeat: int | torch.Tensor) -> torch.Tensor:
        """Values of shape (examples, ...) as (rows, ...)."""
        if isinstance(repeat, torch.Tensor):
            return values[repeat]
        return values if repeat == 1 else values.repeat_interleave(repeat, 0)

    def at(self, variant: Variant, repeat: int | torch.Tensor) -> slice | torch.Tensor:
        """The rows of a variant, as an index of the leading dimension."""
        if isinstance(repeat, torch.Tensor):
            return ((repeat >= variant.first) & (repeat < variant.stop)).nonzero()[:, 0]
        return slice(variant.first * repeat, variant.stop * repeat)

    def resolved(self, losses: torch.Tensor) -> torch.Tensor:
        """Losses as each expanded example sees them. Raises UnresolvedOperation when they are not in the order of the examples."""
        derived, mark = self.derived(losses), self.batched(losses)
        if mark is not None:
            mark = self.settled(mark)
        if mark is not None and (mark.lost or mark.axis or mark.rows is not None):
            raise UnresolvedOperation(
                "the losses are not one an example in the order of the batch; restore its order before returning"
            )
        if derived is None or losses.shape != (self.examples,):
            return losses.detach()
        result = torch.empty(losses.shape, dtype=torch.float32, device=losses.device)
        for variant in self.plan.variants():
            rows = slice(variant.first, variant.stop)
            result[rows] = derived.value(variant)[rows].float()
        return result
