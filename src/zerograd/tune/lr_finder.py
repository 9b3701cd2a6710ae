"""The learning rate by a range test: short runs from the same weights, on the same rows, along the same directions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from zerograd.journal.snapshot import Snapshot
from zerograd.optim.base import NotFinite
from zerograd.text import evaluation
from zerograd.text.data import order
from zerograd.tune.progress import Progress
from zerograd.tune.settings import rate

if TYPE_CHECKING:
    from zerograd.tune.run import Tuning

FACTORS = tuple(2.0**power for power in range(-4, 4))
"""Of the method's usual learning rate."""

STEPS = 16
"""Of each short run."""

ROWS = 128
"""Of the dev split, on which a run is judged."""


def find(tuning: Tuning) -> float:
    """The learning rate whose short run has the lowest dev loss; the weights are then as they were before.

    Larger rates are not tried once a run's loss is half above the first.
    """
    optimizer, settings, task = tuning.optimizer, tuning.settings, tuning.task
    lengths = [tuning.scorer.length(example) for example in task.train]
    before = Snapshot(tuning.folder / ".before", optimizer)
    before.take()
    start = _loss(tuning)
    lowest, best = math.inf, rate(settings.method, settings.scheme) * FACTORS[0]
    try:
        for i, factor in enumerate(FACTORS):
            tuning.listen(Progress("learning rate", i / len(FACTORS)))
            for group in optimizer.param_groups:
                group["lr"] = rate(settings.method, settings.scheme) * factor
            batches = order.batches(lengths, settings.batch_size, settings.seed)
            try:
                for _ in range(STEPS):
                    tuning.step([task.train[i] for i in next(batches)])
                loss = _loss(tuning)
            except NotFinite:
                loss = math.inf
            before.restore()
            optimizer.go_on(0, 0, 0)
            if loss < lowest:
                lowest, best = loss, group["lr"]
            if not loss <= 1.5 * start:
                break
    finally:
        before.restore()
        before.remove()
        optimizer.go_on(0, 0, 0)
    return best


def _loss(tuning: Tuning) -> float:
    return evaluation.answers(tuning.scorer, tuning.task.dev[:ROWS], tuning.rows).loss
