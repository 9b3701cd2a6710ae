r"""MeZO: ZO-SGD along directions that the batch shares (Malladi et al. 2023, arXiv 2305.17333)."""

from __future__ import annotations

from dataclasses import dataclass

from zerograd.directions import Dense
from zerograd.optim.base import ZerothOrder
from zerograd.optim.method import Method, SharedSettings


@dataclass(frozen=True)
class Settings(SharedSettings):
    def build(self) -> Method:
        return Method(Dense(self.distribution), self.query())


class MeZO(ZerothOrder):
    r"""Zeroth-order SGD with dense directions.

    .. math::
        c_i = \frac{L(w + \epsilon D_i) - L(w - \epsilon D_i)}{2 \epsilon}, \qquad
        w \leftarrow (1 - \gamma \lambda) w - \frac{\gamma}{n} \sum_i c_i D_i, \qquad D = s \odot z

    The paper's learning rates for full tuning are 1e-7 to 1e-6 and its radius is 1e-3, both with relative=False.
    """

    Settings = Settings
    default_lr = 0.01
