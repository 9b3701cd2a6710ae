"""What a step does to the weights, as numbers: all that a replay needs beside the method and the base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Step:
    """A step: its coefficients, and the settings of each parameter group when it was taken.

    number: of the step, from 0; it names the directions. loss: mean of its branches. coefficients: float32
    (directions,), of directions 0, 1, ... in the gradient estimate of the first group. lrs, radii: float32 (groups,).
    decays: float32 (groups,), the factor 1 - lr * weight_decay of the weights, or None where all are 1.
    """

    number: int
    loss: float
    coefficients: Floats
    lrs: Floats
    radii: Floats
    decays: Floats | None = None


@dataclass(frozen=True)
class Skip:
    """A step that changes nothing, since its loss was not finite."""

    number: int
    loss: float


@dataclass(frozen=True, eq=False)
class GroupStep:
    """A step as a rule sees it, in one parameter group.

    number: of the step. count: updates of the run so far, this one included. previous: the number of the update before,
    or -1. lr, decay: of the group. coefficients: of the directions in this group's gradient estimate. context: the
    rule's own, from `Rule.advance`.
    """

    number: int
    count: int
    previous: int
    lr: float
    decay: float
    coefficients: Sequence[float]
    context: Any = None
