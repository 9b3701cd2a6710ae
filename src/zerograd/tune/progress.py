"""Progress of a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Progress of a run.

    phase: the name of the current work. done: the share of the phase that is done, in [0, 1]. While training: loss, a
    running mean; dev, the metric on the dev split, or the dev loss if the metric needs generated answers.
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
