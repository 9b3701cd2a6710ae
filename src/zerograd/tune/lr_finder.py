"""The learning rate by a range test: short runs from the same weights, on the same rows, along the same directions."""

from __future__ import annotations

import math

from zerograd.errors import NotFinite
from zerograd.journal.snapshot import Snapshot
from zerograd.text import evaluation
from zerograd.text.data import order
from zerograd.tune.defaults import default_lr
from zerograd.tune.progress import Listener, Progress, ignore_progress
from zerograd.tune.setup import Setup

LR_FACTORS = tuple(2.0**power for power in range(-4, 4))
"""The learning rates of the short runs, as factors of the default rate of method and scheme."""

TEST_STEPS = 16
"""Steps of a short run."""

DEV_ROWS = 128
"""Dev rows that score a short run."""


def lr_range_test(setup: Setup, listen: Listener = ignore_progress) -> float:
    """The learning rate whose short run has the lowest dev loss. Leaves the weights unchanged.

    The test ends with the first rate whose dev loss is over 1.5 times the loss before training.
    """
    optimizer, default = setup.optimizer, default_lr(setup.settings.method, setup.settings.scheme)
    before = Snapshot(setup.folder / ".before", optimizer.spaces, optimizer.memory)
    before.take()
    first = _dev_loss(setup)
    lowest, best = math.inf, default * LR_FACTORS[0]
    try:
        for i, factor in enumerate(LR_FACTORS):
            listen(Progress("learning rate", i / len(LR_FACTORS)))
            loss = _loss_after(setup, default * factor)
            before.restore()
            optimizer.continue_from(0, 0, 0)
            if loss < lowest:
                lowest, best = loss, default * factor
            if not loss <= 1.5 * first:
                break
    finally:
        before.restore()
        before.remove()
        optimizer.continue_from(0, 0, 0)
    return best


def _loss_after(setup: Setup, lr: float) -> float:
    """The dev loss after a short run with a learning rate; infinite if a training loss was not finite."""
    for group in setup.optimizer.param_groups:
        group["lr"] = lr
    train, settings = setup.task.train, setup.settings
    batches = order.batches([setup.scorer.length(example) for example in train], settings.batch_size, settings.seed)
    try:
        for _ in range(TEST_STEPS):
            setup.step([train[i] for i in next(batches)])
        return _dev_loss(setup)
    except NotFinite:
        return math.inf


def _dev_loss(setup: Setup) -> float:
    return evaluation.answers(setup.scorer, setup.task.dev[:DEV_ROWS], setup.rows).loss
