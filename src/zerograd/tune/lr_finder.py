"""The learning rate by a range test: short runs from the same weights, on the same rows, along the same directions."""

from __future__ import annotations

import math

from zerograd.journal.snapshot import Snapshot
from zerograd.optim.base import NotFinite
from zerograd.text import evaluation
from zerograd.text.data import order
from zerograd.tune.defaults import default_lr
from zerograd.tune.progress import Listener, Progress, ignore_progress
from zerograd.tune.setup import Setup

FACTORS = tuple(2.0**power for power in range(-4, 4))
"""The learning rates of the short runs, in factors of the usual rate of method and scheme."""

STEPS = 16
"""Steps of a short run."""

DEV_ROWS = 128
"""Rows of the dev split that a short run is judged on."""


def lr_range_test(setup: Setup, listen: Listener = ignore_progress) -> float:
    """The learning rate whose short run has the lowest dev loss; the weights are then as they were before.

    Larger rates are not tried once a run's loss is half above the first.
    """
    optimizer, usual = setup.optimizer, default_lr(setup.settings.method, setup.settings.scheme)
    before = Snapshot(setup.folder / ".before", optimizer)
    before.take()
    first = _dev_loss(setup)
    lowest, best = math.inf, usual * FACTORS[0]
    try:
        for i, factor in enumerate(FACTORS):
            listen(Progress("learning rate", i / len(FACTORS)))
            loss = _loss_after(setup, usual * factor)
            before.restore()
            optimizer.go_on(0, 0, 0)
            if loss < lowest:
                lowest, best = loss, usual * factor
            if not loss <= 1.5 * first:
                break
    finally:
        before.restore()
        before.remove()
        optimizer.go_on(0, 0, 0)
    return best


def _loss_after(setup: Setup, lr: float) -> float:
    """The dev loss after a short run with a learning rate; infinite where losses were not finite."""
    for group in setup.optimizer.param_groups:
        group["lr"] = lr
    train, settings = setup.task.train, setup.settings
    batches = order.batches([setup.scorer.length(example) for example in train], settings.batch_size, settings.seed)
    try:
        for _ in range(STEPS):
            setup.step([train[i] for i in next(batches)])
        return _dev_loss(setup)
    except NotFinite:
        return math.inf


def _dev_loss(setup: Setup) -> float:
    return evaluation.answers(setup.scorer, setup.task.dev[:DEV_ROWS], setup.rows).loss
