r"""Sign steps of the zeroth-order estimate.

    ZO-SGD-Sign (Liu et al. 2019, "signSGD via zeroth-order oracle")     w <- w - lr sign(g),   g the estimate
    as ZO-LLM runs it (Zhang et al. 2024, arXiv 2402.11592)               w <- w - lr (1 / n) sum_i sign(d_i) z_i

The first moves every coordinate by exactly lr; the second is the sign of a scalar times a direction, which is no elementwise sign.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Unpack

import torch
from torch import nn

from zerograd.directions.family import Family
from zerograd.optim.base import Common
from zerograd.optim.shared import Shared
from zerograd.update.apply import Step
from zerograd.update.state import Dense, State


class SignState(Dense):
    """Keeps nothing; takes the sign of the whole estimate."""

    def change(self, estimate: torch.Tensor, held: Mapping[str, torch.Tensor], step: Step, group: int) -> torch.Tensor:
        return estimate.sign_().mul_(float(step.lrs[group]))


class Sign(Shared):
    r"""Zeroth-order signSGD, elementwise.

    .. math:: w \leftarrow (1 - \gamma \lambda) w - \gamma\, s \odot \operatorname{sign}\Big(\sum_i d_i z_i\Big)

    Args:
        lr: learning rate, at least 0: what every coordinate moves by, relative to its tensor's rms when relative.
        params, eps, directions, sides, distribution and the rest: as in `MeZO`.
    """

    RATE = 5e-3

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 1e-5,
        eps: float = 1e-2,
        *,
        directions: int = 1,
        sides: int = 2,
        distribution: str = "rademacher",
        **common: Unpack[Common],
    ) -> None:
        chosen = {"distribution": distribution}
        super().__init__(params, chosen, lr=lr, eps=eps, directions=directions, sides=sides, **common)

    @classmethod
    def parts(cls, **chosen: Any) -> tuple[Family, State]:
        return Family(**chosen), SignState()


class SignPublished(Shared):
    r"""What ZO-LLM calls ZO-SGD-Sign: the sign of each difference, times its direction.

    .. math:: w \leftarrow (1 - \gamma \lambda) w - \frac{\gamma}{n} \sum_i \operatorname{sign}(d_i) D_i

    Args: as in `Sign`; its directions are Gaussian there.
    """

    RATE = 5e-3

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 1e-5,
        eps: float = 1e-2,
        *,
        directions: int = 1,
        sides: int = 2,
        distribution: str = "gaussian",
        **common: Unpack[Common],
    ) -> None:
        chosen = {"distribution": distribution}
        super().__init__(params, chosen, lr=lr, eps=eps, directions=directions, sides=sides, **common)

    def multipliers(self, differences: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        scale: float = group["lr"] / len(differences)
        return differences.sign() * scale
