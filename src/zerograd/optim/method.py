"""What a method is: three independent choices, and for methods with backward passes a fourth.

draw       what z is in a space, and in which spaces a step has directions      (`directions`)
query      which perturbed copies are scored, and which coefficients they give   (`queries`)
rule       what the gradient estimate does to a space                            (`update`)
gradient   which examples and spaces take a backward pass
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from zerograd.directions import Family
from zerograd.queries import NoQuery, Query
from zerograd.queries.shared import shared
from zerograd.update import Rule


@dataclass(frozen=True)
class Gradient:
    """Exact gradients beside, or in place of, the estimate. The rule follows them; the estimate is then plain SGD.

    share: of a batch's examples, the first ones, that are differentiated; where it is below 1 the others are evaluated.
    inactive_only: only spaces without directions are differentiated. weight: what the gradient is multiplied by.
    checkpointing: activations are made again in the backward pass.
    """

    share: float = 1.0
    inactive_only: bool = False
    weight: float = 1.0
    checkpointing: bool = False

    def first(self, examples: int) -> int:
        """How many examples of a batch are differentiated. Raises ValueError for one example that should be shared out."""
        if self.share == 1:
            return examples
        if examples < 2:
            raise ValueError("the batch has 1 example, which cannot be shared out; give it at least 2")
        return min(examples - 1, max(1, round(self.share * examples)))


@dataclass(frozen=True)
class Method:
    """draw, query, rule and gradient; see the module."""

    draw: Family
    query: Query = field(default_factory=NoQuery)
    rule: Rule = field(default_factory=Rule)
    gradient: Gradient | None = None

    @property
    def perturbs(self) -> bool:
        """Whether it evaluates perturbed models, with a smoothing radius."""
        return not isinstance(self.query, NoQuery) and not self.query.derivative

    @property
    def per_example(self) -> bool:
        """Whether it needs a loss an example, so that it cannot step on a closure."""
        return self.gradient is not None or self.query.per_example

    @property
    def takes_backward(self) -> bool:
        """Whether it takes backward passes, whose gradients no journal holds."""
        return self.gradient is not None

    @property
    def wants_short_first(self) -> bool:
        """Whether the first examples of a batch should be its shortest."""
        return self.gradient is not None and self.gradient.share < 1

    @property
    def evaluations(self) -> float:
        """How often a step evaluates the batch; a backward pass with its forward counts as three."""
        if self.gradient is None:
            return self.query.evaluations
        evaluated = 1.0 if self.gradient.share == 1 else 1 - self.gradient.share
        return evaluated * self.query.evaluations + 3 * self.gradient.share


@dataclass(frozen=True)
class MethodSettings(ABC):
    """Base of the settings of the methods: a frozen dataclass whose fields are keywords of the optimiser, flags, and
    entries of a journal's header. Tensors among them are in snapshots alone.
    """

    @abstractmethod
    def build(self) -> Method:
        """The method of these settings. Raises ValueError naming a setting out of its range."""

    def saved(self) -> dict[str, Any]:
        """The settings as JSON has them, without tensors."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in fields.items()
            if not isinstance(value, Mapping)
        }


@dataclass(frozen=True)
class SharedSettings(MethodSettings):
    """Base of the settings of methods whose directions all examples of the batch share.

    directions: n >= 1; above 1 it is n-SPSA. sides: 2 for central differences, 1 for differences from the clean model, n + 1
    evaluations. distribution: "rademacher" (lower variance, cheaper) or "gaussian".
    """

    directions: int = 1
    sides: int = 2
    distribution: str = "rademacher"

    def query(self, shaping: str = "radius") -> Query:
        return shared(self.directions, self.sides, shaping)
