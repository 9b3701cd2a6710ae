"""MeZO (Malladi et al. 2023, arXiv 2305.17333, Algorithm 1): one direction for the whole batch, two sides.

c = (L(w + eps z) - L(w - eps z)) / (2 eps),        w <- w - lr * (c z + weight_decay w)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from zerograd import estimate
from zerograd.optim.base import ZerothOrder
from zerograd.perturb.directions import Family
from zerograd.perturb.plan import Plan, shared_pair


class MeZO(ZerothOrder):
    r"""Two-point zeroth-order SGD with a dense direction shared by the batch.

    .. math::
        c = \frac{L(w + \epsilon D) - L(w - \epsilon D)}{2 \epsilon}, \qquad
        w \leftarrow (1 - \gamma \lambda) w - \gamma\, c\, D, \qquad D = s \odot z

    Args:
        params: a module, (name, parameter) pairs, parameters, or torch's groups of these.
        lr: learning rate, at least 0. The paper's range for full tuning is 1e-7 to 1e-6 with relative=False.
        eps: smoothing radius, above 0. The paper's is 1e-3 with relative=False.
        weight_decay: decoupled, at least 0 (the paper uses 0).
        relative: a unit of direction is each tensor's rms (s), so eps and lr are relative changes; False is the paper.
        distribution: "rademacher" (lower variance, cheaper) or "gaussian" (the paper).
        storage: "float32", "split", "bfloat16", or None to choose by the parameters' dtype; see `spaces.weights`.
        seed: 0 <= seed < 2**64; with the step number it names every direction.
        self_check: compare the perturbed forward with really perturbed weights at the first step(objective, batch);
            "full" checks every tensor, True each kind of tensor.
    """

    per_example = False

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 1e-3,
        eps: float = 1e-2,
        *,
        weight_decay: float = 0.0,
        relative: bool = True,
        distribution: str = "rademacher",
        storage: str | None = None,
        seed: int = 0,
        self_check: bool | str = True,
    ) -> None:
        self.family = Family(distribution)
        super().__init__(
            params,
            lr=lr,
            eps=eps,
            weight_decay=weight_decay,
            relative=relative,
            storage=storage,
            seed=seed,
            self_check=self_check,
        )

    def plan(self, examples: int) -> Plan:
        return shared_pair(examples)

    def differences(self, scores: torch.Tensor) -> torch.Tensor:
        plus, minus = estimate.halves(scores)
        return estimate.central(plus.mean(), minus.mean()).view(1)

    def multipliers(self, differences: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        scale: float = group["lr"] / group["eps"]
        return differences * scale
