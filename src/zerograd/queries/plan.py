"""Plans: which direction perturbs each example of the expanded batch, and with what sign."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Variant:
    """One perturbed model that a plan asks for, and the expanded examples that see it.

    direction: its id. sign: what multiplies eps (0 for the clean model). examples: their positions in the expanded batch.
    span: (first, stop) when they are contiguous, else None.
    """

    direction: int
    sign: float
    examples: torch.Tensor  # (examples of this variant,) int64, ascending
    span: tuple[int, int] | None


@dataclass(frozen=True, eq=False)
class Plan:
    """For every example of the expanded batch, the direction that perturbs it and the sign of eps.

    direction: int64 (examples,). sign: float32 (examples,). copies: how often the batch is repeated to make the
    expanded one. An expanded example may be several rows; they are contiguous and share its direction. Both tensors are on the CPU;
    what is made of them to index and to multiply with is on `device`.
    """

    direction: torch.Tensor
    sign: torch.Tensor
    copies: int
    device: torch.device = CPU

    def __len__(self) -> int:
        return len(self.direction)

    @property
    def examples(self) -> int:
        """How many examples the batch has before it is expanded."""
        return len(self) // self.copies

    def to(self, device: torch.device) -> Plan:
        """The plan for a model on a device."""
        return self if device == self.device else replace(self, device=device)

    def part(self, first: int, stop: int) -> Plan:
        """The plan of the batch's examples from `first` to before `stop`: they see the directions that they see in the whole."""
        direction, sign = (t.view(self.copies, -1)[:, first:stop].contiguous().view(-1) for t in (self.direction, self.sign))
        return replace(self, direction=direction, sign=sign)

    def only(self, copies: Sequence[int]) -> Plan:
        """The plan of some of the copies."""
        direction, sign = (t.view(self.copies, -1)[list(copies)].view(-1) for t in (self.direction, self.sign))
        return replace(self, direction=direction, sign=sign, copies=len(copies))

    @cached_property
    def is_separable(self) -> bool:
        """Whether no two copies share a direction: evaluated apart, they draw no number twice."""
        blocks = zip(self.direction.view(self.copies, -1), self.sign.view(self.copies, -1), strict=True)
        drawn = [set(direction[sign != 0].tolist()) for direction, sign in blocks]
        return len(set().union(*drawn)) == sum(map(len, drawn))

    @cached_property
    def variants(self) -> tuple[Variant, ...]:
        """The distinct (direction, sign) pairs in order of first use."""
        found: dict[tuple[int, float], list[int]] = {}
        for example, pair in enumerate(zip(self.direction.tolist(), self.sign.tolist(), strict=True)):
            found.setdefault(pair, []).append(example)
        return tuple(Variant(d, s, self._tensor(examples), _span(examples)) for (d, s), examples in found.items())

    @cached_property
    def directions(self) -> tuple[int, ...]:
        """The distinct direction ids, ascending."""
        return tuple(sorted(set(self.direction.tolist())))

    @cached_property
    def variant_of(self) -> torch.Tensor:
        """Where each example's variant stands in `variants`: int64 (examples,)."""
        place = {(variant.direction, variant.sign): i for i, variant in enumerate(self.variants)}
        return self._tensor([place[pair] for pair in zip(self.direction.tolist(), self.sign.tolist(), strict=True)])

    @cached_property
    def in_blocks(self) -> bool:
        """Whether the variants' examples lie one block after the other, equally many each."""
        return len({len(v.examples) for v in self.variants}) == 1 and all(v.span for v in self.variants)

    @cached_property
    def variant_directions(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each variant: its direction, int64 (variants,), and its sign, float32 (variants,)."""
        return self._tensor([v.direction for v in self.variants]), self._tensor([v.sign for v in self.variants])

    @cached_property
    def variant_order(self) -> torch.Tensor:
        """The variants direction by direction: int64 (variants,)."""
        return torch.argsort(self.variant_directions[0], stable=True)

    @cached_property
    def variant_places(self) -> torch.Tensor:
        """Where each variant's direction stands in `directions`: int64 (variants,)."""
        place = {direction: i for i, direction in enumerate(self.directions)}
        return self._tensor([place[variant.direction] for variant in self.variants])

    @cached_property
    def places(self) -> torch.Tensor:
        """Where each example's direction stands in `directions`: int64 (examples,)."""
        return torch.searchsorted(torch.tensor(self.directions), self.direction).to(self.device)

    @cached_property
    def signs(self) -> torch.Tensor:
        """Each example's sign: float32 (examples,)."""
        return self.sign.to(self.device)

    def _tensor(self, values: Sequence[float]) -> torch.Tensor:
        dtype = torch.float32 if any(isinstance(value, float) for value in values) else torch.int64
        return torch.tensor(values, dtype=dtype).to(self.device)


def _span(examples: Sequence[int]) -> tuple[int, int] | None:
    first, stop = examples[0], examples[-1] + 1
    return (first, stop) if stop - first == len(examples) else None


def shared_pairs(examples: int, directions: int = 1) -> Plan:
    """MeZO's plan: [+z ; -z] for all examples, each direction a block of them on either side."""
    count = examples * directions
    return Plan(torch.arange(directions).repeat_interleave(examples).repeat(2), _signs(count), 2 * directions)


def example_pairs(examples: int, directions: int = 1) -> Plan:
    """Per-example directions, two-sided: [+z ; -z], direction i * examples + b for example b and i < directions."""
    count = examples * directions
    return Plan(torch.arange(count).repeat(2), _signs(count), 2 * directions)


def example_populations(examples: int, directions: int) -> Plan:
    """Per-example directions, one-sided: block i has direction i * examples + b for example b."""
    return Plan(torch.arange(examples * directions), torch.ones(examples * directions, dtype=torch.float32), directions)


def population(examples: int, directions: int) -> Plan:
    """FZOO's plan: block i has direction i, one side, for all examples; a clean block comes last."""
    direction = torch.arange(directions + 1).remainder(directions).repeat_interleave(examples)
    sign = torch.ones(directions + 1, dtype=torch.float32)
    sign[-1] = 0
    return Plan(direction, sign.repeat_interleave(examples), directions + 1)


def along_each(examples: int, directions: int) -> Plan:
    """Block i has direction i, one side, for all examples."""
    return Plan(
        torch.arange(directions).repeat_interleave(examples), torch.ones(directions * examples, dtype=torch.float32), directions
    )


def along(examples: int, signs: Sequence[float]) -> Plan:
    """Direction 0 for all examples, a block of them for each sign of eps."""
    direction = torch.zeros(len(signs) * examples, dtype=torch.int64)
    return Plan(direction, torch.tensor(signs, dtype=torch.float32).repeat_interleave(examples), len(signs))


def trial(examples: int) -> Plan:
    """Two directions, one of each sign, over one or two examples: the least that tells examples apart."""
    if examples not in (1, 2):
        raise ValueError(f"a trial has 1 or 2 examples, not {examples}")
    return Plan(torch.tensor([0, 1]), torch.tensor([1.0, -1.0], dtype=torch.float32), 3 - examples)


def clean(examples: int) -> Plan:
    """The unperturbed model."""
    return Plan(torch.zeros(examples, dtype=torch.int64), torch.zeros(examples, dtype=torch.float32), 1)


def branch(direction: int, sign: float) -> Plan:
    """One perturbed model for everything: what a closure is evaluated under."""
    return Plan(torch.tensor([direction]), torch.tensor([float(sign)], dtype=torch.float32), 1)


def _signs(examples: int) -> torch.Tensor:
    return torch.tensor([1.0, -1.0], dtype=torch.float32).repeat_interleave(examples)
