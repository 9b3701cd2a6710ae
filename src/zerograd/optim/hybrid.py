r"""Evaluations and backward passes together.

    hybrid ZO-FO (Zhang et al. 2024, arXiv 2402.11592; ElasticZO 2025)   shallow layers by MeZO, deep ones by back-propagation
    Addax (Li et al., ICLR 2025, arXiv 2410.06441)                        w <- w - lr (alpha c z + (1 - alpha) g)

In the first the deep layers follow Adam's rule. In the second c comes from the longer examples of a batch and g, the gradient,
from the shorter ones, whose activations are few. Neither can be recorded in a journal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import nn

from zerograd.directions.family import Family
from zerograd.evaluate.score import Objective, score_batch
from zerograd.optim.adam import AdamState
from zerograd.optim.base import Common
from zerograd.optim.blocks import Blocks
from zerograd.optim.first_order import FirstOrder, GradientState
from zerograd.queries import estimates as estimate
from zerograd.queries.plan import Plan, shared_pairs
from zerograd.spaces.weights import Slot
from zerograd.update.state import State


@dataclass(frozen=True)
class Shallow(Blocks):
    """The first layers alone. deep: share of the blocks, at the end, that it leaves alone: at least one, and not all."""

    deep: float = 0.5

    def begin(self, slots: Sequence[Slot]) -> None:
        super().begin(slots)
        if not any(self.blocks.values()):
            raise ValueError("what is trained is one block of layers, which cannot be shared out; train more, or use AdamW or MeZO")

    def touches(self, slot: Slot, seed: int, step: int) -> bool:
        count = 1 + max(self.blocks.values())
        return self.blocks[slot.id] < count - min(count - 1, max(1, round(self.deep * count)))


class DeepAdam(AdamState):
    """Adam's moments of the deep layers alone. ratio: of their learning rate to the others'."""

    def __init__(self, family: Shallow, ratio: float, betas: Sequence[float], zeta: float) -> None:
        super().__init__(betas, zeta)
        self.family = family
        self.ratio = ratio

    def begin(self, slots: Sequence[Slot], groups: int) -> None:
        self.family.begin(slots)
        super().begin([slot for slot in slots if not self.family.touches(slot, 0, 0)], groups)

    def change(self, *given: Any) -> torch.Tensor:
        return super().change(*given).mul_(self.ratio)


class Hybrid(FirstOrder):
    r"""MeZO below, Adam above.

    Args:
        lr: of the shallow layers, as in `MeZO`. ratio: the deep layers' learning rate over it, at least 0.
        deep: share of the layers, the last ones, that follow the gradient: above 0 and below 1; at least one does, and not all.
        betas, zeta, checkpointing: as in `AdamW`. eps, distribution, params and the rest: as in `MeZO`.

    Raises ValueError where a single block of layers is trained; see `blocks` for what that is.
    """

    RATE = 0.01
    perturbs = True

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 1e-3,
        eps: float = 1e-2,
        *,
        deep: float = 0.5,
        ratio: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.999),
        zeta: float = 1e-8,
        distribution: str = "rademacher",
        checkpointing: bool = False,
        **common: Unpack[Common],
    ) -> None:
        chosen = {"distribution": distribution, "deep": deep, "ratio": ratio, "betas": list(betas), "zeta": zeta}
        common = {"relative": True} | common
        super().__init__(params, chosen, lr=lr, eps=eps, checkpointing=checkpointing, **common)

    @classmethod
    def parts(cls, **chosen: Any) -> tuple[Family, State]:
        if not 0 < chosen["deep"] < 1:
            raise ValueError(f"deep is {chosen['deep']}; it is a share of the layers, above 0 and below 1")
        if not chosen["ratio"] >= 0:
            raise ValueError(f"ratio is {chosen['ratio']}; it must be at least 0")
        family = Shallow(chosen["distribution"], deep=chosen["deep"])
        return family, DeepAdam(family, chosen["ratio"], chosen["betas"], chosen["zeta"])

    @property
    def copies(self) -> int:
        return 2

    @property
    def evaluations(self) -> float:
        return 5

    def multipliers(self, differences: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        scale: float = group["lr"] / group["eps"]
        return differences * scale

    def _zeroth(self, objective: Objective, batch: Any, count: int, micro_batch: int | str | None) -> torch.Tensor:
        return _central(self, objective, batch, count, micro_batch)

    def _backward(
        self, objective: Objective, batch: Any, count: int, micro_batch: int | str | None, total: int | None = None
    ) -> float:
        shallow = [slot.parameter for slot in self._touched]
        try:
            for parameter in shallow:
                parameter.requires_grad_(False)
            return super()._backward(objective, batch, count, micro_batch, total)
        finally:
            for parameter in shallow:
                parameter.requires_grad_(True)
                parameter.grad = None


class Addax(FirstOrder):
    r"""Gradients of the short examples, evaluations of the long ones.

    .. math:: w \leftarrow (1 - \gamma \lambda) w - \gamma \big(\alpha\, c\, D + (1 - \alpha)\, s^2 g\big)

    Args:
        alpha: weight of the evaluations, at least 0 and at most 1; the paper's is about 1e-3. share: of a batch, the first examples
            of it, whose gradient is taken: above 0 and below 1. `zerograd tune` puts the shortest first.
        lr: gamma, at least 0; MeZO's is lr times alpha, and SGD's lr times s^2.
        checkpointing, eps, distribution, params and the rest: as in `MeZO`. relative=False has the paper's rule, with SGD's lr.
    """

    RATE = 0.25
    perturbs = True
    short_first = True

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 0.1,
        eps: float = 1e-2,
        *,
        alpha: float = 1e-3,
        share: float = 0.25,
        distribution: str = "rademacher",
        checkpointing: bool = False,
        **common: Unpack[Common],
    ) -> None:
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is {alpha}; it must be at least 0 and at most 1")
        if not 0 < share < 1:
            raise ValueError(f"share is {share}; it is a share of a batch, above 0 and below 1")
        self.alpha = alpha
        self.share = share
        common = {"relative": True} | common
        super().__init__(params, {"distribution": distribution}, lr=lr, eps=eps, checkpointing=checkpointing, **common)

    @classmethod
    def parts(cls, **chosen: Any) -> tuple[Family, State]:
        return Family(**chosen), GradientState()

    @property
    def copies(self) -> int:
        return 2

    @property
    def evaluations(self) -> float:
        return 2 + self.share

    def multipliers(self, differences: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        scale: float = group["lr"] * self.alpha / group["eps"]
        return differences * scale

    def _zeroth(self, objective: Objective, batch: Any, count: int, micro_batch: int | str | None) -> torch.Tensor:
        return _central(self, objective, batch, count, micro_batch, self._short(count))

    def _backward(
        self, objective: Objective, batch: Any, count: int, micro_batch: int | str | None, total: int | None = None
    ) -> float:
        loss = super()._backward(objective, batch, self._short(count), micro_batch, total or count)
        for slot in self.slots:
            if slot.parameter.grad is not None:
                slot.parameter.grad *= 1 - self.alpha
        return loss

    def _short(self, count: int) -> int:
        if count < 2:
            raise ValueError("the batch has 1 example, which cannot be shared out; give it at least 2")
        return min(count - 1, max(1, round(self.share * count)))


def _central(
    method: FirstOrder, objective: Objective, batch: Any, count: int, micro_batch: int | str | None, first: int = 0
) -> torch.Tensor:
    """eps times the derivative along the step's direction, of what it touches, by the examples from `first` on: float32 (1,)."""
    plan: Plan = shared_pairs(count - first)
    with torch.no_grad():
        scores = score_batch(
            method._touched, method._directions(), plan, objective, batch,
            micro_batch=micro_batch, total=count, first=first, fit=method.fit,
        )  # fmt: skip
    plus, minus = estimate.halves(scores)
    return estimate.central(plus.mean(), minus.mean()).view(1)
