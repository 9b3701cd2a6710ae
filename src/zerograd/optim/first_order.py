r"""First-order baselines: what evaluations alone have to face. They take backward passes.

    SGD      w <- w - lr g
    AdamW    (Loshchilov & Hutter 2019)    m, v the moments of g;   w <- (1 - lr decay) w - lr m_hat / (sqrt(v_hat) + zeta)

AdamW's update is that of `Adam` with the gradient in the estimate's place, in the same storages. No journal can hold a gradient: a
run of theirs cannot be resumed, replayed or shipped. A step counts as three evaluations of the batch, a backward pass being
the work of two.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, Unpack

import torch
from torch import nn

from zerograd.directions.family import Family
from zerograd.evaluate import batch as batches
from zerograd.evaluate import derivative
from zerograd.evaluate.score import Objective
from zerograd.machine.interrupts import uninterrupted
from zerograd.optim.adam import AdamState
from zerograd.optim.base import Common, Info, ZerothOrder, require_counts
from zerograd.queries.plan import Plan, clean
from zerograd.update import apply
from zerograd.update.apply import Step
from zerograd.update.state import Dense, State


class GradientState(Dense):
    """Keeps nothing."""

    def change(self, estimate: torch.Tensor, held: Any, step: Step, group: int) -> torch.Tensor:
        return estimate.mul_(float(step.lrs[group]))


class FirstOrder(ZerothOrder):
    """Base of those that follow the gradient itself."""

    takes_backward = True
    perturbs = False
    per_example = True

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        chosen: dict[str, Any],
        *,
        lr: float,
        eps: float = 1.0,
        checkpointing: bool,
        **common: Unpack[Common],
    ) -> None:
        common = {"relative": False} | common
        common |= {} if self.perturbs else {"self_check": False}
        super().__init__(params, chosen, lr=lr, eps=eps, **common)
        self._layers: list[nn.Module] = []
        if checkpointing:
            if not isinstance(params, nn.Module) or not hasattr(params, "gradient_checkpointing_enable"):
                raise ValueError("checkpointing is True, and what is trained is no model that can be checkpointed; leave it out")
            enable: Any = params.gradient_checkpointing_enable
            enable({"use_reentrant": False})
            self._layers = [module for module in params.modules() if hasattr(module, "gradient_checkpointing")]

    def plan(self, examples: int) -> Plan:
        return clean(examples)

    @property
    def evaluations(self) -> float:
        return 3

    def differences(self, scores: torch.Tensor) -> torch.Tensor:
        return torch.zeros(0, dtype=torch.float32)

    def multipliers(self, differences: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        return differences

    def step(  # type: ignore[override]
        self, objective: Any, batch: Any = None, *, examples: int | None = None, micro_batch: int | str | None = None
    ) -> float:
        """One step on step(objective, batch); see `ZerothOrder.step`. micro_batch: "auto" is all.

        Raises ValueError for a closure or a journal.
        """
        if batch is None:
            raise ValueError("this method needs step(objective, batch), to take backward passes of its own")
        if self.record is not None:
            raise ValueError("no journal can hold a gradient; set record to None")
        require_counts(batch, examples, micro_batch)
        count = examples or batches.examples(batch)
        self._check_perturbed(objective, batch, count, micro_batch)
        zeroth = self._zeroth(objective, batch, count, micro_batch)
        loss = self._backward(objective, batch, count, micro_batch)
        self.forwards += self.evaluations
        gradients = [slot.parameter.grad for slot in self.slots]
        if not math.isfinite(loss) or not all(g is None or bool(torch.isfinite(g).all()) for g in [*gradients, zeroth]):
            self._skip(loss)
            return loss
        self._skips_in_row = 0
        with uninterrupted():
            (step,) = self.held.resolved([self._step_of(loss, zeroth)], self.seed)
            for slot, group, gradient in zip(self.slots, self.group_of, gradients, strict=True):
                rest = step
                if gradient is not None:
                    assert isinstance(self.held, Dense)
                    self.held.follow(slot, self.family, self.seed, step, group, gradient)
                    rest = dataclasses.replace(step, decays=None)  # it decays once
                if len(zeroth):
                    apply.update_by(slot, self.family, self.seed, [rest], group)
            self.steps += 1
        self.zero_grad()
        slope = float(zeroth.mean()) if len(zeroth) else math.nan
        self.info = Info(loss, slope, math.nan, False, slope == 0)
        return loss

    def attach(
        self, objective: Objective, batch: Any, *, examples: int | None = None, micro_batch: int | str | None = None
    ) -> None:
        """Rehearse a step, with the checks of the first one where it perturbs. Weights stay as they are.

        Raises NotPure, SelfCheckFailed or UnresolvedOperation.
        """
        require_counts(batch, examples, micro_batch)
        count = examples or batches.examples(batch)
        self._check_perturbed(objective, batch, count, micro_batch)
        self._zeroth(objective, batch, count, micro_batch)
        self._backward(objective, batch, count, micro_batch)
        self.zero_grad()

    def _check_perturbed(self, objective: Objective, batch: Any, count: int, micro_batch: int | str | None) -> None:
        if self.perturbs:
            with torch.no_grad():
                self._check_batch(objective, batch, self._directions(), count, micro_batch)

    def _zeroth(self, objective: Objective, batch: Any, count: int, micro_batch: int | str | None) -> torch.Tensor:
        """The differences of directions, where evaluations are taken too: float32 (directions,)."""
        return torch.zeros(0, dtype=torch.float32)

    def _backward(
        self, objective: Objective, batch: Any, count: int, micro_batch: int | str | None, total: int | None = None
    ) -> float:
        """The mean loss of the first `count` examples of a batch, which has `total`, and its gradient."""
        size = micro_batch if isinstance(micro_batch, int) else None
        try:
            for layer in self._layers:  # a layer is checkpointed where it is said to train; what is in it is not
                layer.training = True
            return derivative.backward(self.slots, objective, batch, count, size, total)
        finally:
            for layer in self._layers:
                layer.training = False


class SGD(FirstOrder):
    r"""Stochastic gradient descent.

    Args:
        lr: learning rate, at least 0. checkpointing: activations are made again in the backward pass, of models that can.
        params, weight_decay, storage, seed: as in `MeZO`. relative: lr in units of each tensor's rms; False by default.
    """

    RATE = 0.1

    def __init__(
        self, params: nn.Module | Iterable[Any], lr: float = 0.1, *, checkpointing: bool = False, **common: Unpack[Common]
    ) -> None:
        super().__init__(params, {}, lr=lr, checkpointing=checkpointing, **common)

    @classmethod
    def parts(cls, **chosen: Any) -> tuple[Family, State]:
        return Family(), GradientState()


class AdamW(FirstOrder):
    r"""AdamW.

    Args:
        lr: learning rate, at least 0. betas: decay of the moments, each 0 <= beta < 1. zeta: above 0.
        checkpointing, params and the rest: as in `SGD`.
    """

    RATE = 2e-5
    ADAPTER_RATE = 1e-3

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 1e-4,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        zeta: float = 1e-8,
        checkpointing: bool = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, {"betas": list(betas), "zeta": zeta}, lr=lr, checkpointing=checkpointing, **common)

    @classmethod
    def parts(cls, **chosen: Any) -> tuple[Family, State]:
        return Family(), AdamState(chosen["betas"], chosen["zeta"])
