"""Methods, one a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from zerograd.optim.adam import Adam
from zerograd.optim.adamezo import AdaMeZO
from zerograd.optim.addax import Addax
from zerograd.optim.base import ZerothOrder
from zerograd.optim.blocks import BlockWise, RandomLayers
from zerograd.optim.conservative import Conservative
from zerograd.optim.evolution import Evolution
from zerograd.optim.first_order import SGD, AdamW
from zerograd.optim.forward_gradient import ForwardGradient
from zerograd.optim.fzoo import FZOO
from zerograd.optim.grzo import GRZO
from zerograd.optim.hizoo import HiZOO
from zerograd.optim.hybrid import Hybrid
from zerograd.optim.kerzoo import KerZOO
from zerograd.optim.leave_one_out import LeaveOneOut
from zerograd.optim.lozo import LOZO, LOZOM
from zerograd.optim.masks import SparseMeZO, StaticMask
from zerograd.optim.meazo import MEAZO
from zerograd.optim.method import Gradient, Method, MethodSettings
from zerograd.optim.mezo import MeZO
from zerograd.optim.momentum import Momentum
from zerograd.optim.per_example import PerExample
from zerograd.optim.qzo import QZO
from zerograd.optim.sign import Sign, SignPublished
from zerograd.optim.subzero import SubZero
from zerograd.optim.zo_muon import ZOMuon

METHODS: dict[str, type[ZerothOrder]] = {
    "mezo": MeZO,
    "per-example": PerExample,
    "grzo": GRZO,
    "fzoo": FZOO,
    "leave-one-out": LeaveOneOut,
    "evolution": Evolution,
    "momentum": Momentum,
    "adam": Adam,
    "adamezo": AdaMeZO,
    "meazo": MEAZO,
    "sign": Sign,
    "sign-published": SignPublished,
    "qzo": QZO,
    "conservative": Conservative,
    "kerzoo": KerZOO,
    "lozo": LOZO,
    "lozo-m": LOZOM,
    "subzero": SubZero,
    "zo-muon": ZOMuon,
    "hizoo": HiZOO,
    "sparse-mezo": SparseMeZO,
    "static-mask": StaticMask,
    "block-wise": BlockWise,
    "random-layers": RandomLayers,
    "forward-gradient": ForwardGradient,
    "hybrid": Hybrid,
    "addax": Addax,
    "sgd": SGD,
    "adamw": AdamW,
}


def options_of(method: str) -> dict[str, Any]:
    """The settings that a method has beside the common ones, with their defaults."""
    return {f.name: f.default for f in dataclasses.fields(METHODS[method].Settings)}


def method_of(method: str, options: Mapping[str, Any] | None = None) -> Method:
    """The parts of a method, by its name and some of its settings. Raises ValueError for a setting out of range."""
    return METHODS[method].Settings(**(options or {})).build()


__all__ = [
    "FZOO",
    "GRZO",
    "LOZO",
    "LOZOM",
    "MEAZO",
    "METHODS",
    "QZO",
    "SGD",
    "AdaMeZO",
    "Adam",
    "AdamW",
    "Addax",
    "BlockWise",
    "Conservative",
    "Evolution",
    "ForwardGradient",
    "Gradient",
    "HiZOO",
    "Hybrid",
    "KerZOO",
    "LeaveOneOut",
    "MeZO",
    "Method",
    "MethodSettings",
    "Momentum",
    "PerExample",
    "RandomLayers",
    "Sign",
    "SignPublished",
    "SparseMeZO",
    "StaticMask",
    "SubZero",
    "ZOMuon",
    "ZerothOrder",
    "method_of",
    "options_of",
]
