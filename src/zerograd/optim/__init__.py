"""Methods, one a file."""

from zerograd.optim.fzoo import FZOO
from zerograd.optim.mezo import MeZO
from zerograd.optim.per_example import PerExample

METHODS = {"mezo": MeZO, "per-example": PerExample}

__all__ = ["FZOO", "METHODS", "MeZO", "PerExample"]
