"""First-order baselines, which take backward passes: the bar for evaluations alone.

No journal can hold a gradient: their runs cannot be resumed, replayed or shipped. A step counts as three evaluations of
the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

from zerograd.directions import Dense
from zerograd.optim.base import ZerothOrder
from zerograd.optim.method import Gradient, Method, MethodSettings
from zerograd.update import AdamRule


@dataclass(frozen=True)
class SGDSettings(MethodSettings):
    """checkpointing: activations are made again in the backward pass, of models that can."""

    checkpointing: bool = False

    def build(self) -> Method:
        return Method(Dense(), gradient=Gradient(checkpointing=self.checkpointing))


class SGD(ZerothOrder):
    r"""Stochastic gradient descent.

    .. math:: w \leftarrow (1 - \gamma \lambda) w - \gamma\, s^2 \odot \nabla L
    """

    Settings = SGDSettings
    default_lr = 0.1


@dataclass(frozen=True)
class AdamWSettings(MethodSettings):
    """betas: decay of the moments, each 0 <= beta < 1. zeta: above 0. checkpointing: as in SGD."""

    betas: tuple[float, float] = (0.9, 0.999)
    zeta: float = 1e-8
    checkpointing: bool = False

    def build(self) -> Method:
        return Method(Dense(), rule=AdamRule(self.betas, self.zeta), gradient=Gradient(checkpointing=self.checkpointing))


class AdamW(ZerothOrder):
    r"""AdamW (Loshchilov & Hutter 2019): the rule of `Adam` with the gradient in the estimate's place, in the same
    precisions.
    """

    Settings = AdamWSettings
    default_lr = 2e-5
    adapter_lr = 1e-3
