"""Plans: the perturbed copies of a model that a step scores, in closed form.

A plan is a list of branches. Every branch evaluates all examples of the batch; the expanded batch is the batch repeated
branch by branch. A branch has a direction and a coefficient, which multiplies the smoothing radius: 1, -1, or 0 for the
clean model. Its direction is shared by the examples, or is the first of as many as there are examples, one for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Variant:
    """One perturbed model that a plan asks for. first, stop: the expanded examples that see it."""

    direction: int
    coefficient: float
    first: int
    stop: int

    @property
    def examples(self) -> int:
        return self.stop - self.first


@dataclass(frozen=True, eq=False)
class Plan:
    """Which perturbed model each example of the expanded batch sees.

    examples: of the batch. direction: int64 (branches,), shared by a branch's examples; with own_directions, example b
    of a branch sees direction + b. coefficient: float32 (branches,). device: where tensors that index activations lie;
    `direction` and `coefficient` stay on the CPU. An example may be several rows of a tensor; they are contiguous and
    share its direction.
    """

    examples: int
    direction: torch.Tensor
    coefficient: torch.Tensor
    own_directions: bool = False
    device: torch.device = CPU

    def __len__(self) -> int:
        """Examples of the expanded batch."""
        return self.branches * self.examples

    @property
    def branches(self) -> int:
        """How often the batch is evaluated."""
        return len(self.direction)

    def to(self, device: torch.device) -> Plan:
        """The plan for a model on a device."""
        return self if device == self.device else replace(self, device=device)

    def part(self, first: int, stop: int) -> Plan:
        """The plan of the batch's examples from `first` to before `stop`: they see the directions that they see in the
        whole.
        """
        direction = self.direction + first if self.own_directions else self.direction
        return replace(self, examples=stop - first, direction=direction)

    def only(self, branches: slice) -> Plan:
        """The plan of some of the branches."""
        return replace(self, direction=self.direction[branches], coefficient=self.coefficient[branches])

    @cached_property
    def is_separable(self) -> bool:
        """Whether no two branches share a direction: evaluated apart, they draw no number twice."""
        perturbed = self.direction[self.coefficient != 0]
        return len(set(perturbed.tolist())) == len(perturbed)

    @cached_property
    def _per_variant(self) -> int:
        """Expanded examples of a variant: variants are blocks of equally many."""
        return 1 if self.own_directions else self.examples

    @cached_property
    def variant_directions(self) -> torch.Tensor:
        """The direction of each variant: int64 (variants,), on the CPU."""
        if not self.own_directions:
            return self.direction
        return (self.direction[:, None] + torch.arange(self.examples)).flatten()

    @cached_property
    def variant_coefficients(self) -> torch.Tensor:
        """The coefficient of each variant: float32 (variants,), on the plan's device."""
        return self.coefficient.repeat_interleave(self.examples if self.own_directions else 1).to(self.device)

    @cached_property
    def variant_of(self) -> torch.Tensor:
        """Where each expanded example's variant stands: int64 (expanded examples,)."""
        return torch.arange(len(self), device=self.device) // self._per_variant

    @cached_property
    def variant_order(self) -> torch.Tensor:
        """The variants direction by direction: int64 (variants,), on the CPU."""
        return torch.argsort(self.variant_directions, stable=True)

    @cached_property
    def _distinct(self) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.unique(self.variant_directions, return_inverse=True)  # type: ignore[no-any-return]

    @cached_property
    def directions(self) -> list[int]:
        """The distinct directions, ascending."""
        found: list[int] = self._distinct[0].tolist()
        return found

    @cached_property
    def variant_places(self) -> torch.Tensor:
        """Where each variant's direction stands in `directions`: int64 (variants,)."""
        return self._distinct[1].to(self.device)

    @cached_property
    def example_directions(self) -> torch.Tensor:
        """Each expanded example's direction: int64 (expanded examples,), on the CPU."""
        return self.variant_directions.repeat_interleave(self._per_variant)

    @cached_property
    def example_places(self) -> torch.Tensor:
        """Where each expanded example's direction stands in `directions`: int64 (expanded examples,)."""
        return self.variant_places.repeat_interleave(self._per_variant)

    @cached_property
    def example_coefficients(self) -> torch.Tensor:
        """Each expanded example's coefficient: float32 (expanded examples,)."""
        return self.variant_coefficients.repeat_interleave(self._per_variant)

    def variant(self, i: int) -> Variant:
        """The i-th perturbed model."""
        each = self._per_variant
        coefficient = float(self.coefficient[i * each // self.examples])
        return Variant(int(self.variant_directions[i]), coefficient, i * each, (i + 1) * each)

    def variants(self) -> Iterator[Variant]:
        """The perturbed models one by one, in the order of the expanded batch."""
        each = self._per_variant
        coefficients = self.coefficient.tolist()
        for i, direction in enumerate(self.variant_directions.tolist()):
            yield Variant(direction, coefficients[i * each // self.examples], i * each, (i + 1) * each)


def branches(examples: int, directions: Sequence[int], coefficients: Sequence[float], *, own_directions: bool = False) -> Plan:
    """A plan of some branches; see `Plan`."""
    direction = torch.tensor(directions, dtype=torch.int64)
    return Plan(examples, direction, torch.tensor(coefficients, dtype=torch.float32), own_directions)


def shared_pairs(examples: int, directions: int = 1) -> Plan:
    """Directions that all examples share, each from both sides: [+z ; -z] for MeZO."""
    return Plan(examples, torch.arange(directions).repeat(2), _both_sides(directions))


def example_pairs(examples: int, directions: int = 1) -> Plan:
    """Directions of each example's own, each from both sides: direction i * examples + b is the i-th of example b."""
    return Plan(examples, (torch.arange(directions) * examples).repeat(2), _both_sides(directions), own_directions=True)


def example_populations(examples: int, directions: int) -> Plan:
    """Directions of each example's own from one side: branch i has direction i * examples + b for example b."""
    return Plan(examples, torch.arange(directions) * examples, _ones(directions), own_directions=True)


def population(examples: int, directions: int, *, clean: bool = True) -> Plan:
    """Directions that all examples share, from one side; the clean model comes last where it is wanted."""
    if not clean:
        return Plan(examples, torch.arange(directions), _ones(directions))
    coefficient = torch.cat([_ones(directions), torch.zeros(1, dtype=torch.float32)])
    return Plan(examples, torch.arange(directions + 1).remainder(directions), coefficient)


def along(examples: int, coefficients: Sequence[float]) -> Plan:
    """Points along direction 0, shared by all examples."""
    return branches(examples, [0] * len(coefficients), coefficients)


def smallest(examples: int) -> Plan:
    """Two expanded examples with directions of their own: the smallest plan that tells examples apart. examples: 1 or
    2.
    """
    if examples == 2:
        return branches(2, [0], [-1.0], own_directions=True)
    return branches(1, [0, 1], [1.0, -1.0])


def clean(examples: int) -> Plan:
    """The unperturbed model."""
    return along(examples, [0.0])


def _both_sides(directions: int) -> torch.Tensor:
    return torch.tensor([1.0, -1.0], dtype=torch.float32).repeat_interleave(directions)


def _ones(count: int) -> torch.Tensor:
    return torch.ones(count, dtype=torch.float32)
