"""Sign steps of the zeroth-order estimate."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from zerograd.directions import Dense
from zerograd.optim.base import ZerothOrder
from zerograd.optim.method import Method, SharedSettings
from zerograd.update import Chunk, Elementwise, GroupStep, Kept


class SignRule(Elementwise):
    """The sign of the whole estimate."""

    def change(self, chunk: Chunk, kept: Kept, step: GroupStep) -> torch.Tensor:
        return chunk.estimate().sign_()


@dataclass(frozen=True)
class Settings(SharedSettings):
    def build(self) -> Method:
        return Method(Dense(self.distribution), self.query(), SignRule())


class Sign(ZerothOrder):
    r"""Zeroth-order signSGD, elementwise (ZO-SGD-Sign, Liu et al. 2019, "signSGD via zeroth-order oracle").

    .. math:: w \leftarrow (1 - \gamma \lambda) w - \gamma\, s \odot \operatorname{sign}\Big(\sum_i c_i z_i\Big)

    Every coordinate moves by lr, relative to its tensor's rms when relative.
    """

    Settings = Settings
    default_lr = 5e-3


@dataclass(frozen=True)
class PublishedSettings(SharedSettings):
    """Directions are Gaussian in ZO-LLM."""

    distribution: str = "gaussian"

    def build(self) -> Method:
        return Method(Dense(self.distribution), self.query("size"))


class SignPublished(ZerothOrder):
    r"""The sign of each difference times its direction: ZO-SGD-Sign as ZO-LLM runs it (Zhang et al. 2024, arXiv
    2402.11592).

    .. math:: w \leftarrow (1 - \gamma \lambda) w - \frac{\gamma}{n} \sum_i \operatorname{sign}(c_i) D_i

    It is the sign of a scalar times a direction, and no elementwise sign.
    """

    Settings = PublishedSettings
    default_lr = 5e-3
