r"""MeZO (Malladi et al. 2023, arXiv 2305.17333): two-point zeroth-order SGD along directions that are shared by the batch.

d_i = (L(w + eps z_i) - L(w - eps z_i)) / 2,        w <- w - lr (1 / n) sum_i (d_i / eps) z_i

With n above 1 it is the paper's n-SPSA; others call it ZO-SGD, or the randomised gradient estimate.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Unpack

from torch import nn

from zerograd.optim.base import Common
from zerograd.optim.shared import Plain


class MeZO(Plain):
    r"""Zeroth-order SGD with dense directions shared by the batch.

    .. math::
        c_i = \frac{L(w + \epsilon D_i) - L(w - \epsilon D_i)}{2 \epsilon}, \qquad
        w \leftarrow (1 - \gamma \lambda) w - \frac{\gamma}{n} \sum_i c_i D_i, \qquad D = s \odot z

    Args:
        params: a module, (name, parameter) pairs, parameters, or torch's groups of these.
        lr: learning rate, at least 0. The paper's range for full tuning is 1e-7 to 1e-6 with relative=False.
        eps: smoothing radius, above 0. The paper's is 1e-3 with relative=False.
        directions: n, at least 1 (the paper's default).
        sides: 2 for central differences, 1 for differences from the clean model, n + 1 evaluations.
        distribution: "rademacher" (lower variance, cheaper) or "gaussian" (the paper).
        weight_decay, relative, storage, seed, self_check: see `optim.base.Common`.
    """

    RATE = 0.01

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 1e-3,
        eps: float = 1e-2,
        *,
        directions: int = 1,
        sides: int = 2,
        distribution: str = "rademacher",
        **common: Unpack[Common],
    ) -> None:
        chosen = {"distribution": distribution}
        super().__init__(params, chosen, lr=lr, eps=eps, directions=directions, sides=sides, **common)
