"""How far a run is, as it reports while it goes on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far a run is. phase: what is being done. done: the share of it, in [0, 1].

    While training: loss, a running mean; dev, the metric on the dev split, or its loss where the metric would have to be generated.
    """

    phase: str
    done: float
    step: int = 0
    loss: float = math.nan
    dev: float = math.nan
    dev_name: str = ""
    examples_per_second: float = math.nan
    seconds_per_step: float = math.nan
    seconds_left: float = math.nan


Listener = Callable[[Progress], None]


def ignore_progress(progress: Progress) -> None:
    """A listener that does nothing."""
